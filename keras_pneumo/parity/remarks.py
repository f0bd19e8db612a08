"""Sentences on the difference that remains in each check, and why, with the figures of this run.

Each function takes the ladder's folder and PyTorch's arrays of the check. Nothing here decides whether a check passes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_pneumo.data.radiographs.geometry import resize_image
from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import submissions
from keras_pneumo.parity.backends import KERAS, TORCH, read_arrays, read_task
from keras_pneumo.parity.drawn import EPOCHS
from keras_pneumo.parity.real_steps import LOSSES as REAL_LOSSES
from keras_pneumo.parity.real_steps import own_distances

Arrays = dict[str, np.ndarray]
Remark = Callable[[Path, Arrays], str]


def pixels(folder: Path, expected: Arrays) -> str:
    """Pixels of the files."""
    task = read_task(folder)
    sources = f"phantoms and {Path(task['data']).name}" if task["data"] else "phantoms"
    unread = f" {task['passed_over']} more could not be read." if task["passed_over"] else ""
    return (
        f"{len(expected)} files ({sources}), read with pydicom by the same named plugin in both environments.{unread} "
        "Another plugin may differ by some grey levels."
    )


def resized(folder: Path, expected: Arrays) -> str:
    """Resizing."""
    path = folder / TORCH / "antialiased.npz"
    text = f"{len(expected)} images by the same call, cv2's INTER_AREA."
    if not path.exists():
        return text
    arrays = read_arrays(path)
    apart = grey_levels_apart(arrays["images"], arrays["resized"].shape[1], arrays["resized"])
    others = ", ".join(f"{name} {value:.2f}" for name, value in apart.items())
    return f"{text} A team that resizes in another way has other pixels, by this mean of grey levels at 256: {others}."


def normalised(folder: Path, expected: Arrays) -> str:
    """Normalisation."""
    return "Divided by 255, less ImageNet's mean, divided by its standard deviation. JAX may round once less."


def augmented(folder: Path, expected: Arrays) -> str:
    """Augmentation."""
    path = folder / KERAS / "augmented.npz"
    actual = read_arrays(path) if path.exists() else {}
    masks = [(expected[name] != actual[name]).sum() for name in expected if name.startswith("mask") and name in actual]
    return (
        "Coordinates are computed in float32 in another order, so an interpolated value differs in its last digits; "
        f"{int(sum(masks))} mask pixels differ. Noise is part of the check of batches."
    )


def masks(folder: Path, expected: Arrays) -> str:
    """Masks made smaller."""
    return (
        f"{len(expected)} masks; a pixel is in where at least half of its area is. One of them is random, so that many "
        "pixels are just half in."
    )


def order(folder: Path, expected: Arrays) -> str:
    """The order of images."""
    draws = sum(array.size for name, array in expected.items() if name.endswith("images"))
    return (
        f"{draws} draws of {EPOCHS} epochs, by the recipe's file: which image, how often it came before in its epoch, "
        "and where batches end. Each team has its own code; the random numbers are numpy's in both."
    )


def drawn(folder: Path, expected: Arrays) -> str:
    """Parameters of augmentation."""
    return (
        f"{len(next(iter(expected.values())))} draws, every range of the recipe with a value of its own. PyTorch's "
        "side computes each range from its definition; its trainings' own use of the ranges is in the check of batches."
    )


def batches(folder: Path, expected: Arrays) -> str:
    """Batches of a training."""
    images = sum(len(array) for name, array in expected.items() if name.endswith("images"))
    return (
        f"{images} augmented images as the networks get them, from each team's own loader: order, pixels, masks and "
        "labels together. The mean difference is bounded, since a mask pixel that is just half in may go either way."
    )


def learning(folder: Path, expected: Arrays) -> str:
    """What learns."""
    still = sum(not array.any() for array in expected.values())
    return f"Rate and weight decay of each of {len(expected)} tensors; {still} of them do not learn here."


def recipe_schedules(folder: Path, expected: Arrays) -> str:
    """Schedules of recipes."""
    return (
        "Each step's rate and momentum by the optimizer that a training makes, and PyTorch's ReduceLROnPlateau "
        "epoch by epoch. In the graph rates are float32."
    )


def setting(name: str) -> Remark:
    """Trainings by one setting."""

    def remark(folder: Path, expected: Arrays) -> str:
        epochs = len({key.split(":")[0] for key in expected})
        return (
            f"How far each tensor of a small network is from its start after each of {epochs} epochs of three steps. "
            "Ours are the phases, the step and the averages of keras-pneumo train, PyTorch's the PyTorch team's."
        )

    return remark


def epoch_losses(folder: Path, expected: Arrays) -> str:
    """Losses of epochs."""
    return "Batches of 8, 7 and 7 images; every image weighs the same."


def real_steps(folder: Path, expected: Arrays) -> str:
    """Steps on real radiographs."""
    losses = read_arrays(folder / TORCH / f"{REAL_LOSSES}.npz")
    own = ", ".join(f"{value:.1e}" for value in own_distances(losses))
    return (
        f"{len(losses['losses'])} steps of AdamW at the usual rates, augmented real radiographs, labels that are not "
        f"their own. From start weights of which one differs in its last bit, PyTorch's own losses are off by {own} "
        "(root mean square over the steps)."
    )


def validation_scores(folder: Path, expected: Arrays) -> str:
    """Scores on validation."""
    return "Exact on both sides: no grid of thresholds. Of 300 probabilities, once with eleven different values only."


def choices(folder: Path, expected: Arrays) -> str:
    """Epochs that are chosen."""
    return (
        "Whole trainings of a small network with scores written down beforehand: which epochs are the best so far, "
        "which are kept, at which rate each learns, and when the training ends."
    )


def averages(folder: Path, expected: Arrays) -> str:
    """Networks that predict together."""
    return (
        "The mean of two networks' probabilities, for each image and for its mirror image, whose map is turned back. "
        "Maps are in 256 levels, and rounding may move a pixel by one."
    )


def mask_rule(folder: Path, expected: Arrays) -> str:
    """The rule of masks."""
    values = ", ".join(f"{name} {expected[name][0]}" for name in ("top", "area", "bottom", "component", "gate"))
    return (
        "keras-pneumo masks fits and applies the rule for every team. Here a second search, which draws every "
        f"candidate's masks, finds the same: {values}."
    )


def initial(folder: Path, expected: Arrays) -> str:
    """Initial weights."""
    return (
        "Each framework draws its own numbers, so mean, spread and shape of each tensor are compared, not values. To "
        "start alike, load one team's first weights into the other's network."
    )


def forward(folder: Path, expected: Arrays) -> str:
    """Layers forward."""
    return (
        f"{len(expected)} layers, random weights and random BatchNorm statistics. The order in which a convolution's "
        "products are summed in float32 remains; where a channel hardly varies, BatchNorm in training mode makes this "
        "larger for the layers in between."
    )


def mixed(folder: Path, expected: Arrays) -> str:
    """Mixed precision."""
    return (
        "Float16 with three digits: Keras's mixed_float16 policy beside PyTorch's autocast. Both normalise, add up and "
        "give logits in float32, but not every layer between them rounds at the same place."
    )


def loss(folder: Path, expected: Arrays) -> str:
    """Loss."""
    return (
        "Sums over pixels are taken in another order. Where a network is sure and right, PyTorch's cross-entropy "
        "rounds a loss below 1e-7 while ours, through log-sigmoids, keeps its digits. An empty, a full and a surely "
        "wrong mask are among the images."
    )


def gradients(network: str) -> Remark:
    """Gradients."""

    def remark(folder: Path, expected: Arrays) -> str:
        path = folder / KERAS / f"gradients.{network}.float32.npz"
        own = own_rounding(folder, network, expected)
        text = "In float64, where equal formulas give equal gradients."
        if path.exists():
            single = read_arrays(folder / TORCH / f"gradients.{network}.float32.npz")
            between = comparing.compare(single, read_arrays(path), comparing.of_norm, np.inf).relative
            text += f" In float32 our gradients differ from PyTorch's by up to {between:.1e} of the norm;"
        text += f" PyTorch's own float32 differs from its float64 by up to {own:.1e}"
        return f"{text}, where a ReLU's input changes sign."

    return remark


def own_rounding(folder: Path, network: str, exact: Arrays) -> float:
    """Return how far PyTorch's float32 gradients are off its float64 ones, as a share of the worst tensor's norm."""
    single = read_arrays(folder / TORCH / f"gradients.{network}.float32.npz")
    wanted = {name: array.astype(np.float32) for name, array in exact.items()}
    return comparing.compare(wanted, single, comparing.of_norm, np.inf).relative


def step(network: str, kind: str) -> Remark:
    """Optimizer steps."""
    why = {
        "sgd": "keras.optimizers.SGD keeps the rate inside its momentum and decays outside of it, so it differs",
        "adamw": "keras.optimizers.AdamW adds an epsilon of 1e-7 before the bias correction, PyTorch 1e-8 after it",
    }[kind]

    def remark(folder: Path, expected: Arrays) -> str:
        path = folder / KERAS / f"keras_own.{network}.{kind}.npz"
        text = "Two steps with the same gradients, the second at half the rate. The rounding of the weights remains."
        if not path.exists():
            return text
        own = read_arrays(path)
        apart = sum(float(((own[name] - expected[name]) ** 2).sum()) for name in expected) ** 0.5
        whole = sum(float((expected[name] ** 2).sum()) for name in expected) ** 0.5
        return f"{text} {why}: here {apart / whole:.1%} of the step."

    return remark


def statistics(network: str) -> Remark:
    """BatchNorm's statistics."""

    def remark(folder: Path, expected: Arrays) -> str:
        counts = read_arrays(folder / TORCH / f"counts.{network}.npz")
        least, most = (int(function(list(counts.values()))) for function in (min, max))
        return (
            "The running variance takes in the batch's unbiased variance on both sides, n/(n-1) times the one that "
            f"normalises, n from {least} to {most} positions here. Keras's own layer takes the biased one."
        )

    return remark


