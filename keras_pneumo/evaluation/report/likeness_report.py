"""The section of a detector's report on what is not like its training images: limit, false alarms, distribution.

In: the distances of images to the training images, and the limit above which a detector gives no answer. Out: a
:class:`LikenessReport`, text and a chart for the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from keras_pneumo.evaluation.board.verdict import shown
from keras_pneumo.evaluation.report.charts import Series, line_chart
from keras_pneumo.storage.tables import counted


@dataclass(frozen=True)
class LikenessReport:
    """Everything that the page shows."""

    sentences: list[str]
    """What is refused, how the limit was found, and the false alarms on the test images."""
    chart: Markup
    """The share of images up to each distance, as SVG."""


def likeness_report(
    held_out: np.ndarray, test: np.ndarray, positive: np.ndarray, limit: float, rate: float
) -> LikenessReport:
    """The section, from distances.

    Args:
        held_out: of the training and validation images, each to those of other patients, (n,).
        test: of the test images, (m,).
        positive: which of these show a pneumothorax, bool (m,).
        limit: the largest distance that gets an answer.
        rate: share of new images like these that may be refused by mistake.
    """
    from scipy import stats  # it takes long to import, and only this needs it

    refused = test > limit
    wrong, positives = int(refused.sum()), int((refused & positive).sum())
    sentences = [
        "The detector gives no answer for an image whose distance to the training images (1 − cosine of edge "
        f"directions, fifth nearest image) is above {shown(limit)}.",
        f"The limit is the conformal quantile of {counted(len(held_out), 'training and validation image')}, each "
        f"measured by the images of other patients: of new images like these, at most {rate:.1%} is refused by mistake "
        "on average.",
    ]
    if len(test):
        interval = stats.binomtest(wrong, len(test)).proportion_ci(method="wilson")
        sentences.append(
            f"False alarms on the test images: {wrong:,} of {len(test):,} ({wrong / len(test):.1%}; 95% Wilson "
            f"interval {interval.low:.1%} to {interval.high:.1%}), {positives:,} of them with a pneumothorax. The "
            "scores of this report are of all test images, these too."
        )
    series = [_share_up_to("training and validation", held_out, 0)]
    if len(test):
        series.append(_share_up_to("test", test, 1))
    series.append(Series("limit", [limit, limit], [0, 1], 7, dashed=True))
    most = max(float(np.max(distances)) for distances in (held_out, test) if len(distances))
    chart = line_chart(
        series, "Distance to the training images", "Share of images", "Distances to the training images",
        x_range=(0, min(1.0, 1.1 * max(most, limit))),
    )  # fmt: skip
    return LikenessReport(sentences, Markup(chart))


def _share_up_to(name: str, distances: np.ndarray, colour: int) -> Series:
    """The share of images up to each distance, as a line of steps from 0 to 1."""
    ordered = np.sort(distances)
    x, y = np.r_[0.0, ordered], np.arange(len(ordered) + 1) / len(ordered)
    return Series(f"{name} (n = {len(ordered):,})", x, y, colour, stepped=True)
