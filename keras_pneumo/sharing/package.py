"""The package of a run or a detector: what loading it needs, its model card, and a list of the files with their hashes.

In: a finished run's folder or a detector's. Out: a folder of the same kind, which loads as the original does, and
which can be handed on: as one zip (:mod:`.archive`) or on a hub (:mod:`.hub`). It holds no checkpoint of the training,
no radiograph, no page with radiographs, no command line, and no name of a patient that could be undone by trying::

    package.json       what it is, and the SHA-256 and size of every file
    README.md          the model card
    a run:             experiment.json, best.weights.h5, best.safetensors, postprocess.json, log.csv, board.csv, ...
    a detector:        detector.json and the files that it lists, board/board.csv

With predictions also ``submission/``. A package that was received is checked against the list before anything is read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from keras_pneumo.data.labels.pseudonyms import PLAIN, key_of
from keras_pneumo.data.privacy import examine_privacy
from keras_pneumo.detector.record import FILE as DETECTOR_RECORD
from keras_pneumo.detector.record import check_files, read_detector_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.saliency_report import FOLDER as EXPLAIN
from keras_pneumo.evaluation.report.saliency_report import RECORD as EXPLAIN_RECORD
from keras_pneumo.inference.postprocess import FILE as POSTPROCESS
from keras_pneumo.inference.provenance import LEARNED, LEARNED_SHA256, read_learned, without_names
from keras_pneumo.inference.run import CHECKPOINTS, HASHES, TORCH_WEIGHTS, WEIGHTS, RunFolder, read_run
from keras_pneumo.sharing.card import CARD, model_card
from keras_pneumo.storage.files import (
    fits_content_hash,
    read_json,
    replacing_contents,
    sha256_file,
    with_content_hash,
    write_json,
    write_table,
)
from keras_pneumo.storage.tables import counted, listed
from keras_pneumo.training.run_folder import RECORD as RUN_RECORD

LIST = "package.json"
FORMAT = 1
SUBMISSION = "submission"

MOST_FILES = 500
MOST_BYTES = 8 * 2**30
"""Limits of a package that is received: the largest detector of ours, of ten networks at 512 pixels, has 2 GiB."""

RUN_FILES = (TORCH_WEIGHTS, POSTPROCESS, "log.csv", "board.csv", "curves.png", f"{EXPLAIN}/{EXPLAIN_RECORD}")
"""Beside the record and the weights: what a :class:`~keras_pneumo.api.Run` reads, as far as the run has it."""

_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,99}/){0,3}[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)

Kind = Literal["run", "detector"]


@dataclass(frozen=True)
class Package:
    """A package folder whose files are those of its list."""

    folder: Path
    kind: Kind
    name: str
    """Of the experiment, or of the detector."""
    synthetic: bool
    files: dict[str, str]
    """SHA-256 of every file but the list itself, by its name within the folder."""
    sha256: str
    """Of the list's content: two packages with the same one are the same."""


def kind_of(folder: Path) -> Kind:
    """Whether a folder is a run's or a detector's.

    Raises:
        PneumoError: it is neither.
    """
    if (folder / DETECTOR_RECORD).is_file():
        return "detector"
    if (folder / RUN_RECORD).is_file():
        return "run"
    raise PneumoError(
        f"{folder} is neither a run nor a detector: it has no {RUN_RECORD} and no {DETECTOR_RECORD}. Name the folder "
        "that train or join printed."
    )


def write_package(
    source: Path,
    out: Path,
    licence: str = "",
    evaluations: Sequence[Path] = (),
    with_predictions: bool = False,
    address: str = "",
) -> Package:
    """Write the package of a run or a detector, and check that nothing in it tells who a patient is.

    Args:
        source: the folder of a finished run, or of a detector.
        out: the package's folder; new or empty.
        licence: of the weights, as a hub names it; blank: none was given, and the card says so.
        evaluations: folders that ``evaluate`` wrote for this run or detector; their scores go onto the card.
        with_predictions: whether the predictions go with it, an image id in each row.
        address: where it will be found (``hf://OWNER/NAME``), for the card.

    Raises:
        PneumoError: ``source`` is neither, was changed after it was written, or has something that may identify a
            patient; ``out`` then holds nothing.
    """
    kind = kind_of(source)
    require_new_folder(out)
    card = model_card(source, licence=licence, evaluations=evaluations, address=address)
    with replacing_contents(out, (LIST,)) as folder:
        if kind == "run":
            name, synthetic = _copy_run(read_run(source), folder)
        else:
            name, synthetic = _copy_detector(source, folder)
        if with_predictions:
            _copy_predictions(source, folder)
        (folder / CARD).write_text(card, encoding="utf-8")
        _refuse_identifying(folder)
        write_json(folder / LIST, with_content_hash(_list_of(folder, kind, name, synthetic)))
    return read_package(out)


