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

import numpy as np
import pandas as pd
from markupsafe import Markup

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.differences import LOWER_IS_BETTER
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.findings import Findings, analyse
from keras_pneumo.evaluation.board.subgroups import scores_by_source
from keras_pneumo.evaluation.board.verdict import LABELS, shown, shown_interval, shown_p, verdict
from keras_pneumo.evaluation.report.calibration_report import CalibrationReport
from keras_pneumo.evaluation.report.charts import (
    budget_figure,
    calibration_caption,
    calibration_figure,
    gap_figure,
    precision_figure,
    roc_figure,
    score_figure,
    training_figures,
)
from keras_pneumo.evaluation.report.error_gallery import error_groups
from keras_pneumo.evaluation.report.external_report import ExternalReport
from keras_pneumo.evaluation.report.history_report import HistoryReport, history_report
from keras_pneumo.evaluation.report.intended_use import intended_use
from keras_pneumo.evaluation.report.likeness_report import LikenessReport
from keras_pneumo.evaluation.report.mask_report import MaskFindings
from keras_pneumo.evaluation.report.page import render_page
from keras_pneumo.evaluation.report.pictures import OUTCOMES, SIZE_NAMES, ImageLoader, gallery
from keras_pneumo.evaluation.report.saliency_report import SaliencyReport
from keras_pneumo.evaluation.report.subgroup_report import SubgroupReport
from keras_pneumo.evaluation.scoring.masks import SIZES, size_of
from keras_pneumo.storage.files import write_bytes
from keras_pneumo.storage.tables import counted, one_line

MAIN_FACTS = (
    *("name", "experiment", "experiment.name", "experiment.task", "experiment.encoder", "experiment.image_size"),
    *("experiment.weights", "experiment.epochs", "experiment.seed", "trained_on", "training_images"),
    *("validation_images", "best_epoch", "training_seconds", "hardware", "synthetic", "classifiers", "segmenters"),
    *("probability_source", "threshold", "split_sha256", "comparable with PyTorch"),
)
"""Names in a record that a page shows at once; all others are in a list that opens."""


def write_run_report(
    path: Path,
    board: Board,
    log: pd.DataFrame | None = None,
    experiment: Mapping[str, Any] | None = None,
    image: ImageLoader | None = None,
    masks: MaskFindings | None = None,
    saliency: SaliencyReport | None = None,
    external: ExternalReport | None = None,
    subgroups: SubgroupReport | None = None,
    calibration: CalibrationReport | None = None,
    history: pd.DataFrame | None = None,
) -> Path:
    """Write the report of one run.

    Args:
        path: the HTML file.
        board: the run's submission and the metadata-only baselines, scored.
        log: a row per epoch (``epoch``, ``phase``, ``loss``, ``validation_loss``, ``validation_auroc``,
            ``learning_rate``, ...), or None.
        experiment: what was run, nested as in ``experiment.json``; shown as a table, and the page then says what the
            model may be used for.
        image: gives the radiograph of an image id (uint8, grey), for the pictures of errors.
        masks: the scores of a segmenter's masks, from :func:`mask_report.mask_findings`.
        saliency: the check of the heat maps, from :func:`.saliency_report.read_saliency_report`.
        external: of an external test set, from :func:`.external_report.external_report`.
        subgroups: the scores within subgroups, from :func:`.subgroup_report.subgroup_report`.
        calibration: before and after, from :func:`.calibration_report.calibration_report`.
        history: the validation predictions by epoch, from :func:`.history_report.read_history`.

    Raises:
        PneumoError: the file cannot be written.
    """
    return _write(
        path,
        board,
        f"Report of {board.teams[0].team}",
        image,
        use=intended_use(board, experiment, subgroups, external is not None) if experiment else [],
        training=training_figures(log) if log is not None and len(log) else [],
        history=None if history is None else history_report(history, image),
        facts=flat_facts(experiment or {}),
        main_facts=_main_facts(experiment or {}),
        masks=masks,
        saliency=saliency,
        external=external,
        subgroups=subgroups,
        calibration=calibration,
    )


def write_comparison_report(
    path: Path,
    board: Board,
    image: ImageLoader | None = None,
    findings: Findings | None = None,
    saliency: SaliencyReport | None = None,
    likeness: LikenessReport | None = None,
    subgroups: SubgroupReport | None = None,
    calibration: CalibrationReport | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of any number of submissions side by side; arguments as in :func:`write_run_report`.

    ``findings`` (see :func:`findings.analyse`) adds ranks, all pairs, seeds, the accuracy of the labels, fusion and
    the gallery; it is computed here when not given. ``likeness`` is a detector's check of its input, ``record`` says
    what the first submission's model learned from; with it the page says what that may be used for.
    """
    names = [team.team for team in board.teams]
    title = f"{names[0]} and {len(names) - 1} more, compared" if len(names) > 2 else " and ".join(names) + ", compared"
    return _write(
        path,
        board,
        title if len(names) > 1 else f"Report of {names[0]}",
        image,
        use=intended_use(board, record, subgroups) if record else [],
        findings=findings or analyse(board),
        saliency=saliency,
        likeness=likeness,
        subgroups=subgroups,
        calibration=calibration,
    )


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


def _main_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Those of a record's facts that a reader looks for first."""
    facts: dict[str, Any] = {}
    for name in MAIN_FACTS:
        value: Any = record
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping):
            facts[name.rpartition(".")[2]] = value
    return flat_facts(facts)


def _write(
    path: Path,
    board: Board,
    title: str,
    image: ImageLoader | None,
    use: list[str],
    training: list[dict[str, Any]] | None = None,
    history: HistoryReport | None = None,
    facts: list[tuple[str, str]] | None = None,
    main_facts: list[tuple[str, str]] | None = None,
    findings: Findings | None = None,
    masks: MaskFindings | None = None,
    saliency: SaliencyReport | None = None,
    likeness: LikenessReport | None = None,
    external: ExternalReport | None = None,
    subgroups: SubgroupReport | None = None,
    calibration: CalibrationReport | None = None,
) -> Path:
    result = verdict(board)
    if external is not None:
        result = replace(result, warnings=[*external.cautions, *result.warnings])
    teams = board.teams
    script = Path(__file__).with_name("templates").joinpath("gallery.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    single = teams[0] if len(teams) == 1 else None
    page = render_page(
        "report.html",
        title=title,
        verdict=result,
        board=board,
        truth=board.truth,
        team=single,
        model=teams[0].team if teams else "",
        use=use,
        tiles=tiles(single, board) if single else [],
        columns=columns(board),
        rows=board_rows(board, findings),
        findings=findings,
        pairs=pair_rows(board, findings) if findings else [],
        agreement=agreement_rows(board),
        dice_rows=dice_rows(board) if any(team.masks is not None for team in teams) else [],
        dice_parts=DICE_PARTS,
        source_columns=source_columns(board),
        source_rows=source_rows(board) if subgroups is None else [],
        subgroups=subgroups,
        calibration=calibration,
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
                (calibration_caption(board), calibration_figure(board)),
            )
            if svg
        ],
        training=[{"caption": figure["caption"], "svg": Markup(figure["svg"])} for figure in training or []],
        history=history,
        confusions=confusions(board),
        errors=error_groups(single, board, image) if single else [],
        masks=masks,
        saliency=saliency,
        likeness=likeness,
        facts=facts or [],
        main_facts=main_facts or [],
        labels=LABELS,
        versions=_versions(),
    )
    write_bytes(path, page.encode())
    return path


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
