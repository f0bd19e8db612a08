"""The ladder: its list of checks from pixels to scores, the bound of each, and their results.

In: the ladder's folder after every backend has run. Out: a :class:`CheckResult` for each check: how far our code on
TensorFlow and on Keras's torch backend is from PyTorch. Later checks do not depend on earlier ones: each starts from
the same given inputs, so the first broken check shows where the two frameworks differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import remarks, submissions
from keras_pneumo.parity.backends import KERAS, KERAS_ON_TORCH, TORCH, read_absent, read_arrays, read_task
from keras_pneumo.parity.comparison import Difference, Measure

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Bound:
    """How two backends are compared in a check, and how far apart they may be."""

    measure: Measure
    limit: float
    text: str
    tighter: Mapping[str, float] | None = None
    """Smaller limits for some arrays, by name."""


EXACT = Bound(comparing.exact, 0, "equal to the last bit")
TEXT = Bound(comparing.exact, 0, "the same text")


@dataclass(frozen=True)
class Check:
    """One check, or its part for one network."""

    number: int
    title: str
    what: str
    """What is compared, where a check has several parts; blank otherwise."""
    arrays: str
    """Name of the npz file."""
    computation: str
    """Its name in :data:`keras_pneumo.parity.checks.COMPUTATIONS`."""
    bound: Bound
    remark: Callable[[Path, Arrays], str]
    """From the ladder's folder and PyTorch's arrays to the sentence on what difference remains and why."""


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    number: int
    title: str
    what: str
    bound: str
    limit: float
    keras: Difference
    keras_on_torch: Difference | None
    absent: str
    """Why Keras's torch backend has no answer; blank where it has one."""
    remark: str

    @property
    def passed(self) -> bool:
        """Whether all backends that have an answer are within the bound."""
        return self.keras.within and (self.keras_on_torch is None or self.keras_on_torch.within)

    @property
    def name(self) -> str:
        """Title and part."""
        return f"{self.title}, {self.what}" if self.what else self.title


@dataclass(frozen=True)
class Ladder:
    """The results of all checks, and the verdict."""

    results: list[CheckResult]
    task: Mapping[str, Any]
    versions: Mapping[str, Mapping[str, str]]

    @property
    def broken(self) -> list[CheckResult]:
        """Checks beyond their bound."""
        return [result for result in self.results if not result.passed]

    @property
    def count(self) -> int:
        """How many checks there are; a check may have several results."""
        return len({result.number for result in self.results})

    @property
    def headline(self) -> str:
        """The answer to "can these two be compared?"."""
        if self.broken:
            return f"Not yet: they differ in check {self.broken[0].number}, {self.broken[0].name}."
        return (
            f"Yes: in all {self.count} checks, from DICOM pixels to scores, Keras and PyTorch agree within the bounds."
        )

    @property
    def detail(self) -> str:
        """What follows from the answer, or where the first broken check is broken."""
        if self.broken:
            return locate(self.broken[0])
        return "A difference in score comes from what a team did, not from its framework."

    @property
    def verdict(self) -> str:
        """Headline and detail."""
        return f"{self.headline} {self.detail}"


def locate(result: CheckResult) -> str:
    """Return which backend is beyond the bound, at which layer first, and by how much."""
    backends = [("our code on TensorFlow", result.keras), ("our code on Keras's torch backend", result.keras_on_torch)]
    parts = [
        f"{name} first exceeds the bound ({result.bound}) at {difference.first}; the largest difference is "
        f"{shown(difference.measured)} at {difference.worst}"
        for name, difference in backends
        if difference is not None and not difference.within
    ]
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def shown(value: float) -> str:
    """Format a difference for a person."""
    return "0" if value == 0 else "infinite" if not np.isfinite(value) else f"{value:.1e}"


