"""The whole ladder at its smallest, in three processes; and with a fault built in, found at the rung where it is."""

import json
import subprocess
import sys

import keras
import pytest

from keras_pneumo.models import resnet
from keras_pneumo.parity.inputs import LadderPlan
from keras_pneumo.parity.ladder import judge
from keras_pneumo.parity.processes import KERAS
from keras_pneumo.parity.run import as_json, run_ladder
from keras_pneumo.training import step as training_step

pytestmark = pytest.mark.slow

SMALLEST = LadderPlan(encoder="resnet18", size=32, forward_batch=8, batches=(8, 4), steps=20)


@pytest.fixture(scope="module")
def climbed(torch_python, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladder")
    return out, run_ladder(out, plan=SMALLEST, python=torch_python, keep=True)


def test_every_rung_holds_in_all_three_columns(climbed):
    out, ladder = climbed
    assert [where.name for where in ladder.broken] == [], ladder.verdict
    assert {result.number for result in ladder.results} == set(range(1, 15))
    answer = json.loads((out / "parity.json").read_text())
    assert answer["passed"]
    assert answer == json.loads(json.dumps(as_json(ladder)))
    assert "tensorflow" not in answer["versions"]["keras_on_torch"]
    third = {result.number for result in ladder.results if result.keras_on_torch is not None}
    assert third == {3, 5, 6, 7, 8, 9, 10, 11, 12}, "Keras's torch backend climbs all that is Keras"
    reasons = {result.number: result.absent for result in ladder.results if result.keras_on_torch is None}
    assert "tensorflow" in reasons[4]
    assert all(result.remark for result in ladder.results)
    assert "Can these two be compared?" in (out / "parity.html").read_text()


def test_layers_are_compared_one_by_one(climbed):
    _, ladder = climbed
    forward = [result for result in ladder.results if result.number == 6]
    assert len(forward) == 4
    assert all(result.keras.compared >= 60 for result in forward)
    assert all(0 < result.keras.relative < 1e-4 for result in forward), "two implementations, not one"


def again(climbed, *work):
    """Our column's answer to some work, once more, judged; the right answers are put back."""
    from keras_pneumo.parity import backend as column
    from keras_pneumo.parity import processes as exchange

    folder = climbed[0] / "exchange"
    kept = {path: path.read_bytes() for path in (folder / KERAS).glob("*.npz")}
    try:
        ours = column.Column(folder, KERAS, exchange.read_task(folder), exchange.read_arrays(folder / "inputs.npz"))
        for one in work:
            column.WORK[one](ours)
        return [result for result in judge(folder) if not result.passed]
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_wrong_epsilon_is_found_in_the_first_batchnorm(climbed, monkeypatch):
    monkeypatch.setitem(resnet.BATCH_NORM, "epsilon", 1e-3)
    broken = again(climbed, "forward")
    assert broken[0].number == 6
    assert broken[0].keras.first == "bn1"
    unet = [one for one in broken if one.number == 6 and "U-Net" in one.what]
    assert [one.keras.first for one in unet] == ["encoder.bn1", "encoder.bn1"], "in both modes"
    assert all(one.keras_on_torch.within for one in broken), "the third column is right, so the fault is ours"


def test_a_wrong_padding_is_found_in_the_first_convolution(climbed, monkeypatch):
    right = keras.layers.ZeroPadding2D

    def bottom_right(padding, **options):
        return right(((0, 2 * padding), (0, 2 * padding)) if padding > 1 else padding, **options)

    monkeypatch.setattr(keras.layers, "ZeroPadding2D", bottom_right)
    broken = again(climbed, "forward")
    assert (broken[0].number, broken[0].keras.first) == (6, "conv1")


def test_a_wrong_batchnorm_momentum_shows_in_the_statistics_alone(climbed, monkeypatch):
    monkeypatch.setitem(resnet.BATCH_NORM, "momentum", 0.99)
    broken = again(climbed, "forward")
    assert {one.number for one in broken} == {10}
    assert broken[0].keras.first == "bn1.running_mean"


def test_a_smaller_loss_in_the_step_of_train_is_found_in_the_training(climbed, monkeypatch):
    """The check of twenty steps learns by the step of ``keras-pneumo train``; one line of it is changed here."""
    whole = training_step.loss_and_gradients

    def less(*arguments):
        loss, gradients = whole(*arguments)
        return 0.9 * loss, [0.9 * gradient for gradient in gradients]

    monkeypatch.setattr(training_step, "loss_and_gradients", less)
    broken = again(climbed, "training")
    assert {one.number for one in broken} == {12}
    assert {one.keras.first for one in broken} == {"step 0"}, "for both networks, from the first step on"
    assert len(broken) == 2


def test_keras_own_adam_would_not_pass(climbed, monkeypatch):
    from keras_pneumo.parity import learning

    monkeypatch.setattr(learning, "AdamW", lambda **options: keras.optimizers.AdamW(epsilon=1e-7, **options))
    assert {(one.number, "AdamW" in one.what) for one in again(climbed, "step")} == {(9, True)}


def test_a_size_that_no_network_takes_is_refused(torch_python, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_pneumo", "parity", "--torch-python", str(torch_python), "--out", tmp_path / "p",
         "--encoder", "resnet18", "--size", "33"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "multiple of 32, not 33" in done.stderr
