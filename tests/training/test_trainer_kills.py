"""Tests that a killed training goes on and gives the weights of an uninterrupted one, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import crash_lab
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.training.run_folder import find_run_folder, is_trained

TIMES = ["seconds", "images_per_second", "data_seconds", "memory_gb"]


class Lab:
    """The process of crash_lab.py."""

    def __init__(self, folder, prepared):
        self.prepared = prepared
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "crash_lab.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip

    def begin(self, folder, experiment, **more):
        command = {"prepared": str(self.prepared), "folder": str(folder), "experiment": experiment, **more}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def line(self):
        return self.process.stdout.readline().strip()

    def finish(self, folder, experiment, **more):
        self.begin(folder, experiment, **more)
        while not (line := self.line()).startswith("ended"):
            assert line == "first step", self.errors_text()
        return int(line.split()[1])

    def errors_text(self):
        self.errors.flush()
        return Path(self.errors.name).read_text()[-3000:]


@pytest.fixture
def lab(tmp_path, prepared_folder):
    lab = Lab(tmp_path, prepared_folder)
    yield lab
    lab.process.stdin.close()
    lab.process.wait(timeout=60)
    lab.errors.close()


def same(first_run, second_run):
    """Checks that the runs have the same weights, kept epochs, log and last checkpoint with its optimizer."""
    last = [path.relative_to(first_run) for path in first_run.glob("checkpoints/at_*/arrays.safetensors")]
    assert len(last) == 1
    for name in ["best.safetensors", *last]:
        first, second = load_file(first_run / name), load_file(second_run / name)
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=f"{name} {key}")
    logs = [pd.read_csv(folder / "log.csv").drop(columns=TIMES) for folder in (first_run, second_run)]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    fitted = [(folder / "postprocess.json").read_bytes() for folder in (first_run, second_run)]
    assert fitted[0] == fitted[1]
    assert (first_run / last[0].parent / "kept/postprocess.json").is_file()
    kept = [sorted(path.name for path in folder.glob("checkpoints/epoch_*")) for folder in (first_run, second_run)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2


@pytest.mark.slow
def test_row_17_thirty_kills_at_random_moments_give_the_weights_of_an_uninterrupted_run(lab, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert lab.finish(whole, "long") == 0, lab.errors_text()
    moments = random.Random(4)
    kills = in_saves = 0
    positions = set()
    while kills < 30:
        number = lab.begin(broken, "long", slow=0.01)
        line = lab.line()
        assert line == "first step", f"ended after {kills} kills: {line} {lab.errors_text()}"
        time.sleep(moments.uniform(0, 0.4))
        os.kill(number, signal.SIGKILL)
        assert lab.line() == "ended -9", lab.errors_text()
        kills += 1
        in_saves += bool(list(broken.glob("checkpoints/.writing_*")))
        positions |= {path.name for path in broken.glob("checkpoints/at_*")}
    assert in_saves >= 3, "some kills met a save"
    assert len(positions) > 20, "and they came at many places"
    assert not (broken / "curves.png").exists(), "it was not finished yet"
    assert lab.finish(broken, "long") == 0, lab.errors_text()
    same(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_row_29_a_signal_finishes_the_step_saves_and_says_how_to_go_on(lab, tmp_path, number):
    broken = tmp_path / "broken"
    process = lab.begin(broken, "short", every="10min", changes={"epochs": 200, "swa_epochs": 0})
    assert lab.line() == "first step", lab.errors_text()
    time.sleep(0.3)
    os.kill(process, number)
    ended = lab.line()
    assert ended == ("ended 130" if number == signal.SIGINT else "ended 75"), lab.errors_text()
    assert "Run the same command again to go on" in lab.errors_text()
    last = sorted(broken.glob("checkpoints/at_*"))[-1]
    assert last.name != "at_0000_000000"
    assert (last / "COMPLETE.json").exists()


def test_row_17_killed_before_the_first_step_the_same_command_trains(lab, tmp_path, prepared_folder):
    prepared = load_prepared(prepared_folder)
    for moment in crash_lab.MOMENTS:
        out = tmp_path / moment
        lab.begin(out, "short", kill=moment, resume=find_run_folder(out, crash_lab.SHORT, prepared, False).resume)
        assert lab.line() == "ended -9", lab.errors_text()
        left = {path.name for path in out.iterdir()} - {".lock"}
        assert left, "it was at work"
        location = find_run_folder(out, crash_lab.SHORT, prepared, False)
        assert location.resume == ("experiment.json" in left)
    assert lab.finish(out, "short", resume=location.resume) == 0, lab.errors_text()
    assert is_trained(out)
    half = tmp_path / "half a record"
    assert not find_run_folder(half, crash_lab.SHORT, prepared, False).resume, "nothing is written yet"
    assert lab.finish(half, "short", resume=False) == 0, lab.errors_text()
    assert not list(half.glob(".*.part"))