def list_checks(task: Mapping[str, Any]) -> Iterator[Check]:
    """Yield every check in order."""
    networks = list(task["networks"])
    labels = {"classifier": f"{task['encoder']} classifier", "unet": f"U-Net on {task['encoder']}"}
    yield Check(1, "DICOM pixels", "", "pixels", "pixels", EXACT, remarks.pixels)
    yield Check(2, "Resizing", "", "resized", "pixels", EXACT, remarks.resized)
    yield Check(3, "Normalisation", "", "normalised", "normalised", EXACT, remarks.normalised)
    yield Check(4, "Augmentation", "at given parameters", "augmented", "augmented", AUGMENTED, remarks.augmented)
    for name in networks:
        yield Check(5, "Initial weights", labels[name], f"initial.{name}", "initial", SPREAD, remarks.initial)
    for name in networks:
        for mode in ("inference", "training"):
            what = f"{labels[name]}, {mode} mode"
            yield Check(6, "Forward", what, f"forward.{name}.{mode}", "forward", FORWARD, remarks.forward)
    yield Check(7, "Loss", "bce, dice, focal, their sum", "loss", "loss", LOSS, remarks.loss)
    for name in networks:
        arrays = f"gradients.{name}.float64"
        yield Check(8, "Gradients", labels[name], arrays, "gradients", GRADIENTS, remarks.gradients(name))
    for name in networks:
        for kind, label in (("sgd", "SGD with momentum"), ("adamw", "AdamW")):
            what = f"{label}, {labels[name]}"
            yield Check(9, "Optimizer step", what, f"step.{name}.{kind}", "step", STEP, remarks.step(name, kind))
    for name in networks:
        arrays = f"statistics.{name}"
        yield Check(10, "BatchNorm statistics", labels[name], arrays, "forward", STATISTICS, remarks.statistics(name))
    yield Check(11, "Schedule", "one-cycle rate and momentum", "schedule", "schedule", SCHEDULE, remarks.schedule)
    for name in networks:
        what = f"{task['steps']} steps of SGD, {labels[name]}"
        yield Check(12, "Training", what, f"training.{name}", "training", TRAINING, remarks.training(name))
    yield Check(13, "Prediction files", "", "files", "files", TEXT, remarks.files)
    yield Check(14, "Score", "", "score", "files", SCORE, remarks.score)


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
"""The bounds: 1e-4 of the logits' range forward, 1e-3 for steps and training losses, 1e-9 for rates."""


def evaluate_checks(folder: Path) -> list[CheckResult]:
    """Compare the backends' arrays in the ladder's folder, check by check."""
    task = read_task(folder)
    absent = read_absent(folder / KERAS_ON_TORCH)
    unable = read_absent(folder / KERAS)
    results = []
    for check in list_checks(task):
        bound = check.bound
        expected = arrays_of(folder, TORCH, check)
        reason = absent.get(check.computation, "")
        nothing: Arrays = {}
        actual = nothing if check.computation in unable else arrays_of(folder, KERAS, check)
        other = None
        if not reason:
            third_arrays = arrays_of(folder, KERAS_ON_TORCH, check)
            other = comparing.compare(expected, third_arrays, bound.measure, bound.limit, bound.tighter)
        results.append(
            CheckResult(
                check.number,
                check.title,
                check.what,
                bound.text,
                bound.limit,
                comparing.compare(expected, actual, bound.measure, bound.limit, bound.tighter),
                other,
                reason,
                check.remark(folder, expected),
            )
        )
    return results


def arrays_of(folder: Path, backend: str, check: Check) -> Arrays:
    """Read a backend's arrays of a check, in the form in which they are compared; none where it wrote no file."""
    own = folder / backend
    if check.arrays == "files":
        return submissions.texts_of(own)
    if check.arrays == "score":
        return submissions.scores_of(folder, own, by_itself=backend == TORCH)
    path = own / f"{check.arrays}.npz"
    if not path.exists():
        return {}
    return read_arrays(path)
