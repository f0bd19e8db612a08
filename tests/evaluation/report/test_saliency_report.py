"""The saliency section of a report, read from tables alone."""

import json

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.saliency_report import CARDS, percent, read_saliency_report, source_sentence
from keras_pneumo.evaluation.scoring.saliency import MAP_SCORES, summarise_maps
from keras_pneumo.storage.files import write_json

RECORD = {
    "subset": "test", "method": "hirescam", "stage": 2, "positives": 30, "chosen_on_validation": True,
    "without_heat": 0, "uninformative": False, "sanity_images": 8, "twin": None,
}  # fmt: skip


def tables(hits, **more):
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.03, 0.1, len(hits))
    kinds = {"heat map": hits, **more, "training masks": chance}
    scores = {name: pd.DataFrame(dict.fromkeys(MAP_SCORES, values)) for name, values in kinds.items()}
    return summarise_maps(scores, chance, np.arange(len(hits)), resamples=300)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    write_json(tmp_path / "explain.json", RECORD)
    tables((rng.random(30) < 0.7).astype(float)).to_csv(tmp_path / "check.csv", index=False)
    is_found = np.array([1, 0] * 15)
    pd.DataFrame(
        {"image_id": [f"1.2.{i}0" for i in range(30)], "probability": is_found * 0.9, "found": is_found}
    ).to_csv(tmp_path / "per_image.csv", index=False)
    pd.DataFrame([(1, "fc", 0.3, 0.1, 0.5), (2, "stem", 0.2, -0.1, 0.4)],
                 columns=["step", "block", "likeness", "lowest", "highest"]).to_csv(
        tmp_path / "sanity.csv", index=False)  # fmt: skip
    pd.DataFrame([("border", 30, 0.05, 0.2, -0.15, -0.2, -0.0001), ("chest tube", 0, *[float("nan")] * 5)],
                 columns=["region", "images", "heat", "area", "excess", "low", "high"]).to_csv(
        tmp_path / "shortcuts.csv", index=False)  # fmt: skip
    pd.DataFrame([("hirescam", 2, 0.7, 0.3, 0.2, 0.06, 20), ("gradcam", 5, 0.1, 0.1, 0.1, 0.06, 20)],
                 columns=["method", "stage", "pointing", "auprc", "energy", "chance", "images"]).to_csv(
        tmp_path / "choice.csv", index=False)  # fmt: skip
    return tmp_path


def test_the_text_of_the_page(folder):
    saliency = read_saliency_report(folder)
    assert saliency.title == "HiResCAM of stage 2"
    assert "above chance" in saliency.sentences[0]
    assert "30 positives of 30 patients" in saliency.sentences[0]
    assert saliency.sentences[1].count("better in") == 2
    assert "0.20 on 8 images" in saliency.sentences[2]
    assert "20 validation positives (0.700 there), out of 2" in saliency.sentences[3]
    assert [row["map"] for row in saliency.rows] == ["The heat map", "Sum of the training masks"]
    assert saliency.rows[0]["cells"][0]["above"]
    assert saliency.shortcuts[0]["interval"] == "−20.0% to −0.01%"
    assert saliency.shortcuts[1]["heat"] == "–"
    assert saliency.tube_accuracy == []
    assert [(group["title"], group["count"], len(group["cards"])) for group in saliency.groups] == [
        ("Found", 15, CARDS),
        ("Missed", 15, CARDS),
    ]
    assert all(card["image_id"].endswith("0") for card in saliency.groups[0]["cards"])  # ids are no numbers
    assert saliency.groups[0]["cards"][0]["picture"] == ""  # missing, which is no error


def test_one_patient_is_no_proof_of_anything(folder):
    """All resamples of one patient are the same, so every interval has no width."""
    scores = {name: pd.DataFrame(dict.fromkeys(MAP_SCORES, np.full(4, value)))
              for name, value in (("heat map", 1.0), ("training masks", 0.0))}  # fmt: skip
    summarise_maps(scores, np.full(4, 0.05), np.zeros(4, int), resamples=50).to_csv(folder / "check.csv", index=False)
    saliency = read_saliency_report(folder)
    assert "of 1 patient (95%" in saliency.sentences[0]
    assert "not distinguishable from chance" in saliency.sentences[0]
    assert saliency.sentences[1].count("not clearly different in") == 2
    assert not any(cell["above"] for cell in saliency.rows[0]["cells"])


@pytest.mark.parametrize(
    ("hits", "words"),
    [
        (np.zeros(80), "below chance"),
        (np.zeros(30), "not distinguishable from chance"),  # nothing of 30 may be up to 0.116
        (np.array([1] + [0] * 29, float), "not distinguishable from chance"),
    ],
)
def test_no_more_is_claimed_than_the_interval_holds(folder, hits, words):
    tables(hits).to_csv(folder / "check.csv", index=False)
    saliency = read_saliency_report(folder)
    assert words in saliency.sentences[0]
    assert not any("Only" in sentence for sentence in saliency.sentences)


