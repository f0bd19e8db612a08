"""What happens around the training steps: validation, the log, the weights kept, progress, and a stop on NaN."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.files import write_table
from keras_pneumo.data.pipeline import TrainingPlan
from keras_pneumo.errors import PneumoError
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.prediction.run import CHECKPOINTS, TORCH_WEIGHTS, WEIGHTS, load_weights
from keras_pneumo.training.averaging import averaged_weights
from keras_pneumo.training.optimization import inner_optimizer
from keras_pneumo.training.schedules import Plateau
from keras_pneumo.training.validation import Judge, Judged

TrainProgress = Callable[[int, int, str], None]
"""Called with images done, images in all, and a short note."""

DICE = ("validation_dice", "validation_dice_positives")


@dataclass(frozen=True)
class EpochRow:
    """A row of ``log.csv``; epochs are counted from 1 over both phases, and 0 is a start from another run's weights."""

    epoch: int
    phase: str
    loss: float
    validation_loss: float
    validation_auroc: float
    learning_rate: float
    seconds: float
    images_per_second: float
    best: int
    validation_dice: float = float("nan")
    validation_dice_positives: float = float("nan")

    @property
    def score(self) -> float:
        """What decides which epoch is best: a segmenter's Dice, a classifier's AUROC."""
        return self.validation_auroc if np.isnan(self.validation_dice) else self.validation_dice


class Log:
    """The rows of ``log.csv`` so far, over all phases of a run, and the weights of the best of them."""

    def __init__(self, folder: Path, top_k: int = 1) -> None:
        """Begin an empty log in ``folder``, where the weights of the best ``top_k`` epochs are kept."""
        self.folder = folder
        self.top_k = top_k
        self.rows: list[EpochRow] = []

    @property
    def best(self) -> EpochRow | None:
        """The last row that was the best when it was written."""
        return next((row for row in reversed(self.rows) if row.best), None)

    def is_best(self, score: float, validation_loss: float) -> bool:
        """Higher score, and at the same score a lower loss; nothing that is not finite is ever the best."""
        if not np.isfinite([score, validation_loss]).all():
            return False
        if self.best is None:
            return True
        return (score, -validation_loss) > (self.best.score, -self.best.validation_loss)

    def add(self, row: EpochRow) -> None:
        """Write the log with one more row."""
        self.rows.append(row)
        write_table(self.folder / "log.csv", self.frame())

    def frame(self) -> pd.DataFrame:
        """The log as a table; a classifier's has no Dice."""
        table = pd.DataFrame([asdict(row) for row in self.rows])
        return table.drop(columns=[name for name in DICE if table[name].isna().all()])

    def judged(
        self, model: keras.Model, found: Judged, epoch: int, phase: str, loss: float, started: float, speed: float
    ) -> EpochRow:
        """Keep the weights if they are good enough, and write the row."""
        score = found.auroc if np.isnan(found.dice) else found.dice
        best = self.is_best(score, found.loss)
        if best:
            save_best(model, self.folder)
        if self.top_k > 1:
            self._keep(model, epoch, score)
        rate = getattr(model, "optimizer", None) and keras.ops.convert_to_numpy(inner_optimizer(model).learning_rate)
        row = EpochRow(
            epoch=epoch,
            phase=phase,
            loss=loss,
            validation_loss=found.loss,
            validation_auroc=found.auroc,
            learning_rate=float("nan") if rate is None else float(rate),
            seconds=round(time.monotonic() - started, 3),
            images_per_second=round(speed, 2),
            best=int(best),
            validation_dice=found.dice,
            validation_dice_positives=found.dice_positives,
        )
        self.add(row)
        return row

    def _keep(self, model: keras.Model, epoch: int, score: float) -> None:
        """Keep the epoch's weights while it is among the best; of equals the earlier one stays."""
        ranked = sorted((row for row in self.rows if np.isfinite(row.score)), key=lambda row: -row.score)
        kept = ranked[: self.top_k]
        if not np.isfinite(score) or (len(kept) == self.top_k and score <= kept[-1].score):
            return
        folder = self.folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        path = folder / checkpoint_name(epoch)
        temporary = folder / f"writing.{path.name}"
        model.save_weights(temporary)
        temporary.replace(path)
        if len(kept) == self.top_k:
            (folder / checkpoint_name(kept[-1].epoch)).unlink(missing_ok=True)


