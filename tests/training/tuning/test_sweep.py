"""Sweeps: a killed sweep goes on, trials are pruned, and the best is an experiment."""

import dataclasses
import warnings

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
from keras_pneumo.training.tuning.sweep import draw, experiment_text, sweep

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = CLASSIFIER.replace(
    name="tiny", encoder="resnet18", weights="random", image_size=64, frozen_epochs=0, epochs=2, global_batch_size=8
)
RATES = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "optimizer": CategoricalDistribution(("adamw", "sgd")),
}


def swept(prepared_folder, out, trials, experiment=TINY, space=RATES, **options):
    ended = []
    chosen = TrainingOptions(build=crash_lab.tiny, **options)
    result = sweep(
        experiment, load_prepared(prepared_folder), space, trials, out, chosen,
        on_trial=lambda current, trial: ended.append((trial, current.best().number if current.best() else None)),
    )  # fmt: skip
    return result, ended


def test_a_sweep_trains_its_trials_and_writes_down_the_best(tmp_path, prepared_folder):
    out = tmp_path / "sweep"
    result, ended = swept(prepared_folder, out, 3)
    table = pd.read_csv(out / "trials.csv")
    assert table["state"].tolist() == ["complete"] * 3
    assert table["learning_rate"].between(1e-4, 1e-2).all()
    assert table["learning_rate"].nunique() == 3
    assert [trial.number for trial, _ in ended] == [0, 1, 2]
    for row in table.itertuples():
        log = pd.read_csv(out / row.folder / "log.csv")
        assert row.score == pytest.approx(log["validation_auroc"].max())
        own = read_experiment(out / row.folder)
        assert (own.learning_rate, own.optimizer) == (row.learning_rate, row.optimizer)
        assert own.replace(name="tiny", learning_rate=1e-3, optimizer="adamw") == TINY, "all else is the same"
        assert not (out / row.folder / "submission").exists(), "no trial has seen the test images"
    best = table.loc[table["score"].idxmax()]
    run = result.run_folder(result.study.best_trial.number)
    assert result.study.best_value == best["score"]
    assert run == out / best["folder"]
    assert read_experiment(out / "best.py") == read_experiment(run)
    assert "synthetic phantoms" in (out / "best.py").read_text()
    for name in ("trials.png", "epochs.png", "settings.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    chosen = read_experiment(run)
    assert progress_of(run, chosen, load_prepared(prepared_folder)) == "unfinished", "train reports"


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
    assert [trial.number for trial, _ in ended] == [1, 2]
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
    ((trial, _),) = swept(prepared_folder, out, 1)[1]
    assert trial.state.name == "COMPLETE"
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
    assert [trial.state.name for trial, _ in ended] == ["COMPLETE"] * 5 + ["PRUNED", "FAIL", "COMPLETE"]
    assert result.counts() == {"complete": 6, "pruned": 1, "failed": 1}
    assert pd.read_csv(tmp_path / "sweep/trials.csv")["state"].tolist() == ["complete"] * 5 + [
        "pruned",
        "failed",
        "complete",
    ]
    assert [trial.number for trial, best in ended if best == trial.number] == [0, 7], "the best so far, when they ended"
    assert len(pd.read_csv(tmp_path / "sweep/trial_005/log.csv")) == 2, "ended after the epochs that are not judged"
    assert [trial.value for trial, _ in ended[5:7]] == [0.5, None]
    assert result.study.best_value == 0.95
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # both trials have one rate: Optuna's axis has no width
        draw(study, tmp_path, "validation AUROC", True)
    draw(study, tmp_path, "validation AUROC", False)
    assert titles == ["2 trials on synthetic phantoms"] * 3 + ["2 trials"] * 3
    changed = {key for key, value in style.items() if module.mpl.rcParams[key] != value}
    assert changed <= {"backend", "backend_fallback"}
