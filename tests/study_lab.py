"""Simulated test sets of clustered patients with teams of known skill: what intervals and tests promise, counted.

The truth of every score is known, so one can count how often an interval holds it, and how often equally good teams
are called different. ``python tests/study_lab.py equal`` (``single``, ``difference``, ``seeds``) prints what
docs/referee.md states.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special, stats

from keras_pneumo.evaluation.board.board import Board, score_entries
from keras_pneumo.evaluation.board.differences import paired_difference, pairs_of, swapped_difference
from keras_pneumo.evaluation.board.entries import Entry, entry_sums, with_halves
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.scoring.scores import point_scores, replicate_scores, sum_by_patient
from keras_pneumo.evaluation.scoring.statistics import (
    Interval,
    bca_interval,
    exact_interval,
    holm,
    leave_one_out,
    random_halves,
    resample_patients,
)
from keras_pneumo.parity.seeds.equivalence import equivalence_verdict, seeded_difference

EQUAL_SCORES = ("auroc", "dice", "accuracy", "dice_positives")
OUTLINED_FROM = 0.7
"""A team draws a mask where its score, before it is made a probability, is over this."""


def study(rng, skills, n, ill=0.3):
    """``n`` patients of one to four images, ill alike within a patient, scores correlated within a patient."""
    patients = np.repeat(np.arange(n), rng.integers(1, 5, n))
    truth = (rng.random(n) < ill)[patients] ^ (rng.random(len(patients)) < ill / 3)
    shared = rng.normal(size=n)[patients]
    probabilities = []
    for skill in skills:
        noise = 0.6 * shared + 0.8 * rng.normal(size=len(patients))  # variance 1, correlation 0.36 within a patient
        probabilities.append(special.ndtr(skill * truth + noise))
    return truth, patients, probabilities


def masks_of(rng, truth, easy, probability):
    """Masks where the team says yes: 0 for a missed positive, else a Dice that depends on patient, image and team.

    ``easy`` is how easy each image's patient is, the same for all teams: shape (images,), of variance 1.
    """
    outlined = probability > special.ndtr(OUTLINED_FROM)
    overlap = special.expit(1.2 + 0.8 * easy + 0.9 * rng.normal(size=len(truth)))
    dice = np.where(truth, np.where(outlined, overlap, 0.0), np.where(outlined, 0.0, 1.0))
    pixels = {"true_pixels": np.where(truth, 9000, 0), "predicted_pixels": np.where(outlined, 8000, 0)}
    return pd.DataFrame({**pixels, "dice": dice, "iou": dice / (2 - dice)})


def teams_of(rng, skills, n, ill=0.3):
    """The truth of one study and its teams' entries, not scored yet."""
    truth, patients, probabilities = study(rng, skills, n, ill)
    easy = rng.normal(size=n)[patients]
    images = [f"i{number}" for number in range(len(truth))]
    cases = pd.DataFrame({"image_id": images, "pneumothorax": truth.astype(int), "patient_id": patients})
    entries = []
    for number, probability in enumerate(probabilities):
        decision = probability >= special.ndtr(OUTLINED_FROM)
        masks = masks_of(rng, truth, easy, probability)
        name = f"team {number}"
        entries.append(Entry(name, name, "submission", None, "", probability, decision, 0.5, "", masks, None, []))
    return Truth(cases, cases[:0], "test", None, None, "table"), entries


def entries_of(rng, skills, n, ill=0.3, halves=1000):
    """The teams of one study as a board has them, with what their differences need; without single intervals."""
    truth, entries = teams_of(rng, skills, n, ill)
    sums = [entry_sums(entry, truth, 0.8) for entry in entries]
    entries = [replace(entry, point=point_scores(table)) for entry, table in zip(entries, sums, strict=True)]
    left_out = replicate_scores(sums, leave_one_out(n))
    return with_halves(entries, sums, left_out, truth, random_halves(n, halves, int(rng.integers(2**31))))


def board_of_study(rng, skills, n, baselines=0, headline="", resamples=200):
    """The board of a study whose last ``baselines`` teams stand for metadata-only baselines."""
    truth, entries = teams_of(rng, skills, n)
    first = len(entries) - baselines
    entries[first:] = [replace(entry, kind="baseline", team=f"table {entry.team}") for entry in entries[first:]]
    return Board(truth, score_entries(entries, truth, 0, resamples, 0.8), [], 0, resamples, 0.8, headline)