class Validation(keras.callbacks.Callback):
    """After each epoch: exact scores on all validation images, a row of the log, and the best weights saved.

    With an exponential moving average, the averaged weights are what is validated and saved; BatchNorm's statistics,
    which are averages already, are taken as they are. ``plateau`` lowers the rate, ``patience`` ends the phase.
    """

    def __init__(
        self,
        log: Log,
        judge: Judge,
        phase: str,
        images: int,
        on_epoch: Callable[[EpochRow], None],
        plateau: Plateau | None = None,
        patience: int | None = None,
    ) -> None:
        """Validate with ``judge``; ``images`` is how many are drawn in an epoch of training."""
        super().__init__()
        self.log = log
        self.judge = judge
        self.phase = phase
        self.images = images
        self.on_epoch = on_epoch
        self.plateau = plateau
        self.patience = patience
        self.waited = 0
        self.started = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the epoch's clock."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Validate, log, keep the weights, and go on as the score says."""
        trained = time.monotonic() - self.started
        loss = float((logs or {}).get("loss", np.nan))
        before = self.log.best
        with averaged_weights(self.model):
            found = self.judge(self.model)
            speed = self.images / max(trained, 1e-9)
            row = self.log.judged(self.model, found, epoch + 1, self.phase, loss, self.started, speed)
        self.on_epoch(row)
        if self.plateau is not None:
            inner_optimizer(self.model).learning_rate = self.plateau.step(row.score)
        self.waited = 0 if before is None or row.score > before.score else self.waited + 1
        if self.patience is not None and self.waited >= self.patience:
            self.model.stop_training = True


class Steps(keras.callbacks.Callback):
    """Reports progress after each step, and stops the run on a loss that is not finite."""

    def __init__(
        self,
        plan: TrainingPlan,
        labels: np.ndarray,
        image_ids: tuple[str, ...],
        done: int,
        images_per_step: float,
        total: int,
        progress: TrainProgress | None,
        folder: Path,
    ) -> None:
        """``done`` images of earlier phases, ``total`` images in all phases; ``folder`` has the best weights."""
        super().__init__()
        self.plan = plan
        self.labels = labels
        self.image_ids = image_ids
        self.done = float(done)
        self.images_per_step = images_per_step
        self.total = total
        self.progress = progress
        self.folder = folder
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Remember the epoch for messages."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count the step's images; Keras's ``loss`` is the mean since the epoch began, so NaN stays NaN."""
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            raise PneumoError(self._stop(loss, batch))
        self.done += self.images_per_step
        if self.progress:
            self.progress(round(self.done), self.total, f"epoch {self.epoch + 1}, loss {loss:.3f}")

    def _stop(self, loss: float, batch: int) -> str:
        """Go back to the best weights, and say what happened on which images."""
        drawn = next(itertools.islice(self._this_epoch(), batch, None))
        names = ", ".join(self.image_ids[index] for index in drawn)
        if (self.folder / WEIGHTS).is_file():
            load_weights(self.model, self.folder / WEIGHTS)
            back = f"The weights are back at the best ones so far, kept in {self.folder / WEIGHTS}."
        else:
            back = "No epoch was complete, so no weights are kept."
        return (
            f"The loss is {loss} at epoch {self.epoch + 1}, step {batch + 1}, on the images {names}. {back} "
            "Look at these images; lower learning_rate, or set clip_norm."
        )

    def _this_epoch(self) -> Iterator[np.ndarray]:
        plan = self.plan
        steps = -(-len(self.labels) // plan.batch_size)
        first = (self.epoch - plan.first_epoch) * steps
        return (indices for indices, *_ in itertools.islice(plan.batches(self.labels), first, None))


def checkpoint_name(epoch: int) -> str:
    """File of an epoch's weights in the run's folder of checkpoints."""
    return f"epoch_{epoch:03d}.weights.h5"


def save_best(model: keras.Model, folder: Path) -> None:
    """Write the weights for Keras, and for PyTorch under its names; each file replaces the one before at once."""
    temporary = folder / f"writing.{WEIGHTS}"
    model.save_weights(temporary)
    temporary.replace(folder / WEIGHTS)
    save_safetensors(model, folder / TORCH_WEIGHTS)
