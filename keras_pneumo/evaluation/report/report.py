"""Reports as one offline HTML file: verdict first, every score with its interval and its number of images.

In: a :class:`Board`, and for a single run its training log, its experiment and a way to get at the radiographs. Out:
``report.html``, with pictures inside, no outside resource, and all text from files escaped by jinja2. It never shows
patient ids.
"""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.findings import Findings, analyse
from keras_pneumo.evaluation.board.subgroups import scores_by_source
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_interval, shown_p, verdict
from keras_pneumo.evaluation.report.charts import (
    budget_figure,
    calibration_figure,
    gap_figure,
    precision_figure,
    roc_figure,
    score_figure,
    training_figures,
)
from keras_pneumo.evaluation.report.external_report import ExternalReport
from keras_pneumo.evaluation.report.likeness_report import LikenessReport
from keras_pneumo.evaluation.report.mask_report import MaskFindings
from keras_pneumo.evaluation.report.pictures import OUTCOMES, SIZE_NAMES, ImageLoader, data_uri, gallery, outline
from keras_pneumo.evaluation.report.saliency_report import SaliencyReport
from keras_pneumo.evaluation.scoring.masks import SIZES, size_of
from keras_pneumo.storage.files import write_bytes
from keras_pneumo.storage.tables import counted, one_line

MISTAKES = 6
"""How many of each kind of mistake are shown."""


def write_run_report(
    path: Path,
    board: Board,
    log: pd.DataFrame | None = None,
    experiment: Mapping[str, Any] | None = None,
    image: ImageLoader | None = None,
    masks: MaskFindings | None = None,
    saliency: SaliencyReport | None = None,
    external: ExternalReport | None = None,
) -> Path:
    """Write the report of one run.

    Args:
        path: the HTML file.
        board: the run's submission and the metadata-only baselines, scored.
        log: a row per epoch (``epoch``, ``phase``, ``loss``, ``validation_loss``, ``validation_auroc``,
            ``learning_rate``, ...), or None.
        experiment: what was run, nested as in ``experiment.json``; shown as a table.
        image: gives the radiograph of an image id (uint8, grey), for the pictures of mistakes.
        masks: the scores of a segmenter's masks, from :func:`mask_report.mask_findings`.
        saliency: the check of the heat maps, from :func:`.saliency_report.read_saliency_report`.
        external: of an external test set, from :func:`.external_report.external_report`.

    Raises:
        PneumoError: the file cannot be written.
    """
    team = board.teams[0]
    title = f"Report of {team.team}"
    figures = training_figures(log) if log is not None and len(log) else []
    facts = flat_facts(experiment or {})
    return _write(
        path, board, title, image, training=figures, facts=facts, masks=masks, saliency=saliency, external=external
    )


def write_comparison_report(
    path: Path,
    board: Board,
    image: ImageLoader | None = None,
    findings: Findings | None = None,
    saliency: SaliencyReport | None = None,
    likeness: LikenessReport | None = None,
) -> Path:
    """Write the report of any number of submissions side by side; arguments as in :func:`write_run_report`.

    ``findings`` (see :func:`findings.analyse`) adds ranks, all pairs, seeds, the accuracy of the labels, fusion and
    the gallery; it is computed here when not given. ``likeness`` is a detector's check of its input.
    """
    names = [team.team for team in board.teams]
    title = f"{names[0]} and {len(names) - 1} more, compared" if len(names) > 2 else " and ".join(names) + ", compared"
    title = title if len(names) > 1 else f"Report of {names[0]}"
    return _write(path, board, title, image, findings=findings or analyse(board), saliency=saliency, likeness=likeness)


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


