"""The recipes of the ladder's trainings: what they cover, and what a frozen part leaves as it is."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from keras_pneumo.config import SEGMENTER, Experiment
from keras_pneumo.parity import settings
from keras_pneumo.parity.backends import KERAS, Backend, read_arrays
from keras_pneumo.parity.choices import CHOICES, MEANS
from keras_pneumo.parity.drawn import DRAWN

ELSEWHERE = {
    "name", "task",
    "encoder", "weights", "image_size", "dropout", "attention", "image_head",  # networks: Forward, Initial weights
    "seed", "deterministic", "fold",
    "loss", "image_loss_weight",  # Loss, Gradients, Training
    "precision",  # Mixed precision
}  # fmt: skip
"""Settings that are not a recipe's of these checks, or that other checks compare."""


@pytest.fixture
def backend(tmp_path):
    save_file(settings.write_settings_inputs(tmp_path), tmp_path / "small.start.safetensors")
    return Backend(tmp_path, KERAS, {}, {})


def test_every_setting_of_a_training_is_in_a_recipe():
    """A new setting of Experiment needs a recipe here, so that the PyTorch team's is compared."""
    averaged = [recipe for recipes in MEANS.values() for recipe in recipes.values()]
    recipes = [
        *DRAWN.values(), *averaged, *settings.SCHEDULES.values(),
        *(recipe for _, recipe in settings.SETTINGS.values()), *(recipe for _, recipe, _ in CHOICES.values()),
    ]  # fmt: skip
    varied = {
        name
        for name in Experiment.model_fields
        if len({repr(getattr(recipe, name)) for recipe in recipes}) > 1
        or any(getattr(recipe, name) != getattr(SEGMENTER, name) for recipe in recipes)
    }
    assert set(Experiment.model_fields) - varied - ELSEWHERE == set()


def test_what_learns_by_hand(backend):
    settings.learning(backend)
    frozen = read_arrays(backend.own / "learning.frozen_encoder.npz")
    assert [name for name, value in frozen.items() if value.any()] == ["fc.weight", "fc.bias"]
    np.testing.assert_allclose(frozen["fc.weight"], [1e-2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(frozen["fc.bias"], [1e-2, 0], rtol=1e-6)
    still = read_arrays(backend.own / "learning.frozen_batchnorm.npz")
    assert {name for name, value in still.items() if not value.any()} == {
        f"{norm}.{kind}" for norm in ("bn1", "layer1.0.bn1", "layer4.0.bn1") for kind in ("weight", "bias")
    }
    depth = read_arrays(backend.own / "learning.depth_decay.npz")
    rates = [depth[name][0] for name in ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.bn1.bias", "fc.bias")]
    np.testing.assert_allclose(rates, 0.05 * 0.5 ** np.array([5, 4, 1, 0]), rtol=1e-6)


def test_schedules_by_hand(backend):
    backend.task["plateaus"] = {"falling": {"mode": "min", "factor": 0.5, "patience": 0, "figures": [1.0, 1.0, None]}}
    settings.recipe_schedules(backend)
    arrays = read_arrays(backend.own / "recipe_schedules.npz")
    rate = settings.PLAIN.learning_rate
    assert arrays["constant: rate"] == pytest.approx(np.full(settings.SCHEDULE_STEPS, rate))
    restarts = arrays["warm_restarts: rate"]
    assert np.flatnonzero(np.isclose(restarts, rate)).tolist() == [0, 5, 20], "cycles of one, three and nine epochs"
    assert arrays["cosine: rate"][-1] == pytest.approx(rate / 2 * (1 + np.cos(np.pi * 34 / 35)), rel=1e-5)
    assert arrays["one_cycle: rate"].max() == pytest.approx(rate, rel=1e-2)
    assert arrays["one_cycle: momentum"].min() == pytest.approx(0.85, abs=1e-3)
    assert arrays["plateau of falling"].tolist() == [1.0, 0.5, 0.25]
