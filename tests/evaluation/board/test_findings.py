"""Pairs and ranks, seeds, the labels' ceiling, contamination, fusion, and the board for programs and pull requests."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from board_lab import board_of, predictions_of, submit, write_truth

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.board import paired_difference
from keras_pneumo.evaluation.board.entries import contamination
from keras_pneumo.evaluation.board.findings import analyse, board_json, board_markdown, ranked_table
from keras_pneumo.evaluation.board.fusion import fuse
from keras_pneumo.evaluation.board.label_noise import noise_ceiling, read_adjudicated
from keras_pneumo.evaluation.board.ranking import compare_pairs, seed_tests, shared_ranks
from keras_pneumo.evaluation.compare import compare
from keras_pneumo.evaluation.inputs.submission import Pretraining, SubmissionInfo, write_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.pictures import gallery
from keras_pneumo.evaluation.scoring import metrics

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_tables").exists(), reason="the real tables are not at hand")


@pytest.fixture
def truth(tmp_path):
    return write_truth(tmp_path, n=200)


def test_pairs_and_shared_ranks(tmp_path, truth):
    board = board_of(
        truth,
        submit(tmp_path / "a", truth, "Good", 6),
        submit(tmp_path / "b", truth, "Same", 6),
        submit(tmp_path / "c", truth, "Poor", 0.3, seed=2),
        resamples=2000,
    )
    pairs = compare_pairs(board)
    assert len(pairs) == 3 * 6
    aurocs = pairs[pairs.score == "auroc"].set_index(["first", "second"])
    assert aurocs.loc[("Good", "Same"), "p"] == pytest.approx(1)
    assert aurocs.loc[("Good", "Same"), "other_test"] == "DeLong by patient"
    assert aurocs.loc[("Good", "Poor"), "p_holm"] < 0.01
    assert (pairs.p_holm >= pairs.p - 1e-12).all()
    for row in pairs.to_dict("records"):
        assert row["low"] <= row["difference"] <= row["high"]
    accuracy = pairs[pairs.score == "accuracy"].set_index(["first", "second"])
    assert accuracy.loc[("Good", "Poor"), "other_test"] == "McNemar, exact, by image"
    assert accuracy.loc[("Good", "Poor"), "p_other"] < 1e-6
    assert shared_ranks(board, pairs) == {"Good": 1, "Same": 1, "Poor": 3}


def test_delong_and_bootstrap_give_the_same_verdict(tmp_path, truth):
    board = board_of(
        truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 1.4, seed=1), resamples=5000
    )
    row = compare_pairs(board).set_index("score").loc["auroc"]
    assert row.p == pytest.approx(row.p_other, abs=0.03)


def test_seeds(tmp_path, truth):
    places = [submit(tmp_path / f"k{n}", truth, "Keras", 5, seed=n, seeds=[n]) for n in range(3)]
    places += [submit(tmp_path / f"t{n}", truth, "Torch", 1, seed=n, seeds=[n]) for n in range(3)]
    names = [f"{place.name}" for place in places]
    board = board_of(truth, *places, names=names)
    (test,) = seed_tests(board)
    assert (test.first, test.second, test.seeds) == ("Keras", "Torch", (3, 3))
    assert test.p == pytest.approx(0.1) == pytest.approx(test.least_p)
    means = [np.mean([board.teams[n].point["auroc"] for n in span]) for span in (range(3), range(3, 6))]
    assert test.means == pytest.approx(tuple(means))
    assert seed_tests(board_of(truth, places[0], places[3])) == []


def test_ceiling_by_hand(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 50))  # as good as the labels themselves
    ids = truth.cases.image_id[:10].tolist() + truth.development.image_id[:10].tolist()
    labels = pd.concat([truth.cases, truth.development]).set_index("image_id").pneumothorax
    adjudicated = {image_id: bool(labels[image_id]) for image_id in ids}
    for image_id in (ids[0], ids[15]):
        adjudicated[image_id] = not adjudicated[image_id]
    ceiling = noise_ceiling(board, adjudicated)
    assert (ceiling.images, ceiling.agreement) == (20, 0.9)
    row = ceiling.teams.iloc[0]
    assert (row.images, row.accuracy, row.labels) == (10, 0.9, 0.9)
    assert row.above
    assert ranked_table(board, analyse(board, adjudicated)).above_ceiling[0]


def test_adjudicated_labels_are_read_or_refused(tmp_path, truth):
    path = tmp_path / "a.csv"
    path.write_text("image_id,Pneumothorax\ni0,YES\ni1,no\nelsewhere,NO\n")
    assert read_adjudicated(path, truth) == {"i0": True, "i1": False}
    for text, sentence in [
        ("image_id,Nodule\ni0,YES\n", "has no column Pneumothorax"),
        ("image_id,Pneumothorax\ni0,perhaps\n", "'perhaps', not yes or no"),
        ("image_id,Pneumothorax\nx,YES\n", "names none of the images"),
        ("image_id,Pneumothorax\ni0,YES\ni0,NO\n", "row 3: image 'i0' was given before"),
        ("a,Pneumothorax\ni0,YES\n", "has no image column"),
    ]:
        path.write_text(text)
        with pytest.raises(PneumoError, match=sentence):
            read_adjudicated(path, truth)


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
    assert contamination(Pretraining(), truth) == ""


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


def test_fusion_by_hand(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    first, second = board.teams
    found = fuse(first, second, truth)
    mean = (first.probability + second.probability) / 2
    assert found.scores["AUROC of the mean probability"][2] == metrics.auroc(truth.pneumothorax, mean)
    right = [entry.decision == truth.pneumothorax for entry in (first, second)]
    assert found.both_right == int(np.sum(right[0] & right[1]))
    assert found.only_first == truth.cases.image_id[right[0] & ~right[1]].tolist()
    total = found.both_right + len(found.only_first) + len(found.only_second) + found.both_wrong
    assert total == len(truth.cases)
    outlined = [(e.masks.predicted_pixels > 0).to_numpy() for e in (first, second)]
    for name, answer in (("union", outlined[0] | outlined[1]), ("intersection", outlined[0] & outlined[1])):
        # All masks of these phantoms are the same 400 pixels, so Dice is 1 where the answers agree with the truth.
        assert found.scores[f"Dice of the {name}"][2] == pytest.approx(np.mean(answer == truth.pneumothorax))
    assert fuse(first, first, truth).error_kappa == pytest.approx(1)
    assert "alone is right on" in found.sentence


def test_the_board_for_programs(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    content = json.loads(board_json(board, analyse(board)), parse_constant=lambda word: pytest.fail(word))
    rows = {row["team"]: row for row in content["rows"]}
    entry = board.teams[0]
    assert rows[entry.team]["scores"]["auroc"]["value"] == pytest.approx(entry.point["auroc"])
    assert rows[entry.team]["scores"]["brier"]["better"] == "lower"
    assert rows["Majority"]["scores"]["dice"]["value"] is None
    assert rows["Majority"]["rank"] is None
    assert content["scored"]["images"] == 200
    pair = next(pair for pair in content["pairs"] if pair["score"] == "auroc")
    assert abs(pair["difference"]) == pytest.approx(abs(paired_difference(*board.teams, "auroc").value))


def test_the_board_for_a_pull_request_is_escaped(tmp_path, truth):
    hostile = "|x|<img src=x onerror=y>[l](http://evil) @all `a` www.x.y"
    board = board_of(truth, submit(tmp_path / "a", truth, hostile, 2), submit(tmp_path / "b", truth, "B", 2, seed=1))
    text = board_markdown(board, analyse(board))
    assert "<img" not in text
    assert "](http" not in text
    assert "://" not in text
    assert "@all" not in text
    assert "www.x" not in text
    rows = [line for line in text.splitlines() if line.startswith("| 1 |") or line.startswith("|  |")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1  # every row has the same number of cells
    assert "Research use only" in text


def test_gallery_shows_every_kind(tmp_path, truth):
    board = board_of(truth, submit(tmp_path / "a", truth, "A", 1), submit(tmp_path / "b", truth, "B", 1, seed=1))
    cards = gallery(board, most=30)
    assert len(cards) == len({card.image_id for card in cards}) == 30
    kinds = [card.tags.split()[0] for card in cards]
    assert [kinds.count(kind) for kind in ("disagree", "wrong", "right")] == [10, 10, 10]
    position = {image_id: number for number, image_id in enumerate(truth.cases.image_id)}
    for card in cards:
        index = position[card.image_id]
        right = [bool(team.decision[index]) == truth.pneumothorax[index] for team in board.ordered[:2]]
        assert [line.right for line in card.lines] == right
        assert card.tags.split()[0] == ("right" if all(right) else "disagree" if any(right) else "wrong")
        assert ("alarm" in card.tags) == (not truth.pneumothorax[index] and not all(right))
        assert (card.truth != "") == bool(truth.pneumothorax[index])
    assert gallery(board_of(truth, tmp_path / "a")) == []


def test_metadata_answers_and_all_files(tmp_path, truth):
    labels = pd.concat([truth.cases, truth.development])[["image_id", "pneumothorax"]]
    table = labels.assign(Visits=labels.pneumothorax * 2 + np.arange(len(labels)) % 2, Ward="A", Note=labels.image_id)
    table.drop(columns="pneumothorax").to_csv(tmp_path / "meta.csv", index=False)
    submit(tmp_path / "teams" / "a", truth, "A", 2)
    submit(tmp_path / "teams" / "b", truth, "B", 2, seed=1)
    board = compare(tmp_path / "teams", tmp_path, tmp_path / "out", metadata=tmp_path / "meta.csv", resamples=100).board
    entry = next(entry for entry in board.entries if entry.team == "Table: Visits")
    assert entry.point["auroc"] == 1  # Visits gives the label away; Ward never changes and Note is free text
    assert not any(entry.team in ("Table: Ward", "Table: Note") for entry in board.entries)
    names = {"board.csv", "board.json", "board.md", "pairs.csv", "per_image.csv", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@needs_real
def test_real_ceiling_and_follow_up_number():
    """Figures of the tables' owner: agreement 88.9% (85.8 to 91.4), kappa 0.68, 488 images; follow-up number 0.714."""
    tables = REAL / "siim_tables"
    truth = read_truth(
        tables / "train-rle.csv.gz",
        ids=tables / "stage1_test_ids.csv",
        patients=tables / "nih_id.csv",
        metadata=tables / "Data_Entry_2017_v2020.csv.gz",
    )
    adjudicated = read_adjudicated(tables / "google2019_nih-chest-xray-labels.csv.gz", truth)
    ceiling = noise_ceiling(board_of(truth, resamples=2), adjudicated)
    assert ceiling.images == 488
    assert round(ceiling.agreement, 3) == 0.889
    assert (round(ceiling.interval.low, 3), round(ceiling.interval.high, 3)) == (0.858, 0.914)
    assert round(ceiling.kappa, 2) == 0.68
    from keras_pneumo.evaluation.inputs.metadata import features

    whole = pd.concat([truth.cases, truth.development])
    number = features(truth.metadata, whole.image_id)["Follow-up #"][:, 0]
    assert round(metrics.auroc(whole.pneumothorax.to_numpy() == 1, number), 3) == 0.714
