"""What an answer means to a person: how many of 100 such images the detector would be wrong about.

In: how the validation images fell at the threshold. Out: a share with its interval and one sentence. The share depends
on how common the finding is, so that is always said with it; and the threshold was fitted on the same images, so it is
a little too good.

What is said of one answered radiograph: in plain values, and in the few words that fit on a picture.

In: the detector and its answer. Out: what ``NAME.json``, the page and the overlay say; never who the patient is.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from scipy import stats

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.radiograph import Radiograph
from keras_pneumo.detector.detector import Answer, Counts, Detector
from keras_pneumo.detector.overlay import USE


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


def summary_of(detector: Detector, radiograph: Radiograph, answer: Answer) -> dict[str, Any]:
    """An answer in plain values, the same for ``NAME.json`` and for the page."""
    side = radiograph.pixels.shape[0]
    pixels = int(answer.mask.sum())
    spacing = radiograph.pixel_spacing_mm
    yes = answer.probability >= detector.threshold
    return {
        "image_id": radiograph.image_id,
        "probability": answer.probability,
        "probability_source": detector.probability_source,
        "classifier_probability": answer.classifier,
        "own_head_probability": answer.own_head,
        "threshold": detector.threshold,
        "gate": {"source": detector.rule.gate_source, "from": detector.rule.gate} if detector.rule.gate > 0 else None,
        "pneumothorax": bool(yes),
        "meaning": meaning_of(detector.counts, yes).sentence,
        "outlined": pixels > 0,
        "disagreement": disagreement(detector, answer),
        "mask_share": pixels / answer.mask.size,
        "area_mm2": round(pixels * (side / answer.mask.shape[0] * spacing) ** 2, 1) if spacing else None,
        "encoded_pixels": rle.encode(answer.mask),
        "rows": side,
        "columns": side,
        "detector": {"name": detector.name, "version": detector.version},
        "use": f"{USE}. Not a medical device.",
    }


def disagreement(detector: Detector, answer: Answer) -> str | None:
    """How the answer for the image and the outline disagree, as they can: one goes by a threshold, one by a rule."""
    yes, outlined = answer.probability >= detector.threshold, bool(answer.mask.any())
    if yes == outlined:
        return None
    return "answered yes, yet nothing is outlined" if yes else "answered no, yet an area is outlined"


def caption(detector: Detector, answer: Answer) -> list[str]:
    """What is drawn on an overlay: the answer, who gave it, and what it is for; never who the patient is."""
    word = "yes" if answer.probability >= detector.threshold else "no"
    # OpenCV draws a question mark for every letter beyond ASCII. The version tells detectors apart without a name.
    name = unicodedata.normalize("NFKD", detector.name).encode("ascii", "ignore").decode().strip()[:40]
    odd = disagreement(detector, answer)
    return [
        *([f"Answer and outline disagree: {odd}"] if odd else []),
        f"Pneumothorax: {word}, probability {answer.probability:.2f} (yes from {detector.threshold:.2f})",
        " ".join(filter(None, ["keras-pneumo", name, f"{detector.version}. {USE}"])),
    ]
