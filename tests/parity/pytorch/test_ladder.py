"""The whole ladder at its smallest, in three processes; and a built-in fault, found by the check that it breaks."""

import functools
import json
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest

from keras_pneumo.data.batches import assembly
from keras_pneumo.data.batches import order as data_order
from keras_pneumo.data.batches.augmentation import draw_parameters
from keras_pneumo.evaluation.scoring.metrics import auroc
from keras_pneumo.inference import ensemble, postprocess, predictor
from keras_pneumo.models import batch_norm
from keras_pneumo.parity import backends, checks, choices, drawn, settings
from keras_pneumo.parity.backends import KERAS
from keras_pneumo.parity.inputs import LadderPlan
from keras_pneumo.parity.ladder import evaluate_checks
from keras_pneumo.parity.run import as_json, run_ladder
from keras_pneumo.training import averaging, callbacks, log, optimizers, schedules, trainer
from keras_pneumo.training import step as training_step

pytestmark = pytest.mark.slow

# Sixteen images for the U-Net: with four, a channel of its deepest stage has four numbers, and twenty steps of it are
# chaotic. From weights changed in the seventh digit the losses were 3e-3 off; with sixteen, 2e-5.
SMALLEST = LadderPlan(encoder="resnet18", size=32, forward_batch=8, batches=(8, 16), steps=20, mixed=True)

TITLES = [
    "DICOM pixels", "Resizing", "Normalisation", "Order of images", "Drawn parameters", "Augmentation", "Batches",
    "Initial weights", "Forward", "BatchNorm statistics", "Mixed precision", "Loss", "Gradients", "What learns",
    "Optimizer step", "Schedule", "Schedules of recipes", "Settings of recipes", "Loss of an epoch", "Training",
    "Validation scores", "Choice of epochs", "Averaged predictions", "Rule of masks", "Prediction files", "Score",
]  # fmt: skip


@pytest.fixture(scope="module")
def exchanged(torch_python, tmp_path_factory):
    out = tmp_path_factory.mktemp("ladder")
    return out, run_ladder(out, plan=SMALLEST, python=torch_python, keep=True)


def test_every_check_passes_on_all_backends(exchanged):
    out, ladder = exchanged
    assert [result.name for result in ladder.broken] == [], ladder.verdict
    assert list(dict.fromkeys(result.title for result in ladder.results)) == TITLES
    assert sorted({result.number for result in ladder.results}) == list(range(1, len(TITLES) + 1))
    answer = json.loads((out / "parity.json").read_text())
    assert answer["passed"]
    assert answer == json.loads(json.dumps(as_json(ladder)))
    assert "tensorflow" not in answer["versions"]["keras_on_torch"]
    third = {result.title for result in ladder.results if result.keras_on_torch is not None}
    assert third == {
        "Normalisation", "Augmentation", "Initial weights", "Forward", "BatchNorm statistics", "Mixed precision",
        "Loss", "Gradients", "What learns", "Optimizer step", "Schedule", "Schedules of recipes", "Training",
    }, "Keras's torch backend computes all that has Keras in it and needs no TensorFlow"  # fmt: skip
    assert all(result.absent for result in ladder.results if result.keras_on_torch is None)
    if backends.jax_python() is not None:
        assert third == {result.title for result in ladder.results if result.keras_on_jax is not None}
    assert all(result.remark for result in ladder.results)
    assert "Can these two be compared?" in (out / "parity.html").read_text()


def test_layers_are_compared_one_by_one(exchanged):
    _, ladder = exchanged
    forward = [result for result in ladder.results if result.title == "Forward"]
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
    assert broken[0].title == "Forward"
    assert broken[0].keras.first == "bn1"
    unet = [result for result in broken if result.title == "Forward" and "U-Net" in result.what]
    assert [result.keras.first for result in unet] == ["encoder.bn1", "encoder.bn1"], "in both modes"
    assert all(result.keras_on_torch.within for result in broken), "the third backend is right, so the fault is ours"


def test_a_wrong_padding_is_found_in_the_first_convolution(exchanged, monkeypatch):
    right = keras.layers.ZeroPadding2D

    def bottom_right(padding, **options):
        return right(((0, 2 * padding), (0, 2 * padding)) if padding > 1 else padding, **options)

    monkeypatch.setattr(keras.layers, "ZeroPadding2D", bottom_right)
    broken = again(exchanged, "forward")
    assert (broken[0].title, broken[0].keras.first) == ("Forward", "conv1")


def test_a_wrong_batchnorm_momentum_shows_in_the_statistics_alone(exchanged, monkeypatch):
    monkeypatch.setitem(batch_norm.BATCH_NORM, "momentum", 0.99)
    broken = again(exchanged, "forward")
    assert {result.title for result in broken} == {"BatchNorm statistics"}
    assert broken[0].keras.first == "bn1.running_mean"


