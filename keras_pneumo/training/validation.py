"""How good a network is after an epoch, on all validation images, by the score that is reported in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """What validation found; the Dice of a classifier is NaN."""

    loss: float
    auroc: float
    dice: float = float("nan")
    dice_positives: float = float("nan")
    fitted: PostprocessingSearch | float = float("nan")
    """A segmenter's rule for masks, a classifier's threshold on the probability."""
    images: int = 0
    """On how many images."""

    def write_fitted(self, folder: Path) -> None:
        """Write what was fitted as ``postprocess.json``."""
        if isinstance(self.fitted, PostprocessingSearch):
            write_postprocessing(folder, self.fitted)
        else:
            write_threshold(folder, self.fitted, self.images)


Validator = Callable[[Predictor], ValidationResult]


def make_validator(experiment: Experiment, source: ImageSet, prepared: PreparedFolder) -> Validator:
    """The experiment's way to validate on ``source``, which for a segmenter holds masks."""
    if experiment.task == "classifier":
        return _classifier_judge(experiment, source)
    return _segmenter_judge(experiment, source, true_pixels(prepared, source.image_ids))


def _classifier_judge(experiment: Experiment, source: ImageSet) -> Validator:
    batches = evaluation_batches(source, experiment.global_batch_size)

    def judge(model: Predictor) -> ValidationResult:
        logits = np.concatenate([np.asarray(predict_logits(model, images).image) for images in batches])
        probability = sigmoid(logits)
        finite = bool(np.isfinite(logits).all())
        threshold = fit_threshold(source.labels, probability) if finite else float("nan")
        return ValidationResult(
            _cross_entropy(source.labels, logits),
            auroc(source.labels, probability),
            fitted=threshold,
            images=len(logits),
        )

    return judge


def _segmenter_judge(experiment: Experiment, source: ImageSet, truth: list[np.ndarray]) -> Validator:
    """Dice by the competition's rule at 1024x1024, with the best rule for masks that a search on it finds.

    The search is that of the finished run, which the reported masks go through, less its component sizes: looking for
    components in every map would take longer than small epochs do.
    """
    batches = evaluation_batches(source, experiment.global_batch_size)
    criterion = SegmentationLoss(experiment.loss, reduction=None)

    def judge(model: Predictor) -> ValidationResult:
        losses: list[np.ndarray] = []
        rows: list[ImageCounts] = []
        heads: list[np.ndarray] = []
        for images in batches:
            image_logits, logits = predict_logits(model, images)
            assert logits is not None  # a segmenter's
            which = np.arange(len(rows), len(rows) + len(logits))
            mask = (masks_of(source, which) > 0).astype(np.float32)
            losses.append(np.asarray(keras.ops.convert_to_numpy(criterion(mask, logits[..., None]))))
            if image_logits is not None:
                heads.append(image_logits)
            maps = quantise(np.nan_to_num(sigmoid(logits, np.float32)))
            rows += [count_pixels(enlarge(each), truth[row], (0,)) for each, row in zip(maps, which, strict=True)]
        loss = float(np.mean(np.concatenate(losses)))
        counts = stack_counts(rows, (0,))
        if not heads:
            search = fit_postprocessing(counts)
            ranked = auroc(source.labels, search.parameters.score(counts.histograms))
            return ValidationResult(loss, ranked, search.dice, search.dice_positives, search)
        logit = np.concatenate(heads)
        loss += experiment.image_loss_weight * _cross_entropy(source.labels, logit)
        probability = sigmoid(np.nan_to_num(logit))
        search = fit_postprocessing(counts, probability, OWN_HEAD)
        return ValidationResult(loss, auroc(source.labels, probability), search.dice, search.dice_positives, search)

    return judge


def _cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
