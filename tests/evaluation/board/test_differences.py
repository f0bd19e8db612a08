"""Differences of two entries, and verdict, leads and ranks that never contradict each other."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_lab import board_of_study, entries_of, teams_of

from keras_pneumo.evaluation.board.board import score_entries
from keras_pneumo.evaluation.board.differences import (
    DELONG,
    SWAP,
    paired_difference,
    pairs_of,
    standings,
    swapped_difference,
)
from keras_pneumo.evaluation.board.entries import Entry
from keras_pneumo.evaluation.board.findings import analyse, board_json, board_markdown
from keras_pneumo.evaluation.board.verdict import verdict
from keras_pneumo.evaluation.inputs.truth import Truth
from keras_pneumo.evaluation.report.report import board_rows, leads
from keras_pneumo.evaluation.scoring.statistics import mcnemar

SKILLS = st.lists(st.sampled_from([0.2, 1.0, 1.5, 1.5, 3.0]), min_size=1, max_size=5)
HEADLINES = ["", "auroc", "dice", "accuracy", "brier", "positives_missed", "dice_positives", "f1"]


@given(st.integers(0, 2**31), SKILLS, st.integers(0, 2), st.integers(6, 60), st.sampled_from(HEADLINES))
@settings(max_examples=40, deadline=None)
def test_verdict_leads_and_ranks_say_the_same(seed, skills, baselines, patients, headline):
    rng = np.random.default_rng(seed)
    board = board_of_study(rng, (*skills, *[0.3] * baselines), patients, baselines, headline)
    findings = analyse(board)
    result = verdict(board)
    if "cannot be computed" in result.headline:
        assert not findings.ranks
        assert leads(board) == []
        return
    names = [entry.team for entry in board.ordered if entry.kind == "submission"]
    rows = {row["other"]: row for row in leads(board)}
    ranks = findings.ranks
    assert list(ranks) == names
    assert ranks[names[0]] == 1
    over_baselines = [rows[name]["better"] for name in rows if name not in names]
    if len(names) == 1:
        if over_baselines:
            assert (result.headline == "team 0 beats every metadata-only baseline.") == all(over_baselines)
    else:
        beats = result.headline == f"{names[0]} beats {names[1]}."
        assert beats or result.headline == f"{names[0]} and {names[1]} cannot be told apart."
        assert beats == rows[names[1]]["better"] == (ranks[names[1]] == 2)
        if over_baselines and not all(over_baselines):
            assert f"All {len(names)} beat every" not in " ".join(result.sentences)
    pairs = findings.pairs[findings.pairs.score == board.headline]
    for name in names:
        worse = pairs[(pairs.second == name) & (pairs.p_holm <= 0.05)]
        assert ranks[name] == 1 + len(worse), "the better of a pair comes first"
    for name in names[1:]:
        p_holm = pairs.set_index(["first", "second"]).p_holm[names[0], name]
        assert rows[name]["better"] == (p_holm <= 0.05)
    for row in findings.pairs.to_dict("records"):
        if np.isfinite(row["p"]):
            assert (row["p"] <= 0.05) == (row["low"] > 0 or row["high"] < 0), row
            assert row["low"] <= row["difference"] <= row["high"]
    content = json.loads(board_json(board, findings))
    assert {row["team"]: row["rank"] for row in content["rows"] if row["kind"] == "submission"} == ranks
    assert content["verdict"][0] == result.headline
    assert result.headline.replace(".", "") in board_markdown(board, findings)
    if len(names) > 1:
        shown = {row["entry"].team: row["rank"] for row in board_rows(board, findings)}
        assert {name: shown[name] for name in names} == ranks


def test_the_best_by_a_score_where_less_is_better_is_first():
    board = board_of_study(np.random.default_rng(1), (0.2, 3.0, 0.3), 80, 1, "brier", 400)
    assert verdict(board).headline == "team 1 beats team 0."
    assert board.standings.ranks == {"team 1": 1, "team 0": 2}
    (lead, *_) = leads(board)
    assert lead["value"].startswith("−"), "the difference is as it is: first minus second"
    assert lead["better"]
    assert board.standings.beats_baselines(board.ordered[0])


def test_a_better_baseline_is_not_called_uncertain():
    board = board_of_study(np.random.default_rng(1), (0.1, 3.0), 80, 1, "auroc", 400)
    (lead,) = leads(board)
    assert (lead["better"], lead["worse"]) == (False, True)
    assert verdict(board).tone == "bad"
    assert verdict(board).headline == "team 0 is worse than a metadata-only baseline, “table team 1”."


def test_a_difference_is_that_of_the_scores_and_turns_round():
    first, second = entries_of(np.random.default_rng(0), (2.0, 1.0), 50)
    for score in ("auroc", "auprc", "accuracy", "dice", "dice_positives", "f1", "specificity_at_common"):
        there, back = (paired_difference(*pair, score) for pair in ((first, second), (second, first)))
        assert there.value == pytest.approx(first.point[score] - second.point[score])
        assert (back.value, back.p) == pytest.approx((-there.value, there.p))
        assert (-back.interval.high, -back.interval.low) == pytest.approx(tuple(there.interval))
        assert there.test == (DELONG if score == "auroc" else SWAP)
        wider = paired_difference(first, second, score, level=0.99).interval
        assert wider.low <= there.interval.low <= there.interval.high <= wider.high
        at_itself = paired_difference(first, second, score, null=there.value)
        assert at_itself.p == pytest.approx(1)


def test_a_perfect_team_beside_guessing_is_compared_by_the_swap():
    """DeLong's variance is 0 there, which would make any four images enough."""
    cases = pd.DataFrame({"image_id": list("abcd"), "pneumothorax": [1, 1, 0, 0], "patient_id": list("pqrs")})
    truth = Truth(cases, cases[:0], "test", None, None, "table")
    answers = {"perfect": np.array([0.9, 0.8, 0.2, 0.1]), "guess": np.full(4, 0.5)}
    entries = [
        Entry(name, name, "submission", None, "", probability, probability > 0.5, 0.5, "", None, None, [])
        for name, probability in answers.items()
    ]
    gap = paired_difference(*score_entries(entries, truth, 0, 4000, 0.8), "auroc")
    assert gap.value == 0.5
    assert gap.test == SWAP
    assert gap.p == pytest.approx(2 / 16, abs=0.02), "of 16 swaps, two leave the difference as large"
    assert not gap.certain


