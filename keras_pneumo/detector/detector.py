"""The detector: classifiers and segmenters that answer as one, in a folder that can be copied to another machine.

In: a folder that :mod:`keras_pneumo.detector.fitting` made, and square radiographs. Out: for each one calibrated
probability and one mask. The folder holds everything that an answer depends on::

    detector.json               what it is, the calibration, the threshold, validation's counts, a hash of every file
    postprocess.json            the rule for masks, whose gate asks an image-level answer
    classifier_0/ ...           experiment.json and network_0.safetensors, network_1.safetensors, ... by PyTorch's names
    segmenter_0/ ...

Beside these lies what it answered on the test images, and is not needed: submission, parts, explain, board.
Nothing in it names another place, and weights are plain tensors: opening a detector runs no code of its maker's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_pneumo.config import Experiment, validated
from keras_pneumo.detector.calibration import Calibration, log_odds, read_calibration
from keras_pneumo.detector.record import FILE, check_files, networks_of, read_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import Members, mean_maps, mean_probability
from keras_pneumo.inference.export import on_onnx
from keras_pneumo.inference.files import pixels_at
from keras_pneumo.inference.maps import LEVELS, enlarge, level_counts, quantise
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.inference.postprocess import OWN_HEAD, PostprocessingParameters, read_postprocessing
from keras_pneumo.inference.run import RunFolder, build
from keras_pneumo.models.weights import from_torch, load_safetensors

Engine = Literal["keras", "onnx"]
CLASSIFIER, OUTLINE = "classifier", "outline"
"""Beside ``own head``, what may decide at the level of the image, alone or together."""


@dataclass(frozen=True)
class Counts:
    """How validation images fell at the threshold; from them a reader is told how often such an answer is wrong."""

    images: int
    patients: int
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True)
class Answer:
    """What the detector says of one radiograph."""

    probability: float
    """Calibrated, of any pneumothorax."""
    classifier: float
    """By the classifiers, as they are."""
    own_head: float | None
    """By the segmenters' image-level heads, as they are; None where they have none."""
    levels: np.ndarray
    """The segmenters' map, uint8 (S, S): probability times 255."""
    mask: np.ndarray
    """uint8 (1024, 1024), 0 or 1, on the radiograph stretched to that grid."""


@dataclass(frozen=True)
class Detector:
    """An opened detector, its files checked and its networks loaded."""

    folder: Path
    name: str
    version: str
    """Of this package and of the detector's own content: two detectors with the same version answer the same."""
    classifiers: Members
    segmenters: Members
    rule: PostprocessingParameters
    outline_area: int
    """Pixels at 1024x1024 that the ``outline`` as an image-level answer asks of a map."""
    calibration: Calibration
    probability_source: str
    threshold: float
    """On the calibrated probability: from here on the answer is yes."""
    counts: Counts
    record: dict[str, Any]
    """All of ``detector.json``."""

    @property
    def image_size(self) -> int:
        """Side of the largest image that a network wants: smaller radiographs are refused."""
        return max(run.experiment.image_size for run, _ in [*self.classifiers, *self.segmenters])

    def answer(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """Answers for square uint8 radiographs, white dense, of any size from :attr:`image_size` up."""

        def images_at(size: int) -> np.ndarray:
            return pixels_at(images, size)

        classifier = mean_probability(self.classifiers, images_at)
        maps, head = mean_maps(self.segmenters, images_at)
        levels = quantise(maps)
        outline = np.array([outline_score(one, self.outline_area) for one in levels])
        sources = image_level_sources(classifier, head, outline)
        probability = self.calibration.apply(sources[self.probability_source])
        gate = sources[self.rule.gate_source] if self.rule.gate > 0 else np.ones(len(images))
        return [
            Answer(
                float(probability[row]),
                float(classifier[row]),
                None if head is None else float(head[row]),
                one,
                self.rule.mask(enlarge(one), float(gate[row])),
            )
            for row, one in enumerate(levels)
        ]


def outline_score(levels: np.ndarray, area: int) -> float:
    """The highest probability that at least ``area`` pixels at 1024x1024 of a map, uint8 (S, S), reach."""
    return float(
        PostprocessingParameters(1.0, area, 1.0).score(level_counts(enlarge(levels), np.empty(0, np.int32))[None])[0]
    )


def image_level_sources(
    classifier: np.ndarray, own_head: np.ndarray | None, outline: np.ndarray
) -> dict[str, np.ndarray]:
    """What may decide at the level of the image, by name: each is a probability, (n,).

    Several together are the mean of their log odds, so that one that is sure outweighs one that is not.

    Args:
        classifier: the classifiers' probability, (n,).
        own_head: that of the segmenters' image-level heads, (n,), where they have one.
        outline: :func:`outline_score` of each map; a map has 256 levels, so it is never surer than half a level.
    """
    half = 0.5 / (LEVELS - 1)
    outline = np.clip(outline, half, 1 - half)
    found = {CLASSIFIER: np.asarray(classifier, float), OUTLINE: outline}
    if own_head is not None:
        found |= {OWN_HEAD: np.asarray(own_head, float), f"{CLASSIFIER} and {OWN_HEAD}": _mean(classifier, own_head)}
    found[f"{CLASSIFIER} and {OUTLINE}"] = _mean(classifier, outline)
    if own_head is not None:
        found[f"{CLASSIFIER}, {OWN_HEAD} and {OUTLINE}"] = _mean(classifier, own_head, outline)
    return found


def _mean(*probabilities: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.mean([log_odds(one) for one in probabilities], axis=0)))


