"""One training, from an experiment and a prepared folder to a run folder with the best weights and a report.

The story, from top to bottom: :func:`run_training` finds the run folder, trains and reports; :func:`train` is the
training alone, a :class:`Trainer` whose :meth:`Trainer.run` names its moments in order:

1. set-up: checked images, the network with its first weights, the record, the log;
2. begin, or resume from the last checkpoint, with as many micro-batches as the memory needs;
3. the phases: first with the encoder frozen, then the whole network; Keras's ``fit`` is the loop;
4. after a fault (a loss that is not finite, too little memory) back to the last checkpoint;
5. the end: the averaged weights, the curves, the record.

The step itself is in ``step``, what happens between two steps or epochs in ``callbacks``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import pandas as pd
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet, open_source
from keras_pneumo.data.batches.order import TrainingPlan
from keras_pneumo.data.batches.pipeline import training_batches
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.prepared.manifest import PSEUDONYM_KEY
from keras_pneumo.data.prepared.split import check_split
from keras_pneumo.errors import Diverged, PneumoError, Stopped
from keras_pneumo.inference.predictor import CompiledNetwork, MicroBatchPredictor, Predictor
from keras_pneumo.inference.provenance import caution_by_name, describe_images
from keras_pneumo.inference.run import (
    CHECKPOINTS,
    FORMAT,
    HASHES,
    WEIGHTS,
    RunFolder,
    build,
    hardware,
    load_weights,
    read_run,
    run_of_weights,
    versions,
)
from keras_pneumo.models.imagenet import IMAGENET, images_of_weights, load_pretrained
from keras_pneumo.models.weights import LoadedParts, from_torch_by_parts
from keras_pneumo.models.xrayvision import read_weights
from keras_pneumo.storage.files import folder_lock, remove_temporary, sha256_file, write_table
from keras_pneumo.storage.interruption import Interruption, stopped_at_once
from keras_pneumo.training import checkpoints, memory
from keras_pneumo.training.averaging import WeightAverage, estimate_statistics
from keras_pneumo.training.callbacks import (
    CheckpointInterval,
    CheckpointSaver,
    EpochValidation,
    NotFinite,
    StepCallbacks,
    StepCounter,
    TrainProgress,
)
from keras_pneumo.training.checkpoints import (
    Checkpoint,
    CheckpointWriter,
    TrainingState,
    capture,
    check_identity,
    identity,
    position_of,
)
from keras_pneumo.training.distributed.agreement import check_agreement
from keras_pneumo.training.distributed.strategy import ONE_DEVICE, Distribution, lost_workers
from keras_pneumo.training.log import EpochMeasures, EpochRow, Events, Log, draw_curves
from keras_pneumo.training.logs.results import curves_of, radiographs_of, scores_of
from keras_pneumo.training.logs.tracking import TrackedRun, tracked
from keras_pneumo.training.losses import image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.report import RunReport, report_run
from keras_pneumo.training.run_folder import (
    RunLocation,
    Start,
    check_start,
    compare_start,
    find_folds_folder,
    find_run_folder,
    is_trained,
    learned_table,
    progress_of,
    provenance_of,
    write_record,
    write_start,
)
from keras_pneumo.training.schedules import Plateau
from keras_pneumo.training.step import TrainingNetwork, training_network
from keras_pneumo.training.validation import ValidationResult, make_validator

NAN_BATCHES = "nan_batches.csv"
"""In the run folder: the images of each batch that gave no finite loss, and what was done about it."""

MOST_SKIPPED = 0.1
"""When more than this share of the images would be left out, they are not the cause."""

EVERY_FIVE_MINUTES = CheckpointInterval()


def no_progress(title: str) -> AbstractContextManager[TrainProgress | None]:
    """Show nothing."""
    return contextlib.nullcontext(None)


@dataclass(frozen=True)
class TrainingOptions:
    """How a training is carried out: devices, checkpoints, faults, and who is told what.

    Only two things change what is learnt: images that are left out, and micro-batches, where the memory is too small
    for whole batches and BatchNorm learns, which takes the statistics of each micro-batch.
    """

    distribution: Distribution = ONE_DEVICE
    """The devices."""
    checkpoint_every: CheckpointInterval = EVERY_FIVE_MINUTES
    """How often a checkpoint is written."""
    resume: bool = False
    """Whether the folder holds an unfinished training of the same experiment and data, to go on with."""
    skip_nan: bool = False
    """Whether images whose batch gave no finite loss are left out from then on, rather than ending the training."""
    auto_batch: bool = False
    """Whether to find out beforehand how much of a batch fits into memory."""
    command: str = ""
    """How the user started this, for the record."""
    notify: Callable[[str], None] = lambda message: None
    """Called with each message that a person should not miss."""
    say: Callable[[str], None] = lambda message: None
    """Called with each message about the course of the training."""
    on_epoch: Callable[[EpochRow], None] = lambda row: None
    """Called with each row of the log."""
    on_trained: Callable[[TrainingResult], None] = lambda result: None
    """Called when the training has ended, before the predictions and the report."""
    log_to: tuple[str, ...] = ()
    """Trackers that get the rows of the log too; from :func:`~.logs.tracking.chosen_trackers`."""
    log_radiographs: bool = False
    """Whether these also get some test radiographs with outlines or heat maps."""
    show_progress: Callable[[str], AbstractContextManager[TrainProgress | None]] = no_progress
    """From ``training`` or ``prediction`` to a context whose value is called after each step or batch."""
    build: Callable[..., keras.Model] = build
    """Makes the network of an experiment; called as :func:`keras_pneumo.inference.run.build`."""
    network_class: type[TrainingNetwork] = TrainingNetwork
    """The class of the training network; tests give one that fails in a certain way."""


@dataclass(frozen=True)
class TrainingResult:
    """The best epoch of a training, and the time it took."""

    folder: Path
    best: EpochRow
    seconds: float
    """Wall time of the training alone, interruptions left out: no preparing, no prediction."""
    model: keras.Model | None = None
    """The network with its best weights, where it is the one that :func:`~.run.load_model` would build and load again:
    in float32, on one device, with one checkpoint to predict with."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same weights learning and one schedule of its own."""

    name: str
    first_epoch: int
    epochs: int
    encoder_learns: bool
    learning_rate: float


