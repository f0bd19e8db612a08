"""A split as people hand it in, read for the audit: folds or subsets, patients and labels of every image.

In: a CSV, and where it lacks them a patient table and a label file. Out: one table. A cell that would silently drop an
image, or make strangers one patient, is refused by its row: the audit would otherwise acquit a split that leaks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data import rle
from keras_pneumo.data.manifest import MANIFEST_NAME, read_manifest
from keras_pneumo.data.patients import read_patients
from keras_pneumo.data.tables import IMAGE_COLUMNS, column_name, image_id_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.label_csv import read_kaggle, read_table
from keras_pneumo.evaluation.writing import counted

_LABELS = ("pneumothorax", "existlabels", "label", "target")
_SPLITS = ("fold", "subset")
_UNKNOWN = "no patient in the table: "
_SUBSETS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""What the subsets of a split are called."""


def read_split_table(split: Path, patients: Path | None, labels: Path | None) -> tuple[pd.DataFrame, list[str]]:
    """``image_id``, ``patient_id``, ``pneumothorax`` and ``fold`` and/or ``subset`` per row, and notes to say aloud.

    Raises:
        PneumoError: see :func:`keras_pneumo.evaluation.audit.audit_split`.
    """
    table = read_table(split)
    names = {column_name(name): name for name in table.columns if name != "row"}
    image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
    parts = [name for name in _SPLITS if name in names]
    if image is None or not parts:
        raise PneumoError(f"{split} needs an image column (image_id, ImageId, fname) and a column fold or subset.")
    found = pd.DataFrame({"image_id": table[image].map(image_id_of), "row": table.row})
    for name in parts:
        found[name] = (_folds if name == "fold" else _subsets)(table[names[name]], split, table.row)
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
        _require_patients(found, split)
    else:
        raise PneumoError(f"{split} has no patient_id. Give a patient table with --patients (for SIIM: nih_id.csv).")
    return found, notes


def _folds(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    """Folds as whole numbers, however they are written: a table that went through a spreadsheet has -1.0 for -1."""
    values = pd.to_numeric(cells, errors="coerce")
    wrong = ~(np.isfinite(values) & (values % 1 == 0))
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the fold is {cells[wrong].iloc[0][:20]!r}, not a whole number. "
            "Give -1 to an image that is in no fold."
        )
    return values.astype(int)


def _subsets(cells: pd.Series, split: Path, rows: pd.Series) -> pd.Series:
    known = {name: subset for subset, names in _SUBSETS.items() for name in names}
    values = cells.str.lower().map(known)
    wrong = values.isna()
    if wrong.any():
        raise PneumoError(
            f"{split}, row {rows[wrong].iloc[0]}: the subset is {cells[wrong].iloc[0][:20]!r}, which is none of "
            f"{', '.join(known)}. Rename it, or take these rows out."
        )
    return values


def _require_patients(found: pd.DataFrame, split: Path) -> None:
    """Refuse a split whose patients are not known: where each image is its own patient, none is ever shared."""
    blank = found.row[found.patient_id == ""]
    if len(blank):
        raise PneumoError(
            f"{split}, row {blank.iloc[0]}: the patient id is blank. Complete it, or give a patient table with "
            "--patients."
        )
    by_image = (found.patient_id == found.image_id) | (found.patient_id == "image-" + found.image_id)
    if by_image.all() or (not found.patient_id.duplicated().any() and _ungrouped(split)):
        raise PneumoError(
            f"{split} says nothing about patients: every image counts as a patient of its own, so whether a patient "
            "stands on both sides cannot be known. Give a patient table with --patients (for SIIM: nih_id.csv)."
        )


def _ungrouped(split: Path) -> bool:
    """Whether the prepared folder that a split is in was prepared without a patient table."""
    return (split.parent / MANIFEST_NAME).is_file() and read_manifest(split.parent).get("patients") != "table"


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