def page_templates(*folders: Path) -> jinja2.Environment:
    """The templates of pages, in ``folders`` and then in the report's, whose style all pages share."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _write(
    path: Path,
    board: Board,
    title: str,
    image: ImageLoader | None,
    training: list[dict[str, Any]] | None = None,
    facts: list[tuple[str, str]] | None = None,
    findings: Findings | None = None,
    masks: MaskFindings | None = None,
    saliency: SaliencyReport | None = None,
    likeness: LikenessReport | None = None,
    external: ExternalReport | None = None,
) -> Path:
    result = verdict(board)
    if external is not None:
        result = replace(result, warnings=[*external.cautions, *result.warnings])
    templates = page_templates()
    teams = board.teams
    script = Path(__file__).with_name("templates").joinpath("gallery.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    single = teams[0] if len(teams) == 1 else None
    page = templates.get_template("report.html").render(
        title=title,
        verdict=result,
        board=board,
        truth=board.truth,
        team=single,
        tiles=tiles(single, board) if single else [],
        columns=columns(board),
        rows=board_rows(board, findings),
        findings=findings,
        pairs=pair_rows(board, findings) if findings else [],
        agreement=agreement_rows(board),
        dice_rows=dice_rows(board) if any(team.masks is not None for team in teams) else [],
        dice_parts=DICE_PARTS,
        source_columns=source_columns(board),
        source_rows=source_rows(board) if external is None else [],
        external=external,
        size_counts=size_counts(board),
        ceiling_rows=findings.ceiling.teams.to_dict("records") if findings and findings.ceiling else [],
        budget=Markup(budget_figure(board)),
        cards=gallery(board, image) if findings else [],
        outcomes=OUTCOMES,
        sizes=SIZE_NAMES,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        shown=shown,
        differences=leads(board),
        score_chart=Markup(score_figure(board)),
        gap_chart=Markup(gap_figure(board)),
        curves=[
            {"caption": caption, "svg": Markup(svg)}
            for caption, svg in (
                ("ROC curve. The dot is the operating point.", roc_figure(board)),
                ("Precision and recall. The dashed line is guessing: the share of positives.", precision_figure(board)),
                (
                    "Calibration, with 95% Wilson intervals of the observed share.",
                    calibration_figure(board),
                ),
            )
            if svg
        ],
        training=[{"caption": figure["caption"], "svg": Markup(figure["svg"])} for figure in training or []],
        confusions=confusions(board),
        mistakes=_mistakes(single, board, image) if single and not masks else [],
        masks=masks,
        saliency=saliency,
        likeness=likeness,
        outlines=_outlines(single, board, image, masks) if single and masks else [],
        facts=facts or [],
        labels=LABELS,
        versions=_versions(),
    )
    write_bytes(path, page.encode())
    return path


def _mistakes(team: Entry, board: Board, image: ImageLoader | None) -> list[dict[str, Any]]:
    """The most confident errors: positives with the lowest probability, negatives with the highest."""
    truth = board.truth
    if team.probability is not None:
        confidence = team.probability
    elif team.masks is not None:
        confidence = team.masks.predicted_pixels.to_numpy(float)
    else:
        return []
    groups = []
    for title, wrong, order in (
        ("Missed", truth.pneumothorax & ~team.decision, confidence),
        ("False alarms", ~truth.pneumothorax & team.decision, -confidence),
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
    runs = team.submission.runs if team.submission else None
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
    versions = [f"Python {platform.python_version()}"]
    for package in ("keras-pneumo", "numpy", "scipy", "pandas", "pycocotools"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(versions)


_PROBABILITY_COLUMNS = ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "brier")
DICE_PARTS = (
    *("dice", "negatives_left_empty", "positives_missed", "dice_positives", "dice_found"),
    *("dice_small", "dice_medium", "dice_large", "iou_positives"),
)
_MASK_COLUMNS = ("dice", "dice_positives", "negatives_left_empty", "positives_missed")


def tiles(team: Entry, board: Board) -> list[dict[str, str]]:
    """The scores of a single team, each with a value to compare it with."""
    positive = board.truth.pneumothorax
    prevalence = float(positive.mean())
    notes = {
        "auroc": "guessing: 0.500",
        "auprc": f"guessing: {shown(prevalence)}",
        "accuracy": f"majority class: {shown(max(prevalence, 1 - prevalence))}",
        "sensitivity": f"at its threshold; {counted(int(positive.sum()), 'positive')}",
        "specificity": f"at its threshold; {counted(int((~positive).sum()), 'negative')}",
        "brier": f"predicting the prevalence: {shown(prevalence * (1 - prevalence))}; lower is better",
        "calibration_error": "lower is better",
        "dice": f"empty masks: {shown(1 - prevalence)}",
        "dice_positives": f"{counted(int(positive.sum()), 'positive')}; a missed one counts 0",
        "negatives_left_empty": f"{counted(int((~positive).sum()), 'negative')}",
        "positives_missed": "lower is better",
        "specificity_at_common": f"at sensitivity {board.common_sensitivity:g}",
    }
    return [
        {
            "label": LABELS[name],
            "value": shown(team.point[name]),
            "interval": shown_interval(team.intervals[name]),
            "note": note,
        }
        for name, note in notes.items()
        if name in team.point
    ]


def columns(board: Board) -> list[str]:
    """The scores that the board shows: those that any team has, and AUROC, which every baseline has."""
    probabilities = [n for n in _PROBABILITY_COLUMNS if n == "auroc" or any(n in team.point for team in board.teams)]
    return probabilities + [n for n in _MASK_COLUMNS if any(n in team.point for team in board.teams)]


def board_rows(board: Board, findings: Findings | None) -> list[dict[str, Any]]:
    """The board, best first; the best value of each score is marked."""
    names = columns(board)
    best = {}
    for name in names:
        values = [team.point[name] for team in board.teams if np.isfinite(team.point.get(name, np.nan))]
        if values:
            best[name] = min(values) if name in LOWER_IS_BETTER else max(values)
    rows = []
    for entry in board.ordered:
        cells = []
        for name in names:
            if name not in entry.point:
                cells.append({"value": "–", "interval": "", "best": False})
                continue
            low, high = entry.intervals[name]
            span = f"{shown(low)} to {shown(high)}" if np.isfinite(low) else ""
            top = entry.kind == "submission" and len(board.teams) > 1 and entry.point[name] == best.get(name)
            cells.append({"value": shown(entry.point[name]), "interval": span, "best": top})
        rank = (
            findings.ranks.get(entry.team) if findings and entry.kind == "submission" and len(board.teams) > 1 else None
        )
        rows.append({"entry": entry, "cells": cells, "rank": rank})
    return rows


def leads(board: Board) -> list[dict[str, str | bool]]:
    """The lead of the best submission over every other entry, in the headline score."""
    rows: list[dict[str, str | bool]] = []
    for lead in board.standings.leads:
        gap = lead.difference
        rows.append(
            {
                "other": lead.second.team,
                "value": shown(gap.value),
                "interval": shown_interval(gap.interval),
                "p": shown_p(lead.p_holm),
                "better": lead.different and lead.better is lead.first,
                "worse": lead.different and lead.better is not lead.first,
            }
        )
    return rows


def confusions(board: Board) -> list[dict[str, Any]]:
    """The confusion matrix of each team, and the source of its threshold."""
    matrices = []
    for team in board.teams:
        threshold = "" if team.threshold is None else f"{team.threshold:.3g}, "
        matrices.append(
            {
                "team": team.team,
                "counts": team.confusion(board.truth.pneumothorax),
                "threshold": f"Threshold {threshold}{team.threshold_source}"
                if threshold
                else f"Positive where {team.threshold_source}",
            }
        )
    return matrices


def dice_rows(board: Board) -> list[dict[str, Any]]:
    """The parts of the Dice score, with intervals, for every entry with masks."""
    rows = []
    for entry in board.ordered:
        if entry.masks is None:
            continue
        cells = []
        for name in DICE_PARTS:
            low, high = entry.intervals[name]
            cells.append((shown(entry.point[name]), f"{shown(low)} to {shown(high)}" if np.isfinite(low) else ""))
        rows.append({"team": entry.team, "kind": entry.kind, "cells": cells})
    return rows


_SOURCE_COLUMNS = ("auroc", "sensitivity", "specificity", "dice", "dice_positives")


def source_columns(board: Board) -> list[str]:
    """The scores that are given by source: those of these that any team has."""
    return [name for name in _SOURCE_COLUMNS if any(name in team.point for team in board.teams)]


def source_rows(board: Board) -> list[dict[str, Any]]:
    """A row per source and team: its images, and the team's scores on them; empty where there is only one source."""
    rows = []
    for part in scores_by_source(board):
        for team in part.entries:
            cells = []
            for name in source_columns(board):
                value = team.point.get(name, np.nan)
                low, high = team.intervals.get(name, (np.nan, np.nan))
                span = f"{shown(low)} to {shown(high)}" if np.isfinite(value) and np.isfinite(low) else ""
                cells.append((shown(value), span))
            rows.append(
                {
                    "source": part.name,
                    "team": team.team,
                    "images": f"{part.images:,}",
                    "patients": f"{part.truth.n_patients:,}",
                    "positives": f"{part.positives:,}",
                    "cells": cells,
                }
            )
    return rows


