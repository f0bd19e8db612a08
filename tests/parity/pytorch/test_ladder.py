"""The whole ladder at its smallest, in three processes; and a built-in fault, found by the check that it breaks."""

import json
import subprocess
import sys

import keras
import pytest

from keras_pneumo.models import batch_norm
from keras_pneumo.parity import backends, checks
from keras_pneumo.parity.backends import KERAS
from keras_pneumo.parity.inputs import LadderPlan
from keras_pneumo.parity.ladder import evaluate_checks
from keras_pneumo.parity.run import as_json, run_ladder
from keras_pneumo.training import step as training_step

pytestmark = pytest.mark.slow

SMALLEST = LadderPlan(encoder="resnet18", size=32, forward_batch=8, batches=(8, 4), steps=20)


@pytest.fixture(scope="module")
def exchanged(torch_python, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladder")
    return out, run_ladder(out, plan=SMALLEST, python=torch_python, keep=True)


def test_every_check_passes_on_all_three_backends(exchanged):
    out, ladder = exchanged
    assert [result.name for result in ladder.broken] == [], ladder.verdict
    assert {result.number for result in ladder.results} == set(range(1, 15))
    answer = json.loads((out / "parity.json").read_text())
    assert answer["passed"]
    assert answer == json.loads(json.dumps(as_json(ladder)))
    assert "tensorflow" not in answer["versions"]["keras_on_torch"]
    third = {result.number for result in ladder.results if result.keras_on_torch is not None}
    assert third == {*range(3, 13)}, "Keras's torch backend computes all that needs no TensorFlow"
    reasons = {result.number: result.absent for result in ladder.results if result.keras_on_torch is None}
    assert set(reasons) == {1, 2, 13, 14}
    assert all(reasons.values())
    assert all(result.remark for result in ladder.results)
    assert "Can these two be compared?" in (out / "parity.html").read_text()


def test_layers_are_compared_one_by_one(exchanged):
    _, ladder = exchanged
    forward = [result for result in ladder.results if result.number == 6]
    assert len(forward) == 4
    assert all(result.keras.compared >= 60 for result in forward)
    assert all(0 < result.keras.relative < 1e-4 for result in forward), "two implementations, not one"


def again(exchanged, *computations):
    """The broken checks after our backend has done some computations once more; the right answers are put back."""
    folder = exchanged[0] / "exchange"
    kept = {path: path.read_bytes() for path in (folder / KERAS).glob("*.npz")}
    try:
        inputs = backends.read_arrays(folder / backends.INPUTS)
        backend = backends.Backend(folder, KERAS, backends.read_task(folder), inputs)
        for computation in computations:
            checks.COMPUTATIONS[computation](backend)
        return [result for result in evaluate_checks(folder) if not result.passed]
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_wrong_epsilon_is_found_in_the_first_batchnorm(exchanged, monkeypatch):
    monkeypatch.setitem(batch_norm.BATCH_NORM, "epsilon", 1e-3)
    broken = again(exchanged, "forward")
    assert broken[0].number == 6
    assert broken[0].keras.first == "bn1"
    unet = [result for result in broken if result.number == 6 and "U-Net" in result.what]
    assert [result.keras.first for result in unet] == ["encoder.bn1", "encoder.bn1"], "in both modes"
    assert all(result.keras_on_torch.within for result in broken), "the third backend is right, so the fault is ours"


def test_a_wrong_padding_is_found_in_the_first_convolution(exchanged, monkeypatch):
    right = keras.layers.ZeroPadding2D

    def bottom_right(padding, **options):
        return right(((0, 2 * padding), (0, 2 * padding)) if padding > 1 else padding, **options)

    monkeypatch.setattr(keras.layers, "ZeroPadding2D", bottom_right)
    broken = again(exchanged, "forward")
    assert (broken[0].number, broken[0].keras.first) == (6, "conv1")


def test_a_wrong_batchnorm_momentum_shows_in_the_statistics_alone(exchanged, monkeypatch):
    monkeypatch.setitem(batch_norm.BATCH_NORM, "momentum", 0.99)
    broken = again(exchanged, "forward")
    assert {result.number for result in broken} == {10}
    assert broken[0].keras.first == "bn1.running_mean"


def test_a_smaller_loss_in_the_step_of_train_is_found_in_the_training(exchanged, monkeypatch):
    """The check of twenty steps learns by the step of ``keras-pneumo train``; one line of it is changed here."""
    whole = training_step.loss_and_gradients

    def less(*arguments):
        loss, gradients = whole(*arguments)
        return 0.9 * loss, [0.9 * gradient for gradient in gradients]

    monkeypatch.setattr(training_step, "loss_and_gradients", less)
    broken = again(exchanged, "training")
    assert {result.number for result in broken} == {12}
    assert {result.keras.first for result in broken} == {"step 0"}, "for both networks, from the first step on"
    assert len(broken) == 2


def test_keras_own_adam_would_not_pass(exchanged, monkeypatch):
    monkeypatch.setattr(checks, "AdamW", lambda **options: keras.optimizers.AdamW(epsilon=1e-7, **options))
    assert {(result.number, "AdamW" in result.what) for result in again(exchanged, "step")} == {(9, True)}


def test_a_size_that_no_network_takes_is_refused(torch_python, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_pneumo", "parity", "--torch-python", str(torch_python), "--out", tmp_path / "p",
         "--encoder", "resnet18", "--size", "33"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "multiple of 32, not 33" in done.stderr