# ---------------------------------------------------------------- the whole way: folder, training, predictions, report


def run_training(
    experiment: Experiment,
    prepared: PreparedFolder,
    out: Path | None = None,
    options: TrainingOptions | None = None,
    *,
    must_resume: bool = False,
    weights: Path | None = None,
    start_from: Path | None = None,
) -> RunReport | None:
    """Train one run, predict the test images with it, score them and write the report.

    An unfinished run of the same experiment and data is gone on with: in ``out``, or else the last of
    ``runs/<experiment>``.

    Args:
        experiment: what to train.
        prepared: images, labels and split.
        out: the run folder; default: the next free one of ``runs/<experiment>``.
        options: devices, checkpoints, faults, messages; its ``resume`` is set by what the folder holds.
        must_resume: whether to refuse to begin a new run.
        weights: file or folder with ImageNet weights.
        start_from: a run folder whose best weights are the start.

    Returns:
        The report, in the run folder (``report.path``); None on a worker that writes none.

    Raises:
        PneumoError: as :func:`train`; or ``out`` holds something else; or there is nothing to resume.
        Stopped: as :func:`train`.
    """
    options = options or TrainingOptions()
    location = shared_location(options.distribution, lambda: find_run_folder(out, experiment, prepared, must_resume))
    return _train_and_report(experiment, prepared, location, options, weights, start_from)


def run_folds(
    experiment: Experiment,
    prepared: PreparedFolder,
    out: Path | None = None,
    options: TrainingOptions | None = None,
    *,
    must_resume: bool = False,
    weights: Path | None = None,
    start_from: Path | None = None,
    on_report: Callable[[RunReport], None] = lambda report: None,
) -> list[Path]:
    """Train one run for each fold of the split, into ``fold_0``, ``fold_1``, ... of one folder; finished ones stay.

    Args:
        experiment: what to train; its ``fold`` is replaced.
        prepared: images, labels and split.
        out: the folder of all folds; default: the next free one of ``runs/<experiment>-folds``.
        options: as for :func:`run_training`.
        must_resume: whether to refuse to begin anew.
        weights: file or folder with ImageNet weights.
        start_from: a folder whose ``fold_K`` are the runs to start from.
        on_report: called with each fold's report.

    Returns:
        The run folders, in the order of the folds.

    Raises:
        PneumoError: as :func:`run_training`.
        Stopped: as :func:`train`.
    """
    options = options or TrainingOptions()
    folds = sorted({int(fold) for fold in prepared.split["fold"] if int(fold) >= 0})
    folder = shared_location(
        options.distribution,
        lambda: RunLocation(find_folds_folder(out, experiment, prepared, folds, must_resume), False),
    ).folder
    folders = []
    for fold in folds:
        of_fold = experiment.replace(fold=fold)
        start_of_fold = start_from / f"fold_{fold}" if start_from is not None else None
        location = shared_location(
            options.distribution, partial(_fold_location, folder / f"fold_{fold}", of_fold, prepared)
        )
        folders.append(location.folder)
        if not location.finished:
            report = _train_and_report(of_fold, prepared, location, options, weights, start_of_fold)
            if report is not None:
                on_report(report)
    return folders


def _fold_location(folder: Path, experiment: Experiment, prepared: PreparedFolder) -> RunLocation:
    if progress_of(folder, experiment, prepared) == "finished":
        return RunLocation(folder, False, finished=True)
    return find_run_folder(folder, experiment, prepared, False)


def shared_location(distribution: Distribution, find: Callable[[], RunLocation]) -> RunLocation:
    """The run folder that the chief finds, on every worker."""
    if distribution.workers == 1:
        return find()
    location = find() if distribution.chief else None
    with lost_workers(distribution):
        values = [str(location.folder), location.resume, location.finished] if location else None
        text = distribution.broadcast_text(json.dumps(values) if values else "")
    folder, resume, finished = json.loads(text)
    return RunLocation(Path(folder), resume, finished)


def _train_and_report(
    experiment: Experiment,
    prepared: PreparedFolder,
    location: RunLocation,
    options: TrainingOptions,
    weights: Path | None,
    start_from: Path | None,
) -> RunReport | None:
    keras.utils.clear_session()  # of one fold, before the next is trained in the same process
    folder, distribution = location.folder, options.distribution
    say = options.say if distribution.chief else lambda message: None
    if location.resume:
        say(f"{folder} is an unfinished run of this experiment on these images; going on with it.")
    model = None
    chief = distribution.chief
    with tracked(folder, options.log_to if chief else (), options.notify) as tracking:
        # The chief's view for all: a folder may look different for a while on another host.
        if not distribution.broadcast(int(location.resume and is_trained(folder))):
            network = f"{experiment.encoder} at {experiment.image_size}"
            say(f"Training {experiment.name}: {network}, on {distribution.description}, into {folder}")

            def on_epoch(row: EpochRow) -> None:
                options.on_epoch(row)
                tracking.epoch()

            result = train(
                experiment,
                prepared,
                folder,
                replace(options, resume=location.resume, on_epoch=on_epoch),
                weights=weights,
                start_from=read_run(start_from) if start_from is not None else None,
            )
            model = result.model
            if chief:
                options.on_trained(result)
        again = "The training is done; the same command again predicts and reports."
        lock = folder_lock(folder) if chief else contextlib.nullcontext()
        with options.show_progress("prediction") as progress, lock, stopped_at_once(again):
            run = read_run(folder)
            report = report_run(run, prepared, progress if chief else None, distribution=distribution, model=model)
        if report is not None:
            _send_results(run, prepared, tracking, options.log_radiographs)
    return report


