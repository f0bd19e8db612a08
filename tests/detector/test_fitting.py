"""Tests of fitting: on validation the detector is never worse than its segmenter; its board and heat maps."""

import json
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.detector import fitting
from keras_pneumo.detector.detector import open_detector
from keras_pneumo.detector.fitting import MemberPredictions, detector_answers, fit_detector, fit_on_validation
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.evaluation.report.saliency_report import read_saliency_report
from keras_pneumo.evaluation.scoring.saliency import score_map
from keras_pneumo.explain import saliency_check
from keras_pneumo.explain.positives import pixels_of, true_masks
from keras_pneumo.inference.ensemble import mean_maps
from keras_pneumo.inference.maps import MapSet, PackedMap, quantise
from keras_pneumo.inference.run import read_run


def predictions_of(prepared, classifier, head=None, seed=0):
    """A segmenter that outlines the truth on positives, and false disks on half of the negatives."""
    rng = np.random.default_rng(seed)
    truth = prepared.truth.set_index("image_id")["encoded_pixels"].astype(str)
    ids = prepared.subset("validation", fold=0) + prepared.subset("train", fold=0)
    maps = []
    for image_id in ids:
        small = np.zeros((64, 64), np.float32)
        if not rle.is_empty(truth[image_id]):
            small = rle.decode(truth[image_id])[::16, ::16].astype(np.float32)
        elif rng.random() < 0.5:
            small[20:30, 20:30] = 1
        maps.append(PackedMap.of(quantise(small * 0.9)))
    positive = np.array([not rle.is_empty(truth[image_id]) for image_id in ids])
    maps_and_heads = MapSet(ids, maps, None if head is None else head(positive))
    return MemberPredictions(maps_and_heads, classifier(positive)), positive


def right(positive):
    return np.where(positive, 0.7, 0.3) + np.linspace(0, 0.05, len(positive))


def useless(positive):
    return np.linspace(0.2, 0.8, len(positive))[np.random.default_rng(1).permutation(len(positive))]


def test_a_good_classifier_gates_false_masks(prepared_folder):
    prepared = load_prepared(prepared_folder)
    predictions, positive = predictions_of(prepared, right)
    fitted = fit_on_validation(predictions, prepared)
    assert fitted.search.parameters.gate_source.startswith("classifier")
    assert 0.3 < fitted.search.parameters.gate <= 0.75
    assert fitted.search.dice > fitted.segmenter_search.dice + 0.05
    assert fitted.sentences[0].startswith("The classifier")
    table = detector_answers(predictions, fitted)
    assert (table["encoded_pixels"][~positive] == "-1").all()
    assert (fitted.counts.true_positive, fitted.counts.false_positive) == (positive.sum(), 0)
    assert (table["probability"][positive] >= fitted.threshold).all()


def test_a_useless_classifier_leaves_the_gate_open(prepared_folder):
    prepared = load_prepared(prepared_folder)
    predictions, _ = predictions_of(prepared, lambda positive: np.full(len(positive), 0.5) + useless(positive) * 1e-9)
    fitted = fit_on_validation(predictions, prepared)
    assert fitted.search.dice >= fitted.segmenter_search.dice
    assert fitted.search.parameters.gate == 0 or fitted.search.dice > fitted.segmenter_search.dice


@pytest.mark.parametrize("seed", range(4))
def test_on_validation_the_detector_is_never_below_the_segmenter(prepared_folder, seed):
    prepared = load_prepared(prepared_folder)
    predictions, _ = predictions_of(prepared, useless, head=right if seed % 2 else useless, seed=seed)
    fitted = fit_on_validation(predictions, prepared)
    assert fitted.search.dice >= fitted.segmenter_search.dice - 1e-7


def test_the_board_shows_the_detector_beside_its_members(tiny_detector):
    board = pd.read_csv(tiny_detector / "board" / "board.csv")
    teams = set(board["team"])
    assert {"keras-pneumo tiny (joined)", "keras-pneumo segmenter", "keras-pneumo classifier"} <= teams
    page = (tiny_detector / "board" / "report.html").read_text()
    assert ">What keras-pneumo tiny (joined) may be used for</h2>" in page
    for heading in ("Scores by subgroup", "Calibration, before and after"):
        assert f">{heading}</h2>" in page
    record = json.loads((tiny_detector / "detector.json").read_text())
    assert record["validation"]["dice"] >= record["validation"]["dice_segmenter_alone"] - 1e-7
    counts = record["validation"]["counts"]
    assert counts["images"] == sum(value for name, value in counts.items() if "_" in name)


