"""Validation after an epoch: the report's scores on all validation images, and the postprocessing fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.data.batches.images import ImageSet, masks_of
from keras_pneumo.data.batches.pipeline import evaluation_batches
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.evaluation.scoring.metrics import auroc, fit_threshold
from keras_pneumo.inference.maps import enlarge, quantise, true_pixels
from keras_pneumo.inference.postprocess import (
    OWN_HEAD,
    ImageCounts,
    PostprocessingSearch,
    count_pixels,
    fit_postprocessing,
    stack_counts,
    write_postprocessing,
    write_threshold,
)
from keras_pneumo.inference.predictor import Predictor, predict_logits, sigmoid
from keras_pneumo.training.losses import SegmentationLoss


@dataclass(frozen=True)
class ValidationResult:
    """Loss and scores on the validation images; the Dice of a classifier is NaN."""

    loss: float
    auroc: float
    dice: float = float("nan")
    dice_positives: float = float("nan")
    fitted: PostprocessingSearch | float = float("nan")
    """A segmenter's postprocessing of masks, a classifier's threshold on the probability."""
    images: int = 0
    """The number of validation images, kept with a classifier's threshold."""
    predictions: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Of each validation image the probability; of a segmenter without an image-level head, the score that ranks its
    images."""

    def write_fitted(self, folder: Path) -> None:
        """Write the fitted postprocessing or threshold as ``postprocess.json``."""
        if isinstance(self.fitted, PostprocessingSearch):
            write_postprocessing(folder, self.fitted)
        else:
            write_threshold(folder, self.fitted, self.images)


Validator = Callable[[Predictor], ValidationResult]
"""Evaluates a network on the validation images."""


def make_validator(experiment: Experiment, source: ImageSet, prepared: PreparedFolder) -> Validator:
    """A function that evaluates a network on ``source``, which for a segmenter holds masks."""
    if experiment.task == "classifier":
        return _classifier_validator(experiment, source)
    return _segmenter_validator(experiment, source, true_pixels(prepared, source.image_ids))


def _classifier_validator(experiment: Experiment, source: ImageSet) -> Validator:
    """Cross-entropy and AUROC, with the threshold that fits best."""
    batches = evaluation_batches(source, experiment.global_batch_size)

    def evaluate(model: Predictor) -> ValidationResult:
        logits = np.concatenate([np.asarray(predict_logits(model, images).image) for images in batches])
        probability = sigmoid(logits)
        finite = bool(np.isfinite(logits).all())
        threshold = fit_threshold(source.labels, probability) if finite else float("nan")
        return ValidationResult(
            _cross_entropy(source.labels, logits),
            auroc(source.labels, probability),
            fitted=threshold,
            images=len(logits),
            predictions=probability,
        )

    return evaluate


def _segmenter_validator(experiment: Experiment, source: ImageSet, truth: list[np.ndarray]) -> Validator:
    """Dice by the competition's rule at 1024x1024, with the postprocessing that a search finds best for it.

    The search is the one that a finished run makes, without component sizes: to look for components in every map would
    take longer than a small epoch.
    """
    batches = evaluation_batches(source, experiment.global_batch_size)
    criterion = SegmentationLoss(experiment.loss, reduction=None)

    def evaluate(model: Predictor) -> ValidationResult:
        losses: list[np.ndarray] = []
        rows: list[ImageCounts] = []
        heads: list[np.ndarray] = []
        for images in batches:
            image_logits, logits = predict_logits(model, images)
            assert logits is not None  # a segmenter's
            indices = np.arange(len(rows), len(rows) + len(logits))
            mask = (masks_of(source, indices) > 0).astype(np.float32)
            losses.append(np.asarray(keras.ops.convert_to_numpy(criterion(mask, logits[..., None]))))
            if image_logits is not None:
                heads.append(image_logits)
            maps = quantise(np.nan_to_num(sigmoid(logits, np.float32)))
            rows += [count_pixels(enlarge(map_), truth[index], (0,)) for map_, index in zip(maps, indices, strict=True)]
        loss = float(np.mean(np.concatenate(losses)))
        counts = stack_counts(rows, (0,))
        if heads:
            head_logits = np.concatenate(heads)
            loss += experiment.image_loss_weight * _cross_entropy(source.labels, head_logits)
            predictions = sigmoid(np.nan_to_num(head_logits))
            search = fit_postprocessing(counts, predictions, OWN_HEAD)
        else:
            search = fit_postprocessing(counts)
            predictions = search.parameters.score(counts.histograms)
        area_under_curve = auroc(source.labels, predictions)
        return ValidationResult(
            loss, area_under_curve, search.dice, search.dice_positives, search, predictions=predictions
        )

    return evaluate


def _cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy of logits, without overflow."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
