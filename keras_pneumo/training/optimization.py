"""The experiment's optimizer with its schedule and its rates by depth."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.models.classifier import HEAD_GROUP, depth_groups
from keras_pneumo.training.optimizers import SGD, AdamW
from keras_pneumo.training.schedules import Tabulated, cosine, one_cycle, warm_restarts

MOMENTUM_RANGE = (0.85, 0.95)
"""The one-cycle policy lowers momentum (AdamW's first beta) from the higher to the lower value as the rate rises."""


def make_optimizer(
    experiment: Experiment,
    model: keras.Model,
    learning_rate: float,
    total_steps: int,
    epoch_steps: int | None = None,
) -> keras.optimizers.Optimizer:
    """The experiment's optimizer and schedule over ``total_steps`` for the variables that now learn.

    Args:
        experiment: says which.
        model: names the variables, whose rate shrinks with their distance from the head.
        learning_rate: the highest rate of the head.
        total_steps: optimizer steps until the schedule ends.
        epoch_steps: optimizer steps of an epoch, by which warm restarts count; default: ``total_steps``.
    """
    steps = np.arange(total_steps)
    momentum: float | Tabulated = 0.9
    rate: float | Tabulated = learning_rate  # a constant one; a plateau's is lowered between epochs
    if experiment.schedule == "one_cycle":
        cycle = one_cycle(
            steps,
            total_steps,
            learning_rate,
            rise=experiment.warmup_fraction,
            div_factor=experiment.start_divisor,
            final_div_factor=experiment.final_divisor,
            momentum=MOMENTUM_RANGE,
        )
        rate = Tabulated(cycle.rate)
        momentum = Tabulated(cycle.momentum)
    elif experiment.schedule == "cosine":
        rate = Tabulated(cosine(steps, total_steps, learning_rate))
    elif experiment.schedule == "warm_restarts":
        first = experiment.restart_epochs * (epoch_steps or total_steps)
        rate = Tabulated(warm_restarts(steps, first, learning_rate, experiment.restart_factor))
    multipliers = {path: experiment.depth_decay ** (HEAD_GROUP - group) for path, group in depth_groups(model).items()}
    common: dict[str, Any] = {
        "learning_rate": rate,
        "weight_decay": experiment.weight_decay,
        "rate_multipliers": multipliers,
        "global_clipnorm": experiment.clip_norm,
        "use_ema": experiment.ema > 0,
        "ema_momentum": experiment.ema or 0.99,
    }
    if experiment.optimizer == "sgd":
        return SGD(momentum=momentum, **common)
    return AdamW(beta_1=momentum, **common)


def inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer itself, not the loss scale that mixed precision puts around it."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)
