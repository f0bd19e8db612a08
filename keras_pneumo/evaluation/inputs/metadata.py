"""Reads tables about images: their NIH names, and columns of metadata.

In: ``nih_id.csv`` (SIIM image -> NIH image) and a table such as NIH's ``Data_Entry_2017``. Out: for each image its NIH
name, and the columns that a metadata-only baseline may use. SIIM's images are NIH images under other names, so NIH's
records of a patient, and a pre-training on NIH's images, matter for the score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_COLUMNS, column_name, image_id_of, listed, one_line, read_table, shown_id

MOST_CATEGORIES = 20
"""A text column with more different values than this is not used: it is free text, a list of findings, or an id."""

_IMAGE = (*IMAGE_COLUMNS, "imageindex")
_RENAMED = {"patientage": "age", "patientgender": "sex", "patientsex": "sex", "viewposition": "view"}


def read_nih_names(path: Path) -> dict[str, str]:
    """Image id -> NIH image name, both without ending, from a table with an image column and ``NIH_ID``.

    A patient table without an ``NIH_ID`` column gives an empty dict.
    """
    table = read_table(path)
    names = {column_name(name): name for name in table.columns if name != "row"}
    image = _image_column(names, path)
    if "nihid" not in names:
        return {}
    pairs = zip(table[image].map(image_id_of), table[names["nihid"]].map(image_id_of), strict=True)
    return {image_id: nih for image_id, nih in pairs if nih}


def read_metadata(path: Path, nih_names: dict[str, str] | None = None) -> pd.DataFrame:
    """Reads a table about images into text cells, indexed by image id; rows of NIH images get the SIIM image's id.

    Args:
        path: a CSV with an image column (``image_id``, ``ImageId``, ``Image Index``, ...).
        nih_names: from :func:`read_nih_names`; with it, rows are looked up by NIH name where they have one.

    Returns:
        Text columns, NIH's ``Patient Age``, ``Patient Gender`` and ``View Position`` named ``age``, ``sex``, ``view``.

    Raises:
        PneumoError: there is no image column, an image has two rows, or two columns would have one name.
    """
    table = read_table(path)
    image = _image_column({column_name(name): name for name in table.columns if name != "row"}, path)
    index = table[image].map(image_id_of)
    if index.duplicated().any():
        first = table[index.duplicated()].iloc[0]
        raise PneumoError(
            f"{path}, row {first.row}: image {shown_id(first[image])!r} was given before. Leave one row for each image."
        )
    table = table.drop(columns=[image, "row"]).set_axis(index, axis=0)
    # NIH's header has "OriginalImage[Width,Height]", which a comma-separated table reads as two names.
    names = {name: _RENAMED.get(column_name(name), name.replace("[", " ").strip("] ")) for name in table.columns}
    table = table[[name for name in table.columns if names[name]]].rename(columns=names)
    if not table.columns.is_unique:
        second = table.columns[table.columns.duplicated()][0]
        both = " and ".join(repr(one_line(name, 40)) for name in names if names[name] == second)
        raise PneumoError(f"{path}: the columns {both} mean the same. Take one of them out.")
    if nih_names:
        present = {image_id: nih for image_id, nih in nih_names.items() if nih in table.index}
        if present:
            table = table.loc[list(present.values())].set_axis(list(present), axis=0)
    table.index.name = "image_id"
    return table


def features(table: pd.DataFrame, image_ids: pd.Series) -> dict[str, np.ndarray]:
    """Convert the usable columns of a metadata table into numbers.

    Args:
        table: from :func:`read_metadata`.
        image_ids: which images, in which order; one without a row has missing values.

    Returns:
        Column name -> float array of shape (images, k). A numeric column gives its value (the median where missing) and
        whether it is missing; a text column gives one 0/1 column per value. Columns that never change, ids, and texts
        with more than :data:`MOST_CATEGORIES` values are left out.
    """
    usable: dict[str, np.ndarray] = {}
    for name in table.columns:
        words = column_name(name)
        if words.endswith("id") or "index" in words:
            continue
        whole = table[name]
        numbers = pd.to_numeric(whole, errors="coerce")
        cells = image_ids.map(whole).fillna("")
        if numbers.notna().sum() > 0.5 * (whole != "").sum() > 0:
            values = image_ids.map(numbers).to_numpy(float)
            columns = [np.where(np.isnan(values), numbers.median(), values), np.isnan(values)]
        else:
            kinds = sorted(set(whole) - {""})
            if not 1 <= len(kinds) <= MOST_CATEGORIES:
                continue
            columns = [(cells == kind).to_numpy() for kind in kinds]
        values = np.stack(columns, axis=1).astype(float)
        if whole.nunique() > 1:
            usable[name] = values
    return usable


def _image_column(names: dict[str, str], path: Path) -> str:
    column = next((names[name] for name in _IMAGE if name in names), None)
    if column is None:
        has = listed(repr(one_line(name, 40)) for name in names.values())
        raise PneumoError(
            f"{path} has no image column (image_id, ImageId, Kaggle_ID, Image Index); it has {has}. "
            "Rename one of its columns."
        )
    return column
