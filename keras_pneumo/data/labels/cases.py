"""Reads a label table into one label per image: for preparing, for the referee's truth and for bare submissions.

In comes a csv file with an image column and ``EncodedPixels`` (a row per mask), ``pneumothorax`` (0 or 1), or both, in
any order and beside other columns; SIIM's two columns may also come without a header. Out come its rows as text, and
one label per image: all masks of the image united. A row that cannot be used is rejected with its number and the
reason. What that means is for the caller to decide: preparing sets the image aside, the referee refuses the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.geometry import resize_mask
from keras_pneumo.data.radiographs.radiograph import MAX_PIXELS
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import (
    IMAGE_COLUMNS,
    MAX_BYTES,
    check_header,
    column_name,
    counted,
    image_id_of,
    listed,
    read_rows,
    shown_id,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rejected:
    """A file or a row of a file that is set aside, and why."""

    file: str
    row: int | None
    reason: str
    image_id: str = field(default="", compare=False)


class Box(NamedTuple):
    """A box around a pneumothorax, in pixels of the image file itself; no mask."""

    x: float
    """Of the left edge."""
    y: float
    """Of the upper edge."""
    width: float
    height: float


class Facts(NamedTuple):
    """What a table says of an image beside its label; blank, or None, where it says nothing."""

    patient: str = ""
    sex: str = ""
    """``M`` or ``F``."""
    age: float | None = None
    """In years."""
    view: str = ""
    """``PA`` or ``AP``."""
    source: str = ""
    """Hospital or data set."""


NO_FACTS = Facts()


@dataclass(frozen=True)
class Label:
    """What a label table says of one image."""

    runs: rle.Runs
    """All its masks united, as compressed COCO runs on the 1024x1024 grid."""
    rows: tuple[int, ...]
    """Line numbers in the table."""
    positive: bool
    """Whether there is a pneumothorax: by the column ``pneumothorax`` where there is one, else by the mask."""
    boxes: tuple[Box, ...] = ()
    facts: Facts = NO_FACTS
    mask_shapes: tuple[tuple[int, int], ...] = ()
    """Rows and columns of the grids on which its masks were drawn; none for run-length text on the canonical frame."""

    @property
    def has_mask(self) -> bool:
        """Whether a pneumothorax is outlined."""
        return rle.area(self.runs) > 0

    @property
    def lacks_mask(self) -> bool:
        """Whether there is a pneumothorax but no mask of it."""
        return self.positive and not self.has_mask


@dataclass(frozen=True)
class Labels:
    """A label table, read."""

    path: Path
    rows: pd.DataFrame
    """Its rows as :func:`read_label_rows` returns them."""
    images: dict[str, Label]
    """Image id -> label, only images whose rows are all good."""
    rejected: list[Rejected]
    """Rows that cannot be used, in the order of the table."""
    data_set: str = "table of masks"
    """Which known form of table this is."""
    has_masks: bool = True
    """Whether masks belong to it, so that a positive without one is incomplete."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Image id -> why it has no label although nothing is wrong with its rows: uncertain, blank, a lateral view."""
    parts: int = 1
    """How many parts of a file's path make its image id, where file names alone are not unique."""
    record: dict[str, object] = field(default_factory=dict)
    """What was decided about the labels, for the manifest: the options that counted, and how many images each met."""
    other_files: tuple[Path, ...] = ()
    """Further files that labels were read from."""
    files: tuple[Path, ...] = ()
    """Files of masks, which are no radiographs."""

    @property
    def rejected_rows(self) -> dict[str, tuple[int, ...]]:
        """Image id -> numbers of its rejected rows: such an image's mask is not known, so it has no label."""
        numbers: dict[str, tuple[int, ...]] = {}
        for item in self.rejected:
            if item.image_id and item.row is not None:
                numbers[item.image_id] = (*numbers.get(item.image_id, ()), item.row)
        return numbers


def canonical_runs(mask: np.ndarray) -> rle.Runs:
    """The runs, in the canonical 1024x1024 frame, of a mask on its image's own grid, uint8 (H, W) of 0 and 1."""
    return rle.runs_of(rle.encode(resize_mask(mask, rle.MASK_SIZE)))


MaskSize = tuple[int, int]
"""Rows and columns of the grid that a run-length text refers to."""

CANONICAL: MaskSize = (rle.MASK_SIZE, rle.MASK_SIZE)

SIZE_COLUMNS = (("maskheight", "maskwidth"), ("height", "width"))
"""Pairs of columns that say the size of each row's mask, as :func:`column_name` writes them."""


