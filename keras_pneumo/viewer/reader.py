"""From bytes to everything that the page shows of one radiograph.

In: the bytes of a DICOM, PNG or JPEG file. Out: plain values for JSON: the radiograph itself (lossless, so that window
and level are true), the outline as a path, two heat maps, and what the answer means. Nothing of a file's tags but its
view, age and sex is given out; no name and no PatientID.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.detector.detector import CLASSIFIER, OUTLINE, Detector
from keras_pneumo.detector.overlay import encode_png
from keras_pneumo.detector.summary import error_rate_of, summary_of
from keras_pneumo.evaluation.report.pictures import outline
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.inference.files import pixels_at, unfit
from keras_pneumo.inference.postprocess import OWN_HEAD
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.viewer.decoding import Decoder

MAX_SIDE = 2048
"""Longest side that the page is given; larger radiographs are reduced for the eye, not for the detector."""

HEAT_SIDE = 512


class Reader:
    """A detector that answers the page, one radiograph at a time."""

    def __init__(self, detector: Detector, decoder: Decoder) -> None:
        """Join an opened detector and where files are decoded."""
        self.detector = detector
        self.decoder = decoder
        self._lock = threading.Lock()

    def read(self, data: bytes, name: str) -> dict[str, Any]:
        """All that the page shows of one file.

        Raises:
            UnreadableImage: with the reason.
        """
        radiograph = self.decoder.decode(data, name)
        reason = unfit(radiograph.pixels, self.detector.image_size)
        if reason:
            raise UnreadableImage(reason[0].lower() + reason[1:].rstrip("."))
        with self._lock:  # networks answer one at a time
            (answer,) = self.detector.answer([radiograph.pixels])
            heat = mean_heat(self.detector, [radiograph.pixels])[0]
        summary = summary_of(self.detector, radiograph, answer)
        return {
            "key": sha256_bytes(data),
            **summary,
            "gate": self.detector.postprocessing.gate,
            "gate_source": self.detector.postprocessing.gate_source,
            "whose": whose(self.detector.probability_source),
            "evidence": error_rate_of(self.detector.counts, bool(summary["pneumothorax"])).evidence,
            "outline": outline(rle.runs_of(summary["encoded_pixels"]), tolerance=0.4),
            "pixels": _png_address(_shown(radiograph)),
            "maps": {
                "classifier": _png_address(np.rint(_at(heat, HEAT_SIDE) * 255).astype(np.uint8)),
                "segmenter": _png_address(_at(answer.quantised_map, HEAT_SIDE)),
            },
            "facts": facts_of(radiograph),
        }


def heat_of(detector: Detector) -> tuple[str, int]:
    """Method and stage of the heat maps: those that validation chose when the detector was joined."""
    heat = detector.record.get("heat") or {}
    return str(heat.get("method", "gradcam")), int(heat.get("stage", 5))


def heat_sentence(detector: Detector) -> str:
    """How far the classifiers' heat map can be trusted to point at the finding."""
    heat, (method, stage) = detector.record.get("heat") or {}, heat_of(detector)
    name = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}.get(method, method)
    networks = sum(len(models) for _, models in detector.classifiers)
    whose = "its" if networks == 1 else "the first one's"
    if networks > 1:
        name = f"the mean of {networks} networks', {name}"
    known = (
        f": {whose} hottest point lies in the pneumothorax in {heat['pointing']:.0%} of {heat['images']} validation "
        f"positives ({heat['chance']:.0%} by chance)"
        if {"pointing", "chance", "images"} <= heat.keys()
        else ""
    )
    return f"The classifier's map is {name} of stage {stage}{known}. {part_sentence(detector)}"


def whose(source: str) -> str:
    """Whose an image-level answer is, by the name that :func:`image_level_sources` gives it."""
    parts = source.replace(" and ", ", ").split(", ")
    names = ["the classifier's"] * (CLASSIFIER in parts) + ["the segmenter's"] * bool({OUTLINE, OWN_HEAD} & {*parts})
    return " and ".join(names)


def part_sentence(detector: Detector) -> str:
    """What part the classifier, whose heat map stands beside the answer, has in the answer.

    Validation chooses the probability and the outline's gate each for itself, so the classifier may have none.
    """
    source, rule = whose(detector.probability_source), detector.postprocessing
    gate = whose(rule.gate_source) if rule.gate > 0 else ""
    part = "" if "classifier" in source else "; the classifier, whose map this is, has no part in it"
    kept = f", kept only where {gate} answer allows it" if "classifier" in gate else " alone"
    return f"The probability is {source}{part}; the outline is the segmenter's{kept}."


def mean_heat(detector: Detector, images: Sequence[np.ndarray]) -> np.ndarray:
    """Heat maps of the classifiers, the mean over all networks: float32 (B, HEAT_SIDE, HEAT_SIDE), 0 to 1."""
    method, stage = heat_of(detector)
    found = []
    for run, models in detector.classifiers:
        pixels = pixels_at(images, run.experiment.image_size)
        maps = [heat_maps(model, pixels, method, stage) for model in models]
        found += [np.stack([_at(one, HEAT_SIDE) for one in some]) for some in maps]
    return np.asarray(np.mean(found, axis=0), np.float32)


def facts_of(radiograph: Radiograph) -> list[str]:
    """What is said of the radiograph itself: size, view, age, sex; nothing that names the patient."""
    side = radiograph.pixels.shape[0]
    facts = [f"{side} × {side} pixels"]
    if radiograph.pixel_spacing_mm:
        facts.append(f"{radiograph.pixel_spacing_mm:.3f} mm each")
    if radiograph.view:
        facts.append(f"view {radiograph.view}")
    if radiograph.age is not None:
        facts.append(f"{radiograph.age:.0f} years")
    if radiograph.sex:
        facts.append({"M": "male", "F": "female"}[radiograph.sex])
    if radiograph.photometric == "MONOCHROME1":
        facts.append("stored inverted")
    return facts


def _shown(radiograph: Radiograph) -> np.ndarray:
    image = radiograph.pixels
    if image.shape[0] <= MAX_SIDE:
        return image
    return np.asarray(cv2.resize(image, (MAX_SIDE, MAX_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def _at(levels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(cv2.resize(levels, (side, side), interpolation=cv2.INTER_LINEAR))


def _png_address(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
