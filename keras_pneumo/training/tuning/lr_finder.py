"""The learning-rate finder (Smith, arXiv 1506.01186): raise the rate step by step, watch the loss, suggest a rate.

The suggestion is for the highest rate of a schedule. Where the loss clearly falls it lies two thirds down the fall
(fastai's "valley"). Classifiers with random weights, and trained networks, hardly improve in so few steps. Then it is
the rate at which the loss begins to rise, Smith's own upper bound of a cycle (section 3.3: where the accuracy slows,
becomes ragged or falls): whole trainings from random weights, too, raise their loss for an epoch or two at the rate
that trains best. A trained network loses what it knows there, so for it a third of that rate is suggested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import steps_per_epoch
from keras_pneumo.data.batches.pipeline import training_batches
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.models.weights import LoadedParts
from keras_pneumo.training.log import BEST_COLOR, TRAINING_COLOR, VALIDATION_COLOR, save_figure
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.step import training_network
from keras_pneumo.training.trainer import phases_of, plan_of, starting_point

RANGES = {"adamw": (1e-6, 0.1), "sgd": (1e-5, 10.0)}
"""Rates tried, by optimizer: the lowest changes nothing in so few steps, the highest breaks any training."""

CLEAR = 3.0
"""A fall of the loss that is less than so many times its standard error is noise, and shows no rate."""

DIVERGED = 4.0
"""A start ends when the running mean of its losses is this many times its least value."""

SMOOTHING = 0.9
"""Momentum of that running mean, corrected for its start at zero."""

UNDER_EDGE = 1 / 3
"""A trained start gets so many times the rate at which its loss rises. Measured on the demo's classifier, whose loss
rose at 8e-4: the AUROC of 0.88 became 0.90 to 0.93 in two epochs at 3e-4, and 0.49 at 2e-3."""

RISEN = 1.1
"""Past the first rate at which the smoothed loss is so many times its least value before, beyond noise, nothing is
suggested: a network that is broken may have a falling loss again."""


@dataclass(frozen=True)
class RateSearch:
    """What raising the rate did to the loss, over one or more starts."""

    rates: np.ndarray
    """Rates tried, (n,), rising."""
    losses: np.ndarray
    """Of each start the loss at each rate, (starts, n)."""
    smoothed: np.ndarray
    """Their mean, smoothed over neighbouring rates, (n,)."""
    suggested: float
    """Two thirds down the fall of the loss where the fall is :attr:`clear`, else by :attr:`edge`."""
    rule: str
    """How it was read off the losses."""
    edge: float | None
    """The rate at which the smoothed loss has clearly risen; None where it has not."""
    fall: float
    """How far the smoothed loss fell, as a share of its level at the lowest rates."""
    error: float
    """The standard error of :attr:`fall`, from how the losses scatter about the smoothed ones."""

    @property
    def clear(self) -> bool:
        """Whether the fall is more than noise."""
        return self.fall > CLEAR * self.error

    def save(self, folder: Path, synthetic: bool = False) -> None:
        """Write ``learning_rates.csv`` and ``learning_rates.png``, which says where images are ``synthetic``."""
        mean = self.losses.mean(axis=0)
        table = pd.DataFrame({"learning_rate": self.rates, "loss": mean, "smoothed_loss": self.smoothed})
        table.to_csv(folder / "learning_rates.csv", index=False, lineterminator="\n")
        draw_rates(self, folder / "learning_rates.png", synthetic)


def search(
    experiment: Experiment,
    prepared: PreparedFolder,
    weights: Path | None = None,
    steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
    on_loaded: Callable[[LoadedParts], None] = lambda parts: None,
    starts: int = 3,
) -> RateSearch:
    """Find a rate for the experiment as it starts: its first phase's layers learning, from its first weights.

    Args:
        experiment: what is to be trained.
        prepared: images and split.
        weights: as in :func:`keras_pneumo.training.trainer.train`.
        steps: how many rates to try.
        progress: called with images done and images in all.
        on_loaded: called with what a file of weights gave.
        starts: how often to try all of them, each time from the next seed's random weights and order of images.

    Raises:
        PneumoError: as :func:`keras_pneumo.training.trainer.train` and :func:`find_rate`.
    """
    batch = experiment.global_batch_size
    rates = np.geomspace(*RANGES[experiment.optimizer], steps)
    losses = []
    for start in range(starts):
        keras.utils.clear_session()  # of the start before
        own = experiment.replace(seed=experiment.seed + start)
        loaded = on_loaded if start == 0 else lambda parts: None
        model, training, _ = starting_point(own, prepared, weights, on_loaded=loaded)
        set_learning(model, own, phases_of(own)[0].encoder_learns)

        def show(step: int, before: int = start * steps) -> None:
            if progress:
                progress((before + step) * batch, starts * steps * batch)

        losses.append(raise_rate(model, own, training, rates, show))
    return find_rate(rates, losses, trained=weights is not None or experiment.weights != "random")


def raise_rate(
    model: keras.Model,
    experiment: Experiment,
    source: ImageSet,
    rates: np.ndarray,
    progress: Callable[[int], None] = lambda step: None,
) -> np.ndarray:
    """Train ``model`` by the training step, each step with the next rate; the model's weights are spoilt by this.

    It ends earlier where the loss diverges.

    Args:
        model: the network (functional), with the layers learning that are to learn.
        experiment: says batch, augmentation and optimizer.
        source: training images.
        rates: (n,).
        progress: called with the steps done.

    Returns:
        The loss of each step, before the step changed the weights; at most (n,), all finite.
    """
    steps = len(rates)
    optimizer = make_optimizer(experiment.replace(schedule="constant", ema=0), model, float(rates[0]), steps)
    network = training_network(model, image_losses(experiment), optimizer)
    plan = plan_of(experiment, 0, -(-steps // steps_per_epoch(len(source), experiment.global_batch_size)))
    losses: list[float] = []
    mean, least = 0.0, float("inf")
    for (images, target), rate in zip(training_batches(source, plan), rates, strict=False):
        network.optimizer.learning_rate = rate
        loss = float(network.train_on_batch(images, target, return_dict=True)["loss"])
        if not np.isfinite(loss):
            break
        losses.append(loss)
        progress(len(losses))
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        running = mean / (1 - SMOOTHING ** len(losses))
        least = min(least, running)
        if running > DIVERGED * least:
            break
    return np.array(losses)


def find_rate(rates: np.ndarray, losses: Sequence[np.ndarray], trained: bool = False) -> RateSearch:
    """Suggest a rate from the losses of some starts; what all of them reached counts.

    Args:
        rates: (n,) rising.
        losses: of each start, (n,) or less where it diverged.
        trained: whether the first weights are no random ones.

    Raises:
        PneumoError: they diverged before a rate could be suggested.
    """
    number = min(map(len, losses))
    if number < 10:
        raise PneumoError(
            f"The loss stayed finite and within {DIVERGED:g} times its least value at {number} rates only; from "
            "so few no rate can be suggested. Check the images and labels, or try more steps."
        )
    tried, each = rates[:number], np.stack([some[:number] for some in losses])
    mean = each.mean(axis=0)
    width = max(len(rates) / 25, 1.0)
    smoothed = smooth(mean, width)
    # The deviation of a step's loss from its neighbour's, hardly touched by the loss's course or by a few outliers; and
    # that of a mean weighted by a Gaussian of this width.
    noise = float(np.median(np.abs(np.diff(mean)))) / (0.6745 * np.sqrt(2))
    error = noise / np.sqrt(2 * np.sqrt(np.pi) * width)
    least = np.minimum.accumulate(smoothed)
    risen = np.flatnonzero(smoothed - least > np.maximum((RISEN - 1) * least, CLEAR * np.sqrt(2) * error))
    end = max(int(risen[0]) if len(risen) else number, 5)
    level, lowest = float(smoothed[: max(number // 5, 1)].mean()), float(smoothed[:end].min())
    edge = float(tried[risen[0]]) if len(risen) else None
    fall, fall_error = 1 - lowest / level, float(np.sqrt(2) * error / level)
    suggested, rule = suggest(tried[:end], smoothed[:end]), "two thirds down the fall"
    if fall <= CLEAR * fall_error and edge is None:
        rule = "noise"
    elif fall <= CLEAR * fall_error and edge is not None:
        suggested, rule = edge, "where the loss begins to rise"
        if trained:
            suggested, rule = UNDER_EDGE * edge, "a third of where the loss begins to rise"
    return RateSearch(tried, each, smoothed, suggested, rule, edge, fall, fall_error)


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Means of neighbouring values, weighted by a Gaussian of so many places; it does not lag, as a running mean does.

    Args:
        values: (n,).
        width: the Gaussian's standard deviation.
    """
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    return (weights @ values) / weights.sum(axis=1)


