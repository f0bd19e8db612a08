"""Tests of faults as they are, not simulated: another training's checkpoint by the command, and a memory that ends."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import training_memory_lab
from command_lab import REPOSITORY, refused, run
from safetensors.numpy import load_file
from worker_lab import environment_of

from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

TRAIN = ["train", REPOSITORY / "experiments/smallest_classifier.py", "--checkpoint-every", "1steps"]


def interrupted(prepared, out):
    """A training by the command, ended by a signal after its first step; gives the newest checkpoint."""
    line = [sys.executable, "-m", "keras_pneumo", *TRAIN, "--data", prepared, "--out", out]
    process = subprocess.Popen(
        [str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment_of()
    )
    until = time.monotonic() + 300
    while not list(out.glob("checkpoints/at_0000_00000[1-9]/COMPLETE.json")):
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 75, output[-3000:]
    return sorted(out.glob("checkpoints/at_*"))[-1]


def contents(folder):
    """Each file of a run folder with its bytes and the time of its last change; the lock is no content."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def one_sentence(result, *words):
    """The command was refused in one message that holds these words, and did nothing else."""
    refused(result, *words)
    assert result.stderr.count("Error") <= 1
    assert "epoch" not in result.stdout


def test_row_19_a_training_that_was_interrupted_goes_on_with_its_own_data_split_and_network_only(
    tmp_path, phantoms, prepared_folder
):
    run_folder = tmp_path / "run"
    interrupted(prepared_folder, run_folder)
    before = contents(run_folder)
    write_phantoms(tmp_path / "others", PhantomSettings(images=40, seed=6, positive_rate=0.5, size_scale=4.0))
    prepare(tmp_path / "others", tmp_path / "data_set", [64], patients=tmp_path / "others/patients.csv", workers=2)
    prepare(phantoms, tmp_path / "split", [64, 128], patients=phantoms / "patients.csv", seed=1, workers=2)
    cases = {
        "data set": ["--data", tmp_path / "data_set"],
        "split": ["--data", tmp_path / "split"],
        "network": ["--data", prepared_folder, "--set", "encoder=resnet34"],
    }
    for name, changed in cases.items():
        one_sentence(
            run(*TRAIN, *changed, "--out", run_folder), "another experiment, data set or split", "nothing was changed"
        )
        assert contents(run_folder) == before, name
    one_sentence(
        run(*TRAIN, "--data", tmp_path / "split", "--out", run_folder, "--resume"),
        "another experiment, data set or split", "nothing to go on with",
    )  # fmt: skip
    assert contents(run_folder) == before

    # The record fits, and only the checkpoint is another training's: its own record of what it belongs to decides.
    other = tmp_path / "other"
    interrupted(tmp_path / "split", other)
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run_folder / "checkpoints", other / "checkpoints")
    before = contents(other / "checkpoints")
    again = run(*TRAIN, "--data", tmp_path / "split", "--out", other)
    one_sentence(again, "is of another split", "cannot go on from it", "with --out")
    assert contents(other / "checkpoints") == before

    done = run(*TRAIN, "--data", prepared_folder, "--out", run_folder)
    assert done.returncode == 0, done.stderr
    assert "going on with it" in done.stdout + done.stderr
    assert (run_folder / "report.html").is_file()


def test_row_21_a_real_lack_of_memory_gives_the_weights_of_enough_memory(tmp_path, prepared_folder):
    limits = {"whole": training_memory_lab.UNLIMITED, "limited": training_memory_lab.LIMITED}
    messages, weights = {}, {}
    for name, limit in limits.items():
        out = tmp_path / name
        done = subprocess.run(
            [sys.executable, training_memory_lab.__file__, prepared_folder, out],
            capture_output=True, text=True, timeout=300,
            env=environment_of(KERAS_PNEUMO_CACHE=str(tmp_path / f"cache of {name}"), **limit),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        messages[name] = json.loads((out / "messages.json").read_text())
        weights[name] = load_file(out / "best.safetensors")
    assert messages["whole"] == []
    first, *more = messages["limited"]
    assert first.startswith("Out of memory: ")
    assert first.endswith(" in 2 micro-batches, with the same effective batch.")
    assert all(message.startswith("Out of memory: ") for message in more)
    assert json.loads((tmp_path / "limited/experiment.json").read_text())["slices"] >= 2
    (remembered,) = json.loads((tmp_path / "cache of limited/memory.json").read_text()).values()
    assert remembered < 14
    for name, value in weights["whole"].items():
        difference = weights["limited"][name] - value
        assert np.abs(difference).max() < 2e-5, name  # the sum over the pixels of a batch, in another order
        if name in ("conv1.bias", "fc.bias"):  # these began as 0
            assert 0 < np.linalg.norm(difference) < 0.01 * np.linalg.norm(value), name
