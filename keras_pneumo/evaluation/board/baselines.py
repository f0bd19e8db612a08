"""What can be scored without looking at a single pixel.

In: a :class:`Truth`, that is tables. Out: probabilities for the scored images from the majority, from the patient's
other images, from age, sex and view, and from how often the patient was imaged; and the empty outline. They stand on
every board, because a score means what it adds to these: on SIIM images split one by one, knowing only the patient
scores AUROC 0.81 to 0.84, and outlining nothing scores Dice 0.79.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_pneumo.evaluation.inputs.metadata import features
from keras_pneumo.evaluation.inputs.truth import METADATA, Truth
from keras_pneumo.storage.tables import one_line

MOST_COLUMNS = 12
"""Columns of a metadata table that get a row of their own on the board."""


@dataclass(frozen=True)
class Baseline:
    """An answer from the tables: ``probability`` of shape (images,), or None with the reason in ``skipped``."""

    name: str
    explanation: str
    probability: np.ndarray | None = None
    outlines_nothing: bool = False
    skipped: str = ""


def baselines(truth: Truth) -> list[Baseline]:
    """Every no-pixel answer, in the order of a board; one that the tables cannot give says why."""
    found = [majority(truth), all_empty(truth), patient_only(truth), age_sex_view(truth), times_imaged(truth)]
    return found + metadata_baselines(truth)


def majority(truth: Truth) -> Baseline:
    """The share of positives in what a team could learn from, for every image; so the commoner answer, always."""
    name, explanation = "Majority", "the commoner answer for every image"
    share = _prevalence(truth)
    if share is None:
        share = float(truth.pneumothorax.mean())
        explanation += " (its share taken from the scored images, since no other labels are there)"
    return Baseline(name, explanation, np.full(len(truth.cases), share))


def all_empty(truth: Truth) -> Baseline:
    """No pneumothorax, nowhere: probability 0 and an empty mask for every image."""
    return Baseline("All empty", "'no pneumothorax' and no outline for every image", np.zeros(len(truth.cases)), True)


def patient_only(truth: Truth) -> Baseline:
    """The share of positives among the patient's training images; the overall share for an unknown patient.

    With a split by patient every patient is unknown and this ranks nothing (AUROC 0.5). Anything better is a leak.
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
    """How many images of the patient the whole table has. No label says so; the sick are imaged again.

    Where there are training labels a logistic regression on the logarithm of the count makes a probability of it, which
    changes no ranking unless the relation is the reverse; else the probability is ``1 - 1/count``.
    """
    name, explanation = "Times imaged", "how many images of the patient the table has"
    if truth.patients == "none":
        return Baseline(name, explanation, skipped="There is no patient table.")
    everyone = pd.concat([truth.development.patient_id, truth.cases.patient_id])
    count = everyone.value_counts()
    known = np.log(truth.development.patient_id.map(count).to_numpy(float))[:, None]
    asked = truth.cases.patient_id.map(count).to_numpy(float)
    if truth.development.empty:
        return Baseline(name, explanation, 1 - 1 / asked)
    return _regression(name, explanation, truth, known, np.log(asked)[:, None])


def metadata_baselines(truth: Truth) -> list[Baseline]:
    """One answer per further column of the metadata table given, and one from all of them together.

    Each is a logistic regression fitted on the training rows. Without training labels a numeric column is scaled to
    0..1 as it stands (more means ill), and nothing is made of text columns or of all together.
    """
    if truth.metadata is None:
        return []
    known = features(truth.metadata, truth.development.image_id)
    asked = features(truth.metadata, truth.cases.image_id)
    further = [name for name in asked if name not in METADATA]
    answers = []
    for name in further[:MOST_COLUMNS]:
        title, explanation = f"Table: {one_line(name, 40)}", "this one column of the metadata table"
        if len(truth.development):
            answers.append(_regression(title, explanation, truth, known[name], asked[name]))
        elif np.unique(asked[name][:, 0]).size > 2:
            values = asked[name][:, 0]
            answers.append(Baseline(title, explanation, (values - values.min()) / (values.max() - values.min())))
    if len(asked) > 1 and len(truth.development):
        together = [np.concatenate([part[name] for name in asked], axis=1) for part in (known, asked)]
        explanation = f"all {len(asked)} usable columns of the metadata table"
        answers.append(_regression("Table: all columns", explanation, truth, *together))
    return answers


def _regression(name: str, explanation: str, truth: Truth, known: np.ndarray, asked: np.ndarray) -> Baseline:
    labels = truth.development.pneumothorax.to_numpy()
    if len(labels) == 0:
        return Baseline(name, explanation, skipped="There are no training labels beside the scored ones.")
    if len(np.unique(labels)) < 2:
        return Baseline(name, explanation, skipped="The training labels are all alike.")
    model = make_pipeline(StandardScaler(), LogisticRegression(random_state=0, max_iter=1000))
    return Baseline(name, explanation, model.fit(known, labels).predict_proba(asked)[:, 1])


def _prevalence(truth: Truth) -> float | None:
    labels = truth.development.pneumothorax
    return float(labels.mean()) if len(labels) else None
