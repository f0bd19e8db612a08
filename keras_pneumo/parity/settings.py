"""The checks of a recipe's settings: trainings of a small network, each with one setting that differs.

In: recipes, start weights and images that both teams read. Out: what learns and how fast, the rates of every step, and
after each epoch the weights and the loss. The epochs are those of :class:`keras_pneumo.training.trainer.Trainer`, which
``keras-pneumo train`` runs: its phases, step, callbacks, averages and its end. Only its set-up is replaced, since these
checks have no prepared folder, and its validation, which keeps the weights that would be scored and gives scores that
were written down beforehand. PyTorch's side is the ``fit`` of the PyTorch team.

The network has some hundred weights and a smooth loss, so that rounding hardly grows and a setting that is carried out
in another way shows at once.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np

from keras_pneumo.config import CLASSIFIER, NO_AUGMENTATION, Experiment
from keras_pneumo.models.batch_norm import batch_norm
from keras_pneumo.models.preprocessing import Normalise
from keras_pneumo.models.resnet import convolution
from keras_pneumo.models.weights import StateDict, from_torch, named_variables, to_torch
from keras_pneumo.parity.backends import Backend
from keras_pneumo.parity.drawn import IMAGES, SIZE, image_set, recipe_of, write_recipe
from keras_pneumo.parity.networks import is_trained, to_numpy
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.schedules import Plateau

if TYPE_CHECKING:
    from keras_pneumo.training.trainer import Trainer

PLAIN = CLASSIFIER.replace(
    name="plain", encoder="resnet18", weights="random", image_size=SIZE, frozen_epochs=0, epochs=2, global_batch_size=8,
    schedule="constant", learning_rate=5e-3, weight_decay=0.1, augmentation=NO_AUGMENTATION, positive_rate=(), seed=5,
)  # fmt: skip

SETTINGS: dict[str, tuple[str, Experiment]] = {
    experiment.name: (label, experiment)
    for label, experiment in {
        "AdamW at a constant rate": PLAIN,
        "SGD with weight decay under a cosine": PLAIN.replace(
            name="sgd", optimizer="sgd", schedule="cosine", learning_rate=0.05
        ),
        "one-cycle rate and momentum": PLAIN.replace(
            name="one_cycle", schedule="one_cycle", warmup_fraction=0.4, start_divisor=10, final_divisor=100
        ),
        "label smoothing and a weight for positives": PLAIN.replace(
            name="weighted", label_smoothing=0.1, positive_weight=3.0
        ),
        "frozen encoder, then the whole network": PLAIN.replace(
            name="frozen_encoder", frozen_epochs=1, epochs=1, frozen_learning_rate=1e-2
        ),
        "frozen BatchNorm": PLAIN.replace(name="frozen_batchnorm", frozen_batchnorm=True),
        "rates that fall with depth": PLAIN.replace(
            name="depth_decay", depth_decay=0.5, optimizer="sgd", learning_rate=0.05
        ),
        "gradient accumulation": PLAIN.replace(
            name="accumulation", accumulation=3, optimizer="sgd", learning_rate=0.05
        ),
        "clipping by the global norm": PLAIN.replace(
            name="clipping", clip_norm=0.05, optimizer="sgd", learning_rate=0.05
        ),
        "exponential average": PLAIN.replace(name="ema", ema=0.7),
        "average of the last epochs": PLAIN.replace(name="swa", swa_epochs=2, epochs=3),
    }.items()
}  # fmt: skip
"""What differs from the first recipe, in words, and the recipe, by its name."""

SCHEDULES = {
    "one_cycle": PLAIN.replace(
        name="schedule_one_cycle", schedule="one_cycle", warmup_fraction=0.3, start_divisor=20, final_divisor=500
    ),
    "cosine": PLAIN.replace(name="schedule_cosine", schedule="cosine"),
    "warm_restarts": PLAIN.replace(
        name="schedule_warm_restarts", schedule="warm_restarts", restart_epochs=1, restart_factor=3
    ),
    "constant": PLAIN.replace(name="schedule_constant"),
}
"""Recipes by whose schedule rates are compared, step by step."""

SCHEDULE_STEPS, SCHEDULE_EPOCH = 35, 5
"""Steps of the phase and of an epoch."""

PLATEAUS: dict[str, dict[str, Any]] = {
    "a score that rises": {"mode": "max", "factor": 0.5, "patience": 1, "figures": [
        0.5, 0.50006, 0.50006, 0.5001, 0.50012, 0.50013, 0.6, 0.5, 0.7, 0.4, 0.3, 0.2, 0.1, math.nan, 0.9, 0.9]},
    "a loss that falls": {"mode": "min", "factor": 0.1, "patience": 2, "figures": [
        2.0, 1.9999, 1.9997, 1.9997, 1.9997, 1.9997, 1.9, 1.8999, 1.8999, 1.8999, 1.8, 1.8, 1.8, 1.8, 1.8, 1.8]},
}  # fmt: skip
"""Figures whose changes lie on both sides of the relative threshold."""

LEARNING = {
    "plain": "all",
    "frozen_encoder": "with the encoder frozen",
    "frozen_batchnorm": "with BatchNorm frozen",
    "depth_decay": "rates by depth",
}
"""The recipes whose learning tensors are listed."""


def write_settings_inputs(folder: Path) -> StateDict:
    """Write the recipes; return the start weights of the small network."""
    for name, (_, experiment) in SETTINGS.items():
        write_recipe(folder, name, experiment)
    for experiment in SCHEDULES.values():
        write_recipe(folder, experiment.name, experiment)
    keras.utils.set_random_seed(23)
    return to_torch(small_network())


def small_network() -> keras.Model:
    """Build a classifier with the names of ResNet's parts: the stem, a convolution each of stage 1 and 4, the head."""
    inner = keras.Input((None, None, 3))
    x = inner
    for name, norm, filters, size, stride in (
        ("conv1", "bn1", 4, 7, 4),
        ("layer1-0-conv1", "layer1-0-bn1", 6, 3, 2),
        ("layer4-0-conv1", "layer4-0-bn1", 6, 3, 2),
    ):
        x = batch_norm(convolution(x, filters, size, stride=stride, name=name), norm)
        x = keras.layers.ReLU()(x)
    image = keras.Input((None, None, 1))
    features = keras.Model(inner, x, name="encoder")(Normalise(name="normalise")(image))
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(image, keras.layers.Dense(1, name="fc")(pooled), name="small")


