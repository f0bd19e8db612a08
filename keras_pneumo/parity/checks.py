"""What our code computes for each check of the ladder, on TensorFlow or on another of Keras's backends.

In: the ladder's folder. Out: arrays by name, in the order of the computation, in the backend's own folder. Pixels and
files come from the package's own functions, as ``prepare`` and ``train`` call them; what PyTorch's process does with
the same inputs is written independently in ``experiments/torch_team/ladder.py``.

Keras's torch and JAX backends run as ``python -m keras_pneumo.parity.checks FOLDER NAME`` in an environment of their
own, with ``KERAS_BACKEND=torch`` or ``jax``; TensorFlow runs in the process of ``keras-pneumo parity``. So TensorFlow
is imported only where it is needed, and a computation whose code needs a package that is not there is left out, with
the reason.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pneumo.data.radiographs.geometry import resize_image
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.models.preprocessing import normalise
from keras_pneumo.models.weights import StateDict, from_torch, to_torch
from keras_pneumo.parity import choices, drawn, real_steps, settings
from keras_pneumo.parity.backends import (
    INPUTS,
    OTHERS,
    VERSIONS,
    Backend,
    read_arrays,
    read_task,
    versions_of,
    write_absent,
)
from keras_pneumo.parity.networks import (
    EXPERIMENTS,
    RECIPE,
    activations,
    build,
    gradients_by_name,
    initial_summaries,
    is_trained,
    precision,
    running_statistics,
    target_of,
    to_numpy,
)
from keras_pneumo.storage.files import write_json
from keras_pneumo.training.losses import TERMS, ClassificationLoss, SegmentationLoss, image_losses
from keras_pneumo.training.optimizers import SGD, AdamW
from keras_pneumo.training.schedules import Tabulated, one_cycle
from keras_pneumo.training.step import loss_and_gradients, training_network

PACKAGES = ["keras", "tensorflow", "torch", "jax", "numpy", "opencv-python-headless", "pydicom"]

OPTIMIZERS = ("sgd", "adamw")


def run_checks(folder: Path, name: str, progress: Callable[[str], None] | None = None) -> None:
    """Do every computation that this environment can do; see the module's docstring."""
    backend = Backend(folder, name, read_task(folder), read_arrays(folder / INPUTS))
    backend.own.mkdir(exist_ok=True)
    absent = {}
    for computation, compute in COMPUTATIONS.items():
        if name in OTHERS and computation in WITHOUT_KERAS:
            absent[computation] = "there is no Keras in this check"
            continue
        if progress:
            progress(computation)
        try:
            compute(backend)
        except ImportError as error:
            absent[computation] = f"its code needs {error.name}, which that environment does not have"
    write_absent(backend.own, absent)
    write_json(backend.own / VERSIONS, versions_of(PACKAGES))


def _pixels(backend: Backend) -> None:
    """Decoded pixels, and the square ones resized."""
    pixels = decoded([Path(file) for file in backend.task["files"]])
    backend.write("pixels", pixels)
    backend.write("resized", resized(pixels, backend.task["sizes"]))


def _normalised(backend: Backend) -> None:
    """Three normalised channels."""
    grey = backend.inputs["augmented_images"].astype(np.float32) / np.float32(255)
    backend.write("normalised", {f"image {number}": to_numpy(normalise(image)) for number, image in enumerate(grey)})


def _augmented(backend: Backend) -> None:
    """Images and masks augmented with given parameters."""
    given = backend.inputs
    backend.write("augmented", augmented(given["augmented_images"], given["augmented_masks"], given["parameters"]))


def _initial(backend: Backend) -> None:
    """Summaries of random start weights."""
    for network in backend.task["networks"]:
        keras.utils.set_random_seed(backend.task["seed"] + 2)
        backend.write(f"initial.{network}", initial_summaries(build(network, backend.task["encoder"])))


def _forward(backend: Backend) -> None:
    """Layers in both modes, and BatchNorm's statistics after the training pass."""
    for network in backend.task["networks"]:
        model = build(network, backend.task["encoder"])
        for mode in ("inference", "training"):
            from_torch(model, backend.state(network, "weights"))
            backend.write(f"forward.{network}.{mode}", activations(model, backend.inputs["image"], mode == "training"))
        # The layers were run twice, so the averages moved twice: once more from the start, as a training step does.
        from_torch(model, backend.state(network, "weights"))
        model(backend.inputs["image"], training=True)
        backend.write(f"statistics.{network}", running_statistics(model))


