"""What remains on each rung and why, in a sentence with this run's own figures.

Each function takes the ladder's folder and PyTorch's arrays of the rung. Nothing here decides whether a rung passes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import files as handed_in
from keras_pneumo.parity.processes import KERAS, TORCH, read_arrays, read_task

Arrays = dict[str, np.ndarray]
Remark = Callable[[Path, Arrays], str]


def pixels(folder: Path, theirs: Arrays) -> str:
    """Rung 1."""
    task = read_task(folder)
    whence = f"phantoms and {Path(task['data']).name}" if task["data"] else "phantoms"
    aside = f" {task['passed_over']} more could not be read." if task["passed_over"] else ""
    return (
        f"{len(theirs)} files ({whence}), read with pydicom by the same named plugin in both environments.{aside} "
        "Another plugin may differ by some grey levels."
    )


def resized(folder: Path, theirs: Arrays) -> str:
    """Rung 2."""
    path = folder / TORCH / "antialiased.npz"
    said = f"{len(theirs)} images by the same call, cv2's INTER_AREA."
    if not path.exists():
        return said
    from keras_pneumo.parity.pixels import grey_levels_apart

    found = read_arrays(path)
    apart = grey_levels_apart(found["images"], found["resized"].shape[1], found["resized"])
    others = ", ".join(f"{name} {value:.2f}" for name, value in apart.items())
    return f"{said} A team that resizes otherwise has other pixels: mean grey levels apart at 256: {others}."


def normalised(folder: Path, theirs: Arrays) -> str:
    """Rung 3."""
    return "Divided by 255, less ImageNet's mean, divided by its standard deviation: three roundings, the same in both."


def augmented(folder: Path, theirs: Arrays) -> str:
    """Rung 4."""
    path = folder / KERAS / "augmented.npz"
    ours = read_arrays(path) if path.exists() else {}
    masks = [(theirs[name] != ours[name]).sum() for name in theirs if name.startswith("mask") and name in ours]
    return (
        "Places are computed in float32 in another order, so an interpolated value differs in its last digits; "
        f"{int(sum(masks))} mask pixels differ. Noise is left out: each framework draws its own."
    )


def initial(folder: Path, theirs: Arrays) -> str:
    """Rung 5."""
    return (
        "Each framework draws its own numbers, so mean, spread and shape of each tensor are compared, not values. To "
        "start alike, load one team's first weights into the other's network."
    )


def forward(folder: Path, theirs: Arrays) -> str:
    """Rung 6."""
    return (
        f"{len(theirs)} layers, random weights and random BatchNorm statistics. What remains is the order in which a "
        "convolution's products are summed in float32; where a channel hardly varies, BatchNorm in training mode makes "
        "it larger for the layers in between."
    )


def loss(folder: Path, theirs: Arrays) -> str:
    """Rung 7."""
    return (
        "Sums over pixels are taken in another order. Where a network is sure and right, PyTorch's cross-entropy "
        "rounds a loss below 1e-7 while ours, through log-sigmoids, keeps its digits. An empty, a full and a surely "
        "wrong mask are among the images."
    )


def gradients(network: str) -> Remark:
    """Rung 8."""

    def remark(folder: Path, theirs: Arrays) -> str:
        path = folder / KERAS / f"gradients.{network}.float32.npz"
        own = own_rounding(folder, network, theirs)
        said = "In float64, where equal formulas give equal gradients."
        if path.exists():
            single = read_arrays(folder / TORCH / f"gradients.{network}.float32.npz")
            between = comparing.compare(single, read_arrays(path), comparing.of_norm, np.inf).relative
            said += f" In float32 ours is up to {between:.1e} of the norm off PyTorch's;"
        return f"{said} PyTorch's own float32 is up to {own:.1e} off its float64, where a ReLU goes the other way."

    return remark


def own_rounding(folder: Path, network: str, exact: Arrays) -> float:
    """How far PyTorch's own float32 gradients are off its float64 ones, as a share of the norm of the worst tensor."""
    single = read_arrays(folder / TORCH / f"gradients.{network}.float32.npz")
    wanted = {name: array.astype(np.float32) for name, array in exact.items()}
    return comparing.compare(wanted, single, comparing.of_norm, np.inf).relative


