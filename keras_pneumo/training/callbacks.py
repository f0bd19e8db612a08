"""What happens between two steps or two epochs: signals, counting, validation, checkpoints.

Signals finish the step, save, and end the process with a code that says whether to start again. SIGTERM and SIGUSR1
(Slurm's warning before the time limit, ``--signal=USR1@120``) end with :data:`AGAIN` (75), which a job script may
requeue on; Ctrl-C with 130. A second Ctrl-C ends the process at once, which loses only what came after the last
checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras
import numpy as np

from keras_pneumo.errors import AGAIN, PneumoError, Stopped
from keras_pneumo.training.averaging import averaged_weights, keep_average
from keras_pneumo.training.checkpoints import TrainingState
from keras_pneumo.training.distributed.strategy import Distribution
from keras_pneumo.training.log import EpochMeasures, EpochRow, Events, Log
from keras_pneumo.training.optimizers import inner_optimizer
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.validation import Validator

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

TrainProgress = Callable[..., None]
"""Called with images done, images in all, and perhaps a short note."""


class Interruption:
    """Catches the signals that ask a training to stop, and remembers the first one."""

    def __init__(self, notify: Callable[[str], None] = lambda message: None) -> None:
        """``notify`` is called with a message when a signal comes."""
        self.notify = notify
        self.number: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether to stop after the step."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """What the process is to exit with."""
        return INTERRUPTED if self.number == signal.SIGINT else AGAIN

    @property
    def name(self) -> str:
        """The signal, as a person calls it."""
        if self.number is None:
            return "A signal to another worker"
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def listening(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the signals are caught."""
        return _handled_by(self._caught)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        first = self.number is None
        self.number = number if first else self.number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if first:
            again = " Ctrl-C once more stops at once." if number == signal.SIGINT else ""
            self.notify(f"{self.name}: this step is finished and saved, then the training stops.{again}")


def stopped_at_once(sentence: str) -> contextlib.AbstractContextManager[None]:
    """A context in which these signals end the work at once, since there is nothing to save.

    Raises:
        Stopped: a signal came; ``sentence`` says what a new start does.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        interruption = Interruption()
        interruption.number = number
        raise Stopped(f"{interruption.name} came. {sentence}", interruption.exit_code)

    return _handled_by(stop)


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context the signals go to ``handler``; in another thread than the main one none can be caught."""
    before = {}
    try:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class NotFinite(Exception):  # noqa: N818 caught by the training itself
    """A step's loss or gradient is no finite number; ``epoch`` and ``step`` count from 0."""

    def __init__(self, epoch: int, step: int, what: str) -> None:
        """Where it happened, and which number was not finite."""
        super().__init__(what)
        self.epoch, self.step, self.what = epoch, step, what


class StepCounter(keras.callbacks.Callback):
    """Counts each step into the state, reports it, and ends the phase on a loss that is not finite."""

    def __init__(
        self,
        state: TrainingState,
        sizes: list[int],
        total_epochs: int,
        interruption: Interruption,
        events: Events,
        progress: TrainProgress | None,
    ) -> None:
        """``sizes`` are the images of each step of an epoch."""
        super().__init__()
        self.state = state
        self.sizes = sizes
        self.total_epochs = total_epochs
        self.interruption = interruption
        self.events = events
        self.progress = progress
        self.began = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the step's clock, and pass on whether this worker has a request to stop after it."""
        self.began = time.monotonic()
        self.model.stop_request = int(self.interruption.wanted)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the step's loss and gradient norm to the state.

        Raises:
            NotFinite: one of the two is no finite number.
        """
        values = logs or {}
        loss, norm = float(values["loss"]), float(values["gradient_norm"])
        state, network = self.state, self.model
        seconds = time.monotonic() - self.began
        scaled = hasattr(network.optimizer, "inner_optimizer")  # which itself leaves out steps whose gradient is not
        if not np.isfinite(loss) or not (scaled or np.isfinite(norm)):
            what = f"loss is {loss}" if not np.isfinite(loss) else f"gradient's norm is {norm}"
            raise NotFinite(state.epoch, state.step, what)
        images = self.sizes[state.step]
        state.step += 1
        state.loss_sum += loss * images
        state.images += images
        if np.isfinite(norm):
            state.norm_sum += norm * images
            state.norm_images += images
        state.seconds += seconds
        state.data_seconds += network.data_seconds
        self.events.step(
            state.epoch * len(self.sizes) + state.step,
            {
                "loss": loss,
                "gradient_norm": norm,
                "images_per_second": images / max(seconds, 1e-9),
                "data_seconds": network.data_seconds,
            },
        )
        network.data_seconds = 0.0
        if self.progress:
            done = state.epoch * sum(self.sizes) + state.images
            self.progress(done, self.total_epochs * sum(self.sizes), f"epoch {state.epoch + 1}, loss {loss:.3f}")


class EpochValidation(keras.callbacks.Callback):
    """After each epoch: exact scores on all validation images, a row of the log, and the best weights saved.

    With an exponential moving average, the averaged weights are what is validated and saved; BatchNorm's statistics,
    which are averages already, are taken as they are. The plateau lowers the rate, ``patience`` ends the phase.
    """

    def __init__(
        self,
        state: TrainingState,
        log: Log,
        validate: Validator,
        phase: str,
        on_epoch: Callable[[EpochRow], None],
        patience: int | None = None,
    ) -> None:
        """Validate with ``validate``."""
        super().__init__()
        self.state = state
        self.log = log
        self.validate = validate
        self.phase = phase
        self.on_epoch = on_epoch
        self.patience = patience

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Validate, log, keep the weights, and go on as the score says."""
        state = self.state
        images = max(state.images, 1)
        before = self.log.best
        norm = state.norm_sum / state.norm_images if state.norm_images else float("nan")
        pace = EpochMeasures(state.seconds, state.images, state.data_seconds, norm)
        started = time.monotonic() - state.seconds
        with averaged_weights(self.model):
            result = self.validate(self.model)
            row = self.log.add_epoch(self.model, result, epoch + 1, self.phase, state.loss_sum / images, started, pace)
        self.on_epoch(row)
        if state.plateau is not None:
            inner_optimizer(self.model).learning_rate = state.plateau.step(row.score)
        state.waited = 0 if before is None or row.score > before.score else state.waited + 1
        if self.patience is not None and state.waited >= self.patience:
            self.model.stop_training = True


