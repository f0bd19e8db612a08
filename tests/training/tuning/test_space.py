"""Spaces: ranges and choices are read, and what no trial could use is refused before anything is trained."""

import re

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.errors import PneumoError
from keras_pneumo.training.tuning.space import read_space

TINY = CLASSIFIER.replace(name="tiny", image_size=64, frozen_epochs=0, epochs=2, global_batch_size=8)


def space_of(tmp_path, text, experiment=TINY):
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path, experiment)


def test_a_space_has_ranges_and_choices_by_the_names_of_set(tmp_path):
    text = """
    learning-rate = {low = 1e-4, high = 1e-2, log = true}
    global_batch_size = [4, 8]
    image_size = {low = 64, high = 128}
    augmentation.rotate = {low = 0, high = 20, step = 5}
    positive_rate = [[], [[0, 0.5]]]
    deterministic = [true, false]
    [augmentation.flip]
    low = 0
    high = 1
    """
    assert space_of(tmp_path, text) == {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "global_batch_size": CategoricalDistribution((4, 8)),
        "image_size": IntDistribution(64, 128, step=32),
        "augmentation.rotate": FloatDistribution(0, 20, step=5),
        "positive_rate": CategoricalDistribution(("[]", "[[0, 0.5]]")),
        "deterministic": CategoricalDistribution((True, False)),
        "augmentation.flip": FloatDistribution(0, 1),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = [1e-3, 1e-4]", "there is no setting lr; did you mean learning_rate?"),
        ("augmentation.gama = [0, 0.1]", "did you mean augmentation.gamma?"),
        ("learning_rate = [1e-3, -1]", "learning_rate: a number above 0, at most 1e+06 is expected (given: -1)"),
        ("learning_rate = {low = 0, high = 1}", "learning_rate: a number above 0"),
        ("learning_rate = {low = 0, high = 1, log = true}", "cannot be used ("),
        ("learning_rate = {low = 1, high = 0.1}", "Write other numbers"),
        (
            "learning_rate = {low = 1e-4}",
            "write a list of two or more different values, or of a number {low = ..., high",
        ),
        ("learning_rate = {low = 1e-4, high = 1, scale = 'log'}", "with log = true or a step"),
        ("learning_rate = {low = '1e-4', high = 1}", "low, high and step must be numbers"),
        ("dropout = {low = 0, high = 0.5, step = 0.2}", "not divisible by `step`"),
        ("epochs = {low = 1, high = 2.5}", "must be whole numbers"),
        ("image_size = {low = 64, high = 128, step = 16}", "a multiple of 32, is expected (given: 80)"),
        ("encoder = {low = 1, high = 2}", "write a list of two or more"),
        ("epochs = 5", "One value is given with --set epochs=VALUE"),
        ("epochs = [5]", "two or more different values"),
        ("epochs = [5, 5]", "two or more different values"),
        ("seed = [1, 2]", "the same in all trials"),
        ("swa_epochs = [0, 2]\nepochs = [1, 2]", "swa_epochs=2 epochs=1, cannot be used. swa_epochs 2 is more than"),
        ("epochs = [1, 2", "is no TOML file"),
        ("", "names no setting"),
    ],
)
def test_a_wrong_space_is_refused_before_anything_is_trained(tmp_path, text, words):
    with pytest.raises(PneumoError, match=re.escape(words)) as refusal:
        space_of(tmp_path, text)
    assert "space.toml" in str(refusal.value)
    assert "--set lr" not in str(refusal.value)


def test_a_space_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PneumoError, match=r"gone\.toml cannot be read"):
        read_space(tmp_path / "gone.toml", TINY)