def any_pair_error(patients, boards, seed=0, teams=5, skill=1.5, ill=0.3, scores=EQUAL_SCORES, halves=1000):
    """In how many of the boards some pair of equally good teams is called different, after Holm: a share per score."""
    rng = np.random.default_rng(seed)
    wrong = defaultdict(int)
    for _ in range(boards):
        entries = entries_of(rng, (skill,) * teams, patients, ill, halves)
        for score in scores:
            wrong[score] += any(pair.different for pair in pairs_of(entries, score))
        swapped = [swapped_difference(first, second, "auroc").p for first, second in combinations(entries, 2)]
        wrong["auroc by swap"] += bool(np.any(holm(swapped) <= 0.05))
    return {score: count / boards for score, count in wrong.items()}


def any_pair_error_by_percentile(patients, boards, seed=0, skill=1.5, ill=0.3, resamples=2000):
    """As :func:`any_pair_error`, but with p values of the percentile bootstrap, to compare with."""
    rng = np.random.default_rng(seed)
    wrong = defaultdict(int)
    for number in range(boards):
        truth, entries = teams_of(rng, (skill,) * 5, patients, ill)
        sums = [entry_sums(entry, truth, 0.8) for entry in entries]
        drawn = replicate_scores(sums, resample_patients(patients, resamples, number))
        for score in EQUAL_SCORES:
            values = [replicates[score] for replicates in drawn]
            differences = [first - second for first, second in combinations(values, 2)]
            wrong[score] += bool(np.any(holm([percentile_p(each) for each in differences]) <= 0.05))
    return {score: count / boards for score, count in wrong.items()}


def percentile_p(replicates):
    """Two-sided p of the percentile bootstrap: twice the share of resamples beyond zero."""
    known = replicates[np.isfinite(replicates)]
    return min(1.0, 2 * min(np.sum(known <= 0) + 1, np.sum(known >= 0) + 1) / (len(known) + 1))


def difference_coverage(patients, studies, skills, seed=0, ill=0.3, scores=EQUAL_SCORES):
    """How often the interval of the first team less the second holds the true difference, per score."""
    rng = np.random.default_rng(seed)
    first, second = (true_scores(skill, ill) for skill in skills)
    held = defaultdict(int)
    for _ in range(studies):
        entries = entries_of(rng, skills, patients, ill)
        for score in scores:
            low, high = paired_difference(*entries, score).interval
            held[score] += low <= first[score] - second[score] <= high
    return {score: count / studies for score, count in held.items()}


def percentile_interval(replicates, level=0.95):
    """The plain bootstrap interval, to compare with."""
    return Interval(*np.nanquantile(replicates, [(1 - level) / 2, (1 + level) / 2]))


def single_coverage(patients, studies, skill, seed=0, resamples=1000, ill=0.3):
    """How often BCa and percentile intervals of one team's scores hold the true score: (BCa, percentile) per score."""
    rng = np.random.default_rng(seed)
    true = true_scores(skill, ill)
    held = {name: np.zeros(2) for name in true}
    for number in range(studies):
        truth, owner, (probability,) = study(rng, (skill,), patients, ill)
        easy = rng.normal(size=patients)[owner]
        masks = masks_of(rng, truth, easy, probability)
        table = sum_by_patient(truth, owner, probability, probability >= special.ndtr(OUTLINED_FROM), masks)
        point = point_scores(table)
        drawn = replicate_scores([table], resample_patients(patients, resamples, number))[0]
        left = replicate_scores([table], leave_one_out(patients))[0]
        for name, value in true.items():
            bca = bca_interval(drawn[name], point[name], left[name])
            if bca.high - bca.low < 1e-9:  # as the board does: all right or none has an exact interval
                members = len(np.unique(owner if name in ("accuracy", "dice") else owner[truth]))
                bca = exact_interval(round(point[name] * members), members)
            for which, interval in enumerate((bca, percentile_interval(drawn[name]))):
                held[name][which] += interval.low <= value <= interval.high
    return {name: tuple(counts / studies) for name, counts in held.items()}


