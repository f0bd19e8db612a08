"""The detector: classifiers and segmenters with one answer, in a folder that can be copied to another machine.

In: a folder that :mod:`keras_pneumo.detector.fitting` wrote, and radiographs. Out: for each radiograph one
calibrated probability and one mask. The folder holds everything that an answer depends on::

    detector.json               name, calibration, threshold, counts on validation, a hash of every file
    postprocess.json            the postprocessing parameters of masks, with the source of their gate
    likeness.npy                features of the training images: what is not like them gets no answer
    classifier_0/ ...           experiment.json and network_0.safetensors, network_1.safetensors, ... by PyTorch's names
    segmenter_0/ ...

Its answers on the test images lie beside these and are not needed: submission, parts, explain, board. No file names a
path outside the folder, and weights are plain tensors: opening a detector runs no code from its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.special import expit

from keras_pneumo.config import Experiment, validated
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.radiographs.geometry import mask_on_image, without_padding
from keras_pneumo.detector.calibration import Calibration, log_odds, read_calibration
from keras_pneumo.detector.likeness import Likeness, read_likeness
from keras_pneumo.detector.record import FILE, check_files, networks_of, read_detector_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import ImagesAt, Members, mean_maps, mean_probability, prepared_batches
from keras_pneumo.inference.files import Image, check_readable, image_sources, pixels_at, read_batches
from keras_pneumo.inference.maps import LEVELS, enlarge, image_shapes, level_histogram, quantise
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.inference.postprocess import OWN_HEAD, PostprocessingParameters, read_postprocessing
from keras_pneumo.inference.predictor import SINGLE_DEVICE, DistributedPredictor, MicroBatchPredictor, Predictor
from keras_pneumo.inference.run import RunFolder, build
from keras_pneumo.models.folding import fold_batch_norm
from keras_pneumo.models.weights import from_torch, load_safetensors
from keras_pneumo.storage.files import read_json
from keras_pneumo.storage.workers import Progress

BATCH = 4
"""Radiographs predicted together; at 512 pixels larger batches are no faster on CPU cores."""

CLASSIFIER, OUTLINE = "classifier", "outline"
"""Image-level sources of a probability, beside the segmenters' ``own head``; they also work together."""


UNLIKE = "Not like the training images"
"""What is said in place of an answer."""


@dataclass(frozen=True)
class ValidationCounts:
    """Right and wrong answers on validation at the threshold; error rates for the user come from them."""

    images: int
    patients: int
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclass(frozen=True)
class Answer:
    """The detector's answer for one radiograph."""

    probability: float
    """Of any pneumothorax, calibrated."""
    classifier: float
    """The classifiers' probability, not calibrated."""
    own_head: float | None
    """The probability of the segmenters' image-level heads, not calibrated; None where they have none."""
    quantised_map: np.ndarray
    """The segmenters' map, uint8 (S, S): probability times 255."""
    mask: np.ndarray
    """uint8 (1024, 1024), 0 or 1, on the radiograph padded to a square and resized to that grid; nothing on padding."""
    distance: float | None = None
    """To the training images; see :mod:`keras_pneumo.detector.likeness`. None where the detector has no such check."""
    unlike: bool = False
    """Whether the image is not like the training images: then nothing else here means anything."""


@dataclass(frozen=True)
class Prediction:
    """The detector's answer for one radiograph, on the radiograph's own pixels; from :meth:`Detector.predict`."""

    image_id: str
    """SOPInstanceUID of a DICOM file, name of another file, number of an array."""
    probability: float | None
    """Of any pneumothorax, calibrated; None where the image is not like the training images."""
    pneumothorax: bool | None
    """The answer: yes from the detector's threshold on; None where the image is not like the training images."""
    mask: np.ndarray
    """uint8 (H, W), 0 or 1, on the rows and columns of the radiograph; all 0 where there is no answer."""
    reason: str = ""
    """Why there is no answer; blank where there is one."""


