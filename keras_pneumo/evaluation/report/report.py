"""The page that a person reads: one offline HTML file, verdict first, every figure with its interval and its n.

In: a :class:`Board`, and for a single run its training log, its experiment and a way to get at the radiographs. Out:
``report.html``, with pictures inside, no outside resource, every foreign word escaped by jinja2. Patient ids are never
put on it.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.findings import Findings, gather
from keras_pneumo.evaluation.board.teams import Entry
from keras_pneumo.evaluation.board.verdict import LABELS, shown, verdict
from keras_pneumo.evaluation.report.figures import (
    budget_figure,
    calibration_figure,
    gap_figure,
    precision_figure,
    roc_figure,
    score_figure,
    training_figures,
)
from keras_pneumo.evaluation.report.gallery import OUTCOMES, SIZES, gallery
from keras_pneumo.evaluation.report.mask_report import MaskFindings
from keras_pneumo.evaluation.report.pictures import ImageLoader, data_uri, outline
from keras_pneumo.evaluation.report.saliency_report import Where
from keras_pneumo.evaluation.report.tables import (
    DICE_PARTS,
    board_rows,
    columns,
    confusions,
    dice_rows,
    joint_rows,
    leads,
    pair_rows,
    size_counts,
    tiles,
)
from keras_pneumo.storage.files import write_bytes
from keras_pneumo.storage.tables import one_line

MISTAKES = 6
"""How many of each kind of mistake are shown."""


def write_run_report(
    path: Path,
    board: Board,
    log: pd.DataFrame | None = None,
    experiment: Mapping[str, Any] | None = None,
    image: ImageLoader | None = None,
    masks: MaskFindings | None = None,
    where: Where | None = None,
) -> Path:
    """Write the report of one run.

    Args:
        path: the HTML file.
        board: the run's submission and the no-pixel answers, scored.
        log: a row per epoch (``epoch``, ``phase``, ``loss``, ``validation_loss``, ``validation_auroc``,
            ``learning_rate``, ...), or None.
        experiment: what was run, nested as in ``experiment.json``; shown as a table.
        image: gives the radiograph of an image id (uint8, grey), for the pictures of mistakes.
        masks: what :func:`mask_report.mask_findings` found of a segmenter's masks.
        where: what :func:`where.read_where` read of where the network looks.

    Raises:
        PneumoError: the file cannot be written.
    """
    team = board.teams[0]
    title = f"{team.team}: what it is worth"
    figures = training_figures(log) if log is not None and len(log) else []
    facts = flat_facts(experiment or {})
    return _write(path, board, title, image, training=figures, facts=facts, masks=masks, where=where)


def write_comparison_report(
    path: Path,
    board: Board,
    image: ImageLoader | None = None,
    findings: Findings | None = None,
    where: Where | None = None,
) -> Path:
    """Write the report of any number of submissions side by side; arguments as in :func:`write_run_report`.

    ``findings`` (see :func:`findings.gather`) adds ranks, every pair, seeds, the labels' ceiling, fusion and the
    gallery; they are gathered here when not given.
    """
    names = [team.team for team in board.teams]
    title = f"{names[0]} and {len(names) - 1} more, compared" if len(names) > 2 else " and ".join(names) + ", compared"
    title = title if len(names) > 1 else f"{names[0]}: what it is worth"
    return _write(path, board, title, image, findings=findings or gather(board), where=where)


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as ``(name, text)`` lines: names joined by a dot, long lists counted instead of listed."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += flat_facts(value, f"{prefix}{key} · ")
        elif isinstance(value, list | tuple) and len(value) > 12:
            lines.append((name, f"{len(value):,} entries"))
        elif isinstance(value, list | tuple):
            lines.append((name, one_line(", ".join(map(str, value)), 400) or "–"))
        else:
            lines.append((name, "–" if value is None or value == "" else one_line(str(value), 400)))
    return lines


def _write(
    path: Path,
    board: Board,
    title: str,
    image: ImageLoader | None,
    training: list[dict[str, Any]] | None = None,
    facts: list[tuple[str, str]] | None = None,
    findings: Findings | None = None,
    masks: MaskFindings | None = None,
    where: Where | None = None,
) -> Path:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    teams = board.teams
    script = Path(__file__).with_name("templates").joinpath("gallery.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    single = teams[0] if len(teams) == 1 else None
    page = templates.get_template("report.html").render(
        title=title,
        verdict=verdict(board),
        board=board,
        truth=board.truth,
        team=single,
        tiles=tiles(single, board) if single else [],
        columns=columns(board),
        rows=board_rows(board, findings),
        findings=findings,
        pairs=pair_rows(board, findings) if findings else [],
        joint=joint_rows(board),
        dice_rows=dice_rows(board) if any(team.masks is not None for team in teams) else [],
        dice_parts=DICE_PARTS,
        size_counts=size_counts(board),
        ceiling_rows=findings.ceiling.teams.to_dict("records") if findings and findings.ceiling else [],
        budget=Markup(budget_figure(board)),
        cards=gallery(board, image) if findings else [],
        outcomes=OUTCOMES,
        sizes=SIZES,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        shown=shown,
        differences=leads(board),
        score_chart=Markup(score_figure(board)),
        gap_chart=Markup(gap_figure(board)),
        curves=[
            {"caption": caption, "svg": Markup(svg)}
            for caption, svg in (
                ("ROC: sensitivity bought with false alarms. The dot is the operating point.", roc_figure(board)),
                ("Precision and recall. Guessing is the level of the positives’ share.", precision_figure(board)),
                ("Calibration: promised against observed, with 95% Wilson intervals.", calibration_figure(board)),
            )
            if svg
        ],
        training=[{"caption": one["caption"], "svg": Markup(one["svg"])} for one in training or []],
        confusions=confusions(board),
        mistakes=_mistakes(single, board, image) if single and not masks else [],
        masks=masks,
        where=where,
        outlines=_outlines(single, board, image, masks) if single and masks else [],
        facts=facts or [],
        labels=LABELS,
        versions=_versions(),
    )
    write_bytes(path, page.encode())
    return path


def _mistakes(team: Entry, board: Board, image: ImageLoader | None) -> list[dict[str, Any]]:
    """The surest wrong answers: positives with the lowest probability, negatives with the highest."""
    truth = board.truth
    if team.probability is not None:
        sureness = team.probability
    elif team.masks is not None:
        sureness = team.masks.predicted_pixels.to_numpy(float)
    else:
        return []
    groups = []
    for title, wrong, order in (
        ("Missed", truth.pneumothorax & ~team.decision, sureness),
        ("False alarms", ~truth.pneumothorax & team.decision, -sureness),
    ):
        chosen = np.flatnonzero(wrong)
        chosen = chosen[np.argsort(order[chosen], kind="stable")][:MISTAKES]
        cards = [_card(int(index), team, board, image) for index in chosen]
        groups.append({"title": title, "count": int(wrong.sum()), "cards": cards})
    return groups


def _outlines(team: Entry, board: Board, image: ImageLoader | None, masks: MaskFindings) -> list[dict[str, Any]]:
    """The positives with the lowest Dice, and the negatives with the largest masks."""
    return [
        {"title": title, "count": count, "cards": [_card(index, team, board, image) for index in chosen]}
        for title, count, chosen in (
            (f"The worst {len(masks.worst)} of the positives", masks.worst_of, masks.worst),
            ("False alarms", masks.alarms_of, masks.alarms),
        )
    ]


def _card(index: int, team: Entry, board: Board, image: ImageLoader | None) -> dict[str, Any]:
    truth = board.truth
    image_id = str(truth.cases.image_id[index])
    runs = team.answers.runs if team.answers else None
    return {
        "image_id": image_id,
        "picture": data_uri(image(image_id)) if image else "",
        "truth": outline(truth.runs[index]) if truth.runs is not None else "",
        "prediction": outline(runs[index]) if runs is not None else "",
        "probability": "" if team.probability is None else shown(float(team.probability[index])),
        "dice": "" if team.masks is None else shown(float(team.masks.dice[index])),
        "true_pixels": int(truth.areas[index]) if truth.areas is not None else 0,
    }


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in ("keras-pneumo", "numpy", "scipy", "pandas", "pycocotools"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
