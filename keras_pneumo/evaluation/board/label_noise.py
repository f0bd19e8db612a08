"""Compares the labels with adjudicated labels, which limits the accuracy that any team can claim.

In: a truth and labels that radiologists adjudicated for some of its images. Out: how far the two agree, and every team
scored on the adjudicated labels too. On SIIM the labels agree with Google's adjudication of NIH images on 88.9%
(488 images), so an accuracy above that agrees with the errors of the labels, not with the radiograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.inputs.metadata import read_metadata
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring.metrics import auroc, cohen_kappa, confusion, rates
from keras_pneumo.evaluation.scoring.statistics import Interval
from keras_pneumo.storage.tables import column_name

_YES, _NO = ("yes", "1", "true", "1.0"), ("no", "0", "false", "0.0")


@dataclass(frozen=True)
class Ceiling:
    """Agreement of the labels with the adjudicated ones over all images that have both, scored or not."""

    images: int
    agreement: float
    interval: Interval
    """95% Wilson interval of the agreement."""
    kappa: float
    teams: pd.DataFrame
    """``team``, ``images`` (scored and adjudicated), ``accuracy``, ``auroc``, ``labels`` (the labels' own agreement on
    those images) and ``above`` (whether the team's accuracy on all scored images is above the ceiling)."""


def read_adjudicated(path: Path, truth: Truth) -> dict[str, bool]:
    """Image id -> adjudicated pneumothorax, for images of ``truth`` (through their NIH names where it has them).

    Raises:
        PneumoError: no column is called Pneumothorax, a cell is neither yes nor no, or no image is in the truth.
    """
    table = read_metadata(path, truth.nih_names)
    column = next((name for name in table.columns if column_name(name) == "pneumothorax"), None)
    if column is None:
        raise PneumoError(f"{path} has no column Pneumothorax (YES or NO, 1 or 0). Name another table.")
    cells = table[column].str.lower()
    wrong = ~cells.isin([*_YES, *_NO])
    if wrong.any():
        raise PneumoError(
            f"{path}: image {cells.index[wrong][0]!r} has {table[column][wrong].iloc[0][:20]!r}, not yes or no. "
            "Mend the table."
        )
    image_ids = set(truth.cases.image_id) | set(truth.development.image_id)
    labels = {str(image_id): cell in _YES for image_id, cell in cells.items() if image_id in image_ids}
    if not labels:
        raise PneumoError(
            f"{path} has none of the images of the truth. If it has NIH names, "
            "give the table from SIIM to NIH with --patients."
        )
    return labels


def noise_ceiling(board: Board, adjudicated: dict[str, bool]) -> Ceiling:
    """Score the labels, and every submission, on the adjudicated labels.

    The ceiling is taken over every image that has both labels, the development images too, since agreement is a
    property of how the labels were made and more images give a narrower interval.
    """
    from scipy import stats

    truth = board.truth
    everything = pd.concat([truth.cases, truth.development])
    labels = everything.set_index("image_id").pneumothorax
    ids = [image_id for image_id in adjudicated if image_id in labels.index]
    first = np.array([adjudicated[image_id] for image_id in ids])
    second = labels.loc[ids].to_numpy() == 1
    agree = int(np.sum(first == second))
    wilson = stats.binomtest(agree, len(ids)).proportion_ci(method="wilson")
    has_label = truth.cases.image_id.isin(set(ids)).to_numpy()
    adjudicated_labels = truth.cases.image_id[has_label].map(adjudicated).to_numpy(bool)
    rows = []
    for entry in board.teams:
        counts = confusion(adjudicated_labels, entry.decision[has_label])
        rows.append(
            {
                "team": entry.team,
                "images": int(has_label.sum()),
                "accuracy": rates(counts)["accuracy"],
                "auroc": float("nan")
                if entry.probability is None
                else auroc(adjudicated_labels, entry.probability[has_label]),
                "labels": float(np.mean(adjudicated_labels == truth.pneumothorax[has_label]))
                if has_label.any()
                else float("nan"),
                "above": bool(entry.point["accuracy"] > agree / len(ids)),
            }
        )
    interval = Interval(float(wilson.low), float(wilson.high))
    columns = ["team", "images", "accuracy", "auroc", "labels", "above"]
    return Ceiling(
        len(ids), agree / len(ids), interval, cohen_kappa(first, second), pd.DataFrame(rows, columns=columns)
    )
