"""What joins classifiers and segmenters into one detector: fitted on validation, applied to any images.

In: what the parts say of validation images, and the truth. Out: the rule for masks and its gate, the probability, its
calibration and the threshold; by them, the detector's answers.

The rule for masks is searched several times, with the gate asked of the segmenter's own head, of the classifier, and of
them together; and always without a gate. The segmenter's own search comes first and another takes its place only where
it has a higher Dice on validation, so there the detector is never below its segmenter; where gating does not help, the
gate stays open. Which image-level answer becomes the probability (a part's or several together), and by which curve, is
what has the lowest cross-validated log loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared import Prepared
from keras_pneumo.evaluation.metrics import confusion, fit_threshold
from keras_pneumo.prediction.calibration import Fitted, fit_calibration
from keras_pneumo.prediction.detector import OUTLINE, Counts, image_level_sources, outline_score
from keras_pneumo.prediction.postprocess import Search, fit
from keras_pneumo.prediction.segment import OWN_HEAD, MapSet, answers, tally_of


@dataclass(frozen=True)
class Joint:
    """What joins the parts, fitted on validation."""

    search: Search
    """Of the rule that the detector keeps."""
    alone: Search
    """Of the segmenters without the classifiers."""
    probability_source: str
    fitted: Fitted
    threshold: float
    counts: Counts

    @property
    def sentences(self) -> list[str]:
        """What was decided, for a person."""
        rule = self.search.rule
        if rule.gate <= 0:
            gate = "Gating does not help on validation, so the gate stays open"
        elif rule.gate_source == OWN_HEAD:
            gate = (
                f"The segmenter's own head gates the mask from {rule.gate:.3f} on; the classifier does not gate better"
            )
        else:
            gate = f"The mask is opened by the {rule.gate_source} from {rule.gate:.3f} on"
        return [
            f"{gate}. Dice on {self.search.images} validation images: {self.search.dice:.3f}, "
            f"segmenter alone {self.alone.dice:.3f}.",
            f"The probability is that of the {self.probability_source}. {self.fitted.sentence}",
        ]


@dataclass(frozen=True)
class Asked:
    """What the parts say of one subset, images in the order of ``maps``."""

    maps: MapSet
    classifier: np.ndarray

    def sources(self, area: int) -> dict[str, np.ndarray]:
        """The image-level answers by name; ``area`` is what the outline's asks for."""
        outline = np.array([outline_score(one.levels(), area) for one in self.maps.maps])
        return image_level_sources(self.classifier, self.maps.image_probability, outline)


def fit_joint(held_out: Asked, prepared: Prepared) -> Joint:
    """Rule, probability and threshold on validation images; see the module for how."""
    tally = tally_of(held_out.maps, prepared)
    head = held_out.maps.image_probability
    alone = fit(tally, head, OWN_HEAD if head is not None else "")
    sources = held_out.sources(alone.rule.area)
    best = alone
    for source, probability in sources.items():
        if source == OUTLINE:
            continue  # every rule asks the outline already
        search = alone if source == OWN_HEAD else fit(tally, probability, source)
        # Rounded as the search rounds, so that sums in another order decide nothing.
        if round(search.dice, 7) > round(best.dice, 7):
            best = search
    cases = prepared.cases.set_index("image_id").loc[held_out.maps.image_ids]
    truth, patients = cases["pneumothorax"].to_numpy(bool), cases["patient_id"].to_numpy(str)
    fits = {source: fit_calibration(truth, probability, patients) for source, probability in sources.items()}
    source = min(fits, key=lambda one: fits[one].log_loss)
    calibrated = fits[source].calibration.apply(sources[source])
    threshold = fit_threshold(truth, calibrated)
    tp, fp, fn, tn = confusion(truth, calibrated >= threshold)
    counts = Counts(len(truth), len(set(patients)), tp, fp, fn, tn)
    return Joint(best, alone, source, fits[source], threshold, counts)


def joined_answers(asked: Asked, joint: Joint) -> pd.DataFrame:
    """``image_id, probability, encoded_pixels`` by the detector."""
    rule, sources = joint.search.rule, asked.sources(joint.alone.rule.area)
    table = answers(asked.maps, rule, sources[rule.gate_source] if rule.gate > 0 else None)
    return table.assign(probability=joint.fitted.calibration.apply(sources[joint.probability_source]))
