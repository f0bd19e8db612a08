"""Paired comparison of all pairs of teams on several scores, by patient, and of repeated trainings.

In: a scored :class:`Board`. Out: a row per pair and score with interval and p values, adjusted for their number; and,
for teams with several seeds, a permutation test over their trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from keras_pneumo.evaluation.board.board import Board
from keras_pneumo.evaluation.board.differences import SWAP, Pair, has, pairs_of, swapped_difference
from keras_pneumo.evaluation.scoring.statistics import mcnemar, permutation_test

COMPARED = ("auroc", "auprc", "brier", "accuracy", "dice", "dice_positives")

PAIR_COLUMNS = ["first", "second", "score", "difference", "low", "high", "p", "p_holm", "p_other", "other_test"]


def compare_pairs(board: Board) -> pd.DataFrame:
    """Compare every pair of submissions on every score that both have.

    Returns:
        ``first``, ``second``, ``score``, ``difference`` (first minus second), ``low``, ``high`` (paired 95% interval by
        patient), ``p`` (of the test that the interval is the inverse of), ``p_holm`` (adjusted over all pairs of the
        same score), and a second test, ``other_test`` with ``p_other``: for AUROC, compared by DeLong clustered by
        patient, the swap by patient that all other scores are compared by; and for accuracy the exact McNemar test,
        which takes images as independent.
    """
    scores = [*COMPARED, *({board.headline} - set(COMPARED))]
    rows = []
    for score in scores:
        pairs = board.standings.pairs if score == board.headline else pairs_of(board.ordered, score)
        for pair in pairs:
            p_other, other_test = _second_test(pair, board)
            rows.append(
                {
                    "first": pair.first.team,
                    "second": pair.second.team,
                    "score": score,
                    "difference": pair.difference.value,
                    "low": pair.difference.interval.low,
                    "high": pair.difference.interval.high,
                    "p": pair.difference.p,
                    "p_holm": pair.p_holm,
                    "p_other": p_other,
                    "other_test": other_test,
                }
            )
    return pd.DataFrame(rows, columns=PAIR_COLUMNS)


def _second_test(pair: Pair, board: Board) -> tuple[float, str]:
    """p and name of a second test, where there is one."""
    score = pair.difference.score
    if score == "auroc" and pair.difference.test != SWAP:
        return swapped_difference(pair.first, pair.second, score).p, SWAP
    if score == "accuracy":
        right = [entry.decision == board.truth.pneumothorax for entry in (pair.first, pair.second)]
        return mcnemar(*right).p, "McNemar, exact, by image"
    return math.nan, ""


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
        if entry.info is not None and has(entry, score):
            by_team.setdefault(entry.info.team, []).append(entry.point[score])
    tests = []
    for first, second in combinations([team for team, values in by_team.items() if len(values) > 1], 2):
        a, b = np.array(by_team[first]), np.array(by_team[second])
        test = permutation_test(a, b)
        least = (2 if len(a) == len(b) else 1) / math.comb(len(a) + len(b), len(a))
        means = (float(a.mean()), float(b.mean()))
        tests.append(SeedTest(first, second, score, (len(a), len(b)), means, test.difference, test.p, least))
    return tests
