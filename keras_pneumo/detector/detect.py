"""Detection: radiographs to answers on disk. Worker processes decode, this thread predicts, threads write.

In: an opened detector and files. Out, for each radiograph that could be read: ``NAME.json``, ``NAME.png`` (the outline
on the radiograph) and, where wanted, DICOM objects in ``dicom/NAME``; for all of them ``predictions.csv``, and
``quarantine.csv`` with the files that were set aside and the reasons. A file that is not like the detector's training
images has all of these without an answer, and its row in ``quarantine.csv``. Memory does not grow with the folder.

Until the tables are written, ``unfinished.jsonl`` lists what is there, a line for each file in the order of its end.
However a call ends before that, the same call again goes on with what the list says; see :class:`_Journal`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.scanning import check_decoders
from keras_pneumo.data.radiographs.geometry import mask_on_image, shape_fault
from keras_pneumo.data.radiographs.radiograph import Radiograph
from keras_pneumo.data.radiographs.reading import find_files, read_or_reason
from keras_pneumo.detector.detector import BATCH, Answer, Detector
from keras_pneumo.detector.dicom_files import UnusableSource, clear_objects, objects_in, write_objects
from keras_pneumo.detector.overlay import encode_png, overlay_mask
from keras_pneumo.detector.summary import caption, disagreement, summary_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import (
    remove_temporary,
    require_writable,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_table,
)
from keras_pneumo.storage.tables import counted, one_line, safe_columns, write_quarantine
from keras_pneumo.storage.workers import FILE_FAILED, Progress, map_files

if TYPE_CHECKING:  # highdicom is an extra
    from keras_pneumo.detector.dicom_objects import Finding

WRITERS = 2

COLUMNS = (
    *("file", "image_id", "study", "probability", "pneumothorax", "outlined", "mask_share", "area_mm2"),
    "encoded_pixels",
)
"""Of ``predictions.csv``."""

JOURNAL = "unfinished.jsonl"

Read = tuple[Path, Radiograph | str | None]
"""A file, and its radiograph, or why it cannot be read, or None where its process was lost."""


@dataclass
class DetectionResult:
    """The rows and files of one :func:`detect`."""

    out: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    set_aside: list[dict[str, str]] = field(default_factory=list)
    """Files without an answer, or with one but without DICOM objects: ``file`` and ``reason``."""
    made_up: int = 0
    """Files whose identifiers were made up for their DICOM objects."""
    read: int = 0
    """Files that were read, with or without success."""
    earlier: int = 0
    """Of these, the files that a call which was ended had done."""
    names: set[str] = field(default_factory=set)
    """File names used so far, in lower case."""

    def __str__(self) -> str:
        """A sentence for the user."""
        yes = sum(int(row["pneumothorax"]) for row in self.rows)
        text = f"{len(self.rows)} radiographs answered, {yes} with yes: {self.out / 'predictions.csv'}"
        times = Counter(row["study"] for row in self.rows if row["study"])
        several = sum(count > 1 for count in times.values())
        if several:
            text += f"; {counted(several, 'study has', 'studies have')} several radiographs, each with its own answer"
        if self.earlier:
            text += f"; {counted(self.earlier, 'file was', 'files were')} done before, by a call that was ended"
        if self.made_up:
            text += f"; identifiers made up for {self.made_up}"
        return f"{text}; {len(self.set_aside)} set aside: {self.out / 'quarantine.csv'}" if self.set_aside else text


def detect(
    detector: Detector,
    paths: Sequence[Path],
    out: Path,
    dicom: bool = False,
    make_uids: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
    batch: int = BATCH,
    any_view: bool = False,
) -> DetectionResult:
    """Answer for every radiograph and write the answers; go on where the same call was ended before.

    The caller holds the lock of ``out``.

    Args:
        detector: from :func:`keras_pneumo.detector.detector.open_detector`.
        paths: files and folders.
        out: folder for the answers, made if need be.
        dicom: whether to write DICOM objects too.
        make_uids: whether to make up identifiers that DICOM objects need and the file lacks.
        progress: called with files done and in all.
        workers: processes that decode, at least one; default: one per core, as far as there are files for them.
        batch: files whose radiographs are predicted together, neighbours in the list of all.
        any_view: whether to answer too for files that say that they are no frontal radiographs of the chest.

    Raises:
        PneumoError: there is nothing to read, highdicom or a decoder is missing, or a file cannot be written. After
            this and after Ctrl-C the tables list what was complete by then, and after any other end
            ``unfinished.jsonl`` does.
    """
    if dicom and find_spec("highdicom") is None:
        raise PneumoError(
            "DICOM objects need highdicom, which is not installed. Run: pip install 'keras-pneumo[dicom]'"
        )
    found = find_files(paths, out)
    check_decoders(found.files)
    files = dict(found.files)
    require_writable(out)
    result = DetectionResult(out, set_aside=[{name: str(text) for name, text in row.items()} for row in found.refused])
    settings = {
        "detector": detector.version,
        "engines": sorted(detector.engines),
        **{"dicom": dicom, "make_uids": make_uids, "any_view": any_view, "batch": batch},
    }
    listed = list(files)
    blocks = [listed[start : start + batch] for start in range(0, len(listed), batch)]
    with _Journal(out, files, settings) as journal:
        waiting = journal.go_on(blocks, result)
        pending: deque[Future[dict[str, Any]]] = deque()
        # Never in this process: a decoder that crashes or hangs then costs only its own file.
        read = map_files(read_or_reason, itertools.chain.from_iterable(waiting), workers)
        try:
            with ThreadPoolExecutor(WRITERS) as writers:
                for block in _in_blocks(read, waiting):
                    group = _readable(block, files, result, journal, any_view)
                    for item in _answered(detector, group, files, result, dicom, make_uids) if group else ():
                        pending.append(writers.submit(_write, detector, item, out))
                    for row in _finished(pending, leave=2 * batch):
                        journal.add_row(row)
                        _enter(row, result)
                    if progress:
                        progress(result.read, len(files))
            for row in _finished(pending, leave=0):
                journal.add_row(row)
                _enter(row, result)
        except BaseException:  # Ctrl-C and a full disk too: every answer that is on the disk gets its row
            for future in pending:
                if future.done() and not future.cancelled() and future.exception() is None:
                    with contextlib.suppress(PneumoError):
                        journal.add_row(future.result())
                    _enter(future.result(), result)
            with contextlib.suppress(PneumoError):  # the first error says more
                _write_tables(out, result.rows, result.set_aside)
            raise
        _write_tables(out, result.rows, result.set_aside)
        journal.remove()
    return result


class _Journal:
    """The list of what an unfinished call has done, in ``unfinished.jsonl``: a context that keeps it open.

    Its first line holds the detector's version and the options. Each other one is about one file: its size and time of
    change, and the reason why it was set aside, or its row and the hashes of the files of its answer.
    """

    def __init__(self, out: Path, files: Mapping[Path, str], settings: dict[str, Any]) -> None:
        """``files`` are those of the call, with their names in the tables."""
        self.out = out
        self.path = out / JOURNAL
        self.settings = settings
        self.path_of = {_key_of(path): path for path in files}
        self.status = {path: _status_of(path) for path in files}

    def __enter__(self) -> _Journal:
        """Read what an earlier call has done, if it was the same one."""
        self.done: dict[Path, dict[str, Any]] = {}
        try:
            first, *lines = self.path.read_text(encoding="utf-8").splitlines()
            same = json.loads(first) == self.settings
        except (OSError, ValueError, RecursionError):
            return self
        for line in lines if same else ():
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):  # the last one may be torn
                entry = json.loads(line)
                self.done[self.path_of[entry["key"]]] = entry
        return self

    def __exit__(self, *_: object) -> None:
        """Close the list; it stays."""
        if hasattr(self, "stream"):
            self.stream.close()

    def go_on(self, blocks: Sequence[list[Path]], result: DetectionResult) -> list[list[Path]]:
        """Take over what was done and is as it was, and begin the list anew with it.

        Only whole blocks are taken over: so each network gets the very batches that it gets in an unbroken call.

        Returns:
            The blocks that are still to be done.
        """
        remove_temporary(self.out)
        waiting, kept = [], []
        for block in blocks:
            entries = [self.done[path] for path in block if path in self.done and self._is_intact(path)]
            if len(entries) < len(block):
                waiting.append(block)
                continue
            kept += entries
        lines = [json.dumps(line) + "\n" for line in (self.settings, *kept)]
        write_bytes(self.path, "".join(lines).encode())
        self.stream = self.path.open("a", encoding="utf-8", buffering=1)
        for entry in kept:
            if entry["row"] is None:
                result.set_aside.append({"file": entry["file"], "reason": entry["reason"]})
            else:
                result.names.add(entry["name"].lower())
                _enter(dict(entry["row"]), result)
        result.read = result.earlier = len(kept)
        return waiting

    def _is_intact(self, path: Path) -> bool:
        """Whether a file, and the files of its answer, are as they were when they were listed."""
        entry = self.done[path]
        try:
            written = all(sha256_file(self.out / name) == digest for name, digest in entry["files"].items())
            return written and self.status[path] is not None and entry["status"] == self.status[path]
        except (OSError, KeyError, TypeError, AttributeError):
            return False

    def add_row(self, row: dict[str, Any]) -> None:
        """List an answer that is written; takes out of ``row`` what only the list needs."""
        path, name, files = row.pop("path"), row.pop("name"), row.pop("files")
        self._add(path, {"file": row["file"], "name": name, "files": files, "row": row})

    def add_reason(self, path: Path, file: str, reason: str) -> None:
        """List a file that was set aside."""
        self._add(path, {"file": file, "files": {}, "row": None, "reason": reason})

    def _add(self, path: Path, entry: dict[str, Any]) -> None:
        line = json.dumps({"key": _key_of(path), "status": self.status[path], **entry})
        try:
            self.stream.write(line + "\n")
        except OSError as error:
            raise PneumoError(f"Cannot write {self.path}: {error.strerror or error}. Free some space there.") from error

    def remove(self) -> None:
        """Remove the list: the tables are written."""
        self.path.unlink(missing_ok=True)


def _key_of(path: Path) -> str:
    """A file's name in the list, which tells nothing of the folders around it."""
    return sha256_bytes(os.fsencode(path.absolute()))[:16]


