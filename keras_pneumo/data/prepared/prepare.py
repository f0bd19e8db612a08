"""Makes a prepared folder from a data folder: one decode per image, and the same bytes however often it is interrupted.

In come a folder of radiographs, a label csv and perhaps a patient table; out comes the prepared folder that training
and the referee read. Pixels are never held for more images than there are workers. A folder that holds anything else
is left alone: preparing writes over tables and removes half-written files.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.devices import FILE as DEVICES
from keras_pneumo.data.labels.devices import read_devices
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.pseudonyms import KEY_FILE, new_key, read_key, write_key
from keras_pneumo.data.prepared.manifest import (
    BOXES,
    MAKERS,
    MANIFEST_NAME,
    PSEUDONYM_KEY,
    TABLES,
    read_manifest,
    rendered_images,
    require_split,
    write_folder,
)
from keras_pneumo.data.prepared.plan import DataFolder, PreparationPlan, make_plan, require_same
from keras_pneumo.data.prepared.rendering import Job, Rendered, expected_names, intact_files, render
from keras_pneumo.data.prepared.split import SUBSETS
from keras_pneumo.data.radiographs.reading import find_images, require_radiographs
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import folder_lock, remove_temporary, require_writable, write_bytes
from keras_pneumo.storage.workers import FILE_FAILED, Progress, keep_memory, map_files

SMALLEST_SIZE = 32
"""Side in pixels below which no U-Net with strides up to 32 has anything left to look at."""

_CHUNK = 4
"""Images that a worker renders at a time: one takes some milliseconds, and handing it out alone a twentieth of that."""

CONTACT_SHEET = "contact_sheet.png"
"""What ``keras-pneumo inspect`` draws into a prepared folder."""


@dataclass(frozen=True)
class PrepareSummary:
    """The result of :func:`prepare`, for a person to read."""

    folder: Path
    images: int
    positive: int
    patients: int
    subsets: dict[str, int]
    """Images per subset."""
    set_aside: int
    """Rows of quarantine.csv."""
    rendered: int
    """Images decoded in this run; 0 when there was nothing to do."""
    split_sha256: str
    prepared_sha256: str
    labels: list[str]
    """Each label file, with the data set whose form it has."""
    notes: list[str] = field(default_factory=list)
    """Sentences to show to the user."""


def prepare(
    data: Path | Sequence[Path],
    out: Path,
    sizes: Sequence[int],
    labels: Path | Sequence[Path] | None = None,
    patients: Path | Sequence[Path] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    options: LabelOptions | None = None,
    test_only: bool = False,
    pseudonym_key: Path | None = None,
) -> PrepareSummary:
    """Prepare a data folder, go on with an interrupted preparation, mend a damaged one, or add sizes to one.

    Args:
        data: folder of DICOM, PNG or JPEG files, at any depth; several are prepared together, each as a source.
        out: the prepared folder; made when absent. It may lie inside ``data``.
        sizes: sides in pixels, 32 to 1024.
        labels: label file, or folder of masks; when None it is looked for in ``data``. With several folders one for
            each, or one for all.
        patients: patient table; when None, ``patients.csv`` or ``nih_id.csv`` at the top of ``data`` is taken. With
            several folders likewise.
        seed: of the split.
        workers: processes; None for all cores that pay.
        progress: called after every image.
        options: what is decided about uncertain and blank labels, and names of columns; None: the defaults.
        test_only: whether all images are to be test images, of one class or both: an external test set.
        pseudonym_key: the key of another prepared folder (its file, or that folder), so that the pseudonyms of patients
            are the same in both; None: the key in ``out``, and a new one where there is none.

    Raises:
        PneumoError: nothing usable, a fault of the disk, a missing decoder, another run in ``out``, too few images for
            a split, or ``out`` holds other data or pseudonyms of another key. What was complete in ``out`` before stays
            as it was.
    """
    folders, out = _data_folders(data, labels, patients), Path(out)
    wanted = _checked_sizes(sizes)
    found = [find_images(folder.path, skip=[out]) for folder in folders]
    for folder, images in zip(folders, found, strict=True):
        require_radiographs(folder.path, images)
    _require_own_folder(out)
    require_writable(out)
    with folder_lock(out):
        remove_temporary(out)
        devices = _devices(folders)
        plan = make_plan(folders, out, found, options or LabelOptions(), seed, workers, test_only)
        require_split(plan)  # now, rather than after an hour of decoding
        plan = _with_key(plan, out, pseudonym_key)
        finished, earlier_sizes = _earlier_work(out, plan)
        every_size = tuple(sorted({*wanted, *earlier_sizes}))
        rendered, count = _render_all(out, plan, every_size, finished, workers, progress)
        if devices is not None:  # before the manifest, which says that a folder is whole
            write_bytes(out / DEVICES, devices)
        manifest = write_folder(out, plan, every_size, rendered)
        _remove_journal(out)
        remove_temporary(out)
    return _summary(out, manifest, count)


def _with_key(plan: PreparationPlan, out: Path, given: Path | None) -> PreparationPlan:
    """The plan with the key of its pseudonyms, which is in ``out`` from now on; unchanged where it needs none.

    Raises:
        PneumoError: the folder has pseudonyms of another key, or of one that is not at hand.
    """
    other = read_key(given) if given is not None else None
    if not plan.hashed:
        unused = "--pseudonym-key was not used: no patient is named by the files' PatientID."
        return plan if other is None else replace(plan, notes=[*plan.notes, unused])
    try:
        manifest = read_manifest(out)
    except PneumoError:  # a new folder, an unfinished or a damaged one
        manifest = {}
    if manifest and PSEUDONYM_KEY not in manifest:
        text = f"{out} is of an earlier version: its pseudonyms of patients have no key and can be undone by trying."
        if other is not None:
            raise PneumoError(f"{text} Prepare the data into another folder (--out) to have them of this key.")
        advice = "Prepare the data into another folder (--out) before it is handed on."
        return replace(plan, notes=[*plan.notes, f"{text} {advice}"])
    own = read_key(out) if (out / KEY_FILE).exists() else None
    key = own or other
    recorded = manifest.get(PSEUDONYM_KEY)
    if key is None and recorded is not None:
        raise PneumoError(
            f"{out / KEY_FILE} is missing, the key of the patients' pseudonyms there. Put it back, name a copy of it "
            "with --pseudonym-key, or prepare the data into another folder (--out)."
        )
    if key is not None and (recorded not in (None, key.fingerprint) or (other is not None and key != other)):
        raise PneumoError(
            f"The patients' pseudonyms in {out} are of another key than that in {given or out / KEY_FILE}. Leave out "
            "--pseudonym-key, or prepare the data into another folder (--out)."
        )
    if own is None:
        key = key or new_key()
        write_key(out, key)
    return replace(plan, key=key)


def _summary(out: Path, manifest: dict[str, Any], count: int) -> PrepareSummary:
    counts = manifest["counts"]
    return PrepareSummary(
        folder=out,
        images=counts["images"],
        positive=counts["positive"],
        patients=counts["patients"],
        subsets={name: counts[name] for name in SUBSETS},
        set_aside=counts["set_aside"],
        rendered=count,
        split_sha256=manifest["split_sha256"],
        prepared_sha256=manifest["prepared_sha256"],
        labels=[f"{record['file']} ({record['data_set']})" for record in manifest["labels"]],
        notes=[*([manifest["patients_note"]] if manifest["patients_note"] else []), *manifest["notes"]],
    )


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    bad = [size for size in sizes if not SMALLEST_SIZE <= size <= rle.MASK_SIZE]
    if bad or not sizes:
        given = f"{bad[0]} was given" if bad else "none was given"
        raise PneumoError(
            f"Sizes lie between {SMALLEST_SIZE} and {rle.MASK_SIZE} pixels; {given}. Give for example --size 256."
        )
    return sorted({int(size) for size in sizes})


def _data_folders(
    data: Path | Sequence[Path], labels: Path | Sequence[Path] | None, patients: Path | Sequence[Path] | None
) -> list[DataFolder]:
    """Each data folder with its own labels and patients.

    Raises:
        PneumoError: there are neither as many of them as folders, nor one, nor none.
    """
    folders = paths_of(data)
    if not folders:
        raise PneumoError("No folder was given. Give the folder that holds the radiographs.")
    tables: list[list[Path | None]] = []
    for option, given in (("--labels", paths_of(labels)), ("--patients", paths_of(patients))):
        if len(given) not in (0, 1, len(folders)):
            raise PneumoError(
                f"{len(folders)} folders and {len(given)} {option} were given. Give one for each folder, one, or none."
            )
        each: list[Path | None] = [*given] * (len(folders) // len(given)) if given else [None] * len(folders)
        tables.append(each)
    return [DataFolder(*each) for each in zip(folders, *tables, strict=True)]


def paths_of(given: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """Paths of one path, of several, or of none."""
    if given is None:
        return []
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _devices(folders: Sequence[DataFolder]) -> bytes | None:
    """The table of chest tubes and markers in the data folder, if there is one, checked; it is carried along as is.

    It is no part of the manifest: no score and no training depends on it. That of several folders is not carried, since
    an image may have another id there.
    """
    path = folders[0].path / DEVICES
    if len(folders) > 1 or not path.is_file():
        return None
    read_devices(path)
    return path.read_bytes()


def _earlier_work(out: Path, plan: PreparationPlan) -> tuple[dict[str, Rendered], set[int]]:
    """Images that are done according to the manifest and the journal in ``out``, and the sizes begun there.

    Raises:
        PneumoError: they were made from other data.
    """
    finished: dict[str, Rendered] = {}
    sizes: set[int] = set()
    if (out / MANIFEST_NAME).exists():
        try:
            manifest = read_manifest(out)
        except PneumoError:
            manifest = {}  # damaged: the journal, or decoding everything again, will mend it
        if manifest:
            require_same(out, manifest.get("source"), plan.record)
            finished, sizes = rendered_images(out, manifest), {int(size) for size in manifest["sizes"]}
    head, journalled = _read_journal(out)
    if head is not None:
        require_same(out, head.get("source"), plan.record)
        finished |= journalled
        sizes |= {int(size) for size in head.get("sizes", [])}
    return finished, sizes


def _render_all(
    out: Path,
    plan: PreparationPlan,
    sizes: tuple[int, ...],
    finished: dict[str, Rendered],
    workers: int | None,
    progress: Progress | None,
) -> tuple[dict[str, Rendered], int]:
    """Make every file that is missing or damaged; returns all images' results and how many were decoded."""
    intact = intact_files(out, {name: digest for image in finished.values() for name, digest in image.files.items()})
    done: dict[str, Rendered] = {}
    jobs: list[Job] = []
    for source in plan.sources:
        label = plan.labels.images[source.image_id]
        earlier = finished.get(source.image_id)
        missing = tuple(
            size
            for size in sizes
            if earlier is None or not set(expected_names(source.image_id, size, label.has_mask)) <= intact
        )
        if earlier is not None:
            done[source.image_id] = earlier
        if missing and not (earlier is not None and earlier.error):
            jobs.append(Job(source.path, source.image_id, label.runs, missing, out, plan.any_view, label.mask_shapes))
    if progress:
        progress(len(plan.sources) - len(jobs), len(plan.sources))
    if not jobs:
        return done, 0
    head = {"source": plan.record, "sizes": list(sizes)}
    with _open_journal(out, head, done) as journal:
        results = map_files(render, jobs, workers, initializer=keep_memory, chunk=_CHUNK)
        for number, (job, result) in enumerate(results, start=1):
            image = result or Rendered(job.image_id, error=FILE_FAILED)
            done[job.image_id] = _merged(out, done.get(job.image_id), image)
            _add_to_journal(journal, done[job.image_id])
            if progress:
                progress(len(plan.sources) - len(jobs) + number, len(plan.sources))
    return done, len(jobs)


