"""The ladder itself: its rungs from pixels to scores, the bound of each, and what is said of what remains.

In: the ladder's folder once every column has climbed. Out: a :class:`Result` for each rung, with how far our code on
TensorFlow and on Keras's torch backend is from PyTorch. Later rungs do not hang on earlier ones: each starts from the
same given inputs, so the first broken one is where the two stacks part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import files, remarks
from keras_pneumo.parity.comparison import Difference, Measure
from keras_pneumo.parity.processes import KERAS, KERAS_ON_TORCH, TORCH, read_absent, read_arrays, read_task

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bound:
    """How two columns are compared on a rung, and how far apart they may be."""

    measure: Measure
    limit: float
    text: str
    tighter: Mapping[str, float] | None = None
    """Limits of their own for some arrays, by name."""


EXACT = Bound(comparing.exact, 0, "equal to the last bit")
TEXT = Bound(comparing.exact, 0, "the same text")


@dataclass(frozen=True)
class Rung:
    """One rung, or one network's part of it."""

    number: int
    title: str
    what: str
    """What is compared, where a rung has several parts; blank otherwise."""
    arrays: str
    """Name of the npz file."""
    work: str
    """The piece of work in :mod:`keras_pneumo.parity.backend` that answers it."""
    bound: Bound
    remark: Callable[[Path, Arrays], str]
    """From the ladder's folder and PyTorch's arrays to the sentence on what remains and why."""


@dataclass(frozen=True)
class Result:
    """How a rung was climbed."""

    number: int
    title: str
    what: str
    bound: str
    limit: float
    keras: Difference
    keras_on_torch: Difference | None
    absent: str
    """Why the third column has no answer; blank where it has one."""
    remark: str

    @property
    def passed(self) -> bool:
        """Whether all columns that have an answer are within the bound."""
        return self.keras.within and (self.keras_on_torch is None or self.keras_on_torch.within)

    @property
    def name(self) -> str:
        """Title and part."""
        return f"{self.title}, {self.what}" if self.what else self.title


@dataclass(frozen=True)
class Ladder:
    """All rungs, and what they say together."""

    results: list[Result]
    task: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]
    third: str = ""
    """Why the third column is missing altogether; blank where it climbed."""
    notes: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[Result]:
        """Rungs beyond their bound."""
        return [result for result in self.results if not result.passed]

    @property
    def rungs(self) -> int:
        """How many rungs were climbed."""
        return len({result.number for result in self.results})

    @property
    def headline(self) -> str:
        """The answer to "can these two be compared?"."""
        if self.broken:
            return f"Not yet: they part at rung {self.broken[0].number}, {self.broken[0].name}."
        return (
            f"Yes: on all {self.rungs} rungs, from DICOM pixels to scores, Keras and PyTorch agree within the bounds."
        )

    @property
    def detail(self) -> str:
        """What follows from the answer, or where the first broken rung is broken."""
        if self.broken:
            return where(self.broken[0])
        return "A difference in score comes from what a team did, not from its framework."

    @property
    def verdict(self) -> str:
        """Both."""
        return f"{self.headline} {self.detail}"


def where(result: Result) -> str:
    """Which column is beyond the bound, at which layer first, and by how much."""
    columns = [("our code on TensorFlow", result.keras), ("our code on Keras's torch backend", result.keras_on_torch)]
    said = [
        f"{name} first leaves the bound ({result.bound}) at {found.first}; the largest difference is "
        f"{shown(found.measured)} at {found.worst}"
        for name, found in columns
        if found is not None and not found.within
    ]
    return "; ".join(one[0].upper() + one[1:] if not number else one for number, one in enumerate(said)) + "."


def shown(value: float) -> str:
    """A difference as a person reads it."""
    return "0" if value == 0 else "infinite" if not np.isfinite(value) else f"{value:.1e}"


