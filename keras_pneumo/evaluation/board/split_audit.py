"""Audits a split: how many held-out images share a patient with training, and the patient-only baseline's score.

In: folds or a split as a CSV, and where it lacks them a patient table and a label file. Out: a :class:`SplitAudit` with
a row per fold. It exists because in a split made image by image a patient-only baseline scores AUROC 0.81 to 0.84 on
SIIM's images, and nothing in a model's result shows such a leak. A cell that would drop an image without a message, or
join different patients into one, is refused, and the message names its row: otherwise the audit could miss a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels.cases import read_labels, refuse_rejected
from keras_pneumo.data.labels.patients import read_patients
from keras_pneumo.data.prepared.manifest import MANIFEST_NAME, read_manifest
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.metrics import auroc
from keras_pneumo.storage.tables import IMAGE_COLUMNS, column_name, counted, image_id_of, read_table, shown_id

_LABELS = ("pneumothorax", "existlabels", "label", "target")
_SPLITS = ("fold", "subset")
_UNKNOWN = "no patient in the table: "
_SUBSETS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""The names that each subset of a split may have."""


@dataclass(frozen=True)
class FoldAudit:
    """One held-out fold or subset compared with the images that a model is then trained on."""

    name: str
    images: int
    positives: int
    images_shared: int
    """Held-out images whose patient is in training too."""
    positives_shared: int
    patients_shared: int
    patient_auroc: float
    """AUROC of the patient's share of positives in training; an unknown patient gets the overall share."""
    patient_accuracy: float
    """Accuracy of the same; yes above one half."""
    majority_accuracy: float