def test_few_patients_are_mentioned(folder):
    tables(np.array([1, 0, 1], float)).to_csv(folder / "check.csv", index=False)
    assert any(sentence.startswith("Only 3 patients: ") for sentence in read_saliency_report(folder).sentences)


def test_the_segmenters_map_in_a_sentence_and_in_the_pictures(folder):
    assert read_saliency_report(folder).panels == 2
    tables((np.arange(30) % 3 == 0).astype(float), segmenter=np.ones(30)).to_csv(folder / "check.csv", index=False)
    saliency = read_saliency_report(folder)
    assert saliency.panels == 3
    assert [row["map"] for row in saliency.rows][1] == "The segmenter’s map"
    assert (
        "highest pixel hits on 1.000, the heat map is worse in the pointing game (difference −0.667"
        in saliency.sentences[1]
    )
    assert "which uses no image" in saliency.sentences[2]


def test_the_source_sentence_names_the_network_where_there_are_several():
    assert source_sentence({"run": "one"}) == ""
    assert source_sentence({"run": "one", "checkpoints": 1, "detector": [], "segmenters": ["s"]}) == ""
    several = source_sentence({"run": "one", "checkpoints": 3})
    assert several == "The heat maps are of the best of its 3 checkpoints; its predictions are the mean of all."
    joined = source_sentence({"run": "one", "checkpoints": 1, "detector": ["one"], "segmenters": ["s"]})
    assert joined == (
        "The heat maps are of the classifier one. The segmenter’s map is the one that gives the detector’s outlines. "
        "Probabilities, and whether a positive is found or missed, are the detector’s."
    )
    many = source_sentence({"run": "one", "checkpoints": 2, "detector": ["one", "two"], "segmenters": ["s", "t"]})
    assert (
        "one (the best of its 2 checkpoints; its predictions are the mean of all), the first of the detector’s 2 cl"
        in many
    )
    assert "is the mean of 2 segmenters, the one" in many


def test_found_by_the_detector_is_not_found_by_the_classifier(folder):
    assert read_saliency_report(folder).groups[0]["title"] == "Found"
    write_json(folder / "explain.json", RECORD | {"run": "one", "detector": ["one"]})
    saliency = read_saliency_report(folder)
    assert [group["title"] for group in saliency.groups] == ["Found by the detector", "Missed by the detector"]
    assert saliency.source.startswith("The heat maps are of the classifier one.")


def test_every_kind_that_is_in_the_table_is_shown(folder):
    kinds = ["border", "chest tube", "leads", "marker", "words", "pacemaker"]
    pd.DataFrame([(kind, 30, 0.0005, 0.001, -0.0005, -0.001, -0.0001) for kind in kinds],
                 columns=["region", "images", "heat", "area", "excess", "low", "high"]).to_csv(
        folder / "shortcuts.csv", index=False)  # fmt: skip
    rows = read_saliency_report(folder).shortcuts
    assert [row["region"].lower() for row in rows] == kinds
    assert all(row["meaning"] for row in rows[:5])
    assert rows[5]["meaning"] == ""
    assert rows[5]["heat"] == "0.05%"


def test_an_uninformative_map_is_called_so(folder):
    write_json(folder / "explain.json", RECORD | {"uninformative": True})
    assert read_saliency_report(folder).sentences[2].startswith("Uninformative:")
    (folder / "sanity.csv").unlink()
    assert "not one of these images has any heat" in read_saliency_report(folder).sentences[2]


def test_the_twin_in_a_sentence(folder):
    twin = {"rank_correlation": 1.0, "lowest": 0.9999, "difference": 1e-4, "same_peak": 1.0, "logit_difference": 2e-6}
    write_json(folder / "explain.json", RECORD | {"twin": twin})
    assert "the same hottest pixel on 100%" in read_saliency_report(folder).sentences[-1]


def test_nothing_there_and_something_damaged(folder, tmp_path_factory):
    assert read_saliency_report(tmp_path_factory.mktemp("none")) is None
    (folder / "explain.json").write_text(json.dumps({"method": "hirescam"}))
    with pytest.raises(PneumoError, match="is damaged"):
        read_saliency_report(folder)


def test_percent():
    assert percent(0.1234) == "12.3%"
    assert percent(-0.00001, sign=True) == "0.0%"
    assert percent(-0.05, sign=True) == "−5.0%"
    assert percent(0.05, sign=True) == "+5.0%"
    assert percent(0.00996) == "1.0%"
    assert percent(0.0005) == "0.05%"
    assert percent(0) == "0.0%"
    assert percent(-0.0006, sign=True) == "−0.06%"
    assert percent(float("nan")) == "–"
