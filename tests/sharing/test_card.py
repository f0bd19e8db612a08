"""Tests of the model card: every figure is that of a table, and what is not known is said."""

import re

import pandas as pd
import pytest
import yaml
from sharing_lab import BOARD, write_detector, write_evaluation, write_run

from keras_pneumo.config import SEGMENTER
from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing.card import model_card


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs/shared")


def head_of(card):
    """The YAML head, read by a program that is not ours."""
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    """The text below a heading, up to the next of its level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    return text


def test_the_scores_stand_with_interval_and_number(run):
    text = section(model_card(run), "Scores")
    assert "180 images of 87 patients, 39 with a pneumothorax" in text
    assert "| AUROC | 0.940 | 0.850 to 0.980 |" in text
    assert "| Sensitivity | 0.900 | 0.770 to 0.970 |" in text
    assert "Dice" not in text, "a classifier has none"


def test_the_baselines_stand_beside_it(run):
    text = section(model_card(run), "Answers without looking at any pixel")
    assert "| Times imaged | 0.706 (0.571 to 0.828) |" in text
    assert "| **this network** | 0.940 (0.850 to 0.980) |" in text
    assert "the best of them is “Times imaged”; the intervals do not overlap." in text


def test_intervals_that_overlap_are_said_to_show_nothing(tmp_path):
    run = write_run(tmp_path / "run", BOARD.assign(auroc_low=[0.6, 0.5, 0.571]))
    text = section(model_card(run), "Answers without looking at any pixel")
    assert "the intervals overlap, so this table alone does not show that it is better" in text
    worse = write_run(tmp_path / "worse", BOARD.assign(auroc=[0.6, 0.5, 0.706]))
    text = section(model_card(worse), "Answers without looking at any pixel")
    assert "the best of them is “Times imaged”; **this network is no better**." in text


def test_what_it_learned_from_and_how_to_find_it_again(run):
    card = model_card(run)
    data = section(card, "What it learned from")
    for words in ("SIIM-ACR (200 images) (160 for training, 40 for validation)", "5" * 64, "Split by patient",
                  "none, random first weights", "2 min on 2 CPU cores"):  # fmt: skip
        assert words in data
    cite = section(card, "How to cite")
    assert "split 555555555555" in cite
    assert "`best.weights.h5`: SHA-256 `" in cite
    assert "/home/somebody" not in card


def test_a_split_that_is_not_by_patient_is_said_aloud(tmp_path):
    run = write_run(tmp_path / "run", patients="none", patients_note="No table was given.")
    text = section(model_card(run), "What it learned from")
    assert "**The split is not by patient**" in text
    assert "No table was given." in text


def test_phantoms_are_said_at_the_top_in_the_limits_and_to_the_hub(tmp_path, run):
    card = model_card(write_run(tmp_path / "phantoms", synthetic=True))
    assert card.index("Trained on synthetic radiographs (phantoms)") < card.index("## How to use it")
    assert "on real radiographs its answers mean nothing" in section(card, "Limits")
    assert "synthetic-data" in head_of(card)["tags"]
    assert head_of(card)["model-index"][0]["results"][0]["dataset"]["name"] == "Synthetic phantoms, test patients"
    assert "ynthetic" not in model_card(run)


def test_the_head_is_what_hubs_read(run):
    head = head_of(model_card(run, licence="cc-by-nc-4.0"))
    assert head["license"] == "cc-by-nc-4.0"
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "roc_auc", "name": "AUROC", "value": 0.94}]
    assert result["dataset"]["revision"] == "5" * 64


def test_hubs_own_library_reads_the_head(run):
    cards = pytest.importorskip("huggingface_hub")
    data = cards.ModelCard(model_card(run, licence="mit")).data
    assert data.license == "mit"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("roc_auc", 0.94, "image-classification")


def test_without_a_licence_the_card_says_so(run):
    card = model_card(run)
    assert head_of(card)["license"] == "unknown"
    assert "No licence of these weights was given" in section(card, "Licence")
    assert "These weights: cc-by-4.0." in section(model_card(run, "cc-by-4.0"), "Licence")


def test_without_scores_the_card_says_so(tmp_path):
    card = model_card(write_run(tmp_path / "run", board=None))
    assert "It was not scored" in section(card, "Scores")
    assert "No metadata-only baseline" in section(card, "Answers without looking at any pixel")
    assert "model-index" not in head_of(card)


def test_few_patients_are_a_caution(tmp_path):
    card = model_card(write_run(tmp_path / "run", BOARD.assign(images=30, patients=22, positives=8)))
    assert "With fewer than 50 patients" in section(card, "Scores")
    assert "Fewer than 20 positive or negative test images" in section(card, "Limits")
    many = model_card(write_run(tmp_path / "many"))
    assert "Fewer than" not in many
    assert "With fewer" not in many


def test_data_from_elsewhere(tmp_path, run):
    assert "was not evaluated on data from elsewhere" in section(model_card(run), "On data from elsewhere")
    assert "nothing is known of others" in section(model_card(run), "Limits")
    card = model_card(run, evaluations=[write_evaluation(tmp_path / "hospital")])
    text = section(card, "On data from elsewhere")
    assert "### hospital" in text
    assert (
        "22 images of 20 patients, 9 with a pneumothorax. 3 images that it may have learned from were left out" in text
    )
    assert "| AUROC | 0.770 | 0.600 to 0.900 |" in text
    assert "| sex: F | 10 (4) | 0.800 (0.600 to 0.950) |" in text
    assert "| sex: M | 12 (5) | – |" in text
    assert "nothing is known of others" not in section(card, "Limits")


def test_an_evaluation_of_another_network_is_refused(tmp_path, run):
    other = write_evaluation(tmp_path / "other", team="keras-pneumo another")
    with pytest.raises(PneumoError, match="an evaluation of keras-pneumo another, not of shared"):
        model_card(run, evaluations=[other])
    with pytest.raises(PneumoError, match="no folder that keras-pneumo evaluate wrote"):
        model_card(run, evaluations=[tmp_path])


def test_a_segmenter_has_its_dice(tmp_path):
    experiment = SEGMENTER.replace(name="outlines", encoder="resnet18", weights="random", image_size=64)
    scores = {"dice": 0.92, "dice_low": 0.88, "dice_high": 0.95, "positives_missed": 0.13}
    board = BOARD.assign(**scores, positives_missed_low=0.04, positives_missed_high=0.27)
    card = model_card(write_run(tmp_path / "run", board, experiment=experiment))
    assert "| Dice | 0.920 | 0.880 to 0.950 |" in section(card, "Scores")
    assert "| Positives missed (lower is better) | 0.130 | 0.040 to 0.270 |" in section(card, "Scores")
    assert "It outlines nothing in 13% of the positive test images." in section(card, "Limits")
    assert head_of(card)["pipeline_tag"] == "image-segmentation"
    assert "segmentation_models_pytorch" in section(card, "How to use it")


def test_a_detector_has_its_members_and_its_board(tmp_path):
    card = model_card(write_detector(tmp_path / "detector"), address="hf://somebody/detector")
    assert "# joined" in card
    assert 'kp.load_detector("hf://somebody/detector")' in section(card, "How to use it")
    assert "| AUROC | 0.940 | 0.850 to 0.980 |" in section(card, "Scores")
    assert "Of 100 images with the answer yes, about 33 have no pneumothorax" in card
    assert "40 validation images of 34 patients, 15 of them positive" in card


def test_texts_from_files_cannot_be_markup(tmp_path):
    run = write_run(tmp_path / "run", trained_on="<script>x</script> | [a](http://x) `b` # c")
    card = model_card(run)
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\]\(http", body)
    assert pd.notna(head_of(card)["license"])
    quoted = model_card(write_run(tmp_path / "quoted", trained_on='a: "quoted" #no comment'))
    (result,) = head_of(quoted)["model-index"][0]["results"]
    assert result["dataset"]["name"] == 'a: "quoted" #no comment, test patients'
