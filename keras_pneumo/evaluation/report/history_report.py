"""The section of a run's report on how its predictions changed over the training.

In: ``predictions_by_epoch.csv`` of a run folder: a row per validation image (``image_id``, ``pneumothorax``) and a
column per epoch (``epoch_1``, ...), the probability that the image had then. Out: a :class:`HistoryReport`: a chart of
positives and negatives, and the images whose prediction changed most, each with its own curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.charts import Series, line_chart
from keras_pneumo.evaluation.report.pictures import ImageLoader, data_uri
from keras_pneumo.storage.tables import counted

FILE = "predictions_by_epoch.csv"
EPOCH = "epoch_"
MOST = 4
"""How many positives, and how many negatives, are shown one by one."""


@dataclass(frozen=True)
class HistoryReport:
    """Everything that the page shows."""

    chart: Markup
    """Median and middle 80% of the positives and of the negatives, by epoch."""
    images: int
    cards: list[dict[str, Any]]
    """``image_id``, ``positive``, ``picture``, ``chart``, and the ``first`` and the ``last`` probability."""


def read_history(folder: Path) -> pd.DataFrame | None:
    """The table of a run folder; None where an earlier version wrote none, or it has fewer than two epochs.

    Raises:
        PneumoError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype={"image_id": str})
        epochs = [name for name in table.columns if name.startswith(EPOCH)]
        table = table[["image_id", "pneumothorax", *epochs]].astype(dict.fromkeys(epochs, float))
        table = table.dropna(axis=1, how="all").dropna()  # a network that broke gives no numbers
        epochs = [name for name in table.columns if name.startswith(EPOCH)]
    except (OSError, ValueError, KeyError) as error:
        raise PneumoError(
            f"{path} is damaged ({error}). Remove it; the report then leaves this section out."
        ) from error
    return table if len(epochs) > 1 and len(table) else None


def history_report(table: pd.DataFrame, image: ImageLoader | None, most: int = MOST) -> HistoryReport:
    """Make the section.

    Args:
        table: from :func:`read_history`.
        image: gives the radiograph of an image id, or None.
        most: largest number of positives, and of negatives, that are shown.
    """
    columns = [name for name in table.columns if name.startswith(EPOCH)]
    epochs = np.array([int(name.removeprefix(EPOCH)) for name in columns])
    values = table[columns].to_numpy(float)
    positive = table["pneumothorax"].to_numpy() == 1
    series = []
    for colour, (name, members) in enumerate((("with", positive), ("without", ~positive))):
        if members.any():
            low, middle, high = np.quantile(values[members], [0.1, 0.5, 0.9], axis=0)
            label = f"{name} pneumothorax, {counted(int(members.sum()), 'image')}"
            beside = epochs + (colour - 0.5) * 0.12  # their lines would cover each other
            series.append(Series(label, beside, middle, colour, points=True, low=low, high=high))
    ends = (epochs[0] - 0.4, epochs[-1] + 0.4)
    chart = line_chart(series, "Epoch", "Predicted probability", "Predictions over the epochs", ends, whole_x=True)
    change = np.max(values, axis=1) - np.min(values, axis=1)
    order = np.argsort(-change, kind="stable")
    chosen = [*order[positive[order]][:most], *order[~positive[order]][:most]]
    cards = []
    for row in chosen:
        image_id, own = str(table["image_id"].iloc[row]), values[row]
        line = [Series("", epochs, own, 0 if positive[row] else 1, points=True)]
        title = f"Predictions for {image_id}"
        picture = line_chart(line, "Epoch", "Probability", title, ends, whole_x=True, width=260, height=150)
        cards.append(
            {
                "image_id": image_id,
                "positive": bool(positive[row]),
                "picture": data_uri(image(image_id), side=320) if image else "",
                "chart": Markup(picture),
                "first": f"{own[0]:.2f}",
                "last": f"{own[-1]:.2f}",
            }
        )
    return HistoryReport(Markup(chart), len(table), cards)