@dataclass(frozen=True)
class Detector:
    """An opened detector: its files are checked and its networks loaded."""

    folder: Path
    name: str
    version: str
    """Version of this package and of the detector's content: two detectors with the same version answer the same."""
    classifiers: Members
    segmenters: Members
    postprocessing: PostprocessingParameters
    outline_area: int
    """Pixels at 1024x1024 that the image-level source ``outline`` needs; see :func:`outline_score`."""
    calibration: Calibration
    probability_source: str
    threshold: float
    """The answer is yes from this calibrated probability on."""
    counts: ValidationCounts
    record: dict[str, Any]
    """All of ``detector.json``."""
    likeness: Likeness | None = None
    """The check whether a radiograph is like the training images; None in detectors of earlier versions."""
    heat_map_models: Sequence[Sequence[keras.Model]] = ()
    """The networks of each classifier as they were trained, for heat maps; empty unless they were asked for."""
    engines: Set[str] = frozenset()
    """The programs that have run the networks, with versions, where Keras was not the only choice."""

    @property
    def synthetic(self) -> bool:
        """Whether it was trained and fitted on phantoms: then its error rates say nothing of real radiographs."""
        return self.record.get("synthetic") is True

    @property
    def image_size(self) -> int:
        """Largest side, in pixels, of the networks' images: smaller radiographs are enlarged, with a note."""
        return max(run.experiment.image_size for run in self.runs)

    @property
    def runs(self) -> list[RunFolder]:
        """The runs of all members."""
        return [run for run, _ in [*self.classifiers, *self.segmenters]]

    def predict(self, images: Image | Sequence[Image], any_view: bool = False) -> list[Prediction]:
        """Predict radiographs given as paths, arrays or a folder, as ``keras-pneumo detect`` does.

        Files are decoded in this process; ``detect`` decodes them in processes of their own and survives hostile ones.

        Args:
            images: one radiograph, one folder of them, or several of either. An array is (H, W), white = dense: uint8,
                or floats in [0, 1].
            any_view: whether files are taken that say that they are no frontal radiographs of the chest.

        Returns:
            One prediction for each radiograph in the order given, those of a folder by name. Files that cannot be read
            are left out, and a warning names them. One that is not like the training images has no probability.

        Raises:
            PneumoError: an array is not an image as above, or there is no radiograph, or none that can be read.
        """
        sources, refused = image_sources(images)
        predictions: list[Prediction] = []
        for batch in read_batches(sources, BATCH, refused, any_view):
            answers = self.answer([image.pixels for image in batch]) if batch else []
            for image, answer in zip(batch, answers, strict=True):
                if answer.unlike:
                    nothing = np.zeros(image.pixels.shape, np.uint8)
                    reason = self.unlike_reason(answer)
                    predictions.append(Prediction(image.image_id, None, None, nothing, reason))
                    continue
                mask = mask_on_image(answer.mask, *image.pixels.shape)
                yes = answer.probability >= self.threshold
                predictions.append(Prediction(image.image_id, answer.probability, yes, mask))
        check_readable(len(predictions), refused)
        return predictions

    def answer(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """Answers for uint8 radiographs (H, W) of any size, white dense."""

        return self._answer(lambda size: pixels_at(images, size), [image.shape for image in images])

    def answer_prepared(
        self, prepared: PreparedFolder, image_ids: Sequence[str], progress: Progress | None = None
    ) -> Iterator[tuple[str, Answer]]:
        """Each image id of a prepared folder with its answer, in order; the images are read as training reads them.

        The folder must have the sizes of all members.
        """
        shapes = image_shapes(prepared, image_ids) or [(rle.MASK_SIZE, rle.MASK_SIZE)] * len(image_ids)
        done = 0
        for images_at in prepared_batches(self.runs, prepared, image_ids):
            images = len(images_at(self.image_size))
            yield from zip(
                image_ids[done : done + images], self._answer(images_at, shapes[done : done + images]), strict=True
            )
            done += images
            if progress:
                progress(done, len(image_ids))

    def _answer(self, images_at: ImagesAt, shapes: Sequence[tuple[int, ...]]) -> list[Answer]:
        classifier = mean_probability(self.classifiers, images_at)
        maps, head = mean_maps(self.segmenters, images_at)
        quantised = quantise(maps)
        enlarged = [without_padding(enlarge(each), *shape) for each, shape in zip(quantised, shapes, strict=True)]
        outline = np.array([outline_score(each, self.outline_area) for each in enlarged])
        sources = image_level_sources(classifier, head, outline)
        probability = self.calibration.apply(sources[self.probability_source])
        parameters = self.postprocessing
        distances = None
        if self.likeness is not None:
            distances = self.likeness.distances_of_batch(images_at(self.likeness.image_size), shapes)
        limit = np.inf if self.likeness is None else self.likeness.limit
        gate = sources[parameters.gate_source] if parameters.gate > 0 else np.ones(len(shapes))
        return [
            Answer(
                float(probability[row]),
                float(classifier[row]),
                None if head is None else float(head[row]),
                image_map,
                parameters.mask(enlarged[row], float(gate[row])),
                None if distances is None else float(distances[row]),
                distances is not None and bool(distances[row] > limit),
            )
            for row, image_map in enumerate(quantised)
        ]

    def unlike_reason(self, answer: Answer) -> str:
        """Why an answer is none, in a sentence; blank where it is one."""
        if not answer.unlike or self.likeness is None:
            return ""
        return (
            f"{UNLIKE}: its distance to them is {answer.distance:.3f}, the limit is {self.likeness.limit:.3f}. "
            "So there is no answer."
        )


def outline_score(quantised_map: np.ndarray, area: int) -> float:
    """The highest probability that at least ``area`` pixels of a map reach.

    Args:
        quantised_map: probability times 255, uint8 (S, S).
        area: pixels at 1024x1024.
    """
    counts = level_histogram(enlarge(quantised_map), np.empty(0, np.int32))
    return float(PostprocessingParameters(1.0, area, 1.0).score(counts[None])[0])


def image_level_sources(
    classifier: np.ndarray, own_head: np.ndarray | None, outline: np.ndarray
) -> dict[str, np.ndarray]:
    """Image-level probabilities by the name of their source, each (n,).

    Several sources together are the mean of their logits, so that a sure one weighs more than an unsure one.

    Args:
        classifier: the classifiers' probability, (n,).
        own_head: that of the segmenters' image-level heads, (n,), or None where they have none.
        outline: :func:`outline_score` of each map. A map has 256 levels, so 0 and 1 count as half a level off.
    """
    half = 0.5 / (LEVELS - 1)
    outline = np.clip(outline, half, 1 - half)
    sources = {CLASSIFIER: np.asarray(classifier, float), OUTLINE: outline}
    if own_head is not None:
        sources[OWN_HEAD] = np.asarray(own_head, float)
        sources[f"{CLASSIFIER} and {OWN_HEAD}"] = _mean_in_logits(classifier, own_head)
    sources[f"{CLASSIFIER} and {OUTLINE}"] = _mean_in_logits(classifier, outline)
    if own_head is not None:
        sources[f"{CLASSIFIER}, {OWN_HEAD} and {OUTLINE}"] = _mean_in_logits(classifier, own_head, outline)
    return sources


def _mean_in_logits(*probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(expit(np.mean([log_odds(probability) for probability in probabilities], axis=0)))


def open_detector(folder: Path, distributed: DistributedPredictor = SINGLE_DEVICE, heat_maps: bool = False) -> Detector:
    """Open a detector folder: check every file against its hash and load the networks.

    Args:
        folder: from :func:`keras_pneumo.detector.fitting.fit_detector`, or a copy of it.
        distributed: where the networks predict; for another engine see :mod:`keras_pneumo.inference.engine`.
        heat_maps: whether to keep the classifiers' networks for heat maps, beside those that predict.

    Raises:
        PneumoError: the folder is not a detector, or a file is missing or was changed.
    """
    record = read_detector_record(folder)
    check_files(folder, record)
    try:
        counts = ValidationCounts(**record["validation"]["counts"])
        threshold, source = float(record["threshold"]), str(record["probability_source"])
        area = int(record["outline_area"])
        name, package = str(record["name"]), str(record["versions"]["keras_pneumo"])
        roles = {role: [str(member) for member in record[role]] for role in ("classifiers", "segmenters")}
    except (KeyError, TypeError, ValueError):
        raise PneumoError(f"{folder / FILE} is incomplete. Join the runs again.") from None
    if not 0 <= threshold <= 1 or area < 1:
        raise PneumoError(
            f"{folder / FILE}: threshold is {threshold:g} and outline_area {area}, but a threshold is from 0 to 1 and "
            "an area at least one pixel. Join the runs again."
        )
    networks = {member: networks_of(folder, record, member) for members in roles.values() for member in members}
    classifiers: Members = []
    segmenters: Members = []
    heat_map_models: list[list[keras.Model]] = []
    for role, members in (("classifiers", classifiers), ("segmenters", segmenters)):
        for member in roles[role]:
            run, predictors, models = _open_member(folder / member, networks[member], distributed)
            members.append((run, predictors))
            if heat_maps and role == "classifiers":
                heat_map_models.append(models)
    return Detector(
        folder=folder,
        name=name,
        version=f"{package}+{record['sha256'][:12]}",
        classifiers=classifiers,
        segmenters=segmenters,
        postprocessing=read_postprocessing(folder / RULE_FILE),
        outline_area=area,
        calibration=read_calibration(record["calibration"]),
        probability_source=source,
        threshold=threshold,
        counts=counts,
        record=record,
        likeness=read_likeness(folder, record),
        heat_map_models=heat_map_models,
        engines=distributed.engines,
    )


def _open_member(
    folder: Path, networks: Sequence[Path], distributed: DistributedPredictor
) -> tuple[RunFolder, list[Predictor], list[keras.Model]]:
    """Open one run of the detector from its ``folder``: its predictors, and its networks in float32."""
    record = read_json(folder / "experiment.json")
    experiment = validated(Experiment, record.get("experiment", {}), str(folder / "experiment.json"))
    keras.config.set_dtype_policy("float32")
    predictors: list[Predictor] = []
    models: list[keras.Model] = []
    with distributed.scope():
        for path in networks:
            models.append(build(experiment))
            from_torch(models[-1], load_safetensors(path))
            predictors.append(MicroBatchPredictor(distributed.distribute(fold_batch_norm(models[-1]))))
    return RunFolder(folder, experiment, record), predictors, models
