"""What is said of one answered radiograph: in plain values, and in the few words that fit on a picture.

In: the detector and its answer. Out: what ``NAME.json``, the page and the overlay say; never who the patient is.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from keras_pneumo.data import rle
from keras_pneumo.data.radiograph import Radiograph
from keras_pneumo.prediction.detector import Answer, Detector
from keras_pneumo.prediction.meaning import meaning_of
from keras_pneumo.prediction.overlay import USE


def summary_of(detector: Detector, radiograph: Radiograph, answer: Answer) -> dict[str, Any]:
    """An answer in plain values, the same for ``NAME.json`` and for the page."""
    side = radiograph.image.shape[0]
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