def _mixed(backend: Backend) -> None:
    """Logits in mixed precision, in both modes."""
    if not backend.task["mixed"]:
        return
    for network in backend.task["networks"]:
        with precision("mixed_float16"):
            model = build(network, backend.task["encoder"])
        arrays: dict[str, np.ndarray] = {}
        for mode in ("inference", "training"):
            from_torch(model, backend.state(network, "weights"))
            outputs = model(backend.inputs["image"], training=mode == "training")
            heads = outputs if isinstance(outputs, dict) else {"image": outputs}
            arrays |= {f"{head}, {mode} mode": to_numpy(heads[head]).astype(np.float64) for head in sorted(heads)}
        backend.write(f"mixed.{network}", arrays)


def _loss(backend: Backend) -> None:
    """Each term of the loss, and the recipe."""
    given = backend.inputs
    backend.write(
        "loss",
        loss_values(given["loss_logits"], given["loss_masks"], given["loss_labels"], *backend.task["image_loss"]),
    )


def _gradients(backend: Backend) -> None:
    """Gradients in float64, and for the remark in float32."""
    batch = backend.task["gradient_batch"]
    truths = {head: backend.inputs[f"truth_{head}"][:batch] for head in ("image", "mask")}
    for network in backend.task["networks"]:
        for dtype in ("float64", "float32"):
            image = backend.inputs["image"][:batch].astype(dtype)
            with precision(dtype), float64_kept() if dtype == "float64" else contextlib.nullcontext():
                model = build(network, backend.task["encoder"])
                from_torch(model, backend.state(network, "weights"))
                loss, gradients = gradients_by_name(model, network, image, truths)
            backend.write(f"gradients.{network}.{dtype}", {"loss": np.array([loss]), **gradients})


def _step(backend: Backend) -> None:
    """Two steps of each optimizer, and for the remark of Keras's own."""
    plan = backend.task["optimizers"]
    for network in backend.task["networks"]:
        model = build(network, backend.task["encoder"])
        weights, gradients = backend.state(network, "weights"), backend.state(network, "gradients")
        for kind in OPTIMIZERS:
            rates, decay = Tabulated(plan[kind]), plan["decay"][kind]
            optimizer = optimizer_of(kind, rates, decay)
            moved = movement(model, weights, gradients, optimizer, plan["shares"])
            backend.write(f"step.{network}.{kind}", moved)
            if backend.name in OTHERS:
                continue
            own = movement(model, weights, gradients, keras_own(model, kind, rates, decay), plan["shares"])
            backend.write(f"keras_own.{network}.{kind}", own)


def _schedule(backend: Backend) -> None:
    """Rates and momenta of one-cycle plans."""
    values = schedules(backend.task["one_cycles"])
    backend.write("schedule", values)
    backend.write("tabulated", {"rate": tabulated(values["plan 1: rate"])})


def _training(backend: Backend) -> None:
    """The losses of steps of training."""
    for network in backend.task["networks"]:
        model = build(network, backend.task["encoder"])
        from_torch(model, backend.state(network, "start"))
        truths = {head: backend.inputs[f"{network}_{head}"] for head in ("image", "mask")}
        losses = training_losses(
            model, network, backend.inputs[f"{network}_images"], truths, backend.task["training"][network]
        )
        backend.write(f"training.{network}", {f"step {step}": losses[step : step + 1] for step in range(len(losses))})


def _files(backend: Backend) -> None:
    """Prediction files."""
    from keras_pneumo.parity.submissions import write_prediction_files

    given = backend.inputs
    ids = [f"image{number:02}" for number in range(len(given["predicted_logits"]))]
    write_prediction_files(backend.own, ids, given["predicted_logits"], given["predicted_masks"])


COMPUTATIONS: dict[str, Callable[[Backend], None]] = {
    "pixels": _pixels,
    "masks": drawn.reduced_masks,
    "normalised": _normalised,
    "order": drawn.order,
    "drawn": drawn.parameters,
    "augmented": _augmented,
    "batches": drawn.batches,
    "initial": _initial,
    "forward": _forward,
    "mixed": _mixed,
    "loss": _loss,
    "gradients": _gradients,
    "learning": settings.learning,
    "step": _step,
    "schedule": _schedule,
    "recipe_schedules": settings.recipe_schedules,
    "trainings": settings.trainings,
    "training": _training,
    "real_steps": real_steps.real_steps,
    "validation_scores": choices.validation_scores,
    "choices": choices.choices,
    "averages": choices.averages,
    "mask_rule": choices.mask_rule,
    "files": _files,
}
"""All computations, in the order of the checks; one computation may serve two checks."""

