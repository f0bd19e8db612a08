"""Tests of the report of a run: when it quotes the ladder in a neighbouring folder, and what it calibrates."""

import json

import numpy as np
import pytest
from board_lab import board_of, predictions_of, write_truth

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.evaluation.inputs.submission import SubmissionInfo, write_submission
from keras_pneumo.inference.run import FORMAT, RunFolder, versions
from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.ladder import CheckResult, Ladder
from keras_pneumo.parity.run import as_json
from keras_pneumo.training.report import calibration_of, ladder_fact

EQUAL = Difference(0, 0, 0, "", "a", 1)


@pytest.fixture
def run(tmp_path):
    """A run's record: ResNet50 at 256, with the versions that are installed."""
    experiment = CLASSIFIER.replace(name="demo", encoder="resnet50", image_size=256)
    return RunFolder(tmp_path / "runs/demo", experiment, {"format": FORMAT, "versions": versions()})


def write_ladder(run, **changes):
    """Writes a ladder's result next to the run, with the run's encoder, size and versions, apart from the changes."""
    keras = {name: version for name, version in versions().items() if name != "keras_pneumo"}
    ladder = Ladder(
        [CheckResult(1, "DICOM pixels", "", "1e-4 of the range", 1e-4, EQUAL, EQUAL, "", "")],
        {"encoder": "resnet50", "size": 256, "data": ""},
        {"torch": {"torch": "2.14.1"}, "keras": keras, "keras_on_torch": keras},
    )
    path = run.folder.parent / "parity/parity.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(ladder) | changes))
    return path


def test_a_ladder_of_the_same_network_and_versions_is_quoted(run):
    write_ladder(run)
    assert ladder_fact(run)["comparable with PyTorch"].startswith("Yes: in all 1 ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "resnet18"}, "encoder resnet18 (this run: resnet50)"),
        ({"size": 64}, "image size 64 (this run: 256)"),
        ({"keras_pneumo": "0.0.1"}, "keras_pneumo 0.0.1"),
        ({"versions": {"keras": {"keras": "3.0.0"}}}, "keras 3.0.0"),
    ],
)
def test_a_ladder_of_another_network_or_version_is_not_quoted(run, changes, words):
    write_ladder(run, **changes)
    text = ladder_fact(run)["comparable with PyTorch"]
    assert text.startswith("Not checked for this run.")
    assert words in text
    assert "Yes" not in text
    assert "keras-pneumo parity --encoder resnet50 --size 256" in text


def test_a_ladder_without_a_version_is_not_quoted(run):
    path = write_ladder(run)
    answer = json.loads(path.read_text())
    del answer["keras_pneumo"]
    path.write_text(json.dumps(answer))
    assert "keras_pneumo an earlier version" in ladder_fact(run)["comparable with PyTorch"]


@pytest.mark.parametrize("content", [None, "[", "[]", "{}", '{"verdict": "Yes", "versions": 1}'])
def test_without_a_whole_ladder_there_is_no_sentence(run, content):
    if content is not None:
        path = write_ladder(run)
        path.write_text(content)
    assert ladder_fact(run) == {}


def board_with_validation(tmp_path, keep):
    """A board of one submission whose probabilities are all too high, with validation predictions of some images."""
    truth = write_truth(tmp_path)
    info = SubmissionInfo(team="A", task="classification", split_sha256=truth.split_sha256, threshold=0.5)
    test = predictions_of(truth, 2)[["image_id", "probability"]]
    test["probability"] = test["probability"] ** 0.2
    images = truth.development[truth.development.subset == "validation"].iloc[keep]
    validation = images[["image_id"]].assign(probability=(0.1 + 0.8 * images.pneumothorax) ** 0.2)
    return board_of(truth, write_submission(tmp_path / "a", info, test, validation))


def test_a_run_shows_what_calibration_would_change(tmp_path):
    board = board_with_validation(tmp_path, slice(None))
    report = calibration_of(board)
    assert "Fitted on 18 validation images for this report only" in report.sentences[0]
    brier = report.rows[0]
    own = np.mean((board.teams[0].probability - board.truth.pneumothorax) ** 2)
    assert brier["before"] == f"{own:.3f}"
    assert float(brier["after"]) < own


def test_without_validation_images_enough_nothing_is_calibrated(tmp_path):
    assert calibration_of(board_with_validation(tmp_path, slice(2))) is None
    (tmp_path / "a" / "validation.csv").unlink()
    assert calibration_of(board_of(write_truth(tmp_path), tmp_path / "a")) is None
