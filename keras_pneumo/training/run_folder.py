"""The run folder of a training: which one it is, whether to resume what it holds, and its record.

In: what the user named, the experiment and the prepared folder. Out: a folder, and whether to resume. A run is finished
when its report is written; an unfinished one of the same experiment and data is gone on with, whatever command made it.
The record, ``experiment.json``, also says which run's weights the training began from (its provenance), by which
submissions declare what the weights have seen. No TensorFlow here: the command line looks before it is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from keras_pneumo.config import Experiment
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.provenance import (
    LEARNED,
    LEARNED_SHA256,
    check_held_out,
    describe_learned,
    learned_images,
    read_learned,
    used_images,
    with_earlier,
)
from keras_pneumo.storage.files import (
    LOCK_NAME,
    TEMPORARY_SUFFIX,
    discard_unannounced,
    folder_lock,
    is_leftover,
    read_json,
    sha256_bytes,
    sha256_file,
    with_content_hash,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    import pandas as pd

    from keras_pneumo.inference.run import RunFolder
    from keras_pneumo.training.checkpoints import Checkpoint

RUNS = Path("runs")
RECORD = "experiment.json"
REPORT = "report.html"


@dataclass(frozen=True)
class RunLocation:
    """A run folder, which exists, and whether the training in it is to be resumed."""

    folder: Path
    resume: bool
    finished: bool = False
    """Whether nothing is left to do there."""


RunProgress = Literal["empty", "other", "unfinished", "finished"]


def progress_of(folder: Path, experiment: Experiment, prepared: PreparedFolder) -> RunProgress:
    """How far this experiment on these images has come in ``folder``; ``other`` where that holds something else."""
    if not folder.exists() or (folder.is_dir() and not _holds(folder)):
        return "empty"
    record = read_record(folder)
    if isinstance(record.get("experiment"), dict):  # earlier versions had no such setting, and did as its default says
        record = record | {"experiment": {"deterministic": True} | record["experiment"]}
    wanted = {
        "experiment": json.loads(experiment.model_dump_json()),
        "split_sha256": prepared.manifest["split_sha256"],
        "prepared_sha256": prepared.manifest["prepared_sha256"],
    }
    if any(record.get(name) != value for name, value in wanted.items()):
        return "other"
    return "finished" if (folder / REPORT).is_file() and "best_epoch" in record else "unfinished"


def is_trained(folder: Path) -> bool:
    """Whether the training in a run folder has ended, and only its predictions and report may be missing."""
    return "best_epoch" in read_record(folder)


def find_run_folder(wanted: Path | None, experiment: Experiment, prepared: PreparedFolder, resume: bool) -> RunLocation:
    """The folder of one run: ``wanted``, or the last of runs/NAME, runs/NAME-2, ... if unfinished, else the next.

    Args:
        wanted: what ``--out`` names.
        experiment: what is to be trained.
        prepared: on what.
        resume: whether there must be something to go on with.

    Raises:
        PneumoError: ``wanted`` holds something else or is finished, or there is nothing to resume.
    """
    if wanted is not None:
        return _named(wanted, experiment, prepared, resume)
    number = 1
    while _numbered(experiment.name, number + 1).exists():
        number += 1
    last = _numbered(experiment.name, number)
    unfinished = last.exists() and progress_of(last, experiment, prepared) == "unfinished"
    if unfinished and (resume or is_free(last)):
        return RunLocation(last, True)
    if resume:
        raise PneumoError(
            f"There is no unfinished training of {experiment.name} on these images to go on with in {last}. Name its "
            "folder with --out, or leave out --resume."
        )
    return RunLocation(new_folder(None, experiment.name), False)


def _named(wanted: Path, experiment: Experiment, prepared: PreparedFolder, resume: bool) -> RunLocation:
    progress = progress_of(wanted, experiment, prepared)
    if progress == "unfinished":
        return RunLocation(wanted, True)
    if resume:
        reasons = {
            "empty": "holds nothing",
            "other": "holds something else, or a training of another experiment, data set or split",
            "finished": "holds a finished training",
        }
        raise PneumoError(f"{wanted} {reasons[progress]}, so there is nothing to go on with. Leave out --resume.")
    return RunLocation(new_folder(wanted, experiment.name), False)


def new_folder(wanted: Path | None, name: str) -> Path:
    """A new, empty folder: ``wanted``, or the first free of runs/NAME, runs/NAME-2, ...

    Raises:
        PneumoError: ``wanted`` holds something already.
    """
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or _holds(wanted)):
            what = "is not empty"
            if wanted.is_dir() and read_record(wanted):
                finished = (wanted / REPORT).is_file()
                what += (
                    ": it holds a finished training"
                    if finished
                    else ": it holds a training of another experiment, data set or split"
                )
            raise PneumoError(f"{wanted} {what}. Choose another --out, or remove it; nothing was changed.")
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    number = 1
    while True:
        folder = _numbered(name, number)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


@contextlib.contextmanager
def new_folder_lock(wanted: Path | None, name: str) -> Iterator[Path]:
    """Like :func:`new_folder`, with the folder's lock; one in which a process was killed before its result was complete
    counts as empty.

    Raises:
        PneumoError: ``wanted`` holds something already, or another process works in it.
    """
    number = 1
    with contextlib.ExitStack() as held:
        while True:
            folder = wanted or _numbered(name, number)
            number += 1
            if wanted is None and folder.exists() and (not folder.is_dir() or _holds(folder)):
                continue
            try:
                held.enter_context(folder_lock(folder))
                break
            except PneumoError:
                if wanted is not None or not (folder / LOCK_NAME).exists():
                    raise
        discard_unannounced(folder)
        yield new_folder(folder, name)


def find_folds_folder(
    wanted: Path | None, experiment: Experiment, prepared: PreparedFolder, folds: list[int], resume: bool
) -> Path:
    """The folder of a training of all folds: an unfinished one, or a new one.

    Raises:
        PneumoError: as :func:`find_run_folder`.
    """
    name = f"{experiment.name}-folds"
    number = 1
    while wanted is None and _numbered(name, number + 1).exists():
        number += 1
    last = wanted or _numbered(name, number)
    progress = {progress_of(last / f"fold_{fold}", experiment.replace(fold=fold), prepared) for fold in folds}
    if "other" not in progress and progress - {"empty"} and progress != {"finished"}:
        return last
    if resume:
        raise PneumoError(
            f"{last} holds no unfinished training of all folds of {experiment.name} on these images. "
            "Leave out --resume."
        )
    begun = {f"fold_{fold}" for fold in folds}  # killed before the first one's first file
    if wanted is not None and wanted.is_dir() and progress == {"empty"} and not _holds(wanted, begun):
        return wanted
    return new_folder(wanted, name)


def is_free(folder: Path) -> bool:
    """Whether no process is at work in the folder."""
    try:
        with folder_lock(folder):
            return True
    except PneumoError:
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """A run folder's ``experiment.json``; empty where there is none that can be read."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``experiment.json``, with a hash of what is in it."""
    write_json(folder / RECORD, with_content_hash(record))


