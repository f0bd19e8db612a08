"""The verdict's sentences and warnings."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from board_lab import board_of, submit, write_truth

from keras_pneumo.evaluation.board.differences import paired_difference
from keras_pneumo.evaluation.board.findings import analyse, board_markdown
from keras_pneumo.evaluation.board.verdict import verdict, with_interval
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.report import leads, tiles


def test_same_answers_differ_by_exactly_nothing(tmp_path):
    truth = write_truth(tmp_path)
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2))
    gap = paired_difference(*board.teams, "auroc")
    assert gap.value == gap.interval.low == gap.interval.high == 0
    assert not gap.certain
    assert verdict(board).headline == "A and B cannot be told apart."


def test_a_significantly_better_team_is_named_first(tmp_path):
    truth = write_truth(tmp_path, n=300)
    board = board_of(
        truth, submit(tmp_path / "a", truth, "Weak", 0.5), submit(tmp_path / "b", truth, "Strong", 5, seed=1)
    )
    assert verdict(board).headline == "Strong beats Weak."
    assert board.table.team[0] == "Strong"
    assert "300 images of 150 patients" in verdict(board).sentences[0]


def test_on_phantoms_the_headline_and_the_first_warning_say_so(tmp_path):
    truth = write_truth(tmp_path)
    real = board_of(truth, submit(tmp_path / "a", truth, "A", 2))
    synthetic = verdict(replace(real, truth=replace(real.truth, synthetic=True)))
    assert "phantoms" not in verdict(real).headline
    assert synthetic.headline == verdict(real).headline.removesuffix(".") + " on synthetic phantoms."
    assert "say nothing about real radiographs" in synthetic.warnings[0]
    assert synthetic.warnings[1:] == verdict(real).warnings


def test_too_few_resamples_for_the_pairs_give_a_warning(tmp_path):
    truth = write_truth(tmp_path)
    teams = [submit(tmp_path / name, truth, name, seed) for seed, name in enumerate("abc")]

    def warned(*folders, resamples):
        return any(
            "too few to tell" in text for text in verdict(board_of(truth, *folders, resamples=resamples)).warnings
        )

    assert warned(*teams, resamples=58), "three pairs need 3 / 0.05 = 60 swaps, the answers as they are included"
    assert not warned(*teams, resamples=59)
    assert not warned(teams[0], resamples=20), "one team makes no pair"


def test_few_patients_give_a_warning(tmp_path):
    for images, patients in ((98, 49), (100, 50)):
        folder = tmp_path / str(images)
        folder.mkdir()
        truth = write_truth(folder, n=images)
        warnings = verdict(board_of(truth, submit(folder / "a", truth, "A", 2), resamples=100)).warnings
        few = [text for text in warnings if text.startswith(f"Only {patients} patients: of 100 intervals")]
        assert len(few) == (patients < 50)
        ill = truth.cases.patient_id[truth.pneumothorax].nunique()
        assert any(text.startswith(f"Only {ill} patients with positive") for text in warnings) == (ill < 20)


def test_a_single_image_is_not_called_images(tmp_path):
    (tmp_path / "truth.csv").write_text("image_id,patient_id,subset,pneumothorax\na,p,test,1\n")
    truth = read_truth(tmp_path)
    table = pd.DataFrame({"image_id": ["a"], "probability": [0.7]})
    folder = write_submission(tmp_path / "s", SubmissionInfo(team="A", task="classification", threshold=0.5), table)
    board = board_of(truth, folder, resamples=50)
    result = verdict(board)
    assert result.sentences == ["The only image is positive, so there is nothing to rank them against."]
    assert board.extent == "1 image of 1 patient, 1 positive"
    assert any(text.startswith("Only 1 patient: ") for text in result.warnings)


def one_positive_patient(tmp_path, *teams):
    """A board of thirty patients, one of whom has a pneumothorax, with teams by their seeds."""
    rows = "".join(f"i{number},p{number},test,{int(number == 7)}\n" for number in range(30))
    (tmp_path / "truth.csv").write_text("image_id,patient_id,subset,pneumothorax\n" + rows)
    truth = read_truth(tmp_path)
    folders = []
    for seed in teams:
        table = pd.DataFrame({"image_id": truth.cases.image_id})
        table["probability"] = np.random.default_rng(seed).random(30)
        info = SubmissionInfo(team=f"team {seed}", task="classification", threshold=0.5)
        folders.append(write_submission(tmp_path / str(seed), info, table))
    return board_of(truth, *folders)


def test_with_one_positive_patient_no_difference_is_tested_and_none_is_said_to_be(tmp_path):
    board = one_positive_patient(tmp_path, 1, 2, 3)
    result = verdict(board)
    text = " ".join([result.headline, *result.sentences, *result.warnings])
    assert "cannot be told apart" in result.headline
    assert "(which cannot be tested: without one of the patients there is no such score), 30 images of 30" in text
    assert "not affected" not in text
    assert "Only 1 patient with positive images: differences in scores that need both kinds cannot be tested." in text
    assert "–" not in text, "no sentence has a dash in the place of a number"
    assert "wide" not in text
    page = board_markdown(board, analyse(board)) + str(leads(board)) + str(tiles(board.teams[0], board))
    assert "– to –" not in page


def test_a_single_team_is_told_nothing_of_differences(tmp_path):
    result = verdict(one_positive_patient(tmp_path, 1))
    text = " ".join([result.headline, *result.sentences, *result.warnings])
    assert "not affected" not in text
    assert "–" not in text


def test_a_score_without_an_interval_says_so():
    assert with_interval(0.5, (0.4, 0.61)) == "0.500 (95% interval 0.400 to 0.610)"
    assert with_interval(0.5, (math.nan, math.nan)) == "0.500 (without an interval)"


def test_few_patients_do_not_affect_differences_that_are_tested(tmp_path):
    truth = write_truth(tmp_path)
    teams = [submit(tmp_path / name, truth, name, seed) for seed, name in enumerate("ab")]
    warnings = verdict(board_of(truth, *teams)).warnings
    assert any(text.endswith("Differences between teams are not affected.") for text in warnings)
