"""From an experiment and a prepared folder to a run folder with the best weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.pipeline import training_batches
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.inference.run import FORMAT, RunFolder, hardware, versions
from keras_pneumo.storage.files import folder_lock, remove_temporary, write_json
from keras_pneumo.training import checkpoints
from keras_pneumo.training.averaging import estimate_statistics
from keras_pneumo.training.callbacks import TrainProgress
from keras_pneumo.training.distributed.agreement import check_agreement
from keras_pneumo.training.distributed.strategy import Engine, lost_workers
from keras_pneumo.training.interrupt import Interruption
from keras_pneumo.training.log import EpochRow, Log, Pace, draw_curves
from keras_pneumo.training.loop import judged_network, learn
from keras_pneumo.training.optimizers import set_learning
from keras_pneumo.training.origin import origin_of
from keras_pneumo.training.start import start
from keras_pneumo.training.state import check_identity, identity
from keras_pneumo.training.validation import make_validator
from keras_pneumo.training.work import Phase, Trainer, TrainingOptions, phases_of, plan_of

__all__ = ["Outcome", "Phase", "TrainingOptions", "phases_of", "plan_of", "train", "write_record"]


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    folder: Path
    best: EpochRow
    seconds: float
    """Wall time of the training alone, interruptions left out: no preparing, no prediction."""


def train(
    experiment: Experiment,
    prepared: PreparedFolder,
    folder: Path,
    weights: Path | None = None,
    command: str = "",
    on_epoch: Callable[[EpochRow], None] = lambda row: None,
    progress: TrainProgress | None = None,
    start_from: RunFolder | None = None,
    manner: TrainingOptions | None = None,
) -> Outcome:
    """Train the experiment's network on the prepared folder's training images.

    Args:
        experiment: what to train, and how.
        prepared: images, labels and split; checked against the manifest before the first step.
        folder: the run folder, which exists and is empty, or holds an unfinished training to resume. Several workers
            share it.
        weights: file or folder with ImageNet weights, where they are not to be found or downloaded elsewhere.
        command: how the user started this, for the record.
        on_epoch: called with each row of the log.
        progress: called after each step.
        start_from: a finished run of the same network, of any image size, whose best weights are the start, heads and
            all; they are validated before the first step, as epoch 0 of the log.
        manner: devices, checkpoints, and what to do about faults.

    Returns:
        The best epoch and the time taken; the weights, log and curves are in ``folder``.

    Raises:
        PneumoError: the split shares a patient, a subset has one class, an image is damaged, the size is not prepared,
            weights cannot be had, ``start_from`` is of another network or split, the checkpoints are of another
            training, or it was begun from other weights than ``start_from``, another run is in the folder, or the loss
            is no longer finite.
        Stopped: a signal came, or another worker is gone; the same call with ``resume`` goes on. After a
            signal that comes after the last step the training is done.
    """
    manner = manner or TrainingOptions()
    engine = manner.engine
    interruption = Interruption(manner.tell)
    with (
        folder_lock(folder) if engine.chief else contextlib.nullcontext(),
        interruption.listening(),
        lost_workers(engine),
    ):
        if engine.chief:
            remove_temporary(folder)
        model, training, validation = start(experiment, prepared, weights, start_from, engine)
        known = identity(experiment, prepared, model)
        check_agreement(engine, known, folder)
        found = checkpoints.latest(folder, manner.tell) if manner.resume else None
        if found is not None:
            check_identity(found, known)
        record = _record(experiment, prepared, model, training, validation, command, engine)
        if origin := origin_of(start_from, folder, found, manner.resume):
            record["start_from"] = origin
        if engine.chief:  # before any other file, by which a folder of a killed start is known for this training's
            write_record(folder, record)
        log = Log(folder, experiment.top_k, engine.chief)
        work = Trainer(experiment, manner, folder, model, training, log, known, interruption, on_epoch, progress)
        work.judge = make_validator(experiment, validation, prepared)
        with contextlib.closing(work.events):
            learn(work, found, start_from is not None)
            if work.average is not None and experiment.swa_epochs:
                work.tell_epoch(_averaged(work))
        seconds = work.elapsed()
        if engine.chief:
            draw_curves(log.frame(), folder / "curves.png")
        if log.best is None:
            raise PneumoError(
                "No epoch gave a finite validation score, so there are no weights to keep. Lower the rate."
            )
        if engine.chief:
            ended = {"training_seconds": round(seconds, 1), "best_epoch": log.best.epoch, "slices": work.slices}
            write_record(folder, record | ended)
            checkpoints.keep(folder, 1)
        engine.agree(0)  # no worker goes on before the chief has written all this
        outcome = Outcome(folder, log.best, seconds)
    _stop_if_asked(interruption, engine)  # a signal may have been promised an end until here
    return outcome


def _stop_if_asked(interruption: Interruption, engine: Engine) -> None:
    """End after the training, on all workers, where a signal came to any after its last step."""
    with lost_workers(engine):
        if engine.largest(int(interruption.wanted)):
            raise Stopped(
                f"{interruption.name} came after the last step; the training is done. Run the same command again to "
                "predict and report.",
                interruption.exit_code,
            )


def _averaged(work: Trainer) -> EpochRow:
    """The averaged weights, with statistics from the draws of the last epoch, judged as a further epoch."""
    started = time.monotonic()
    experiment = work.experiment
    assert work.average is not None
    # The average goes by what learnt; a start after the last phase has run none that would have said so.
    set_learning(work.model, experiment, work.phases[-1].encoder_learns)
    work.average.assign(work.model)
    last = plan_of(experiment, experiment.total_epochs - 1, 1, skip=work.skip)
    estimate_statistics(work.model, (images for images, _ in training_batches(work.training, last)))
    network = judged_network(work)
    epoch = experiment.total_epochs + 1
    return work.log.judged(network, work.validate(network), epoch, "average", float("nan"), started, Pace())


def _record(
    experiment: Experiment,
    prepared: PreparedFolder,
    model: keras.Model,
    training: ImageSet,
    validation: ImageSet,
    command: str,
    engine: Engine,
) -> dict[str, Any]:
    """What ``experiment.json`` says of a training before it has ended."""
    return {
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
        "strategy": engine.text,
        "replicas": engine.replicas,
        "precision": keras.config.dtype_policy().name,
        "command": command,
    }


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write ``experiment.json``."""
    write_json(folder / "experiment.json", record)
