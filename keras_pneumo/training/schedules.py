"""Learning rate and momentum as functions of the step, equal to PyTorch's schedulers.

In: the number of optimizer steps done so far (0 for the first step) and the plan's length. Out: the rate, and for the
one-cycle policy the momentum too. Each formula is written once, in float64 numpy, and equals PyTorch's float64
arithmetic; :class:`Tabulated` takes its values into the graph, so a training uses the values that are plotted. In
float32 the formula would be inexact at its small end: 1 + cos(x) near x = pi has three correct digits.

Sources: the one-cycle policy, arXiv 1803.09820 and 1708.07120, in the form of ``torch.optim.lr_scheduler.OneCycleLR``
(PyTorch 2.14), and that module's CosineAnnealingLR, CosineAnnealingWarmRestarts (arXiv 1608.03983) and
ReduceLROnPlateau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from keras_pneumo.errors import PneumoError


class OneCycle(NamedTuple):
    """Rate and momentum of the one-cycle policy, each a float64 array of the steps' shape."""

    rate: np.ndarray
    momentum: np.ndarray


def one_cycle(
    step: int | np.ndarray,
    total: int,
    peak: float = 1.0,
    *,
    rise: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    momentum: tuple[float, float] = (0.85, 0.95),
    three_phase: bool = False,
) -> OneCycle:
    """The one-cycle policy with cosine annealing: the rate rises to its peak and falls, the momentum the other way.

    Args:
        step: optimizer steps done so far, 0 to ``total - 1``; an array of any shape. Past the end the last value holds.
        total: optimizer steps of the whole training, at least 2.
        peak: highest rate.
        rise: share of the steps in which the rate rises (PyTorch's ``pct_start``), 0 to 1.
        div_factor: the first rate is ``peak / div_factor``.
        final_div_factor: the last rate is ``peak / div_factor / final_div_factor``.
        momentum: lowest (at the peak) and highest momentum.
        three_phase: fall to the first rate as fast as it rose, then fall to the last rate.

    Returns:
        ``(rate, momentum)``; momentum is ``beta_1`` for Adam.

    Raises:
        PneumoError: the plan is shorter than two steps, or the phases do not fit into it.
    """
    first = peak / div_factor
    last = first / final_div_factor
    low, high = momentum
    up = rise * total - 1  # the step on which the peak falls; PyTorch keeps it fractional
    if three_phase:
        ends = [up, 2 * rise * total - 2, total - 1.0]
        rates = [first, peak, first, last]
        momenta = [high, low, high, high]
    else:
        ends = [up, total - 1.0]
        rates = [first, peak, last]
        momenta = [high, low, high]
    if not 0 <= rise <= 1:
        raise PneumoError(f"The rate of a one-cycle policy rises for a share of the steps between 0 and 1, not {rise}.")
    starts = [0.0, *ends[:-1]]
    if total < 2 or any(end <= start for start, end in zip(starts[1:], ends[1:], strict=True)) or ends[0] == 0:
        raise PneumoError(
            f"The rate of a one-cycle policy over {total} steps cannot rise for a share of {rise:g}. Train for more "
            "steps, or change the share."
        )
    steps = np.minimum(np.asarray(step, np.float64), total - 1)
    rate, moment = np.empty(steps.shape), np.empty(steps.shape)
    todo = np.ones(steps.shape, bool)
    for phase, (start, end) in enumerate(zip(starts, ends, strict=True)):
        here = todo & (steps <= end) if phase < len(ends) - 1 else todo
        share = (steps[here] - start) / (end - start)
        rate[here] = _cosine(rates[phase], rates[phase + 1], share)
        moment[here] = _cosine(momenta[phase], momenta[phase + 1], share)
        todo = todo & ~here
    return OneCycle(rate, moment)


def cosine(step: int | np.ndarray, total: int, rate: float, lowest: float = 0.0) -> np.ndarray:
    """Half a cosine from ``rate`` at step 0 to ``lowest`` at step ``total``; past it the rate rises again.

    That is PyTorch's CosineAnnealingLR with ``T_max=total``, whose curve goes on as a full cosine.
    """
    if total < 1:
        raise PneumoError(f"A cosine schedule needs at least one step, not {total}.")
    return _cosine(rate, lowest, np.asarray(step, np.float64) / total)


