"""Scores within each source of the images."""

import numpy as np
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.baselines import source_only
from keras_pneumo.evaluation.board.subgroups import scores_by_source
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
    assert '<th scope="row">north</th>' in page
    both = write_comparison_report(tmp_path / "c" / "report.html", board_of(truth, *folders)).read_text()
    assert both.count('<th scope="row">north</th>') == 2
    truth.cases["source"] = "north"
    assert "Scores by source" not in write_run_report(tmp_path / "report.html", board_of(truth, folders[0])).read_text()