def true_scores(skill, ill=0.3):
    """The scores that a team of this skill has on endlessly many patients."""
    rng = np.random.default_rng(99)
    truth, owner, (probability,) = study(rng, (skill,), 200_000, ill)
    easy = rng.normal(size=200_000)[owner]
    masks = masks_of(rng, truth, easy, probability)
    decision = probability >= special.ndtr(OUTLINED_FROM)
    point = point_scores(sum_by_patient(truth, owner, None, decision, masks))
    names = ("accuracy", "sensitivity", "dice", "dice_positives")
    return {"auroc": float(stats.norm.cdf(skill / np.sqrt(2)))} | {name: point[name] for name in names}


def seeded_errors(rng, patients, seeds, seed_spread, difference, studies, margin=0.02, skill=1.5, ill=0.3):
    """Two frameworks with several trainings each, whose true AUROCs differ by ``difference``: shares of the studies.

    The skill of a training is that of its framework plus a part of its own, of standard deviation ``seed_spread``, so
    the true AUROC of a framework is the mean over all trainings it might have given.

    Returns:
        How often the verdict was ``equivalent``, ``different`` and ``undecided``, and how often the 95% interval held
        the true difference (``holds``).
    """
    wide = np.sqrt(2 + seed_spread**2)  # of the difference of a positive's score and a negative's, over seeds
    other = float(stats.norm.ppf(stats.norm.cdf(skill / wide) - difference) * wide)
    counts = defaultdict(int)
    for _ in range(studies):
        skills = [mean + seed_spread * rng.normal() for mean in (skill, other) for _ in range(seeds)]
        truth, owner, probabilities = study(rng, skills, patients, ill)
        sums = [sum_by_patient(truth, owner, each, each >= 0.5, None) for each in probabilities]
        values = np.array([point_scores(table)["auroc"] for table in sums]).reshape(2, seeds)
        left = np.stack([left["auroc"] for left in replicate_scores(sums, leave_one_out(patients))])
        first, second = left.reshape(2, seeds, patients)
        positive = np.zeros(patients, bool)
        positive[owner[truth]] = True
        found = seeded_difference(values[0] - values[1], first - second, positive)
        counts[equivalence_verdict(found, margin).outcome] += 1
        low, high = found.interval()
        counts["holds"] += low <= difference <= high
    return {name: counts[name] / studies for name in ("equivalent", "different", "undecided", "holds")}


def _main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["equal", "percentile", "single", "difference", "seeds"])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--patients", type=int, nargs="+", default=[40, 90, 400])
    parser.add_argument("--skill", type=float, default=1.5)
    parser.add_argument("--second", type=float, default=1.2, help="skill of the second team of a difference")
    parser.add_argument("--ill", type=float, default=0.3)
    parser.add_argument("--halves", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed-spread", type=float, default=0.15)
    parser.add_argument("--apart", type=float, default=0.0, help="true difference of AUROC, for seeds")
    given = parser.parse_args()
    for patients in given.patients:
        if given.what == "difference":
            found = difference_coverage(patients, given.studies, (given.skill, given.second), ill=given.ill)
            text = {name: f"{share:.3f}" for name, share in found.items()}
        elif given.what == "percentile":
            found = any_pair_error_by_percentile(patients, given.studies, skill=given.skill, ill=given.ill)
            text = {name: f"{share:.3f}" for name, share in found.items()}
        elif given.what == "equal":
            found = any_pair_error(patients, given.studies, skill=given.skill, ill=given.ill, halves=given.halves)
            text = {name: f"{share:.3f}" for name, share in found.items()}
        elif given.what == "seeds":
            rng = np.random.default_rng(0)
            found = seeded_errors(rng, patients, given.seeds, given.seed_spread, given.apart, given.studies)
            text = {name: f"{share:.3f}" for name, share in found.items()}
        else:
            held = single_coverage(patients, given.studies, given.skill, ill=given.ill, resamples=given.halves)
            text = {name: f"BCa {bca:.3f}, percentile {plain:.3f}" for name, (bca, plain) in held.items()}
        print(f"{patients} patients, skill {given.skill}, {given.ill:.0%} ill, {given.studies} studies:", flush=True)
        for name, figures in text.items():
            print(f"  {name}: {figures}", flush=True)


if __name__ == "__main__":
    _main()
