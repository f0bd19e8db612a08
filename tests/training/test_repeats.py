"""One seed gives the same weights: every kind of experiment, in fresh processes."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from crash_lab import QUICK
from worker_lab import environment_of

from keras_pneumo.inference.run import load_predictors, read_run
from keras_pneumo.training.trainer import set_determinism

LAB = Path(__file__).parents[1] / "repeat_lab.py"


def hashes_of(prepared, out, *options):
    command = [sys.executable, str(LAB), str(prepared), str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment_of())
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_one_seed_gives_the_same_weights_in_every_process(tmp_path, prepared_folder):
    first = hashes_of(prepared_folder, tmp_path / "1.json")
    assert len(first) == 16
    assert len(set(first.values())) == 16, "each setting matters"
    # Every other kind, so that each two of the four settings meet in all their values.
    half = [name for number, name in enumerate(first) if number.bit_count() % 2]
    again = hashes_of(prepared_folder, tmp_path / "2.json", "--backwards", *half)
    assert again == {name: first[name] for name in half}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_predictions_are_the_same_bits_in_a_deterministic_training_and_outside_of_it(tiny_runs, task):
    """``predict`` leaves TensorFlow's settings as they are, and must repeat what ``train`` wrote."""
    images = np.random.default_rng(0).random((3, 64, 64, 1)).astype(np.float32)
    outputs = []
    try:
        for deterministic in (True, False):
            set_determinism(QUICK.replace(deterministic=deterministic))
            keras.utils.clear_session()
            (predictor,) = load_predictors(read_run(tiny_runs / task))
            outputs.append(tf.nest.flatten(predictor.predict_on_batch(images)))
    finally:
        set_determinism(QUICK)
    for first, second in zip(*outputs, strict=True):
        np.testing.assert_array_equal(first, second)