def mask_sizes(rows: pd.DataFrame) -> list[MaskSize | None] | None:
    """The size of each row's mask by the columns of :data:`SIZE_COLUMNS`; None for a row where they hold no size.

    None where the table has no such columns: then all masks are on the canonical frame.
    """
    names = {column_name(str(name)): str(name) for name in rows.columns}
    pair = next((pair for pair in SIZE_COLUMNS if set(pair) <= names.keys()), None)
    if pair is None or "encoded_pixels" not in rows:
        return None
    return [_size(*cells) for cells in zip(*(rows[names[name]].tolist() for name in pair), strict=True)]


def _size(height: str, width: str) -> MaskSize | None:
    if not all(cell.isascii() and cell.isdigit() and len(cell) < 9 for cell in (height, width)):
        return None
    size = int(height), int(width)
    return size if 0 < size[0] * size[1] <= MAX_PIXELS else None


def read_labels(path: Path, need_masks: bool = True, mask_size: MaskSize | None = None) -> Labels:
    """Read a label table and unite the rows of each image.

    Args:
        path: the csv file, plain or gzipped.
        need_masks: whether a table without EncodedPixels is refused.
        mask_size: of all masks, whatever the table says; None: what its columns ``height`` and ``width`` (or
            ``mask_height`` and ``mask_width``) say, without these 1024x1024.

    An image that has a rejected row has no label at all, since part of its mask is not known. Rejected are also rows
    that contradict each other: no pneumothorax in one and a mask or a 1 in another, or a mask beside a 0.

    Raises:
        PneumoError: the file as a whole is not a label table.
    """
    rows, rejected = read_label_rows(path, need_masks=need_masks)
    has_masks, has_labels = "encoded_pixels" in rows, "pneumothorax" in rows
    columns = [rows[name].tolist() if name in rows else [""] * len(rows) for name in ("encoded_pixels", "pneumothorax")]
    sizes = mask_sizes(rows) if mask_size is None else [mask_size] * len(rows)
    by_image: dict[str, list[tuple[int, str, str]]] = {}
    for image_id, number, text, label in zip(rows["image_id"].tolist(), rows["row"].tolist(), *columns, strict=True):
        by_image.setdefault(image_id, []).append((number, text, label))
    size_of = {} if sizes is None else dict(zip(rows["row"].tolist(), sizes, strict=True))
    images: dict[str, Label] = {}
    spoilt = {item.image_id for item in rejected}
    for image_id, parts in by_image.items():
        reasons = _wrong_rows(parts, has_masks, has_labels, size_of)
        rejected += [
            Rejected(path.name, row, f"image {shown_id(image_id)}: {reason}", image_id) for row, reason in reasons
        ]
        if reasons or image_id in spoilt:
            continue
        drawn = {size_of.get(number) or CANONICAL for number, text, _ in parts if not rle.is_empty(text)}
        if drawn <= {CANONICAL}:
            runs = rle.unite(text for _, text, _ in parts)
        else:
            runs = rle.unite_runs([_on_canonical(text, size_of.get(number) or CANONICAL) for number, text, _ in parts])
        positive = parts[0][2] == "1" if has_labels else rle.area(runs) > 0
        shapes = tuple(sorted(drawn - {CANONICAL}))
        images[image_id] = Label(runs, tuple(number for number, _, _ in parts), positive, mask_shapes=shapes)
    return Labels(path, rows, images, sorted(rejected, key=lambda item: item.row or 0))


def _on_canonical(text: str, size: MaskSize) -> rle.Runs:
    """The runs, in the canonical frame, of a run-length text on a grid of another size."""
    return rle.runs_of(text) if rle.is_empty(text) or size == CANONICAL else canonical_runs(rle.decode(text, *size))


