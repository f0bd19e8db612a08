"""One row of the board: a submission's or a baseline's yes/no answers, masks, scores and intervals.

In: a :class:`Truth` and an :class:`AlignedSubmission` or a :class:`Baseline`. Out: an :class:`Entry` with its yes/no
answers at its own threshold, its masks compared with the true ones, and (after the shared resamples) its scores. The
entry also records the source of its threshold, because a threshold fitted on the test set makes a score too high, and
a note if the declared pre-training may have used test images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.known import NIH_IMAGES
from keras_pneumo.evaluation.board.baselines import Baseline
from keras_pneumo.evaluation.inputs.alignment import AlignedSubmission
from keras_pneumo.evaluation.inputs.submission import Pretraining, SubmissionInfo
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring import metrics
from keras_pneumo.evaluation.scoring.masks import mask_areas, overlap
from keras_pneumo.evaluation.scoring.scores import (
    PatientSums,
    ScoreArrays,
    contributions,
    patient_weights,
    sum_by_patient,
)
from keras_pneumo.evaluation.scoring.statistics import DelongSums, Interval, bca_interval, delong_sums, exact_interval
from keras_pneumo.storage.tables import column_name, counted, image_id_of, one_line

_NIH_NAME = re.compile(r"\d{8}_\d{3}")
_UNKNOWN = re.compile(r"(.*, )?unknown\b", re.IGNORECASE)


_COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")
_SHARES = {
    "accuracy": _COUNTS,
    "sensitivity": ("true_positive", "false_negative"),
    "specificity": ("true_negative", "false_positive"),
    "ppv": ("true_positive", "false_positive"),
    "npv": ("true_negative", "false_negative"),
}
"""Scores that are shares, and the counts that each is a share of."""


class HalfSums(NamedTuple):
    """Contributions to a score summed over random halves of the patients, and the weight of each half: (halves,)."""

    sums: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of the board: a team's submission or a metadata-only baseline, with everything computed from it."""

    team: str
    slug: str
    kind: str
    """``submission`` or ``baseline``."""
    info: SubmissionInfo | None
    explanation: str
    probability: np.ndarray | None
    decision: np.ndarray
    threshold: float | None
    threshold_source: str
    masks: pd.DataFrame | None
    submission: AlignedSubmission | None
    notes: list[str]
    point: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    halves: dict[str, HalfSums] = field(default_factory=dict, repr=False)
    """For the differences between teams: of each score, the contributions of random halves of the patients."""
    ranks: DelongSums | None = field(default=None, repr=False)
    """For the differences of AUROC."""

    @property
    def contradictions(self) -> tuple[int, int] | None:
        """Number of images with the answer yes but no mask, and with the answer no but a mask."""
        if self.probability is None or self.masks is None or self.kind == "baseline":
            return None
        outlined = (self.masks.predicted_pixels > 0).to_numpy()
        return int(np.sum(self.decision & ~outlined)), int(np.sum(~self.decision & outlined))

    def confusion(self, truth: np.ndarray) -> metrics.Confusion:
        """The four counts of its yes/no answers."""
        return metrics.confusion(truth, self.decision)


def team_entry(name: str, anchor: str, submission: AlignedSubmission, truth: Truth) -> Entry:
    """A team's row before scoring: its yes/no answers at its own threshold, its masks compared with the true ones."""
    masks = None
    if submission.runs is not None and truth.runs is not None:
        masks = overlap(truth.runs, submission.runs, truth.areas)
    notes = list(submission.notes)
    threshold, source = _threshold(submission, truth)
    if submission.probability is not None and threshold is not None:
        decision = submission.probability >= threshold
    else:
        decision = mask_areas(submission.runs or []) > 0
        source = "the mask is not empty"
    if source.startswith("0.5"):
        notes.append("no threshold declared: 0.5 used")
        if submission.validation is not None and "probability" in submission.validation.columns:
            notes.append(
                "no threshold from validation.csv: not all its images are validation images, or all have one label"
            )
    warning = contamination(submission.info.pretraining, truth)
    notes += [warning] if warning else []
    if submission.info.synthetic and not truth.synthetic:
        notes.append("trained on synthetic images (phantoms)")
    explanation = "; ".join(filter(None, (submission.info.framework, pretraining_of(submission.info))))
    return Entry(
        name, anchor, "submission", submission.info, explanation, submission.probability, decision, threshold, source,
        masks, submission, notes,
    )  # fmt: skip


