"""Csv files given by people: plain or gzipped, with or without header and byte-order mark, read row by row.

In comes a path, out come the rows with the number of the line each ends on, so that a fault can be
named by file and row.

Foreign text made harmless before it is written or shown.

In: text that a team chose (its name, its hardware). Out: the same for a spreadsheet, a page anchor or one line of a
terminal. It exists because a board is opened in all three, and a team name must be able to do nothing in any of them.

Tables over the radiographs of one call: what was answered, and what was set aside and why.

In: rows, whose ids and names come from files and may be any text. Out: csv files that a spreadsheet opens without
taking such a text for a formula.
"""

from __future__ import annotations

import csv
import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_table

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


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters that a spreadsheet reads as a formula (OWASP, "CSV Injection"), their full-width forms included."""


def table_text(table: pd.DataFrame, float_format: str = "%.6g") -> str:
    """A table as CSV text with every text cell and column name safe for a spreadsheet."""
    safe = table.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [spreadsheet_safe(value) if isinstance(value, str) else value for value in safe[column]]
    safe.columns = pd.Index([spreadsheet_safe(str(name)) for name in safe.columns])
    return safe.to_csv(index=False, lineterminator="\n", float_format=float_format)


def spreadsheet_safe(text: str) -> str:
    """``text`` with an apostrophe before it when a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def one_line(text: str, length: int = 120) -> str:
    """``text`` without control, direction-changing or invisible characters, blanks joined, at most ``length`` long.

    Terminals obey control characters and browsers obey direction marks; a team name needs neither.
    """
    kept = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    kept = " ".join(kept.split())
    return kept if len(kept) <= length else kept[: length - 1] + "…"


def slug(text: str, taken: Iterable[str] = ()) -> str:
    """A name for files and page anchors: a-z, 0-9 and ``-``, at most 60 characters, different from all ``taken``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "team"
    used = set(taken)
    name, number = stem, 1
    while name in used:
        number += 1
        name = f"{stem}-{number}"
    return name


def counted(number: int, noun: str) -> str:
    """``1 row``, ``1,372 rows``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(items: Iterable[object], most: int = 5) -> str:
    """The first few of ``items`` as text, and how many more there are: ``'a', 'b' and 7 more``."""
    everything = [str(item) for item in items]
    shown = ", ".join(everything[:most])
    rest = len(everything) - most
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def write_tables(out: Path, answered: Sequence[dict[str, Any]], set_aside: Sequence[dict[str, str]]) -> None:
    """Write ``predictions.csv``, and ``quarantine.csv`` where something was set aside."""
    columns = ["file", "image_id", "probability", "pneumothorax", "outlined", "mask_share", "area_mm2"]
    table = pd.DataFrame(answered, columns=[*columns, "encoded_pixels"]).sort_values("file", ignore_index=True)
    table[["pneumothorax", "outlined"]] = table[["pneumothorax", "outlined"]].astype(int)
    table = safe_columns(table.round({"probability": 6, "mask_share": 6}), "file", "image_id")
    write_table(out / "predictions.csv", table)
    write_quarantine(out, sorted(set_aside, key=lambda row: row["file"]))


def write_quarantine(out: Path, set_aside: Sequence[dict[str, Any]]) -> None:
    """Write ``quarantine.csv``, or remove that of an earlier call into the same folder."""
    path = out / "quarantine.csv"
    if set_aside:
        table = pd.DataFrame(set_aside, columns=["file", "reason"])
        write_table(path, safe_columns(table, "file", "reason"))
    else:
        path.unlink(missing_ok=True)


def safe_columns(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The table with the texts of these columns safe for a spreadsheet; the others are the program's own."""
    return table.assign(**{name: [spreadsheet_safe(str(text)) for text in table[name]] for name in names})
