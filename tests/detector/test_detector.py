"""The joined detector: fitted so that it is never below its parts on validation, and whole wherever it is copied."""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from known_detector import dice, expected_mask, known_detector

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.detector import fitting
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.detector import image_level_sources, open_detector
from keras_pneumo.detector.fitting import MemberPredictions, detector_answers, fit_detector, fit_on_validation
from keras_pneumo.detector.record import content_hash
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.evaluation.report.saliency_report import read_saliency_report
from keras_pneumo.evaluation.scoring.saliency import score_map
from keras_pneumo.explain.positives import pixels_of, true_masks
from keras_pneumo.inference.ensemble import mean_maps
from keras_pneumo.inference.maps import MapSet, PackedMap, quantise
from keras_pneumo.inference.run import read_run
from keras_pneumo.storage.files import write_json


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


def test_a_good_classifier_shuts_false_masks(prepared_folder):
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
def test_on_validation_joined_is_never_below_the_segmenter(prepared_folder, seed):
    prepared = load_prepared(prepared_folder)
    predictions, _ = predictions_of(prepared, useless, head=right if seed % 2 else useless, seed=seed)
    fitted = fit_on_validation(predictions, prepared)
    assert fitted.search.dice >= fitted.segmenter_search.dice - 1e-7


def test_the_mean_of_log_odds_lets_the_surer_one_decide():
    found = image_level_sources(np.array([0.5, 0.9]), np.array([0.99, 0.1]), np.zeros(2))["classifier and own head"]
    assert found[0] == pytest.approx(1 / (1 + np.exp(-np.log(99) / 2)))
    assert found[1] == pytest.approx(0.5)


def test_a_copy_answers_the_same_and_as_its_submission(tiny_detector, tmp_path, phantoms, prepared_folder):
    copy = shutil.copytree(tiny_detector, tmp_path / "elsewhere")
    for name in ("submission", "parts", "explain", "board"):
        shutil.rmtree(copy / name)  # results, not the detector
    detector = open_detector(copy)
    assert detector.version == open_detector(tiny_detector).version
    table = read_submission(tiny_detector / "submission").predictions.set_index("image_id")
    paths = {path.stem: path for path in phantoms.rglob("*.dcm")}
    ids = list(table.index[:3])
    answers = detector.answer([read_radiograph(paths[image_id]).pixels for image_id in ids])
    for image_id, answer in zip(ids, answers, strict=True):
        assert answer.probability == pytest.approx(table.loc[image_id, "probability"], abs=2e-3)
        shown = rle.decode(str(table.loc[image_id, "encoded_pixels"]))
        assert np.mean(answer.mask != shown) < 0.01
    for path in copy.rglob("*.json"):
        assert "/a/place" not in path.read_text(), "the command of the training stays where it was"
    assert not list(copy.rglob("*.h5"))


def test_predict_gives_what_detect_writes(phantoms, tmp_path):
    detector = known_detector()
    paths = sorted(phantoms.rglob("*.dcm"))[:5]
    (tmp_path / "radiographs").mkdir()
    for path in paths:
        shutil.copy(path, tmp_path / "radiographs")
    detect(detector, [tmp_path / "radiographs"], tmp_path / "out")
    by_folder, by_paths = detector.predict(str(tmp_path / "radiographs")), detector.predict(paths)
    arrays = [read_radiograph(path).pixels for path in paths]
    by_arrays = detector.predict([arrays[0], *arrays[1:]])
    assert [prediction.image_id for prediction in by_arrays] == list("01234")
    for path, pixels, *predictions in zip(paths, arrays, by_folder, by_paths, by_arrays, strict=True):
        written = json.loads((tmp_path / "out" / f"{path.stem}.json").read_text())
        for prediction in predictions:
            assert prediction.probability == written["probability"]
            assert prediction.pneumothorax == written["pneumothorax"]
            assert (prediction.mask.dtype, prediction.mask.shape) == (np.uint8, pixels.shape)
            assert dice(prediction.mask, expected_mask(pixels)) > 0.95
    assert [prediction.image_id for prediction in by_paths] == [path.stem for path in paths]
    (single,) = detector.predict(arrays[2])
    np.testing.assert_array_equal(single.mask, by_arrays[2].mask)


