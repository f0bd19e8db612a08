"""What a model may be used for: only what was measured, and what is not known."""

from dataclasses import replace

import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.subgroups import scores_within
from keras_pneumo.evaluation.report.intended_use import intended_use
from keras_pneumo.evaluation.report.subgroup_report import subgroup_report


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path)


def board(truth, tmp_path, skill=3):
    return board_of(truth, submit(tmp_path / f"skill_{skill}", truth, "A", skill))


def test_it_says_what_was_measured_on_what_and_how_surely(tmp_path, truth):
    scored = board(truth, tmp_path)
    use = " ".join(intended_use(scored, {"trained_on": "SIIM-ACR (200 images)", "synthetic": False}))
    entry = scored.teams[0]
    low, high = entry.intervals["auroc"]
    counts = entry.confusion(truth.pneumothorax)
    assert use.startswith("Use it for research only")
    assert "It learned from SIIM-ACR (200 images)." in use
    assert f"60 images of 30 patients, {truth.pneumothorax.sum()} positive: AUROC {entry.point['auroc']:.3f}" in use
    assert f"(95% interval {low:.3f} to {high:.3f})" in use
    assert f"It found {counts.true_positive} of {truth.pneumothorax.sum()} images with a pneumothorax" in use
    assert f"said yes to {counts.false_positive} of {(~truth.pneumothorax).sum()} images without one" in use
    assert "Scores elsewhere are not known" in use
    assert "phantoms" not in use


def test_it_claims_nothing_beside_the_baselines_that_the_board_does_not(tmp_path, truth):
    def claims(skill):
        return [text for text in intended_use(board(truth, tmp_path, skill), {}) if text.startswith("It does better")]

    assert claims(6)
    assert not claims(0)


def test_phantoms_unknown_patients_and_other_data_are_said(tmp_path, truth):
    scored = board(truth, tmp_path)
    use = " ".join(intended_use(scored, {"trained_on": "synthetic phantoms (90 images)", "synthetic": True}))
    assert "drawn, not taken" in use
    unknown = replace(scored, truth=replace(truth, patients="none", synthetic=True))
    assert "the patients are not known" in " ".join(intended_use(unknown, {}))
    assert "Measured on synthetic phantoms: " in " ".join(intended_use(unknown, {}))
    assert "of other data than it learned from" in " ".join(intended_use(scored, {}, external=True))


def test_small_subgroups_are_named(tmp_path, truth):
    scored = board(truth, tmp_path)
    parts = scores_within(scored, {"view": pd.Series(["PA"] * 55 + ["AP"] * 5)})
    assert intended_use(scored, {}, subgroup_report(parts, "auroc"))[-1].endswith(": view AP.")
