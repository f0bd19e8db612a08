"""Finds the labels of a data folder: a table of any known form, a COCO json, drawn masks, or folders by label.

In come the folder, the names of its files and what the user decided; out come the labels, or a message that says what
lies there and what was expected. What can be a label file is looked for before the radiographs are read, so that a
folder without labels is refused at once; which file it is, is decided by how many of the images it names.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_pneumo.data.labels.cases import Labels
from keras_pneumo.data.labels.devices import FILE as DEVICES
from keras_pneumo.data.labels.drawn import (
    coco_labels,
    drawn_labels,
    is_coco,
    is_segmentation,
    masks_in_folders,
    picture_labels,
    segmentation_labels,
    with_missing,
)
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.tables import (
    LabelQuestionError,
    first_lines,
    is_label_table,
    read_table_labels,
    unknown_table,
)
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import listed, one_line

LABEL_FILE_WORDS = ("rle", "train")
"""SIIM's label file has one of these words in its name: ``train-rle.csv``, ``stage_2_train.csv``, ``train-rle.csv.gz``.
Files of such names come before others."""

_MOST_NAMED = 8
"""Csv files that a message names."""


@dataclass(frozen=True)
class LabelSearch:
    """What may hold the labels of a data folder, before its radiographs are read."""

    folder: Path
    tables: tuple[Path, ...]
    """Files that may be the table, those named like SIIM's first."""
    labels: Labels | None
    """Labels that were read already: of a file that the user names, or drawn ones."""
    options: LabelOptions


def search_labels(
    folder: Path,
    paths: Sequence[Path],
    labels: Path | None = None,
    options: LabelOptions | None = None,
    skip: Collection[Path] = (),
) -> LabelSearch:
    """Look for the labels of a folder.

    Args:
        folder: the data folder.
        paths: its files that may be radiographs.
        labels: the label file, or the folder of masks, that the user names; None: it is looked for in ``folder``.
        options: what the user decided; None: the defaults.
        skip: folders in which no labels are looked for.

    Raises:
        PneumoError: ``labels`` cannot be used, or nothing in the folder may hold labels.
    """
    options = options or LabelOptions()
    if labels is not None:
        return LabelSearch(folder, (), _named(labels, folder, paths, options), options)
    tables = label_files(folder, options, skip)
    if tables:
        return LabelSearch(folder, tuple(tables), None, options)
    drawn = drawn_labels(folder, paths, options)
    if drawn is None:
        raise PneumoError(_nothing(folder, skip))
    return LabelSearch(folder, (), drawn, options)


def find_labels(search: LabelSearch, image_ids: Collection[str] = ()) -> Labels:
    """The labels of a folder whose images are known: of several tables the one that names most of ``image_ids``.

    Of tables that name equally many, one with masks comes before one without, and any before a sample.

    Raises:
        PneumoError: none names an image, or several fit equally well.
        LabelQuestionError: the table leaves open what the user has to say.
    """
    if search.labels is not None:
        return search.labels
    wanted = set(image_ids)
    folder = search.folder
    read: dict[Path, Labels] = {}
    unusable: list[str] = []
    for path in search.tables:
        try:
            read[path] = (
                coco_labels(path) if path.suffix.lower() == ".json" else read_table_labels(path, search.options)
            )
        except LabelQuestionError:
            if len(search.tables) == 1:
                raise
            unusable.append(f"{path.name} has blank labels, which --blank negative or ignore explains")
        except PneumoError as error:
            unusable.append(str(error).rstrip("."))
    named = {path: _count(labels, wanted) for path, labels in read.items()}
    usable = {path: count for path, count in named.items() if count > 0 or not wanted}
    if not usable:
        others = [f"{', '.join(path.name for path in named)} name none of its images"] if named else []
        tried = f" ({'; '.join([*others, *unusable])})" if search.tables else ""
        raise PneumoError(f"No label csv for the images in {folder} was found{tried}. Give it with --labels FILE.")

    def rank(path: Path) -> tuple[bool, bool, int, bool]:
        siim = any(word in path.name.lower() for word in LABEL_FILE_WORDS)
        has_masks = read[path].has_masks
        return has_masks and siim, has_masks, usable[path], "sample" not in path.name.lower()

    most = max(map(rank, usable))
    best = [path for path in usable if rank(path) == most]
    if len(best) > 1 and len({path.read_bytes() for path in best}) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in best)
        raise PneumoError(f"Several label files fit the images in {folder}: {names}. Choose one with --labels FILE.")
    return read[best[0]]


