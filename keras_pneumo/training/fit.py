"""From an experiment and a prepared folder to a run folder with the best weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_pneumo.config import Experiment
from keras_pneumo.data.files import sha256_file, write_json
from keras_pneumo.data.pipeline import Source, TrainingPlan, steps_per_epoch, training_batches
from keras_pneumo.data.prepared import Prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.prediction.run import FORMAT, Run, hardware, versions
from keras_pneumo.training.averaging import WeightAverage, estimate_statistics
from keras_pneumo.training.callbacks import EpochRow, Log, Steps, TrainProgress, Validation
from keras_pneumo.training.curves import draw_curves
from keras_pneumo.training.optimization import compile_model, make_optimizer, set_learning
from keras_pneumo.training.schedules import Plateau
from keras_pneumo.training.slices import sliced
from keras_pneumo.training.start import start
from keras_pneumo.training.validation import Judge, make_judge


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same weights learning and one schedule of its own."""

    name: str
    first_epoch: int
    epochs: int
    encoder_learns: bool
    learning_rate: float


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    folder: Path
    best: EpochRow
    seconds: float
    """Wall time of the training alone: no preparing, no prediction."""


def phases_of(experiment: Experiment) -> list[Phase]:
    """The experiment's phases: the encoder frozen first, then thawed; each has its own schedule."""
    phases = []
    if experiment.frozen_epochs:
        rate = experiment.frozen_learning_rate or experiment.learning_rate
        phases.append(Phase("frozen", 0, experiment.frozen_epochs, False, rate))
    phases.append(Phase("whole", experiment.frozen_epochs, experiment.epochs, True, experiment.learning_rate))
    return phases


def train(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    weights: Path | None = None,
    command: str = "",
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    progress: TrainProgress | None = None,
    start_from: Run | None = None,
) -> Outcome:
    """Train the experiment's network on the prepared folder's training images.

    Args:
        experiment: what to train, and how.
        prepared: images, labels and split; checked against the manifest before the first step.
        folder: the run folder, which exists and is empty.
        weights: file or folder with ImageNet weights, where they are not to be found or downloaded elsewhere.
        command: how the user started this, for the record.
        on_epoch: called with each row of the log.
        progress: called after each step.
        start_from: a finished run of the same network, of any image size, whose best weights are the start, heads and
            all; they are validated before the first step, as epoch 0 of the log.

    Returns:
        The best epoch and the time taken; the weights, log and curves are in ``folder``.

    Raises:
        PneumoError: the split shares a patient, a subset has one class, an image is damaged, the size is not prepared,
            weights cannot be had, ``start_from`` is of another network or split, or the loss is no longer finite.
    """
    model, training, validation = start(experiment, prepared, weights, start_from)
    record: dict[str, Any] = {
        "format": FORMAT,
        "experiment": experiment.model_dump(mode="json"),
        "split_sha256": prepared.manifest["split_sha256"],
        "prepared_sha256": prepared.manifest["prepared_sha256"],
        "patients": prepared.manifest["patients"],
        "patients_note": prepared.manifest.get("patients_note", ""),
        "training_images": len(training),
        "validation_images": len(validation),
        "parameters": model.count_params(),
        "versions": versions(),
        "hardware": hardware(),
        "precision": keras.config.dtype_policy().name,
        "command": command,
    }
    if start_from is not None:
        origin = start_from.experiment
        record["start_from"] = {
            "name": origin.name,
            "image_size": origin.image_size,
            "weights_sha256": sha256_file(start_from.weights),
            "pretraining": start_from.pretraining,
        }
    write_record(folder, record)

    log = Log(folder, experiment.top_k)
    judge = make_judge(experiment, validation, prepared)
    started = time.monotonic()
    if start_from is not None:
        on_epoch(log.judged(model, judge(model), 0, "start", float("nan"), started, 0.0))
    average = WeightAverage(experiment.total_epochs - experiment.swa_epochs) if experiment.swa_epochs else None
    for phase in phases_of(experiment):
        _run_phase(experiment, phase, model, training, judge, log, on_epoch, progress, average)
    if average is not None:
        on_epoch(_averaged(experiment, model, training, judge, log, average))
    seconds = time.monotonic() - started
    draw_curves(log.frame(), folder / "curves.png")
    if log.best is None:
        raise PneumoError("No epoch gave a finite validation score, so there are no weights to keep. Lower the rate.")
    write_record(folder, record | {"training_seconds": round(seconds, 1), "best_epoch": log.best.epoch})
    return Outcome(folder, log.best, seconds)


def _run_phase(
    experiment: Experiment,
    phase: Phase,
    model: keras.Model,
    training: Source,
    judge: Judge,
    log: Log,
    on_epoch: Callable[[EpochRow], None],
    progress: TrainProgress | None,
    average: WeightAverage | None,
) -> None:
    steps = steps_per_epoch(len(training), experiment.global_batch_size)
    plan = plan_of(experiment, phase.first_epoch, phase.epochs)
    set_learning(model, experiment, phase.encoder_learns)
    network = sliced(model, experiment.accumulation)
    optimizer = make_optimizer(experiment, network, phase.learning_rate, phase.epochs * steps, steps)
    compile_model(network, experiment, optimizer)
    plateau = None
    if experiment.schedule == "plateau":
        factor, patience = experiment.plateau_factor, experiment.plateau_patience
        plateau = Plateau(phase.learning_rate, "max", factor=factor, patience=patience)
    images, total = len(training), experiment.total_epochs * len(training)
    done = phase.first_epoch * images
    validation = Validation(log, judge, phase.name, images, on_epoch, plateau, experiment.patience)
    network.fit(
        training_batches(training, plan),
        initial_epoch=phase.first_epoch,
        epochs=phase.first_epoch + phase.epochs,
        steps_per_epoch=steps,
        callbacks=[
            Steps(plan, training.labels, training.image_ids, done, images / steps, total, progress, log.folder),
            validation,
            *([average] if average else []),
        ],
        shuffle=False,  # the plan is the order
        verbose=0,
    )


def plan_of(experiment: Experiment, first_epoch: int, epochs: int) -> TrainingPlan:
    """What is drawn and how it is augmented in some epochs of an experiment."""
    return TrainingPlan(
        seed=experiment.seed,
        batch_size=experiment.global_batch_size,
        first_epoch=first_epoch,
        last_epoch=first_epoch + epochs,
        positive_rate=experiment.positive_rate,
        augmentation=experiment.augmentation,
        with_masks=experiment.task == "segmenter",
        crop=experiment.crop,
        with_labels=experiment.image_head,
    )


def _averaged(
    experiment: Experiment, model: keras.Model, training: Source, judge: Judge, log: Log, average: WeightAverage
) -> EpochRow:
    """The averaged weights, with statistics from the draws of the last epoch, judged as a further epoch."""
    started = time.monotonic()
    average.assign(model)
    last = plan_of(experiment, experiment.total_epochs - 1, 1)
    estimate_statistics(model, (images for images, _ in training_batches(training, last)))
    return log.judged(model, judge(model), experiment.total_epochs + 1, "average", float("nan"), started, 0.0)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``experiment.json``."""
    write_json(folder / "experiment.json", record)
