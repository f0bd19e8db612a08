"""Makes the package of a run or a detector: what loading it needs, its model card, and nothing of a patient.

In: a finished run's folder or a detector's. Out: a :class:`.Package`. It holds no checkpoint of the training, no
radiograph, no page with radiographs, no command line, and no name of a patient that could be undone by trying.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from keras_pneumo.sharing.package import FORMAT, LIST, SUBMISSION, Kind, Package, read_package, require_new_folder
from keras_pneumo.storage.files import (
    read_json,
    replacing_contents,
    sha256_file,
    with_content_hash,
    write_json,
    write_table,
)
from keras_pneumo.storage.tables import counted, listed
from keras_pneumo.training.run_folder import RECORD as RUN_RECORD

RUN_FILES = (TORCH_WEIGHTS, POSTPROCESS, "log.csv", "board.csv", "curves.png", f"{EXPLAIN}/{EXPLAIN_RECORD}")
"""Beside the record and the weights: what a :class:`~keras_pneumo.api.Run` reads, as far as the run has it."""


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


def _list_of(folder: Path, kind: Kind, name: str, synthetic: bool) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in paths
    }
    return {"format": FORMAT, "kind": kind, "name": name, "synthetic": synthetic, "files": files}


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
