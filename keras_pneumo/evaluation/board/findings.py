"""Collects pairwise tests, ranks, seed tests, label agreement and fusions, and writes the board as JSON and Markdown.

In: a scored :class:`Board`, adjudicated labels if there are any. Out: :class:`Findings`, and the board as table, JSON
and Markdown: the same numbers for a spreadsheet, a program and a pull request.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from keras_pneumo.evaluation.board.board import SCORES, Board
from keras_pneumo.evaluation.board.differences import DELONG, LOWER_IS_BETTER, SWAP
from keras_pneumo.evaluation.board.fusion import Fusion, fuse
from keras_pneumo.evaluation.board.label_noise import Ceiling, noise_ceiling
from keras_pneumo.evaluation.board.ranking import SeedTest, compare_pairs, seed_tests
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_interval, shown_p, verdict

FUSED = 3
"""Number of best teams that are fused in pairs."""

_MASK_SCORES = ("dice", "dice_positives", "negatives_left_empty", "positives_missed")
_FURTHER_SCORES = ("sensitivity", "specificity", "auprc", "accuracy", "brier")


@dataclass(frozen=True, eq=False)
class Findings:
    """Pairwise tests, ranks, seed tests, the ceiling of the labels, and fusions of the best teams."""

    pairs: pd.DataFrame
    ranks: dict[str, int]
    seeds: list[SeedTest]
    ceiling: Ceiling | None
    fusions: list[Fusion]


def analyse(board: Board, adjudicated: dict[str, bool] | None = None) -> Findings:
    """Compute all findings of a board."""
    best = [entry for entry in board.ordered if entry.kind == "submission"][:FUSED]
    return Findings(
        pairs=compare_pairs(board),
        ranks=board.standings.ranks,
        seeds=seed_tests(board),
        ceiling=noise_ceiling(board, adjudicated) if adjudicated else None,
        fusions=[fuse(first, second, board.truth) for first, second in combinations(best, 2)],
    )


def ranked_table(board: Board, findings: Findings) -> pd.DataFrame:
    """The board's table with ``rank`` in front (blank for baselines) and whether each team is above the ceiling."""
    table = board.table.copy()
    ranks = [findings.ranks.get(e.team) if e.kind == "submission" else None for e in board.ordered]
    table.insert(0, "rank", pd.Series(ranks, dtype="Int64"))
    if findings.ceiling is not None:
        above = findings.ceiling.teams.set_index("team").above
        table["above_ceiling"] = [above.get(team, None) for team in table.team]
    return table


def read_board(path: Path, joined: bool = False) -> pd.DataFrame | None:
    """The rows of a ``board.csv`` that tell of one network: its own, and the metadata-only baselines.

    Args:
        path: the table.
        joined: whether the network is a detector, whose members stand on its board too.

    Returns:
        None where there is no table that can be read.
    """
    try:
        table = pd.read_csv(path)
        own = table["kind"] == "submission"
        if joined:
            own &= table["team"].str.contains("(joined)", regex=False)
        return table[own | (table["kind"] == "baseline")].reset_index(drop=True)
    except (OSError, ValueError, KeyError):
        return None


def own_row(board: pd.DataFrame | None) -> pd.Series | None:
    """The network's own row of :func:`read_board`; None where it was not scored."""
    own = None if board is None else board[board["kind"] == "submission"]
    return None if own is None or own.empty else own.iloc[0]