def _send_results(run: RunFolder, prepared: PreparedFolder, tracking: TrackedRun, radiographs: bool) -> None:
    """Send test scores and pictures to TensorBoard's events, which stay in the run folder, and to the trackers."""
    scores, curves, images = scores_of(run.folder), curves_of(run.folder), radiographs_of(run.folder, prepared)
    events = Events(run.folder)
    events.results(int(run.record.get("best_epoch", 0)), scores, curves | images)
    events.close()
    tracking.end(scores, curves | images if radiographs else curves)


# ---------------------------------------------------------------- the training alone


def train(
    experiment: Experiment,
    prepared: PreparedFolder,
    folder: Path,
    options: TrainingOptions | None = None,
    *,
    weights: Path | None = None,
    start_from: RunFolder | None = None,
) -> TrainingResult:
    """Train the experiment's network on the prepared folder's training images.

    Args:
        experiment: what to train, and how.
        prepared: images, labels and split; checked against the manifest before the first step.
        folder: the run folder, which exists and is empty, or holds an unfinished training to resume. Several workers
            share it.
        options: devices, checkpoints, and what to do about faults.
        weights: file or folder with ImageNet weights, where they are not to be found or downloaded elsewhere; or a
            safetensors or ``.pt`` file with PyTorch's names, whose encoder, decoder and heads are taken where they fit.
        start_from: a finished run of the same network, of any image size and any data, whose best weights are the
            start, heads and all; they are validated before the first step, as epoch 0 of the log.

    Returns:
        The best epoch and the time taken; the weights, log and curves are in ``folder``.

    Raises:
        PneumoError: the split shares a patient, a subset has one class, an image is damaged, the size is not prepared,
            weights cannot be had, ``start_from`` is of another network or has learned from what is held out here (see
            :func:`~.run_folder.check_start`), the checkpoints are of another training, or it was begun from other
            weights than ``start_from``, or another run is in the folder.
        Diverged: the loss is no longer finite, or no validation score was.
        Stopped: a signal came, or another worker is gone; the same call with ``resume`` goes on. After a signal that
            comes after the last step the training is done.
    """
    return Trainer(experiment, prepared, folder, options or TrainingOptions()).run(weights, start_from)


