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

from keras_pneumo.data import rle
from keras_pneumo.data.patients import read_patients
from keras_pneumo.data.tables import IMAGE_COLUMNS, column_name, image_id_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.label_csv import read_kaggle, read_table
from keras_pneumo.evaluation.metrics import auroc
from keras_pneumo.evaluation.writing import counted

_LABELS = ("pneumothorax", "existlabels", "label", "target")
_SPLITS = ("fold", "subset")
_UNKNOWN = "no patient in the table: "


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

    @property
    def leaks(self) -> bool:
        """Whether any validation image shares its patient with training."""
        return any(fold.images_shared for fold in self.folds)

    @property
    def sentence(self) -> str:
        """The finding in a sentence."""
        images = sum(fold.images for fold in self.folds)
        shared = sum(fold.images_shared for fold in self.folds)
        if not shared:
            return (
                f"No patient stands on both sides: none of {images:,} validation images shares a patient with training."
            )
        areas = [fold.patient_auroc for fold in self.folds if np.isfinite(fold.patient_auroc)]
        worth = (
            f"AUROC {min(areas):.3f} to {max(areas):.3f}" if areas else "an unknown amount, for want of both classes"
        )
        return (
            f"{shared:,} of {images:,} validation images ({shared / images:.0%}) share a patient with training; "
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
            subsets, ``validation`` and ``test`` are each held against the rest.
        patients: patient table; see :func:`keras_pneumo.data.patients.read_patients`.
        labels: SIIM label file, when the split has no labels.

    Raises:
        PneumoError: a column is missing, an image comes twice or has no label, or no patients are known at all.
    """
    table, notes = _assembled(Path(split), patients, labels)
    audits = []
    if "fold" in table.columns:
        usable = table[table.fold != "-1"]
        folds = sorted(set(usable.fold), key=lambda name: (len(name), name))
        if len(folds) > 1:
            audits += [
                _audit(f"fold {name}", usable[usable.fold != name], usable[usable.fold == name]) for name in folds
            ]
    if "subset" in table.columns:
        for name, trained in (("validation", ["train"]), ("test", ["train", "validation"])):
            held_out, training = table[table.subset == name], table[table.subset.isin(trained)]
            if len(held_out) and len(training):
                audits.append(_audit(name, training, held_out))
    if not audits:
        raise PneumoError(f"{split} has neither two folds nor a train subset beside validation or test.")
    return SplitAudit(audits, notes)


def _audit(name: str, training: pd.DataFrame, held_out: pd.DataFrame) -> FoldAudit:
    truth = held_out.pneumothorax.to_numpy() == 1
    shared = held_out.patient_id.isin(set(training.patient_id)).to_numpy()
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


def _assembled(split: Path, patients: Path | None, labels: Path | None) -> tuple[pd.DataFrame, list[str]]:
    """``image_id``, ``patient_id``, ``pneumothorax`` and ``fold`` and/or ``subset`` of every row."""
    table = read_table(split)
    names = {column_name(name): name for name in table.columns if name != "row"}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    parts = [name for name in _SPLITS if name in names]
    if image is None or not parts:
        raise PneumoError(f"{split} needs an image column (image_id, ImageId, fname) and a column fold or subset.")
    found = pd.DataFrame({"image_id": table[image].map(image_id_of), "row": table.row})
    for name in parts:
        found[name] = table[names[name]]
    if found.image_id.duplicated().any():
        first = found[found.image_id.duplicated()].iloc[0]
        raise PneumoError(f"{split}, row {first.row}: image {first.image_id!r} was given before.")
    label = next((names[name] for name in _LABELS if name in names), None)
    found["pneumothorax"] = (
        _given_labels(table[label], split, table.row) if label else _file_labels(found, split, labels)
    )
    notes: list[str] = []
    if patients is not None:
        found["patient_id"] = found.image_id.map(read_patients(patients))
        unknown = found.patient_id.isna()
        if unknown.all():
            raise PneumoError(f"{patients} names none of the images of {split}. Check that they belong together.")
        if unknown.any():
            notes.append(
                f"{counted(int(unknown.sum()), 'image')} without a patient, each taken as a patient of its own."
            )
            found["patient_id"] = found.patient_id.where(~unknown, _UNKNOWN + found.image_id)
    elif "patientid" in names:
        found["patient_id"] = table[names["patientid"]]
    else:
        raise PneumoError(f"{split} has no patient_id. Give a patient table with --patients (for SIIM: nih_id.csv).")
    return found, notes


def _given_labels(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    values = pd.to_numeric(cells, errors="coerce")
    wrong = ~values.isin([0, 1])
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the label is {cells[wrong].iloc[0][:20]!r}, not 0 or 1."
        )
    return values.astype(int)


def _file_labels(found: pd.DataFrame, split: Path, labels: Path | None) -> pd.Series:
    if labels is None:
        raise PneumoError(
            f"{split} has no label column (pneumothorax, exist_labels). Give the label file with --labels."
        )
    rows = read_kaggle(labels)
    known = rows.assign(y=(~rows.encoded_pixels.map(rle.is_empty)).astype(int)).groupby("image_id").y.max()
    values = found.image_id.map(known)
    if values.isna().any():
        first = found[values.isna()].iloc[0]
        raise PneumoError(
            f"{labels} has no label for {counted(int(values.isna().sum()), 'image')} of {split}, "
            f"first {first.image_id!r}."
        )
    return values.astype(int)