def learning(backend: Backend) -> None:
    """List which tensors learn in a recipe's first phase, at which rate, and with which decay; 0 and 0 for others."""
    for name in LEARNING:
        experiment = recipe_of(backend.folder, name)
        model = small_network()
        set_learning(model, experiment, encoder_learns=not experiment.frozen_epochs)
        rate = experiment.frozen_learning_rate or experiment.learning_rate
        optimizer = make_optimizer(experiment, model, rate, 6, 3)
        optimizer.build(model.trainable_variables)
        names = {id(variable): key for key, variable, _ in named_variables(model)}
        arrays = {key: np.zeros(2) for key in to_torch(model) if is_trained(key)}
        for variable, multiple, decay in zip(
            model.trainable_variables, optimizer.multiples, optimizer.decays, strict=True
        ):
            arrays[names[id(variable)]] = np.array([float(to_numpy(optimizer.learning_rate)) * multiple, decay])
        backend.write(f"learning.{name}", arrays)


def recipe_schedules(backend: Backend) -> None:
    """Compute the rate and the momentum of each step, and the rates that a plateau gives after each epoch."""
    model = small_network()
    arrays = {}
    for label in SCHEDULES:
        experiment = recipe_of(backend.folder, SCHEDULES[label].name)
        optimizer = make_optimizer(experiment, model, experiment.learning_rate, SCHEDULE_STEPS, SCHEDULE_EPOCH)
        rates = []
        for step in range(SCHEDULE_STEPS):
            optimizer.iterations.assign(step)
            rates.append(float(to_numpy(optimizer.learning_rate)))
        momentum = cast("Any", optimizer).beta_1
        momenta = [momentum(step) if callable(momentum) else momentum for step in range(SCHEDULE_STEPS)]
        arrays[f"{label}: rate"] = np.array(rates)
        arrays[f"{label}: momentum"] = np.array([float(to_numpy(each)) for each in momenta])
    for label, plan in backend.task["plateaus"].items():
        settings = {key: plan[key] for key in ("mode", "factor", "patience")}
        plateau = Plateau(1.0, **settings)
        figures = [math.nan if figure is None else figure for figure in plan["figures"]]
        arrays[f"plateau of {label}"] = np.array([plateau.step(figure) for figure in figures])
    backend.write("recipe_schedules", arrays)


