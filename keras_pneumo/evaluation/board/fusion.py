"""Scores two teams combined, and compares their errors.

In: two entries of a board. Out: scores of their mean probability and of their masks united and intersected, counts of
images that both, one or neither get right, and the images that only one gets right. Two teams with similar scores but
errors on different images can be much better together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco

from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import overlap


@dataclass(frozen=True)
class Fusion:
    """Two teams combined; ``scores`` maps what was fused to (first, second, fused), NaN where a team has none."""

    first: str
    second: str
    scores: dict[str, tuple[float, float, float]]
    both_right: int
    only_first: list[str] = field(repr=False)
    only_second: list[str] = field(repr=False)
    both_wrong: int
    expected_both_wrong: float
    """Number of images that both would get wrong if their errors were independent."""
    error_kappa: float
    """Cohen's kappa of their errors: 0 independent, 1 the same images."""

    @property
    def sentence(self) -> str:
        """How much their errors overlap, in a sentence."""
        n = len(self.only_first) + len(self.only_second)
        image = "image" if len(self.only_first) == 1 else "images"
        return (
            f"Only {self.first} is right on {len(self.only_first):,} {image}, only {self.second} on "
            f"{len(self.only_second):,}; both are wrong on {self.both_wrong:,}, where independent errors would give "
            f"{self.expected_both_wrong:.0f}" + (f" (they disagree on {n:,})." if n else ".")
        )


def fuse(first: Entry, second: Entry, truth: Truth) -> Fusion:
    """Fuse two teams; nothing is fitted, so no threshold or weight is learnt on the test set."""
    scores: dict[str, tuple[float, float, float]] = {}
    positive = truth.pneumothorax
    if first.probability is not None and second.probability is not None:
        mean = (first.probability + second.probability) / 2
        fused = metrics.auroc(positive, mean)
        scores["AUROC of the mean probability"] = (first.point["auroc"], second.point["auroc"], fused)
        fused = metrics.brier(positive, mean)
        scores["Brier score of the mean probability"] = (first.point["brier"], second.point["brier"], fused)
    runs = [entry.submission.runs if entry.submission else None for entry in (first, second)]
    if truth.runs is not None and runs[0] is not None and runs[1] is not None:
        for name, intersect in (("Dice of the union", False), ("Dice of the intersection", True)):
            merged = [coco.merge([a, b], intersect=intersect) for a, b in zip(runs[0], runs[1], strict=True)]
            fused = float(overlap(truth.runs, merged).dice.mean())
            scores[name] = (first.point["dice"], second.point["dice"], fused)
    right = [entry.decision == positive for entry in (first, second)]
    wrong = [~correct for correct in right]
    ids = truth.cases.image_id
    return Fusion(
        first=first.team,
        second=second.team,
        scores=scores,
        both_right=int(np.sum(right[0] & right[1])),
        only_first=ids[right[0] & wrong[1]].tolist(),
        only_second=ids[right[1] & wrong[0]].tolist(),
        both_wrong=int(np.sum(wrong[0] & wrong[1])),
        expected_both_wrong=float(wrong[0].mean() * wrong[1].mean() * len(ids)),
        error_kappa=metrics.cohen_kappa(wrong[0], wrong[1]),
    )
