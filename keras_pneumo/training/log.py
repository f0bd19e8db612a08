"""The log of a training, ``log.csv``, and the weights of its best epochs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import psutil
import tensorflow as tf

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.inference.run import CHECKPOINTS, TORCH_WEIGHTS, WEIGHTS
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.storage.files import write_table
from keras_pneumo.training.checkpoints import flush_folder
from keras_pneumo.training.optimization import inner_optimizer
from keras_pneumo.training.validation import ValidationResult

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
    data_seconds: float = float("nan")
    """Time that the training waited for batches."""
    gradient_norm: float = float("nan")
    """Mean over the images of the gradient's global norm, before it is clipped; steps that overflowed are left out."""
    memory_gb: float = float("nan")
    """The process's memory at the epoch's end, or with GPUs the most that the first one held so far."""

    @property
    def score(self) -> float:
        """What decides which epoch is best: a segmenter's Dice, a classifier's AUROC."""
        return self.validation_auroc if np.isnan(self.validation_dice) else self.validation_dice


@dataclass(frozen=True)
class Pace:
    """How an epoch went, besides its loss."""

    seconds: float = 0.0
    """Wall time of the training steps."""
    images: int = 0
    data_seconds: float = float("nan")
    gradient_norm: float = float("nan")


class Log:
    """The rows of ``log.csv`` so far, over all phases of a run, and the weights of the best of them."""

    def __init__(self, folder: Path, top_k: int = 1, writes: bool = True) -> None:
        """Begin an empty log in ``folder``, where the weights of the best ``top_k`` epochs are kept.

        With ``writes`` False all is known and nothing written: one worker of several writes.
        """
        self.folder = folder
        self.top_k = top_k
        self.writes = writes
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
        self.write()

    def write(self) -> None:
        """Write the log as it is known."""
        if self.writes and self.rows:
            write_table(self.folder / "log.csv", self.frame())

    def frame(self) -> pd.DataFrame:
        """The log as a table; a classifier's has no Dice."""
        table = pd.DataFrame([asdict(row) for row in self.rows])
        return table.drop(columns=[name for name in DICE if table[name].isna().all()])

    def files(self) -> list[str]:
        """The run folder's files that belong to the rows so far: weights, and what was fitted for the best of them."""
        found = [WEIGHTS, TORCH_WEIGHTS] if self.best is not None else []
        if found and (self.folder / RULE_FILE).is_file():  # a training that an earlier version began has none yet
            found.append(RULE_FILE)
        return found + [f"{CHECKPOINTS}/{checkpoint_name(row.epoch)}" for row in self._kept() if self.top_k > 1]

    def judged(
        self,
        model: keras.Model,
        found: ValidationResult,
        epoch: int,
        phase: str,
        loss: float,
        started: float,
        pace: Pace,
    ) -> EpochRow:
        """Keep the weights, and what was fitted for them, if they are good enough; write the row."""
        score = found.auroc if np.isnan(found.dice) else found.dice
        best = self.is_best(score, found.loss)
        if best and self.writes:
            save_best(model, self.folder)
            found.write_fitted(self.folder)
        if self.top_k > 1:
            self._keep(model, epoch, score)
        optimizer = getattr(model, "optimizer", None)
        rate = keras.ops.convert_to_numpy(inner_optimizer(model).learning_rate) if optimizer else float("nan")
        row = EpochRow(
            epoch=epoch,
            phase=phase,
            loss=loss,
            validation_loss=found.loss,
            validation_auroc=found.auroc,
            learning_rate=float(rate),
            seconds=round(time.monotonic() - started, 3),
            images_per_second=round(pace.images / max(pace.seconds, 1e-9), 2),
            best=int(best),
            validation_dice=found.dice,
            validation_dice_positives=found.dice_positives,
            data_seconds=round(pace.data_seconds, 3),
            gradient_norm=pace.gradient_norm,
            memory_gb=memory_gb(),
        )
        self.add(row)
        return row

    def _kept(self) -> list[EpochRow]:
        """The rows whose weights are among the best ``top_k``; of equals the earlier ones."""
        ranked = sorted((row for row in self.rows if np.isfinite(row.score)), key=lambda row: -row.score)
        return ranked[: self.top_k]

    def _keep(self, model: keras.Model, epoch: int, score: float) -> None:
        """Keep the epoch's weights while it is among the best; of equals the earlier one stays."""
        kept = self._kept()
        if not self.writes or not np.isfinite(score) or (len(kept) == self.top_k and score <= kept[-1].score):
            return
        folder = self.folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        save_weights(model, folder / checkpoint_name(epoch))
        if len(kept) == self.top_k:
            (folder / checkpoint_name(kept[-1].epoch)).unlink(missing_ok=True)


def checkpoint_name(epoch: int) -> str:
    """File of an epoch's weights in the run's folder of checkpoints."""
    return f"epoch_{epoch:03d}.weights.h5"


def save_best(model: keras.Model, folder: Path) -> None:
    """Write the weights for Keras, and for PyTorch under its names; each file replaces the one before at once."""
    save_weights(model, folder / WEIGHTS)
    save_safetensors(model, folder / TORCH_WEIGHTS)


def save_weights(model: keras.Model, path: Path) -> None:
    """Write the weights for Keras, flushed to the disk; the file replaces the one before at once.

    Raises:
        PneumoError: they cannot be written; the file is then as it was.
    """
    temporary = path.parent / f"writing.{path.name}"
    try:
        model.save_weights(temporary)
        with temporary.open("rb") as stream:  # Keras has closed it; a power cut must find the weights whole
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise PneumoError(
            f"The weights could not be written in {path.parent}: {_reason(error)}. Those of the best epoch "
            "before stand. "
            "Free some space there and run the same command again; it goes on from the last checkpoint."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or next(iter(_lines(error)), type(error).__name__)


def _lines(error: Any) -> Iterator[str]:
    yield from (line for line in str(error).splitlines() if line)


def memory_gb() -> float:
    """What this process holds now; with GPUs the most that the first one held so far."""
    if tf.config.list_logical_devices("GPU"):
        return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9, 3)
    return round(psutil.Process().memory_info().rss / 1e9, 3)
