"""What happens between two steps or two epochs: stop requests, counting, validation, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.storage.interruption import Interruption
from keras_pneumo.training.averaging import averaged_weights, keep_average
from keras_pneumo.training.checkpoints import TrainingState
from keras_pneumo.training.distributed.strategy import Distribution
from keras_pneumo.training.log import EpochMeasures, EpochRow, Events, Log
from keras_pneumo.training.optimizers import inner_optimizer
from keras_pneumo.training.step import TrainingNetwork
from keras_pneumo.training.validation import Validator

STEPS_BETWEEN_READS = 10
SECONDS_BETWEEN_READS = 0.25
"""After how many steps, or how long, their losses are read on the host, whichever comes first."""

TrainProgress = Callable[..., None]
"""Called with images done, images in all, and perhaps a short note."""


class NotFinite(Exception):  # noqa: N818 caught by the training itself
    """A step's loss or gradient is no finite number; ``epoch`` and ``step`` count from 0."""

    def __init__(self, epoch: int, step: int, what: str) -> None:
        """Where it happened, and which number was not finite."""
        super().__init__(what)
        self.epoch, self.step, self.what = epoch, step, what


class StepCallbacks(keras.callbacks.CallbackList):
    """Callbacks that are handed each step's loss and norm as tensors: Keras's own list reads all of them on the host.

    Each such reading waits for the device, so the host could not prepare the next step meanwhile.
    """

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Call every callback, with the tensors as they are."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs=logs)


@dataclass(frozen=True)
class UnreadStep:
    """A step whose loss and norm are still on the device."""

    epoch: int
    """Both count from 0."""
    step: int
    images: int
    seconds: float
    data_seconds: float
    values: dict[str, Any]
    """The step's tensors, each without dimensions."""