def _threshold(submission: AlignedSubmission, truth: Truth) -> tuple[float | None, str]:
    if submission.probability is None:
        return None, ""
    if submission.info.threshold is not None:
        return float(submission.info.threshold), "declared by the team"
    validation = submission.validation
    if validation is not None and "probability" in validation.columns:
        labels_by_id = truth.development[truth.development.subset == "validation"].set_index("image_id").pneumothorax
        labels = validation.image_id.map(labels_by_id)
        if labels.notna().all() and labels.nunique() == 2:
            probability = validation.probability.to_numpy(float)
            threshold = metrics.fit_threshold(labels.to_numpy() == 1, probability)
            return threshold, "fitted on the team's validation predictions"
    return 0.5, "0.5, none declared"


def baseline_entry(baseline: Baseline, anchor: str, truth: Truth) -> Entry:
    """A metadata-only baseline's row before scoring; it says yes above a probability of 0.5, and no at 0.5."""
    assert baseline.probability is not None
    masks = None
    if baseline.outlines_nothing and truth.runs is not None:
        masks = overlap(truth.runs, [rle.runs_of(rle.EMPTY)] * len(truth.runs))
    return Entry(
        baseline.name, anchor, "baseline", None, baseline.explanation, baseline.probability,
        baseline.probability > 0.5, 0.5, "0.5", masks, None, [],
    )  # fmt: skip


def entry_sums(entry: Entry, truth: Truth, common_sensitivity: float) -> PatientSums:
    """The sums by patient from which the entry's scores are computed."""
    return sum_by_patient(
        truth.pneumothorax, truth.patient_codes, entry.probability, entry.decision, entry.masks, common_sensitivity
    )


def with_intervals(
    entry: Entry, point: dict[str, float], replicates: ScoreArrays, jackknife: ScoreArrays, truth: Truth
) -> Entry:
    """The entry with its scores and their intervals."""
    intervals = {name: bca_interval(values, point[name], jackknife[name]) for name, values in replicates.items()}
    if entry.kind == "submission":
        for name, decision, kinds in _shares(entry):
            interval = intervals[name]
            if interval.high - interval.low < 1e-9:
                intervals[name] = _share_interval(truth, decision, kinds, point[name])
        low, high = intervals.get("auroc", (0.0, 1.0))
        if high - low < 1e-9 and point["auroc"] in (0, 1):
            low, high = _perfect_auroc(truth)
            intervals["auroc"] = Interval(low, high) if point["auroc"] == 1 else Interval(1 - high, 1 - low)
    return replace(entry, point=point, intervals=intervals)


def with_halves(
    entries: list[Entry],
    sums: list[PatientSums],
    jackknives: list[ScoreArrays],
    truth: Truth,
    halves: Iterable[np.ndarray],
) -> list[Entry]:
    """The entries with what their paired differences are computed from: halves of patients, and ranks for AUROC.

    Args:
        entries: with their scores.
        sums: of each entry, from :func:`entry_sums`.
        jackknives: of each entry, its scores with each patient left out.
        truth: the scored images.
        halves: from :func:`.statistics.random_halves`, the same for all entries.
    """
    names = [[name for name, value in entry.point.items() if np.isfinite(value)] for entry in entries]
    weights: dict[str, np.ndarray] = {}
    parts = []
    for entry, table, jackknife, own in zip(entries, sums, jackknives, names, strict=True):
        weights |= {name: patient_weights(table, name) for name in own if name not in weights}
        parts += [contributions(entry.point[name], jackknife[name], weights[name]) for name in own]
    columns = np.stack([*parts, *weights.values()], axis=1)
    summed = np.ascontiguousarray(np.concatenate([half @ columns for half in halves]).T)
    shares = dict(zip(weights, summed[len(parts) :], strict=True))
    rest = iter(summed)
    halved = []
    for entry, own in zip(entries, names, strict=True):
        ranks = (
            None
            if entry.probability is None
            else delong_sums(truth.pneumothorax, entry.probability, truth.patient_codes)
        )
        halved.append(replace(entry, halves={name: HalfSums(next(rest), shares[name]) for name in own}, ranks=ranks))
    return halved


