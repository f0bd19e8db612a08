"""Checkpoints: everything a training needs to go on as if it had never stopped, on the disk, whole or not at all.

What is captured: the network with its optimizer, the log, the averages, the random generators, and the position. Which
image comes next and how it is augmented needs no state: both are functions of (seed, epoch, image), so the position is
two numbers. Post-processing parameters or the threshold are fitted on validation whenever the weights are the best so
far, and lie beside them in the run folder, so the checkpoint keeps them with the weights.

On the disk: a folder ``checkpoints/at_EEEE_SSSSSS`` (epochs and steps done) with ``arrays.safetensors``,
``state.json``, ``kept/`` (files of the run folder that belong to this moment) and, written last, ``COMPLETE.json`` with
the SHA-256 of each file. The folder is written under a temporary name, flushed and renamed, so a kill at any moment
leaves the one before it; a truncated or altered one is passed over when it is read. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors
import safetensors.numpy

from keras_pneumo.config import Experiment
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import flush_folder, sha256_bytes, sha256_file, write_bytes
from keras_pneumo.training.averaging import WeightAverage
from keras_pneumo.training.log import EpochRow, Log
from keras_pneumo.training.schedules import Plateau

FORMAT = 1
FOLDER = "checkpoints"
ARRAYS, STATE, KEPT, MARKER = "arrays.safetensors", "state.json", "kept", "COMPLETE.json"
WRITING = ".writing_"
"""Beginning of the name of a checkpoint that is being written."""
KEPT_CHECKPOINTS = 2
"""How many complete checkpoints stay; the older one is there for the case that the disk damages the newer."""

Arrays = dict[str, np.ndarray]


@dataclass
class TrainingState:
    """Where a training stands between two steps."""

    phase: int = 0
    epoch: int = 0
    """Epochs done, over all phases."""
    step: int = 0
    """Steps done of the epoch after them."""
    waited: int = 0
    """Epochs since the score last rose, in this phase."""
    plateau: Plateau | None = None
    loss_sum: float = 0.0
    """Of this epoch's steps so far, each by its images; so are the next five."""
    images: int = 0
    norm_sum: float = 0.0
    """Of the steps whose gradient was finite: in float16 the loss scale leaves out those that overflow."""
    norm_images: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    elapsed: float = 0.0
    """Wall time of the training in all, in this process and those before."""

    def begin_epoch(self, epoch: int) -> None:
        """Start to count anew, with ``epoch`` epochs done."""
        self.epoch, self.step = epoch, 0
        self.loss_sum = self.norm_sum = self.seconds = self.data_seconds = 0.0
        self.images = self.norm_images = 0

    def begin_phase(self, phase: int, epoch: int) -> None:
        """Start a phase, whose optimizer is a new one."""
        self.begin_epoch(epoch)
        self.phase, self.waited, self.plateau = phase, 0, None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, verified."""

    folder: Path
    arrays: Arrays
    state: dict[str, Any]

    @property
    def kept(self) -> dict[str, Path]:
        """The run folder's files of that moment, by their path in the run folder."""
        return _kept(self.folder)


def identity(experiment: Experiment, prepared: PreparedFolder, model: keras.Model) -> dict[str, str]:
    """Hashes of what must be the same for a checkpoint to fit."""
    shapes = ";".join(f"{tuple(variable.shape)}{variable.dtype}" for variable in model.variables)
    return {
        "network": sha256_bytes(f"{model.name};{shapes}".encode()),
        # Checkpoints from before there was the setting deterministic have the hash without it.
        "experiment": sha256_bytes(experiment.model_dump_json(exclude={"deterministic"}).encode()),
        "split": str(prepared.manifest["split_sha256"]),
        "prepared images": str(prepared.manifest["prepared_sha256"]),
    }


def capture(
    state: TrainingState,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    log: Log,
    average: WeightAverage | None,
    identities: dict[str, str],
) -> tuple[Arrays, dict[str, Any]]:
    """The whole state of a training as arrays and plain JSON.

    ``optimizer`` is None where the next step is the first one of a phase.
    """
    arrays = {f"model.{number:04d}": _value(variable) for number, variable in enumerate(model.variables)}
    if optimizer is not None:
        variables = enumerate(optimizer.variables)
        arrays |= {f"optimizer.{number:04d}": _value(variable) for number, variable in variables}
    if average is not None:
        arrays |= {f"average.{number:04d}": total for number, total in enumerate(average.sums)}
    values = {
        "format": FORMAT,
        "identity": identities,
        "position": asdict(state),
        "average_count": average.count if average else 0,
        "rows": [asdict(row) for row in log.rows],
        "random": _random_state(),
    }
    return arrays, values