def warm_restarts(
    step: int | np.ndarray, first_cycle: int, rate: float, factor: int = 1, lowest: float = 0.0
) -> np.ndarray:
    """Cosines from ``rate`` down to ``lowest``, one after the other, each ``factor`` times as long as the one before.

    Args:
        step: steps done so far; an array of any shape.
        first_cycle: steps of the first cycle, at least 1.
        rate: rate at each restart.
        factor: whole number of at least 1.
        lowest: rate at the end of each cycle.
    """
    if first_cycle < 1 or factor < 1 or factor != int(factor):
        raise PneumoError(
            "Warm restarts need a first cycle of at least one step and a whole factor of at least 1, not "
            f"{first_cycle} and {factor}."
        )
    steps = np.asarray(step, np.float64)
    start, length = np.zeros(steps.shape), np.full(steps.shape, float(first_cycle))
    while (over := steps >= start + length).any():
        start = np.where(over, start + length, start)
        length = np.where(over, length * factor, length)
    return _cosine(rate, lowest, (steps - start) / length)


def _cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
    """From ``start`` (share 0) to ``end`` (share 1) along half a cosine; written as PyTorch writes it, to the bit."""
    return end + (start - end) / 2.0 * (np.cos(math.pi * share) + 1)


@keras.saving.register_keras_serializable(package="keras_pneumo")
class Tabulated(keras.optimizers.schedules.LearningRateSchedule):
    """A rate or momentum for each optimizer step, from a table inside the graph; past its end the last value holds."""

    def __init__(self, values: Sequence[float] | np.ndarray) -> None:
        """A value for each step from the first one on."""
        super().__init__()
        self.values = np.asarray(values, np.float32)
        if self.values.ndim != 1 or not len(self.values) or not np.isfinite(self.values).all():
            raise PneumoError("A schedule needs one finite value for each step, and at least one step.")

    def __call__(self, step: Any) -> Any:
        """The value for the step with this number, a float32 scalar tensor."""
        index = keras.ops.minimum(keras.ops.cast(step, "int32"), len(self.values) - 1)
        return keras.ops.take(keras.ops.convert_to_tensor(self.values), index)

    def get_config(self) -> dict[str, Any]:
        """The table."""
        return {"values": self.values.tolist()}


@dataclass
class Plateau:
    """Lower the rate when a figure stops improving: PyTorch's ReduceLROnPlateau, kept on the host.

    ``rate = plateau.step(figure)`` once per epoch. All fields are plain numbers, so ``dataclasses.asdict`` saves the
    state and ``Plateau(**state)`` restores it.
    """

    rate: float
    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    lowest: float = 0.0
    smallest_change: float = 1e-8
    best: float | None = field(default=None)
    bad_epochs: int = 0
    cooling: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of their range."""
        if self.mode not in ("min", "max") or self.threshold_mode not in ("rel", "abs"):
            raise PneumoError(
                "A plateau schedule has mode 'min' or 'max' and threshold_mode 'rel' or 'abs'. Choose one of each."
            )
        if not 0 < self.factor < 1:
            raise PneumoError(f"A plateau schedule's factor lies between 0 and 1; it is {self.factor}.")

    def step(self, figure: float) -> float:
        """Take the figure of an epoch and return the next rate; a figure that is not a number is no improvement."""
        if self._improves(figure):
            self.best, self.bad_epochs = float(figure), 0
        else:
            self.bad_epochs += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.bad_epochs = 0
        if self.bad_epochs > self.patience:
            lower = max(self.rate * self.factor, self.lowest)
            if self.rate - lower > self.smallest_change:
                self.rate = lower
            self.cooling, self.bad_epochs = self.cooldown, 0
        return self.rate

    def _improves(self, figure: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        best = -sign * math.inf if self.best is None else self.best
        # As PyTorch does, relative to the best itself: for a negative best the bar moves the other way.
        bar = best * (1 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
        return figure > bar if sign > 0 else figure < bar