def _status_of(path: Path) -> list[int] | None:
    """Size and time of change of a file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]


def _in_blocks(read: Iterable[Read], blocks: Sequence[list[Path]]) -> Iterator[list[Read]]:
    """The blocks as they become complete, each in the order of its files."""
    block_of = {path: block for block in blocks for path in block}
    found: dict[Path, Radiograph | str | None] = {}
    for path, radiograph in read:
        found[path] = radiograph
        block = block_of[path]
        if all(each in found for each in block):
            yield [(each, found.pop(each)) for each in block]


def _readable(
    block: Iterable[Read], files: dict[Path, str], result: DetectionResult, journal: _Journal, any_view: bool
) -> list[tuple[Path, Radiograph]]:
    """The files that were read and that the networks can take; the others are set aside in ``result``."""
    readable = []
    for path, radiograph in block:
        result.read += 1
        if isinstance(radiograph, Radiograph):
            reason = shape_fault(radiograph.pixels)
            if radiograph.other_view and not any_view:
                reason = f"{radiograph.other_view}; --any-view answers for it all the same"
        else:
            reason = FILE_FAILED if radiograph is None else radiograph
        if reason:
            result.set_aside.append({"file": files[path], "reason": reason})
            journal.add_reason(path, files[path], reason)
        elif isinstance(radiograph, Radiograph):
            readable.append((path, radiograph))
    return readable


def _answered(
    detector: Detector,
    group: Sequence[tuple[Path, Radiograph]],
    files: dict[Path, str],
    result: DetectionResult,
    dicom: bool,
    make_uids: bool,
) -> list[_Item]:
    """Answer for the radiographs of a group, which becomes one batch."""
    answers = detector.answer([radiograph.pixels for _, radiograph in group])
    return [
        _Item(path, files[path], _free_name(radiograph.image_id, result.names), radiograph, answer, dicom, make_uids)
        for (path, radiograph), answer in zip(group, answers, strict=True)
    ]


@dataclass(frozen=True)
class _Item:
    """One answered radiograph on its way to the disk."""

    path: Path
    file: str
    name: str
    radiograph: Radiograph
    answer: Answer
    dicom: bool
    make_uids: bool


def _free_name(image_id: str, taken: set[str]) -> str:
    """A file name from an image id: an id may be any text, and two files may have the same id."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", image_id).strip(".-")[:100] or "image"
    numbered = (plain if number == 1 else f"{plain}-{number}" for number in itertools.count(1))
    name = next(candidate for candidate in numbered if candidate.lower() not in taken)
    taken.add(name.lower())
    return name


