"""What a split leaks: how many validation images share a patient with training, and what that alone is worth.

In: folds or a split as a table, a patient table, and labels (in the same table or a label file). Out: a row per fold.
It exists because a split made image by image lets a model that knows only the patient score AUROC 0.81 to 0.84 on
SIIM's images, and nothing in such a result says that it did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.metrics import auroc
from keras_pneumo.evaluation.split_table import read_split_table


@dataclass(frozen=True)
class FoldAudit:
    """One validation fold, or the subsets of a split, held against the images it is trained on."""

    name: str
    images: int
    positives: int
    images_shared: int
    """Validation images whose patient is in training too."""
    positives_shared: int
    patients_shared: int
    patient_auroc: float
    """AUROC of the patient's share of positives in training, the overall share for an unknown patient."""
    patient_accuracy: float
    """Accuracy of the same, yes above one half."""
    majority_accuracy: float


@dataclass(frozen=True)
class SplitAudit:
    """The audit of a whole split; ``notes`` say what was set aside or could not be known."""

    folds: list[FoldAudit]
    notes: list[str]
    images: int
    """Different images that are held out anywhere; where folds and subsets overlap, each counts once."""
    images_shared: int
    """Those among them whose patient is in training too."""

    @property
    def leaks(self) -> bool:
        """Whether any validation image shares its patient with training."""
        return self.images_shared > 0

    @property
    def sentence(self) -> str:
        """The finding in a sentence."""
        images, shared = self.images, self.images_shared
        if not shared:
            return (
                f"No patient stands on both sides: none of {images:,} held-out images shares a patient with training."
            )
        areas = [fold.patient_auroc for fold in self.folds if np.isfinite(fold.patient_auroc)]
        worth = (
            f"AUROC {min(areas):.3f} to {max(areas):.3f}" if areas else "an unknown amount, for want of both classes"
        )
        return (
            f"{shared:,} of {images:,} held-out images ({shared / images:.0%}) share a patient with training; "
            f"knowing the patient alone is worth {worth}. Split by patient."
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row per fold."""
        return pd.DataFrame([vars(fold) for fold in self.folds])


def audit_split(split: Path, patients: Path | None = None, labels: Path | None = None) -> SplitAudit:
    """Audit folds or a split.

    Args:
        split: a CSV with an image column (``image_id``, ``ImageId``, ``fname``, ...) and ``fold`` or ``subset``; it may
            bring its own labels (``pneumothorax``, ``exist_labels``, ``label``, ``target``; 0 or 1) and ``patient_id``.
            Each fold is validation once, held against all other folds (fold -1 left out); then, where there are
            subsets, ``validation`` (also ``valid``, ``val``, ``dev``) and ``test`` are each held against the rest.
        patients: patient table; see :func:`keras_pneumo.data.patients.read_patients`.
        labels: SIIM label file, when the split has no labels.

    Raises:
        PneumoError: a column is missing, an image comes twice or has no label, a fold, subset or patient cannot be
            read, or no patients are known at all: then nothing can be said.
    """
    table, notes = read_split_table(Path(split), patients, labels)
    pairs = _pairs(table)
    if not pairs:
        raise PneumoError(f"{split} has neither two folds nor a train subset beside validation or test.")
    audits = [_audit(name, training, held_out) for name, training, held_out in pairs]
    shared = [held_out.image_id[_shared(training, held_out)] for _, training, held_out in pairs]
    held = pd.concat([held_out.image_id for _, _, held_out in pairs])
    return SplitAudit(audits, notes, int(held.nunique()), int(pd.concat(shared).nunique()))


def _pairs(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Each fold and subset that is held out: its name, what is trained on beside it, and itself."""
    pairs = []
    if "fold" in table.columns:
        usable = table[table.fold >= 0]
        folds = sorted(set(usable.fold))
        if len(folds) > 1:
            pairs += [
                (f"fold {number}", usable[usable.fold != number], usable[usable.fold == number]) for number in folds
            ]
    if "subset" in table.columns:
        for name, trained in (("validation", ["train"]), ("test", ["train", "validation"])):
            held_out, training = table[table.subset == name], table[table.subset.isin(trained)]
            if len(held_out) and len(training):
                pairs.append((name, training, held_out))
    return pairs


def _shared(training: pd.DataFrame, held_out: pd.DataFrame) -> np.ndarray:
    return held_out.patient_id.isin(set(training.patient_id)).to_numpy()


def _audit(name: str, training: pd.DataFrame, held_out: pd.DataFrame) -> FoldAudit:
    truth = held_out.pneumothorax.to_numpy() == 1
    shared = _shared(training, held_out)
    overall = float(training.pneumothorax.mean())
    by_patient = training.groupby("patient_id").pneumothorax.mean()
    probability = held_out.patient_id.map(by_patient).fillna(overall).to_numpy(float)
    return FoldAudit(
        name=name,
        images=len(held_out),
        positives=int(truth.sum()),
        images_shared=int(shared.sum()),
        positives_shared=int((shared & truth).sum()),
        patients_shared=int(held_out.patient_id[shared].nunique()),
        patient_auroc=auroc(truth, probability),
        patient_accuracy=float(np.mean((probability > 0.5) == truth)),
        majority_accuracy=float(np.mean(truth == (overall > 0.5))),
    )