def board_json(board: Board, findings: Findings) -> str:
    """The whole board for a program; numbers that do not exist are null. Names are as declared, so escape them."""
    truth = board.truth
    result = verdict(board)
    content: dict[str, Any] = {
        "format": 1,
        "verdict": [result.headline, *result.sentences],
        "warnings": result.warnings,
        "scored": {
            "subset": truth.subset,
            "images": len(truth.cases),
            "patients": truth.n_patients,
            "positives": int(truth.pneumothorax.sum()),
            "split_sha256": truth.split_sha256,
            "synthetic": truth.synthetic,
        },
        "method": {
            "headline": board.headline,
            "resamples": board.resamples,
            "seed": board.seed,
            "common_sensitivity": board.common_sensitivity,
            "differences": f"AUROC: {DELONG}, Student's t; other scores: {SWAP}",
            "multiplicity": "Holm over all pairs of one score",
        },
        "rows": [_row(row) for row in ranked_table(board, findings).to_dict("records")],
        "pairs": findings.pairs.to_dict("records"),
        "seeds": [vars(test) for test in findings.seeds],
        "fusions": [vars(fusion) for fusion in findings.fusions],
        "ceiling": None,
    }
    if findings.ceiling is not None:
        ceiling = findings.ceiling
        content["ceiling"] = {
            "images": ceiling.images,
            "agreement": ceiling.agreement,
            "low": ceiling.interval.low,
            "high": ceiling.interval.high,
            "kappa": ceiling.kappa,
            "teams": ceiling.teams.to_dict("records"),
        }
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def board_markdown(board: Board, findings: Findings) -> str:
    """The board for a pull request: verdict, table and pairs, all text escaped for Markdown and HTML."""
    result = verdict(board)
    header, entries = terminal_rows(board, findings)
    lines = [f"**{_safe(result.headline)}** {_safe(' '.join(result.sentences))}", ""]
    lines += [f"> {_safe(warning)}" for warning in result.warnings]
    lines += ["", "| " + " | ".join(header[:-1]) + " |", "|---|---|" + "---:|" * (len(header) - 3)]
    for entry, (rank, name, *cells, notes) in zip(board.ordered, entries, strict=True):
        name = _safe(name) if entry.kind == "submission" else f"*{_safe(name)}*"
        name += f"<br>{_safe(notes)}" if notes else ""
        lines.append("| " + " | ".join([rank, name, *cells]) + " |")
    rows = findings.pairs[findings.pairs.score == board.headline]
    if len(rows):
        lines += ["", f"| {LABELS[board.headline]}: difference | 95% interval | p | p, Holm |", "|---|---|---:|---:|"]
        for row in rows.to_dict("records"):
            pair = f"{_safe(row['first'])} less {_safe(row['second'])}: {shown(row['difference'])}"
            lines.append(
                f"| {pair} | {shown_interval((row['low'], row['high']))} "
                f"| {_safe(shown_p(row['p']))} | {_safe(shown_p(row['p_holm']))} |"
            )
    lines += ["", f"95% intervals by patient, {board.resamples:,} resamples, {board.extent}. Research use only.", ""]
    return "\n".join(lines)


def terminal_rows(board: Board, findings: Findings) -> tuple[list[str], list[list[str]]]:
    """The board for a terminal: column names, and one row of plain text per entry (a name may hold any markup).

    Rank, team, the scores with the most important one first, each ``0.912 (0.881 to 0.936)``, and the notes.
    """
    masks_first = board.headline in _MASK_SCORES
    order = (*_MASK_SCORES, "auroc") if masks_first else ("auroc", *_MASK_SCORES)
    scores = [n for n in (*order, *_FURTHER_SCORES) if n == "auroc" or any(n in entry.point for entry in board.teams)]
    rows = []
    for entry in board.ordered:
        rank = str(findings.ranks.get(entry.team, "")) if entry.kind == "submission" else ""
        cells = []
        for name in scores:
            low, high = entry.intervals.get(name, (math.nan, math.nan))
            span = f" ({shown(low)} to {shown(high)})" if math.isfinite(low) else ""
            cells.append(shown(entry.point.get(name, math.nan)) + span)
        rows.append([rank, entry.team, *cells, "; ".join(entry.notes)])
    return ["rank", "team", *(LABELS[name] for name in scores), "notes"], rows


def _safe(text: str) -> str:
    """Escape text for Markdown and HTML, mentions and links included."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_{}[]()#!|~":
        text = text.replace(mark, "\\" + mark)
    return text.replace("@", "@\u200b").replace("://", ":\u200b//").replace("www.", "www\u200b.")


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    scores = {}
    for name in SCORES:
        values = row.pop(name), row.pop(f"{name}_low"), row.pop(f"{name}_high")
        scores[name] = dict(zip(("value", "low", "high"), values, strict=True))
        scores[name]["better"] = "lower" if name in LOWER_IS_BETTER else "higher"
    return {**row, "scores": scores}


def _plain(value: Any) -> Any:
    """Convert a value for JSON: missing and infinite numbers become null, numpy's numbers Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool):
        return value
    if value is pd.NA or not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
