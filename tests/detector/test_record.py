"""Tests of the detector's record: a damaged or incomplete copy is refused with a message."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_pneumo.detector.detector import open_detector
from keras_pneumo.detector.record import read_detector_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import content_hash, sha256_file, write_json


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
    """Changes a record and its hash, so that only its content can show that it is wrong."""
    record = json.loads((folder / "detector.json").read_text())
    change(record)
    write_json(folder / "detector.json", record | {"sha256": content_hash(record)})


def weights_that_are_not_finite(folder):
    path = folder / "classifier_0/network_0.safetensors"
    tensors = load_file(path)
    tensors["conv1.weight"] = tensors["conv1.weight"] * np.float32("nan")
    save_file(tensors, path)
    rewrite(folder, lambda record: record["files"].update({"classifier_0/network_0.safetensors": sha256_file(path)}))


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
        (copy_over_one_with_more_checkpoints, "network_1.safetensors, which detector.json does not list"),
        (name_a_run_outside, "'../elsewhere', which is not in its folder"),
        (lambda folder: rewrite(folder, lambda record: record.update(classifiers=["."])), "'.', which is not in"),
        (forget("classifier_0/network_0.safetensors"), "no weights of classifier_0"),
        (forget("segmenter_0/experiment.json"), "no experiment"),
        (forget("postprocess.json"), "postprocess.json"),
        (spoil_weights, "segmenter_0"),
        (weights_that_are_not_finite, "conv1.weight with values that are not finite"),
        (spoil_threshold, "was changed"),
        (name_a_file_outside, "outside"),
        (lambda folder: (folder / "postprocess.json").unlink(), "postprocess.json"),
        (lambda folder: (folder / "detector.json").unlink(), "not a detector"),
        (lambda folder: (folder / "detector.json").write_text("[]"), "format"),
    ],
)
def test_row_37_a_damaged_copy_is_refused_in_a_sentence(tiny_detector, tmp_path, spoil, words):
    copy = shutil.copytree(tiny_detector, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(PneumoError, match=words):
        open_detector(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": -5}, "threshold: .* greater than or equal to 0"),
        ({"threshold": float("nan")}, "threshold: "),
        ({"threshold": "0.5"}, "threshold: .* valid number"),
        ({"outline_area": 0}, "outline_area: .* greater than or equal to 1"),
        ({"name": None}, "name: .* valid string"),
        ({"segmenters": []}, "segmenters: .* at least 1"),
        ({"classifiers": ["a\0b"]}, r"classifiers\.0: "),
        ({"versions": {}}, r"versions\.keras_pneumo: "),
        ({"validation": {"counts": {"images": -1}}}, r"validation\.counts\.images: "),
        ({"probability_source": "the moon"}, "probability_source: "),
        ({"synthetic": "no"}, "synthetic: .* valid boolean"),
        ({"calibration": {"kind": "isotonic", "temperature": 1, "knots": [[0, -5], [1, 7]]}}, "The calibration"),
        ({"calibration": {"kind": "temperature", "temperature": 1e308, "knots": []}}, "The calibration"),
    ],
)
def test_row_43_impossible_values_are_refused_though_the_hash_was_made_anew(tiny_detector, tmp_path, change, words):
    shutil.copy(tiny_detector / "detector.json", tmp_path)
    assert read_detector_record(tmp_path)
    rewrite(tmp_path, lambda record: record.update(change))
    with pytest.raises(PneumoError, match=words) as refused:
        read_detector_record(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 100_000, "nested too deeply"), ("[]", "format"), ('{"format": 1, "name": "\\ud800"}', "hash")],
)
def test_row_43_a_record_that_is_none_is_one_sentence(tmp_path, text, words):
    (tmp_path / "detector.json").write_text(text)
    with pytest.raises(PneumoError, match=words):
        read_detector_record(tmp_path)
