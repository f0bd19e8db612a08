"""Writes the answer of a comparison over seeds: ``compare_frameworks.json`` and the page ``compare_frameworks.html``.

In: a :class:`~keras_pneumo.parity.seeds.study.FrameworkComparison`. Out: one json with every figure, and one offline
page: the verdict first, then each training's score, what seeds, frameworks and the last bit do beside each other, and
how it was computed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_pneumo import __version__
from keras_pneumo.evaluation.board.verdict import LABELS
from keras_pneumo.evaluation.report.charts import Bar, Series, interval_chart, line_chart
from keras_pneumo.evaluation.report.page import render_page
from keras_pneumo.parity.seeds.equivalence import SeededDifference, signed
from keras_pneumo.parity.seeds.study import FrameworkComparison, team_name
from keras_pneumo.storage.files import write_bytes, write_json

ANSWER, PAGE = "compare_frameworks.json", "compare_frameworks.html"

SHOWN = ("auroc", "auprc", "accuracy", "sensitivity", "specificity", "brier", "dice", "dice_positives")
"""Scores of the page's table, in this order; the json has all."""

TONES = {"equivalent": "good", "different": "bad", "undecided": "unclear"}


def write_answer(comparison: FrameworkComparison) -> Path:
    """Write json and page into the comparison's folder; return the page's path.

    Raises:
        PneumoError: a file cannot be written.
    """
    out = comparison.study.out
    write_json(out / ANSWER, as_json(comparison))
    page = render_page(
        "compare_frameworks.html",
        Path(__file__).parents[1] / "templates",
        comparison=comparison,
        study=comparison.study,
        experiment=comparison.study.experiment,
        labels=LABELS,
        verdicts=[
            (name, TONES[verdict.outcome], sentences_of(comparison, name))
            for name, verdict in comparison.verdicts.items()
        ],
        tone=TONES[comparison.verdicts[comparison.headline].outcome],
        trainings=_training_rows(comparison),
        differences=[(name, comparison.differences[name]) for name in SHOWN if name in comparison.differences],
        spreads={name: spread(comparison, name) for name in comparison.verdicts},
        controls={name: comparison.controls(name).to_dict("records") for name in comparison.verdicts},
        charts={
            name: (_seeds_chart(comparison, name), _difference_chart(comparison, name)) for name in comparison.verdicts
        },
        hours=comparison.scores.groupby("team")["wall_seconds"].sum().div(3600).to_dict(),
        number=number,
        signed=signed,
        team_name=team_name,
        synthetic=comparison.study.prepared.synthetic,
        version=__version__,
    )
    write_bytes(out / PAGE, page.encode())
    return out / PAGE


def sentences_of(comparison: FrameworkComparison, score: str) -> list[str]:
    """The verdict on a score in plain words, the headline first."""
    difference = comparison.differences[score]
    return comparison.verdicts[score].sentences(LABELS[score], difference, "Keras", "PyTorch")


def spread(comparison: FrameworkComparison, score: str) -> dict[str, float]:
    """The standard deviation over seeds within each framework, and of the difference."""
    own = {
        team: comparison.scores.loc[comparison.scores["team"] == team, score].to_numpy() for team in ("keras", "torch")
    }
    own["difference"] = comparison.differences[score].differences
    return {name: float(np.std(values, ddof=1)) if len(values) > 1 else math.nan for name, values in own.items()}


