"""What the parts of one training share: its phases, the manner it is carried out in, where it stands, what it writes.

``loop`` moves it on, and ``fit`` makes a run folder of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import TrainingPlan
from keras_pneumo.errors import Stopped
from keras_pneumo.inference.predictor import MicroBatchPredictor, Predictor
from keras_pneumo.inference.run import CHECKPOINTS
from keras_pneumo.training import checkpoints, memory
from keras_pneumo.training.averaging import WeightAverage
from keras_pneumo.training.callbacks import CheckpointInterval, TrainProgress
from keras_pneumo.training.distributed.strategy import ONE, Engine
from keras_pneumo.training.interrupt import Interruption
from keras_pneumo.training.log import EpochRow, Events, Log
from keras_pneumo.training.state import State, capture, position_of, put_back_model
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.validation import ValidationResult, Validator


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same weights learning and one schedule of its own."""

    name: str
    first_epoch: int
    epochs: int
    encoder_learns: bool
    learning_rate: float


EVERY = CheckpointInterval()


@dataclass(frozen=True)
class TrainingOptions:
    """How a training is carried out. What is learnt changes with two things only: images that are left out, and slices,
    where the memory is too small for whole batches and BatchNorm learns, which takes each slice's statistics."""

    engine: Engine = ONE
    every: CheckpointInterval = EVERY
    """How often a checkpoint is written."""
    resume: bool = False
    """Whether the folder holds an unfinished training of the same experiment and data, to go on with."""
    skip_nan: bool = False
    """Whether images whose batch gave no finite loss are left out from then on, rather than ending the training."""
    auto_batch: bool = False
    """Whether to find out beforehand how much of a batch fits into memory."""
    tell: Callable[[str], None] = lambda sentence: None
    """Is told, in sentences, what a person should know."""


def phases_of(experiment: Experiment) -> list[Phase]:
    """The experiment's phases: the encoder frozen first, then thawed; each has its own schedule."""
    phases = []
    if experiment.frozen_epochs:
        rate = experiment.frozen_learning_rate or experiment.learning_rate
        phases.append(Phase("frozen", 0, experiment.frozen_epochs, False, rate))
    phases.append(Phase("whole", experiment.frozen_epochs, experiment.epochs, True, experiment.learning_rate))
    return phases


def plan_of(
    experiment: Experiment, first_epoch: int, epochs: int, first_step: int = 0, skip: tuple[int, ...] = ()
) -> TrainingPlan:
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
        first_step=first_step,
        skip=skip,
    )


