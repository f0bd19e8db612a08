"""Tables that people upload, read without trusting them: comma-separated text, plain or gzipped.

In: a path. Out: a table of stripped text cells plus ``row``, the line of the file each came from, so that every later
complaint can name it. It exists because the same file comes with a byte-order mark or without, with a header row or
without, with ``EncodedPixels`` or `` EncodedPixels``, and once in a while as two gigabytes of something else.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import pandas as pd

from keras_pneumo.errors import PneumoError

MAX_BYTES = 512 * 1024 * 1024
"""Largest table read, in bytes, unpacked: some forty times the text of 12,047 dense masks."""

_IDS = ("imageid", "image_id")
_PIXELS = ("encodedpixels", "encoded_pixels")


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file (gunzipped when its name ends in ``.gz``), its byte-order mark removed.

    Raises:
        PneumoError: the file is missing, unreadable, larger than ``max_bytes`` (looked at before reading, and again
            while unpacking, so that a small gzip file cannot fill the memory), damaged, or not UTF-8.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise PneumoError(
                f"{path} has {size:,} bytes; tables over {max_bytes:,} bytes are not read. Is this the right file?"
            )
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(max_bytes + 1)
        else:
            data = path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PneumoError(f"{path} could not be read: {reason}.") from error
    if len(data) > max_bytes:
        raise PneumoError(f"{path} unpacks to more than {max_bytes:,} bytes; it is not read. Is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PneumoError(f"{path} is not UTF-8 text (byte {error.start:,}). Save it as UTF-8 CSV.") from error


def read_table(path: Path, max_bytes: int = MAX_BYTES, header: bool | None = True) -> pd.DataFrame:
    """A CSV file as text cells, with ``row`` (line number, the first line being 1) as the last column.

    Args:
        path: the file.
        max_bytes: largest size read.
        header: whether the first line names the columns; None for "look whether it names an image id column".

    Returns:
        Cells without surrounding blanks; column names without surrounding blanks; blank lines left out.

    Raises:
        PneumoError: as :func:`read_text`, or the file is empty, or its lines cannot be taken apart.
    """
    text = read_text(path, max_bytes)
    try:
        table = pd.read_csv(
            io.StringIO(text), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, low_memory=False
        )
    except pd.errors.EmptyDataError:
        raise PneumoError(f"{path} is empty.") from None
    except (pd.errors.ParserError, ValueError) as error:
        raise PneumoError(f"{path} is not a comma-separated table: {str(error).strip()}.") from None
    table = table.fillna("")
    for column in table.columns:
        table[column] = table[column].str.strip()
    if header is None:
        header = str(table.iloc[0, 0]).lower() in _IDS or str(table.iloc[0, -1]).lower() in _PIXELS
    names = list(table.iloc[0]) if header else [str(position) for position in table.columns]
    rows = pd.Series(range(1, len(table) + 1))
    keep = (table != "").any(axis=1)
    if header:
        keep.iloc[0] = False
    table.columns = pd.Index(names)
    if table.columns.duplicated().any():
        raise PneumoError(f"{path} names the column {table.columns[table.columns.duplicated()][0]!r} twice.")
    if "row" in table.columns:
        raise PneumoError(f"{path} has a column called 'row', which is kept for line numbers. Rename it.")
    return table.assign(row=rows)[keep].reset_index(drop=True)


def read_kaggle(path: Path, max_bytes: int = MAX_BYTES) -> pd.DataFrame:
    """A SIIM label or submission file: ``image_id``, ``encoded_pixels`` and ``row``, one line per row of the file.

    Header variants (``ImageId, EncodedPixels`` with its blank, none at all, a byte-order mark) are all taken; rows of
    one image are not united here, since only the caller knows whether a repeated row is a mask or a mistake.

    Raises:
        PneumoError: as :func:`read_table`, or the file does not have these two columns, or an id is blank.
    """
    table = read_table(path, max_bytes, header=None)
    if any(str(name).lower() == "probability" for name in table.columns):
        raise PneumoError(
            f"{path} has a column probability; a bare file holds masks alone. Put it in a folder as predictions.csv, "
            "with a submission.json beside it."
        )
    if len(table.columns) != 3:
        raise PneumoError(
            f"{path} has {len(table.columns) - 1} column{'s' if len(table.columns) != 2 else ''}; "
            "a Kaggle file has two, ImageId and EncodedPixels."
        )
    table.columns = pd.Index(["image_id", "encoded_pixels", "row"])
    if table.empty:
        raise PneumoError(f"{path} has no rows.")
    blank = table.loc[table.image_id == "", "row"]
    if len(blank):
        raise PneumoError(f"{path}, row {blank.iloc[0]}: the image id is blank.")
    return table