def _merged(out: Path, earlier: Rendered | None, now: Rendered) -> Rendered:
    """An image's sizes of earlier runs and of this one together."""
    if earlier is None or not earlier.files:
        return now
    if now.error:
        # Setting it aside now would change the table of cases and the split that others already use.
        raise PneumoError(f"{now.image_id} cannot be written at the new size: {now.error}. Leave that size out.")
    if earlier.pixels_sha256 != now.pixels_sha256:
        raise PneumoError(
            f"{now.image_id} decodes to other pixels than when {out} was prepared, so the sizes would not match. "
            "Install the versions that its manifest.json names, or prepare into another folder."
        )
    again = {Path(name).parts[0].rpartition("_")[2] for name in now.files}
    now.files = {**earlier.files, **now.files}
    now.rows, now.columns = earlier.rows, earlier.columns  # so the tables of an older folder stay as they are
    now.vanished = sorted({*now.vanished, *(size for size in earlier.vanished if str(size) not in again)})
    return now


# -- The journal of an interrupted preparation -------------------------------------------------------------------------

JOURNAL_NAME = ".journal.jsonl"
"""JSON lines in the prepared folder: first what is being prepared, then one line per image.

A line that a kill cut short is dropped, and its image is done again. A finished folder has no journal; its manifest and
cases.csv hold the same.
"""


