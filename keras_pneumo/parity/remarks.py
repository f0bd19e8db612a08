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

Arrays = dict[str, np.ndarray]
Remark = Callable[[Path, Arrays], str]


def pixels(folder: Path, expected: Arrays) -> str:
    """Check 1: pixels of the files."""
    task = read_task(folder)
    sources = f"phantoms and {Path(task['data']).name}" if task["data"] else "phantoms"
    unread = f" {task['passed_over']} more could not be read." if task["passed_over"] else ""
    return (
        f"{len(expected)} files ({sources}), read with pydicom by the same named plugin in both environments.{unread} "
        "Another plugin may differ by some grey levels."
    )


def resized(folder: Path, expected: Arrays) -> str:
    """Check 2: resizing."""
    path = folder / TORCH / "antialiased.npz"
    text = f"{len(expected)} images by the same call, cv2's INTER_AREA."
    if not path.exists():
        return text
    arrays = read_arrays(path)
    apart = grey_levels_apart(arrays["images"], arrays["resized"].shape[1], arrays["resized"])
    others = ", ".join(f"{name} {value:.2f}" for name, value in apart.items())
    return f"{text} A team that resizes in another way has other pixels, by this mean of grey levels at 256: {others}."


def normalised(folder: Path, expected: Arrays) -> str:
    """Check 3: normalisation."""
    return "Divided by 255, less ImageNet's mean, divided by its standard deviation: three roundings, the same in both."


def augmented(folder: Path, expected: Arrays) -> str:
    """Check 4: augmentation."""
    path = folder / KERAS / "augmented.npz"
    actual = read_arrays(path) if path.exists() else {}
    masks = [(expected[name] != actual[name]).sum() for name in expected if name.startswith("mask") and name in actual]
    return (
        "Coordinates are computed in float32 in another order, so an interpolated value differs in its last digits; "
        f"{int(sum(masks))} mask pixels differ. Noise is left out; the tests of the PyTorch team compare it."
    )


def initial(folder: Path, expected: Arrays) -> str:
    """Check 5: initial weights."""
    return (
        "Each framework draws its own numbers, so mean, spread and shape of each tensor are compared, not values. To "
        "start alike, load one team's first weights into the other's network."
    )


def forward(folder: Path, expected: Arrays) -> str:
    """Check 6: layers forward."""
    return (
        f"{len(expected)} layers, random weights and random BatchNorm statistics. The order in which a convolution's "
        "products are summed in float32 remains; where a channel hardly varies, BatchNorm in training mode makes this "
        "larger for the layers in between."
    )


def loss(folder: Path, expected: Arrays) -> str:
    """Check 7: loss."""
    return (
        "Sums over pixels are taken in another order. Where a network is sure and right, PyTorch's cross-entropy "
        "rounds a loss below 1e-7 while ours, through log-sigmoids, keeps its digits. An empty, a full and a surely "
        "wrong mask are among the images."
    )


def gradients(network: str) -> Remark:
    """Check 8: gradients."""

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
    """Check 9: optimizer steps."""
    why = {
        "sgd": "keras.optimizers.SGD keeps the rate inside its momentum, so it differs when the rate changes",
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
    """Check 10: BatchNorm's statistics."""

    def remark(folder: Path, expected: Arrays) -> str:
        counts = read_arrays(folder / TORCH / f"counts.{network}.npz")
        least, most = (int(function(list(counts.values()))) for function in (min, max))
        return (
            "The running variance takes in the batch's unbiased variance on both sides, n/(n-1) times the one that "
            f"normalises, n from {least} to {most} positions here. Keras's own layer takes the biased one."
        )

    return remark


def schedule(folder: Path, expected: Arrays) -> str:
    """Check 11: schedules."""
    path = folder / KERAS / "tabulated.npz"
    text = "The formula in float64, step by step."
    if not path.exists():
        return text
    table = read_arrays(path)
    apart = comparing.of_value(expected["plan 1: rate"], table["rate"]).relative
    return f"{text} In the graph it is read from a float32 table, {apart:.0e} of the rate off by rounding alone."


def training(network: str) -> Remark:
    """Check 12: steps of training."""

    def remark(folder: Path, expected: Arrays) -> str:
        losses = [float(value[0]) for value in expected.values()]
        return (
            "The same weights (residual branches shut at first) and batches, at a rate so low that rounding alone "
            f"changes little in PyTorch itself. The losses are between {min(losses):.3f} and {max(losses):.3f}. "
            "Rounding grows from step to step."
        )

    return remark


def files(folder: Path, expected: Arrays) -> str:
    """Check 13: prediction files."""
    same, count = submissions.equal_to_the_last_digit(folder / TORCH, folder / KERAS)
    return (
        f"Ids, masks as run lengths, and probabilities to {submissions.DIGITS} digits. {same} of {count} probabilities "
        "are equal to the last of 17 digits; the sigmoid of float64 may round either way."
    )


def score(folder: Path, expected: Arrays) -> str:
    """Check 14: scores."""
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
