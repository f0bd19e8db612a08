"""Reads the ground truth of the scored images from tables.

In: a prepared folder, its ``truth.csv``, or a label file as SIIM published it (and, beside a label file, optionally the
ids to score and a patient table). Out: a :class:`Truth`: the scored images with their masks as runs, and the rows that
a team was allowed to train on, which the metadata-only baselines need. No image file is opened, so a team with nothing
but a CSV and this package can be evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Labels, read_labels, refuse_rejected
from keras_pneumo.data.labels.patients import read_patients
from keras_pneumo.data.labels.pseudonyms import key_free_names
from keras_pneumo.data.prepared.manifest import MANIFEST_NAME, TRUTH, read_manifest
from keras_pneumo.data.prepared.split import COLUMNS as SPLIT_COLUMNS
from keras_pneumo.data.prepared.split import split_sha256
from keras_pneumo.data.radiographs.radiograph import SPACINGS_MM
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.metadata import read_metadata, read_nih_names
from keras_pneumo.storage.files import sha256_file
from keras_pneumo.storage.tables import (
    IMAGE_COLUMNS,
    column_name,
    counted,
    image_id_of,
    listed,
    named_images,
    one_line,
    read_rows,
    shown_id,
)

METADATA = ("sex", "age", "view", "pixel_spacing_mm")

POSSIBLE = {"age": (0, 120), "pixel_spacing_mm": SPACINGS_MM}
"""Years, and millimetres a pixel; values outside of these are not used, and a note names their rows."""

SINGLE_NOTE = (
    "No patient table was given: every image counts as a patient of its own, so intervals are too narrow "
    "where one patient has several images, and a leak between training and test cannot be seen."
)


@dataclass(frozen=True)
class Truth:
    """The scored images with their labels and masks, and the rows that a team may train on.

    Both tables have ``image_id``, ``patient_id``, ``subset``, ``fold``, ``pneumothorax`` (0 or 1), ``sex``, ``age``
    (float, NaN if unknown), ``view``, ``pixel_spacing_mm``; ``cases`` is in the order of every array in this package.
    """

    cases: pd.DataFrame
    development: pd.DataFrame
    subset: str
    split_sha256: str | None
    runs: list[rle.Runs] | None
    """Mask of each scored image as COCO runs, or None when the labels say only yes or no."""
    patients: str
    """Where patient ids came from: ``table``, ``dicom`` or ``none``."""
    notes: list[str] = field(default_factory=list)
    source: str = ""
    synthetic: bool = False
    """Whether the images are phantoms, as the prepared folder's manifest says."""
    nih_names: dict[str, str] = field(default_factory=dict, repr=False)
    """NIH image of each image, where a table says so."""
    metadata: pd.DataFrame | None = field(default=None, repr=False)
    """Further columns about images, for the metadata-only baselines; see :func:`metadata.read_metadata`."""

    @cached_property
    def pneumothorax(self) -> np.ndarray:
        """Whether each scored image has a pneumothorax: bool, shape (images,)."""
        return self.cases.pneumothorax.to_numpy() == 1

    @cached_property
    def areas(self) -> np.ndarray | None:
        """Mask area of each scored image in pixels of the 1024 grid: int64, shape (images,)."""
        return None if self.runs is None else np.array([rle.area(runs) for runs in self.runs], np.int64)

    @cached_property
    def patient_codes(self) -> np.ndarray:
        """The patient of each scored image as a number from 0, the same for every pseudonym key: shape (images,)."""
        patients = self.cases.patient_id
        names = key_free_names(self.cases.image_id, patients)
        keyed = names != [str(patient) for patient in patients]
        return pd.factorize(np.array(names, dtype=object) if keyed else patients, sort=True)[0]

    @property
    def subset_name(self) -> str:
        """What is scored, for a sentence: ``the test subset``, or ``the truth`` where it has no subsets."""
        return "the truth" if self.subset == "all" else f"the {self.subset} subset"

    @property
    def n_patients(self) -> int:
        """Number of patients among the scored images."""
        return int(self.cases.patient_id.nunique())

    def with_rows(self, rows: np.ndarray) -> Truth:
        """Some of the scored images, by their numbers, (n,) int; what a team may train on stays."""
        runs = None if self.runs is None else [self.runs[row] for row in rows]
        return replace(self, cases=self.cases.iloc[rows].reset_index(drop=True), runs=runs)