def _read_journal(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Rendered]]:
    """What the journal in ``folder`` was begun for (None when there is no journal) and its finished images by id."""
    try:
        lines = (folder / JOURNAL_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None, {}
    done: dict[str, Rendered] = {}
    head: dict[str, Any] | None = None
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                head = dict(entry)
            else:
                rendered = Rendered(**entry)
                done[rendered.image_id] = rendered
        except (ValueError, TypeError):
            continue
    return head, done


@contextlib.contextmanager
def _open_journal(folder: Path, head: dict[str, Any], done: dict[str, Rendered]) -> Iterator[TextIO]:
    """Begin the journal of ``folder`` with what is already done, whole or not at all, and keep it open for more."""
    lines = [json.dumps(head, sort_keys=True), *(_line(rendered) for rendered in done.values())]
    write_bytes(folder / JOURNAL_NAME, ("\n".join(lines) + "\n").encode())
    with (folder / JOURNAL_NAME).open("a", encoding="utf-8") as stream:
        yield stream


def _add_to_journal(stream: TextIO, rendered: Rendered) -> None:
    """Note one image as done; it is on its way to the disk when this returns."""
    stream.write(_line(rendered) + "\n")
    stream.flush()


def _line(rendered: Rendered) -> str:
    return json.dumps(asdict(rendered), sort_keys=True)


def _remove_journal(folder: Path) -> None:
    """End the journal: the folder is complete."""
    (folder / JOURNAL_NAME).unlink(missing_ok=True)


# -- Folders that may be filled ----------------------------------------------------------------------------------------

_SIZE_FOLDER = re.compile(r"(images|masks)_\d+(\.npy)?|arrays_\d+\.json")
"""Images and masks of one size, and the arrays of their pixels."""


def _require_own_folder(out: Path) -> None:
    """Check that a folder may be filled: it is empty or a prepared one.

    It is a prepared folder with a journal, with a manifest, or when it holds only file names of a prepared folder: then
    a damaged manifest can be mended.

    Raises:
        PneumoError: it holds something else.
    """
    if not out.is_dir():
        return
    others = sorted(
        path.name for path in out.iterdir() if not path.name.startswith(".") and not _is_own_name(path.name)
    )
    if others and not (out / JOURNAL_NAME).exists() and not _has_manifest(out):
        raise PneumoError(
            f"{out} holds other files ({others[0]!r}) and is no prepared folder. Give an empty or a new folder with "
            "--out."
        )


def _is_own_name(name: str) -> bool:
    return (
        name in (MANIFEST_NAME, *TABLES, BOXES, MAKERS, DEVICES, CONTACT_SHEET, KEY_FILE)
        or _SIZE_FOLDER.fullmatch(name) is not None
    )


def _has_manifest(out: Path) -> bool:
    try:
        manifest = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "prepared_sha256"} <= manifest.keys()
