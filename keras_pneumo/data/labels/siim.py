"""The SIIM-ACR folder: finding its images and label file, and reading labels and patients.

In come a folder of DICOM, PNG or JPEG files at any depth, a label csv and perhaps a patient table; out come image
paths, one united mask per image, a patient per image, and every row that cannot be used with its number and the reason.

The competition's label file (12,047 images, 22.2% positive) has a row per mask, so that an image may have up to ten
rows, 183 times overlapping: they are united. Older copies have no header, a byte-order mark, a space before
``EncodedPixels`` or before ``-1``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.patients import find_patient_table, read_patients
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_COLUMNS, IMAGE_SUFFIXES, column_name, image_id_of, read_rows, shown

__all__ = [
    "Label",
    "Labels",
    "Rejected",
    "find_images",
    "find_label_csv",
    "find_patient_table",
    "read_labels",
    "read_patients",
]

_PIXEL_COLUMNS = ("encodedpixels",)


@dataclass(frozen=True)
class Rejected:
    """One thing set aside: a file or a row of a file, and why."""

    file: str
    row: int | None
    reason: str


@dataclass(frozen=True)
class Label:
    """What the label file says of one image."""

    runs: rle.Runs
    """All rows united, as compressed COCO runs on the 1024x1024 grid."""
    rows: tuple[int, ...]
    """Line numbers in the label file."""

    @property
    def positive(self) -> bool:
        """Whether there is a pneumothorax."""
        return rle.area(self.runs) > 0


@dataclass(frozen=True)
class Labels:
    """A label file, read."""

    path: Path
    images: dict[str, Label]
    """Image id -> label, only images whose rows are all good."""
    spoilt: dict[str, tuple[int, ...]]
    """Image id -> numbers of its rejected rows: such an image's mask is not known, so it has no label."""
    rejected: list[Rejected] = field(default_factory=list)


def find_images(folder: Path, skip: Collection[Path] = ()) -> tuple[list[Path], list[str]]:
    """Every file under ``folder`` that may be a radiograph, sorted by its path, and notes on folders passed over.

    Files count by their ending, or as DICOM by their first bytes when they have none. Hidden files and folders,
    prepared folders and the folders in ``skip`` are not entered; nor are folders named after masks, because
    drawn masks often carry the very names of their images and would be taken for them.

    Raises:
        PneumoError: ``folder`` is not a folder that can be read.
    """
    if not folder.is_dir():
        raise PneumoError(f"{folder} is not a folder. Give the folder that holds the radiographs and the label csv.")
    skipped = {path.resolve() for path in skip}
    found: list[Path] = []
    notes: list[str] = []
    visited: set[Path] = set()
    for base, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        here = Path(base)
        real = here.resolve()
        if real in visited or real in skipped or ("manifest.json" in files and "cases.csv" in files):
            folders.clear()
            continue
        visited.add(real)
        masks = sorted(name for name in folders if "mask" in name.lower())
        notes += [
            f"The folder {shown(str((here / name).relative_to(folder)))} was not searched: masks come from the csv."
            for name in masks
        ]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in masks)
        found += [here / name for name in files if not name.startswith(".") and _may_be_image(here / name)]
    return sorted(found), notes


def find_files(paths: Sequence[Path], out: Path | None = None) -> list[tuple[Path, str]]:
    """Every radiograph named or in a named folder, with the name it goes by in the tables.

    Args:
        paths: files and folders.
        out: where pictures will be written: not searched, since those of an earlier call are no radiographs.

    Raises:
        PneumoError: a path does not exist, or is ``out`` itself, or there is no radiograph at all.
    """
    found: list[tuple[Path, str]] = []
    skip = [] if out is None else [out]
    for path in paths:
        if path.is_dir():
            if out is not None and path.resolve() == out.resolve():
                raise PneumoError(
                    f"{path} holds the radiographs, and pictures written there would be taken for some. Name another "
                    "--out; a folder within it will do."
                )
            found += [(one, shown(one.relative_to(path).as_posix())) for one in find_images(path, skip)[0]]
        elif path.is_file():
            found.append((path, shown(path.name)))
        else:
            raise PneumoError(f"There is no {path}. Name DICOM, PNG or JPEG files, or a folder that holds them.")
    if not found:
        raise PneumoError(f"{', '.join(map(str, paths))}: there is no DICOM, PNG or JPEG file. Name another folder.")
    return found


