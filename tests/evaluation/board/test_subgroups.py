"""Scores within each source and subgroup of the images, and the worst subgroup."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.baselines import source_only
from keras_pneumo.evaluation.board.subgroups import (
    MASK_SIZE,
    attributes_of,
    scores_by_source,
    scores_within,
    worst_subgroup,
)
from keras_pneumo.evaluation.report.report import write_comparison_report, write_run_report


@pytest.fixture
def truth(tmp_path):
    truth = write_truth(tmp_path)
    truth.cases["source"] = np.where(np.arange(len(truth.cases)) < 24, "north", "south")
    truth.development["source"] = np.where(truth.development.pneumothorax == 1, "north", "south")
    return truth


def test_each_source_is_scored_alone(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "a", 2), submit(tmp_path / "b", truth, "b", 0.5))
    north, south = scores_by_source(board)
    assert (north.name, north.images, south.name, south.images) == ("north", 24, "south", 36)
    assert north.positives + south.positives == truth.pneumothorax.sum()
    team = board.teams[0]
    own, label = team.probability[:24], truth.pneumothorax[:24]
    pairs = own[label][:, None] - own[~label][None, :]
    by_hand = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert north.entries[0].point["auroc"] == pytest.approx(by_hand)
    low, high = north.entries[0].intervals["auroc"]
    assert low < by_hand <= high
    right = np.mean(team.decision[24:] == truth.pneumothorax[24:])
    assert south.entries[0].point["accuracy"] == pytest.approx(right)


def test_one_source_is_no_table(tmp_path, truth):
    truth.cases["source"] = "north"
    assert scores_by_source(board_of(truth, submit(tmp_path / "a", truth, "a", 2))) == []
    assert source_only(truth) == []


def test_a_source_of_one_class_has_no_auroc(tmp_path, truth):
    truth.cases["source"] = np.where(truth.pneumothorax, "sick", "well")
    sick, well = scores_by_source(board_of(truth, submit(tmp_path / "a", truth, "a", 2)))
    assert np.isnan(sick.entries[0].point["auroc"])
    assert np.isfinite(sick.entries[0].point["sensitivity"])
    assert np.isfinite(well.entries[0].point["specificity"])


def test_the_source_is_a_baseline(truth):
    (baseline,) = source_only(truth)
    assert set(baseline.probability[:24]) == {1.0}
    assert set(baseline.probability[24:]) == {0.0}


def test_both_reports_have_scores_by_source(tmp_path, truth):
    folders = [submit(tmp_path / name, truth, name, 2) for name in ("first", "second")]
    page = write_run_report(tmp_path / "r" / "report.html", board_of(truth, folders[0])).read_text()
    assert "Scores by source" in page
    assert 'scope="row">north</th>' in page
    both = write_comparison_report(tmp_path / "c" / "report.html", board_of(truth, *folders)).read_text()
    assert both.count('scope="row">north</th>') == 2
    truth.cases["source"] = "north"
    assert "Scores by source" not in write_run_report(tmp_path / "report.html", board_of(truth, folders[0])).read_text()


def with_probability(board, probability):
    """The board with other probabilities of its only team."""
    return replace(board, entries=[replace(board.teams[0], probability=probability)])


def test_an_auroc_of_nothing_has_an_interval_with_a_width(tmp_path, truth):
    truth.cases["source"] = np.where(np.arange(len(truth.cases)) < 12, "north", "south")
    board = with_probability(
        board_of(truth, submit(tmp_path / "a", truth, "a", 2)), np.where(truth.pneumothorax, 0.1, 0.9)
    )
    north, _ = scores_by_source(board)
    low, high = north.entries[0].intervals["auroc"]
    assert north.entries[0].point["auroc"] == low == 0
    assert 0.2 < high < 1


def test_mask_sizes_stand_beside_all_negatives_and_the_ages_in_bands(tmp_path, truth):
    truth.cases["age"] = np.resize([5, 17.9, 18, 64, 65, 90, np.nan], len(truth.cases))
    truth.cases["sex"] = np.resize(["M", "F", ""], len(truth.cases))
    board = board_of(truth, submit(tmp_path / "a", truth, "a", 2))
    groups = attributes_of(truth)
    assert groups["age"].tolist()[:7] == [
        *("under 18", "under 18", "18 to 39", "40 to 64", "65 and over", "65 and over", "unknown")
    ]
    parts = scores_within(board, groups | {MASK_SIZE: pd.Series(np.where(truth.pneumothorax, "small", ""))})
    assert {part.attribute for part in parts} == {"source", "age", "sex"}  # one view, and masks of one size
    halves = np.where(truth.pneumothorax, np.resize(["small", "large"], len(truth.cases)), "")
    parts = scores_within(board, {MASK_SIZE: pd.Series(halves)})
    negatives = int((~truth.pneumothorax).sum())
    assert [part.images - part.positives for part in parts] == [negatives, negatives]
    assert sum(part.positives for part in parts) == truth.pneumothorax.sum()


def test_tubes_and_makers_are_taken_from_tables_beside_the_images(tmp_path, truth):
    ids = truth.cases.image_id
    rows = f"{ids[0]},chest tube,1 5\n{ids[1]},marker,1 5\n"
    (tmp_path / "devices.csv").write_text(f"image_id,kind,encoded_pixels\n{rows}")
    (tmp_path / "makers.csv").write_text(f"image_id,maker\n{ids[0]},Acme\n{ids[1]},ACME\n")
    groups = attributes_of(truth, tmp_path)
    assert groups["chest tube"].tolist()[:3] == ["yes", "no", "no"]
    assert groups["maker"].tolist()[:3] == ["ACME", "ACME", "unknown"]
    assert "maker" not in attributes_of(truth)


def test_the_worst_subgroup_is_named_among_those_with_images_enough(tmp_path, truth):
    names = np.where(np.arange(len(truth.cases)) < 54, np.resize(["good", "bad"], len(truth.cases)), "few")
    truth.cases["source"] = names
    board = board_of(truth, submit(tmp_path / "a", truth, "a", 1))
    label = truth.pneumothorax
    probability = np.where(label, 0.9, 0.1)
    bad = np.flatnonzero(names == "bad")
    probability[bad] = np.where(label[bad], 0.4, 0.5) + np.linspace(-0.2, 0.2, len(bad))
    probability[names == "few"] = 1 - probability[names == "few"]  # worse still, but few
    board = with_probability(board, probability)
    parts = scores_within(board, {"source": truth.cases["source"]})
    assert min(part.positives for part in parts if part.name != "few") >= 6
    worst = worst_subgroup(parts, "auroc", enough=6)
    assert worst.group.name == "bad"
    assert worst.sentences[0].startswith("The worst AUROC is that of source bad: ")
    assert "worst of 2 subgroups with at least 6 positives and 6 negatives (1 have fewer)" in worst.sentences[1]
    assert worst_subgroup(parts[:1], "auroc", enough=6).group is None
    unknown = [parts[0], *(replace(part, name="unknown") for part in parts if part.name == "bad")]
    assert worst_subgroup(unknown, "auroc", enough=6).group is None
