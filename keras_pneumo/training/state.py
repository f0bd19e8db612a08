"""Where a training stands, and everything of it that has to be put back for it to go on as if it had never stopped.

In and out: the network with its optimizer, the log, the averages, the random generators on one side; arrays by name and
plain JSON on the other. Which image comes next and how it is augmented needs no state: both are functions of (seed,
epoch, image), so the position is two numbers. Post-processing (a rule for masks, a threshold) is fitted on validation
whenever the weights are the best so far, and lies beside them in the run folder, so the checkpoint keeps it with them.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, fields
from typing import Any

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.training.averaging import WeightAverage
from keras_pneumo.training.checkpoints import Arrays, Checkpoint
from keras_pneumo.training.log import EpochRow, Log
from keras_pneumo.training.schedules import Plateau

FORMAT = 1


@dataclass
class State:
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


def identity(experiment: Experiment, prepared: PreparedFolder, model: keras.Model) -> dict[str, str]:
    """Hashes of what must be the same for a checkpoint to fit."""
    shapes = ";".join(f"{tuple(variable.shape)}{variable.dtype}" for variable in model.variables)
    return {
        "network": sha256_bytes(f"{model.name};{shapes}".encode()),
        "experiment": sha256_bytes(experiment.model_dump_json().encode()),
        "split": str(prepared.manifest["split_sha256"]),
        "prepared images": str(prepared.manifest["prepared_sha256"]),
    }


def check_identity(checkpoint: Checkpoint, wanted: dict[str, str]) -> None:
    """Refuse another training's checkpoint.

    Raises:
        PneumoError: it is of another format, network, experiment, split or prepared folder; says of which.
    """
    if checkpoint.state.get("format") != FORMAT:
        raise PneumoError(f"{checkpoint.folder} is not of format {FORMAT}, the one this version reads. Train anew.")
    found = checkpoint.state["identity"]
    if other := [name for name, value in wanted.items() if found.get(name) != value]:
        raise PneumoError(
            f"{checkpoint.folder} is of another {' and another '.join(other)}, so this training cannot go on from it. "
            "Give the experiment and data it was made with, or train into another folder with --out."
        )


def capture(
    state: State,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    log: Log,
    average: WeightAverage | None,
    known: dict[str, str],
) -> tuple[Arrays, dict[str, Any]]:
    """Everything, as arrays and JSON; ``optimizer`` is None where the next step is the first one of a phase."""
    arrays = {f"model.{number:04d}": _value(one) for number, one in enumerate(model.variables)}
    if optimizer is not None:
        arrays |= {f"optimizer.{number:04d}": _value(one) for number, one in enumerate(optimizer.variables)}
    if average is not None:
        arrays |= {f"average.{number:04d}": one for number, one in enumerate(average.sums)}
    written = {
        "format": FORMAT,
        "identity": known,
        "position": asdict(state),
        "average_count": average.count if average else 0,
        "rows": [asdict(row) for row in log.rows],
        "random": _random_state(),
    }
    return arrays, written


def position_of(checkpoint: Checkpoint) -> State:
    """Where the checkpoint's training stood."""
    values = dict(checkpoint.state["position"])
    plateau = values.pop("plateau")
    if "norm_images" not in values:  # an earlier version counted every step
        finite = math.isfinite(values["norm_sum"])
        values |= {"norm_images": values["images"]} if finite else {"norm_images": 0, "norm_sum": 0.0}
    known = {field.name for field in fields(State)}
    return State(**{k: v for k, v in values.items() if k in known}, plateau=Plateau(**plateau) if plateau else None)


def put_back_model(checkpoint: Checkpoint, model: keras.Model, log: Log, average: WeightAverage | None) -> None:
    """The weights, statistics and seeds of the model, the log's rows, the running average, the random generators."""
    _assign(checkpoint, "model", model.variables)
    log.rows = [EpochRow(**row) for row in checkpoint.state["rows"]]
    if average is not None:
        average.count = int(checkpoint.state["average_count"])
        names = sorted(name for name in checkpoint.arrays if name.startswith("average."))
        average.sums = [checkpoint.arrays[name].copy() for name in names]
    _put_back_random(checkpoint.state["random"])


def put_back_optimizer(checkpoint: Checkpoint, optimizer: keras.optimizers.Optimizer) -> None:
    """Moments, averages, iterations and rate; a checkpoint of a phase's start has none: the optimizer is a new one."""
    if any(name.startswith("optimizer.") for name in checkpoint.arrays):
        _assign(checkpoint, "optimizer", optimizer.variables)


def _assign(checkpoint: Checkpoint, kind: str, variables: list[Any]) -> None:
    found = [checkpoint.arrays[name] for name in sorted(checkpoint.arrays) if name.startswith(f"{kind}.")]
    if [one.shape for one in found] != [tuple(one.shape) for one in variables]:
        raise PneumoError(
            f"{checkpoint.folder} does not fit: its {kind} has other variables. Train into another folder."
        )
    for variable, value in zip(variables, found, strict=True):
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


def _put_back_random(found: dict[str, Any]) -> None:
    version, inner, gauss = found["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
