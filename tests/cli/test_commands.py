"""Tests of the commands as separate processes: their output and their exit codes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from command_lab import REPOSITORY, example, refused, run, shell

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.inference.provenance import image_keys
from keras_pneumo.storage.files import write_table

COMMANDS = [
    "doctor",
    "phantom",
    "download",
    "prepare",
    "inspect",
    "experiments",
    "train",
    "find-lr",
    "sweep",
    "predict",
    "masks",
    "explain",
    "export",
    "unpack",
    "push",
    "card",
    "track",
    "evaluate",
    "submission-template",
    "check-submission",
    "compare",
    "audit-split",
    "parity",
    "join",
    "detect",
    "view",
]
# These follow others' results or need an account or PyTorch's environment, so they are not run as they stand.
FOLLOWING = [
    "download",
    "predict",
    "explain",
    "evaluate",
    "check-submission",
    "compare",
    "train",
    "find-lr",
    "sweep",
    "export",
    "parity",
]
FOLLOWING += ["masks", "join", "detect", "view", "unpack", "push", "card", "track"]
EXAMPLES = [name for name in COMMANDS if name not in FOLLOWING]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    assert example(command).startswith(f"keras-pneumo {command}") or f"&& keras-pneumo {command}" in example(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_work_when_pasted(tmp_path, command):
    results = list(shell(example(command), tmp_path))
    assert results


@pytest.mark.slow
def test_the_training_examples_work_one_after_the_other(tmp_path):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    train = list(shell(example("train"), tmp_path))[-1]
    report = Path(train.stdout.strip().splitlines()[-1])
    assert report.name == "report.html"
    page = (tmp_path / report).read_text()
    assert "esearch use only" in page
    assert "http://" not in re.sub(r"http://www\.w3\.org/\S+", "", page), "the page asks nothing of the network"
    for _ in shell(example("find-lr"), tmp_path):
        pass
    assert list(tmp_path.glob("runs/*-rates/learning_rates.png"))
    swept = list(shell(example("sweep"), tmp_path))[-1]
    assert "The best has validation AUROC" in swept.stdout
    report_line = swept.stdout[swept.stdout.index("keras-pneumo train") :]
    assert list(shell(report_line, tmp_path)), "the line that it prints predicts with the best trial"
    assert list(tmp_path.glob("runs/smallest_classifier-sweep/trial_00?/report.html"))
    for _ in shell(example("predict"), tmp_path):
        pass
    assert len(pd.read_csv(tmp_path / "runs/try/predictions.csv")) == 60
    for _ in shell(example("explain"), tmp_path):
        pass
    assert list(tmp_path.glob("runs/explain-try/overlays/*.png"))
    (checked,) = shell(example("check-submission"), tmp_path)
    assert "No fault." in checked.stdout
    for _ in shell(example("compare"), tmp_path):
        pass
    for _ in shell(example("evaluate"), tmp_path):
        pass
    assert (tmp_path / "runs/evaluate-try/report.html").is_file()
    for _ in shell(example("export"), tmp_path):
        pass
    assert (tmp_path / "start.safetensors").stat().st_size > 10**6
    board = pd.read_csv(tmp_path / "runs/compare-try/board.csv")
    assert {"team", "auroc", "auroc_low", "auroc_high", "accuracy"} <= set(board.columns)
    assert len(board) > 3, "the metadata-only baselines stand beside the team"
    again = run("train", "experiments/smallest_classifier.py", "--data", "data/phantom-try", cwd=tmp_path)
    assert again.returncode == 0
    assert (tmp_path / "runs/smallest_classifier-2/report.html").exists(), "a second run goes beside the first"
    into_full = run(
        "train", "experiments/smallest_classifier.py", "--data", "data/phantom-try", "--out", "runs/try", cwd=tmp_path
    )
    refused(into_full, "not empty")


def test_the_version_is_printed():
    assert re.fullmatch(r"keras-pneumo \d+\.\d+\.\d+\n", run("--version").stdout)


def test_doctor_prints_a_line_for_each_check(tmp_path):
    result = run("doctor", "--folder", tmp_path / "new", python=[sys.executable])
    assert result.returncode == 0, result.stdout
    for subject in ("python", "packages", "training", "devices", "strategy", "decoder", "memory", "disk"):
        assert re.search(rf"^(ok|note|FAULT)\s+{subject} ", result.stdout, re.M), subject
    assert "cuInit" not in result.stderr
    assert "oneDNN custom" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.py", "--data", "x"], ["There is no experiment nowhere.py"]),
        (["train", str(REPOSITORY / "experiments/demo_classifier.py"), "--data", "nowhere"], ["no folder nowhere"]),
        (["prepare", "nowhere", "--out", "p"], ["nowhere"]),
        (["inspect", "nowhere"], ["nowhere"]),
        (["predict", "nowhere", "--data", "x"], ["nowhere is not a run folder"]),
        (["compare", "nowhere", "--truth", "x", "--out", "o"], []),
        (["phantom", "p", "--size-scale", "-1"], ["size_scale"]),
        (["phantom", "p", "--images", "0"], ["--images"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(tmp_path, arguments, words):
    refused(run(*arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_set_aside_files_give_exit_code_one(tmp_path, phantoms):
    data = tmp_path / "data with space"
    data.mkdir()
    for path in phantoms.rglob("*.dcm"):
        shutil.copy(path, data)
    for name in ("train-rle.csv", "patients.csv"):
        (data / name).write_bytes((phantoms / name).read_bytes())
    victim = sorted(data.glob("*.dcm"))[0]
    victim.unlink()
    victim.write_bytes(b"not a radiograph")
    result = run("prepare", data, "--out", tmp_path / "prepared", "--size", "64")
    assert result.returncode == 1, result.stderr
    assert "quarantine.csv" in result.stderr
    quarantine = pd.read_csv(tmp_path / "prepared/quarantine.csv")
    assert victim.name in set(quarantine["file"])
    again = run("prepare", data, "--out", tmp_path / "prepared", "--size", "64")
    assert "nothing was left to do" in again.stdout


@pytest.mark.slow
def test_ctrl_c_ends_a_training_with_130_and_keeps_the_best_weights(tmp_path, prepared_folder):
    experiment = tmp_path / "long.py"
    experiment.write_text(
        "from keras_pneumo.config import CLASSIFIER as base\n"
        "EXPERIMENT = base.replace(name='long', encoder='resnet18', weights='random', image_size=64,"
        " frozen_epochs=0, epochs=500, global_batch_size=8)\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "keras_pneumo",
            "train",
            experiment,
            "--data",
            prepared_folder,
            "--out",
            tmp_path / "run",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "best.weights.h5").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Ctrl-C came at epoch" in errors
    assert "Run the same command again to go on" in errors
    assert (tmp_path / "run" / "best.weights.h5").stat().st_size > 10**6


def test_a_start_from_a_run_that_has_learned_from_the_test_images_is_refused(tmp_path, tiny_runs, prepared_folder):
    """The run's record says that all images of the folder were its training images."""
    earlier = Path(shutil.copytree(tiny_runs / "classifier", tmp_path / "earlier"))
    learned = image_keys(load_prepared(prepared_folder)).assign(subset="train", earlier=0)
    record = json.loads((earlier / "experiment.json").read_text())
    record |= {"split_sha256": "another", "learned_images_sha256": write_table(earlier / "learned_images.csv", learned)}
    (earlier / "experiment.json").write_text(json.dumps(record))
    experiment = tmp_path / "experiment.json"
    experiment.write_text(json.dumps(record["experiment"]))
    to_train = ["train", experiment, "--data", prepared_folder, "--out", tmp_path / "run"]
    first = load_prepared(prepared_folder).subset("validation")[0]
    refused(
        run(*to_train, "--start-from", earlier),
        "earlier cannot be started from",
        "learned from ",
        " images of them",
        first,
    )
    both = run(*to_train, "--start-from", earlier, "--weights", tmp_path / "any.safetensors")
    refused(both, "Give --weights or --start-from, not both")