def copy_package(package: Package, out: Path) -> Package:
    """Copy a package into a new or empty folder, and check the copy.

    Raises:
        PneumoError: ``out`` holds something, or the copy is not the same.
    """
    require_new_folder(out)
    with replacing_contents(out, (LIST,)) as folder:
        shutil.copytree(package.folder, folder, dirs_exist_ok=True)
    return read_package(out)


def require_new_folder(out: Path, but: Sequence[str] = ()) -> None:
    """Refuse a folder that holds something, apart from the names in ``but``.

    Raises:
        PneumoError: it does, or it is a file.
    """
    if out.exists() and (not out.is_dir() or any(path.name not in but for path in out.iterdir())):
        raise PneumoError(f"{out} is not empty. Give a new or an empty folder; nothing was changed.")


def read_package(folder: Path) -> Package:
    """Read a package's list, and check every file against it.

    Raises:
        PneumoError: it is none, a file is missing, changed or not listed, or it is of a later version.
    """
    record = check_list(_json_of(folder / LIST), str(folder / LIST))
    files: dict[str, dict[str, Any]] = record["files"]
    changed = [name for name, each in files.items() if not _is(folder, name, each)]
    if changed:
        raise PneumoError(
            f"{folder}: {listed(changed)} {'is' if len(changed) == 1 else 'are'} missing or changed: the hash is not "
            f"the one in {LIST}. Get the package again."
        )
    # Weights that nobody listed could be predicted with: a run takes all checkpoints that it finds.
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    unlisted = sorted(name for name in there - {*files, LIST} if not name.startswith("."))
    if unlisted:
        raise PneumoError(
            f"{folder} holds {listed(unlisted)}, which {LIST} does not list. Delete that, or unpack the package "
            "into an empty folder."
        )
    hashes = {name: str(each["sha256"]) for name, each in files.items()}
    return Package(folder, record["kind"], record["name"], record["synthetic"], hashes, record["sha256"])