def trainings(backend: Backend) -> None:
    """Train by each recipe: after each epoch, how far each tensor is from its start, and the epoch's loss."""
    losses: dict[str, np.ndarray] = {}
    for name in SETTINGS:
        trainer, snapshots = given_training(backend, name, itertools.count())
        trainer.run_phases(None)
        trainer.validate_average()
        trainer.checkpoint_writer.wait()
        start = backend.state("small", "start")
        backend.write(
            f"recipe.{name}",
            {
                f"epoch {row.epoch}: {key}": array - start[key]
                for row, state in zip(trainer.log.rows, snapshots, strict=True)
                for key, array in state.items()
                if "num_batches" not in key
            },
        )
        if name in EPOCH_LOSSES:
            losses |= {
                f"{name}, epoch {row.epoch}": np.array([row.loss])
                for row in trainer.log.rows
                if math.isfinite(row.loss)
            }
    backend.write("epoch_losses", losses)


EPOCH_LOSSES = ("plain", "sgd", "one_cycle")
"""Recipes whose epochs' losses are compared, over batches of 8, 7 and 7 images."""


def given_training(
    backend: Backend, name: str, scores: Iterable[float], losses: Iterable[float] = itertools.repeat(1.0)
) -> tuple[Trainer, list[StateDict]]:
    """Make a trainer at the start of its first phase, with a small network, and validation results from a list.

    Args:
        backend: whose folder holds recipe, start weights and images.
        name: the recipe's.
        scores: of each epoch on validation.
        losses: of each epoch on validation.

    Returns:
        The trainer, and the list to which it adds the weights of each epoch that it validates.
    """

    from keras_pneumo.training.callbacks import CheckpointInterval
    from keras_pneumo.training.log import Events, Log
    from keras_pneumo.training.trainer import Trainer, TrainingOptions, plan_of
    from keras_pneumo.training.validation import ValidationResult

    experiment = recipe_of(backend.folder, name)
    folder = backend.own / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = TrainingOptions(checkpoint_every=CheckpointInterval(None, 10**9))
    trainer = Trainer(experiment, cast("Any", None), folder, options)
    trainer.model = small_network()
    from_torch(trainer.model, backend.state("small", "start"))
    trainer.training = trainer.validation = image_set(backend.folder, name)
    trainer.identity, trainer.progress = {}, None
    trainer.began = time.monotonic()
    trainer.log, trainer.events = Log(folder, experiment.top_k), Events(None)
    trainer.sizes = [len(rows) for rows in plan_of(experiment, 0, 1).rows(IMAGES)]
    trainer.micro_batches = min(experiment.accumulation, trainer.most_micro_batches)
    trainer.new_average()
    snapshots: list[StateDict] = []
    results = zip(losses, scores, strict=False)

    def validator(_: Any) -> ValidationResult:
        snapshots.append(to_torch(trainer.model))
        loss, score = next(results)
        return ValidationResult(float(loss), float(score))

    trainer.validator = validator
    return trainer, snapshots
