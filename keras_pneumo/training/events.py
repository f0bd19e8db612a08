"""TensorBoard's events of a run, in ``events/``: every step's loss and gradient norm, every epoch's row of the log.

Written through TensorFlow's own summary writer; looking at them needs TensorBoard, training does not.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import tensorflow as tf

from keras_pneumo.training.log import EpochRow

FOLDER = "events"
EVERY = 10
"""Steps between two points of the curves by step."""


class Events:
    """A writer of scalars; without a folder it writes nothing."""

    def __init__(self, run: Path | None) -> None:
        """Open a file of events in the run folder."""
        self.writer = tf.summary.create_file_writer(str(run / FOLDER)) if run else None
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        self.kind = tf.compat.v1.SummaryMetadata(plugin_data=plugin)

    def step(self, number: int, values: dict[str, float]) -> None:
        """Values of a step, by the number of steps since the training began."""
        if number % EVERY == 0:
            self._write(number, {f"step/{name}": value for name, value in values.items()})

    def epoch(self, row: EpochRow) -> None:
        """A row of the log."""
        numbers = {name: value for name, value in asdict(row).items() if isinstance(value, (int, float))}
        self._write(row.epoch, {f"epoch/{name}": value for name, value in numbers.items() if name != "epoch"})
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self.writer:
            self.writer.close()

    def _write(self, number: int, values: dict[str, float]) -> None:
        if not self.writer:
            return
        with tf.device("CPU:0"), self.writer.as_default():
            for name, value in values.items():
                if value == value:  # a missing value is no point on a curve
                    # Not tf.summary.scalar, which is TensorBoard's own code.
                    tf.summary.write(name, tf.constant(value, tf.float32), step=number, metadata=self.kind)
