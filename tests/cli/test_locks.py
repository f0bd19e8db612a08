"""Tests that one command at a time works in a folder: two are started in truth, whatever commands they are."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from board_lab import submit, write_truth
from command_lab import REPOSITORY, refused, run

LONGEST = 120
"""Seconds after which a process that should have taken its lock counts as broken."""


def is_held(path):
    """Whether a process holds the lock file, by the kernel's own list: to try the lock would hold it for a moment."""
    if not path.exists():
        return False
    return any(
        line.split()[5].endswith(f":{path.stat().st_ino}") for line in Path("/proc/locks").read_text().splitlines()
    )


class Holder:
    """A command in a process of its own that is stopped as soon as it holds a folder."""

    def __init__(self, lock, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_pneumo", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        until = time.monotonic() + LONGEST
        while not is_held(lock):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < until, "it holds nothing"
            time.sleep(0.002)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        """Its exit code and output, when it has gone on to its end."""
        os.killpg(self.process.pid, signal.SIGCONT)
        output, _ = self.process.communicate(timeout=600)
        return self.process.returncode, output

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def holder():
    started = []

    def start(lock, *arguments):
        started.append(Holder(lock, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def comparison(tmp_path):
    """Arguments of a comparison, but for --out."""
    submit(tmp_path / "teams/first", write_truth(tmp_path), "First", 2.0)
    return ["compare", tmp_path / "teams", "--truth", tmp_path / "truth.csv", "--resamples", "2000"]


SMALLEST = REPOSITORY / "experiments/smallest_classifier.py"


def lines_into(out, here):
    """A line of each command that writes into a folder; what they name need not exist, since the folder comes first."""
    nothing = here / "nothing"
    return {
        "compare": ["compare", here / "teams", "--truth", here / "truth.csv", "--out", out],
        "detect": ["detect", nothing, here, "--out", out],
        "predict": ["predict", nothing, "--data", here, "--out", out],
        "predict in its run": ["predict", out, "--data", here],
        "explain": ["explain", nothing, here, "--out", out],
        "explain in its run": ["explain", out, here / "prepared"],
        "join": ["join", nothing, "--segmenter", nothing, "--out", out],
        "masks": ["masks", nothing, "--out", out],
        "evaluate": ["evaluate", nothing, "--data", here, "--out", out],
        "prepare": ["prepare", here, "--out", out],
        "parity": ["parity", "--torch-python", sys.executable, "--out", out],
        "compare-frameworks": [
            *("compare-frameworks", SMALLEST, "--data", here, "--torch-python", sys.executable, "--out", out)
        ],
    }  # fmt: skip


def test_row_41_whatever_the_second_command_is_it_is_refused_at_once(tmp_path, comparison, holder):
    out = tmp_path / "out"
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/manifest.json").write_text("{}")
    first = holder(out / ".lock", *comparison, "--out", out)
    before = sorted(out.rglob("*"))
    for name, line in lines_into(out, tmp_path).items():
        result = run(*line)
        assert result.returncode == 2, (name, result.stderr)
        assert f"Another run is working in {out}. Wait until it has ended" in result.stderr, (name, result.stderr)
        assert "tensorflow" not in result.stderr.lower(), f"{name}: before anything is loaded"
        assert sorted(out.rglob("*")) == before, f"{name}: and nothing was written"
    code, output = first.go_on()
    assert code == 0, output
    assert len(pd.read_csv(out / "board.csv")) > 1
    assert run(*comparison, "--out", out).returncode == 0, "the folder is free again"


def test_row_41_two_exports_to_one_name(tmp_path, holder):
    target = tmp_path / "start.safetensors"
    line = ["export", SMALLEST, "--out", target]
    first = holder(tmp_path / ".start.safetensors.lock", *line)
    refused(run(*line), f"Another run is working in {target}.")
    code, output = first.go_on()
    assert code == 0, output
    assert [path.name for path in tmp_path.iterdir()] == ["start.safetensors"], "and no lock is left"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["detect", "predict", "explain", "join"])
def test_row_41_two_of_the_same_command(tmp_path, tiny_runs, tiny_detector, prepared_folder, phantoms, holder, command):
    out = tmp_path / "out"
    classifier = tiny_runs / "classifier"
    line = {
        "detect": ["detect", tiny_detector, phantoms, "--out", out],
        "predict": ["predict", classifier, "--data", prepared_folder, "--out", out],
        "explain": ["explain", classifier, prepared_folder, "--out", out],
        "join": ["join", classifier, "--segmenter", tiny_runs / "segmenter", "--data", prepared_folder, "--out", out],
    }[command]
    line += ["--resamples", "100"] if command == "join" else []
    first = holder(out / ".lock", *line)
    refused(run(*line), f"Another run is working in {out}.")
    code, output = first.go_on()
    assert code == 0, output