class CheckpointWriter:
    """Writes checkpoints beside the next steps, one at a time.

    The files of the run folder are linked before :meth:`save` returns, and the arrays are the caller's copies, so what
    happens meanwhile changes nothing in the checkpoint. As a context it ends when the last checkpoint is on the disk.
    """

    def __init__(self) -> None:
        """Nothing is written yet."""
        self.thread: threading.Thread | None = None
        self.fault: BaseException | None = None
        self.waited = 0.0
        """Seconds that the training has waited for a checkpoint to be written."""

    def __enter__(self) -> CheckpointWriter:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last checkpoint; its fault is raised where nothing else went wrong."""
        if kind is None:
            self.wait()
        elif self.thread is not None:
            self.thread.join()

    def save(
        self, run: Path, epoch: int, step: int, arrays: Arrays, state: dict[str, Any], files: Iterable[str]
    ) -> None:
        """Begin to write a checkpoint, when the one before is on the disk; all but the last two are then removed.

        Args:
            run: the run folder.
            epoch: epochs done.
            step: steps done of the epoch after them.
            arrays: weights, optimizer and the like, by name.
            state: plain JSON.
            files: paths in the run folder of the files that belong to this moment; they are linked, not copied, so they
                must be replaced by renaming, never written to in place.

        Raises:
            PneumoError: the one before could not be written, or this one not begun: the disk is full or closed to us.
                The checkpoints before then stand, and nothing of the failed one is left.
        """
        self.wait()
        temporary = _begin(run, epoch, step, files)
        self.thread = threading.Thread(target=self._write, args=(temporary, arrays, state), name="checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            PneumoError: it could not be written.
        """
        started = time.monotonic()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.waited += time.monotonic() - started
        if fault := self.fault:
            self.fault = None
            raise fault

    def _write(self, temporary: Path, arrays: Arrays, state: dict[str, Any]) -> None:
        try:
            _complete(temporary, arrays, state)
        except (PneumoError, BaseException) as fault:  # raised again by the training's thread
            self.fault = fault


def _begin(run: Path, epoch: int, step: int, files: Iterable[str]) -> Path:
    """Make a checkpoint's folder under its temporary name, and link the files of the run folder into it."""
    temporary = run / FOLDER / f"{WRITING}at_{epoch:04d}_{step:06d}"
    with _removed_after_a_fault(temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / KEPT).mkdir(parents=True)
        for name in files:
            (temporary / KEPT / name).parent.mkdir(exist_ok=True)
            _link(run / name, temporary / KEPT / name)
    return temporary


def _complete(temporary: Path, arrays: Arrays, state: dict[str, Any]) -> Path:
    """Write what a checkpoint's folder lacks, give it its name, and remove all but the last two."""
    folder = temporary.parent
    target = folder / temporary.name.removeprefix(WRITING)
    with _removed_after_a_fault(temporary):
        hashes = {
            ARRAYS: _write(temporary / ARRAYS, safetensors.numpy.save(arrays)),
            STATE: _write(temporary / STATE, (json.dumps(state, indent=1) + "\n").encode()),
        }
        hashes |= {f"{KEPT}/{name}": sha256_file(path) for name, path in _kept(temporary).items()}
        _write(temporary / MARKER, (json.dumps(hashes, indent=1, sort_keys=True) + "\n").encode())
        flush_folder(temporary)
        if target.exists():  # the same moment again, after going back
            shutil.rmtree(target)
        temporary.rename(target)
        flush_folder(folder)
    keep(folder.parent, KEPT_CHECKPOINTS)
    return target


