"""The answer for the page: everything that the page shows of one radiograph.

In: the bytes of a DICOM, PNG or JPEG file. Out: plain values for JSON: the radiograph itself (lossless, so that window
and level are exact), the outline as a path, two heat maps, and how often such an answer is wrong; of an image that is
not like the training images only itself and that it is not. Of a file's tags only view, age and sex are shown; no name
and no PatientID.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.geometry import map_on_image, placement_of, shape_fault
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.detector.detector import CLASSIFIER, OUTLINE, Detector
from keras_pneumo.detector.overlay import encode_png
from keras_pneumo.detector.summary import error_rate_of, summary_of
from keras_pneumo.evaluation.report.pictures import outline
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.inference.files import pixels_at
from keras_pneumo.inference.postprocess import OWN_HEAD
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.storage.tables import one_line
from keras_pneumo.viewer.decoding import Decoder

MAX_SIDE = 2048
"""Longest side that the page gets; larger radiographs are reduced for the page, not for the detector."""

HEAT_SIDE = 512


class PageDetector:
    """A detector that answers for the page, one radiograph at a time."""

    def __init__(self, detector: Detector, decoder: Decoder, any_view: bool = False) -> None:
        """Use an opened detector, a decoder for files, and perhaps answer for what is no frontal chest radiograph."""
        self.detector = detector
        self.any_view = any_view
        self.decoder = decoder
        self._lock = threading.Lock()

    def answer(self, data: bytes, name: str) -> dict[str, Any]:
        """Decode one file and answer for it: all that the page shows of it.

        Raises:
            UnreadableImage: with the reason.
        """
        radiograph = self.decoder.decode(data, name)
        reason = shape_fault(radiograph.pixels)
        if radiograph.other_view and not self.any_view:
            reason = f"{radiograph.other_view}; start the page with --any-view to see it all the same"
        if reason:
            raise UnreadableImage(reason)
        with self._lock:  # networks answer one at a time
            (answer,) = self.detector.answer([radiograph.pixels])
            heat = None if answer.unlike else mean_heat(self.detector, [radiograph.pixels])[0]
        summary = summary_of(self.detector, radiograph, answer)
        return {
            "key": sha256_bytes(data),
            **summary,
            "image_id": one_line(radiograph.image_id),  # a UID of 10 MB, with control characters, is a hostile file's
            "gate": self.detector.postprocessing.gate,
            "gate_source": self.detector.postprocessing.gate_source,
            "probability_from": members_in(self.detector.probability_source),
            "evidence": "" if answer.unlike else self._evidence(bool(summary["pneumothorax"])),
            "box": _box(radiograph),
            "outline": "" if answer.unlike else outline(rle.runs_of(summary["encoded_pixels"]), tolerance=0.4),
            "pixels": _png_url(_reduced(radiograph)),
            "maps": {}
            if heat is None
            else {
                "classifier": _png_url(np.rint(_on_image(heat, radiograph) * 255).astype(np.uint8)),
                "segmenter": _png_url(_on_image(answer.quantised_map, radiograph)),
            },
            "facts": facts_of(radiograph),
        }

    def _evidence(self, positive: bool) -> str:
        if self.detector.synthetic:
            return "Its error rates on phantoms do not hold for real radiographs, so they are not shown."
        return error_rate_of(self.detector.counts, positive).evidence


def heat_map_method(detector: Detector) -> tuple[str, int]:
    """Method and stage of the heat maps, as selected on validation when the detector was fitted."""
    heat = detector.record.get("heat") or {}
    return str(heat.get("method", "gradcam")), int(heat.get("stage", 5))


def heat_map_sentences(detector: Detector) -> str:
    """What the classifiers' heat map is, how well it points at the finding, and its part in the answer."""
    heat, (method, stage) = detector.record.get("heat") or {}, heat_map_method(detector)
    name = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM"}.get(method, method)
    networks = sum(len(models) for _, models in detector.classifiers)
    mean, network = (f", mean of {networks} networks", "The first network's") if networks > 1 else ("", "Its")
    pointing = (
        f" {network} hottest point lies in the pneumothorax in {heat['pointing']:.0%} of {heat['images']} validation "
        f"positives ({heat['chance']:.0%} by chance)."
        if {"pointing", "chance", "images"} <= heat.keys()
        else ""
    )
    return f"Heat map of the classifier: {name} of stage {stage}{mean}.{pointing} {source_sentences(detector)}"


def source_sentences(detector: Detector) -> str:
    """Which members the probability and the outline come from.

    Validation selects the source of the probability and that of the gate separately. So the classifier, whose heat map
    is shown beside the answer, may have no part in it.
    """
    members, parameters = members_in(detector.probability_source), detector.postprocessing
    gate = members_in(parameters.gate_source) if parameters.gate > 0 else ""
    probability = members if "classifier" in members else f"{members}, not from the classifier of this heat map"
    outline = "the segmenter alone"
    if "classifier" in gate:
        outline = f"the segmenter, where the probability of {gate} is at least {parameters.gate:.3f}"
    return f"The probability comes from {probability}. The outline comes from {outline}."


def members_in(source: str) -> str:
    """The members behind an image-level source, by its name in :func:`image_level_sources`."""
    parts = source.replace(" and ", ", ").split(", ")
    names = ["the classifier"] * (CLASSIFIER in parts) + ["the segmenter"] * bool({OUTLINE, OWN_HEAD} & {*parts})
    return " and ".join(names)


def mean_heat(detector: Detector, images: Sequence[np.ndarray]) -> np.ndarray:
    """Mean heat maps of all classifiers' networks: float32 (B, HEAT_SIDE, HEAT_SIDE), 0 to 1.

    The detector was opened with its networks for heat maps.
    """
    method, stage = heat_map_method(detector)
    networks = []
    for (run, _), models in zip(detector.classifiers, detector.heat_map_models, strict=True):
        pixels = pixels_at(images, run.experiment.image_size)
        maps = [heat_maps(model, pixels, method, stage) for model in models]
        networks += [np.stack([_resized(heat_map, HEAT_SIDE) for heat_map in batch]) for batch in maps]
    return np.asarray(np.mean(networks, axis=0), np.float32)


def facts_of(radiograph: Radiograph) -> list[str]:
    """Facts about the radiograph: size, view, age, sex; nothing that names the patient."""
    rows, columns = radiograph.pixels.shape
    facts = [f"{columns} × {rows} pixels"]
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


def _reduced(radiograph: Radiograph) -> np.ndarray:
    image = radiograph.pixels
    rows, columns = _fitted(radiograph, MAX_SIDE)
    if rows >= image.shape[0]:
        return image
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def _fitted(radiograph: Radiograph, side: int) -> tuple[int, int]:
    """Rows and columns in the radiograph's proportions, the longer of them ``side``."""
    rows, columns = radiograph.pixels.shape
    return max(1, round(rows * side / max(rows, columns))), max(1, round(columns * side / max(rows, columns)))


def _on_image(values: np.ndarray, radiograph: Radiograph) -> np.ndarray:
    """A map over the square, as the part of it that lies on the radiograph, its longer side HEAT_SIDE."""
    return map_on_image(values, *_fitted(radiograph, HEAT_SIDE))


def _box(radiograph: Radiograph) -> list[float]:
    """Where the radiograph lies on the 1024 grid of the outline: left, top, width, height."""
    place = placement_of(radiograph.pixels)
    scale = rle.MASK_SIZE / place.side
    return [place.left * scale, place.top * scale, place.columns * scale, place.rows * scale]


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR))


def _png_url(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
