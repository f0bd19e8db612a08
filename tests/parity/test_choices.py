"""The epochs that a training with given scores keeps, and the ladder's scores, by hand."""

import math

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_pneumo.parity import choices, drawn, settings
from keras_pneumo.parity.backends import KERAS, Backend, read_arrays


@pytest.fixture
def backend(tmp_path):
    save_file(settings.write_settings_inputs(tmp_path), tmp_path / "small.start.safetensors")
    choices.write_choice_inputs(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (drawn.IMAGES, 8, 8), np.uint8)
    images = np.stack([cv2.resize(image, (drawn.SIZE, drawn.SIZE)) for image in pixels])
    drawn.write_drawn_inputs(tmp_path, images, np.ones((drawn.POSITIVES, drawn.SIZE, drawn.SIZE)))
    return Backend(tmp_path, KERAS, {"choices": {name: lists for name, (_, _, lists) in choices.CHOICES.items()}}, {})


def test_the_epochs_that_stay(backend):
    choices.choices(backend)

    def of(name):
        arrays = read_arrays(backend.own / f"choices.{name}.npz")
        return {key: values.tolist() for key, values in arrays.items()}

    best = of("choice_best")
    assert best["best so far"] == [1, 1, 1, 0, 1, 0, 0, 1], "of equal scores the one with the lower loss"
    assert best["kept"] == [5, 6, 8]
    assert of("choice_not_a_number")["best so far"] == [0, 1, 0, 0, 1]
    assert of("choice_not_a_number")["kept"] == [3, 5]
    assert of("choice_patience")["epochs"] == [1, 2, 3, 5, 6, 7, 8], "the first phase ends after its third epoch"
    rates = np.array(of("choice_plateau")["rates"]) / choices.STANDING.learning_rate
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25], rtol=1e-6)


def test_scores_by_hand(backend):
    backend.inputs["score_labels"] = np.array([0, 0, 1, 1])
    for name, scores in (("ties", [0.1, 0.5, 0.5, 0.9]), ("no ties", [0.1, 0.6, 0.5, 0.9])):
        backend.inputs[f"score_values {name}"] = np.array(scores)
    choices.validation_scores(backend)
    arrays = read_arrays(backend.own / "validation_scores.npz")
    assert arrays["AUROC, ties"].tolist() == [3.5 / 4]
    assert arrays["AUROC, no ties"].tolist() == [3 / 4]
    assert math.isfinite(arrays["threshold, ties"][0])
