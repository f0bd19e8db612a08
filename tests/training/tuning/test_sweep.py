"""Sweeps: the space is checked, a killed sweep goes on, trials are pruned, and the best is an experiment."""

import dataclasses
import re

import crash_lab
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Augmentation, read_experiment
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.training.run_folder import progress_of
from keras_pneumo.training.trainer import TrainingOptions
from keras_pneumo.training.tuning import sweep as module
from keras_pneumo.training.tuning.sweep import draw, experiment_text, read_space, sweep

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = CLASSIFIER.replace(
    name="tiny", encoder="resnet18", weights="random", image_size=64, frozen_epochs=0, epochs=2, global_batch_size=8
)
RATES = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "optimizer": CategoricalDistribution(("adamw", "sgd")),
}


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


def swept(prepared_folder, out, trials, experiment=TINY, space=RATES, **options):
    ended = []
    chosen = TrainingOptions(build=crash_lab.tiny, **options)
    result = sweep(experiment, load_prepared(prepared_folder), space, trials, out, chosen, on_trial=ended.append)
    return result, ended


def test_a_sweep_trains_its_trials_and_writes_down_the_best(tmp_path, prepared_folder):
    out = tmp_path / "sweep"
    result, ended = swept(prepared_folder, out, 3)
    table = pd.read_csv(out / "trials.csv")
    assert table["state"].tolist() == ["complete"] * 3
    assert table["learning_rate"].between(1e-4, 1e-2).all()
    assert table["learning_rate"].nunique() == 3
    assert [trial.number for trial in ended] == [0, 1, 2]
    for row in table.itertuples():
        log = pd.read_csv(out / row.folder / "log.csv")
        assert row.score == pytest.approx(log["validation_auroc"].max())
        own = read_experiment(out / row.folder)
        assert (own.learning_rate, own.optimizer) == (row.learning_rate, row.optimizer)
        assert own.replace(name="tiny", learning_rate=1e-3, optimizer="adamw") == TINY, "all else is the same"
        assert not (out / row.folder / "submission").exists(), "no trial has seen the test images"
    best = table.loc[table["score"].idxmax()]
    assert result.score == best["score"]
    assert result.run == out / best["folder"]
    assert read_experiment(out / "best.py") == read_experiment(result.run)
    assert "synthetic phantoms" in (out / "best.py").read_text()
    for name in ("trials.png", "epochs.png", "settings.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    chosen = read_experiment(result.run)
    assert progress_of(result.run, chosen, load_prepared(prepared_folder)) == "unfinished", "train reports"


class Killed(BaseException):
    """The process ends here."""


def test_a_killed_sweep_goes_on_with_its_trial_and_counts_what_it_has(tmp_path, prepared_folder):
    out, seen = tmp_path / "sweep", []

    def kill_in_the_second(row):
        seen.append(row)
        if len(seen) == 3:  # the second trial's first epoch
            raise Killed

    with pytest.raises(Killed):
        swept(prepared_folder, out, 3, on_epoch=kill_in_the_second)
    before = read_experiment(out / "trial_001")
    assert pd.read_csv(out / "trials.csv")["trial"].tolist() == [0]
    with pytest.raises(PneumoError, match=r"holds a sweep that differs in space\. Choose another --out"):
        swept(prepared_folder, out, 3, space={"optimizer": RATES["optimizer"]})
    _, ended = swept(prepared_folder, out, 3)
    assert [trial.number for trial in ended] == [1, 2]
    assert read_experiment(out / "trial_001") == before
    table = pd.read_csv(out / "trials.csv")
    assert table["state"].tolist() == ["complete"] * 3
    assert table["learning_rate"].nunique() == 3, "a sampler that began anew would draw the first rate again"
    _, ended = swept(prepared_folder, out, 3)
    assert not ended, "nothing is left to do"
    assert len(swept(prepared_folder, out, 4)[1]) == 1, "more may follow"


def test_a_trial_that_was_trained_but_not_told_is_not_trained_again(tmp_path, prepared_folder, monkeypatch):
    out = tmp_path / "sweep"

    with monkeypatch.context() as patched:
        patched.setattr("optuna.study.Study.tell", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            swept(prepared_folder, out, 1)
    before = (out / "trial_000/best.weights.h5").stat().st_mtime_ns
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained again"))
    (trial,) = swept(prepared_folder, out, 1)[1]
    assert trial.state == "complete"
    assert (out / "trial_000/best.weights.h5").stat().st_mtime_ns == before


def scripted(scores):
    """A training that takes no time, with the validation scores of each trial's epochs."""

    def train(experiment, prepared, folder, options, weights=None):
        number = int(experiment.name[-3:])
        row = dataclasses.make_dataclass("Row", ["epoch", "score"])
        log = pd.DataFrame({"epoch": [], "validation_auroc": [], "best": []})
        for epoch, score in enumerate(scores[number], start=1):
            log.loc[len(log)] = [epoch, score, int(score > log["validation_auroc"].max() or epoch == 1)]
            log.to_csv(folder / "log.csv")
            options.on_epoch(row(epoch, score))
        if not scores[number]:
            raise module.Diverged("The loss is nan. Lower learning_rate.")

    return train


def test_hopeless_trials_are_pruned_and_diverged_ones_are_passed_over(tmp_path, prepared_folder, monkeypatch):
    good, bad = [0.6, 0.7, 0.8, 0.9], [0.5, 0.5, 0.5, 0.9]
    scores = [good] * 5 + [bad, [], [0.6, 0.7, 0.8, 0.95]]
    monkeypatch.setattr(module, "train", scripted(scores))
    notes = []
    result, ended = swept(prepared_folder, tmp_path / "sweep", 8, notify=notes.append)
    assert [trial.state for trial in ended] == ["complete"] * 5 + ["pruned", "failed", "complete"]
    assert result.counts == {"complete": 6, "pruned": 1, "failed": 1}
    assert [trial.best for trial in ended] == [True, *[False] * 6, True]
    assert len(pd.read_csv(tmp_path / "sweep/trial_005/log.csv")) == 2, "ended after the epochs that are not judged"
    assert (ended[5].score, ended[6].score) == (0.5, None)
    assert result.score == 0.95
    assert notes == ["Trial 6: The loss is nan. Lower learning_rate."]


def test_a_sweep_without_any_score_is_refused(tmp_path, prepared_folder, monkeypatch):
    monkeypatch.setattr(module, "train", scripted([[], []]))
    with pytest.raises(PneumoError, match=r"None of 2 trials in .* gave a finite validation AUROC"):
        swept(prepared_folder, tmp_path / "sweep", 2)


def test_sizes_that_are_not_prepared_and_folders_of_something_else_are_refused(tmp_path, prepared_folder):
    with pytest.raises(PneumoError, match=r"does not hold the image size 96\. Run prepare .* with --size 96"):
        swept(prepared_folder, tmp_path / "a", 1, space={"image_size": IntDistribution(64, 128, step=32)})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.txt").write_text("mine")
    with pytest.raises(PneumoError, match="is not empty"):
        swept(prepared_folder, tmp_path / "b", 1)
    assert [path.name for path in (tmp_path / "b").iterdir() if path.suffix == ".txt"] == ["notes.txt"]


@pytest.mark.parametrize(
    "experiment",
    [
        TINY.replace(positive_rate=((0, 0.8), (5, 0.4)), clip_norm=1.0, augmentation=Augmentation(flip=0, rotate=3.5)),
        SEGMENTER.replace(name="s", loss="3 bce + 1 dice", crop=64, attention="scse", positive_rate=()),
        CLASSIFIER,
    ],
)
def test_an_experiment_as_a_file_is_the_same_experiment(tmp_path, experiment):
    path = tmp_path / "mine.py"
    path.write_text(experiment_text(experiment, "Why?\n"))
    assert read_experiment(path) == experiment


def test_the_plots_say_what_is_synthetic_and_leave_the_style_of_others_alone(tmp_path, monkeypatch):
    study = optuna.create_study(direction="maximize")
    for score, name in ((0.8, "adamw"), (0.7, "sgd")):
        values = {"learning_rate": 1e-3, "optimizer": name}
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=RATES, value=score, intermediate_values={1: score})
        )
    titles = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: titles.append(figure.get_suptitle()))
    style = dict(module.mpl.rcParams)
    draw(study, tmp_path, "validation AUROC", True)
    draw(study, tmp_path, "validation AUROC", False)
    assert titles == ["2 trials on synthetic phantoms"] * 3 + ["2 trials"] * 3
    changed = {key for key, value in style.items() if module.mpl.rcParams[key] != value}
    assert changed <= {"backend", "backend_fallback"}