def step(network: str, kind: str) -> Remark:
    """Rung 9."""
    why = {
        "sgd": "keras.optimizers.SGD keeps the rate inside its momentum, so it parts when the rate changes",
        "adamw": "keras.optimizers.AdamW adds an epsilon of 1e-7 before the bias correction, PyTorch 1e-8 after it",
    }[kind]

    def remark(folder: Path, theirs: Arrays) -> str:
        path = folder / KERAS / f"keras_own.{network}.{kind}.npz"
        said = (
            "Two steps with the same gradients, the second at half the rate. What remains is the rounding of weights."
        )
        if not path.exists():
            return said
        own = read_arrays(path)
        apart = sum(float(((own[name] - theirs[name]) ** 2).sum()) for name in theirs) ** 0.5
        whole = sum(float((theirs[name] ** 2).sum()) for name in theirs) ** 0.5
        return f"{said} {why}: here {apart / whole:.1%} of the step."

    return remark


def statistics(network: str) -> Remark:
    """Rung 10."""

    def remark(folder: Path, theirs: Arrays) -> str:
        counts = read_arrays(folder / TORCH / f"counts.{network}.npz")
        least, most = (int(function(list(counts.values()))) for function in (min, max))
        path = folder / KERAS / f"statistics.{network}.npz"
        said = (
            f"Keras keeps the batch's biased variance, PyTorch the unbiased one: n/(n-1) times as much, n from {least} "
            f"to {most} positions here. It is multiplied out before comparing"
        )
        if path.exists():
            off = comparing.compare(theirs, read_arrays(path), comparing.of_value, np.inf).relative
            said += f"; left in, a running variance is up to {off:.1%} off"
        return (
            f"{said}. At 512 pixels and 16 images n is at least 4096, and the difference 0.02%; losses in training "
            "mode do not depend on it."
        )

    return remark


def schedule(folder: Path, theirs: Arrays) -> str:
    """Rung 11."""
    path = folder / KERAS / "tabulated.npz"
    said = "The formula in float64, step by step."
    if not path.exists():
        return said
    table = read_arrays(path)
    apart = comparing.of_value(theirs["plan 1: rate"], table["rate"]).relative
    return f"{said} In the graph it is read from a float32 table, {apart:.0e} of the rate off by rounding alone."


def training(network: str) -> Remark:
    """Rung 12."""

    def remark(folder: Path, theirs: Arrays) -> str:
        losses = [float(value[0]) for value in theirs.values()]
        return (
            "The same weights (residual branches shut at first) and batches, at a rate at which PyTorch repeats "
            f"itself; the losses lie between {min(losses):.3f} and {max(losses):.3f}. Rounding grows from step to "
            "step. Running variances differ (rung 10), but no loss of training depends on them."
        )

    return remark


def files(folder: Path, theirs: Arrays) -> str:
    """Rung 13."""
    same, count = handed_in.equal_to_the_last_digit(folder / TORCH, folder / KERAS)
    return (
        f"Ids, masks as run lengths, and probabilities to {handed_in.DIGITS} digits. {same} of {count} probabilities "
        "are equal to the last of 17 digits; the sigmoid of float64 may round either way."
    )


def score(folder: Path, theirs: Arrays) -> str:
    """Rung 14."""
    truth = folder / "truth.csv"
    first, second = (handed_in.referee(truth, folder / column) for column in (TORCH, KERAS))
    same = all(first[name] == second[name] for name in first)
    values = ", ".join(f"{name.upper() if name == 'auroc' else 'Dice'} {float(first[name][0]):.4f}" for name in first)
    return (
        f"The referee's scores of both files are {'equal' if same else 'NOT equal'} ({values}); compared with them is "
        "a scorer of PyTorch's process that shares no code with ours."
    )
