"""The loop of a training: its phases from wherever it stands, back to the last checkpoint after a fault.

In: an experiment, its images, and how it is to be carried out. Out: the state at the end, the best weights and a
checkpoint on the way. ``fit`` makes a run folder of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_pneumo.data.batches.order import TrainingPlan
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training import checkpoints, faults, memory
from keras_pneumo.training.callbacks import NotFinite, Saver, Steps, Validation
from keras_pneumo.training.log import Pace
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.schedules import Plateau
from keras_pneumo.training.state import put_back_optimizer
from keras_pneumo.training.step import TrainingNetwork, training_network
from keras_pneumo.training.work import Phase, Trainer, plan_of


def learn(work: Trainer, found: checkpoints.Checkpoint | None, started_from: bool) -> None:
    """All phases, from the beginning or from a checkpoint; faults lead back to the last one."""
    manner, engine = work.manner, work.manner.engine
    found = _agreed(work, found)
    kept = work.kept_slices(found)
    work.slices = min(kept or max(work.experiment.accumulation, _recalled(work)), work.most_slices)
    if work.slices > work.experiment.accumulation:
        known = "as this training began" if kept else "as was found to fit on this device"
        manner.tell(f"{work.slice_size} images are taken at once, in {work.slices} slices, {known}.{_said(work)}")
    work.recall_predicted()
    work.skip = faults.skipped(work.folder, work.training.image_ids)
    if found is not None:
        work.go_back(found)
        work.before = work.state.elapsed
        manner.tell(f"Goes on from {found.folder.name}: epoch {work.state.epoch + 1}, step {work.state.step}.")
    else:
        if started_from:
            row = work.log.judged(
                judged_network(work),
                work.validate(judged_network(work)),
                0,
                "start",
                float("nan"),
                time.monotonic(),
                Pace(),
            )
            work.tell_epoch(row)
        work.save(None)
    tries = 0
    while work.state.phase < len(work.phases):
        try:
            _run_phase(work, found)
            found = None
            continue
        except NotFinite as fault:
            tries += 1
            work.skip = faults.not_finite(
                fault, work.folder, work.training, _plan(work), manner.skip_nan, tries, engine
            )
            manner.tell(f"The {fault.what}: these images are left out from now on; {len(work.skip)} in all.")
        except tf.errors.ResourceExhaustedError:
            work.slices = memory.halved(work.slices, work.part, work.most_slices)
            images = work.slice_size
            memory.remember(work.experiment, images)
            if engine.workers > 1:
                memory.need(work.folder, work.slices, engine.replicas)
                raise Stopped(
                    f"Out of memory on worker {engine.worker}. From now on {images} images are taken at once, "
                    "with the same "
                    "effective batch. Start all workers again; they go on from the last checkpoint."
                ) from None
            manner.tell(
                f"Out of memory: {images} images are taken at once from now on, in {work.slices} slices, with the same "
                f"effective batch.{_said(work)}"
            )
        found = _agreed(work, checkpoints.latest(work.folder, manner.tell))
        if found is None:
            raise PneumoError(f"There is no whole checkpoint in {work.folder} to go back to. Train again.")
        work.go_back(found)


def _agreed(work: Trainer, found: checkpoints.Checkpoint | None) -> checkpoints.Checkpoint | None:
    """The chief's checkpoint, on every worker.

    Raises:
        PneumoError: this worker does not see it: the folder is not shared, or not yet up to date.
    """
    engine = work.manner.engine
    if engine.workers == 1:
        return found
    wanted = engine.agree(0 if found is None else _number(found.folder))
    if wanted == 0:
        return None
    if found is None or _number(found.folder) != wanted:
        name = f"at_{wanted // 10**6 - 1:04d}_{wanted % 10**6:06d}"
        return checkpoints.read(work.folder / checkpoints.FOLDER / name)
    return found


def _number(folder: Path) -> int:
    _, epoch, step = folder.name.split("_")
    return (int(epoch) + 1) * 10**6 + int(step)


def _said(work: Trainer) -> str:
    """What slices change, where they change anything."""
    if work.experiment.frozen_batchnorm:
        return ""
    return " BatchNorm learns from each slice's statistics, so the weights differ from those of whole batches."


def _recalled(work: Trainer) -> int:
    """Slices by what was found for this device before, or is now; the same on every worker."""
    fits = memory.recall(work.experiment)
    if work.manner.auto_batch:
        slices = memory.fewest(memory.trial(_alone(work), work.experiment, work.part), work.most_slices)
        fits = memory.in_a_slice(work.part, slices)
        memory.remember(work.experiment, fits)
        work.manner.tell(f"{fits} images fit into memory at once; each batch is worked through in {slices} slices.")
    slices = memory.slices_for(work.part, fits, work.most_slices) if fits else 1
    return work.manner.engine.largest(slices)


def _alone(work: Trainer) -> TrainingNetwork:
    """A network of the last phase on this device alone, to try out what fits.

    Under a strategy it is a copy: a device without memory must not leave the others waiting for its sums. The copy
    takes some of the memory, so that what is found is on the safe side.
    """
    set_learning(work.model, work.experiment, True)
    if work.manner.engine.strategy is None:
        return _network(work, work.phases[-1], 1)[0]
    model = keras.models.clone_model(work.model)
    set_learning(model, work.experiment, True)
    optimizer = make_optimizer(work.experiment, model, work.phases[-1].learning_rate, 1, 1)
    return training_network(model, image_losses(work.experiment), optimizer)


def _network(work: Trainer, phase: Phase, slices: int) -> tuple[TrainingNetwork, int]:
    """The learning network of a phase with a new optimizer, and the steps of an epoch."""
    experiment, steps = work.experiment, len(work.sizes)
    with work.manner.engine.scope():
        optimizer = make_optimizer(experiment, work.model, phase.learning_rate, phase.epochs * steps, steps)
        network = training_network(work.model, image_losses(experiment), optimizer, slices, work.manner.engine)
    return network, steps


def judged_network(work: Trainer) -> Any:
    """What validates before anything was learnt: the model itself, or under a strategy one that is dealt out."""
    if work.manner.engine.strategy is None:
        return work.model
    return _network(work, work.phases[0], 1)[0]


def _plan(work: Trainer) -> TrainingPlan:
    return plan_of(work.experiment, 0, work.experiment.total_epochs, skip=work.skip)


def _run_phase(work: Trainer, found: checkpoints.Checkpoint | None) -> None:
    """The phase that the state is in, from where it is to the phase's end."""
    experiment, state, engine = work.experiment, work.state, work.manner.engine
    number = state.phase
    phase = work.phases[number]
    set_learning(work.model, experiment, phase.encoder_learns)
    network, steps = _network(work, phase, work.slices)
    if found is not None:
        put_back_optimizer(found, network.optimizer)
    if experiment.schedule == "plateau" and state.plateau is None:
        factor, patience = experiment.plateau_factor, experiment.plateau_patience
        state.plateau = Plateau(phase.learning_rate, "max", factor=factor, patience=patience)
    end = phase.first_epoch + phase.epochs
    callbacks: list[keras.callbacks.Callback] = [
        Steps(state, work.sizes, experiment.total_epochs, work.interruption, work.events, work.progress),
        Validation(state, work.log, work.validate, phase.name, work.tell_epoch, experiment.patience),
        *([work.average] if work.average else []),
        Saver(state, end, work.next_phase, steps, work.manner.every, work.save, work.interruption, engine),
    ]
    while state.phase == number:
        if state.step == steps:  # stopped between an epoch's last step and its validation
            network.stop_training = False
            epoch = state.epoch
            for callback in callbacks:
                callback.set_model(network)
                callback.on_epoch_end(epoch)
            continue
        # What is left of an epoch first, then all others.
        until = state.epoch + 1 if state.step else end
        plan = plan_of(experiment, state.epoch, until - state.epoch, state.step, work.skip)
        network.fit(
            engine.batches(work.training, plan),
            initial_epoch=state.epoch,
            epochs=until,
            steps_per_epoch=steps - state.step,
            callbacks=callbacks,
            shuffle=False,  # the plan is the order
            verbose=0,
        )