def read_truth(
    path: Path,
    subset: str = "test",
    ids: Path | None = None,
    patients: Path | None = None,
    metadata: Path | None = None,
) -> Truth:
    """Read the truth for one subset.

    Args:
        path: prepared folder, ``truth.csv`` (or any CSV with ``image_id`` and ``pneumothorax`` or ``encoded_pixels``),
            or a SIIM label file (``ImageId, EncodedPixels``, several rows per image, plain or gzipped).
        subset: which subset of ``truth.csv`` is scored, or ``all``. A file without a ``subset`` column is scored whole.
        ids: a file of image ids (a column ``ImageId`` or ``image_id``, or no header); only these are scored, and the
            rest of the file counts as rows that a team could train on.
        patients: patient table for a file without ``patient_id``, or a folder prepared without patients; see
            :func:`keras_pneumo.data.labels.patients.read_patients`.
            One with NIH names also leads NIH's metadata, adjudicated labels and pre-training images to the images here.
        metadata: a table about the images, for the metadata-only baselines; its age, sex and view fill those not known.

    Raises:
        PneumoError: a file cannot be read, a row is wrong (named), the table is not the one its manifest describes,
            or nothing is left to score.
    """
    path = Path(path)
    file = path / TRUTH if path.is_dir() else path
    if not file.exists():
        hint = " A prepared folder holds it; make one with `keras-pneumo prepare`." if path.is_dir() else ""
        raise PneumoError(f"There is no {file}.{hint}")
    manifest = _manifest_beside(file)
    nih_names = read_nih_names(patients) if patients is not None else {}
    extra = read_metadata(metadata, nih_names) if metadata is not None else None
    labels = read_labels(file, need_masks=False)
    table = _one_row_per_image(labels, file)
    notes: list[str] = []
    patient_source = str(manifest.get("patients", "table"))
    split_hash = _split_of(
        table, manifest, file
    )  # before patient ids are replaced below: the hash is of the original ones
    if patients is not None and _without_patients(table, patient_source):
        table["patient_id"], patient_source = _with_patients(table, patients), "table"
    elif manifest.get("patients_note"):
        notes.append(str(manifest["patients_note"]))
    notes += [str(note) for note in manifest.get("source_notes", [])]
    if "patient_id" not in table.columns:
        table["patient_id"], patient_source = table.image_id, "none"
        notes.append(SINGLE_NOTE)
    elif (table.patient_id == "").any():
        row = table.loc[table.patient_id == "", "row"].iloc[0]
        raise PneumoError(
            f"{file}, row {row}: the patient id is blank. Give every image a patient, or leave the column out."
        )
    for name in METADATA:
        if name not in table.columns:
            table[name] = ""
        if extra is not None and name in extra.columns:
            table[name] = table[name].where(table[name] != "", table.image_id.map(extra[name]).fillna(""))
    for name in POSSIBLE:
        table[name] = _possible(table, name, file, notes)
    if "fold" not in table.columns:
        table["fold"] = -1
    scored, subset = _scored(table, file, subset, ids)
    cases = table[scored].reset_index(drop=True)
    learnable = ~scored if ids is not None else table.subset.isin(["train", "validation"]) & ~scored
    return Truth(
        cases=cases,
        development=table[learnable].reset_index(drop=True),
        subset=subset,
        split_sha256=split_hash,
        synthetic=manifest.get("synthetic") is True,
        runs=_runs_of(cases, labels, file),
        patients=patient_source,
        notes=notes,
        source=file.name,
        nih_names=nih_names,
        metadata=extra,
    )


def _possible(table: pd.DataFrame, name: str, file: Path, notes: list[str]) -> pd.Series:
    """A column as numbers, without those that cannot be, which a note names."""
    low, high = POSSIBLE[name]
    values = pd.to_numeric(table[name], errors="coerce").astype(float)
    wrong = values.notna() & ~values.between(low, high)
    if wrong.any():
        rows = listed(f"row {row} ({value:g})" for row, value in zip(table.row[wrong], values[wrong], strict=True))
        notes.append(
            f"{file.name}: {counted(int(wrong.sum()), f'{name} value')} outside of {low:g} to {high:g} count as "
            f"unknown: {rows}."
        )
    return values.where(~wrong)


def _one_row_per_image(labels: Labels, file: Path) -> pd.DataFrame:
    """The table's other columns and the label of each image, in the order of the file; a wrong row refuses the file.

    Rows of images that are not scored are checked too, since an error there is an error of the file.
    """
    refuse_rejected(file, labels.rejected)
    rows = labels.rows
    if rows.empty:
        raise PneumoError(f"{file} has no rows. Give the whole table.")
    if "pneumothorax" in rows.columns and rows.image_id.duplicated().any():
        again = rows[rows.image_id.duplicated()].iloc[0]
        raise PneumoError(
            f"{file}, row {again.row}: image {shown_id(again.image_id)!r} was given before. Leave one row for each "
            "image."
        )
    table = rows.drop_duplicates("image_id").drop(columns="encoded_pixels", errors="ignore").reset_index(drop=True)
    return table.assign(pneumothorax=[int(labels.images[image_id].positive) for image_id in table.image_id])