def test_a_single_patient_with_positives_gives_no_interval():
    rng = np.random.default_rng(3)
    truth, entries = teams_of(rng, (2.0, 1.0), 30)
    own = truth.patient_codes == truth.patient_codes[np.argmax(truth.pneumothorax)]
    cases = truth.cases.assign(pneumothorax=(own & truth.pneumothorax).astype(int))
    masks = [entry.masks.assign(true_pixels=np.where(cases.pneumothorax == 1, 9000, 0)) for entry in entries]
    entries = [replace(entry, masks=table) for entry, table in zip(entries, masks, strict=True)]
    first, second = score_entries(entries, replace(truth, cases=cases), 0, 200, 0.8)
    for score in ("auroc", "sensitivity", "dice_positives"):
        gap = paired_difference(first, second, score)
        assert np.isnan(gap.p)
        assert not gap.certain
    assert np.isfinite(paired_difference(first, second, "specificity").p)


def test_the_swap_of_accuracies_equals_mcnemar_where_a_patient_is_an_image():
    rng = np.random.default_rng(6)
    truth, entries = teams_of(rng, (1.5, 0.8), 90)
    kept = np.unique(truth.patient_codes, return_index=True)[1]
    single = replace(truth, cases=truth.cases.iloc[kept].reset_index(drop=True))
    cut = [
        replace(e, probability=e.probability[kept], decision=e.decision[kept], masks=e.masks.iloc[kept])
        for e in entries
    ]
    first, second = score_entries(cut, single, 0, 20_000, 0.8)
    wanted = mcnemar(*(entry.decision == single.pneumothorax for entry in (first, second))).p
    assert 0.001 < wanted < 0.9
    assert swapped_difference(first, second, "accuracy").p == pytest.approx(wanted, rel=0.1)


def test_baselines_are_no_pairs_of_teams():
    board = board_of_study(np.random.default_rng(2), (1.5, 1.0, 0.3, 0.3), 30, 2)
    assert len(pairs_of(board.ordered, "auroc")) == 1
    assert len(board.standings.baselines) == 4
    assert [lead.second.kind for lead in board.standings.leads] == ["submission", "baseline", "baseline"]
    assert standings([], "auroc").leads == []