def size_counts(board: Board) -> dict[str, int]:
    """How many true masks are small, medium and large; empty where the truth has no masks."""
    if board.truth.areas is None:
        return {}
    sizes = size_of(board.truth.areas)
    return {name: int(np.sum(sizes == name)) for name in SIZES}


def pair_rows(board: Board, findings: Findings) -> list[dict[str, Any]]:
    """One row for each pair of teams and score."""
    return [
        {
            "first": pair["first"],
            "second": pair["second"],
            "score": LABELS[pair["score"]],
            "headline": pair["score"] == board.headline,
            "difference": shown(pair["difference"]),
            "interval": shown_interval((pair["low"], pair["high"])),
            "p": shown_p(pair["p"]),
            "p_holm": shown_p(pair["p_holm"]),
            "p_other": shown_p(pair["p_other"]),
            "other_test": pair["other_test"],
        }
        for pair in findings.pairs.to_dict("records")
    ]


def agreement_rows(board: Board) -> list[dict[str, Any]]:
    """Scores by probability beside scores by mask, and how often they disagree, for teams with both."""
    rows = []
    for team in board.teams:
        if team.contradictions is None:
            continue
        cells = []
        for name in ("accuracy", "sensitivity", "specificity"):
            cells += [shown(team.point[name]), shown(team.point[f"mask_{name}"])]
        rows.append({"team": team.team, "cells": cells + [f"{number:,}" for number in team.contradictions]})
    return rows
