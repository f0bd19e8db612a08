"""The mask section of a segmenter's report: the parts of the Dice score, pixels, and distances.

In: a scored :class:`Board` of one submission with masks, and counts of its pixels by probability. Out: rows of text,
and columns for ``board.csv``. Every score stands beside that of the baseline of empty masks,
whose Dice is 0.79 on SIIM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import SEGMENTATION, Board
from keras_pneumo.evaluation.board.verdict import LABELS, shown
from keras_pneumo.evaluation.scoring.masks import SIZES, average_precision, parts, pixel_auprc
from keras_pneumo.evaluation.scoring.statistics import Interval, mean_by_patient
from keras_pneumo.evaluation.scoring.surface import DISTANCES, surface_table
from keras_pneumo.storage.tables import counted

ALL_EMPTY = "All empty"
"""The board's name of the baseline whose masks are all empty (:func:`baselines.all_empty`)."""

PIXEL_SCORES = {
    "pixel_auprc": "Pixel AUPRC",
    "hd95_mm": "95% Hausdorff distance, mm",
    "surface_mm": "Average surface distance, mm",
}


@dataclass(frozen=True)
class MaskScore:
    """A score with its interval, the number of images, and the score of empty masks (``nothing``)."""

    name: str
    label: str
    value: float
    interval: Interval
    n: int
    nothing: float

    @property
    def row(self) -> dict[str, str]:
        """As text for a page."""
        digits = 1 if self.name in DISTANCES else 3
        low, high = (shown(bound, digits) for bound in self.interval)
        return {
            "label": self.label,
            "value": shown(self.value, digits),
            "interval": f"{low} to {high}" if np.isfinite(self.interval.low) else "",
            "n": f"{self.n:,}",
            "nothing": shown(self.nothing, digits),
        }


@dataclass(frozen=True, eq=False)
class MaskFindings:
    """The scores of the masks, and each image's distances (``surface``)."""

    figures: list[MaskScore]
    surface: pd.DataFrame

    @property
    def missing(self) -> str:
        """How many images have no distance, and why, in a sentence."""
        count = self.surface["case"].value_counts()
        plurals = {"missed": "", "false alarm": "s", "both empty": "", "no spacing": ""}
        labels = {name: name + plural if count.get(name) != 1 else name for name, plural in plurals.items()}
        reasons = ", ".join(f"{count[name]:,} {label}" for name, label in labels.items() if name in count)
        measured = counted(int(count.get("measured", 0)), "image")
        return (
            f"Distances are means over {measured} with both outlines and a known "
            f"PixelSpacing. Images without a distance: {reasons or 'none'}."
        )

    def on_board(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the scores of pixels and distances to the board's table, also those of empty masks."""
        extra = [figure for figure in self.figures if figure.name in PIXEL_SCORES]
        team = (table["kind"] == "submission").to_numpy()
        nothing = (table["team"] == ALL_EMPTY).to_numpy() & ~team
        columns: dict[str, np.ndarray] = {}
        for figure in extra:
            columns[figure.name] = np.where(team, figure.value, np.where(nothing, figure.nothing, np.nan))
            columns[f"{figure.name}_low"] = np.where(team, figure.interval.low, np.nan)
            columns[f"{figure.name}_high"] = np.where(team, figure.interval.high, np.nan)
        return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)


def mask_findings(board: Board, counts: np.ndarray) -> MaskFindings:
    """Score the masks of a board's only submission.

    Args:
        board: scored; its submission and its truth have masks.
        counts: all pixels and true pixels at each quantised probability, (images, 2, levels), in the truth's order.
    """
    truth, team = board.truth, board.teams[0]
    if team.masks is None or team.submission is None or team.submission.runs is None or truth.runs is None:
        raise ValueError("a submission with masks and a truth with masks are needed")
    nothing = next((entry for entry in board.entries if entry.team == ALL_EMPTY), None)
    empty = nothing.point if nothing is not None else {}
    groups = parts(team.masks.true_pixels.to_numpy(), team.masks.predicted_pixels.to_numpy())
    over = {
        "dice_positives": "positives",
        "iou_positives": "positives",
        "positives_missed": "positives",
        "negatives_left_empty": "negatives",
        "dice_found": "found",
        **{f"dice_{size}": f"positives_{size}" for size in SIZES},
    }
    figures = []
    for name in SEGMENTATION:
        n = int(groups[over[name]].sum()) if name in over else len(truth.cases)
        figures.append(
            MaskScore(name, LABELS[name], team.point[name], team.intervals[name], n, empty.get(name, float("nan")))
        )
    seed, resamples, patients = board.seed, board.resamples, truth.patient_codes
    value, interval = pixel_auprc(counts, patients, resamples, seed)
    everything = counts.sum(axis=0)
    share = np.zeros((2, 1))
    share[:, 0] = everything.sum(axis=1)  # one score for every pixel ranks nothing
    by_chance = float(average_precision(share)[()])
    label = PIXEL_SCORES["pixel_auprc"]
    figures.append(MaskScore("pixel_auprc", label, value, interval, len(counts), by_chance))
    surface = surface_table(truth.runs, team.submission.runs, truth.cases.pixel_spacing_mm.to_numpy(float))
    measured = int((surface["case"] == "measured").sum())
    for name in DISTANCES:
        value, interval = mean_by_patient(surface[name].to_numpy(), patients, resamples, seed)
        figures.append(MaskScore(name, PIXEL_SCORES[name], value, interval, measured, float("nan")))
    return MaskFindings(figures, surface)