WITHOUT_KERAS = ("pixels", "masks", "order", "drawn", "batches", "validation_scores", "mask_rule", "files")
"""Computations in which Keras has no part, so a second Keras backend would only repeat them."""


def decoded(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Read the uint8 pixels of each file, by its number and ending."""
    return {f"file {number} ({path.suffix[1:]})": read_radiograph(path).pixels for number, path in enumerate(files)}


def resized(pixels: dict[str, np.ndarray], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Resize the square images to each size."""
    return {
        f"{name} at {size}": resize_image(image, size)
        for name, image in pixels.items()
        for size in sizes
        if image.shape[0] == image.shape[1] >= size
    }


def augmented(images: np.ndarray, masks: np.ndarray, parameters: np.ndarray) -> dict[str, np.ndarray]:
    """Augment image and mask by each row of parameters, float32 in [0, 1].

    Args:
        images: uint8 (n, h, w, 1).
        masks: uint8 (n, h, w, 1).
        parameters: float32 (n, 10), see :data:`keras_pneumo.data.batches.augmentation.PARAMETERS`.
    """
    from keras_pneumo.data.batches.augmentation import augment, augment_masks
    from keras_pneumo.parity.inputs import AUGMENTATION

    seeds = np.zeros((len(images), 2), np.int32)
    changed = augment(AUGMENTATION, images, parameters, seeds)
    moved = augment_masks(AUGMENTATION, masks, parameters)
    return {f"image {number}": image for number, image in enumerate(changed)} | {
        f"mask {number}": mask for number, mask in enumerate(moved)
    }


def loss_values(
    logits: np.ndarray, masks: np.ndarray, labels: np.ndarray, smoothing: float, positive_weight: float
) -> dict[str, np.ndarray]:
    """Return each term and the recipe's sum for each image, and the image-level loss, float32 (n,).

    Args:
        logits: float32 (n, h, w, 1).
        masks: 0 or 1, of the same shape.
        labels: 0 or 1, (n, 1); their logits are those of the first pixel.
        smoothing: of labels, in the second image-level loss.
        positive_weight: what a positive counts in it.
    """
    values = {name: TERMS[name](masks, logits) for name in ("bce", "dice", "focal")}
    values["sum"] = SegmentationLoss(RECIPE).call(masks, logits)
    values["lovasz"] = TERMS["lovasz"](masks, logits)
    values["image"] = ClassificationLoss().call(labels, logits[:, 0, 0])
    weighted = ClassificationLoss(smoothing, positive_weight)
    values["image, smoothed and weighted"] = weighted.call(labels, logits[:, 0, 0])
    return {name: to_numpy(value) for name, value in values.items()}


def optimizer_of(kind: str, rates: Any, decay: float) -> keras.optimizers.Optimizer:
    """Make the project's optimizer, as an experiment does."""
    if kind == "sgd":
        return SGD(learning_rate=rates, momentum=0.9, weight_decay=decay)
    return AdamW(learning_rate=rates, weight_decay=decay)


def keras_own(model: keras.Model, kind: str, rates: Any, decay: float) -> keras.optimizers.Optimizer:
    """Make Keras's own optimizer of that name, to show why the project has its own."""
    if kind == "sgd":
        optimizer = keras.optimizers.SGD(learning_rate=rates, momentum=0.9, weight_decay=decay)
    else:
        optimizer = keras.optimizers.AdamW(learning_rate=rates, weight_decay=decay)
    optimizer.exclude_from_weight_decay(
        [variable for variable in model.trainable_variables if len(variable.shape) <= 1]
    )
    return optimizer


def movement(
    model: keras.Model,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    optimizer: keras.optimizers.Optimizer,
    shares: list[float],
) -> StateDict:
    """Return how far each trained tensor is from its start after one step with each share of the gradients."""
    from_torch(model, gradients)  # the gradients in the weights' places, to be renamed and transposed as they are
    variables = model.trainable_variables
    values = [to_numpy(variable).copy() for variable in variables]
    from_torch(model, weights)
    for share in shares:
        steps = [keras.ops.convert_to_tensor(np.float32(share) * value) for value in values]
        optimizer.apply(steps, variables)
    after = to_torch(model)
    return {name: array - weights[name] for name, array in after.items() if is_trained(name)}


def schedules(plans: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return rate and momentum at each step of each one-cycle plan, float64."""
    values = {}
    for number, plan in enumerate(plans):
        cycle = one_cycle(
            np.arange(plan["steps"]),
            plan["steps"],
            plan["peak"],
            rise=plan["rise"],
            div_factor=plan["div_factor"],
            final_div_factor=plan["final_div_factor"],
            momentum=(plan["momentum"][0], plan["momentum"][1]),
        )
        values[f"plan {number + 1}: rate"] = cycle.rate
        values[f"plan {number + 1}: momentum"] = cycle.momentum
    return values


def tabulated(rates: np.ndarray) -> np.ndarray:
    """Return the rates as the graph reads them at each step, from a float32 table."""
    table = Tabulated(rates)
    return np.array([float(to_numpy(table(step))) for step in range(len(rates))])


def training_losses(
    model: keras.Model, network: str, images: np.ndarray, truths: Mapping[str, np.ndarray], plan: dict[str, Any]
) -> np.ndarray:
    """Return the loss of each step of SGD under a one-cycle schedule, by the step of ``keras-pneumo train``.

    On Keras's PyTorch backend, where there is no TensorFlow graph, the loss and the gradients are those of the same
    :func:`keras_pneumo.training.step.loss_and_gradients`, and the optimizer is the same.

    Args:
        model: the network with its start weights.
        network: which of the two.
        images: float32 (steps, batch, h, w, 1).
        truths: for each output, (steps, batch, ...).
        plan: the schedule.
    """
    cycle = one_cycle(np.arange(plan["steps"]), plan["steps"], plan["peak"], momentum=tuple(plan["momentum"]))
    optimizer = SGD(learning_rate=Tabulated(cycle.rate), momentum=Tabulated(cycle.momentum))
    losses_of = image_losses(EXPERIMENTS[network])
    if keras.backend.backend() == "tensorflow":
        learning = training_network(model, losses_of, optimizer)

        def take_step(batch: np.ndarray, target: Any) -> Any:
            return learning.train_on_batch(batch, target, return_dict=True)["loss"]
    else:

        def take_step(batch: np.ndarray, target: Any) -> Any:
            weight = np.full(len(batch), 1 / len(batch), np.float32)
            loss, gradients = loss_and_gradients(model, losses_of, batch, target, weight)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

    losses = []
    for step in range(plan["steps"]):
        target = target_of(network, {head: values[step] for head, values in truths.items()})
        losses.append(float(to_numpy(take_step(images[step], target))))
    return np.array(losses)


def copy_kernels_in_order() -> None:
    """Make convolutions on Keras's torch backend copy their kernels in order; float64 gradients need it.

    Keras hands PyTorch convolutions in its own order of axes, as views. For a 3x3 convolution to one channel, as the
    U-Net's mask head is, torch 2.14 has then no float64 gradient on a CPU ("grad_weight must be contiguous"): it gets a
    copy of the kernel, laid out in order. No number changes. Networks run and train on that backend without this.
    """
    if keras.backend.backend() != "torch":
        return
    functional = sys.modules["torch"].nn.functional  # Keras has imported it; the package itself never does
    convolve = functional.conv2d
    functional.conv2d = lambda x, kernel, *rest, **options: convolve(x, kernel.contiguous(), *rest, **options)


@contextlib.contextmanager
def float64_kept() -> Iterator[None]:
    """Let Keras's torch and JAX backends compute in float64 what is float64; on TensorFlow it does anyway.

    Keras 3.15 calls the common type of float64 and float32 float32 on every backend but TensorFlow
    (``keras.src.backend.common.dtypes``), so BatchNorm and log-sigmoids would round, and a ReLU whose input is all but
    zero could open on one backend and stay shut on another. JAX itself knows no float64 unless it is told to.
    """
    from keras.src.backend.common import dtypes

    before = dtypes.BIT64_TO_BIT32_DTYPE["float64"]
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
    try:
        with wide_numbers_of_jax():
            yield
    finally:
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = before


@contextlib.contextmanager
def wide_numbers_of_jax() -> Iterator[None]:
    """Let JAX make arrays of 64 bits, where it is Keras's backend."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


if __name__ == "__main__":
    copy_kernels_in_order()
    run_checks(Path(sys.argv[1]), sys.argv[2])
