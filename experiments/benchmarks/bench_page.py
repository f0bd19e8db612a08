"""The page and the table of the benchmarks: one offline HTML file, and the Markdown table of the docs.

In: what ``bench.json`` holds. Out: text. The plots are
inline SVG with the report's colours, so they follow light and dark; their axes are logarithmic, since ratios are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.charts import Bar, Series, interval_chart, line_chart
from keras_pneumo.evaluation.report.page import render_page
from keras_pneumo.storage.files import write_bytes

BEGIN, END = "<!-- table of bench.json: begin -->", "<!-- table of bench.json: end -->"
"""Around the table in the docs; what stands between is replaced."""


def sentence(row: Mapping[str, Any]) -> str:
    """A row in a line."""
    if row["ratio"] is None:
        return row["note"]
    return f"{number(row['ratio'])} ({spread(row)}), goal {number(row['goal'])}"


def number(value: float | None) -> str:
    """A figure with three digits; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(row: Mapping[str, Any]) -> str:
    """Lowest and highest ratio of all pairs."""
    return "–" if row.get("low") is None else f"{number(row['low'])} to {number(row['high'])}"


def side(figures: Mapping[str, Any] | None, unit: str) -> str:
    """The speed of a side; below one a second, such as that of whole commands, the seconds of each."""
    if not figures:
        return "–"
    speed = figures["speed"]
    return f"{number(speed)} {unit}" if speed >= 1 else f"{number(1 / speed)} s per {unit.removesuffix('s/s')}"


def is_met(row: Mapping[str, Any]) -> bool | None:
    """Whether the median reaches the goal; None where one of the two is missing."""
    return None if row["ratio"] is None or row["goal"] is None else row["ratio"] >= row["goal"]


def table(record: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| work | ours | theirs | ratio | spread | goal |", "|---|---|---|---|---|---|"]
    for row in record["rows"]:
        cells = [row["name"], side(row.get("ours"), row["unit"]), side(row.get("theirs"), row["unit"])]
        met = "" if is_met(row) is not False else " (below)"
        cells += [f"{number(row['ratio'])}{met}", spread(row), number(row["goal"])]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def notes(record: Mapping[str, Any]) -> str:
    """Each row's note, as a Markdown list."""
    return "\n".join(f"- **{row['name']}**: {row['note']}" for row in record["rows"] if row["note"])


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    versions = {**machine["versions"], **machine["torch_versions"]}
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions']) or 'no vector extensions'})",
        f"{machine['memory_gb']} GB",
        machine["gpu"] or "no GPU",
        machine["os"],
        f"Python {machine['python']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    return "; ".join(parts) + "."


def replace_table(path: Path, record: Mapping[str, Any]) -> None:
    """Write table, notes and machine between the two marks of a Markdown file.

    Raises:
        PneumoError: the file does not have the two marks.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise PneumoError(f"{path} does not have the lines {BEGIN} and {END}. Add them where the table shall be.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    content = "\n\n".join([table(record), notes(record), f"Machine: {machine_text(record['machine'])}"])
    write_bytes(path, f"{before}{BEGIN}\n\n{content}\n\n{END}{after}".encode())


def page(record: Mapping[str, Any]) -> str:
    """The page, as HTML text."""
    rows = record["rows"]
    measured = [row for row in rows if row["ratio"] is not None]
    with_goal = [row for row in rows if is_met(row) is not None]
    return render_page(
        "bench.html",
        Path(__file__).parent,
        rows=rows,
        below=[row for row in with_goal if not is_met(row)],
        with_goal=with_goal,
        measured=measured,
        noisy=[row["name"] for row in measured if not row.get("quiet", True)],
        ratios=ratio_chart(measured),
        growth=growth_charts(rows),
        machine=machine_text(record["machine"]),
        number=number,
        spread=spread,
        side=side,
        is_met=is_met,
    )


def ratio_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each row's ratio (a dot), its spread (a line) and its goal (an upright stroke), on a logarithmic axis."""
    bars = [
        Bar(
            f"{row['name']}: {number(row['ratio'])}",
            row["ratio"],
            row["low"] or math.nan,
            row["high"] or math.nan,
            {True: 2, False: 1, None: 0}[is_met(row)],
            goal=row["goal"] or None,
        )
        for row in rows
    ]
    return interval_chart(bars, "Speed, ours over theirs", "Ratio of every row", 1.0, logarithmic=True)


def growth_charts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Time per image and peak memory of each command, over the number of images."""
    lines = [(str(row["name"]).rpartition(" ")[2], row["growth"]) for row in rows if row.get("growth")]
    if not lines:
        return []
    kinds = (
        ("Seconds per image", "The whole command's wall time over its images; start-up is part of it.", _per_image),
        ("Peak memory in MB", "Of the command and its children together, shared pages once.", _memory),
    )
    return [{"caption": f"{label}. {more}", "svg": _growth_chart(lines, label, of)} for label, more, of in kinds]


def _per_image(step: Mapping[str, float]) -> float:
    return step["seconds"] / step["images"]


def _memory(step: Mapping[str, float]) -> float:
    return step["memory_mb"]


def _growth_chart(
    lines: Sequence[tuple[str, Sequence[Mapping[str, float]]]], label: str, of: Callable[[Mapping[str, float]], float]
) -> str:
    """One line a command over the images, both axes logarithmic."""
    series = [
        Series(name, [step["images"] for step in steps], [of(step) for step in steps], colour, points=True)
        for colour, (name, steps) in enumerate(lines)
    ]
    return line_chart(series, "Images", label, label, logarithmic=True)