def pretraining_of(info: SubmissionInfo) -> str:
    """What a team declares about its pre-training, for its row of the board; '' where it declares nothing."""
    if "pretraining" not in info.model_fields_set:
        return ""
    images, named = one_line(info.pretraining.images, 120), len(info.pretraining.image_ids)
    if not named:
        return f"pre-training: {images}"
    return f"pre-training: {images}, {counted(named, 'image')} named"


def contamination(pretraining: Pretraining, truth: Truth) -> str:
    """A note for the board if the declared pre-training may have used scored images; '' if not.

    Args:
        pretraining: the name of a data set, and image ids as SIIM or NIH write them (with or without file ending).
        truth: the scored images; with NIH names where a table was given.
    """
    declared = {image_id_of(name) for name in pretraining.image_ids}
    own = truth.cases.image_id.map(lambda image_id: {image_id, truth.nih_names.get(image_id, image_id)})
    used = sum(bool(names & declared) for names in own)
    if used:
        return f"contaminated: {counted(used, 'test image')} in its pre-training"
    nih_patients = {name.split("_")[0] for name in declared if _NIH_NAME.fullmatch(name)}
    patients = {truth.nih_names[i].split("_")[0] for i in truth.cases.image_id if i in truth.nih_names}
    if nih_patients & patients:
        return f"pre-trained on other images of {counted(len(nih_patients & patients), 'test patient')}"
    if not declared and _UNKNOWN.match(pretraining.images):
        return f"pre-trained on {one_line(pretraining.images, 60)}: test images may be among them"
    words = column_name(pretraining.images)
    if not pretraining.names_all_images and not truth.synthetic and any(name in words for name in NIH_IMAGES):
        name = one_line(pretraining.images, 80)
        return f"pre-trained on {name}, images not named; SIIM's images are NIH's, so test images may be among them"
    return ""


def _shares(entry: Entry) -> list[tuple[str, np.ndarray, tuple[str, ...]]]:
    """Every score that is a share of images: its name, its yes/no answers, and the counts it is a share of."""
    shares = [(name, entry.decision, kinds) for name, kinds in _SHARES.items()]
    if entry.masks is not None:
        outlined = (entry.masks.predicted_pixels > 0).to_numpy()
        shares += [(f"mask_{name}", outlined, kinds) for name, kinds in _SHARES.items()]
        shares.append(("negatives_left_empty", outlined, _SHARES["specificity"]))
        shares.append(("positives_missed", outlined, _SHARES["sensitivity"]))
    return shares


def _perfect_auroc(truth: Truth) -> Interval:
    """An interval for an AUROC of 1, where every resample is perfect too and the bootstrap has no width.

    Pair each patient with positives with another one with negatives: m pairs without a common patient, each in the
    right order with the true AUROC as its probability. All m are, so Clopper and Pearson's bound for m of m holds; it
    is rather too low than too high.
    """
    codes, positive = truth.patient_codes, truth.pneumothorax
    pairs = min(len(np.unique(codes[positive])), len(np.unique(codes[~positive])))
    pairs = min(pairs, truth.n_patients // 2)  # a patient with both kinds of image can stand in one pair only
    return exact_interval(pairs, pairs)


def _share_interval(truth: Truth, decision: np.ndarray, kinds: tuple[str, ...], share: float) -> Interval:
    """The exact interval over patients, for a share of all or none, where every resample gives the same share."""
    member = np.zeros(len(decision), bool)
    positive = truth.pneumothorax
    for kind in kinds:
        right = kind.startswith("true")
        says_yes = kind.endswith("positive")
        member |= (decision == says_yes) & (positive == (says_yes == right))
    patients = len(np.unique(truth.patient_codes[member]))
    return exact_interval(round(share * patients), patients)