def suggest(rates: np.ndarray, smoothed: np.ndarray) -> float:
    """A rate two thirds along the longest stretch of falling loss, on a logarithmic scale.

    This is the "valley" rule, the default of fastai 2's ``lr_find``: robust against a single steep step.

    Args:
        rates: (n,) rising.
        smoothed: (n,) the loss at each.
    """
    longest = np.ones(len(smoothed), int)  # length of the longest falling subsequence that ends here
    came_from = np.full(len(smoothed), -1)
    for end in range(len(smoothed)):
        before = np.flatnonzero(smoothed[:end] > smoothed[end])
        if len(before):
            best = before[np.argmax(longest[before])]
            longest[end], came_from[end] = longest[best] + 1, best
    end = int(np.argmax(longest))
    start = end
    while came_from[start] >= 0:
        start = came_from[start]
    return float(rates[min(start + int((end - start) * 2 / 3), len(rates) - 1)])


def draw_rates(search: RateSearch, path: Path, synthetic: bool = False) -> None:
    """The learning-rate finder's plot: loss against rate, the suggested rate, and whether on phantoms."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    starts, smoothed = len(search.losses), search.smoothed
    each = "each step" if starts == 1 else f"each step, mean of {starts} starts"
    axis.plot(search.rates, search.losses.mean(axis=0), color=TRAINING_COLOR, linewidth=0.7, alpha=0.6, label=each)
    axis.plot(search.rates, smoothed, color=VALIDATION_COLOR, linewidth=2, label="smoothed")
    label = f"suggested: {search.suggested:.1e} ({search.rule})"
    axis.axvline(search.suggested, color=BEST_COLOR, linestyle="--", label=label)
    axis.set_xscale("log")
    near = smoothed[search.rates <= 3 * (search.edge or search.rates[-1])]  # far beyond, broken networks are high
    low, high = float(near.min()), float(near.max())
    axis.set_ylim(low - 0.2 * (high - low + 1e-3), high + 0.5 * (high - low + 1e-3))
    axis.set_xlabel("learning rate of the head")
    axis.set_ylabel("loss")
    axis.set_title("Learning-rate finder" + (" on synthetic phantoms" if synthetic else ""))
    axis.legend(frameon=False, loc="upper left")
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