def _finished(pending: deque[Future[dict[str, Any]]], leave: int) -> Iterator[dict[str, Any]]:
    """Rows of the answers that were written; waits until no more than ``leave`` are pending."""
    while len(pending) > leave:
        yield pending.popleft().result()


def _enter(row: dict[str, Any], result: DetectionResult) -> None:
    note, made_up, reason = row.pop("note"), row.pop("made_up"), row.pop("reason")
    result.made_up += bool(made_up)
    if reason:
        reason += f" Nor are there DICOM objects: {note}" if note else ""
        result.set_aside.append({"file": row["file"], "reason": reason})
        return
    result.rows.append(row)
    if note:
        result.set_aside.append({"file": row["file"], "reason": f"answered, but without DICOM objects: {note}"})


def _write_tables(out: Path, answered: Sequence[dict[str, Any]], set_aside: Sequence[dict[str, str]]) -> None:
    """Write ``predictions.csv``, and ``quarantine.csv`` where something was set aside."""
    table = pd.DataFrame(answered, columns=list(COLUMNS)).sort_values("file", ignore_index=True)
    table[["pneumothorax", "outlined"]] = table[["pneumothorax", "outlined"]].astype(int)
    table = safe_columns(table.round({"probability": 6, "mask_share": 6}), "file", "image_id")
    write_table(out / "predictions.csv", table)
    write_quarantine(out, sorted(set_aside, key=lambda row: row["file"]))


