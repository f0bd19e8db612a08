"""Tests that both teams have the same settings: ours in config.py, the PyTorch team's in its recipe.py.

They read the PyTorch team's files as text, so they need no PyTorch.
"""

import ast
import re
from pathlib import Path

import pytest

from keras_pneumo.config import CLASSIFIER, Augmentation, Experiment

ROOT = Path(__file__).resolve().parents[2]
TEAM = ROOT / "experiments" / "torch_team"
TESTS = Path(__file__).parent / "pytorch"

PROGRAMS = ("classifier", "segmenter", "training", "data", "augmentation", "submission")
"""The modules of the PyTorch team that carry out a recipe."""

PIECES, TRAININGS, REFUSALS = "test_functions_compute_the_same", "test_team_trainings", "test_the_other_team_refuses"
DETERMINISTIC = "test_deterministic_operations_are_on_if_the_recipe_says_so"
START, NETWORKS = "test_segmenters_that_learn_nothing", "test_networks"
CHECKED = {
    "name": START, "task": REFUSALS, "encoder": START, "weights": "test_imagenet_weights_go_into_the_encoder",
    "image_size": START, "dropout": "test_dropout_is_where_the_recipe_has_it", "attention": NETWORKS,
    "image_head": TRAININGS, "seed": PIECES, "fold": REFUSALS, "deterministic": DETERMINISTIC,
    "epochs": TRAININGS, "frozen_epochs": TRAININGS, "global_batch_size": PIECES, "positive_rate": PIECES,
    "accumulation": TRAININGS, "positive_weight": TRAININGS, "label_smoothing": TRAININGS, "loss": PIECES,
    "image_loss_weight": TRAININGS, "augmentation": PIECES, "crop": TRAININGS, "frozen_batchnorm": TRAININGS,
    "optimizer": TRAININGS, "learning_rate": TRAININGS, "depth_decay": TRAININGS, "frozen_learning_rate": TRAININGS,
    "weight_decay": TRAININGS, "clip_norm": TRAININGS, "schedule": TRAININGS, "warmup_fraction": TRAININGS,
    "start_divisor": TRAININGS, "final_divisor": TRAININGS, "restart_epochs": TRAININGS, "restart_factor": TRAININGS,
    "plateau_factor": TRAININGS, "plateau_patience": TRAININGS, "ema": TRAININGS, "swa_epochs": TRAININGS,
    "top_k": TRAININGS, "patience": TRAININGS, "precision": "test_half_precision_is_the_one_asked_for",
    "flip_averaging": TRAININGS,
}  # fmt: skip
"""The test, or file of tests, that compares what each setting does in the two teams."""


def fields_of(name):
    """The fields of a dataclass of recipe.py, each with whether it has a default."""
    module = ast.parse((TEAM / "recipe.py").read_text(encoding="utf-8"))
    (definition,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.target.id: node.value is not None for node in definition.body if isinstance(node, ast.AnnAssign)}


@pytest.mark.parametrize(("ours", "theirs"), [(Experiment, "Recipe"), (Augmentation, "Augmentation")])
def test_both_teams_have_the_same_settings(ours, theirs):
    assert set(fields_of(theirs)) == set(ours.model_fields)


def test_only_a_setting_that_earlier_recipes_lack_has_a_default_there():
    assert [name for name, default in fields_of("Recipe").items() if default] == ["deterministic"]
    assert CLASSIFIER.deterministic is True, "the default there"


@pytest.mark.parametrize("name", sorted(Experiment.model_fields))
def test_the_pytorch_team_uses_each_setting(name):
    text = "".join((TEAM / f"{module}.py").read_text(encoding="utf-8") for module in (*PROGRAMS, "recipe"))
    assert re.search(rf"(recipe|self)\.{name}\b", text)


@pytest.mark.parametrize("name", sorted(Augmentation.model_fields))
def test_the_pytorch_team_uses_each_range(name):
    assert re.search(rf"ranges\.{name}\b", (TEAM / "augmentation.py").read_text(encoding="utf-8"))


def test_each_setting_is_compared_by_a_test():
    assert set(CHECKED) == set(Experiment.model_fields)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py")}
    for name, test in CHECKED.items():
        assert test in texts or any(f"def {test}" in text for text in texts.values()), f"{name}: no {test}"
        if test == "test_team_trainings":
            assert re.search(rf"\b{name}=", texts[test]), f"{name} is in no training of {test}"
