import json
import re
from importlib.metadata import PackagePath
from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_pneumo import config
from keras_pneumo.config import (
    CLASSIFIER,
    SEGMENTER,
    Augmentation,
    Experiment,
    allowed,
    known_experiments,
    number_kind,
    read_experiment,
    setting_names,
    with_settings,
)
from keras_pneumo.errors import PneumoError


def test_a_copy_differs_only_in_what_was_changed():
    changed = CLASSIFIER.replace(name="other", image_size=256)
    before, after = CLASSIFIER.model_dump(), changed.model_dump()
    assert {name for name in before if before[name] != after[name]} == {"name", "image_size"}


def test_an_experiment_cannot_be_altered_in_place():
    with pytest.raises(ValueError, match="frozen"):
        CLASSIFIER.epochs = 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 100}, "multiple of 32"),
        ({"image_size": 2048}, "1024"),
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"lerning_rate": 1.0}, "lerning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"encoder": "vgg16"}, "resnet50"),
        ({"name": "../../etc"}, "name"),
        ({"positive_rate": ((1, 0.5),)}, "begin with 0"),
        ({"positive_rate": ((0, 0.5), (0, 0.4))}, "rising"),
        ({"positive_rate": ((0, 1.5),)}, "positive_rate"),
        ({"encoder": "resnet18", "weights": "imagenet_v2"}, "resnet50 only"),
        ({"augmentation": {"rotate": 999}}, "augmentation.rotate"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(changes, words):
    with pytest.raises(PneumoError, match=words):
        CLASSIFIER.replace(**changes)


@pytest.mark.parametrize(
    ("texts", "changes"),
    [
        (["learning_rate=3e-4"], {"learning_rate": 3e-4}),
        (["learning-rate = 3e-4", "learning_rate=1"], {"learning_rate": 1.0}),
        (["augmentation.flip=0", "augmentation.rotate=5"], {"augmentation": Augmentation(flip=0, rotate=5)}),
        (["positive_rate=[[0, 0.5], [3, 0.4]]"], {"positive_rate": ((0, 0.5), (3, 0.4))}),
        (["clip_norm=1", "patience=none", "frozen_batchnorm=yes"], {"clip_norm": 1.0, "frozen_batchnorm": True}),
        (["optimizer=sgd"], {"optimizer": "sgd"}),
        ([], {}),
    ],
)
def test_settings_as_texts(texts, changes):
    assert with_settings(CLASSIFIER, texts) == CLASSIFIER.replace(**changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr=3e-4", "did you mean learning_rate?"),
        ("learning_rat=3e-4", "did you mean learning_rate?"),
        ("flip=0", "did you mean augmentation.flip?"),
        ("augmentation.gama=0", "did you mean augmentation.gamma?"),
        ("augmentation=0", "did you mean"),
        ("nothing_like_it=0", "There are: name, task, encoder"),
        ("learning_rate", "has no value"),
        ("learning_rate=", "has no value"),
        ("learning_rate=fast", "learning_rate: a number above 0, at most 1e+06 is expected (given: 'fast')"),
        ("epochs=2.5", "epochs: a whole number from 1 up is expected (given: 2.5)"),
        ("image_size=100", "image_size: a whole number from 32 to 1024, a multiple of 32, is expected (given: 100)"),
        ("seed=-1", "seed: a whole number from 0 up is expected"),
        ("dropout=1", "dropout: a number from 0, below 1 is expected"),
        ("clip_norm=0", "clip_norm: a number above 0, at most 1e+06 or none is expected"),
        ("patience=soon", "patience: a whole number from 1 up or none is expected"),
        ("deterministic=perhaps", "deterministic: true or false is expected"),
        ("attention=cbam", "attention: 'scse' or none is expected"),
        ("positive_rate=0.5", "such as [[0, 0.8], [10, 0.4]], is expected (given: 0.5)"),
        ("positive_rate=[[0, 2]]", "positive_rate: a list of pairs"),
        ("augmentation.rotate=999", "augmentation.rotate: a number from 0 to 180 is expected (given: 999)"),
        ("encoder=vgg16", "'resnet18', 'resnet34' or 'resnet50'"),
        ("name=A B", "lower case letters, digits"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_allowed(text, words):
    with pytest.raises(PneumoError, match=re.escape(words)) as error:
        with_settings(CLASSIFIER, [text])
    assert "^" not in str(error.value)


def test_each_setting_says_in_words_what_it_takes():
    for name in setting_names(Experiment):
        words = allowed(Augmentation if "." in name else Experiment, name.rpartition(".")[2])
        assert re.match(r"a |'|true", words), name
        assert not re.search(r"[\\^$]|\b(int|float|tuple|literal)\b", words), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("epochs", int),
        ("learning_rate", float),
        ("patience", int),
        ("clip_norm", float),
        ("augmentation.flip", float),
        ("encoder", None),
        ("ema", float),
        ("deterministic", None),
        ("positive_rate", None),
    ],
)
def test_which_settings_are_numbers(name, kind):
    assert number_kind(name) is kind


def test_a_loss_that_is_none_is_refused_in_words():
    with pytest.raises(PneumoError, match="a weighted sum of bce, dice, focal and lovasz"):
        with_settings(SEGMENTER, ["loss=3 bce + jaccard"])


def test_an_unknown_name_in_an_experiment_suggests_the_right_one():
    with pytest.raises(PneumoError, match=r"batch_size: there is no such setting; did you mean global_batch_size\?"):
        CLASSIFIER.replace(batch_size=4)
    with pytest.raises(PneumoError, match=r"did you mean rotate\?"):
        Augmentation().replace(rotation=4)


def test_json_gives_the_same_experiment_back(tmp_path):
    experiment = CLASSIFIER.replace(positive_rate=((0, 0.8), (10, 0.4)), augmentation=Augmentation(noise=0.02))
    (tmp_path / "experiment.json").write_text(json.dumps({"experiment": experiment.model_dump(mode="json")}))
    assert read_experiment(tmp_path / "experiment.json") == experiment
    assert read_experiment(tmp_path) == experiment, "a run folder stands for its experiment"


def test_a_python_file_gives_its_experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from keras_pneumo.config import CLASSIFIER as base\nEXPERIMENT = base.replace(name='mine', seed=7)\n"
    )
    assert read_experiment(path) == CLASSIFIER.replace(name="mine", seed=7)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gone.py", None, "There is no experiment"),
        ("none.py", "X = 1\n", "declares no EXPERIMENT"),
        ("broken.py", "1 / 0\n", "ZeroDivisionError"),
        ("wrong.py", "from keras_pneumo.config import CLASSIFIER as b\nEXPERIMENT = b.replace(epochs=0)\n", "epochs"),
        ("cut.json", '{"experiment": {"na', "as JSON"),
        ("list.json", "[1]", "holds no experiment"),
        ("more.json", '{"name": "x", "colour": 3}', "colour"),
    ],
)
def test_a_file_that_is_no_experiment_is_refused_in_a_sentence(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(PneumoError, match=words):
        read_experiment(tmp_path / name)


def test_the_default_is_resnet50_from_imagenet():
    assert (CLASSIFIER.encoder, CLASSIFIER.weights, CLASSIFIER.task) == ("resnet50", "imagenet_v1", "classifier")
    assert isinstance(CLASSIFIER, Experiment)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positive_weight": 2.0}, "positive_weight cannot be set for a segmenter"),
        ({"label_smoothing": 0.1}, "label_smoothing cannot be set for a segmenter"),
        ({"loss": "3 bce + 1 iou"}, "loss"),
        ({"loss": ""}, "loss"),
        ({"crop": 512, "image_size": 256}, "larger than image_size"),
        ({"image_head": False, "image_loss_weight": 0.1}, "image_head=True"),
        ({"accumulation": 17}, "more than the 16"),
        ({"swa_epochs": 13}, "more than the 12"),
        ({"swa_epochs": 2, "patience": 3}, "patience"),
        ({"attention": "cbam"}, "attention"),
        ({"task": "classifier"}, "image_head cannot be set for a classifier"),
    ],
)
def test_a_segmenters_settings_are_refused_where_they_mean_nothing(changes, words):
    with pytest.raises(PneumoError, match=words):
        SEGMENTER.replace(**changes)


