"""One of the ladder's Keras columns: every rung that this environment can climb, into a folder of its own.

``python -m keras_pneumo.parity.backend FOLDER NAME`` in PyTorch's environment, with ``KERAS_BACKEND=torch``, is the
third column; the first is climbed in the process of ``keras-pneumo parity``. A rung whose code needs a package that is
not there is not climbed, and the column says which package.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.parity.processes import (
    KERAS_ON_TORCH,
    read_arrays,
    read_task,
    versions_of,
    write_absent,
    write_arrays,
)
from keras_pneumo.storage.files import write_json

VERSIONS = "versions.json"
PACKAGES = ["keras", "tensorflow", "torch", "numpy", "opencv-python-headless", "pydicom"]


@dataclass(frozen=True)
class Column:
    """Where a column reads and writes."""

    folder: Path
    """The ladder's."""
    name: str
    task: dict[str, Any]
    inputs: dict[str, np.ndarray]

    @property
    def own(self) -> Path:
        """The column's."""
        return self.folder / self.name

    def write(self, rung: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep a rung's arrays."""
        write_arrays(self.own / f"{rung}.npz", arrays)

    def state(self, network: str, which: str) -> dict[str, np.ndarray]:
        """Weights or gradients that all columns share."""
        from keras_pneumo.models.weights import load_safetensors

        return load_safetensors(self.folder / f"{network}.{which}.safetensors")


def climb(folder: Path, name: str, progress: Callable[[str], None] | None = None) -> None:
    """Climb every rung; see the module's docstring."""
    column = Column(folder, name, read_task(folder), read_arrays(folder / "inputs.npz"))
    column.own.mkdir(exist_ok=True)
    absent = {}
    for rung, work in WORK.items():
        if name == KERAS_ON_TORCH and rung in WITHOUT_KERAS:
            absent[rung] = WITHOUT_KERAS[rung]
            continue
        if progress:
            progress(rung)
        try:
            work(column)
        except ImportError as error:
            absent[rung] = f"its code needs {error.name}, which PyTorch's environment has not"
    write_absent(column.own, absent)
    write_json(column.own / VERSIONS, versions_of(PACKAGES))


def copy_kernels_in_order() -> None:
    """The third column's float64 gradients need it; networks run and train on Keras's torch backend without.

    Keras hands PyTorch convolutions in its own order of axes, as views. For a 3x3 convolution to one channel, as the
    U-Net's mask head is, torch 2.14 has then no float64 gradient on a CPU ("grad_weight must be contiguous"): it gets a
    copy of the kernel, laid out in order. No number is computed otherwise.
    """
    import keras

    if keras.backend.backend() != "torch":
        return
    functional = sys.modules["torch"].nn.functional  # Keras has imported it; the package itself never does
    convolve = functional.conv2d
    functional.conv2d = lambda x, kernel, *rest, **options: convolve(x, kernel.contiguous(), *rest, **options)


@contextlib.contextmanager
def float64_kept() -> Iterator[None]:
    """Within this context Keras's torch backend computes in float64 what is float64; on TensorFlow it does anyway.

    Keras 3.15 calls the common type of float64 and float32 float32 on every backend but TensorFlow
    (``keras.src.backend.common.dtypes``), so BatchNorm and log-sigmoids would round, and a ReLU whose input is all but
    nought could open in one column and stay shut in another.
    """
    from keras.src.backend.common import dtypes

    before = dtypes.BIT64_TO_BIT32_DTYPE["float64"]
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    try:
        yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = before


def _pixels(column: Column) -> None:
    from keras_pneumo.parity.pixels import decoded, resized

    pixels = decoded([Path(file) for file in column.task["files"]])
    column.write("pixels", pixels)
    column.write("resized", resized(pixels, column.task["sizes"]))


def _normalised(column: Column) -> None:
    from keras_pneumo.models.preprocessing import normalise
    from keras_pneumo.parity.networks import to_numpy

    grey = column.inputs["augmented_images"].astype(np.float32) / np.float32(255)
    column.write("normalised", {f"image {number}": to_numpy(normalise(one)) for number, one in enumerate(grey)})


def _augmented(column: Column) -> None:
    from keras_pneumo.parity.pixels import augmented

    given = column.inputs
    column.write("augmented", augmented(given["augmented_images"], given["augmented_masks"], given["parameters"]))


def _initial(column: Column) -> None:
    import keras

    from keras_pneumo.parity.networks import build, initial_summaries

    for network in column.task["networks"]:
        keras.utils.set_random_seed(column.task["seed"] + 2)
        column.write(f"initial.{network}", initial_summaries(build(network, column.task["encoder"])))


def _forward(column: Column) -> None:
    """Layers in both modes, and BatchNorm's statistics after the training pass."""
    from keras_pneumo.models.weights import from_torch
    from keras_pneumo.parity.networks import activations, build, running_statistics

    for network in column.task["networks"]:
        model = build(network, column.task["encoder"])
        for mode in ("inference", "training"):
            from_torch(model, column.state(network, "weights"))
            found = activations(model, column.inputs["image"], mode == "training")
            column.write(f"forward.{network}.{mode}", found)
        # The layers were run twice, so the averages moved twice: once more from the start, as a training step does.
        from_torch(model, column.state(network, "weights"))
        model(column.inputs["image"], training=True)
        column.write(f"statistics.{network}", running_statistics(model))


def _loss(column: Column) -> None:
    from keras_pneumo.parity.learning import loss_values

    given = column.inputs
    column.write("loss", loss_values(given["loss_logits"], given["loss_masks"], given["loss_labels"]))


def _gradients(column: Column) -> None:
    from keras_pneumo.models.weights import from_torch
    from keras_pneumo.parity.networks import build, gradients_by_name, precision

    batch = column.task["gradient_batch"]
    truths = {head: column.inputs[f"truth_{head}"][:batch] for head in ("image", "mask")}
    for network in column.task["networks"]:
        for dtype in ("float64", "float32"):
            image = column.inputs["image"][:batch].astype(dtype)
            with precision(dtype), float64_kept() if dtype == "float64" else contextlib.nullcontext():
                model = build(network, column.task["encoder"])
                from_torch(model, column.state(network, "weights"))
                loss, gradients = gradients_by_name(model, network, image, truths)
            column.write(f"gradients.{network}.{dtype}", {"loss": np.array([loss]), **gradients})


def _step(column: Column) -> None:
    from keras_pneumo.parity.learning import OPTIMIZERS, keras_own, movement, optimizer_of
    from keras_pneumo.parity.networks import build
    from keras_pneumo.training.schedules import Tabulated

    plan = column.task["optimizers"]
    for network in column.task["networks"]:
        model = build(network, column.task["encoder"])
        weights, gradients = column.state(network, "weights"), column.state(network, "gradients")
        for kind in OPTIMIZERS:
            rates, decay = Tabulated(plan[kind]), plan["decay"][kind]
            optimizer = optimizer_of(kind, rates, decay)
            moved = movement(model, weights, gradients, optimizer, plan["shares"])
            column.write(f"step.{network}.{kind}", moved)
            if column.name == KERAS_ON_TORCH:
                continue
            own = movement(model, weights, gradients, keras_own(model, kind, rates, decay), plan["shares"])
            column.write(f"keras_own.{network}.{kind}", own)


def _schedule(column: Column) -> None:
    from keras_pneumo.parity.learning import schedules, tabulated

    found = schedules(column.task["one_cycles"])
    column.write("schedule", found)
    column.write("tabulated", {"rate": tabulated(found["plan 1: rate"])})


def _training(column: Column) -> None:
    from keras_pneumo.models.weights import from_torch
    from keras_pneumo.parity.learning import training_losses
    from keras_pneumo.parity.networks import build

    for network in column.task["networks"]:
        model = build(network, column.task["encoder"])
        from_torch(model, column.state(network, "start"))
        truths = {head: column.inputs[f"{network}_{head}"] for head in ("image", "mask")}
        losses = training_losses(
            model, network, column.inputs[f"{network}_images"], truths, column.task["training"][network]
        )
        column.write(f"training.{network}", {f"step {step}": losses[step : step + 1] for step in range(len(losses))})


def _files(column: Column) -> None:
    from keras_pneumo.parity.files import write_predictions

    given = column.inputs
    ids = [f"image{number:02}" for number in range(len(given["predicted_logits"]))]
    write_predictions(column.own, ids, given["predicted_logits"], given["predicted_masks"])


WORK: dict[str, Callable[[Column], None]] = {
    "pixels": _pixels,
    "normalised": _normalised,
    "augmented": _augmented,
    "initial": _initial,
    "forward": _forward,
    "loss": _loss,
    "gradients": _gradients,
    "step": _step,
    "schedule": _schedule,
    "training": _training,
    "files": _files,
}
"""What is done, in the order of the rungs; one piece of work may serve two of them."""

_NO_KERAS = "there is no Keras in this rung"
WITHOUT_KERAS = {
    "pixels": _NO_KERAS,
    "files": _NO_KERAS,
}
"""Work that a second Keras backend cannot do otherwise, since Keras has no part in it."""


if __name__ == "__main__":
    copy_kernels_in_order()
    climb(Path(sys.argv[1]), sys.argv[2])
