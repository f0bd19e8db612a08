"""The difference of any two entries of a board, and the standings that verdict, leads and ranks are all read from.

In: scored entries. Out: a :class:`PairedDifference` of two entries with interval and p by patient; the pairs of all
submissions with p values adjusted for their number; and :class:`Standings`, which say once which entry is better than
which in the headline score, so that no two parts of a report can contradict each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.scoring.statistics import (
    LEVEL,
    Difference,
    Interval,
    delong_difference,
    holm,
    swap_difference,
)

ALPHA = 0.05
"""Two teams are different if their p, adjusted for the number of pairs, is at most this."""

LOWER_IS_BETTER = frozenset({"brier", "calibration_error", "positives_missed"})
"""Scores where less is better; every other score on the board is better when higher."""

SWAP, DELONG = "swap by patient", "DeLong by patient"
"""The two tests of a difference: :func:`.statistics.swap_difference` and :func:`.statistics.delong_difference`."""


@dataclass(frozen=True)
class PairedDifference:
    """One entry's score minus another's on the same images, with its paired 95% interval by patient."""

    score: str
    value: float
    interval: Interval
    p: float
    """Two-sided p of no difference, by the test that the interval is the inverse of; unadjusted."""
    test: str

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def first_is_better(self) -> bool:
        """Whether the difference is in favour of the first entry, however small."""
        return self.value < 0 if self.score in LOWER_IS_BETTER else self.value > 0


def paired_difference(
    first: Entry, second: Entry, score: str, level: float = LEVEL, null: float = 0.0
) -> PairedDifference:
    """The paired difference of one score, first minus second, with its interval and p by patient.

    AUROC is compared by DeLong's test clustered by patient; every other score, and an AUROC that has no variance, by
    swapping the two entries' answers on random halves of the patients.

    Args:
        first: an entry of a board.
        second: another entry of the same board.
        score: the score's name.
        level: how often the interval is to hold the true difference; 0.9 for two one-sided tests of equivalence.
        null: the difference that p is about.

    Returns:
        NaN where either entry has no such score, or it does not exist without some patient.
    """
    difference = None
    if score == "auroc" and first.ranks is not None and second.ranks is not None:
        difference = delong_difference(first.ranks, second.ranks, level, null)
    if difference is not None and np.isfinite(difference.p):
        return _within_range(score, difference, DELONG)
    return swapped_difference(first, second, score, level, null)


def swapped_difference(
    first: Entry, second: Entry, score: str, level: float = LEVEL, null: float = 0.0
) -> PairedDifference:
    """The difference by swapping the answers of two entries, for any score; see :func:`paired_difference`."""
    value = first.point.get(score, np.nan) - second.point.get(score, np.nan)
    if score not in first.halves or score not in second.halves:
        return PairedDifference(score, float("nan"), Interval(float("nan"), float("nan")), float("nan"), SWAP)
    sums = first.halves[score].sums - second.halves[score].sums
    return _within_range(score, swap_difference(value, sums, first.halves[score].shares, level, null), SWAP, value)


def _within_range(score: str, difference: Difference, test: str, value: float | None = None) -> PairedDifference:
    """The difference with its bounds in -1..1, since every score of the board is from 0 to 1."""
    low, high = np.clip(difference.interval, -1, 1)
    value = difference.value if value is None else value
    return PairedDifference(score, float(value), Interval(float(low), float(high)), difference.p, test)


@dataclass(frozen=True)
class Pair:
    """Two entries compared in one score; ``p_holm`` is p adjusted for all pairs of submissions in this score."""

    first: Entry
    second: Entry
    difference: PairedDifference
    p_holm: float

    @property
    def different(self) -> bool:
        """Whether the two are different after the adjustment: what verdict, leads and ranks all go by."""
        return self.p_holm <= ALPHA

    @property
    def better(self) -> Entry:
        """The entry with the better score, whether the difference is significant or not."""
        return self.first if self.difference.first_is_better else self.second


def pairs_of(entries: list[Entry], score: str) -> list[Pair]:
    """All pairs of the submissions that have a score, in the order given, with p adjusted by Holm's method."""
    teams = [entry for entry in entries if entry.kind == "submission" and has(entry, score)]
    differences = [(first, second, paired_difference(first, second, score)) for first, second in combinations(teams, 2)]
    adjusted = holm([difference.p for _, _, difference in differences])
    return [Pair(*each, float(p)) for each, p in zip(differences, adjusted, strict=True)]


def has(entry: Entry, score: str) -> bool:
    """Whether the entry has this score, and the images at hand define it."""
    return bool(np.isfinite(entry.point.get(score, np.nan)))


@dataclass(frozen=True)
class Standings:
    """Who is better than whom in the headline score; verdict, table of leads and ranks only read this."""

    score: str
    pairs: list[Pair]
    """Every two submissions, p adjusted for the number of pairs, the better submission first."""
    baselines: list[Pair]
    """Every submission against every metadata-only baseline, not adjusted: to beat all baselines needs every one."""
    ranks: dict[str, int]
    """Rank of each submission: 1 plus the number of submissions that are better and different."""

    @property
    def leads(self) -> list[Pair]:
        """The first submission against every other entry."""
        everything = [*self.pairs, *self.baselines]
        return [pair for pair in everything if pair.first is everything[0].first]

    def against_baselines(self, team: Entry) -> list[Pair]:
        """One submission against every metadata-only baseline."""
        return [pair for pair in self.baselines if pair.first is team]

    def beats_baselines(self, team: Entry) -> bool:
        """Whether a submission is better than every metadata-only baseline, and different from it."""
        pairs = self.against_baselines(team)
        return bool(pairs) and all(pair.different and pair.better is team for pair in pairs)


def standings(ordered: list[Entry], score: str) -> Standings:
    """Compare the entries of a board in its headline score.

    Args:
        ordered: submissions from best to worst, then the metadata-only baselines.
        score: the headline score.
    """
    pairs = pairs_of(ordered, score)
    teams = [entry for entry in ordered if entry.kind == "submission" and has(entry, score)]
    ranks = {team.team: 1 for team in teams}
    for pair in pairs:
        if pair.different:
            worse = pair.second if pair.better is pair.first else pair.first
            ranks[worse.team] += 1
    baselines = []
    for team in teams:
        for entry in ordered:
            if entry.kind == "baseline" and has(entry, score):
                difference = paired_difference(team, entry, score)
                baselines.append(Pair(team, entry, difference, difference.p))
    return Standings(score, pairs, baselines, ranks)