def number(value: float, digits: int = 4) -> str:
    """A score with its decimals; a dash where it does not exist."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def as_json(comparison: FrameworkComparison) -> dict[str, Any]:
    """The answer as it is written; a figure that does not exist is null."""
    study, truth = comparison.study, comparison.truth
    return {
        "format": 1,
        "verdict": " ".join(sentences_of(comparison, comparison.headline)),
        "headline": comparison.headline,
        "outcome": comparison.verdicts[comparison.headline].outcome,
        "experiment": study.experiment.name,
        "task": study.experiment.task,
        "margin": study.margin,
        "declared": comparison.declared,
        "seeds": study.seed_numbers,
        "test": {
            "images": len(truth.cases),
            "patients": truth.n_patients,
            "positives": int(truth.pneumothorax.sum()),
            "split_sha256": truth.split_sha256,
        },
        "scores": {name: _verdict_json(comparison, name) for name in comparison.verdicts},
        "differences": {name: _difference_json(difference) for name, difference in comparison.differences.items()},
        "trainings": [
            {name: _plain(value) for name, value in row.items()} for row in comparison.scores.to_dict("records")
        ],
        "frameworks": comparison.versions,
        "keras_pneumo": __version__,
    }


def _verdict_json(comparison: FrameworkComparison, score: str) -> dict[str, Any]:
    verdict = comparison.verdicts[score]
    return {
        "outcome": verdict.outcome,
        "sentences": sentences_of(comparison, score),
        "low": _plain(verdict.interval.low),
        "high": _plain(verdict.interval.high),
        "equivalence_low": _plain(verdict.equivalence_interval.low),
        "equivalence_high": _plain(verdict.equivalence_interval.high),
        "p_equivalence": verdict.p_equivalence,
        "p_different": verdict.p_different,
        "more_seeds": verdict.more_seeds,
        "more_patients": verdict.more_patients,
        "standard_deviation_over_seeds": {name: _plain(value) for name, value in spread(comparison, score).items()},
        "controls": comparison.controls(score).to_dict("records"),
    }


def _difference_json(difference: SeededDifference) -> dict[str, Any]:
    low, high = difference.interval()
    return {
        "value": difference.value,
        "low": _plain(low),
        "high": _plain(high),
        "by_seed": difference.differences.tolist(),
        "variance": {
            "seeds": _plain(difference.seed_variance),
            "patients_of_one_seed": _plain(difference.own_patients),
            "patients_of_all_seeds": difference.shared_patients,
        },
    }


def _plain(value: Any) -> Any:
    """A number as json has it: null where it is not finite."""
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _training_rows(comparison: FrameworkComparison) -> list[dict[str, Any]]:
    """A row for each seed: the score of each team's training, their difference, and the control's."""
    rows = []
    for seed in comparison.study.seed_numbers:
        own = comparison.scores[comparison.scores["seed"] == seed]
        of_team = {str(row["team"]): row for row in own.to_dict("records")}
        rows.append(
            {
                "seed": seed,
                "scores": {
                    name: {team: float(row[name]) for team, row in of_team.items()} for name in comparison.verdicts
                },
                "minutes": {team: float(row["wall_seconds"]) / 60 for team, row in of_team.items()},
            }
        )
    return rows


def _seeds_chart(comparison: FrameworkComparison, score: str) -> str:
    """The score of every training by seed."""
    series = []
    for colour, team in enumerate(("keras", "torch", "torch_last_bit")):
        own: pd.DataFrame = comparison.scores[comparison.scores["team"] == team]
        if len(own):
            x = own["seed"].to_numpy(float) + (colour - 1) * 0.1  # beside each other, not over each other
            apart = np.full(len(own), np.nan)  # breaks the line: seeds have no order
            x, y = (np.stack([values, apart], axis=1).ravel() for values in (x, own[score].to_numpy(float)))
            series.append(Series(team_name(team), x, y, colour, points=True))
    seeds = comparison.study.seed_numbers
    edges = (min(seeds) - 0.5, max(seeds) + 0.5)
    title = f"{LABELS[score]} of each training"
    return line_chart(series, "Seed", LABELS[score], title, edges, None, whole_x=True, height=280)


def _difference_chart(comparison: FrameworkComparison, score: str) -> str:
    """Each seed's difference, their mean with its interval, and the margin."""
    difference, margin = comparison.differences[score], comparison.study.margin
    verdict = comparison.verdicts[score]
    bars = [
        Bar(f"seed {seed}", value, math.nan, math.nan, 7, True)
        for seed, value in zip(comparison.study.seed_numbers, difference.differences, strict=True)
    ]
    bars += [
        Bar("mean, 95% interval", difference.value, *verdict.interval, 0),
        Bar("mean, 90% interval", difference.value, *verdict.equivalence_interval, 0),
        Bar("margin", 0.0, -margin, margin, 2),
    ]
    label = f"{LABELS[score]}, Keras minus PyTorch"
    return interval_chart(bars, label, f"Difference in {LABELS[score]}", 0.0)
