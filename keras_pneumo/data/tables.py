"""Csv files given by people: plain or gzipped, with or without header and byte-order mark, read row by row.

In comes a path, out come the rows with the number of the line each ends on, so that a fault can be
named by file and row.
"""

from __future__ import annotations

import csv
import gzip
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path

from keras_pneumo.errors import PneumoError

_MAX_CELL = 32 * 2**20
"""Characters in one cell; the csv module's own 131,072 are fewer than a mask of many short runs may need."""

MAX_TABLE_BYTES = 2**30
"""Unzipped size at which reading stops: the whole SIIM label file has 6 MB."""

IMAGE_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
"""Endings, in lower case, that a radiograph's file may have and an id in a table may carry along."""


IMAGE_COLUMNS = ("imageid", "image", "kaggleid", "sopinstanceuid", "filename", "fname")
"""Names of the column that holds the image id, as :func:`column_name` writes them."""


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file as (line number from 1, cells without surrounding spaces); blank lines are left out.

    Raises:
        PneumoError: the file cannot be opened, is not UTF-8 text, is damaged, or is larger than
            :data:`MAX_TABLE_BYTES`.
    """
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        opener = gzip.open if path.name.lower().endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(_bounded(stream, path), strict=True)
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
    except UnicodeDecodeError as error:
        raise PneumoError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8 csv.") from error
    except csv.Error as error:
        raise PneumoError(f"{path}, line {reader.line_num}, is not csv: {error}.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PneumoError(f"{path} cannot be read: {reason}. Check the path, or get the file again.") from error
    finally:
        csv.field_size_limit(limit)


def _bounded(stream: Iterator[str], path: Path) -> Iterator[str]:
    total = 0
    for line in stream:
        total += len(line)
        if total > MAX_TABLE_BYTES:
            raise PneumoError(f"{path} unfolds to more than {MAX_TABLE_BYTES} bytes; that is no label table.")
        yield line


def column_name(cell: str) -> str:
    """A header cell in the form in which names are compared: ``" Encoded_Pixels "`` is ``encodedpixels``."""
    return "".join(character for character in cell.lower() if character.isalnum())


def shown(name: str) -> str:
    """A file's name as text that can be written: bytes of it that are not UTF-8 stand as ``\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_id_of(cell: str) -> str:
    """The image id in a table's cell or a file's name: the ending of an image file is taken off.

    The text is brought to Unicode's composed form (NFC), because some file systems hand names back decomposed.
    """
    text = unicodedata.normalize("NFC", shown(cell).strip())
    for suffix in IMAGE_SUFFIXES:
        if text.lower().endswith(suffix):
            return text[: -len(suffix)]
    return text