def test_predict_leaves_out_what_it_cannot_read_and_warns(phantoms, tmp_path):
    detector = known_detector()
    (tmp_path / "broken.dcm").write_bytes(b"no radiograph")
    path = min(phantoms.rglob("*.dcm"))
    with pytest.warns(UserWarning, match=r"1 of 2 radiographs were left out: broken.dcm"):
        (prediction,) = detector.predict([tmp_path / "broken.dcm", path])
    assert prediction.image_id == path.stem
    with pytest.raises(PneumoError, match=r"None of the 1 radiographs .* broken.dcm"):
        detector.predict(tmp_path / "broken.dcm")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "list is empty"),
        (np.full((64, 64), 200.0), "from 0 to 1"),
        (np.zeros((64, 64), int), "uint8"),
        (np.zeros((64, 64, 3), np.uint8), r"\(64, 64, 3\)"),
        (np.zeros((256, 300), np.uint8), "300 columns"),
        (np.zeros((64, 64), np.uint8), "shorter than"),
        ("nowhere.dcm", "There is no nowhere.dcm"),
    ],
)
def test_predict_refuses_what_is_no_image_in_a_sentence(images, words):
    with pytest.raises(PneumoError, match=words):
        known_detector().predict(images)


@pytest.mark.slow
def test_onnx_runtime_answers_as_keras_does(tiny_detector, phantoms):
    pytest.importorskip("tf2onnx", reason="tf2onnx (extra export) is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra export) is not installed")
    images = [read_radiograph(path).pixels for path in sorted(phantoms.rglob("*.dcm"))[:3]]
    pairs = [open_detector(tiny_detector, engine).answer(images) for engine in ("keras", "onnx")]
    for first, second in zip(*pairs, strict=True):
        assert first.classifier == pytest.approx(second.classifier, abs=1e-4)
        assert first.own_head == pytest.approx(second.own_head, abs=1e-4)
        assert np.abs(first.quantised_map.astype(int) - second.quantised_map).max() <= 1
    assert len({answer.classifier for answer in pairs[0]}) == 3, "the answers differ from image to image"


def test_the_board_shows_joined_beside_its_parts(tiny_detector):
    board = pd.read_csv(tiny_detector / "board" / "board.csv")
    teams = set(board["team"])
    assert {"keras-pneumo tiny (joined)", "keras-pneumo segmenter", "keras-pneumo classifier"} <= teams
    assert (tiny_detector / "board" / "report.html").exists()
    record = json.loads((tiny_detector / "detector.json").read_text())
    assert record["validation"]["dice"] >= record["validation"]["dice_segmenter_alone"] - 1e-7
    counts = record["validation"]["counts"]
    assert counts["images"] == sum(value for name, value in counts.items() if "_" in name)


def test_the_report_shows_where_the_classifier_looks_beside_the_joined_segmenter(tiny_detector, prepared_folder):
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
        "The heat map", "The segmenter’s map", "The middle of every image", "Where training masks lie"]  # fmt: skip
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
    assert 0 < page.index("Where it looks:") < page.index('id="gallery"'), "nobody would find it behind the gallery"
    assert page.count("Where it looks:") == 1
    assert page.count('class="pair" src="data:image/jpeg;base64,') >= 1


@pytest.mark.slow
@pytest.mark.parametrize("subset", ["validation", "test"])
def test_without_outlined_positives_there_is_no_such_section(tiny_runs, prepared_folder, tmp_path, subset):
    prepared = load_prepared(prepared_folder)
    some = prepared.cases["image_id"].isin(prepared.subset(subset, fold=0))
    nowhere = replace(prepared, cases=prepared.cases.assign(mask_pixels=prepared.cases["mask_pixels"].mask(some, 0)))
    runs = [read_run(tiny_runs / name) for name in ("classifier", "segmenter")]
    fit_detector(runs[:1], runs[1:], nowhere, tmp_path / "d", resamples=100)
    assert not (tmp_path / "d" / "explain").exists()
    assert "Where it looks" not in (tmp_path / "d" / "board" / "report.html").read_text()
    heat = open_detector(tmp_path / "d").record["heat"]
    assert (heat == {}) == (subset == "validation")