@pytest.mark.parametrize("name", ["attention", "image_head", "loss", "crop"])
def test_a_classifier_has_no_segmenters_settings(name):
    value = {"attention": "scse", "image_head": True, "loss": "bce", "crop": 64}[name]
    with pytest.raises(PneumoError, match=f"{name} cannot be set for a classifier"):
        CLASSIFIER.replace(**{name: value})


@pytest.mark.parametrize("recipe", ["bce", "3 bce + 1 dice + 4 focal", "2.7 BCE + 0.9 Dice", "lovasz", "2*bce+dice"])
def test_every_recipe_that_config_takes_the_losses_read(recipe):
    from keras_pneumo.training.losses import parse_recipe

    assert parse_recipe(SEGMENTER.replace(loss=recipe).loss)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].joinpath("experiments").glob("*.py")), ids=str)
def test_every_experiment_of_the_project_is_valid(path):
    experiment = read_experiment(path)
    assert experiment.name == path.stem

    known = known_experiments()[path.stem]
    assert known.file == path
    assert known.question, "the first line of its docstring"
    assert known.needs.endswith("."), "a line 'Needs: ...'"
    assert known.result.endswith("."), "a line 'Result: ...'"


def test_an_experiment_is_found_by_its_name_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_experiment(Path("demo_classifier")).name == "demo_classifier"
    with pytest.raises(
        PneumoError, match=r"no experiment demo_clasifier\. Did you mean demo_classifier\?.*experiments lists"
    ):
        read_experiment(Path("demo_clasifier"))
    Path("demo_classifier").mkdir()
    Path("demo_classifier/experiment.json").write_text(CLASSIFIER.replace(name="own").model_dump_json())
    assert read_experiment(Path("demo_classifier")).name == "own", "a folder of that name goes first"


def test_installed_experiments_are_found_where_the_package_came_without_a_checkout(tmp_path, monkeypatch):
    file = tmp_path / "share/keras_pneumo/experiments/theirs.py"
    file.parent.mkdir(parents=True)
    file.write_text('"""Why?\n\nNeeds: a day.\nResult: none.\n"""\n')
    installed = [PackagePath("../share/keras_pneumo/experiments/theirs.py"), PackagePath("keras_pneumo/config.py")]
    for one in installed:
        one.dist = SimpleNamespace(locate_file=lambda path: tmp_path / "lib" / path)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "lib/keras_pneumo/config.py"))
    monkeypatch.setattr(config.importlib.metadata, "files", lambda name: installed)
    (tmp_path / "lib").mkdir()
    ((name, known),) = known_experiments().items()
    assert (name, known[1:]) == ("theirs", ("Why?", "a day.", "none."))
    assert known.file.samefile(file)


def test_a_faulty_experiment_file_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from keras_pneumo.config import CLASSIFIER\nEXPERIMENT = CLASSIFIER.replace(epochs=-1)\n")
    with pytest.raises(PneumoError, match=r"mine\.py: .*epochs"):
        read_experiment(path)