class StepCounter(keras.callbacks.Callback):
    """Counts each step into the state, reports it, and ends the phase on a loss that is not finite.

    Loss and norm are read when they are needed, not after each step: all steps but the last one every
    :data:`STEPS_BETWEEN_READS` steps or :data:`SECONDS_BETWEEN_READS` seconds, and the last one too before a checkpoint
    and at the end of an epoch. So nothing that is kept has seen a step whose loss is unknown, and a loss that is not
    finite is reported for its own step, some steps later. With several workers everything that they must do at the same
    step (to stop, to go back) follows from the step before the last, which each of them reads after each step.
    """

    def __init__(
        self,
        state: TrainingState,
        sizes: list[int],
        total_epochs: int,
        interruption: Interruption,
        events: Events,
        progress: TrainProgress | None,
        several_workers: bool = False,
    ) -> None:
        """``sizes`` are the images of each step of an epoch."""
        super().__init__()
        self.state = state
        self.sizes = sizes
        self.total_epochs = total_epochs
        self.interruption = interruption
        self.events = events
        self.progress = progress
        self.several_workers = several_workers
        self.requested = False
        """Whether a worker has asked to stop, by the steps that are read; the same on every worker."""
        self.unread: list[UnreadStep] = []
        self.loss = float("nan")
        self.began = time.monotonic()
        self.read_at = self.shown_at = -float("inf")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the step's clock, and pass on whether this worker has a request to stop after it."""
        self.began = time.monotonic()
        self.model.stop_request = int(self.interruption.wanted)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the step, and read earlier ones if it is time to.

        Raises:
            NotFinite: the loss or the gradient norm of a step that was read is no finite number.
        """
        state, network = self.state, self.model
        now = time.monotonic()
        images, seconds = self.sizes[state.step], now - self.began
        self.unread.append(UnreadStep(state.epoch, state.step, images, seconds, network.data_seconds, logs or {}))
        state.step += 1
        state.images += images
        state.seconds += seconds
        state.data_seconds += network.data_seconds
        network.data_seconds = 0.0
        if self.several_workers:
            self.read(unread=0 if state.step == len(self.sizes) else 1)
        elif np.isnan(self.loss):  # the first step: it has waited for the tracing anyway
            self.read()
        elif len(self.unread) > STEPS_BETWEEN_READS or now - self.read_at >= SECONDS_BETWEEN_READS:
            self.read(unread=1)
        if now - self.shown_at >= SECONDS_BETWEEN_READS:
            self.show()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Read all steps, before the epoch is validated.

        Raises:
            NotFinite: as :meth:`on_train_batch_end`.
        """
        self.read()
        self.show()

    def read(self, unread: int = 0) -> None:
        """Add the losses and norms of all steps but the last ``unread`` to the state, in their order.

        Raises:
            NotFinite: one of them is no finite number; that of the earliest such step.
        """
        steps, self.unread = self.unread[: len(self.unread) - unread], self.unread[len(self.unread) - unread :]
        if not steps:
            return
        state, started = self.state, time.monotonic()
        losses, norms, requests = values_of(steps)
        self.requested |= bool((requests > 0).any())
        self.read_at = time.monotonic()
        state.seconds += self.read_at - started  # the device was at work on these steps meanwhile
        rate = sum(step.images for step in steps) / max(sum(s.seconds for s in steps) + self.read_at - started, 1e-9)
        for step, loss, norm in zip(steps, losses.tolist(), norms.tolist(), strict=True):
            if what := self._not_finite(loss, norm):
                raise NotFinite(step.epoch, step.step, what)
            self.loss = loss
            state.loss_sum += loss * step.images
            if np.isfinite(norm):
                state.norm_sum += norm * step.images
                state.norm_images += step.images
            figures = {"loss": loss, "gradient_norm": norm, "images_per_second": rate}
            number = step.epoch * len(self.sizes) + step.step + 1
            self.events.step(number, {**figures, "data_seconds": step.data_seconds})

    def settle(self) -> bool:
        """Read all steps before a checkpoint is written.

        Returns:
            Whether all are finite. False: the last one is not, which the other workers do not know yet; the next step
            ends the phase on all of them.

        Raises:
            NotFinite: a step's loss or norm is no finite number; with several workers never.
        """
        if self.several_workers:
            losses, norms, _ = values_of(self.unread)
            if any(self._not_finite(*pair) for pair in zip(losses, norms, strict=True)):
                return False
        self.read()
        return True

    def show(self) -> None:
        """Report how far the training is, once the loss of a step is known."""
        if self.progress and not np.isnan(self.loss):
            self.shown_at = time.monotonic()
            state, images = self.state, sum(self.sizes)
            done, note = state.epoch * images + state.images, f"epoch {state.epoch + 1}, loss {self.loss:.3f}"
            self.progress(done, self.total_epochs * images, note)

    def _not_finite(self, loss: float, norm: float) -> str:
        """What is not finite of a step; "" where all is."""
        if not np.isfinite(loss):
            return f"loss is {loss}"
        scaled = hasattr(self.model.optimizer, "inner_optimizer")  # which itself leaves out steps whose gradient is not
        return "" if scaled or np.isfinite(norm) else f"gradient's norm is {norm}"


def values_of(steps: list[UnreadStep]) -> np.ndarray:
    """Loss, gradient norm and stop requests of some steps, (3, n), read from the device in one go."""
    values = [step.values[name] for name in ("loss", "gradient_norm", "stop_requests") for step in steps]
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.stack(values))).reshape(3, -1) if steps else np.zeros((3, 0))


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
        wait: Callable[[], None],
        counter: StepCounter,
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
            save: begins to write a checkpoint; of the network with its optimizer, or None between two phases.
            wait: waits until the last checkpoint is on the disk.
            counter: reads the steps' losses, before anything is saved.
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
        self.wait = wait
        self.counter = counter
        self.interruption = interruption
        self.distribution = distribution
        self.only_worker = distribution.workers == 1
        self.saved = time.monotonic()
        self.since = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time to, or if any worker has a request to stop.

        Raises:
            NotFinite: a step since the last checkpoint had a loss that is no finite number; nothing is saved.
            Stopped: there was a request to stop; everything is saved.
        """
        self.since += 1
        if self.interruption.wanted if self.only_worker else self.counter.requested:
            self.counter.read()
            self._save(self.model)
            self._stop()
        elif self._due() and self.counter.settle():
            self._save(self.model)

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
        self.wait()
        self.distribution.broadcast(0)  # no worker leaves before the chief has saved: a scheduler may then end them all
        position = f"epoch {self.state.epoch + 1}, step {self.state.step}"
        raise Stopped(
            f"{self.interruption.name} came at {position}; everything is saved. Run the same command again to go on.",
            self.interruption.exit_code,
        )
