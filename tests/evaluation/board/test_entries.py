"""One row of the board: thresholds, yes/no answers of masks, pre-training on test images, contradictions."""

import pandas as pd
import pytest
from board_lab import board_of, predictions_of, submit, write_truth

from keras_pneumo.evaluation.board.entries import contamination, pretraining_of
from keras_pneumo.evaluation.inputs.submission import Pretraining, SubmissionInfo, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_contamination_by_own_and_by_nih_name(tmp_path):
    (tmp_path / "l.csv").write_text("ImageId,EncodedPixels\nx,1 2\ny,-1\n")
    (tmp_path / "p.csv").write_text("Kaggle_ID,NIH_ID\nx,00000007_001.png\ny,00000008_000.png\n")
    truth = read_truth(tmp_path / "l.csv", patients=tmp_path / "p.csv")
    seen = "contaminated: 1 test image in its pre-training"
    assert contamination(Pretraining(images="CXR", image_ids=["00000007_001.png", "00000009_000"]), truth) == seen
    assert contamination(Pretraining(images="CXR", image_ids=["x.png"]), truth) == seen
    other = contamination(Pretraining(images="CXR", image_ids=["00000007_005"]), truth)
    assert other == "pre-trained on other images of 1 test patient"
    assert "images not named" in contamination(Pretraining(images="NIH ChestX-ray14"), truth)
    assert contamination(Pretraining(images="ImageNet-1k"), truth) == ""
    assert "may be among them" in contamination(Pretraining(images="unknown images (a.safetensors)"), truth)
    assert "may be among them" in contamination(Pretraining(images="ImageNet-1k, unknown images (a)"), truth)
    assert contamination(Pretraining(), truth) == ""
    cohorts = "torchxrayvision's PadChest, NIH ChestX-ray14, RSNA, SIIM-ACR and VinDr-CXR"
    assert "images not named" in contamination(Pretraining(images=cohorts), truth)
    assert "images not named" in contamination(Pretraining(images=f"{cohorts}, own", image_ids=["z"]), truth)
    assert contamination(Pretraining(images="SIIM-ACR (3 images)", image_ids=["z"]), truth) == ""


def test_a_contaminated_team_is_marked_on_the_board(tmp_path, truth):
    board = board_of(
        truth, submit(tmp_path / "a", truth, "A", 2, pretraining={"images": "own", "image_ids": ["i3.png"]})
    )
    assert board.table.notes[0] == "contaminated: 1 test image in its pre-training"


def test_contradictions_of_probability_and_outline(tmp_path, truth):
    table = predictions_of(truth, 3)
    yes, no = table.index[table.probability > 0.5], table.index[table.probability <= 0.5]
    table.loc[yes[:3], "encoded_pixels"] = "-1"
    table.loc[no[:2], "encoded_pixels"] = "7 7"
    info = SubmissionInfo(team="A", task="joint", threshold=0.5, split_sha256=truth.split_sha256)
    board = board_of(truth, write_submission(tmp_path / "a", info, table))
    assert board.teams[0].contradictions == (3, 2)
    assert (board.table.yes_without_mask[0], board.table.no_with_mask[0]) == (3, 2)
    assert board.teams[0].point["accuracy"] != board.teams[0].point["mask_accuracy"]


def test_thresholds_declared_fitted_or_assumed(tmp_path):
    truth = write_truth(tmp_path)
    table = predictions_of(truth, 3)
    held_out = truth.development[truth.development.subset == "validation"]
    validation = pd.DataFrame({"image_id": held_out.image_id, "probability": 0.2 + 0.4 * held_out.pneumothorax})
    info = SubmissionInfo(team="A", task="classification", split_sha256=truth.split_sha256)
    declared = write_submission(tmp_path / "1", info.model_copy(update={"threshold": 0.3}), table)
    fitted = write_submission(tmp_path / "2", info, table, validation)
    assumed = write_submission(tmp_path / "3", info, table)
    entries = board_of(truth, declared, fitted, assumed).teams
    assert [entry.threshold for entry in entries] == [0.3, pytest.approx(0.4), 0.5]
    assert entries[1].threshold_source == "fitted on the team's validation predictions"
    assert entries[2].notes == ["no threshold declared: 0.5 used"]


def test_masks_alone_answer_yes_where_they_are_not_empty(tmp_path):
    truth = write_truth(tmp_path)
    table = predictions_of(truth, 3)
    info = SubmissionInfo(team="A", task="segmentation", split_sha256=truth.split_sha256)
    entry = board_of(truth, write_submission(tmp_path / "a", info, table.drop(columns="probability"))).teams[0]
    assert "auroc" not in entry.point
    assert (entry.decision == (table.probability > 0.5).to_numpy()).all()
    assert entry.point["accuracy"] == entry.point["mask_accuracy"]


def test_the_board_shows_what_each_team_declares_about_its_pretraining(tmp_path, truth):
    seen = {"images": "CheXpert (9 images)", "image_ids": ["x", "y"]}
    board = board_of(
        truth, submit(tmp_path / "a", truth, "A", 2, pretraining=seen), submit(tmp_path / "b", truth, "B", 3)
    )
    own = {team.team: team for team in board.teams}
    assert own["A"].explanation.endswith("pre-training: CheXpert (9 images), 2 images named")
    assert own["B"].explanation.endswith("pre-training: none")
    assert pretraining_of(SubmissionInfo(team="bare", task="joint")) == ""  # nothing declared
    table = board.table.set_index("team")["pretraining"]
    assert (table["A"], table["B"]) == ("CheXpert (9 images), 2 images named", "none")
    assert (table.drop(["A", "B"]) == "").all()  # baselines