def _raise_unreadable(error: OSError) -> None:
    raise PneumoError(
        f"The folder {error.filename} cannot be read: {error.strerror}. Give yourself the right to read it."
    )


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # a UID without ending seems to end in .123456
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_label_csv(folder: Path, image_ids: Collection[str] = (), skip: Collection[Path] = ()) -> Path:
    """The label file in ``folder``: the csv named like ``*rle*`` or ``*train*`` that labels most of ``image_ids``.

    Raises:
        PneumoError: there is none, or several label equally many of the images.
    """
    skipped = {path.resolve() for path in skip}
    known = set(image_ids)
    candidates = sorted(
        path
        for path in (*folder.rglob("*.csv"), *folder.rglob("*.csv.gz"))
        if ("rle" in path.name.lower() or "train" in path.name.lower())
        and not any(parent.resolve() in skipped for parent in path.parents)
        and not (path.parent / "manifest.json").exists()
    )
    scores: dict[Path, int] = {}
    faults: list[str] = []
    for path in candidates:
        try:
            scores[path] = _labelled(path, known)
        except PneumoError as error:
            faults.append(str(error).rstrip("."))
    usable = {path: score for path, score in scores.items() if score > 0 or (not known and score == 0)}
    if not usable:
        others = [f"{', '.join(path.name for path in scores)} name none of its images"] if scores else []
        seen = f" ({'; '.join([*others, *faults])})" if candidates else ""
        raise PneumoError(f"No label csv for the images in {folder} was found{seen}. Give it with --labels FILE.")
    most = max(usable.values())
    best = [path for path, score in usable.items() if score == most]
    full = [path for path in best if "sample" not in path.name.lower()]
    best = full or best
    if len(best) > 1 and len({path.read_bytes() for path in best}) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in best)
        raise PneumoError(f"Several label files fit the images in {folder}: {names}. Choose one with --labels FILE.")
    return best[0]


def _labelled(path: Path, image_ids: set[str]) -> int:
    """How many of ``image_ids`` a label file names."""
    columns, rows = _columns(path)
    return len(image_ids & {image_id_of(cells[columns[0]]) for _, cells in rows if len(cells) > max(columns)})


def _columns(path: Path) -> tuple[tuple[int, int], Iterable[tuple[int, list[str]]]]:
    """Places of the image id and of EncodedPixels, and the rows below the header, if there is one."""
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise PneumoError(f"{path} is empty. A label file has the columns ImageId and EncodedPixels.")
    names = [column_name(cell) for cell in first[1]]
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    pixels = next((names.index(name) for name in _PIXEL_COLUMNS if name in names), None)
    if image is not None and pixels is not None:
        return (image, pixels), rows
    if len(first[1]) == 2 and (rle.is_empty(first[1][1]) or first[1][1][0] in "-0123456789"):
        return (0, 1), _with_first(first, rows)
    if len(first[1]) == 1 and ";" in first[1][0]:
        raise PneumoError(f"{path} is separated by semicolons. Save it with commas.")
    shown = ", ".join(cell[:30] for cell in first[1][:6])
    raise PneumoError(
        f"{path} is no label file: its first line is {shown!r}, where ImageId and EncodedPixels are expected."
    )


def _with_first(first: tuple[int, list[str]], rows: Iterable[tuple[int, list[str]]]) -> Iterable[tuple[int, list[str]]]:
    yield first
    yield from rows


def read_labels(path: Path) -> Labels:
    """Read a label file: rows of one image united, rows that are no mask rejected with their number and the reason.

    An image that has a rejected row has no label at all, since part of its mask is not known; neither has one that is
    called empty in one row and given a mask in another.

    Raises:
        PneumoError: the file as a whole is not a label file.
    """
    columns, rows = _columns(path)
    texts: dict[str, list[tuple[int, str]]] = {}
    spoilt: dict[str, list[int]] = {}
    rejected: list[Rejected] = []

    def reject(image_id: str, row: int, reason: str) -> None:
        spoilt.setdefault(image_id, []).append(row)
        rejected.append(Rejected(path.name, row, f"image {image_id}: {reason}" if image_id else reason))

    for number, cells in rows:
        image_id = image_id_of(cells[columns[0]]) if len(cells) > columns[0] else ""
        if len(cells) <= max(columns) or not image_id:
            reject(image_id, number, f"the row has {len(cells)} cells, or no image id")
            continue
        try:
            rle.counts_of(cells[columns[1]])
            texts.setdefault(image_id, []).append((number, cells[columns[1]]))
        except rle.RleError as error:
            reject(image_id, number, str(error))
    for image_id, parts in texts.items():
        if len({rle.is_empty(text) for _, text in parts}) > 1:
            for number, _ in parts:
                reject(image_id, number, "one row says that there is no pneumothorax, another draws one")
    images = {
        image_id: Label(rle.unite(text for _, text in parts), tuple(number for number, _ in parts))
        for image_id, parts in texts.items()
        if image_id not in spoilt
    }
    spoilt.pop("", None)
    rejected.sort(key=lambda item: item.row or 0)
    return Labels(path, images, {image_id: tuple(numbers) for image_id, numbers in spoilt.items()}, rejected)