def rungs_of(task: Mapping[str, Any]) -> Iterator[Rung]:
    """Every rung in order."""
    networks = list(task["networks"])
    labels = {"classifier": f"{task['encoder']} classifier", "unet": f"U-Net on {task['encoder']}"}
    yield Rung(1, "DICOM pixels", "", "pixels", "pixels", EXACT, remarks.pixels)
    yield Rung(2, "Resizing", "", "resized", "pixels", EXACT, remarks.resized)
    yield Rung(3, "Normalisation", "", "normalised", "normalised", EXACT, remarks.normalised)
    yield Rung(4, "Augmentation", "at given parameters", "augmented", "augmented", AUGMENTED, remarks.augmented)
    for name in networks:
        yield Rung(5, "Initial weights", labels[name], f"initial.{name}", "initial", SPREAD, remarks.initial)
    for name in networks:
        for mode in ("inference", "training"):
            what = f"{labels[name]}, {mode} mode"
            yield Rung(6, "Forward", what, f"forward.{name}.{mode}", "forward", FORWARD, remarks.forward)
    yield Rung(7, "Loss", "bce, dice, focal, their sum", "loss", "loss", LOSS, remarks.loss)
    for name in networks:
        found = f"gradients.{name}.float64"
        yield Rung(8, "Gradients", labels[name], found, "gradients", GRADIENTS, remarks.gradients(name))
    for name in networks:
        for kind, label in (("sgd", "SGD with momentum"), ("adamw", "AdamW")):
            what = f"{label}, {labels[name]}"
            yield Rung(9, "Optimizer step", what, f"step.{name}.{kind}", "step", STEP, remarks.step(name, kind))
    for name in networks:
        found = f"statistics.{name}"
        yield Rung(10, "BatchNorm statistics", labels[name], found, "forward", STATISTICS, remarks.statistics(name))
    yield Rung(11, "Schedule", "one-cycle rate and momentum", "schedule", "schedule", SCHEDULE, remarks.schedule)
    for name in networks:
        what = f"{task['steps']} steps of SGD, {labels[name]}"
        yield Rung(12, "Training", what, f"training.{name}", "training", TRAINING, remarks.training(name))
    yield Rung(13, "Prediction files", "", "files", "files", TEXT, remarks.files)
    yield Rung(14, "Score", "", "score", "files", SCORE, remarks.score)


AUGMENTED = Bound(comparing.of_range, 1e-3, "1e-3 of the range")
SPREAD = Bound(comparing.of_spread, 5, "5 standard errors")
LOGITS = ("fc", "segmentation_head.0", "classification_head.3")
FORWARD = Bound(comparing.of_range, 5e-4, "logits 1e-4 of the range, layers 5e-4", dict.fromkeys(LOGITS, 1e-4))
LOSS = Bound(comparing.of_range, 1e-6, "1e-6 of the range")
GRADIENTS = Bound(comparing.of_norm, 1e-8, "1e-8 of the norm")
STEP = Bound(comparing.of_norm, 1e-3, "1e-3 of the step")
STATISTICS = Bound(comparing.of_range, 1e-4, "1e-4 of the range")
SCHEDULE = Bound(comparing.of_value, 1e-9, "1e-9 of the value")
TRAINING = Bound(comparing.of_value, 1e-3, "1e-3 of the loss")
SCORE = Bound(comparing.of_value, 1e-12, "1e-12 of the score")
"""What each rung may leave; the issue's own figures are 1e-4 forward, 1e-3 in gradients and losses, 1e-9 in rates."""


def judge(folder: Path, third: str = "") -> list[Result]:
    """Compare the columns of a folder, rung by rung.

    Args:
        folder: the ladder's, with what all processes wrote.
        third: why the third column is missing altogether, if it is.
    """
    task = read_task(folder)
    absent = read_absent(folder / KERAS_ON_TORCH)
    unable = read_absent(folder / KERAS)
    results = []
    for rung in rungs_of(task):
        theirs = arrays_of(folder, TORCH, rung)
        reason = third or absent.get(rung.work, "")
        nothing: Arrays = {}
        ours = nothing if rung.work in unable else arrays_of(folder, KERAS, rung)
        other = None
        if not reason:
            third_arrays = arrays_of(folder, KERAS_ON_TORCH, rung)
            other = comparing.compare(theirs, third_arrays, rung.bound.measure, rung.bound.limit, rung.bound.tighter)
        results.append(
            Result(
                rung.number,
                rung.title,
                rung.what,
                rung.bound.text,
                rung.bound.limit,
                comparing.compare(theirs, ours, rung.bound.measure, rung.bound.limit, rung.bound.tighter),
                other,
                reason,
                rung.remark(folder, theirs),
            )
        )
    return results


def arrays_of(folder: Path, column: str, rung: Rung) -> Arrays:
    """What a column found on a rung, in the form in which it is compared; nothing where it wrote no file."""
    own = folder / column
    if rung.arrays == "files":
        return files.texts_of(own)
    if rung.arrays == "score":
        return files.scores_of(folder, own, by_itself=column == TORCH)
    path = own / f"{rung.arrays}.npz"
    if not path.exists():
        return {}
    found = read_arrays(path)
    if rung.work == "forward" and rung.arrays.startswith("statistics.") and column != TORCH:
        return unbiased(found, folder, rung.arrays.removeprefix("statistics."))
    return found


def unbiased(found: Arrays, folder: Path, network: str) -> Arrays:
    """Keras's running variances as they would be with PyTorch's n / (n - 1) on the batch's part."""
    from safetensors.numpy import load_file

    before = load_file(folder / f"{network}.weights.safetensors")
    counts = read_arrays(folder / TORCH / f"counts.{network}.npz")
    corrected = {}
    for name, array in found.items():
        corrected[name] = array
        if name in counts:
            kept, count = 0.9 * before[name].astype(np.float64), float(counts[name])
            corrected[name] = (kept + (array - kept) * count / (count - 1)).astype(np.float32)
    return corrected