class Start(NamedTuple):
    """A run whose weights a training starts from, compared with what is held out now."""

    run: RunFolder
    learned: pd.DataFrame
    """All images that its weights have learned from; see :func:`~keras_pneumo.inference.provenance.learned_images`."""
    record: dict[str, Any]
    """The record's ``start_from``."""


def check_start(experiment: Experiment, prepared: PreparedFolder, run: RunFolder) -> Start:
    """Check that a training may start from all weights of a run, on the same split or another.

    Raises:
        PneumoError: it is of another network, or of another fold of the same split; or what it has learned from is held
            out now, or is not known.
    """
    other = run.experiment
    same_split = run.record.get("split_sha256") == prepared.manifest["split_sha256"]
    differing = [
        f"{name} {getattr(other, name)} instead of {getattr(experiment, name)}"
        for name in ("task", "encoder", "attention", "image_head", *(["fold"] if same_split else []))
        if getattr(other, name) != getattr(experiment, name)
    ]
    if differing:
        raise PneumoError(
            f"{run.folder} cannot be started from: it has {', '.join(differing)}. The network and, on the same split, "
            "the validation fold must be the same; only the images and the training may differ."
        )
    return compare_start(experiment, prepared, run, run.weights)


def compare_start(experiment: Experiment, prepared: PreparedFolder, run: RunFolder, weights: Path) -> Start:
    """Compare what a run's weights, in one of its files, have learned from with what is held out now.

    Raises:
        PneumoError: some of it is held out now, or it is not known.
    """
    learned = learned_images(run, [prepared])
    comparison = check_held_out(run, learned, prepared, experiment.fold)
    before = run.pretraining
    if run.record.get("split_sha256") != prepared.manifest["split_sha256"]:
        own = describe_learned(run.record, learned)
        before = own if before == "none" else f"{before}, {own}"
    record = {
        "name": run.experiment.name,
        "image_size": run.experiment.image_size,
        "weights_sha256": sha256_file(weights),
        "pretraining": before,
        "split_sha256": run.record.get("split_sha256"),
        "compared": comparison._asdict(),
        **({"caution": comparison.caution} if comparison.caution else {}),
        **({"unlisted": run.unlisted_images} if run.unlisted_images else {}),
    }
    if run.record.get("start_from"):
        record["start_from"] = run.record["start_from"]
    return Start(run, learned, record)


