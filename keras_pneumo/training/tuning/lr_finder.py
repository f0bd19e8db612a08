"""The learning-rate finder (Smith, arXiv 1506.01186): raise the rate step by step, watch the loss, suggest a rate."""

from __future__ import annotations

from collections.abc import Callable
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

LOW, HIGH = 1e-7, 10.0
"""Range of rates tried, the same as fastai's ``lr_find``."""

CLEAR_FALL = 0.05
"""Below this fall of the loss the curve is mostly noise, and so is the suggestion."""

SMOOTHING = 0.98
"""Momentum of the running mean of the losses, corrected for its start at zero."""

DIVERGED = 4.0
"""The search ends when the smoothed loss is this many times its least value."""


@dataclass(frozen=True)
class RateSearch:
    """Rates tried, in rising order, the loss of each step, its running mean (each (n,)), and the rate suggested."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: float

    @property
    def fall(self) -> float:
        """How far the smoothed loss fell from its level after the unsteady start, as a share of that level."""
        settled = self.smoothed[len(self.smoothed) // 10 :]
        return float(1 - settled.min() / settled[0])

    def save(self, folder: Path, synthetic: bool = False) -> None:
        """Write ``learning_rates.csv`` and ``learning_rates.png``, which says where images are ``synthetic``."""
        table = pd.DataFrame({"learning_rate": self.rates, "loss": self.losses, "smoothed_loss": self.smoothed})
        table.to_csv(folder / "learning_rates.csv", index=False, lineterminator="\n")
        path = folder / "learning_rates.png"
        draw_rates(self.rates, self.losses, self.smoothed, self.suggested, path, synthetic)


def search(
    experiment: Experiment,
    prepared: PreparedFolder,
    weights: Path | None = None,
    steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
    on_loaded: Callable[[LoadedParts], None] = lambda parts: None,
) -> RateSearch:
    """Find a rate for the experiment as it starts: its first phase's layers learning, from its first weights.

    Args:
        experiment: what is to be trained.
        prepared: images and split.
        weights: as in :func:`keras_pneumo.training.trainer.train`.
        steps: how many rates to try.
        progress: called with images done and images in all.
        on_loaded: called with what a safetensors file gave.

    Raises:
        PneumoError: as :func:`keras_pneumo.training.trainer.train` and :func:`find_rate`.
    """
    model, training, _ = starting_point(experiment, prepared, weights, on_loaded=on_loaded)
    set_learning(model, experiment, phases_of(experiment)[0].encoder_learns)
    return find_rate(model, experiment, training, steps, progress)


def find_rate(
    model: keras.Model,
    experiment: Experiment,
    source: ImageSet,
    steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> RateSearch:
    """Train ``model`` by the training step with a rate that rises from :data:`LOW` to :data:`HIGH` by equal factors.

    It ends earlier where the loss diverges. The model's weights are spoilt by this: build another one to train.

    Args:
        model: the network (functional), with the layers learning that are to learn.
        experiment: says batch, augmentation and optimizer.
        source: training images.
        steps: how many rates to try.
        progress: called with images done and images in all.

    Raises:
        PneumoError: the loss left the finite numbers before a rate could be suggested.
    """
    rates = np.geomspace(LOW, HIGH, steps)
    optimizer = make_optimizer(experiment.replace(schedule="constant", ema=0), model, LOW, steps)
    network = training_network(model, image_losses(experiment), optimizer)
    plan = plan_of(experiment, 0, -(-steps // steps_per_epoch(len(source), experiment.global_batch_size)))
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for (images, target), rate in zip(training_batches(source, plan), rates, strict=False):
        network.optimizer.learning_rate = rate
        loss = float(network.train_on_batch(images, target, return_dict=True)["loss"])
        if not np.isfinite(loss):
            break
        losses.append(loss)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING ** len(losses)))
        if progress:
            progress(len(losses) * experiment.global_batch_size, steps * experiment.global_batch_size)
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
    tried = rates[: len(losses)]
    if len(losses) < 10:
        raise PneumoError(
            f"The loss stayed finite and within {DIVERGED:g} times its least value at {len(losses)} rates only; from "
            "so few no rate can be suggested. Check the images and labels, or try more steps."
        )
    usable = slice(len(losses) // 10, -5)  # as fastai: the mean is unsteady at its start, and diverges at its end
    return RateSearch(tried, np.array(losses), np.array(smoothed), suggest(tried[usable], np.array(smoothed)[usable]))


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


def draw_rates(
    rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggested: float,
    path: Path,
    synthetic: bool = False,
) -> None:
    """The learning-rate finder's plot: loss against rate, both (n,), the suggested rate, and whether on phantoms."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, color=TRAINING_COLOR, linewidth=0.7, alpha=0.6, label="each step")
    axis.plot(rates, smoothed, color=VALIDATION_COLOR, linewidth=2, label="smoothed")
    axis.axvline(suggested, color=BEST_COLOR, linestyle="--", label=f"suggested: {suggested:.1e}")
    axis.set_xscale("log")
    low, high = float(smoothed.min()), float(smoothed[0])
    axis.set_ylim(low - 0.2 * (high - low + 1e-3), high + 1.0 * (high - low + 1e-3))
    axis.set_xlabel("learning rate of the head")
    axis.set_ylabel("cross-entropy")
    axis.set_title("Learning-rate finder" + (" on synthetic phantoms" if synthetic else ""))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
