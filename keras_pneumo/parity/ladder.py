"""The ladder: its list of checks from pixels to scores, the bound of each, and their results.

In: the ladder's folder after every backend has run. Out: a :class:`CheckResult` for each check: how far our code on
TensorFlow and on Keras's torch backend is from PyTorch. Later checks do not depend on earlier ones: each starts from
the same given inputs, so the first broken check shows where the two frameworks differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import real_steps, remarks, submissions
from keras_pneumo.parity.backends import (
    KERAS,
    KERAS_ON_JAX,
    KERAS_ON_TORCH,
    OTHERS,
    TORCH,
    read_absent,
    read_arrays,
    read_task,
)
from keras_pneumo.parity.choices import CHOICES
from keras_pneumo.parity.comparison import Difference, Measure
from keras_pneumo.parity.settings import LEARNING, SETTINGS

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
    keras_on_jax: Difference | None = None
    absent_on_jax: str = ""
    """Why Keras's JAX backend has no answer, where it was run at all."""

    @property
    def differences(self) -> list[tuple[str, Difference]]:
        """Each backend that has an answer, as a person calls it, and how far it is from PyTorch."""
        answers = [
            ("our code on TensorFlow", self.keras),
            ("our code on Keras's torch backend", self.keras_on_torch),
            ("our code on Keras's JAX backend", self.keras_on_jax),
        ]
        return [(name, difference) for name, difference in answers if difference is not None]

    @property
    def passed(self) -> bool:
        """Whether all backends that have an answer are within the bound."""
        return all(difference.within for _, difference in self.differences)

    @property
    def first(self) -> str:
        """What is the first beyond the bound, of the first backend that has anything there; blank where all holds."""
        return next((difference.first for _, difference in self.differences if difference.first), "")

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
        return WHAT_IT_SHOWS

    @property
    def verdict(self) -> str:
        """Headline and detail."""
        return f"{self.headline} {self.detail}"


WHAT_IT_SHOWS = (
    "From equal inputs each of these steps gives equal results in both. In a whole training rounding grows, so two "
    "single trainings may still differ by chance: compare several seeds of each before a difference in score is put "
    "down to a team."
)


def locate(result: CheckResult) -> str:
    """Return which backend is beyond the bound, at which layer first, and by how much."""
    parts = [
        f"{name} first exceeds the bound ({result.bound}) at {difference.first}; the largest difference is "
        f"{shown(difference.measured)} at {difference.worst}"
        for name, difference in result.differences
        if not difference.within
    ]
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def shown(value: float) -> str:
    """Format a difference for a person."""
    return "0" if value == 0 else "infinite" if not np.isfinite(value) else f"{value:.1e}"


@dataclass(frozen=True)
class _Group:
    """The checks of one title: their bound, and the parts that they have."""

    title: str
    bound: Bound
    parts: Sequence[tuple[str, str, str, Callable[[Path, Arrays], str]]]
    """Of each part: what is compared, the name of its npz file, its computation, its remark."""


def list_checks(task: Mapping[str, Any]) -> Iterator[Check]:
    """Yield every check in order: what causes a difference comes before what it leads to."""
    for number, group in enumerate(_groups(task), start=1):
        for what, arrays, computation, remark in group.parts:
            yield Check(number, group.title, what, arrays, computation, group.bound, remark)


def _groups(task: Mapping[str, Any]) -> Iterator[_Group]:
    """Yield the checks by title."""
    names = list(task["networks"])
    labels = {"classifier": f"{task['encoder']} classifier", "unet": f"U-Net on {task['encoder']}"}
    recipes = {name: name.replace("_", " ") for name in task["drawn"]}

    def alone(name: str, computation: str, remark: Callable[[Path, Arrays], str], what: str = "") -> list[Any]:
        return [(what, name, computation, remark)]

    def by_recipe(name: str, remark: Callable[[Path, Arrays], str]) -> list[Any]:
        return [(recipes[recipe], f"{name}.{recipe}", name, remark) for recipe in recipes]

    # What the networks get.
    yield _Group("DICOM pixels", EXACT, alone("pixels", "pixels", remarks.pixels, "and a JPEG file"))
    resized = [("images", "resized", "pixels", remarks.resized), ("masks", "masks", "masks", remarks.masks)]
    yield _Group("Resizing", EXACT, resized)
    yield _Group("Normalisation", NORMALISED, alone("normalised", "normalised", remarks.normalised))
    yield _Group("Order of images", EXACT, by_recipe("order", remarks.order))
    yield _Group("Drawn parameters", DRAWN, by_recipe("drawn", remarks.drawn))
    yield _Group("Augmentation", AUGMENTED, alone("augmented", "augmented", remarks.augmented, "at given parameters"))
    yield _Group("Batches", BATCHES, by_recipe("batches", remarks.batches))
    # The networks.
    initial = [(labels[name], f"initial.{name}", "initial", remarks.initial) for name in names]
    yield _Group("Initial weights", SPREAD, initial)
    forward = [
        (f"{labels[name]}, {mode} mode", f"forward.{name}.{mode}", "forward", remarks.forward)
        for name in names
        for mode in ("inference", "training")
    ]
    yield _Group("Forward", FORWARD, forward)
    statistics = [(labels[name], f"statistics.{name}", "forward", remarks.statistics(name)) for name in names]
    yield _Group("BatchNorm statistics", STATISTICS, statistics)
    if task["mixed"]:
        mixed = [(labels[name], f"mixed.{name}", "mixed", remarks.mixed) for name in names]
        yield _Group("Mixed precision", MIXED, mixed)
    # How they learn.
    yield _Group("Loss", LOSS, alone("loss", "loss", remarks.loss, "masks' and images'"))
    gradients = [(labels[name], f"gradients.{name}.float64", "gradients", remarks.gradients(name)) for name in names]
    yield _Group("Gradients", GRADIENTS, gradients)
    learning = [(what, f"learning.{name}", "learning", remarks.learning) for name, what in LEARNING.items()]
    yield _Group("What learns", RATES, learning)
    step = [
        (f"{label}, {labels[name]}", f"step.{name}.{kind}", "step", remarks.step(name, kind))
        for name in names
        for kind, label in (("sgd", "SGD with momentum"), ("adamw", "AdamW"))
    ]
    yield _Group("Optimizer step", STEP, step)
    yield _Group("Schedule", SCHEDULE, alone("schedule", "schedule", remarks.schedule, "one-cycle rate and momentum"))
    schedules = alone("recipe_schedules", "recipe_schedules", remarks.recipe_schedules)
    yield _Group("Schedules of recipes", RATES, schedules)
    trainings = [(what, f"recipe.{name}", "trainings", remarks.setting(name)) for name, (what, _) in SETTINGS.items()]
    yield _Group("Settings of recipes", STEP, trainings)
    yield _Group("Loss of an epoch", EPOCHS, alone("epoch_losses", "trainings", remarks.epoch_losses))
    training = [
        (f"{task['steps']} steps of SGD, {labels[name]}", f"training.{name}", "training", remarks.training(name))
        for name in names
    ]
    yield _Group("Training", TRAINING, training)
    if task["real_steps"]:
        real = alone(real_steps.LOSSES, "real_steps", remarks.real_steps, f"the recipe of {labels['classifier']}s")
        yield _Group("Real radiographs", BAND, real)
    # What is kept, and how it predicts.
    yield _Group("Validation scores", SCORE, alone("validation_scores", "validation_scores", remarks.validation_scores))
    kept = [(what, f"choices.{name}", "choices", remarks.choices) for name, (what, _, _) in CHOICES.items()]
    yield _Group("Choice of epochs", RATES, kept)
    averages = [(labels[name], f"averages.{name}", "averages", remarks.averages) for name in names]
    yield _Group("Averaged predictions", AVERAGES, averages)
    yield _Group("Rule of masks", TEXT, alone("mask_rule", "mask_rule", remarks.mask_rule))
    yield _Group("Prediction files", TEXT, alone("files", "files", remarks.files))
    yield _Group("Score", SCORE, alone("score", "files", remarks.score))


