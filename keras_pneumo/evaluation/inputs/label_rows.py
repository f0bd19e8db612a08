"""Labels as a table has them, made one row per image with its mask as runs.

In: ``truth.csv``, any table of ids and labels, or a SIIM label file. Out: a row per image with its label and the masks
of all its rows. Every row is looked at, also of images that are not scored, since a fault there is a fault of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.label_csv import read_kaggle, read_table
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.masks import runs_of_counts, united
from keras_pneumo.storage.tables import listed


def label_rows(file: Path) -> pd.DataFrame:
    """``image_id``, ``encoded_pixels`` (may be absent), ``row`` and whatever else the file has, as text."""
    first = read_table(file, header=None)
    if "image_id" in first.columns and ("pneumothorax" in first.columns or "encoded_pixels" in first.columns):
        return first
    if "image_id" in first.columns and "fname" not in first.columns and len(first.columns) != 3:
        raise PneumoError(f"{file} has an image_id column but neither pneumothorax nor encoded_pixels.")
    return read_kaggle(file)


def one_row_per_image(rows: pd.DataFrame, file: Path) -> pd.DataFrame:
    """One row per image, ``parts`` being the masks of its rows as runs (or None), ``pneumothorax`` 0 or 1."""
    if rows.empty:
        raise PneumoError(f"{file} has no rows.")
    blank = rows.loc[rows.image_id == "", "row"]
    if len(blank):
        raise PneumoError(f"{file}, row {blank.iloc[0]}: the image id is blank.")
    has_label = "pneumothorax" in rows.columns
    if has_label and rows.image_id.duplicated().any():
        again = rows[rows.image_id.duplicated()].iloc[0]
        raise PneumoError(f"{file}, row {again.row}: image {again.image_id!r} was given before. One row per image.")
    if has_label:
        wrong = rows[~rows.pneumothorax.isin(["0", "1"])]
        if len(wrong):
            first = wrong.iloc[0]
            raise PneumoError(
                f"{file}, row {first.row}: pneumothorax is {first.pneumothorax[:20]!r}; it must be 0 or 1."
            )
    if "encoded_pixels" not in rows.columns:
        table = rows.assign(parts=None)
        return table.assign(pneumothorax=table.pneumothorax.astype(int))
    _require_one_answer(rows, file)
    parts: dict[str, list[rle.Runs]] = {}
    cells = zip(rows.image_id.tolist(), rows.encoded_pixels.tolist(), rows.row.tolist(), strict=True)
    for image_id, text, row in cells:
        kept = parts.setdefault(image_id, [])
        if rle.is_empty(text):
            continue
        try:
            kept.append(runs_of_counts(rle.counts_of(text)))
        except rle.RleError as error:
            raise PneumoError(f"{file}, row {row} ({image_id}): {error}.") from None
    table = rows.drop_duplicates("image_id").drop(columns="encoded_pixels").reset_index(drop=True)
    table["parts"] = table.image_id.map(parts)
    outlined = table.parts.map(bool)
    if has_label:
        table["pneumothorax"] = table.pneumothorax.astype(int)
        false = table[outlined & (table.pneumothorax == 0)]
        if len(false):
            raise PneumoError(f"{file}, row {false.row.iloc[0]}: the image has a mask but its pneumothorax is 0.")
    else:
        table["pneumothorax"] = outlined.astype(int)
    return table


def _require_one_answer(rows: pd.DataFrame, file: Path) -> None:
    """Refuse an image that one row calls empty and another draws a mask for; preparing sets it aside too."""
    empty = rows.encoded_pixels.map(rle.is_empty)
    both = rows.image_id.isin(set(rows.image_id[empty])) & rows.image_id.isin(set(rows.image_id[~empty]))
    if both.any():
        first = rows.image_id[both].iloc[0]
        numbers = listed(rows.row[rows.image_id == first])
        raise PneumoError(
            f"{file}, rows {numbers}: one row says that image {first!r} has no pneumothorax, another draws one. "
            "Take one of them out."
        )


def united_runs(cases: pd.DataFrame, parts: list[Any], file: Path) -> list[rle.Runs] | None:
    """The united mask of each image; None when no positive has an outline (labels that say only yes or no)."""
    outlined = np.array([bool(rows) for rows in parts])
    positive = cases.pneumothorax.to_numpy() == 1
    if any(rows is None for rows in parts) or (positive.any() and not outlined.any()):
        return None
    bare = cases[positive & ~outlined]
    if len(bare):
        raise PneumoError(
            f"{file}: {len(bare):,} images have a pneumothorax but no mask, among others that have one: "
            f"{listed(map(repr, bare.image_id))}. Dice cannot be computed on them; leave encoded_pixels out "
            "altogether, or give every positive its mask."
        )
    return [united(rows) for rows in parts]