def read_label_rows(
    path: Path, need_masks: bool = True, max_bytes: int = MAX_BYTES
) -> tuple[pd.DataFrame, list[Rejected]]:
    """The rows of a label table as text, one line per row of the file: rows of one image are not united.

    Returns:
        Columns ``image_id`` (without a file's ending), ``encoded_pixels`` and/or ``pneumothorax``, the file's other
        columns by their own names, and ``row``, the line number; and the rows without an image id or with too few or
        too many cells, which the table leaves out.

    Raises:
        PneumoError: the file cannot be read, or it is not a label table.
    """
    import pandas as pd

    lines = read_rows(path, max_bytes)
    first = next(lines, None)
    if first is None:
        raise PneumoError(
            f"{path} is empty. A label table has the columns ImageId and EncodedPixels. Give the whole table."
        )
    header = _header(first[1], path, need_masks)
    image = header.index("image_id")
    needed = 1 + max(header.index(name) for name in ("image_id", "encoded_pixels", "pneumothorax") if name in header)
    numbers: list[int] = []
    table: list[list[str]] = []
    rejected: list[Rejected] = []
    for number, cells in lines if _is_header(first[1]) else itertools.chain([first], lines):
        image_id = image_id_of(cells[image]) if len(cells) > image else ""
        if not image_id:
            rejected.append(Rejected(path.name, number, "the image id is blank"))
        elif len(cells) < needed or any(cells[len(header) :]):
            reason = f"image {shown_id(image_id)}: the row has {len(cells)} cells, where {len(header)} are expected"
            rejected.append(Rejected(path.name, number, reason, image_id))
        else:
            cells = [*cells, *[""] * (len(header) - len(cells))][: len(header)]
            cells[image] = image_id
            table.append(cells)
            numbers.append(number)
    return pd.DataFrame(table, columns=header, dtype=str).assign(row=numbers), rejected


def refuse_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Refuse a table that has rejected rows, for those who need all of it.

    Raises:
        PneumoError: there is one; the message names the first.
    """
    for item in sorted(rejected, key=lambda item: item.row or 0)[:1]:
        more = f" {counted(len(rejected) - 1, 'more row')} cannot be used." if len(rejected) > 1 else ""
        raise PneumoError(f"{path}, row {item.row}: {item.reason}.{more} Mend the table.")


_NAMES = {"encodedpixels": "encoded_pixels", "pneumothorax": "pneumothorax"}
"""Columns of labels, as :func:`column_name` writes them, and what they are called here."""


def _is_header(cells: list[str]) -> bool:
    names = {column_name(cell) for cell in cells}
    return bool(names & set(IMAGE_COLUMNS)) and bool(names & set(_NAMES))


def _header(cells: list[str], path: Path, need_masks: bool) -> list[str]:
    """Names of the columns, from the first line of a label table.

    Raises:
        PneumoError: it is not the first line of one.
    """
    if _is_header(cells):
        names = [column_name(cell) for cell in cells]
        image = next(names.index(name) for name in IMAGE_COLUMNS if name in names)
        header = [_NAMES.get(name, cell) for name, cell in zip(names, cells, strict=True)]
        header[image] = "image_id"
        check_header(header, path)
        if "encoded_pixels" in header or not need_masks:
            return header
    elif len(cells) == 2 and (rle.is_empty(cells[1]) or cells[1][0] in "-0123456789"):
        return ["image_id", "encoded_pixels"]
    elif len(cells) == 1 and ";" in cells[0]:
        raise PneumoError(f"{path} is separated by semicolons. Save it with commas.")
    start = ", ".join(cell[:30] for cell in cells[:6])
    wanted = "ImageId and EncodedPixels" if need_masks else "ImageId and EncodedPixels or pneumothorax"
    raise PneumoError(
        f"{path} is not a label table: its first line is {start!r}, where {wanted} are expected. Name another table."
    )


def _wrong_rows(
    parts: list[tuple[int, str, str]], has_masks: bool, has_labels: bool, size_of: dict[int, MaskSize | None]
) -> list[tuple[int, str]]:
    """(line number, reason) of the rows of one image that cannot be used; rows are (line number, mask, label)."""
    reasons: list[tuple[int, str]] = []
    for number, text, label in parts:
        size = size_of.get(number, CANONICAL)
        if size is None and not rle.is_empty(text):
            reasons.append((number, "its height and width, which say the size of the mask, are no numbers of pixels"))
            continue
        rows_of, columns_of = size or CANONICAL
        try:
            rle.counts_of(text, rows_of * columns_of)
        except rle.RleError as error:
            reasons.append((number, str(error)))
            continue
        if has_labels and label not in ("0", "1"):
            reasons.append((number, f"pneumothorax is {label[:20]!r}; it must be 0 or 1"))
        elif has_labels and label == "0" and not rle.is_empty(text):
            reasons.append((number, "the image has a mask but its pneumothorax is 0"))
    if reasons:
        return reasons
    rows = listed(number for number, _, _ in parts)
    if has_masks and len({rle.is_empty(text) for _, text, _ in parts}) > 1:
        reason = f"one row says that there is no pneumothorax, another draws one (rows {rows})"
        return [(number, reason) for number, _, _ in parts]
    if has_labels and (len({label for _, _, label in parts}) > 1 or (not has_masks and len(parts) > 1)):
        return [(number, f"the image was given before (rows {rows})") for number, _, _ in parts[1:]]
    return []