def test_the_report_shows_the_heat_map_check_beside_the_detectors_segmenter(tiny_detector, prepared_folder):
    explained = tiny_detector / "explain"
    record = json.loads((explained / "explain.json").read_text())
    heat = json.loads((tiny_detector / "detector.json").read_text())["heat"]
    choice = pd.read_csv(explained / "choice.csv").iloc[0]
    assert (heat["method"], heat["stage"]) == (record["method"], record["stage"]) == (choice["method"], choice["stage"])
    assert heat["pointing"] == pytest.approx(choice["pointing"], abs=1e-4)
    assert (record["resamples"], record["subset"], record["detector"]) == (100, "test", ["classifier"])
    assert record["segmenters"] == ["segmenter"]
    rows = read_saliency_report(explained).rows
    assert [row["map"] for row in rows] == [
        "The heat map", "The segmenter’s map", "The centre of the image", "Sum of the training masks"]  # fmt: skip
    # Found and missed, and the probabilities, are the detector's.
    answers = read_submission(tiny_detector / "submission").predictions.set_index("image_id")["probability"]
    threshold = json.loads((tiny_detector / "detector.json").read_text())["threshold"]
    per_image = pd.read_csv(explained / "per_image.csv", dtype={"image_id": str}).set_index("image_id")
    np.testing.assert_allclose(per_image["probability"], answers.loc[per_image.index], atol=1e-5)
    assert (per_image["found"] == (answers.loc[per_image.index] >= threshold)).all()
    # The segmenter's figures are those of the very map that the detector outlines by.
    prepared = load_prepared(prepared_folder)
    detector = open_detector(tiny_detector)
    ids = list(per_image.index)
    maps, _ = mean_maps(detector.segmenters, lambda size: pixels_of(prepared, ids, size))
    expected = [score_map(*pair)["auprc"] for pair in zip(maps, true_masks(prepared, ids, 64), strict=True)]
    np.testing.assert_allclose(per_image["auprc (segmenter)"], expected, atol=1e-4)
    page = (tiny_detector / "board" / "report.html").read_text()
    assert "The heat maps are of the classifier classifier." in page
    where = page.index('<h2 id="where">Where it looks:')
    assert 0 < where < page.index('id="gallery"'), "nobody would find it behind the gallery"
    assert page.count('<h2 id="where">') == 1
    assert page.count('class="pair" src="data:image/jpeg;base64,') >= 1


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["validation", "test"])
def test_without_outlined_positives_there_is_no_heat_map_check(
    tiny_runs, prepared_folder, tmp_path, subset, monkeypatch
):
    prepared = load_prepared(prepared_folder)
    some = prepared.cases["image_id"].isin(prepared.subset(subset, fold=0))
    nowhere = replace(prepared, cases=prepared.cases.assign(mask_pixels=prepared.cases["mask_pixels"].mask(some, 0)))
    runs = [read_run(tiny_runs / name) for name in ("classifier", "segmenter")]
    with pytest.raises(PneumoError, match="have no mask, so a segmenter can be neither trained nor scored on it"):
        fit_detector(runs[:1], runs[1:], nowhere, tmp_path / "refused", resamples=100)
    monkeypatch.setattr(type(nowhere), "require_masks", lambda self: None)  # what a subset without positives is like
    fit_detector(runs[:1], runs[1:], nowhere, tmp_path / "d", resamples=100)
    assert not (tmp_path / "d" / "explain").exists()
    assert "Where it looks" not in (tmp_path / "d" / "board" / "report.html").read_text()
    heat = open_detector(tmp_path / "d").record["heat"]
    assert (heat == {}) == (subset == "validation")


@pytest.mark.slow
def test_the_heat_map_method_is_selected_once(tiny_runs, prepared_folder, tmp_path, monkeypatch):
    prepared, selected_for = load_prepared(prepared_folder), []

    def select(model, run, prepared, *more):
        selected_for.append(run.experiment.name)
        return pd.DataFrame([{"method": "gradcam", "stage": stage, "pointing": 0.5, "auprc": 0.1, "energy": 0.1,
                              "chance": 0.1, "images": 3} for stage in (3, 4)])  # fmt: skip

    monkeypatch.setattr(fitting, "select_method", select)
    monkeypatch.setattr(saliency_check, "select_method", select)
    classifier, segmenter = read_run(tiny_runs / "classifier"), read_run(tiny_runs / "segmenter")
    fit_detector([classifier, classifier], [segmenter, segmenter], prepared, tmp_path / "d", resamples=100)
    assert selected_for == ["classifier"]
    saliency = read_saliency_report(tmp_path / "d" / "explain")
    assert saliency.title == "Grad-CAM of stage 3"
    assert "the first of the detector’s 2 classifiers" in saliency.source
    assert "the mean of 2 segmenters, " in saliency.source


def test_runs_that_do_not_fit_together_are_refused(tiny_runs, prepared_folder, tmp_path):
    prepared = load_prepared(prepared_folder)
    classifier, segmenter = read_run(tiny_runs / "classifier"), read_run(tiny_runs / "segmenter")
    with pytest.raises(PneumoError, match="not a segmenter"):
        fit_detector([classifier], [classifier], prepared, tmp_path / "x")
    with pytest.raises(PneumoError, match="not a classifier"):
        fit_detector([segmenter], [segmenter], prepared, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert keras.config.floatx() == "float32"