@dataclass(frozen=True)
class CheckpointInterval:
    """How often a checkpoint is written: after so many seconds, or after so many steps."""

    seconds: float | None = 300.0
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> CheckpointInterval:
        """``300``, ``300s`` or ``5min`` (time), ``200steps``.

        Raises:
            PneumoError: it is none of these.
        """
        number = text.strip().lower()
        for ending, scale in (("steps", 0), ("step", 0), ("min", 60), ("s", 1), ("", 1)):
            if not number.endswith(ending):
                continue
            digits = number.removesuffix(ending).strip()
            if scale == 0 and digits.isdigit() and int(digits) > 0:
                return cls(None, int(digits))
            if scale and digits.replace(".", "", 1).isdigit():
                return cls(float(digits) * scale)
        raise PneumoError(f"{text!r} is no time between checkpoints. Write seconds (300, 300s, 5min) or 200steps.")


class CheckpointSaver(keras.callbacks.Callback):
    """Writes checkpoints, moves the state on when an epoch or a phase ends, and stops when a signal asks for it."""

    def __init__(
        self,
        state: TrainingState,
        epochs_end: int,
        next_phase: Callable[[], None],
        steps: int,
        every: CheckpointInterval,
        save: Callable[[TrainingNetwork | None], None],
        interruption: Interruption,
        distribution: Distribution,
    ) -> None:
        """Where the training stands, and when and how to save it.

        Args:
            state: moved on when an epoch ends.
            epochs_end: the epoch after the phase's last one.
            next_phase: moves the state on to the next phase.
            steps: steps of an epoch.
            every: how often to write.
            save: writes a checkpoint; of the network with its optimizer, or None between two phases.
            interruption: the signals.
            distribution: tells whether there are other workers, which have to stop at the same step.
        """
        super().__init__()
        self.state = state
        self.epochs_end = epochs_end
        self.next_phase = next_phase
        self.steps = steps
        self.every = every
        self.save = save
        self.interruption = interruption
        self.distribution = distribution
        self.only_worker = distribution.workers == 1
        self.saved = time.monotonic()
        self.since = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time to, or if any worker has a request to stop."""
        self.since += 1
        requested = float((logs or {}).get("stop_requests", 0)) > 0
        if requested or self._due():
            self._save(self.model)
        if requested:
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Move on, at the end of the phase with the averaged weights; save if it is time to."""
        if epoch + 1 >= self.epochs_end or self.model.stop_training:
            self.model.stop_training = True
            keep_average(self.model)
            self.next_phase()
            self._save(None)
        else:
            self.state.begin_epoch(epoch + 1)
            if self._due() or (self.interruption.wanted and self.only_worker):
                self._save(self.model)
        if self.interruption.wanted and self.only_worker:
            self._stop()

    def _due(self) -> bool:
        if self.every.steps is not None:
            return self.since >= self.every.steps
        return self.every.seconds is not None and time.monotonic() - self.saved >= self.every.seconds

    def _save(self, network: TrainingNetwork | None) -> None:
        self.save(network)
        self.saved, self.since = time.monotonic(), 0

    def _stop(self) -> None:
        self.distribution.broadcast(0)  # no worker leaves before the chief has saved: a scheduler may then end them all
        position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
        raise Stopped(
            f"{self.interruption.name} came at {position}; everything is saved. Run the same command again to go on.",
            self.interruption.exit_code,
        )