def provenance_of(given: dict[str, Any], folder: Path, checkpoint: Checkpoint | None, resume: bool) -> dict[str, Any]:
    """What the record says of a training's first weights: ``start_from`` and ``weights_file``, where there are any.

    Args:
        given: both, as the user named them for this start of the program.
        folder: the run folder.
        checkpoint: the one that is resumed from.
        resume: whether the folder may hold this training's record.

    Raises:
        PneumoError: the training in the folder began from other weights, or has to begin anew and what it is to start
            from is not named.
    """
    record = read_record(folder) if resume else {}
    if not record:
        return given
    before = {name: record[name] for name in ("start_from", "weights_file") if record.get(name)}
    if not given:
        if before and checkpoint is None:
            option = "--weights" if "weights_file" in before else "--start-from"
            raise PneumoError(
                f"The training in {folder} is to start from the weights of {_name_of(before)} and has no checkpoint "
                f"yet. Name {'that file' if option == '--weights' else 'that run'} with {option} again."
            )
        return before
    # Earlier versions forgot the provenance when they resumed; the log still has the row of such a start. They recorded
    # no file of ImageNet's weights.
    forgotten = not before and checkpoint is not None and any(row["epoch"] == 0 for row in checkpoint.state["rows"])
    imagenet = not before and "start_from" not in given and given["weights_file"]["loaded"] == ["encoder"]
    if not forgotten and not imagenet and _first_weights(before) != _first_weights(given):
        began = f"other weights, those of {_name_of(before)}" if before else "its own first weights"
        option = "--weights" if "weights_file" in given else "--start-from"
        raise PneumoError(
            f"The training in {folder} began from {began}, not from {_name_of(given)}'s as {option} says. Go on "
            "with it as it began, or train into another folder with --out."
        )
    return before or given


def _first_weights(provenance: dict[str, Any]) -> object:
    """The hash of the file of weights that a training began from."""
    if "weights_file" in provenance:
        return provenance["weights_file"].get("sha256")
    return provenance.get("start_from", {}).get("weights_sha256")


def _name_of(provenance: dict[str, Any]) -> str:
    names = [provenance[key].get("name") for key in ("weights_file", "start_from") if key in provenance]
    return str(next((name for name in names if name), "another run"))


def learned_table(start: Start | None, prepared: PreparedFolder, fold: int, folder: Path, resume: bool) -> pd.DataFrame:
    """The images that a training is to learn from, through all its starts, for its run folder.

    Raises:
        PneumoError: the folder's own table, which a training that goes on has of an earlier start, is not to be read.
    """
    own = used_images(prepared, fold)
    if start is not None:
        return with_earlier(own, start.learned)
    record = read_record(folder) if resume else {}
    if record.get("start_from") and LEARNED_SHA256 in record:
        return read_learned(folder / LEARNED, str(record[LEARNED_SHA256]))
    return own  # earlier versions started from runs of the same split only


def write_start(folder: Path, record: dict[str, Any], learned: pd.DataFrame) -> dict[str, Any]:
    """Write the first record and the table of the images to learn from; returns the record with the table's hash.

    The record comes first: by it a folder of a killed start is known.
    """
    content = learned.to_csv(index=False, lineterminator="\n").encode()
    record = record | {LEARNED_SHA256: sha256_bytes(content)}
    write_record(folder, record)
    write_bytes(folder / LEARNED, content)
    return record


def _numbered(name: str, number: int) -> Path:
    return RUNS / (name if number == 1 else f"{name}-{number}")


def _holds(folder: Path, but: Collection[str] = ()) -> bool:
    """Whether the folder holds anything but these names, and what a killed start left."""
    return any(
        path.name not in but and path.suffix != TEMPORARY_SUFFIX and not is_leftover(path.name)
        for path in folder.iterdir()
    )
