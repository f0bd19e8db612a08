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
from keras_pneumo.inference.maps import enlarge, outputs_of, quantise, sigmoid, true_pixels
from keras_pneumo.inference.postprocess import (
    PostprocessingSearch,
    fit,
    gather,
    tally_one,
    write_postprocessing,
    write_threshold,
)
from keras_pneumo.inference.predictor import Predictor, predict_logits, probabilities_of
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
        logits = predict_logits(model, batches)
        probability = probabilities_of(logits)
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
        rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        heads: list[np.ndarray] = []
        for images in batches:
            logits, image_logits = outputs_of(model, images)
            which = np.arange(len(rows), len(rows) + len(logits))
            mask = (masks_of(source, which) > 0).astype(np.float32)
            losses.append(np.asarray(keras.ops.convert_to_numpy(criterion(mask, logits[..., None]))))
            if image_logits is not None:
                heads.append(image_logits)
            levels = quantise(np.nan_to_num(sigmoid(logits)))
            rows += [tally_one(enlarge(one), truth[row], (0,)) for one, row in zip(levels, which, strict=True)]
        loss = float(np.mean(np.concatenate(losses)))
        tally = gather(rows, (0,))
        if not heads:
            found = fit(tally)
            ranked = auroc(source.labels, found.rule.score(tally.counts))
            return ValidationResult(loss, ranked, found.dice, found.dice_positives, found)
        logit = np.concatenate(heads)
        loss += experiment.image_loss_weight * _cross_entropy(source.labels, logit)
        probability = probabilities_of(np.nan_to_num(logit))
        found = fit(tally, probability, "own head")
        return ValidationResult(loss, auroc(source.labels, probability), found.dice, found.dice_positives, found)

    return judge


def _cross_entropy(labels: np.ndarray, logits: np.ndarray) -> float:
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
