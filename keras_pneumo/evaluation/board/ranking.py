"""Paired comparison of all pairs of teams, by patient, and the ranks that follow from it.

In: a scored :class:`Board`. Out: a row per pair and score with interval and p values, adjusted for their number; a rank
per team, shared by teams without a significant difference; and, for teams with several seeds, a permutation test over
their trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import LOWER_IS_BETTER, Board, paired_difference
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.scoring.statistics import delong_test, holm, mcnemar, permutation_test

COMPARED = ("auroc", "auprc", "brier", "accuracy", "dice", "dice_positives")
ALPHA = 0.05

PAIR_COLUMNS = ["first", "second", "score", "difference", "low", "high", "p", "p_holm", "p_other", "other_test"]


def compare_pairs(board: Board) -> pd.DataFrame:
    """Compare every pair of submissions on every score that both have.

    Returns:
        ``first``, ``second``, ``score``, ``difference`` (first minus second), ``low``, ``high`` (paired 95% interval by
        patient), ``p`` (of the same bootstrap, so it agrees with the interval), ``p_holm`` (adjusted over all pairs of
        the same score), and a second test, ``other_test`` with ``p_other``: DeLong clustered by patient for AUROC,
        and for accuracy the exact McNemar test, which takes images as independent.
    """
    truth = board.truth
    rows = []
    for score in COMPARED:
        family = []
        for first, second in combinations([entry for entry in board.ordered if entry.kind == "submission"], 2):
            if not (_has(first, score) and _has(second, score)):
                continue
            gap = paired_difference(first, second, score)
            row = {"first": first.team, "second": second.team, "score": score, "difference": gap.value}
            row |= {
                "low": gap.interval.low,
                "high": gap.interval.high,
                "p": gap.p,
                "p_other": math.nan,
                "other_test": "",
            }
            if score == "auroc":
                assert first.probability is not None
                assert second.probability is not None
                test = delong_test(truth.pneumothorax, first.probability, second.probability, truth.patient_codes)
                row |= {"p_other": test.p, "other_test": "DeLong by patient"}
            elif score == "accuracy":
                right = [entry.decision == truth.pneumothorax for entry in (first, second)]
                row |= {"p_other": mcnemar(*right).p, "other_test": "McNemar, exact, by image"}
            family.append(row)
        if family:
            table = pd.DataFrame(family)
            rows.append(table.assign(p_holm=holm(table.p.to_list())))
    return pd.concat(rows, ignore_index=True)[PAIR_COLUMNS] if rows else pd.DataFrame(columns=PAIR_COLUMNS)


def shared_ranks(board: Board, pairs: pd.DataFrame) -> dict[str, int]:
    """Rank of each submission by the headline score: 1 plus the number of significantly better teams.

    A difference is significant when its Holm-adjusted p is under 0.05, so at most one board in twenty calls equal teams
    different. Teams with the same number of better teams share a rank. Teams without the score have no rank.
    """
    score = board.headline
    sign = -1 if score in LOWER_IS_BETTER else 1
    ranks = {entry.team: 1 for entry in board.teams if _has(entry, score)}
    for row in pairs[(pairs.score == score) & (pairs.p_holm < ALPHA)].to_dict("records"):
        ranks[row["second"] if sign * row["difference"] > 0 else row["first"]] += 1
    return ranks


@dataclass(frozen=True)
class SeedTest:
    """Two teams over their seeds: mean scores, difference, permutation p, and the smallest p that is possible."""

    first: str
    second: str
    score: str
    seeds: tuple[int, int]
    means: tuple[float, float]
    difference: float
    p: float
    least_p: float


def seed_tests(board: Board) -> list[SeedTest]:
    """Permutation tests of every two teams with at least two submissions each (one per seed).

    The patients' bootstrap takes each network as given. This takes the patients as given and permutes which team each
    training belongs to.
    """
    score = board.headline
    by_team: dict[str, list[float]] = {}
    for entry in board.teams:
        if entry.info is not None and _has(entry, score):
            by_team.setdefault(entry.info.team, []).append(entry.point[score])
    tests = []
    for first, second in combinations([team for team, values in by_team.items() if len(values) > 1], 2):
        a, b = np.array(by_team[first]), np.array(by_team[second])
        test = permutation_test(a, b)
        least = (2 if len(a) == len(b) else 1) / math.comb(len(a) + len(b), len(a))
        means = (float(a.mean()), float(b.mean()))
        tests.append(SeedTest(first, second, score, (len(a), len(b)), means, test.difference, test.p, least))
    return tests


def _has(entry: Entry, score: str) -> bool:
    return math.isfinite(entry.point.get(score, math.nan))
