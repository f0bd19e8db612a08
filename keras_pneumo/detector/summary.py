"""Summary of one answer: plain values for files and the page, and the few words on a picture.

In: the detector and its answer. Out: the content of ``NAME.json``, the caption of the overlay, and the detector's error
rate for such an answer. Nothing here names the patient.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from scipy import stats

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.pseudonyms import study_hash, user_key
from keras_pneumo.data.radiographs.geometry import size_note
from keras_pneumo.data.radiographs.radiograph import Radiograph
from keras_pneumo.detector.detector import UNLIKE, Answer, Detector, ValidationCounts
from keras_pneumo.detector.overlay import RESEARCH_USE
from keras_pneumo.inference.run import SYNTHETIC

UNKNOWN_ERRORS = f"{SYNTHETIC}: how often such an answer is wrong on a real radiograph is not known."


ANSWER = (
    *("probability", "classifier_probability", "own_head_probability", "pneumothorax", "meaning", "outlined"),
    *("disagreement", "mask_share", "area_mm2", "encoded_pixels"),
)
"""The values of a summary that are the detector's answer; the others are of the file and of the detector."""


def summary_of(detector: Detector, radiograph: Radiograph, answer: Answer) -> dict[str, Any]:
    """An answer in plain values, the same for ``NAME.json`` and for the page.

    Of an image that is not like the training images every value of an answer is None, and ``reason`` says why.
    """
    rows, columns = radiograph.pixels.shape
    side = max(rows, columns)
    pixels = int(answer.mask.sum())
    of_image = answer.mask.size if rows == columns else answer.mask.size * rows * columns / side**2
    spacing = radiograph.pixel_spacing_mm
    yes = answer.probability >= detector.threshold
    parameters = detector.postprocessing
    summary: dict[str, Any] = {
        **({"synthetic": f"{SYNTHETIC}. It says nothing of real ones."} if detector.synthetic else {}),
        "image_id": radiograph.image_id,
        "probability": answer.probability,
        "probability_source": detector.probability_source,
        "classifier_probability": answer.classifier,
        "own_head_probability": answer.own_head,
        "threshold": detector.threshold,
        "gate": {"source": parameters.gate_source, "from": parameters.gate} if parameters.gate > 0 else None,
        "pneumothorax": bool(yes),
        "meaning": UNKNOWN_ERRORS if detector.synthetic else error_rate_of(detector.counts, yes).sentence,
        "outlined": pixels > 0,
        "disagreement": disagreement(detector, answer),
        "mask_share": min(pixels / of_image, 1.0),
        "area_mm2": round(pixels * (side / answer.mask.shape[0] * spacing) ** 2, 1) if spacing else None,
        "encoded_pixels": rle.encode(answer.mask),
        "study": user_key().pseudonym(study_hash(radiograph.study_uid_tag)),
        "rows": rows,
        "columns": columns,
        "notes": notes_of(detector, radiograph),
        "reason": detector.unlike_reason(answer) or None,
        "likeness": None
        if detector.likeness is None
        else {
            "distance": None if answer.distance is None else round(answer.distance, 5),
            "limit": detector.likeness.limit,
        },
        "detector": {"name": detector.name, "version": detector.version},
        **({"engines": sorted(detector.engines)} if detector.engines else {}),
        "use": f"{RESEARCH_USE}. Not a medical device.",
    }
    return summary | dict.fromkeys(ANSWER) if answer.unlike else summary


def notes_of(detector: Detector, radiograph: Radiograph) -> list[str]:
    """What a person should know of the radiograph beside its answer."""
    rows, columns = radiograph.pixels.shape
    enlarged = size_note(rows, columns, detector.image_size)
    return [*radiograph.notes, *([enlarged] if enlarged else [])]


def caption(detector: Detector, answer: Answer) -> list[str]:
    """The lines on an overlay: the answer, the detector, and "research use only"."""
    word = "yes" if answer.probability >= detector.threshold else "no"
    # OpenCV draws a question mark for every letter beyond ASCII. The version identifies a detector without its name.
    name = unicodedata.normalize("NFKD", detector.name).encode("ascii", "ignore").decode().strip()[:40]
    contradiction = disagreement(detector, answer)
    result = f"Pneumothorax: {word}, probability {answer.probability:.2f} (yes from {detector.threshold:.2f})"
    return [
        *([f"{SYNTHETIC}; says nothing of real ones"] if detector.synthetic else []),
        *([f"Answer and outline disagree: {contradiction}"] if contradiction else []),
        f"{UNLIKE}: no answer" if answer.unlike else result,
        " ".join(filter(None, ["keras-pneumo", name, f"{detector.version}. {RESEARCH_USE}"])),
    ]


def disagreement(detector: Detector, answer: Answer) -> str | None:
    """How the answer for the image and the outline disagree, or None, also where there is no answer.

    They can: the answer depends on the threshold, the outline on the postprocessing parameters.
    """
    yes, outlined = answer.probability >= detector.threshold, bool(answer.mask.any())
    if yes == outlined or answer.unlike:
        return None
    return "answered yes, yet nothing is outlined" if yes else "answered no, yet an area is outlined"


@dataclass(frozen=True)
class ErrorRate:
    """How often the detector's yes, or its no, was wrong on validation."""

    wrong: int
    answers: int
    """Validation images with this answer."""
    low: float
    high: float
    """95% Wilson interval of the share that is wrong; 0 to 1 where there was no such image."""
    sentence: str
    evidence: str
    """The figures behind the sentence."""


def error_rate_of(counts: ValidationCounts, positive: bool) -> ErrorRate:
    """The false discovery rate of a yes (``positive``), or the false omission rate of a no, at the threshold.

    Both depend on how common the finding is, so the sentence always gives that too. The threshold was fitted on the
    same images, so both are a little too low.
    """
    right = counts.true_positive if positive else counts.true_negative
    wrong = counts.false_positive if positive else counts.false_negative
    answers = right + wrong
    prevalence = (counts.true_positive + counts.false_negative) / max(counts.images, 1)
    word = "yes" if positive else "no"
    if answers == 0:
        unknown = f"No validation image had the answer {word}, so its error rate is not known."
        return ErrorRate(0, 0, 0.0, 1.0, unknown, unknown)
    interval = stats.binomtest(wrong, answers).proportion_ci(method="wilson")
    truth = "have no pneumothorax" if positive else "have a pneumothorax"
    sentence = (
        f"Of 100 images with the answer {word}, about {round(100 * wrong / answers)} {truth} "
        f"({round(100 * interval.low)} to {round(100 * interval.high)}; {wrong} of {answers} validation images). "
        f"On validation {prevalence:.0%} of {counts.images} images had a pneumothorax; "
        + ("where it is rarer, more are wrong." if positive else "where it is more common, more are wrong.")
    )
    evidence = (
        f"On validation {wrong} of {answers} such answers were wrong (95% interval {interval.low:.0%} to "
        f"{interval.high:.0%}), and {prevalence:.0%} of {counts.images} images had a pneumothorax. The threshold was "
        "fitted on the same images, so expect a few more errors."
    )
    return ErrorRate(wrong, answers, float(interval.low), float(interval.high), sentence, evidence)