def _write(detector: Detector, item: _Item, out: Path) -> dict[str, Any]:
    """Write one answer and return its row for the table. Runs in a writer thread."""
    radiograph, answer = item.radiograph, item.answer
    mask = mask_on_image(np.zeros_like(answer.mask) if answer.unlike else answer.mask, *radiograph.pixels.shape)
    picture = overlay_mask(radiograph.pixels, mask, caption(detector, answer))
    summary = {"file": item.file, **summary_of(detector, radiograph, answer), "overlay": f"{item.name}.png"}
    note, made_up = "", list[str]()
    clear_objects(out, item.name)
    if item.dicom:
        try:
            finding = _finding(detector, answer, mask, picture, summary["area_mm2"])
            summary["dicom"], made_up = write_objects(item.path, finding, out, item.name, item.make_uids)
        except UnusableSource as error:
            note = str(error)
    hashes = {f"{item.name}.png": write_bytes(out / f"{item.name}.png", encode_png(picture), durable=False)}
    hashes[f"{item.name}.json"] = write_json(out / f"{item.name}.json", summary)
    for file in objects_in(summary.get("dicom", {})):
        hashes[file] = sha256_file(out / file)
    row = {name: summary[name] for name in COLUMNS} | {"note": note, "made_up": made_up, "reason": summary["reason"]}
    return row | {"path": item.path, "name": item.name, "files": hashes}


def _finding(detector: Detector, answer: Answer, mask: np.ndarray, picture: np.ndarray, area: float | None) -> Finding:
    """The content of the DICOM objects."""
    from keras_pneumo.detector.dicom_objects import Finding

    # A backslash separates values in DICOM.
    algorithm = one_line(f"keras-pneumo {detector.name}".replace("\\", "_"), 64)
    return Finding(
        mask,
        picture,
        None if answer.unlike else answer.probability,
        detector.threshold,
        area,
        algorithm,
        detector.version,
        disagreement(detector, answer),
        detector.synthetic,
        detector.unlike_reason(answer),
    )