@contextlib.contextmanager
def _removed_after_a_fault(temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PneumoError(_sentence(temporary.parent, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def keep(run: Path, count: int) -> None:
    """Remove all but the last ``count`` complete checkpoints, and what interrupted writes and removals left."""
    complete = [folder for folder in folders(run) if (folder / MARKER).is_file()]
    for left in [*(run / FOLDER).glob(f"{WRITING}*"), *(each for each in folders(run) if each not in complete)]:
        shutil.rmtree(left, ignore_errors=True)
    for folder in complete[: len(complete) - count]:
        (folder / MARKER).unlink(missing_ok=True)  # first, so that a half-removed one is never taken for whole
        shutil.rmtree(folder, ignore_errors=True)


def folders(run: Path) -> list[Path]:
    """The checkpoints' folders, oldest first."""
    return sorted((run / FOLDER).glob("at_*_*"))


def latest(run: Path, notify: Callable[[str], None] = lambda message: None) -> Checkpoint | None:
    """The last complete checkpoint that is as it was written; damaged ones are passed over, each with a sentence."""
    for folder in reversed(folders(run)):
        try:
            return read(folder)
        except PneumoError as fault:
            notify(str(fault))
    return None


def read(folder: Path) -> Checkpoint:
    """One checkpoint, every file compared with the hash that was written last.

    Raises:
        PneumoError: it is not complete, or a file is damaged; says which.
    """
    try:
        marker = (folder / MARKER).read_bytes()
        contents = {name: (folder / name).read_bytes() for name in (ARRAYS, STATE)}
    except OSError as error:
        raise PneumoError(f"{folder} is passed over: it is not complete ({_missing(error)}).") from error
    try:
        hashes = {str(name): str(value) for name, value in json.loads(marker).items()}
    except (ValueError, AttributeError) as error:
        raise PneumoError(f"{folder} is passed over: {MARKER} is damaged, it cannot be read as JSON.") from error
    written = {name: sha256_bytes(content) for name, content in contents.items()}
    try:
        written |= {name: sha256_file(folder / name) for name in hashes if name not in contents}
    except OSError as error:
        raise PneumoError(f"{folder} is passed over: it is not complete ({_missing(error)}).") from error
    if damaged := [name for name in written | hashes if written.get(name) != hashes.get(name)]:
        raise PneumoError(
            f"{folder} is passed over: {', '.join(damaged)} is damaged; its content does not fit its hash in {MARKER}."
        )
    try:
        return Checkpoint(folder, safetensors.numpy.load(contents[ARRAYS]), json.loads(contents[STATE]))
    except (ValueError, safetensors.SafetensorError) as error:
        raise PneumoError(f"{folder} is passed over: it cannot be read ({type(error).__name__}: {error}).") from error


def check_identity(checkpoint: Checkpoint, wanted: dict[str, str]) -> None:
    """Refuse another training's checkpoint.

    Raises:
        PneumoError: it is of another format, network, experiment, split or prepared folder; says of which.
    """
    if checkpoint.state.get("format") != FORMAT:
        raise PneumoError(f"{checkpoint.folder} is not of format {FORMAT}, the one this version reads. Train anew.")
    saved = checkpoint.state["identity"]
    if other := [name for name, value in wanted.items() if saved.get(name) != value]:
        raise PneumoError(
            f"{checkpoint.folder} is of another {' and another '.join(other)}, so this training cannot go on from it. "
            "Give the experiment and data it was made with, or train into another folder with --out."
        )


def position_of(checkpoint: Checkpoint) -> TrainingState:
    """Where the checkpoint's training stood."""
    values = dict(checkpoint.state["position"])
    plateau = values.pop("plateau")
    if "norm_images" not in values:  # an earlier version counted every step
        finite = math.isfinite(values["norm_sum"])
        values |= {"norm_images": values["images"]} if finite else {"norm_images": 0, "norm_sum": 0.0}
    names = {field.name for field in fields(TrainingState)}
    values = {name: value for name, value in values.items() if name in names}
    return TrainingState(**values, plateau=Plateau(**plateau) if plateau else None)


def restore_model(checkpoint: Checkpoint, model: keras.Model, log: Log, average: WeightAverage | None) -> None:
    """The weights, statistics and seeds of the model, the log's rows, the running average, the random generators."""
    _assign(checkpoint, "model", model.variables)
    log.rows = [EpochRow(**row) for row in checkpoint.state["rows"]]
    if average is not None:
        average.count = int(checkpoint.state["average_count"])
        names = sorted(name for name in checkpoint.arrays if name.startswith("average."))
        average.sums = [checkpoint.arrays[name].copy() for name in names]
    _restore_random(checkpoint.state["random"])


def restore_optimizer(checkpoint: Checkpoint, optimizer: keras.optimizers.Optimizer) -> None:
    """Moments, averages, iterations and rate; a checkpoint of a phase's start has none: the optimizer is a new one."""
    if any(name.startswith("optimizer.") for name in checkpoint.arrays):
        _assign(checkpoint, "optimizer", optimizer.variables)


def restore_files(run: Path, checkpoint: Checkpoint, removable: str) -> None:
    """Make the run folder's files those of the checkpoint's moment.

    Args:
        run: the run folder.
        checkpoint: from :func:`latest`.
        removable: pattern of files in the run folder that came later and are to go.
    """
    for path in run.glob(removable):
        if path.relative_to(run).as_posix() not in checkpoint.kept:
            path.unlink()
    for name, path in checkpoint.kept.items():
        if not (run / name).is_file() or not (run / name).samefile(path):
            write_bytes(run / name, path.read_bytes())


def _assign(checkpoint: Checkpoint, kind: str, variables: list[Any]) -> None:
    arrays = [checkpoint.arrays[name] for name in sorted(checkpoint.arrays) if name.startswith(f"{kind}.")]
    if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        raise PneumoError(
            f"{checkpoint.folder} does not fit: its {kind} has other variables. Train into another folder."
        )
    for variable, value in zip(variables, arrays, strict=True):
        variable.assign(value)


def _value(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable), order="C")


def _random_state() -> dict[str, Any]:
    """Of Python and numpy; the dropout layers' are among the model's variables, and tf.data draws from none."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def _restore_random(saved: dict[str, Any]) -> None:
    version, inner, gauss = saved["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = saved["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))


def _kept(folder: Path) -> dict[str, Path]:
    root = folder / KEPT
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def _write(path: Path, content: bytes) -> str:
    """Write and flush; the hash is of the content given, so that a fault of the disk is seen when it is read."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return sha256_bytes(content)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        _write(target, source.read_bytes())  # a disk without hard links


def _sentence(folder: Path, error: OSError) -> str:
    return (
        f"The checkpoint could not be written in {folder}: {error.strerror or error}. The one before it stands. Free "
        "some space there and run the same command again; it goes on from there."
    )


def _missing(error: OSError) -> str:
    return f"{Path(error.filename).name}: {error.strerror}" if error.filename else str(error)