def schedule(folder: Path, expected: Arrays) -> str:
    """Schedules."""
    path = folder / KERAS / "tabulated.npz"
    text = "The formula in float64, step by step."
    if not path.exists():
        return text
    table = read_arrays(path)
    apart = comparing.of_value(expected["plan 1: rate"], table["rate"]).relative
    return f"{text} In the graph it is read from a float32 table, {apart:.0e} of the rate off by rounding alone."


def training(network: str) -> Remark:
    """Steps of training."""

    def remark(folder: Path, expected: Arrays) -> str:
        losses = [float(value[0]) for value in expected.values()]
        return (
            "The same weights (residual branches shut at first) and batches, at a rate so low that rounding alone "
            f"changes little in PyTorch itself. The losses are between {min(losses):.3f} and {max(losses):.3f}. "
            "Rounding grows from step to step."
        )

    return remark


def files(folder: Path, expected: Arrays) -> str:
    """Prediction files."""
    same, count = submissions.equal_to_the_last_digit(folder / TORCH, folder / KERAS)
    return (
        f"Ids, masks as run lengths, and probabilities to {submissions.DIGITS} digits. {same} of {count} probabilities "
        "are equal to the last of 17 digits; the sigmoid of float64 may round either way. No probability of a mask "
        "lies in the middle between two of its 256 levels, where that of float32 would decide a pixel."
    )