def _runs_of(cases: pd.DataFrame, labels: Labels, file: Path) -> list[rle.Runs] | None:
    """The mask of each image; None when no positive has an outline (labels that say only yes or no)."""
    runs = [labels.images[image_id].runs for image_id in cases.image_id]
    outlined = np.array([rle.area(mask) > 0 for mask in runs])
    positive = cases.pneumothorax.to_numpy() == 1
    if "encoded_pixels" not in labels.rows or (positive.any() and not outlined.any()):
        return None
    bare = cases[positive & ~outlined]
    if len(bare):
        raise PneumoError(
            f"{file}: {counted(len(bare), 'image')} with a pneumothorax but no mask, among others that have one: "
            f"{named_images(bare.image_id)}. Dice cannot be computed on them. Give every positive its "
            "mask, or remove the column encoded_pixels."
        )
    return runs


def _scored(table: pd.DataFrame, file: Path, subset: str, ids: Path | None) -> tuple[pd.Series, str]:
    """Which rows are scored (bool Series), and the name of the subset."""
    whole = "subset" not in table.columns
    if whole:
        table["subset"] = ""
    if ids is not None:
        wanted = _read_ids(ids)
        unknown = sorted(set(wanted) - set(table.image_id))
        if unknown:
            raise PneumoError(
                f"{ids} names {counted(len(unknown), 'image')} without a label in {file}: {named_images(unknown)}. "
                "Add the labels, or leave these images out."
            )
        return table.image_id.isin(set(wanted)), subset
    if whole or subset == "all":
        return pd.Series(True, index=table.index), "all"
    scored = table.subset == subset
    if not scored.any():
        subsets = listed(one_line(name, 40) or "a blank one" for name in sorted(set(table.subset)))
        raise PneumoError(f"{file} has no image in the subset {subset!r}; it has {subsets}.")
    return scored, subset


def _read_ids(path: Path) -> list[str]:
    """Image ids of a file: of its image column, or of its first where no header names one."""
    rows = list(read_rows(path))
    names = [column_name(cell) for cell in rows[0][1]] if rows else []
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    ids: dict[str, int] = {}
    for number, cells in rows if image is None else rows[1:]:
        image_id = image_id_of(cells[image or 0]) if len(cells) > (image or 0) else ""
        if not image_id:
            raise PneumoError(f"{path}, row {number}: the image id is blank. Complete it.")
        if image_id in ids:
            raise PneumoError(
                f"{path}, row {number}: image {shown_id(image_id)!r} was given before (row {ids[image_id]}). "
                "Leave one of the two rows."
            )
        ids[image_id] = number
    if not ids:
        raise PneumoError(f"{path} has no image id. Write one image id in each line.")
    return list(ids)


def _without_patients(table: pd.DataFrame, patient_source: str) -> bool:
    """Whether patients are unknown: no column, or a folder prepared where each image was its own patient."""
    return "patient_id" not in table.columns or (patient_source != "table" and not table.patient_id.duplicated().any())


def _with_patients(table: pd.DataFrame, path: Path) -> pd.Series:
    patient_ids = table.image_id.map(read_patients(path))
    if patient_ids.isna().any():
        missing = table.image_id[patient_ids.isna()]
        raise PneumoError(
            f"{path} has no patient for {counted(len(missing), 'image')}: {named_images(missing)}. Add what is missing."
        )
    return patient_ids


def _split_of(table: pd.DataFrame, manifest: dict[str, Any], file: Path) -> str | None:
    """The split's name, from the rows themselves where they say all that it hashes; else as the manifest has it."""
    recorded = manifest.get("split_sha256")
    if not set(SPLIT_COLUMNS) <= set(table.columns) or not table.subset.isin(["train", "validation", "test"]).all():
        return recorded
    try:
        own = split_sha256(table)
    except ValueError:
        return recorded
    if recorded and recorded != own:
        raise PneumoError(f"The split in {file} is not the split that its manifest records. Prepare the folder again.")
    return own


def _manifest_beside(file: Path) -> dict[str, Any]:
    """The prepared folder's manifest, its hash of this very table checked; empty when there is none.

    An edited truth would otherwise score every team against labels that nobody else has.
    """
    if file.name != TRUTH or not file.with_name(MANIFEST_NAME).exists():
        return {}
    manifest = read_manifest(file.parent)
    tables = manifest.get("tables")
    recorded = tables.get(TRUTH) if isinstance(tables, dict) else None
    if recorded and recorded != sha256_file(file):
        raise PneumoError(
            f"{file} is not the table that {MANIFEST_NAME} describes: it was edited after it was prepared, or "
            "belongs to another folder. Prepare the folder again."
        )
    return manifest