def label_files(folder: Path, options: LabelOptions, skip: Collection[Path] = ()) -> list[Path]:
    """Files that may be a folder's label table by their first line, or COCO's json; not those of prepared folders."""
    named_like_siim: list[Path] = []
    others: list[Path] = []
    for path in _files(folder, (".csv", ".csv.gz", ".json"), skip):
        if path.suffix == ".json":
            others += [path] if is_coco(path) else []
        elif any(word in path.name.lower() for word in LABEL_FILE_WORDS):
            named_like_siim.append(path)  # even where it cannot be read: the message says why
        elif path.name != DEVICES and is_label_table(path, options):
            others.append(path)
    return named_like_siim + others


def _named(path: Path, folder: Path, paths: Sequence[Path], options: LabelOptions) -> Labels:
    """Labels from the file or folder that the user names."""
    if path.is_dir():
        inside = sorted(item for item in path.rglob("*") if item.is_file())
        segmentations = [item for item in inside if is_segmentation(item)]
        if segmentations:
            return segmentation_labels(path, segmentations, options)
        masks = masks_in_folders(folder, paths, path)
        if masks:
            return picture_labels(folder, masks, paths, options)
        tables = [item for item in inside if item.name.lower().endswith((".csv", ".csv.gz", ".json"))]
        instead = f"one of its tables ({_shown(tables, path)})" if tables else "the right folder, or a label table,"
        raise PneumoError(
            f"{path} is a folder, and holds neither masks named as the images of {folder} nor DICOM Segmentations. "
            f"Name {instead} with --labels."
        )
    if path.suffix.lower() == ".json":
        return coco_labels(path)
    if path.is_file() and not is_label_table(path, options) and not options.image_column and not options.label_column:
        others = [item for item in _files(folder, (".csv", ".csv.gz"), ()) if item.resolve() != path.resolve()]
        try:
            return read_table_labels(path, options)  # SIIM's without a header
        except PneumoError as error:
            more = f" Other csv files there: {_shown(others, folder)}." if others else ""
            raise PneumoError(f"{error}{more}") from None
    return read_table_labels(path, options)


def _count(labels: Labels, wanted: set[str]) -> int:
    """How many of the images' names a table has; a name of several parts counts by its last one."""
    known = {*labels.images, *labels.rejected_rows, *labels.left_out}
    return len(wanted & known)


def _files(folder: Path, endings: tuple[str, ...], skip: Collection[Path]) -> list[Path]:
    """Files under a folder with one of these endings, sorted; prepared folders and ``skip`` are not entered."""
    skipped = {path.resolve() for path in skip}
    found: list[Path] = []
    for base, folders, files in os.walk(folder):
        here = Path(base)
        if "manifest.json" in files or here.resolve() in skipped:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [here / name for name in files if name.lower().endswith(endings) and not name.startswith(".")]
    return sorted(found)


def _nothing(folder: Path, skip: Collection[Path]) -> str:
    """The message for a folder in which nothing may be labels: the csv files that lie there, and how they begin."""
    tables = _files(folder, (".csv", ".csv.gz"), skip)
    start = f"No label csv for the images in {folder} was found"
    if not tables:
        return (
            f"{start}: no csv file lies there, no COCO json, no masks and no folders positive and negative. Give the "
            "labels with --labels FILE; docs/your-data.md shows each form."
        )
    if len(tables) == 1:
        return f"{start}. {unknown_table(tables[0])}"
    begin = "".join(
        f"\n  {path.relative_to(folder)}: {one_line((first_lines(path, 1) or [''])[0], 90)}"
        for path in tables[:_MOST_NAMED]
    )
    more = f"\n  and {len(tables) - _MOST_NAMED} more" if len(tables) > _MOST_NAMED else ""
    return (
        f"{start}. These csv files lie there, and none begins like a label table that is known:{begin}{more}\nExpected "
        "is a header with an image column (image, image_id, filename) and a column pneumothorax, label or "
        "EncodedPixels. Name the columns with --image-column and --label-column; docs/your-data.md shows each form."
    )


def _shown(paths: Sequence[Path], folder: Path) -> str:
    return listed((str(path.relative_to(folder)) for path in paths), _MOST_NAMED)


__all__ = ["LabelSearch", "find_labels", "label_files", "search_labels", "with_missing"]
