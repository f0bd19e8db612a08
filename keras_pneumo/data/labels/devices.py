"""Reads and writes the table of what lies on a radiograph beside the patient: tubes, leads, writing.

In: ``devices.csv``, ``image_id, kind, encoded_pixels`` (a row for each object, drawn on the grid of masks). Out: the
mask of each kind on each image. Phantoms come with one, and whoever has annotated tubes may write one; it exists so
that heat on a tube can be told from heat on the pneumothorax beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import column_name, image_id_of, read_rows

FILE = "devices.csv"
"""The table's name in a data folder and in a prepared one."""

TUBE, MARKER, WORDS, LEADS = "chest tube", "marker", "words", "leads"
"""Kinds that the package itself speaks of; a table may hold others, or only some. A marker is the side's letter; leads
are all that lies on or in the patient but a chest tube: electrodes, wires, lines, other tubes."""

COLUMNS = ("image_id", "kind", "encoded_pixels")

Devices = dict[str, dict[str, rle.Runs]]
"""Image id -> kind -> mask of that kind; an image without an entry has none of the kinds in the table."""


def read_devices(path: Path) -> Devices:
    """Read the table; several masks of one kind on one image are united.

    Raises:
        PneumoError: the file cannot be read, lacks a column, or a row's pixels are no mask; the row is named.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    names = [column_name(cell) for cell in header]
    wanted = [column_name(name) for name in COLUMNS]
    if missing := [name for name, column in zip(COLUMNS, wanted, strict=True) if column not in names]:
        raise PneumoError(f"{path} has no column {' and no column '.join(missing)}; it needs {', '.join(COLUMNS)}.")
    image, kind, pixels = (names.index(name) for name in wanted)
    texts: dict[str, dict[str, list[str]]] = {}
    for number, cells in rows:
        if len(cells) <= max(image, kind, pixels):
            raise PneumoError(
                f"{path}, line {number}, has {len(cells)} cells, fewer than its header. Complete the line."
            )
        try:
            rle.counts_of(cells[pixels])
        except rle.RleError as error:
            raise PneumoError(f"{path}, line {number}: {error}. Mend the line.") from None
        texts.setdefault(image_id_of(cells[image]), {}).setdefault(cells[kind], []).append(cells[pixels])
    return {image_id: {name: rle.unite(masks) for name, masks in kinds.items()} for image_id, kinds in texts.items()}


def kinds_of(devices: Devices) -> list[str]:
    """Every kind in the table, sorted."""
    return sorted({kind for kinds in devices.values() for kind in kinds})


def devices_csv(rows: Iterable[tuple[str, str, str]]) -> bytes:
    """The table's bytes, of rows of image id, kind and EncodedPixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def box_pixels(x: int, y: int, width: int, height: int) -> str:
    """EncodedPixels of a rectangle with its upper left corner at (x, y), cut at the border of the grid."""
    side = rle.MASK_SIZE
    left, right = max(x, 0), min(x + width, side)
    top, bottom = max(y, 0), min(y + height, side)
    if left >= right or top >= bottom:
        return rle.EMPTY
    counts = [left * side + top, bottom - top]
    for _ in range(left + 1, right):
        counts += [side - (bottom - top), bottom - top]
    return rle.text_of([*counts, side * side - sum(counts)])