class Trainer:
    """One training while it runs: its parts, where it stands, and its moments in order."""

    def __init__(
        self, experiment: Experiment, prepared: PreparedFolder, folder: Path, options: TrainingOptions
    ) -> None:
        """Nothing is read or written yet; see :meth:`run`."""
        self.experiment = experiment
        self.prepared = prepared
        self.folder = folder
        self.options = options
        self.distribution = options.distribution
        self.phases = phases_of(experiment)
        self.interruption = Interruption(options.notify)
        self.state = TrainingState()
        """Where the training stands."""
        self.checkpoint_writer = CheckpointWriter()
        self.average: WeightAverage | None = None
        """Of the weights of the last epochs."""
        self.micro_batches = 1
        """Parts that a replica divides its part of a batch in."""
        self.images_at_once: int | None = None
        """Images that validation can predict at once, on all devices together, where that was found to be few."""
        self.skip: tuple[int, ...] = ()
        """Images that are left out, by index."""
        self.seconds_before = 0.0
        """Wall time of the processes before this one."""

    def run(self, weights: Path | None, start_from: RunFolder | None) -> TrainingResult:
        """The whole training; see :func:`train`."""
        with (
            folder_lock(self.folder) if self.distribution.chief else contextlib.nullcontext(),
            self.interruption.listening(),
            lost_workers(self.distribution),
            self.options.show_progress("training") as self.progress,
        ):
            checkpoint = self.set_up(weights, start_from)
            with contextlib.closing(self.events), self.checkpoint_writer:
                checkpoint = self.begin(checkpoint, validate_first=start_from is not None)
                self.run_phases(checkpoint)
                self.validate_average()
                result = self.finish()
        stop_if_requested(self.interruption, self.distribution)  # a signal may have been promised an end until here
        return result

    # ------------------------------------------------------------ set-up

    def set_up(self, weights: Path | None, start_from: RunFolder | None) -> Checkpoint | None:
        """Read and check everything, write the first record, and find the checkpoint to resume from."""
        chief, notify = self.distribution.chief, self.options.notify
        if chief:
            remove_temporary(self.folder)
        start = self.checked_start(weights, start_from)
        provenance = {"start_from": start.record} if start is not None else {}
        if chief and start is not None and start.record.get("caution"):
            self.options.say(str(start.record["caution"]))

        def on_loaded(parts: LoadedParts) -> None:
            assert weights is not None
            if chief:
                self.options.say(parts.sentence(str(weights)))
            images = declared_start(self.experiment, weights)
            named = {"name": weights.name, "sha256": sha256_file(weights), "pretraining": images}
            if start is None and (caution := caution_by_name(images, self.prepared)):
                named["caution"] = caution
                if chief:
                    notify(caution)
            provenance["weights_file"] = named | parts._asdict()

        self.model, self.training, self.validation = starting_point(
            self.experiment, self.prepared, weights, start_from, self.distribution, self.options.build, on_loaded
        )
        self.identity = identity(self.experiment, self.prepared, self.model)
        check_agreement(self.distribution, self.identity, self.folder)
        checkpoint = checkpoints.latest(self.folder, notify) if self.options.resume else None
        if checkpoint is not None:
            check_identity(checkpoint, self.identity)
        self.record = self.first_record()
        self.record |= provenance_of(provenance, self.folder, checkpoint, self.options.resume)
        if chief:
            fold = self.experiment.fold
            learned = learned_table(start, self.prepared, fold, self.folder, self.options.resume)
            self.record = write_start(self.folder, self.record, learned)
        self.began = time.monotonic()  # reading and checking are no part of the training's time
        self.log = Log(self.folder, self.experiment.top_k, chief, self.validation)
        self.events = Events(self.folder if chief else None)
        # Images of each step of an epoch.
        self.sizes = [len(rows) for rows in plan_of(self.experiment, 0, 1).rows(len(self.training))]
        self.new_average()
        self.validator = make_validator(self.experiment, self.validation, self.prepared)
        if self.distribution.strategy is None:
            # Keras makes a graph for each phase's network, and another one for a last batch that is smaller.
            one_graph = CompiledNetwork(self.model, jit=bool(self.model.jit_compile))
            self.model.predict_function = one_graph.predict_function
        return checkpoint

    def checked_start(self, weights: Path | None, start_from: RunFolder | None) -> Start | None:
        """The run that the first weights come from, if any, compared with what is held out.

        Raises:
            PneumoError: it has learned from some of that, or both kinds of start are named.
        """
        if start_from is not None and weights is not None:
            raise PneumoError("Give --weights or --start-from, not both: each says what the first weights are.")
        if start_from is not None:
            return check_start(self.experiment, self.prepared, start_from)
        run = run_of_weights(weights) if weights is not None else None
        return compare_start(self.experiment, self.prepared, run, weights) if run is not None and weights else None

    def first_record(self) -> dict[str, Any]:
        """What ``experiment.json`` says of a training before it has ended."""
        manifest = self.prepared.manifest
        return {
            "format": FORMAT,
            "experiment": self.experiment.model_dump(mode="json"),
            "split_sha256": manifest["split_sha256"],
            "prepared_sha256": manifest["prepared_sha256"],
            "synthetic": self.prepared.synthetic,
            "patients": manifest["patients"],
            "patients_note": manifest.get("patients_note", ""),
            PSEUDONYM_KEY: manifest.get(PSEUDONYM_KEY),
            "training_images": len(self.training),
            "validation_images": len(self.validation),
            "trained_on": describe_images(self.prepared, len(self.training) + len(self.validation)),
            "parameters": self.model.count_params(),
            "versions": versions(),
            "hardware": hardware(),
            "strategy": self.distribution.description,
            "replicas": self.distribution.replicas,
            "precision": keras.config.dtype_policy().name,
            "command": self.options.command,
        }

    # ------------------------------------------------------------ begin or resume

    def begin(self, checkpoint: Checkpoint | None, validate_first: bool) -> Checkpoint | None:
        """Choose the micro-batches; go on from the checkpoint, or write the first one.

        Returns:
            The chief's checkpoint, on every worker.
        """
        notify = self.options.notify
        checkpoint = self.agreed(checkpoint)
        kept = self.kept_micro_batches(checkpoint)
        wanted = kept or max(self.experiment.accumulation, self.micro_batches_that_fit())
        self.micro_batches = min(wanted, self.most_micro_batches)
        if self.micro_batches > self.experiment.accumulation:
            reason = "as this training began" if kept else "as was found to fit on this device"
            notify(
                f"{self.micro_batch_size} images are taken at once, in {self.micro_batches} micro-batches, {reason}."
                f"{self.batchnorm_note}"
            )
        self.recall_images_at_once()
        self.skip = skipped_images(self.folder, self.training.image_ids)
        if checkpoint is not None:
            self.go_back(checkpoint)
            self.seconds_before = self.state.elapsed
            position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
            notify(f"The training goes on from {checkpoint.folder.name}: {position}.")
            return checkpoint
        if validate_first:
            network, started = self.unlearnt_network(), time.monotonic()
            result = self.validate(network)
            self.report_epoch(self.log.add_epoch(network, result, 0, "start", float("nan"), started, EpochMeasures()))
        self.save(None)
        return None

    def agreed(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The chief's checkpoint, on every worker.

        Raises:
            PneumoError: this worker does not see it: the folder is not shared, or not yet up to date.
        """
        if self.distribution.workers == 1:
            return checkpoint
        wanted = self.distribution.broadcast(0 if checkpoint is None else _number(checkpoint.folder))
        if wanted == 0:
            return None
        if checkpoint is None or _number(checkpoint.folder) != wanted:
            name = f"at_{wanted // 10**6 - 1:04d}_{wanted % 10**6:06d}"
            return checkpoints.read(self.folder / checkpoints.FOLDER / name)
        return checkpoint

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was at a checkpoint; the optimizer follows when it is made."""
        self.state = position_of(checkpoint)
        self.new_average()
        checkpoints.restore_model(checkpoint, self.model, self.log, self.average)
        if self.distribution.chief:
            checkpoints.restore_files(self.folder, checkpoint, f"{CHECKPOINTS}/epoch_*.weights.h5")
            self.log.write()

    def new_average(self) -> None:
        """Begin the average of the last epochs' weights, where the experiment has one."""
        last = self.experiment.total_epochs - self.experiment.swa_epochs
        self.average = WeightAverage(last) if self.experiment.swa_epochs else None

    # ------------------------------------------------------------ the phases, and back to a checkpoint after a fault

    def run_phases(self, checkpoint: Checkpoint | None) -> None:
        """All phases from where the state is; a fault leads back to the last checkpoint."""
        faults = 0
        while self.state.phase < len(self.phases):
            try:
                self.run_phase(checkpoint)
                checkpoint = None
                continue
            except NotFinite as fault:
                faults += 1
                self.leave_out_images(fault, faults)
            except tf.errors.ResourceExhaustedError:
                self.take_fewer_images()
            self.checkpoint_writer.wait()
            checkpoint = self.agreed(checkpoints.latest(self.folder, self.options.notify))
            if checkpoint is None:
                raise PneumoError(f"There is no whole checkpoint in {self.folder} to go back to. Train again.")
            self.go_back(checkpoint)

    def run_phase(self, checkpoint: Checkpoint | None) -> None:
        """The phase that the state is in, from where it is to the phase's end."""
        experiment, state = self.experiment, self.state
        number, steps = state.phase, len(self.sizes)
        phase = self.phases[number]
        set_learning(self.model, experiment, phase.encoder_learns)
        network = self.network(phase, self.micro_batches)
        if checkpoint is not None:
            checkpoints.restore_optimizer(checkpoint, network.optimizer)
        if experiment.schedule == "plateau" and state.plateau is None:
            factor, patience = experiment.plateau_factor, experiment.plateau_patience
            state.plateau = Plateau(phase.learning_rate, "max", factor=factor, patience=patience)
        end = phase.first_epoch + phase.epochs
        every, stop, save = self.options.checkpoint_every, self.interruption, self.save
        wait, several = self.checkpoint_writer.wait, self.distribution.workers > 1
        counter = StepCounter(state, self.sizes, experiment.total_epochs, stop, self.events, self.progress, several)
        each: list[keras.callbacks.Callback] = [
            counter,
            EpochValidation(state, self.log, self.validate, phase.name, self.report_epoch, experiment.patience),
            *([self.average] if self.average else []),
            CheckpointSaver(state, end, self.next_phase, steps, every, save, wait, counter, stop, self.distribution),
        ]
        callbacks = StepCallbacks(each, add_history=True, model=network)
        while state.phase == number:
            if state.step == steps:  # stopped between an epoch's last step and its validation
                network.stop_training = False
                epoch = state.epoch
                for callback in each:
                    callback.on_epoch_end(epoch)
                continue
            # What is left of an epoch first, then all others.
            until = state.epoch + 1 if state.step else end
            plan = plan_of(experiment, state.epoch, until - state.epoch, state.step, self.skip)
            network.fit(
                self.distribution.batches(self.training, plan),
                initial_epoch=state.epoch,
                epochs=until,
                steps_per_epoch=steps - state.step,
                callbacks=callbacks,
                shuffle=False,  # the plan is the order
                verbose=0,
            )

    def network(self, phase: Phase, micro_batches: int) -> TrainingNetwork:
        """The training network of a phase, with a new optimizer."""
        experiment, steps = self.experiment, len(self.sizes)
        with self.distribution.scope():
            optimizer = make_optimizer(experiment, self.model, phase.learning_rate, phase.epochs * steps, steps)
            losses_of, kind = image_losses(experiment), self.options.network_class
            network = training_network(self.model, losses_of, optimizer, micro_batches, self.distribution, kind)
        if self.distribution.strategy is None:
            network.predict_function = self.model.predict_function
        return network

    def next_phase(self) -> None:
        """Move the state to the start of the next phase, or past the last one."""
        number = self.state.phase + 1
        last = number >= len(self.phases)
        self.state.begin_phase(number, self.experiment.total_epochs if last else self.phases[number].first_epoch)

    def save(self, network: TrainingNetwork | None) -> None:
        """Begin to write a checkpoint, if this worker is the one that does."""
        if not self.distribution.chief:
            return
        self.checkpoint_writer.wait()  # before the next copy of the weights takes as much memory again
        self.state.elapsed = self.elapsed()
        optimizer = network.optimizer if network is not None else None
        arrays, values = capture(self.state, self.model, optimizer, self.log, self.average, self.identity)
        values |= {"slices": self.micro_batches, "replicas": self.distribution.replicas}
        self.checkpoint_writer.save(self.folder, self.state.epoch, self.state.step, arrays, values, self.log.files())

    def report_epoch(self, row: EpochRow) -> None:
        """Pass on a row of the log."""
        self.events.epoch(row)
        self.options.on_epoch(row)

    def elapsed(self) -> float:
        """Wall time of the training so far."""
        return self.seconds_before + time.monotonic() - self.began

    # ------------------------------------------------------------ validation

    def validate(self, network: Predictor) -> ValidationResult:
        """How good a network is on the validation images.

        Raises:
            PneumoError: the memory is too small to predict an image.
            Stopped: it is too small for what several workers predict at once; the next start predicts fewer.
        """
        replicas = self.distribution.replicas
        batch = self.experiment.global_batch_size
        fits = batch if self.micro_batches == 1 else self.micro_batch_size * replicas
        at_once = min(batch, fits, self.images_at_once or batch)
        return self.validator(MicroBatchPredictor(network, at_once, replicas, self.predict_fewer))

    def unlearnt_network(self) -> Any:
        """What validates before anything was learnt: the model itself, or under a strategy one on all devices."""
        return self.model if self.distribution.strategy is None else self.network(self.phases[0], 1)

    def recall_images_at_once(self) -> None:
        """Take what was found before of the images that validation can predict at once; the same on every worker."""
        batch, replicas = self.experiment.global_batch_size, self.distribution.replicas
        fits = memory.recall(self.experiment, predicting=True)
        parts = self.distribution.maximum(-(-batch // (fits * replicas)) if fits else 1)
        self.images_at_once = -(-batch // parts)

    def predict_fewer(self, images: int) -> None:
        """Predict at most ``images`` at once from now on, and remember it for this device."""
        self.images_at_once = images
        memory.remember(self.experiment, max(images // self.distribution.replicas, 1), predicting=True)
        if self.distribution.workers > 1:
            raise Stopped(
                f"Out of memory in validation on worker {self.distribution.worker}. From now on {images} images are "
                "predicted at once. Start all workers again; they go on from the last checkpoint."
            )
        self.options.notify(f"Out of memory in validation: {images} images are predicted at once from now on.")

    # ------------------------------------------------------------ too little memory

    @property
    def part(self) -> int:
        """Images of the largest part of a batch that one replica takes."""
        return -(-max(self.sizes) // self.distribution.replicas)

    @property
    def most_micro_batches(self) -> int:
        """With more, a part of the smallest batch would leave one empty."""
        return max(min(self.sizes) // self.distribution.replicas, 1)

    @property
    def micro_batch_size(self) -> int:
        """Images of the largest micro-batch, those that one replica takes at once."""
        return memory.micro_batch_size(self.part, self.micro_batches)

    @property
    def batchnorm_note(self) -> str:
        """What micro-batches change, where they change anything."""
        if self.experiment.frozen_batchnorm:
            return ""
        return " BatchNorm learns from each micro-batch, so the weights differ from those of whole batches."

    def kept_micro_batches(self, checkpoint: Checkpoint | None) -> int:
        """The micro-batches that the training of a checkpoint had, or needs since.

        It keeps them whatever has been found since: an unbroken training would have. 0: unknown, or of other parts of
        a batch.
        """
        if checkpoint is None:
            return 0
        replicas, values = self.distribution.replicas, checkpoint.state
        had = int(values.get("slices", 0)) if values.get("replicas") == replicas else 0
        return self.distribution.maximum(max(had, memory.read_needed(self.folder, replicas)))

    def micro_batches_that_fit(self) -> int:
        """Micro-batches by what was found for this device before, or is now; the same on every worker."""
        fits = memory.recall(self.experiment)
        if self.options.auto_batch:
            trial = memory.make_trial(self.network_of_one_device(), self.experiment, self.part)
            count = memory.fewest_micro_batches(trial, self.most_micro_batches)
            fits = memory.micro_batch_size(self.part, count)
            memory.remember(self.experiment, fits)
            self.options.notify(f"{fits} images fit into memory at once; each batch is taken in {count} micro-batches.")
        return self.distribution.maximum(
            memory.micro_batches_for(self.part, fits, self.most_micro_batches) if fits else 1
        )

    def network_of_one_device(self) -> TrainingNetwork:
        """A network of the last phase on this device alone, to try out what fits.

        Under a strategy it is a copy: a device without memory must not leave the others waiting for its sums. The copy
        takes some of the memory, so that what is found is on the safe side.
        """
        set_learning(self.model, self.experiment, True)
        if self.distribution.strategy is None:
            return self.network(self.phases[-1], 1)
        model = keras.models.clone_model(self.model)
        set_learning(model, self.experiment, True)
        optimizer = make_optimizer(self.experiment, model, self.phases[-1].learning_rate, 1, 1)
        kind = self.options.network_class
        return training_network(model, image_losses(self.experiment), optimizer, kind=kind)

    def take_fewer_images(self) -> None:
        """Halve the micro-batches after one did not fit, and remember it for this device.

        Raises:
            PneumoError: they cannot be halved any more.
            Stopped: there are other workers, which have to start again with the same micro-batches.
        """
        self.micro_batches = memory.halve_micro_batch(self.micro_batches, self.part, self.most_micro_batches)
        images = self.micro_batch_size
        memory.remember(self.experiment, images)
        if self.distribution.workers > 1:
            memory.write_needed(self.folder, self.micro_batches, self.distribution.replicas)
            raise Stopped(
                f"Out of memory on worker {self.distribution.worker}. From now on {images} images are taken at once, "
                "with the same effective batch. Start all workers again; they go on from the last checkpoint."
            ) from None
        self.options.notify(
            f"Out of memory: {images} images are taken at once from now on, in {self.micro_batches} micro-batches, "
            f"with the same effective batch.{self.batchnorm_note}"
        )

    # ------------------------------------------------------------ a loss that is not finite

    def leave_out_images(self, fault: NotFinite, times: int) -> None:
        """Write down the images of a batch whose loss is not finite, and leave them out from now on.

        Args:
            fault: where it happened.
            times: how often this has happened in this process.

        Raises:
            PneumoError: they are not to be left out, or it happens too often for images to be the cause.
        """
        plan = plan_of(self.experiment, 0, self.experiment.total_epochs, skip=self.skip)
        order, *_ = plan.draws(self.training.labels, fault.epoch)
        drawn = order[plan.rows(len(self.training))[fault.step]]
        image_ids = [self.training.image_ids[index] for index in drawn]
        all_skipped = tuple(sorted({*self.skip, *(int(index) for index in drawn)}))
        too_many = len(all_skipped) > MOST_SKIPPED * len(self.training) and times > 1
        skips = self.options.skip_nan and not too_many
        path = self.folder / NAN_BATCHES
        if self.distribution.chief:
            table = _read_nan_batches(self.folder)
            for image_id in image_ids:
                table.loc[len(table)] = [fault.epoch + 1, fault.step + 1, image_id, "skipped" if skips else "stopped"]
            write_table(path, table.drop_duplicates())
        if not skips:
            advice = "Look at these images; lower learning_rate, or set clip_norm; --skip-nan leaves the images out."
            if self.options.skip_nan:
                advice = (
                    "It is not the images: too many would be left out by now. Lower learning_rate, or set clip_norm."
                )
            raise Diverged(
                f"The {fault.what} at epoch {fault.epoch + 1}, step {fault.step + 1}, on the images "
                f"{', '.join(image_ids)}, which are written down in {path}. The last good checkpoint stands, and so do "
                f"the best weights. {advice}"
            )
        self.skip = all_skipped
        self.options.notify(f"The {fault.what}: these images are left out from now on; {len(self.skip)} in all.")

    # ------------------------------------------------------------ the end

    def validate_average(self) -> None:
        """Validate the averaged weights as a further epoch, with statistics from the draws of the last epoch."""
        experiment = self.experiment
        if self.average is None:
            return
        started = time.monotonic()
        # The average goes by what learnt; a start after the last phase has run none that would have said so.
        set_learning(self.model, experiment, self.phases[-1].encoder_learns)
        self.average.assign(self.model)
        last = plan_of(experiment, experiment.total_epochs - 1, 1, skip=self.skip)
        estimate_statistics(self.model, (images for images, _ in training_batches(self.training, last)))
        network, epoch = self.unlearnt_network(), experiment.total_epochs + 1
        result = self.validate(network)
        self.report_epoch(self.log.add_epoch(network, result, epoch, "average", float("nan"), started, EpochMeasures()))

    def finish(self) -> TrainingResult:
        """Draw the curves, complete the record, and keep the last checkpoint only.

        Raises:
            PneumoError: no epoch gave a finite score.
        """
        seconds, best = self.elapsed(), self.log.best
        if self.distribution.chief:
            draw_curves(self.log.frame(), self.folder / "curves.png", self.prepared.synthetic)
        self.checkpoint_writer.wait()
        if best is None:
            raise Diverged("No epoch gave a finite validation score, so there are no weights to keep. Lower the rate.")
        if self.distribution.chief:
            ended: dict[str, Any] = {
                "training_seconds": round(seconds, 1),
                "best_epoch": best.epoch,
                "slices": self.micro_batches,
            }
            weights = [name for name in self.log.files() if name.endswith((".weights.h5", ".safetensors"))]
            ended[HASHES] = {name: sha256_file(self.folder / name) for name in weights}
            # Before the record says that the training is done: a start after that removes no checkpoint.
            checkpoints.keep(self.folder, 1)
            write_record(self.folder, self.record | ended)
        self.distribution.broadcast(0)  # no worker goes on before the chief has written all this
        return TrainingResult(self.folder, best, seconds, self.best_network())

    def best_network(self) -> keras.Model | None:
        """The network with its best weights, for :class:`TrainingResult`."""
        float32 = keras.config.dtype_policy().name == "float32"
        if not float32 or self.distribution.strategy is not None or self.experiment.top_k > 1:
            return None
        load_weights(self.model, self.folder / WEIGHTS)
        return self.model


def stop_if_requested(interruption: Interruption, distribution: Distribution) -> None:
    """End after the training, on all workers, where a signal came to any after its last step.

    Raises:
        Stopped: a signal came.
    """
    with lost_workers(distribution):
        if distribution.maximum(int(interruption.wanted)):
            raise Stopped(
                f"{interruption.name} came after the last step; the training is done. Run the same command again to "
                "predict and report.",
                interruption.exit_code,
            )


# ---------------------------------------------------------------- what a training starts with


def starting_point(
    experiment: Experiment,
    prepared: PreparedFolder,
    weights: Path | None,
    start_from: RunFolder | None = None,
    distribution: Distribution = ONE_DEVICE,
    build: Callable[..., keras.Model] = build,
    on_loaded: Callable[[LoadedParts], None] = lambda parts: None,
) -> tuple[keras.Model, ImageSet, ImageSet]:
    """The network with its first weights, and the training and validation images, all checked.

    Raises:
        PneumoError: as :func:`train`.
    """
    training, validation = _image_sets(experiment, prepared)
    set_precision(experiment)
    set_determinism(experiment)
    if start_from is None:
        return starting_network(experiment, weights, distribution, build, on_loaded), training, validation
    with distribution.scope():
        model = build(experiment, synchronized=distribution.replicas > 1)
    start_from.load_weights(model)
    return model, training, validation


def starting_network(
    experiment: Experiment,
    weights: Path | None = None,
    distribution: Distribution = ONE_DEVICE,
    build: Callable[..., keras.Model] = build,
    on_loaded: Callable[[LoadedParts], None] = lambda parts: None,
) -> keras.Model:
    """The experiment's network with its first weights: random by its seed, ImageNet's in the encoder, or a file's.

    Args:
        experiment: says which.
        weights: as in :func:`train`.
        distribution: where its variables live.
        build: makes the network.
        on_loaded: called with what a safetensors file gave.

    Raises:
        PneumoError: the weights cannot be had, or do not fit; or the experiment starts at random and ``weights`` is
            where ImageNet's are.
    """
    with distribution.scope():
        model = build(experiment, synchronized=distribution.replicas > 1)
    if weights is not None and is_weights_file(weights):
        on_loaded(from_torch_by_parts(model, read_weights(weights)))
    elif experiment.weights != "random":
        load_pretrained(model, experiment.encoder, experiment.weights, weights)
    elif weights is not None:
        raise PneumoError(
            f"{experiment.name} starts from random weights, so ImageNet's in {weights} are not used. Leave out "
            "--weights, set weights in the experiment, or name a safetensors file to start from."
        )
    return model


def declared_start(experiment: Experiment, weights: Path | None = None) -> str:
    """The images that :func:`starting_network`'s weights have learned from, as a submission declares them.

    Raises:
        PneumoError: ``weights`` is a file that cannot be read.
    """
    if weights is None or not is_weights_file(weights):
        return "none" if experiment.weights == "random" else IMAGENET
    run = run_of_weights(weights)
    return run.images_seen if run else images_of_weights(weights, experiment.encoder, experiment.weights)


def is_weights_file(weights: Path) -> bool:
    """Whether this is one file of a network's weights, rather than a place where ImageNet's are looked for.

    A state dict of ``torch.save`` is one as ``.pt``; ``.pth`` is how torchvision publishes ImageNet's.
    """
    return weights.suffix in (".safetensors", ".pt") and not weights.is_dir()


def set_precision(experiment: Experiment) -> None:
    """Set Keras's dtype policy: the experiment's, or for ``auto`` what the device gains from."""
    policy = experiment.precision
    if policy == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        # Tensor cores came with compute capability 7.0 (Volta); before it, and on CPUs, float16 is slower.
        policy = "mixed_float16" if details.get("compute_capability", (0, 0)) >= (7, 0) else "float32"
    keras.config.set_dtype_policy(policy)


def set_determinism(experiment: Experiment) -> None:
    """Make TensorFlow repeat itself bit for bit, or not, as the experiment says; set before any graph is made.

    For the whole process, until the next call.
    """
    if experiment.deterministic:
        # Otherwise threads add the same numbers in another order from run to run.
        tf.config.experimental.enable_op_determinism()
    else:
        disable_op_determinism()
    # Grappler's arithmetic optimizer writes sums anew, with their terms in an order that differs from process to
    # process: weight decay joins the sum of the micro-batches' gradients, or what clipping multiplies.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": not experiment.deterministic})


def phases_of(experiment: Experiment) -> list[Phase]:
    """The experiment's phases: the encoder frozen first, then the whole network; each has its own schedule."""
    phases = []
    if experiment.frozen_epochs:
        rate = experiment.frozen_learning_rate or experiment.learning_rate
        phases.append(Phase("frozen", 0, experiment.frozen_epochs, False, rate))
    phases.append(Phase("whole", experiment.frozen_epochs, experiment.epochs, True, experiment.learning_rate))
    return phases


def plan_of(
    experiment: Experiment, first_epoch: int, epochs: int, first_step: int = 0, skip: tuple[int, ...] = ()
) -> TrainingPlan:
    """The images drawn in some epochs of an experiment, and how they are augmented."""
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
        first_step=first_step,
        skip=skip,
    )


def skipped_images(folder: Path, image_ids: Sequence[str]) -> tuple[int, ...]:
    """The images that the run has left out so far, by their index."""
    table = _read_nan_batches(folder)
    skipped = set(table.loc[table["action"] == "skipped", "image_id"].astype(str))
    return tuple(index for index, image_id in enumerate(image_ids) if image_id in skipped)


def _read_nan_batches(folder: Path) -> pd.DataFrame:
    path = folder / NAN_BATCHES
    if path.is_file():
        return pd.read_csv(path, dtype={"image_id": str})
    return pd.DataFrame({"epoch": [], "step": [], "image_id": [], "action": []}).astype(
        {"epoch": int, "step": int, "image_id": str, "action": str}
    )


def _number(checkpoint: Path) -> int:
    """A checkpoint folder's position as one number above 0."""
    _, epoch, step = checkpoint.name.split("_")
    return (int(epoch) + 1) * 10**6 + int(step)


def _image_sets(experiment: Experiment, prepared: PreparedFolder) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images, checked against the manifest."""
    check_split(prepared.split)
    if experiment.task == "segmenter":
        prepared.require_masks()
    size = experiment.image_size
    sizes = [int(text) for text in prepared.manifest["sizes"]]
    if size not in sizes:
        raise PneumoError(
            f"{prepared.folder} holds sizes {', '.join(map(str, sizes))}, but the experiment needs {size}. "
            f"Run prepare on the same data and folder with --size {size}."
        )
    image_sets = []
    for subset in ("train", "validation"):
        image_ids = prepared.subset(subset, fold=experiment.fold)
        labels = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids]
        if labels.nunique() < 2:
            raise PneumoError(
                f"The {subset} subset of {prepared.folder} has {int(labels.sum())} positive and "
                f"{int((labels == 0).sum())} negative images; training needs both. Prepare more images."
            )
        with_masks = experiment.task == "segmenter"
        image_sets.append(open_source(prepared, image_ids, size, with_masks, make_array=True))
    return image_sets[0], image_sets[1]
