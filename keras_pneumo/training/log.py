"""The log of a training: its rows in ``log.csv``, the weights of its best epochs, TensorBoard's events and its curves.

The rows are the one source: events and ``curves.png`` are made from them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pandas as pd
import psutil
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.history_report import EPOCH
from keras_pneumo.evaluation.report.history_report import FILE as HISTORY
from keras_pneumo.inference.postprocess import FILE as POSTPROCESSING_FILE
from keras_pneumo.inference.run import CHECKPOINTS, TORCH_WEIGHTS, WEIGHTS
from keras_pneumo.models.weights import save_safetensors
from keras_pneumo.storage.files import flush_folder, write_table
from keras_pneumo.training.optimizers import inner_optimizer
from keras_pneumo.training.validation import ValidationResult

EVENTS = "events"
"""In a run folder: TensorBoard's files."""

STEPS_BETWEEN_EVENTS = 10
"""Steps between two points of the curves by step."""

TRAINING_COLOR, VALIDATION_COLOR, BEST_COLOR, RATE_COLOR = "#8a94a6", "#0b6e99", "#c2410c", "#333a45"

DICE = ("validation_dice", "validation_dice_positives")


@dataclass(frozen=True)
class EpochRow:
    """A row of ``log.csv``. Epochs count from 1 over both phases; epoch 0 is a start from another run's weights."""

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
    """Mean over the images of the gradient's global norm before clipping, without the steps that overflowed."""
    memory_gb: float = float("nan")
    """The process's memory at the epoch's end; with GPUs, the peak memory of the first one."""

    @property
    def score(self) -> float:
        """The score by which the best epoch is chosen: a segmenter's Dice, a classifier's AUROC."""
        return self.validation_auroc if np.isnan(self.validation_dice) else self.validation_dice


@dataclass(frozen=True)
class EpochMeasures:
    """Times and sizes of an epoch's training steps."""

    seconds: float = 0.0
    """Wall time of the training steps."""
    images: int = 0
    data_seconds: float = float("nan")
    gradient_norm: float = float("nan")


