"""Tests of the opened detector: a copy answers the same, and predict takes paths, arrays and folders."""

import json
import shutil

import numpy as np
import pytest
from detector_lab import checked_detector, dice, drawn_hand, expected_mask, known_detector

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.detector import image_level_sources, open_detector
from keras_pneumo.detector.summary import summary_of
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.inference.engine import predictors_on


def test_the_mean_of_logits_gives_more_weight_to_the_surer_source():
    together = image_level_sources(np.array([0.5, 0.9]), np.array([0.99, 0.1]), np.zeros(2))["classifier and own head"]
    assert together[0] == pytest.approx(1 / (1 + np.exp(-np.log(99) / 2)))
    assert together[1] == pytest.approx(0.5)


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


def test_predict_gives_a_hand_no_probability_and_says_why(phantoms):
    path = min(phantoms.rglob("*.dcm"))
    detector = checked_detector([read_radiograph(path).pixels], limit=0.1)
    chest, hand = detector.predict([path, drawn_hand()])
    assert (chest.probability, chest.pneumothorax, chest.reason) == (0.8, True, "")
    assert chest.mask.any()
    assert (hand.probability, hand.pneumothorax) == (None, None)
    assert hand.reason.startswith("Not like the training images: its distance to them is ")
    assert hand.mask.shape == (512, 512)
    assert not hand.mask.any()


def test_predict_leaves_out_what_it_cannot_read_and_warns(phantoms, tmp_path):
    detector = known_detector()
    (tmp_path / "broken.dcm").write_bytes(b"no radiograph")
    path = min(phantoms.rglob("*.dcm"))
    with pytest.warns(UserWarning, match=r"1 of 2 files were left out. broken.dcm: "):
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
        (np.zeros((31, 64), np.uint8), "31 rows and 64 columns; a radiograph has at least 32 of each"),
        (np.zeros((100, 401), np.uint8), "more than 4 times as long"),
        ("nowhere.dcm", "There is no nowhere.dcm"),
    ],
)
def test_predict_refuses_an_unsuitable_array_in_a_sentence(images, words):
    with pytest.raises(PneumoError, match=words):
        known_detector().predict(images)


@pytest.mark.slow
def test_onnx_runtime_answers_as_keras_does_and_is_recorded(tiny_detector, phantoms, own_cache):
    pytest.importorskip("tf2onnx", reason="tf2onnx (extra export) is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra export) is not installed")
    radiographs = [read_radiograph(path) for path in sorted(phantoms.rglob("*.dcm"))[:3]]
    images = [radiograph.pixels for radiograph in radiographs]
    messages = []
    detectors = [
        open_detector(tiny_detector, predictors_on(engine, lambda: 3, messages.append)) for engine in ("keras", "onnx")
    ]
    pairs = [detector.answer(images) for detector in detectors]
    assert len(messages) == 2, "a sentence for each network"
    records = [
        summary_of(detector, radiographs[0], answers[0]) for detector, answers in zip(detectors, pairs, strict=True)
    ]
    assert "engines" not in records[0]
    assert [name.rsplit(" ", 1)[0] for name in records[1]["engines"]] == ["ONNX Runtime"]
    for first, second in zip(*pairs, strict=True):
        assert first.classifier == pytest.approx(second.classifier, abs=1e-5)
        assert first.own_head == pytest.approx(second.own_head, abs=1e-5)
        assert np.abs(first.quantised_map.astype(int) - second.quantised_map).max() <= 1
    assert len({answer.classifier for answer in pairs[0]}) == 3, "the answers differ from image to image"
