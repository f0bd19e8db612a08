"""Foreign text made harmless before it is written or shown.

In: text that a team chose (its name, its hardware). Out: the same for a spreadsheet, a page anchor or one line of a
terminal. It exists because a board is opened in all three, and a team name must be able to do nothing in any of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

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