@dataclass(frozen=True)
class SplitAudit:
    """The audit of a whole split; ``notes`` list what is missing."""

    folds: list[FoldAudit]
    notes: list[str]
    images: int
    """Number of held-out images; one that is in a fold and in a subset counts once."""
    images_shared: int
    """How many of them have a patient who is in training too."""

    @property
    def leaks(self) -> bool:
        """Whether any held-out image shares its patient with training."""
        return self.images_shared > 0

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        images, shared = self.images, self.images_shared
        if not shared:
            held_out = counted(images, "held-out image")
            return f"No patient is on both sides: none of {held_out} shares a patient with training."
        areas = [fold.patient_auroc for fold in self.folds if np.isfinite(fold.patient_auroc)]
        worth = (
            f"AUROC {min(areas):.3f} to {max(areas):.3f}"
            if areas
            else "an unknown amount, since the held-out images are of one class"
        )
        return (
            f"{shared:,} of {counted(images, 'held-out image')} ({shared / images:.0%}) "
            f"{'shares' if shared == 1 else 'share'} a patient with training; "
            f"a patient-only baseline reaches {worth}. Split by patient."
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row per fold."""
        return pd.DataFrame([vars(fold) for fold in self.folds])


def audit_split(split: Path, patients: Path | None = None, labels: Path | None = None) -> SplitAudit:
    """Audit folds or a split.

    Args:
        split: a prepared folder, or a CSV with an image column (``image_id``, ``ImageId``, ``fname``, ...) and ``fold``
            or ``subset``; it may bring its own labels (``pneumothorax``, ``exist_labels``,
            ``label``, ``target``; 0 or 1) and ``patient_id``.
            Each fold is held out once and compared with all other folds (fold -1 is left out); then, where there are
            subsets, ``validation`` (also ``valid``, ``val``, ``dev``) and ``test`` are each compared with the rest.
        patients: patient table; see :func:`keras_pneumo.data.labels.patients.read_patients`.
        labels: SIIM label file, when the split has no labels.

    Raises:
        PneumoError: a column is missing, an image comes twice or has no label, a fold, subset or patient cannot be
            read, or no patients are known at all.
    """
    split = Path(split) / "split.csv" if Path(split).is_dir() else Path(split)
    table, notes = read_split_table(split, patients, labels)
    pairs = _pairs(table)
    if not pairs:
        raise PneumoError(
            f"{split} has neither two folds nor a train subset beside validation or test. "
            "Give a column fold, or a column subset."
        )
    audits = [_audit(name, training, held_out) for name, training, held_out in pairs]
    shared = [held_out.image_id[_shared(training, held_out)] for _, training, held_out in pairs]
    held = pd.concat([held_out.image_id for _, _, held_out in pairs])
    return SplitAudit(audits, notes, int(held.nunique()), int(pd.concat(shared).nunique()))


def read_split_table(split: Path, patients: Path | None, labels: Path | None) -> tuple[pd.DataFrame, list[str]]:
    """Reads ``image_id``, ``patient_id``, ``pneumothorax`` and ``fold`` and/or ``subset`` per row; and notes.

    Raises:
        PneumoError: see :func:`audit_split`.
    """
    table = read_table(split)
    names = {column_name(name): name for name in table.columns if name != "row"}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    parts = [name for name in _SPLITS if name in names]
    if image is None or not parts:
        raise PneumoError(f"{split} needs an image column (image_id, ImageId, fname) and a column fold or subset.")
    rows = pd.DataFrame({"image_id": table[image].map(image_id_of), "row": table.row})
    for name in parts:
        rows[name] = (_folds if name == "fold" else _subsets)(table[names[name]], split, table.row)
    if rows.image_id.duplicated().any():
        first = rows[rows.image_id.duplicated()].iloc[0]
        raise PneumoError(
            f"{split}, row {first.row}: image {shown_id(first.image_id)!r} was given before. "
            "Leave one row for each image."
        )
    label = next((names[name] for name in _LABELS if name in names), None)
    rows["pneumothorax"] = _given_labels(table[label], split, table.row) if label else _file_labels(rows, split, labels)
    notes: list[str] = []
    if patients is not None:
        rows["patient_id"] = rows.image_id.map(read_patients(patients))
        unknown = rows.patient_id.isna()
        if unknown.all():
            raise PneumoError(
                f"{patients} has none of the images of {split}. Check that the two files belong together."
            )
        if unknown.any():
            notes.append(
                f"{counted(int(unknown.sum()), 'image')} without a patient, each taken as a patient of its own."
            )
            rows["patient_id"] = rows.patient_id.where(~unknown, _UNKNOWN + rows.image_id)
    elif "patientid" in names:
        rows["patient_id"] = table[names["patientid"]]
        _require_patients(rows, split)
    else:
        raise PneumoError(f"{split} has no patient_id. Give a patient table with --patients (for SIIM: nih_id.csv).")
    return rows, notes


def _folds(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    """Folds as whole numbers; a table that was saved by a spreadsheet may have -1.0 for -1."""
    values = pd.to_numeric(cells, errors="coerce")
    wrong = ~(np.isfinite(values) & (values % 1 == 0))
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the fold is {cells[wrong].iloc[0][:20]!r}, not a whole number. "
            "Give -1 to an image that is in no fold."
        )
    return values.astype(int)


def _subsets(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    names = {name: subset for subset, spellings in _SUBSETS.items() for name in spellings}
    values = cells.str.lower().map(names)
    wrong = values.isna()
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the subset is {cells[wrong].iloc[0][:20]!r}, which is none of "
            f"{', '.join(names)}. Rename it, or remove these rows."
        )
    return values


def _require_patients(rows: pd.DataFrame, split: Path) -> None:
    """Refuse a split whose patients are not known: if each image is its own patient, no patient is ever shared."""
    blank = rows.row[rows.patient_id == ""]
    if len(blank):
        raise PneumoError(
            f"{split}, row {blank.iloc[0]}: the patient id is blank. Complete it, or give a patient table with "
            "--patients."
        )
    by_image = (rows.patient_id == rows.image_id) | (rows.patient_id == "image-" + rows.image_id)
    if by_image.all() or (not rows.patient_id.duplicated().any() and _ungrouped(split)):
        raise PneumoError(
            f"{split} has no real patients: every image counts as a patient of its own, so shared patients "
            "cannot be known. Give a patient table with --patients (for SIIM: nih_id.csv)."
        )


def _ungrouped(split: Path) -> bool:
    """Whether the split is in a folder that was prepared without a patient table."""
    return (split.parent / MANIFEST_NAME).is_file() and read_manifest(split.parent).get("patients") != "table"


def _given_labels(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    values = pd.to_numeric(cells, errors="coerce")
    wrong = ~values.isin([0, 1])
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the label is {cells[wrong].iloc[0][:20]!r}, not 0 or 1. Mend the row."
        )
    return values.astype(int)


def _file_labels(rows: pd.DataFrame, split: Path, labels: Path | None) -> pd.Series:
    if labels is None:
        raise PneumoError(
            f"{split} has no label column (pneumothorax, exist_labels). Give the label file with --labels."
        )
    label_table = read_labels(labels, need_masks=False)
    refuse_rejected(labels, label_table.rejected)
    values = rows.image_id.map({image_id: int(label.positive) for image_id, label in label_table.images.items()})
    if values.isna().any():
        first = rows[values.isna()].iloc[0]
        raise PneumoError(
            f"{labels} has no label for {counted(int(values.isna().sum()), 'image')} of {split}, "
            f"first {shown_id(first.image_id)!r}. "
            "Add what is missing."
        )
    return values.astype(int)


def _pairs(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Each held-out fold or subset: its name, the rows trained on, and its own rows."""
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