NORMALISED = Bound(comparing.of_range, 2e-7, "2e-7 of the range")
DRAWN = Bound(comparing.of_range, 1e-6, "1e-6 of the range")
AUGMENTED = Bound(comparing.of_range, 1e-3, "1e-3 of the range")
BATCHES = Bound(comparing.of_mean, 1e-4, "1e-4 of the range, mean")
SPREAD = Bound(comparing.of_spread, 5, "5 standard errors")
LOGITS = ("fc", "segmentation_head.0", "classification_head.3")
FORWARD = Bound(comparing.of_range, 5e-4, "logits 1e-4 of the range, layers 5e-4", dict.fromkeys(LOGITS, 1e-4))
MIXED = Bound(comparing.of_range, 2e-2, "2e-2 of the range")
LOSS = Bound(comparing.of_range, 1e-6, "1e-6 of the range")
GRADIENTS = Bound(comparing.of_norm, 1e-8, "1e-8 of the norm")
RATES = Bound(comparing.of_value, 1e-6, "1e-6 of the value")
STEP = Bound(comparing.of_norm, 1e-3, "1e-3 of the step")
STATISTICS = Bound(comparing.of_range, 1e-4, "1e-4 of the range")
SCHEDULE = Bound(comparing.of_value, 1e-9, "1e-9 of the value")
EPOCHS = Bound(comparing.of_value, 1e-5, "1e-5 of the loss")
TRAINING = Bound(comparing.of_value, 1e-3, "1e-3 of the loss")
BAND = Bound(comparing.of_multiple, 2, "twice PyTorch's own distance")
AVERAGES = Bound(comparing.of_mean, 1e-4, "1e-4 of the range, mean")
SCORE = Bound(comparing.of_value, 1e-12, "1e-12 of the score")
"""The bounds: 1e-4 of the logits' range forward, 1e-3 for steps and training losses, 1e-9 for rates."""


def evaluate_checks(folder: Path) -> list[CheckResult]:
    """Compare the backends' arrays in the ladder's folder, check by check."""
    task = read_task(folder)
    others = {name: read_absent(folder / name) for name in OTHERS if (folder / name).is_dir()}
    unable = read_absent(folder / KERAS)
    results = []
    for check in list_checks(task):
        bound = check.bound
        expected = arrays_of(folder, TORCH, check)
        nothing: Arrays = {}
        actual = nothing if check.computation in unable else arrays_of(folder, KERAS, check)
        further: dict[str, Difference | None] = dict.fromkeys(OTHERS)
        for name, absent in others.items():
            if check.computation not in absent:
                arrays = arrays_of(folder, name, check)
                further[name] = comparing.compare(expected, arrays, bound.measure, bound.limit, bound.tighter)
        results.append(
            CheckResult(
                check.number,
                check.title,
                check.what,
                bound.text,
                bound.limit,
                comparing.compare(expected, actual, bound.measure, bound.limit, bound.tighter),
                further[KERAS_ON_TORCH],
                others.get(KERAS_ON_TORCH, {}).get(check.computation, ""),
                check.remark(folder, expected),
                further[KERAS_ON_JAX],
                others.get(KERAS_ON_JAX, {}).get(check.computation, ""),
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
    if check.arrays == real_steps.LOSSES:
        return real_steps.distances(folder, backend)
    path = own / f"{check.arrays}.npz"
    if not path.exists():
        return {}
    return read_arrays(path)