def open_detector(folder: Path, engine: Engine = "keras") -> Detector:
    """A detector folder, every file checked against its hash, its networks loaded.

    Args:
        folder: that :mod:`keras_pneumo.detector.fitting` made, or a copy of it.
        engine: what runs the networks; see :mod:`keras_pneumo.inference.export`.

    Raises:
        PneumoError: it is no detector, or a file is missing or not as it was written.
    """
    record = read_record(folder)
    check_files(folder, record)
    try:
        counts = Counts(**record["validation"]["counts"])
        threshold, source = float(record["threshold"]), str(record["probability_source"])
        area = int(record["outline_area"])
        name, package = str(record["name"]), str(record["versions"]["keras_pneumo"])
        roles = {role: [str(member) for member in record[role]] for role in ("classifiers", "segmenters")}
    except (KeyError, TypeError, ValueError):
        raise PneumoError(f"{folder / FILE} lacks a part of a detector's record. Join the runs again.") from None
    networks = {member: networks_of(folder, record, member) for members in roles.values() for member in members}
    classifiers = [_member(folder / member, networks[member], engine) for member in roles["classifiers"]]
    segmenters = [_member(folder / member, networks[member], engine) for member in roles["segmenters"]]
    return Detector(
        folder=folder,
        name=name,
        version=f"{package}+{record['sha256'][:12]}",
        classifiers=classifiers,
        segmenters=segmenters,
        rule=read_postprocessing(folder / RULE_FILE),
        outline_area=area,
        calibration=read_calibration(record["calibration"]),
        probability_source=source,
        threshold=threshold,
        counts=counts,
        record=record,
    )


def _member(place: Path, networks: Sequence[Path], engine: Engine) -> tuple[RunFolder, list[keras.Model]]:
    """One run of the detector, in ``place``, and its networks, float32."""
    record = json.loads((place / "experiment.json").read_text(encoding="utf-8"))
    experiment = validated(Experiment, record.get("experiment", {}), str(place / "experiment.json"))
    keras.config.set_dtype_policy("float32")
    models: list[Any] = []
    for path in networks:
        model = build(experiment)
        from_torch(model, load_safetensors(path))
        models.append(on_onnx(model, experiment) if engine == "onnx" else model)
    return RunFolder(place, experiment, record), models