class Log:
    """The rows of ``log.csv`` so far, over all phases of a run, and the weights of the best of them."""

    def __init__(self, folder: Path, top_k: int = 1, writes: bool = True, validation: ImageSet | None = None) -> None:
        """Begin an empty log in ``folder``, where the weights of the best ``top_k`` epochs are kept.

        With ``writes`` False the rows are kept but nothing is written: only one of several workers writes. Of the
        ``validation`` images the predictions of every epoch are written, too.
        """
        self.validation = validation
        self.folder = folder
        self.top_k = top_k
        self.writes = writes
        self.rows: list[EpochRow] = []

    @property
    def best(self) -> EpochRow | None:
        """The last row that was the best when it was written."""
        return next((row for row in reversed(self.rows) if row.best), None)

    def is_best(self, score: float, validation_loss: float) -> bool:
        """Whether an epoch is the best so far: a higher score, or the same with a lower loss; both must be finite."""
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
        """Write all rows."""
        if self.writes and self.rows:
            write_table(self.folder / "log.csv", self.frame())

    def frame(self) -> pd.DataFrame:
        """The log as a table; a classifier's has no Dice."""
        table = pd.DataFrame([asdict(row) for row in self.rows])
        return table.drop(columns=[name for name in DICE if table[name].isna().all()])

    def files(self) -> list[str]:
        """The run folder's files that belong to the rows so far: weights, and the postprocessing of the best ones."""
        names = [WEIGHTS, TORCH_WEIGHTS] if self.best is not None else []
        if names and (self.folder / POSTPROCESSING_FILE).is_file():  # none yet from earlier versions
            names.append(POSTPROCESSING_FILE)
        return names + [f"{CHECKPOINTS}/{checkpoint_name(row.epoch)}" for row in self._kept() if self.top_k > 1]

    def add_epoch(
        self,
        model: keras.Model,
        result: ValidationResult,
        epoch: int,
        phase: str,
        loss: float,
        started: float,
        measures: EpochMeasures,
    ) -> EpochRow:
        """Add a row for an epoch; keep its weights and fitted postprocessing if they are among the best."""
        score = result.auroc if np.isnan(result.dice) else result.dice
        best = self.is_best(score, result.loss)
        if best and self.writes:
            save_best(model, self.folder)
            result.write_fitted(self.folder)
        if self.top_k > 1:
            self._keep(model, epoch, score)
        optimizer = getattr(model, "optimizer", None)
        rate = keras.ops.convert_to_numpy(inner_optimizer(model).learning_rate) if optimizer else float("nan")
        row = EpochRow(
            epoch=epoch,
            phase=phase,
            loss=loss,
            validation_loss=result.loss,
            validation_auroc=result.auroc,
            learning_rate=float(rate),
            seconds=round(time.monotonic() - started, 3),
            images_per_second=round(measures.images / max(measures.seconds, 1e-9), 2),
            best=int(best),
            validation_dice=result.dice,
            validation_dice_positives=result.dice_positives,
            data_seconds=round(measures.data_seconds, 3),
            gradient_norm=measures.gradient_norm,
            memory_gb=memory_gb(),
        )
        self.add(row)
        if self.writes and self.validation is not None and result.predictions is not None:
            self._add_predictions(epoch, self.validation, result.predictions)
        return row

    def _add_predictions(self, epoch: int, images: ImageSet, predictions: np.ndarray) -> None:
        """Write the predictions of an epoch beside those of earlier ones; columns of later epochs are of a start that
        was killed, and go.
        """
        path = self.folder / HISTORY
        table = pd.DataFrame({"image_id": list(images.image_ids), "pneumothorax": np.asarray(images.labels, int)})
        with contextlib.suppress(OSError, ValueError, KeyError):
            before = pd.read_csv(path, dtype={"image_id": str})
            earlier = [name for name in before.columns if name.startswith(EPOCH)]
            earlier = [name for name in earlier if int(name.removeprefix(EPOCH)) < epoch]
            if before["image_id"].tolist() == table["image_id"].tolist():
                table = table.join(before[earlier])
        table[f"{EPOCH}{epoch}"] = np.round(predictions, 4)
        write_table(path, table)

    def _kept(self) -> list[EpochRow]:
        """The rows of the best ``top_k`` epochs; of two equal ones the earlier one comes first."""
        ranked = sorted((row for row in self.rows if np.isfinite(row.score)), key=lambda row: -row.score)
        return ranked[: self.top_k]

    def _keep(self, model: keras.Model, epoch: int, score: float) -> None:
        """Keep the epoch's weights while it is among the best; of two equal ones the earlier one stays."""
        kept = self._kept()
        if not self.writes or not np.isfinite(score) or (len(kept) == self.top_k and score <= kept[-1].score):
            return
        folder = self.folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        save_weights(model, folder / checkpoint_name(epoch))
        if len(kept) == self.top_k:
            (folder / checkpoint_name(kept[-1].epoch)).unlink(missing_ok=True)


def checkpoint_name(epoch: int) -> str:
    """The file name of an epoch's weights in the run's folder of checkpoints."""
    return f"epoch_{epoch:03d}.weights.h5"


def save_best(model: keras.Model, folder: Path) -> None:
    """Write the weights for Keras, and for PyTorch under its names; each file replaces the earlier one whole."""
    save_weights(model, folder / WEIGHTS)
    save_safetensors(model, folder / TORCH_WEIGHTS)


def save_weights(model: keras.Model, path: Path) -> None:
    """Write the weights for Keras, flushed to the disk; the file replaces the earlier one whole.

    Raises:
        PneumoError: they cannot be written; the earlier file is then unchanged.
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
            f"The weights could not be written in {path.parent}: {_reason(error)}. The weights "
            "of the earlier best epoch are kept. Free some space there and run the same command again; it goes on from "
            "the last checkpoint."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    return error.strerror or next(iter(_lines(error)), type(error).__name__)


def _lines(error: Any) -> Iterator[str]:
    yield from (line for line in str(error).splitlines() if line)


def memory_gb() -> float:
    """This process's memory now; with GPUs, the peak memory of the first one."""
    if tf.config.list_logical_devices("GPU"):
        return round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9, 3)
    return round(psutil.Process().memory_info().rss / 1e9, 3)


