"""Tables over the radiographs of one call: what was answered, and what was set aside and why.

In: rows, whose ids and names come from files and may be any text. Out: csv files that a spreadsheet opens without
taking such a text for a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keras_pneumo.data.files import write_table
from keras_pneumo.evaluation.writing import spreadsheet_safe


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
