"""The subgroups' section: what exists is shown with its interval, and what does not with its reason."""

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.subgroups import scores_within
from keras_pneumo.evaluation.report.subgroup_report import score_text, subgroup_report, subgroup_table
from keras_pneumo.evaluation.scoring.metrics import Confusion


@pytest.fixture
def parts(tmp_path):
    truth = write_truth(tmp_path, n=80)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2))
    groups = np.where(np.arange(80) < 60, "many", "few").astype(object)
    groups[:3] = np.where(truth.pneumothorax[:3], "many", "negatives")
    groups[40:44] = np.where(truth.pneumothorax[40:44], "many", "negatives")
    return scores_within(board, {"kind": pd.Series(groups)})


def test_rows_have_counts_scores_and_reasons(parts):
    report = subgroup_report(parts, "auroc")
    by_name = {row["name"]: dict(zip(report.columns, row["cells"], strict=True)) for row in report.rows}
    assert report.columns == ["AUROC", "Sensitivity", "Specificity", "PPV", "NPV", "Dice", "Dice on positives"]
    assert by_name["negatives"]["AUROC"] == ("–", "needs both classes", "")
    many = next(part for part in parts if part.name == "many")
    assert by_name["many"]["AUROC"].value == f"{many.entries[0].point['auroc']:.3f}"
    counts = many.entries[0].confusion(many.truth.pneumothorax)
    assert by_name["many"]["Sensitivity"].of == f"{counts.true_positive} of {many.positives}"
    assert "kind negatives" in report.small
    assert "kind many" not in report.small


def test_the_table_has_a_row_each_and_blanks(parts):
    table = subgroup_table(parts).set_index("subgroup")
    assert np.isnan(table.loc["negatives", "auroc"])
    assert table.loc["negatives", "note"] == "no positives"
    assert table["images"].sum() == 80


def test_a_rate_has_its_two_counts():
    text = score_text("ppv", 0.75, (0.5, 0.9), Confusion(3, 1, 5, 7))
    assert text == ("0.750", "0.500 to 0.900", "3 of 4")
    assert score_text("brier", 0.2, (np.nan, np.nan), Confusion(0, 0, 0, 0)) == ("0.200", "", "")


def test_without_subgroups_there_is_no_section():
    assert subgroup_report([], "auroc") is None
