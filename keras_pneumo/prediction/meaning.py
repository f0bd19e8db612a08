"""What an answer means to a person: how many of 100 such images the detector would be wrong about.

In: how the validation images fell at the threshold. Out: a share with its interval and one sentence. The share depends
on how common the finding is, so that is always said with it; and the threshold was fitted on the same images, so it is
a little too good.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from keras_pneumo.prediction.detector import Counts


@dataclass(frozen=True)
class Meaning:
    """How often answers of this kind were wrong on validation."""

    wrong: int
    told: int
    """Validation images with such an answer."""
    low: float
    high: float
    """95% Wilson interval of the share that is wrong; 0 to 1 where there was no such image."""
    sentence: str
    evidence: str
    """What the sentence rests on."""


def meaning_of(counts: Counts, positive: bool) -> Meaning:
    """What a yes (``positive``) or a no means at the detector's threshold."""
    right = counts.true_positive if positive else counts.true_negative
    wrong = counts.false_positive if positive else counts.false_negative
    told = right + wrong
    common = (counts.true_positive + counts.false_negative) / max(counts.images, 1)
    word = "yes" if positive else "no"
    if told == 0:
        unknown = f"No validation image got the answer {word}, so it is not known how often it errs."
        return Meaning(0, 0, 0.0, 1.0, unknown, unknown)
    interval = stats.binomtest(wrong, told).proportion_ci(method="wilson")
    truth = "have no pneumothorax" if positive else "have one all the same"
    sentence = (
        f"Of 100 images with the answer {word}, about {round(100 * wrong / told)} {truth} "
        f"({round(100 * interval.low)} to {round(100 * interval.high)}; {wrong} of {told} validation images). "
        f"There {common:.0%} of {counts.images} images showed a pneumothorax; "
        + ("where it is rarer, more are wrong." if positive else "where it is more common, more are wrong.")
    )
    evidence = (
        f"On validation {wrong} of {told} such answers were wrong (95% interval {interval.low:.0%} to "
        f"{interval.high:.0%}), where {common:.0%} of {counts.images} images showed a pneumothorax. The threshold was "
        "chosen on the same images, so expect a little worse."
    )
    return Meaning(wrong, told, float(interval.low), float(interval.high), sentence, evidence)
