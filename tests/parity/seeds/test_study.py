"""The comparison over seeds: its trainings, what survives a kill, what was declared, and the answer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import seeds_lab
from safetensors.numpy import load_file

from keras_pneumo.cli.console import exit_code_of
from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import ChildFailed, PneumoError, Stopped
from keras_pneumo.evaluation.scoring.metrics import auroc
from keras_pneumo.parity.seeds import page
from keras_pneumo.parity.seeds.study import Study, Training, compare_frameworks, seconds_left

EXPERIMENT = CLASSIFIER.replace(name="tiny", encoder="resnet18", weights="random", image_size=64, seed=3)
LAB = Path(seeds_lab.__file__)


@pytest.fixture
def run(tmp_path, prepared_folder):
    """``run(seeds=..., ...)`` compares two stand-in teams in ``tmp_path / "out"``."""
    prepared = load_prepared(prepared_folder)

    def run(experiment=EXPERIMENT, progress=lambda now: None, **settings):
        study = Study(experiment, prepared, tmp_path / "out", **({"seeds": 2, "controls": 1} | settings))
        return compare_frameworks(study, Path(sys.executable), LAB, [sys.executable, str(LAB)], None, progress)

    return run


def logs(out):
    """How often each training was begun."""
    return {path.relative_to(out).as_posix(): path.read_text().count("epoch 1") for path in out.rglob("*.log")}


def test_two_seeds_and_a_control(run, tmp_path, prepared_folder):
    comparison = run()
    out = tmp_path / "out"
    assert comparison.scores[["seed", "team"]].to_numpy().tolist() == [
        [3, "keras"], [3, "torch"], [3, "torch_last_bit"], [4, "keras"], [4, "torch"],
    ]  # fmt: skip
    predicted = comparison.study.trainings[0].submission / "predictions.csv"
    by_id = dict(line.split(",") for line in predicted.read_text().splitlines()[1:])
    test = load_prepared(prepared_folder).split.set_index("image_id").loc[list(by_id)]
    expected = auroc(test["pneumothorax"].to_numpy() == 1, np.array([float(value) for value in by_id.values()]))
    assert comparison.scores.loc[0, "auroc"] == pytest.approx(expected, abs=1e-12)
    own = comparison.scores.pivot_table(index="seed", columns="team", values="auroc")
    difference = comparison.differences["auroc"]
    np.testing.assert_allclose(difference.differences, own["keras"] - own["torch"])
    assert comparison.headline == "auroc"
    assert "dice" not in comparison.verdicts, "neither team drew masks"
    controls = comparison.controls("auroc").set_index("what")
    assert controls["pairs"].tolist() == [2, 1, 1, 1]
    last_bit = controls.loc["PyTorch and PyTorch, same seed, start changed in the last bit"]
    assert last_bit["mean"] == pytest.approx(abs(own.loc[3, "torch"] - own.loc[3, "torch_last_bit"]))
    start, changed = (load_file(out / f"seed_3/{name}.safetensors") for name in ("start", "start_last_bit"))
    apart = changed["conv1.weight"] - start["conv1.weight"]
    assert (apart > 0).all()
    assert np.abs(apart).max() < 1.2e-7
    written = json.loads((out / "study.json").read_text())
    assert written["margin"] == 0.02
    assert [each["seeds"] for each in written["rounds"]] == [2]


def test_what_has_ended_stays_and_more_seeds_may_follow(run, tmp_path):
    first = run()
    out = tmp_path / "out"
    begun = logs(out)
    assert set(begun.values()) == {1}
    torn = out / "seed_4/torch/submission/submission.json"
    torn.unlink()  # as if killed before its last file
    again = run(seeds=3)
    assert again.scores["auroc"].tolist()[:5] == first.scores["auroc"].tolist()
    assert logs(out) == begun | {"seed_4/torch.log": 2, "seed_5/keras.log": 1, "seed_5/torch.log": 1}
    rounds = json.loads((out / "study.json").read_text())["rounds"]
    assert [each["seeds"] for each in rounds] == [2, 3], "the page says that seeds were added"
    assert "Declared in rounds: 2 seeds on" in page.write_answer(again).read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"margin": 0.05}, "The margin 0.02 was declared before the first training and cannot be changed to 0.05"),
        ({"experiment": EXPERIMENT.replace(learning_rate=0.1)}, "holds a comparison of another experiment"),
        ({"seeds": 1}, "was declared with 2 seeds"),
        ({"seeds": 0}, "must be at least 1"),
        ({"margin": 0.0}, "must be between 0 and 1"),
    ],
)
def test_what_was_declared_cannot_be_changed(run, tmp_path, changes, reason):
    run()
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(PneumoError, match=reason):
        run(**changes)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before


def test_a_training_that_fails_is_named_and_the_others_stay(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDS_LAB_FAIL", "torch")
    with pytest.raises(
        PneumoError, match=r"PyTorch with seed 3 failed: The disk .* is full\. Its output is in .*torch\.log"
    ):
        run()
    monkeypatch.delenv("SEEDS_LAB_FAIL")
    run()
    assert logs(tmp_path / "out")["seed_3/keras.log"] == 1


@pytest.mark.parametrize(
    ("code", "kind", "ends_with"),
    [(2, PneumoError, 2), (1, ChildFailed, 70), (70, ChildFailed, 70), (-9, ChildFailed, 70), (75, Stopped, 75)],
)
def test_row_49_a_training_that_ends_by_a_fault_is_no_refusal(run, monkeypatch, code, kind, ends_with):
    monkeypatch.setenv("SEEDS_LAB_FAIL", "keras")
    monkeypatch.setenv("SEEDS_LAB_CODE", str(code))
    with pytest.raises(kind, match=r"Keras with seed 3 .*The disk of this training is full") as raised:
        run()
    assert type(raised.value) is kind
    assert exit_code_of(raised.value) == ends_with


def test_a_signal_is_passed_on_and_the_comparison_can_go_on(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDS_LAB_WAIT", "30")
    lines = []

    def at_first_line(now):
        lines.append(now)
        if now.line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=r"SIGTERM came\. Start the same command again") as stopped:
        run(progress=at_first_line)
    assert stopped.value.exit_code == 75
    assert (lines[-1].done, lines[-1].total, lines[-1].training.team) == (0, 5, "keras")
    assert "SIGTERM came" in (tmp_path / "out/seed_3/keras.log").read_text(), "it had the time to save"
    monkeypatch.delenv("SEEDS_LAB_WAIT")
    assert len(run().scores) == 5


def test_after_a_kill_the_training_that_still_runs_is_not_disturbed(run, tmp_path, prepared_folder):
    experiment, out = tmp_path / "tiny.json", tmp_path / "out"
    experiment.write_text(EXPERIMENT.model_dump_json())
    argv = [sys.executable, LAB, "compare", "--experiment", experiment, "--data", prepared_folder, "--out", out]
    environment = os.environ | {"SEEDS_LAB_WAIT": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(list(map(str, argv)), env=environment)
    log = out / "seed_3/keras.log"
    for _ in range(600):
        if log.exists() and "epoch 1" in log.read_text():
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    with pytest.raises(PneumoError, match="an earlier start of this comparison began still runs"):
        run(controls=2)
    while not (out / "seed_3/keras/report.html").exists():
        time.sleep(0.1)
    time.sleep(0.5)  # the process ends
    run(controls=2)
    assert logs(out)["seed_3/keras.log"] == 1, "it was kept"


def test_the_time_left():
    waiting = [Training(seed, team, Path()) for seed, team in ((1, "torch"), (1, "torch_last_bit"), (2, "keras"))]
    seconds = {(0, "keras"): 100.0, (0, "torch"): 50.0, (0, "torch_last_bit"): 70.0, (1, "keras"): 120.0}
    assert seconds_left(seconds, waiting, 20.0) == 60 + 60 + 110 - 20
    assert seconds_left(seconds, waiting, 500.0) == 60 + 110, "a slow one is not promised to have ended long ago"
    assert seconds_left({(0, "keras"): 100.0}, waiting, 0.0) is None


def test_json_and_page_say_the_same(run, tmp_path):
    comparison = run(seeds=3)
    path = page.write_answer(comparison)
    answer = json.loads((tmp_path / "out/compare_frameworks.json").read_text())
    text = path.read_text()
    assert answer["outcome"] == comparison.verdicts["auroc"].outcome
    headline = page.sentences_of(comparison, "auroc")[0]
    assert answer["verdict"].startswith(headline)
    assert headline in text
    assert [row["auroc"] for row in answer["trainings"]] == comparison.scores["auroc"].tolist()
    for row in answer["trainings"]:
        assert page.number(row["auroc"]) in text
    assert answer["differences"]["auroc"]["value"] == pytest.approx(comparison.differences["auroc"].value)
    assert answer["scores"]["auroc"]["more_seeds"] == comparison.verdicts["auroc"].more_seeds
    assert "<script" not in text
    assert all(link not in text for link in ('src="', "url(", 'href="http')), "one offline file"
    assert "Research use only" in text
