"""Csv tables: read as people give them, and written so that no text in them does harm.

In comes a csv file, plain or gzipped, with or without a byte-order mark; out come its rows as text, each with the
number of its line, so that a fault can be named by file and row. Texts of strangers (names of teams and files) are
written so that a spreadsheet, a page and a terminal each take them for text only.
"""

from __future__ import annotations

import csv
import gzip
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_table

if TYPE_CHECKING:  # each worker process imports this module, and pandas takes most of a second
    import pandas as pd

# -- Reading -----------------------------------------------------------------------------------------------------------

MAX_BYTES = 256 * 2**20
"""Largest table that is read, in bytes, unpacked: some twenty times the text of 12,047 dense masks."""

_MAX_COLUMNS = 4096
"""Cells in a row; the widest table of the known data sets has some forty."""

_MAX_CELL = 32 * 2**20
"""Characters in one cell; the csv module's own limit of 131,072 is less than a mask of many short runs may need."""


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file (unzipped when its name ends in ``.gz``), without its byte-order mark.

    Raises:
        PneumoError: the file is missing, damaged, not UTF-8, or larger than ``max_bytes``. The size is checked before
            reading and again while unzipping, so that a small file cannot fill the memory.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise PneumoError(
                f"{path} has {size:,} bytes; tables over {max_bytes:,} bytes are not read. Is this the right file?"
            )
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as stream:
                data = stream.read(max_bytes + 1)
        else:
            data = path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PneumoError(f"{path} cannot be read: {reason}. Check the path, or get the file again.") from error
    if len(data) > max_bytes:
        raise PneumoError(f"{path} unpacks to more than {max_bytes:,} bytes; it is not read. Is this the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PneumoError(f"{path} is not UTF-8 text (byte {error.start:,}). Save it as UTF-8 csv.") from error


def read_rows(path: Path, max_bytes: int = MAX_BYTES) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file as (line number from 1, cells without surrounding spaces); blank lines are left out.

    Raises:
        PneumoError: as :func:`read_text`, or the text is not csv.
    """
    text = read_text(path, max_bytes)
    reader = csv.reader(_lines(text, path), strict=True)
    while True:
        # The limit is the whole process's, so it is back before a caller goes on, who may never ask for the last row.
        limit = csv.field_size_limit(_MAX_CELL)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise PneumoError(f"{path}, line {reader.line_num}, is not csv: {error}. Save it as csv again.") from error
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if len(cells) > _MAX_COLUMNS:
            raise PneumoError(f"{path}, line {reader.line_num}, has {len(cells):,} cells. Is this the right file?")
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield reader.line_num, stripped


def _lines(text: str, path: Path) -> Iterator[str]:
    """The lines of a text with their ends, one at a time: a copy of it all would take four times its memory."""
    for number, match in enumerate(_LINE.finditer(text), start=1):
        if match.end() - match.start() > 2 * _MAX_CELL:
            raise PneumoError(
                f"{path}, line {number}, is longer than {2 * _MAX_CELL:,} characters, so it is no csv. "
                "Is this the right file?"
            )
        yield match.group()


_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")


@dataclass(frozen=True)
class Columns:
    """Some columns of a csv file with a header; :func:`read_columns` reads them."""

    numbers: list[int]
    """Line number of each row, the header aside; blank lines have none."""
    cells: dict[str, list[str]]
    """By :func:`column_name`, without surrounding spaces; only columns that the table has."""

    def column(self, name: str) -> list[str]:
        """The cells of a column, blank where the table has no such column."""
        return self.cells.get(column_name(name)) or [""] * len(self.numbers)


def read_columns(path: Path, names: Iterable[str], max_bytes: int = MAX_BYTES) -> Columns:
    """Some columns of a csv file with a header, for tables of many rows: several times as fast as :func:`read_rows`.

    Args:
        path: the file, plain or gzipped.
        names: of the columns, compared as :func:`column_name` writes them; of two of one name the first is read.
        max_bytes: largest file that is read.

    Raises:
        PneumoError: as :func:`read_rows`.
    """
    reader = csv.reader(_lines(read_text(path, max_bytes), path), strict=True)
    filled = (cells for cells in reader if any(cells) and any(map(str.strip, cells)))
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        header = list(map(column_name, next(filled, [])))
        if len(header) > _MAX_COLUMNS:
            raise PneumoError(f"{path} has {len(header):,} columns. Is this the right file?")
        wanted = {name: header.index(name) for name in dict.fromkeys(map(column_name, names)) if name in header}
        if not wanted:
            return Columns([reader.line_num for _ in filled], {})
        last = max(wanted.values())
        # Twice the last, so that there is a tuple even of a single column.
        get, pad = itemgetter(*wanted.values(), last), [""] * (last + 1)
        # A tuple of texts is no work for the garbage collector, as a list of all cells would be.
        rows = [(reader.line_num, get(cells if len(cells) > last else [*cells, *pad])) for cells in filled]
    except csv.Error as error:
        raise PneumoError(f"{path}, line {reader.line_num}, is not csv: {error}. Save it as csv again.") from error
    finally:
        csv.field_size_limit(limit)
    columns = list(zip(*(cells for _, cells in rows), strict=True)) or [()] * (len(wanted) + 1)
    stripped = {name: list(map(str.strip, column)) for name, column in zip(wanted, columns, strict=False)}
    return Columns([number for number, _ in rows], stripped)


def read_table(path: Path, max_bytes: int = MAX_BYTES) -> pd.DataFrame:
    """A csv file with a header as a table of text cells, with the line number of each row in the last column, ``row``.

    Returns:
        Cells and column names without surrounding spaces; cells that a row lacks at its end are blank.

    Raises:
        PneumoError: as :func:`read_rows`, or the file is empty, a column is named twice or ``row``, or a row has more
            cells than the header.
    """
    import pandas as pd

    rows = read_rows(path, max_bytes)
    _, header = next(rows, (0, []))
    if not header:
        raise PneumoError(f"{path} is empty. Give the whole table.")
    check_header(header, path)
    numbers: list[int] = []
    table: list[list[str]] = []
    for number, cells in rows:
        if any(cells[len(header) :]):
            raise PneumoError(
                f"{path}, line {number}, has {len(cells)} cells, but the header has {len(header)}. Mend the line."
            )
        numbers.append(number)
        table.append([*cells, *[""] * (len(header) - len(cells))][: len(header)])
    return pd.DataFrame(table, columns=header, dtype=str).assign(row=numbers)


def check_header(names: Sequence[str], path: Path) -> None:
    """Refuse a header that a table with line numbers cannot have.

    Raises:
        PneumoError: a name stands twice, or is ``row``.
    """
    twice = next((name for name in names if name and list(names).count(name) > 1), None)
    if twice is not None:
        raise PneumoError(f"{path} names the column {one_line(twice, 80)!r} twice. Rename one of them.")
    if "row" in names:
        raise PneumoError(f"{path} has a column called 'row', which is kept for line numbers. Rename it.")


# -- Names of columns and images ---------------------------------------------------------------------------------------

IMAGE_SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")
"""Endings, in lower case, that a radiograph's file may have and an id in a table may carry along."""

IMAGE_COLUMNS = ("imageid", "image", "kaggleid", "sopinstanceuid", "filename", "fname")
"""Names of the column that holds the image id, as :func:`column_name` writes them."""


def column_name(cell: str) -> str:
    """A header cell in the form in which names are compared: ``" Encoded_Pixels "`` is ``encodedpixels``."""
    return "".join(character for character in cell.lower() if character.isalnum())


def printable(name: str) -> str:
    """A file's name as text that can be written: bytes of it that are not UTF-8 stand as ``\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    """``text`` with control and direction characters as ``\\x1b``, ``\\u202e``: a terminal would obey them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def image_id_of(cell: str) -> str:
    """The image id in a table's cell or a file's name: the ending of an image file is taken off, also a repeated one.

    The text is brought to Unicode's composed form (NFC), because some file systems hand names back decomposed.
    """
    text = cell.strip() if cell.isascii() else unicodedata.normalize("NFC", printable(cell).strip())
    while text.lower().endswith(IMAGE_SUFFIXES):
        text = text[: text.rindex(".")]
    return text


# -- Writing -----------------------------------------------------------------------------------------------------------

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters that a spreadsheet reads as a formula (OWASP, "CSV Injection"), their full-width forms included."""


def table_text(table: pd.DataFrame, float_format: str = "%.6g") -> str:
    """A table as csv text with every text cell and column name safe for a spreadsheet."""
    import pandas as pd

    safe = table.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [spreadsheet_safe(value) if isinstance(value, str) else value for value in safe[column]]
    safe.columns = pd.Index([spreadsheet_safe(str(name)) for name in safe.columns])
    return safe.to_csv(index=False, lineterminator="\n", float_format=float_format)


def safe_columns(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The table with the texts of these columns safe for a spreadsheet; the others are the program's own."""
    return table.assign(**{name: [spreadsheet_safe(str(text)) for text in table[name]] for name in names})


def spreadsheet_safe(text: str) -> str:
    """``text`` with an apostrophe before it when a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def write_quarantine(out: Path, set_aside: Sequence[dict[str, Any]]) -> None:
    """Write ``quarantine.csv`` (file and reason), or remove that of an earlier call into the same folder."""
    import pandas as pd

    path = out / "quarantine.csv"
    if set_aside:
        rows = [(visible(str(row["file"])), visible(str(row["reason"]))) for row in set_aside]
        table = pd.DataFrame(rows, columns=["file", "reason"])
        write_table(path, safe_columns(table, "file", "reason"))
    else:
        path.unlink(missing_ok=True)


def set_aside_sentences(set_aside: Sequence[dict[str, Any]], most: int = 5) -> list[str]:
    """What every command says of the rows of its ``quarantine.csv``: a sentence for each reason, with its files.

    Args:
        set_aside: ``file`` and ``reason`` of each.
        most: sentences at most, before one that says how many files the table has besides.
    """
    files: dict[str, list[str]] = {}
    for row in set_aside:
        files.setdefault(one_line(str(row["reason"]).removesuffix("."), 400), []).append(visible(str(row["file"])))
    reasons = list(files)[:most]
    sentences = [f"{listed(files[reason], 3)}: {reason}." for reason in reasons]
    rest = len(set_aside) - sum(len(files[reason]) for reason in reasons)
    return [*sentences, f"{rest:,} more are listed in quarantine.csv."] if rest else sentences


# -- Text for messages and pages ---------------------------------------------------------------------------------------


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


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 row``, ``1,372 rows``; ``plural`` where it does not end in s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shown_id(image_id: str) -> str:
    """An image id for a message, cut where it is far too long to be one."""
    return one_line(image_id, 80)


def named_images(image_ids: Iterable[str], most: int = 5) -> str:
    """The first few image ids in quotes, each cut where it is far too long to be one: ``'a', 'b' and 7 more``."""
    return listed((repr(shown_id(image_id)) for image_id in image_ids), most)


def listed(items: Iterable[object], most: int = 5) -> str:
    """The first few of ``items`` as text, and how many more there are: ``'a', 'b' and 7 more``."""
    everything = [str(item) for item in items]
    text = ", ".join(everything[:most])
    rest = len(everything) - most
    return f"{text} and {rest:,} more" if rest > 0 else text
