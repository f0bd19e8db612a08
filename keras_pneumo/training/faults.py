"""What a training does when a loss is no number any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.batches.order import TrainingPlan
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_table
from keras_pneumo.training.callbacks import NotFinite
from keras_pneumo.training.distributed.strategy import Engine

FILE = "nan_batches.csv"
"""In the run folder: the images of each batch that gave no finite loss, and what was done about it."""

MOST_SKIPPED = 0.1
"""When more than this share of the images would be left out, they are not the cause."""


def not_finite(
    fault: NotFinite,
    folder: Path,
    training: ImageSet,
    plan: TrainingPlan,
    skip_nan: bool,
    times: int,
    engine: Engine,
) -> tuple[int, ...]:
    """Write down the images of a batch whose loss is not finite.

    Args:
        fault: where it happened.
        folder: the run folder.
        training: the images.
        plan: what was drawn.
        skip_nan: whether they are to be left out from now on.
        times: how often this has happened in this process.
        engine: its chief writes.

    Returns:
        All images to be left out from now on, by their index.

    Raises:
        PneumoError: they are not to be left out, or it happens too often for images to be the cause.
    """
    order, *_ = plan.draws(training.labels, fault.epoch)
    drawn = order[plan.rows(len(training))[fault.step]]
    image_ids = [training.image_ids[index] for index in drawn]
    all_skipped = tuple(sorted({*plan.skip, *(int(index) for index in drawn)}))
    too_many = len(all_skipped) > MOST_SKIPPED * len(training) and times > 1
    skips = skip_nan and not too_many
    if engine.chief:
        table = _read(folder)
        for image_id in image_ids:
            table.loc[len(table)] = [fault.epoch + 1, fault.step + 1, image_id, "skipped" if skips else "stopped"]
        write_table(folder / FILE, table.drop_duplicates())
    if skips:
        return all_skipped
    advice = "Look at these images; lower learning_rate, or set clip_norm; --skip-nan leaves the images out."
    if skip_nan:
        advice = "It is not the images: too many would be left out by now. Lower learning_rate, or set clip_norm."
    raise PneumoError(
        f"The {fault.what} at epoch {fault.epoch + 1}, step {fault.step + 1}, on the images "
        f"{', '.join(image_ids)}, which "
        f"are written down in {folder / FILE}. The last good checkpoint stands, and so do the best weights. {advice}"
    )


def skipped(folder: Path, image_ids: Sequence[str]) -> tuple[int, ...]:
    """The images that the run has left out so far, by their index."""
    table = _read(folder)
    wanted = set(table.loc[table["action"] == "skipped", "image_id"].astype(str))
    return tuple(index for index, image_id in enumerate(image_ids) if image_id in wanted)


def _read(folder: Path) -> pd.DataFrame:
    path = folder / FILE
    if path.is_file():
        return pd.read_csv(path, dtype={"image_id": str})
    return pd.DataFrame({"epoch": [], "step": [], "image_id": [], "action": []}).astype(
        {"epoch": int, "step": int, "image_id": str, "action": str}
    )
