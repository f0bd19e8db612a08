"""The page and the table of the benchmarks: one offline HTML file, and the Markdown table of the docs.

In: what ``bench.json`` holds. Out: text. The plots are
inline SVG with the report's colours, so they follow light and dark; their axes are logarithmic, since ratios are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.report import page_templates
from keras_pneumo.storage.files import write_bytes

BEGIN, END = "<!-- table of bench.json: begin -->", "<!-- table of bench.json: end -->"
"""Around the table in the docs; what stands between is replaced."""


WIDTH, NAMES, LONGEST = 1120, 520, 80
"""The plot of ratios: its width, where the names end, and how many characters a name may have."""


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
    templates = page_templates(Path(__file__).parent)
    rows = record["rows"]
    measured = [row for row in rows if row["ratio"] is not None]
    with_goal = [row for row in rows if is_met(row) is not None]
    return templates.get_template("bench.html").render(
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
    values = [v for row in rows for v in (row["ratio"], row["low"], row["high"], row["goal"], 1.0) if v and v > 0]
    if not rows:
        return ""
    axis = LogAxis(min(values), max(values), NAMES + 12, WIDTH - 76)
    top, line = 10, 28
    bottom = top + line * len(rows)
    parts = [_open("Ratio of every row", WIDTH, bottom + 46, "chart ratios"), *axis.across(top, bottom)]
    parts.append(f'<line class="reference" x1="{axis(1)}" x2="{axis(1)}" y1="{top}" y2="{bottom}"/>')
    for position, row in enumerate(rows):
        y = top + line * position + line / 2
        kind = {True: "s2", False: "s1", None: "s0"}[is_met(row)]
        parts.append(f'<text class="name" x="{NAMES}" y="{y + 4}" text-anchor="end">{_short(row["name"])}</text>')
        if row["low"] and row["high"]:
            ends = f'x1="{axis(row["low"])}" x2="{axis(row["high"])}"'
            parts.append(f'<line class="{kind} thick" {ends} y1="{y}" y2="{y}"/>')
        if row["goal"]:
            goal = axis(row["goal"])
            parts.append(f'<line class="goal" x1="{goal}" x2="{goal}" y1="{y - 9}" y2="{y + 9}"/>')
        parts.append(f'<circle class="{kind} dot" cx="{axis(row["ratio"])}" cy="{y}" r="5"/>')
        parts.append(f'<text class="label" x="{WIDTH - 62}" y="{y + 4}">{number(row["ratio"])}</text>')
    label = "Speed, ours over theirs; stroke: the goal; line: lowest to highest pair"
    middle = (NAMES + WIDTH) / 2 - 30
    parts.append(f'<text class="label" x="{middle}" y="{bottom + 38}" text-anchor="middle">{label}</text></svg>')
    return "".join(parts)


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


def _short(name: str) -> str:
    """A row's name as its plot has room for it."""
    return escape(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def _per_image(step: Mapping[str, float]) -> float:
    return step["seconds"] / step["images"]


def _memory(step: Mapping[str, float]) -> float:
    return step["memory_mb"]


def _growth_chart(
    lines: Sequence[tuple[str, Sequence[Mapping[str, float]]]], label: str, of: Callable[[Mapping[str, float]], float]
) -> str:
    """One line a command over the images, both axes logarithmic."""
    width, height = 460, 330
    images = [step["images"] for _, steps in lines for step in steps]
    values = [of(step) for _, steps in lines for step in steps]
    x = LogAxis(min(images), max(images), 70, width - 18, sorted(set(images)))
    y = LogAxis(min(values), max(values), height - 46, 14)
    parts = [_open(label, width, height + 20 * len(lines)), *x.across(14, height - 46), *y.along(70, width - 18)]
    parts.append(f'<text class="label" x="{width / 2 + 30}" y="{height - 10}" text-anchor="middle">Images</text>')
    parts.append(
        f'<text class="label" x="14" y="{height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height / 2})">{escape(label)}</text>'
    )
    for colour, (name, steps) in enumerate(lines):
        points = [(x(step["images"]), y(of(step))) for step in steps]
        path = "M" + "L".join(f"{a} {b}" for a, b in points)
        parts.append(f'<path class="s{colour}" d="{path}"/>')
        parts += [f'<circle class="s{colour} dot" cx="{a}" cy="{b}" r="3.5"/>' for a, b in points]
        at = height + 4 + 20 * colour
        parts.append(f'<line class="s{colour}" x1="70" x2="92" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="100" y="{at + 4}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


class LogAxis:
    """A logarithmic axis: called with a value it gives the position in the picture."""

    def __init__(
        self, low: float, high: float, first: float, last: float, marked: Sequence[float] | None = None
    ) -> None:
        """``low`` and ``high`` are the data's ends, ``first`` and ``last`` the picture's; ``marked`` are its ticks."""
        pad = max((math.log10(high) - math.log10(low)) * 0.05, 0.06)
        self.low, self.high = math.log10(low) - pad, math.log10(high) + pad
        self.first, self.last = first, last
        self.ticks = list(marked) if marked is not None else self.round_values()

    def __call__(self, value: float) -> float:
        """The position of a value."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def round_values(self) -> list[float]:
        """Round values within the axis: powers of ten, with 2 and 5 (or 1.5, 3 and 7 too) where these are few."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
            values = [step * 10.0**decade for decade in decades for step in steps]
            values = [value for value in values if self.low <= math.log10(value) <= self.high]
            if len(values) >= 4:
                break
        return values

    def across(self, top: float, bottom: float) -> list[str]:
        """Upright grid lines with their values below."""
        return [
            f'<line class="grid" x1="{self(tick)}" x2="{self(tick)}" y1="{top}" y2="{bottom}"/>'
            f'<text x="{self(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
            for tick in self.ticks
        ]

    def along(self, left: float, right: float) -> list[str]:
        """Level grid lines with their values at the left."""
        return [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{self(tick)}" y2="{self(tick)}"/>'
            f'<text x="{left - 6}" y="{self(tick) + 4}" text-anchor="end">{tick:g}</text>'
            for tick in self.ticks
        ]


def _open(title: str, width: float, height: float, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">'
    )