def test_a_smaller_loss_in_the_step_of_train_is_found_in_the_training(exchanged, monkeypatch):
    """The check of twenty steps learns by the step of ``keras-pneumo train``; one line of it is changed here."""
    whole = training_step.loss_and_gradients

    def less(*arguments):
        loss, gradients = whole(*arguments)
        return 0.9 * loss, [0.9 * gradient for gradient in gradients]

    monkeypatch.setattr(training_step, "loss_and_gradients", less)
    broken = again(exchanged, "training")
    assert {result.title for result in broken} == {"Training"}
    assert {result.keras.first for result in broken} == {"step 0"}, "for both networks, from the first step on"
    assert len(broken) == 2


def test_keras_own_adam_would_not_pass(exchanged, monkeypatch):
    monkeypatch.setattr(checks, "AdamW", lambda **options: keras.optimizers.AdamW(epsilon=1e-7, **options))
    broken = again(exchanged, "step")
    assert {(result.title, "AdamW" in result.what) for result in broken} == {("Optimizer step", True)}


def shuffled_within_a_buffer(labels, seed, epoch, positive_rate=None):
    return np.concatenate([np.random.default_rng(seed).permutation(part) for part in (np.arange(8), np.arange(8, 22))])


def wider(settings, *arguments):
    return draw_parameters(settings.replace(rotate=2 * settings.rotate), *arguments)


def mean_of_batches(state, sizes, *arguments):
    return callbacks.StepCounter(state, [8] * len(sizes), *arguments)


def not_turned_back(network, images, flip_averaging):
    for number, one in enumerate(predictor.predict_passes(network, images, flip_averaging)):
        yield one._replace(maps=one.maps[:, :, ::-1]) if number and one.maps is not None else one


def last_of_equals(log, score, validation_loss):
    return log.best is None or score >= log.best.score


make_adamw = optimizers.AdamW.__init__


def decay_on_all(optimizer, **options):
    make_adamw(optimizer, decay_applies=lambda variable: True, **options)


def by_variable(optimizer, gradients):
    norms = [keras.ops.sqrt(keras.ops.sum(keras.ops.square(each))) for each in gradients]
    return [each * (0.05 / keras.ops.maximum(norm, 0.05)) for each, norm in zip(gradients, norms, strict=True)]


FAULTS = {
    "a shuffle within a buffer": (
        data_order, "epoch_order", shuffled_within_a_buffer, ["order"], "Order of images", "epoch 1: images",
    ),
    "another range of rotation": (data_order, "draw_parameters", wider, ["drawn"], "Drawn parameters", "rotate"),
    "masks that are not moved": (
        assembly, "augment_mask", lambda settings, mask, row, out: np.divide(mask, 255, out=out), ["batches"],
        "Batches", "step 1: masks",
    ),
    "masks by their nearest pixel": (
        drawn, "resize_mask", lambda mask, size: cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST),
        ["masks"], "Resizing", "mask 0 at 512",
    ),
    "decay on vectors": (
        optimizers.AdamW, "__init__", decay_on_all, ["learning"], "What learns", "bn1.weight",
    ),
    "an absolute threshold of the plateau": (
        settings, "Plateau", functools.partial(schedules.Plateau, threshold_mode="abs"), ["recipe_schedules"],
        "Schedules of recipes", "plateau of a score that rises",
    ),
    "clipping by variable": (
        optimizers.SGD, "_clip_gradients", by_variable, ["trainings"], "Settings of recipes", "epoch 1: conv1.weight",
    ),
    "an average that is not taken": (
        averaging.WeightAverage, "assign", lambda average, model: None, ["trainings"], "Settings of recipes",
        "epoch 4: conv1.weight",
    ),
    "the mean of batches' losses": (
        trainer, "StepCounter", mean_of_batches, ["trainings"], "Loss of an epoch", "plain, epoch 1",
    ),
    "of equal epochs the last": (log.Log, "is_best", last_of_equals, ["choices"], "Choice of epochs", "best so far"),
    "a score by thresholds": (
        choices, "auroc", lambda truth, score: round(auroc(truth, score), 2), ["validation_scores"],
        "Validation scores", "AUROC, ties",
    ),
    "maps that are not turned back": (
        ensemble, "predict_passes", not_turned_back, ["averages"], "Averaged predictions", "with mirror images: maps",
    ),
    "levels that are rounded down": (
        postprocess, "lowest_level", lambda probability: int(probability * 255), ["mask_rule"], "Rule of masks", None,
    ),
}  # fmt: skip
"""What is changed in our code, by what, what is computed again, and the check and the array that must show it first."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_own_check(exchanged, monkeypatch, name):
    module, attribute, fault, computations, title, first = FAULTS[name]
    monkeypatch.setattr(module, attribute, fault)
    broken = again(exchanged, *computations)
    assert broken, "no check has seen it"
    assert broken[0].title == title
    assert first is None or broken[0].keras.first == first
    consequences = {"Settings of recipes": {"Loss of an epoch"}}  # other weights have other losses
    assert {result.title for result in broken} <= {title} | consequences.get(title, set())


def test_a_size_that_no_network_takes_is_refused(torch_python, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_pneumo", "parity", "--torch-python", str(torch_python), "--out", tmp_path / "p",
         "--encoder", "resnet18", "--size", "33"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "multiple of 32, not 33" in done.stderr
