"""What learns, by which loss, at which rate: from an experiment to a compiled network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.models.classifier import HEAD_GROUP, depth_groups, leaf_layers
from keras_pneumo.training.losses import ClassificationLoss, SegmentationLoss
from keras_pneumo.training.optimizers import SGD, AdamW
from keras_pneumo.training.schedules import Tabulated, cosine, one_cycle, warm_restarts

MOMENTUM_RANGE = (0.85, 0.95)
"""The one-cycle policy lowers momentum (AdamW's first beta) from the higher to the lower value as the rate rises."""


def set_learning(model: keras.Model, experiment: Experiment, encoder_learns: bool) -> None:
    """Say which layers learn; the network must be compiled after this.

    A BatchNorm layer that does not learn keeps its statistics too, and normalises with them.
    """
    model.get_layer("encoder").trainable = encoder_learns
    if experiment.frozen_batchnorm:
        for layer in leaf_layers(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False


def compile_model(model: keras.Model, experiment: Experiment, optimizer: keras.optimizers.Optimizer) -> None:
    """Compile with the experiment's loss on the logits: of the image, of the mask, or of both."""
    if experiment.task == "classifier":
        model.compile(optimizer, ClassificationLoss(experiment.label_smoothing, experiment.positive_weight))
    elif experiment.image_head:
        model.compile(
            optimizer,
            {"mask": SegmentationLoss(experiment.loss), "image": ClassificationLoss()},
            loss_weights={"mask": 1.0, "image": experiment.image_loss_weight},
        )
    else:
        model.compile(optimizer, SegmentationLoss(experiment.loss))


def image_losses(experiment: Experiment) -> Callable[[Any, Any], Any]:
    """The same losses before any mean: from target and output to one value for each image, shape (batch,)."""
    if experiment.task == "classifier":
        return ClassificationLoss(experiment.label_smoothing, experiment.positive_weight).call
    mask = SegmentationLoss(experiment.loss).call
    if not experiment.image_head:
        return mask
    image = ClassificationLoss().call

    def both(target: Any, output: Any) -> Any:
        return mask(target["mask"], output["mask"]) + experiment.image_loss_weight * image(
            target["image"], output["image"]
        )

    return both


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