def check_list(record: Any, where: str) -> dict[str, Any]:
    """The list of a package, checked: it may come from anywhere.

    Args:
        record: the content of ``package.json``.
        where: what a refusal names.

    Raises:
        PneumoError: it is of a later version, was changed, or names a file outside of its folder.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(f"{where} is not of format {FORMAT}, the one that this version reads. Use a newer version.")
    if record.get("sha256") is None or not fits_content_hash(record):
        raise PneumoError(f"{where} was changed after it was written: its hash does not match. Get the package again.")
    files = record.get("files")
    whole = (
        record.get("kind") in ("run", "detector")
        and isinstance(record.get("name"), str)
        and isinstance(record.get("synthetic"), bool)
        and isinstance(files, dict)
        and 0 < len(files) <= MOST_FILES
    )
    if not whole or not isinstance(files, dict):
        raise PneumoError(f"{where} is no list of a package. Get the package again.")
    for name, each in files.items():
        if not _NAME.fullmatch(name) or name == LIST:
            raise PneumoError(
                f"{where} lists {name!r:.80}, which is no plain name of a file within the package. It may have been "
                "made to do harm: delete it."
            )
        digest, size = (each.get("sha256"), each.get("bytes")) if isinstance(each, dict) else (None, None)
        if not re.fullmatch(r"[0-9a-f]{64}", str(digest)) or type(size) is not int or size < 0:
            raise PneumoError(f"{where} has no hash or no size of {name}. Get the package again.")
    if (total := sum(each["bytes"] for each in files.values())) > MOST_BYTES:
        raise PneumoError(
            f"{where} lists {total / 2**30:,.0f} GiB; at most {MOST_BYTES // 2**30} are taken. It may have been made "
            "to fill the disk: delete it."
        )
    return record


def _list_of(folder: Path, kind: Kind, name: str, synthetic: bool) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
    }
    return {"format": FORMAT, "kind": kind, "name": name, "synthetic": synthetic, "files": files}


def _is(folder: Path, name: str, expected: dict[str, Any]) -> bool:
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or not path.is_file() or path.stat().st_size != expected["bytes"]:
        return False
    return sha256_file(path) == expected["sha256"]


def _json_of(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError:
        raise PneumoError(
            f"{path.parent} is no package: it has no {LIST}. Name a zip that export wrote, or its unpacked folder."
        ) from None
    except ValueError as error:
        raise PneumoError(f"{path} cannot be read: {error}. Get the package again.") from None


# ---------------------------------------------------------------- what goes into it


def _copy_run(run: RunFolder, folder: Path) -> tuple[str, bool]:
    """Copy what a run is loaded from; its record without the command line, and its images without names."""
    run.check_postprocessing()
    names = [WEIGHTS, *(name for name in RUN_FILES if (run.folder / name).is_file())]
    if run.experiment.top_k > 1:
        names += [
            f"{CHECKPOINTS}/{path.name}" for path in sorted((run.folder / CHECKPOINTS).glob("epoch_*.weights.h5"))
        ]
    for name in names:
        _copy(run.folder / name, folder / name)
    recorded = run.record.get(HASHES)  # runs of earlier versions have none
    if isinstance(recorded, dict):
        changed = [name for name, digest in recorded.items() if name in names and sha256_file(folder / name) != digest]
        if changed:
            raise PneumoError(
                f"{run.folder}: {listed(changed)} was changed after the training: its hash is not the one in "
                f"{RUN_RECORD}. Copy the run again, or train again."
            )
    record = {key: value for key, value in run.record.items() if key not in ("command", "sha256")}
    if LEARNED_SHA256 in record:
        learned = read_learned(run.folder / LEARNED, str(record[LEARNED_SHA256]))
        record[LEARNED_SHA256] = write_table(folder / LEARNED, without_plain_names(without_names(learned)))
    write_json(folder / RUN_RECORD, with_content_hash(record))
    return run.experiment.name, run.synthetic


def _copy_detector(source: Path, folder: Path) -> tuple[str, bool]:
    """Copy the files that a detector's record lists, and its board; its tables of images without plain names.

    Where a table changes, so do the record's hashes, and with them the detector's version; its answers do not.
    """
    record = read_detector_record(source)
    check_files(source, record)
    files = dict(record["files"])
    for name in files:
        _copy(source / name, folder / name)
        if Path(name).name != LEARNED:
            continue
        member = Path(name).parent
        learned = read_learned(folder / name, files[name])
        if (kept := without_plain_names(learned)).equals(learned):
            continue
        files[name] = write_table(folder / name, kept)
        of_member = read_json(folder / member / RUN_RECORD) | {LEARNED_SHA256: files[name]}
        files[f"{member.as_posix()}/{RUN_RECORD}"] = write_json(folder / member / RUN_RECORD, of_member)
    for name in files:  # a member's record may come before its table
        files[name] = sha256_file(folder / name)
    write_json(folder / DETECTOR_RECORD, with_content_hash(record | {"files": files}))
    if (source / "board/board.csv").is_file():
        _copy(source / "board/board.csv", folder / "board/board.csv")
    return str(record["name"]), record.get("synthetic") is True


def _copy_predictions(source: Path, folder: Path) -> None:
    if not (source / SUBMISSION).is_dir():
        raise PneumoError(f"{source} has no predictions in {SUBMISSION}. Leave out --with-predictions.")
    for path in sorted((source / SUBMISSION).iterdir()):
        if path.suffix in (".csv", ".json"):
            _copy(path, folder / SUBMISSION / path.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise PneumoError(f"{source} is missing. Copy the whole folder again.") from None


def without_plain_names(learned: pd.DataFrame) -> pd.DataFrame:
    """A table of learned images whose patients can be undone by nobody: those that are no keyed pseudonym are blank.

    A hash without a key of a hospital's number is undone by trying all numbers. Files, pixels, image ids and near
    duplicates are still compared by the other columns.
    """
    keyed = [name if key_of(name) not in ("", PLAIN) else "" for name in learned["patient_id"].astype(str)]
    return learned.assign(patient_id=keyed)


def _refuse_identifying(folder: Path) -> None:
    """Refuse a package in which a person must look for what identifies a patient.

    Raises:
        PneumoError: naming what was found.
    """
    report = examine_privacy(folder, workers=1)
    found = [f"{one.where} {one.what} ({counted(one.files, 'file')})" for one in report.findings if one.look]
    if found:
        raise PneumoError(
            f"The package may tell who a patient is: {listed(found, 4)}. Nothing was written. Look with keras-pneumo "
            "doctor --privacy, take it out of the folder, and run the same command again."
        )