@dataclass
class Trainer:
    """What the parts of one training share."""

    experiment: Experiment
    manner: TrainingOptions
    folder: Path
    model: keras.Model
    training: ImageSet
    log: Log
    known: dict[str, str]
    interruption: Interruption
    on_epoch: Callable[[EpochRow], None]
    progress: TrainProgress | None
    judge: Validator = field(init=False)
    state: State = field(default_factory=State)
    average: WeightAverage | None = None
    slices: int = 1
    predicted: int | None = None
    """Images that validation can predict at once, on all devices together, where that was found to be few."""
    skip: tuple[int, ...] = ()
    began: float = field(default_factory=time.monotonic)
    before: float = 0.0
    """Wall time of the processes before this one."""

    def __post_init__(self) -> None:
        """Open the events; begin the average."""
        self.events = Events(self.folder if self.manner.engine.chief else None)
        self.phases = phases_of(self.experiment)
        self.sizes = [len(rows) for rows in plan_of(self.experiment, 0, 1).rows(len(self.training))]
        self.new_average()

    @property
    def part(self) -> int:
        """Images of the largest part of a batch that one replica takes."""
        return -(-max(self.sizes) // self.manner.engine.replicas)

    @property
    def most_slices(self) -> int:
        """In more slices a part of the smallest batch would leave one empty."""
        return max(min(self.sizes) // self.manner.engine.replicas, 1)

    @property
    def slice_size(self) -> int:
        """Images of the largest slice, those that one replica takes at once."""
        return memory.in_a_slice(self.part, self.slices)

    def kept_slices(self, found: checkpoints.Checkpoint | None) -> int:
        """The slices that the training of a checkpoint had, or needs since; 0: unknown, or of other parts of a batch.

        It keeps them whatever has been found since: an unbroken training would have.
        """
        engine = self.manner.engine
        if found is None:
            return 0
        had = int(found.state.get("slices", 0)) if found.state.get("replicas") == engine.replicas else 0
        return engine.largest(max(had, memory.needed(self.folder, engine.replicas)))

    @property
    def at_once(self) -> int:
        """Images that validation predicts at once: a batch, or what one slice holds on all replicas, or fewer yet."""
        batch, replicas = self.experiment.global_batch_size, self.manner.engine.replicas
        fits = batch if self.slices == 1 else self.slice_size * replicas
        return min(batch, fits, self.predicted or batch)

    def validate(self, network: Predictor) -> ValidationResult:
        """How good a network is on the validation images.

        Raises:
            PneumoError: the memory is too small to predict an image.
            Stopped: it is too small for what several workers predict at once; the next start predicts fewer.
        """
        return self.judge(MicroBatchPredictor(network, self.at_once, self.manner.engine.replicas, self._predict_fewer))

    def recall_predicted(self) -> None:
        """Take what was found before of the images that validation can predict at once; the same on every worker."""
        engine, batch = self.manner.engine, self.experiment.global_batch_size
        fits = memory.recall(self.experiment, predicting=True)
        parts = engine.largest(-(-batch // (fits * engine.replicas)) if fits else 1)
        self.predicted = -(-batch // parts)

    def _predict_fewer(self, images: int) -> None:
        self.predicted = images
        engine = self.manner.engine
        memory.remember(self.experiment, max(images // engine.replicas, 1), predicting=True)
        if engine.workers > 1:
            raise Stopped(
                f"Out of memory in validation on worker {engine.worker}. From now on {images} images are predicted at "
                "once. Start all workers again; they go on from the last checkpoint."
            )
        self.manner.tell(f"Out of memory in validation: {images} images are predicted at once from now on.")

    def new_average(self) -> None:
        """Begin the average of the last epochs' weights, where the experiment has one."""
        experiment = self.experiment
        last = experiment.total_epochs - experiment.swa_epochs
        self.average = WeightAverage(last) if experiment.swa_epochs else None

    def elapsed(self) -> float:
        """Wall time of the training so far."""
        return self.before + time.monotonic() - self.began

    def next_phase(self) -> None:
        """Move the state to the start of the next phase, or past the last one."""
        number = self.state.phase + 1
        last = number >= len(self.phases)
        self.state.begin_phase(number, self.experiment.total_epochs if last else self.phases[number].first_epoch)

    def tell_epoch(self, row: EpochRow) -> None:
        """Pass on a row of the log."""
        self.events.epoch(row)
        self.on_epoch(row)

    def save(self, network: TrainingNetwork | None) -> None:
        """Write a checkpoint, if this worker is the one that does."""
        if not self.manner.engine.chief:
            return
        self.state.elapsed = self.elapsed()
        optimizer = network.optimizer if network is not None else None
        arrays, written = capture(self.state, self.model, optimizer, self.log, self.average, self.known)
        written |= {"slices": self.slices, "replicas": self.manner.engine.replicas}
        checkpoints.save(self.folder, self.state.epoch, self.state.step, arrays, written, self.log.files())

    def go_back(self, found: checkpoints.Checkpoint) -> None:
        """Put everything back as it was at a checkpoint; the optimizer follows when it is made."""
        self.state = position_of(found)
        self.new_average()
        put_back_model(found, self.model, self.log, self.average)
        if self.manner.engine.chief:
            checkpoints.put_back(self.folder, found, f"{CHECKPOINTS}/epoch_*.weights.h5")
            self.log.write()