@pytest.mark.slow
def test_heat_maps_are_chosen_once(tiny_runs, prepared_folder, tmp_path, monkeypatch):
    prepared, counted = load_prepared(prepared_folder), []

    def choice_of(model, run, prepared, *more):
        counted.append(run.experiment.name)
        return pd.DataFrame([{"method": "gradcam", "stage": stage, "pointing": 0.5, "auprc": 0.1, "energy": 0.1,
                              "chance": 0.1, "images": 3} for stage in (3, 4)])  # fmt: skip

    monkeypatch.setattr(fitting, "choose", choice_of)
    monkeypatch.setattr(fitting.explain, "choose", choice_of)
    classifier, segmenter = read_run(tiny_runs / "classifier"), read_run(tiny_runs / "segmenter")
    fit_detector([classifier, classifier], [segmenter, segmenter], prepared, tmp_path / "d", resamples=100)
    assert counted == ["classifier"]
    saliency = read_saliency_report(tmp_path / "d" / "explain")
    assert saliency.title == "Grad-CAM of stage 3"
    assert "the first of 2 that are joined" in saliency.source
    assert "the mean of 2 segmenters’" in saliency.source


def spoil_weights(folder):
    path = next(folder.glob("segmenter_0/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def spoil_threshold(folder):
    record = json.loads((folder / "detector.json").read_text())
    write_json(folder / "detector.json", record | {"threshold": 0.0})


def name_a_file_outside(folder):
    record = json.loads((folder / "detector.json").read_text())
    record["files"]["../outside"] = "0" * 64
    write_json(folder / "detector.json", record | {"sha256": content_hash(record)})


def rewrite(folder, change):
    """A record that was changed with its hash: nothing but what it says can give it away."""
    record = json.loads((folder / "detector.json").read_text())
    change(record)
    write_json(folder / "detector.json", record | {"sha256": content_hash(record)})


def copy_over_one_with_more_checkpoints(folder):
    shutil.copy(folder / "classifier_0/network_0.safetensors", folder / "classifier_0/network_1.safetensors")


def name_a_run_outside(folder):
    shutil.copytree(folder / "classifier_0", folder.parent / "elsewhere")
    rewrite(folder, lambda record: record.update(classifiers=["../elsewhere"]))


def forget(name):
    return lambda folder: rewrite(folder, lambda record: record["files"].pop(name))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (copy_over_one_with_more_checkpoints, "network_1.safetensors, which detector.json does not name"),
        (name_a_run_outside, "'../elsewhere', which is not in its folder"),
        (lambda folder: rewrite(folder, lambda record: record.update(classifiers=["."])), "'.', which is not in"),
        (forget("classifier_0/network_0.safetensors"), "no weights of classifier_0"),
        (forget("segmenter_0/experiment.json"), "no experiment"),
        (forget("postprocess.json"), "postprocess.json"),
        (spoil_weights, "segmenter_0"),
        (spoil_threshold, "was changed"),
        (name_a_file_outside, "outside"),
        (lambda folder: (folder / "postprocess.json").unlink(), "postprocess.json"),
        (lambda folder: (folder / "detector.json").unlink(), "no detector"),
        (lambda folder: (folder / "detector.json").write_text("[]"), "format"),
    ],
)
def test_a_damaged_copy_is_refused_in_a_sentence(tiny_detector, tmp_path, spoil, words):
    copy = shutil.copytree(tiny_detector, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(PneumoError, match=words):
        open_detector(copy)


def test_runs_that_cannot_be_joined_are_refused(tiny_runs, prepared_folder, tmp_path):
    prepared = load_prepared(prepared_folder)
    classifier, segmenter = read_run(tiny_runs / "classifier"), read_run(tiny_runs / "segmenter")
    with pytest.raises(PneumoError, match="not a segmenter"):
        fit_detector([classifier], [classifier], prepared, tmp_path / "x")
    with pytest.raises(PneumoError, match="not a classifier"):
        fit_detector([segmenter], [segmenter], prepared, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert keras.config.floatx() == "float32"
