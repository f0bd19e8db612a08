"""Metadata-only baselines: predictions computed from tables, without reading any image.

In: a :class:`Truth`, that is tables. Out: probabilities for the scored images from the majority, from the patient's
other images, from age, sex and view, and from how often the patient was imaged; and the empty mask. Every board
shows them, because a score means only what it adds to them: on SIIM images split image by image, the patient-only
baseline scores AUROC 0.81 to 0.84, and an empty mask for every image scores Dice 0.79.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.inputs.metadata import features
from keras_pneumo.evaluation.inputs.truth import METADATA, Truth
from keras_pneumo.storage.tables import one_line

MOST_COLUMNS = 12
"""Most columns of a metadata table that get a row of their own on the board."""


@dataclass(frozen=True)
class Baseline:
    """One baseline: its ``probability`` of shape (images,), or None with the reason in ``skipped``."""

    name: str
    explanation: str
    probability: np.ndarray | None = None
    outlines_nothing: bool = False
    skipped: str = ""


def baselines(truth: Truth) -> list[Baseline]:
    """Every metadata-only baseline, in the order of a board; one that cannot be computed gives the reason."""
    fixed = [majority(truth), all_empty(truth), patient_only(truth), age_sex_view(truth), times_imaged(truth)]
    return fixed + source_only(truth) + metadata_baselines(truth)


def majority(truth: Truth) -> Baseline:
    """The share of positives in training for every image, which always gives the more frequent answer."""
    name, explanation = "Majority", "the more frequent answer for every image"
    share = _prevalence(truth)
    if share is None:
        share = float(truth.pneumothorax.mean())
        explanation += " (its share taken from the scored images, since no other labels are there)"
    return Baseline(name, explanation, np.full(len(truth.cases), share))


def all_empty(truth: Truth) -> Baseline:
    """Probability 0 and an empty mask for every image."""
    return Baseline("All empty", "'no pneumothorax' and no outline for every image", np.zeros(len(truth.cases)), True)


def patient_only(truth: Truth) -> Baseline:
    """The share of positives among the patient's training images; the overall share for an unknown patient.

    With a split by patient every patient is unknown, so its AUROC is 0.5. Any higher value shows a leak.
    """
    name, explanation = (
        "Patient only",
        "the patient's share of positives in training; for an unknown patient the overall one",
    )
    share = _prevalence(truth)
    if share is None:
        return Baseline(name, explanation, skipped="There are no training labels beside the scored ones.")
    if truth.patients == "none":
        return Baseline(name, explanation, skipped="There is no patient table.")
    by_patient = truth.development.groupby("patient_id").pneumothorax.mean()
    return Baseline(name, explanation, truth.cases.patient_id.map(by_patient).fillna(share).to_numpy(float))


def age_sex_view(truth: Truth) -> Baseline:
    """Logistic regression on age, sex and view, fitted on the training rows."""
    name, explanation = "Age, sex, view", "logistic regression on age, sex and view, fitted on the training rows"
    everything = pd.concat([truth.development, truth.cases])
    if everything.age.isna().all() and (everything.sex == "").all() and (everything.view == "").all():
        return Baseline(name, explanation, skipped="The tables have no age, sex or view.")
    middle = float(truth.development.age.median()) if truth.development.age.notna().any() else 0.0

    def features(rows: pd.DataFrame) -> np.ndarray:
        return np.stack(
            [
                rows.age.fillna(middle),
                rows.age.isna(),
                rows.sex == "M",
                rows.sex == "F",
                rows["view"] == "AP",
                rows["view"] == "PA",
            ],
            axis=1,
        ).astype(float)

    return _regression(name, explanation, truth, features(truth.development), features(truth.cases))


def times_imaged(truth: Truth) -> Baseline:
    """How many images of the patient the whole table has; ill patients are imaged more often.

    Where there are training labels, a logistic regression on the logarithm of the count gives the probability, which
    keeps or reverses the ranking; otherwise the probability is ``1 - 1/count``.
    """
    name, explanation = "Times imaged", "how many images of the patient the table has"
    if truth.patients == "none":
        return Baseline(name, explanation, skipped="There is no patient table.")
    everyone = pd.concat([truth.development.patient_id, truth.cases.patient_id])
    count = everyone.value_counts()
    training = np.log(truth.development.patient_id.map(count).to_numpy(float))[:, None]
    scored = truth.cases.patient_id.map(count).to_numpy(float)
    if truth.development.empty:
        return Baseline(name, explanation, 1 - 1 / scored)
    return _regression(name, explanation, truth, training, np.log(scored)[:, None])


def source_only(truth: Truth) -> list[Baseline]:
    """The share of positives of the image's source in training; no baseline where there is only one source."""
    if "source" not in truth.cases or truth.cases.source.nunique() < 2 or truth.development.empty:
        return []
    by_source = truth.development.groupby("source").pneumothorax.mean()
    probability = truth.cases.source.map(by_source).fillna(_prevalence(truth)).to_numpy(float)
    return [Baseline("Source", "the share of positives of the image's source in training", probability)]


def metadata_baselines(truth: Truth) -> list[Baseline]:
    """One baseline for each further column of the metadata table, and one from all of its columns together.

    Each is a logistic regression fitted on the training rows. Without training labels a numeric column is only scaled
    to 0..1 (more means ill), and text columns are not used, nor all columns together.
    """
    if truth.metadata is None:
        return []
    training = features(truth.metadata, truth.development.image_id)
    scored = features(truth.metadata, truth.cases.image_id)
    further = [name for name in scored if name not in METADATA]
    made = []
    for name in further[:MOST_COLUMNS]:
        title, explanation = f"Table: {one_line(name, 40)}", "this one column of the metadata table"
        if len(truth.development):
            made.append(_regression(title, explanation, truth, training[name], scored[name]))
        elif np.unique(scored[name][:, 0]).size > 2:
            values = scored[name][:, 0]
            made.append(Baseline(title, explanation, (values - values.min()) / (values.max() - values.min())))
    if len(scored) > 1 and len(truth.development):
        together = [np.concatenate([part[name] for name in scored], axis=1) for part in (training, scored)]
        explanation = f"all {len(scored)} usable columns of the metadata table"
        made.append(_regression("Table: all columns", explanation, truth, *together))
    return made


def _regression(name: str, explanation: str, truth: Truth, training: np.ndarray, scored: np.ndarray) -> Baseline:
    """A logistic regression on features, shape (rows, k), fitted on the training rows, applied to the scored rows."""
    # Where a model is fitted, and not above: scikit-learn takes a second to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = truth.development.pneumothorax.to_numpy()
    if len(labels) == 0:
        return Baseline(name, explanation, skipped="There are no training labels beside the scored ones.")
    if len(np.unique(labels)) < 2:
        return Baseline(name, explanation, skipped="The training labels are all alike.")
    model = make_pipeline(StandardScaler(), LogisticRegression(random_state=0, max_iter=1000))
    return Baseline(name, explanation, model.fit(training, labels).predict_proba(scored)[:, 1])


def _prevalence(truth: Truth) -> float | None:
    labels = truth.development.pneumothorax
    return float(labels.mean()) if len(labels) else None