class Events:
    """TensorBoard's events of a run: every tenth step's figures, every row of the log, test scores and pictures.

    Written through TensorFlow's own summary writer; looking at them needs TensorBoard, training does not.
    """

    def __init__(self, folder: Path | None) -> None:
        """Open a file of events in the run folder; with None nothing is written."""
        self.writer = tf.summary.create_file_writer(str(folder / EVENTS)) if folder else None
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        self.kind = tf.compat.v1.SummaryMetadata(plugin_data=plugin)

    def step(self, number: int, values: dict[str, float]) -> None:
        """Write the values of a step, numbered from the beginning of the training."""
        if number % STEPS_BETWEEN_EVENTS == 0:
            self._write(number, {f"step/{name}": value for name, value in values.items()})

    def epoch(self, row: EpochRow) -> None:
        """Write a row of the log."""
        numbers = {name: value for name, value in asdict(row).items() if isinstance(value, (int, float))}
        self._write(row.epoch, {f"epoch/{name}": value for name, value in numbers.items() if name != "epoch"})
        if self.writer:
            self.writer.flush()

    def results(self, epoch: int, scores: dict[str, float], pictures: dict[str, bytes]) -> None:
        """Write the test scores, by name, and pictures (PNG), at the epoch that they are of."""
        self._write(epoch, {name.replace("_", "/", 1): value for name, value in scores.items()})
        if not self.writer:
            return
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="images")
        kind = tf.compat.v1.SummaryMetadata(plugin_data=plugin)
        with tf.device("CPU:0"), self.writer.as_default():
            for name, data in pictures.items():
                height, width = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)).shape
                image = tf.constant([str(width).encode(), str(height).encode(), data])  # the form of the plugin
                tf.summary.write(f"test/{Path(name).stem}", image, step=epoch, metadata=kind)

    def close(self) -> None:
        """Flush and close."""
        if self.writer:
            self.writer.close()

    def _write(self, number: int, values: dict[str, float]) -> None:
        if not self.writer:
            return
        with tf.device("CPU:0"), self.writer.as_default():
            for name, value in values.items():
                if value == value:  # a missing value gives no point on a curve
                    # Not tf.summary.scalar, which is TensorBoard's own code.
                    tf.summary.write(name, tf.constant(value, tf.float32), step=number, metadata=self.kind)


def draw_curves(log: pd.DataFrame, path: Path, synthetic: bool = False) -> None:
    """Draw loss, AUROC or Dice, and learning rate by epoch, from the rows of ``log.csv``; the best epoch is marked.

    Args:
        log: the rows.
        path: the picture.
        synthetic: whether the images are phantoms; the picture then says so.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")  # not pyplot, which would change a notebook's backend
    axes = figure.subplots(1, 3)
    epochs = log["epoch"]
    axes[0].plot(epochs, log["loss"], color=TRAINING_COLOR, marker="o", markersize=3, label="training")
    axes[0].plot(epochs, log["validation_loss"], color=VALIDATION_COLOR, marker="o", markersize=3, label="validation")
    score, name = ("validation_dice", "Dice") if "validation_dice" in log else ("validation_auroc", "AUROC")
    axes[0].set_title("Loss" if name == "Dice" else "Cross-entropy")
    axes[0].legend(frameon=False)
    axes[1].plot(epochs, log[score], color=VALIDATION_COLOR, marker="o", markersize=3)
    if name == "AUROC":
        axes[1].axhline(0.5, color=TRAINING_COLOR, linewidth=0.8, linestyle=":")
    axes[1].set_title(f"Validation {name}" + (" on synthetic phantoms" if synthetic else ""))
    best = log[log["best"] == 1].tail(1)
    if len(best):
        row = best.iloc[0]
        axes[1].plot(row["epoch"], row[score], "o", markersize=9, fillstyle="none", color=BEST_COLOR)
        axes[1].annotate(
            f"best {row[score]:.3f}",
            (row["epoch"], row[score]),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            color=BEST_COLOR,
            fontsize=9,
        )
    axes[2].plot(epochs, log["learning_rate"], color=RATE_COLOR, marker="o", markersize=3)
    axes[2].set_yscale("log")
    axes[2].set_title("Learning rate at the epoch's end")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture; the file replaces the earlier one whole."""
    temporary = path.with_name(f"writing.{path.name}")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