def score(folder: Path, expected: Arrays) -> str:
    """Scores."""
    truth = folder / "truth.csv"
    first, second = (submissions.referee(truth, folder / backend) for backend in (TORCH, KERAS))
    same = all(first[name] == second[name] for name in first)
    values = ", ".join(f"{name.upper() if name == 'auroc' else 'Dice'} {float(first[name][0]):.4f}" for name in first)
    return (
        f"The referee's scores of both files are {'equal' if same else 'NOT equal'} ({values}). They are "
        "compared with a scorer in PyTorch's process that shares no code with ours."
    )


def grey_levels_apart(images: np.ndarray, size: int, torchvision: np.ndarray) -> dict[str, float]:
    """Return how many grey levels, on average, other ways of resizing are from ours; for a remark.

    Args:
        images: uint8 (n, h, w).
        size: side to reduce to.
        torchvision: what torchvision's antialiased bilinear resize gives, float (n, size, size), 0 to 255.
    """
    import tensorflow as tf

    resized = np.stack([resize_image(image, size) for image in images]).astype(np.float64)
    batch = images[..., None].astype(np.float32)
    others = {"torchvision's antialiased bilinear": torchvision}
    for name, antialias in (("tf.image's antialiased bilinear", True), ("tf.image's default bilinear", False)):
        others[name] = tf.image.resize(batch, (size, size), antialias=antialias).numpy()[..., 0]
    return {name: float(np.abs(value - resized).mean()) for name, value in others.items()}
