"""Tests that two logical devices, and two workers on one host, train and predict as one device does."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from worker_lab import REPOSITORY, begin, end, free_ports

from keras_pneumo.training.distributed.strategy import ONE_DEVICE


def two_workers(prepared, folder, out, **options):
    """Starts two processes that train together."""
    ports = free_ports(2)
    return [
        begin(prepared, folder, f"{out}{number}.npz", (ports, number), strategy="auto", **options)
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, prepared_folder):
    """Losses and predictions of a training on one device."""
    folder = tmp_path_factory.mktemp("one")
    end(begin(prepared_folder, folder / "run", folder / "one.npz", strategy="one"))
    return np.load(folder / "one.npz")


def assert_same_training(result, expected):
    """Losses to 1e-5 over at least 20 steps; predictions of 7 images and of 1, which do not divide by 2."""
    assert len(result["losses"]) == len(expected["losses"]) >= 20
    np.testing.assert_allclose(result["losses"], expected["losses"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(result["predictions"], expected["predictions"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(result["first_prediction"], result["predictions"][:1], atol=1e-6, rtol=0)
    assert result["predictions"].shape == (7, 1)


@pytest.mark.slow
def test_two_logical_devices_give_the_losses_and_predictions_of_one(one_device, tmp_path, prepared_folder):
    end(begin(prepared_folder, tmp_path / "run", tmp_path / "two.npz", strategy="mirrored", replicas=2))
    assert_same_training(np.load(tmp_path / "two.npz"), one_device)


@pytest.mark.slow
def test_a_resnet_learns_on_two_devices_and_two_workers_what_it_learns_on_one(tmp_path):
    """In float64, since a ResNet makes the rounding of float32 large: losses to 1e-5 over 20 steps."""
    benchmark = REPOSITORY / "experiments/benchmarks/replicas.py"
    command = [sys.executable, benchmark, "--only", "float64", "--size", "32", "--json", tmp_path / "rows.json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["name"]: row["ratio"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    for devices in ("2 (logical)", "2 workers"):
        assert 0 < rows[f"loss of {devices} in float64 against 1e-05"] < 1
    assert "| 2 workers: two processes on loopback |" in done.stdout


@pytest.mark.slow
def test_micro_batches_average_and_clipping_work_together_with_two_devices(tmp_path, prepared_folder):
    """BatchNorm keeps its statistics, so that micro-batches are the same as the whole batch."""
    changes = {"frozen_batchnorm": True, "ema": 0.5, "clip_norm": 0.1}
    end(begin(prepared_folder, tmp_path / "one", tmp_path / "one.npz", strategy="one", changes=changes))
    changes["accumulation"] = 2
    end(
        begin(prepared_folder, tmp_path / "two", tmp_path / "two.npz", strategy="mirrored", replicas=2, changes=changes)
    )
    assert_same_training(np.load(tmp_path / "two.npz"), np.load(tmp_path / "one.npz"))


@pytest.mark.slow
def test_the_loss_is_scaled_on_two_devices_as_on_one(tmp_path, prepared_folder):
    """In float16, to its precision. The loss scale belongs to the optimizer; an overflow on one replica affects all."""
    changes = {"precision": "mixed_float16", "learning_rate": 1e-3, "clip_norm": 1.0}
    end(begin(prepared_folder, tmp_path / "one", tmp_path / "one.npz", strategy="one", changes=changes))
    end(
        begin(prepared_folder, tmp_path / "two", tmp_path / "two.npz", strategy="mirrored", replicas=2, changes=changes)
    )
    single, double = (np.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    np.testing.assert_allclose(double["losses"], single["losses"], atol=5e-3, rtol=0)
    np.testing.assert_allclose(double["predictions"], single["predictions"], atol=2e-2, rtol=0)
    assert np.abs(np.diff(single["losses"])).max() > 1e-3, "it learns"


@pytest.mark.slow
def test_two_workers_give_the_losses_of_one_and_a_killed_one_ends_the_other(one_device, tmp_path, prepared_folder):
    """Both are then started again and give the same weights, bit for bit."""
    end(*two_workers(prepared_folder, tmp_path / "whole", tmp_path / "whole"))
    for number in range(2):
        assert_same_training(np.load(tmp_path / f"whole{number}.npz"), one_device)
    workers = two_workers(prepared_folder, tmp_path / "broken", tmp_path / "broken", every="1steps", print=True)
    while workers[1].stdout.readline() != "step 9\n":
        assert workers[1].poll() is None, workers[1].stderr.read()
    workers[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (errors,) = end(workers[0], code=75, timeout=90)
    assert time.monotonic() - killed < 90
    assert "has lost another worker" in errors
    assert "go on" in errors
    workers[1].wait()
    errors = end(*two_workers(prepared_folder, tmp_path / "broken", tmp_path / "broken", every="1steps"))
    assert all("goes on from at_" in text for text in errors)
    rest = np.load(tmp_path / "broken0.npz")["losses"]
    assert 5 < len(rest) < len(one_device["losses"]), "it did not begin anew"
    (last,) = tmp_path.glob("whole/checkpoints/at_*")
    arrays = f"checkpoints/{last.name}/arrays.safetensors"
    first, second = (load_file(tmp_path / name / arrays) for name in ("whole", "broken"))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_both_at_the_same_step(tmp_path, prepared_folder):
    workers = two_workers(prepared_folder, tmp_path / "run", tmp_path / "out", print=True, changes={"epochs": 300})
    while workers[1].stdout.readline() != "step 9\n":
        assert workers[1].poll() is None, workers[1].stderr.read()
    workers[1].send_signal(signal.SIGTERM)
    errors = end(*workers, code=75)
    assert "A signal to another worker came at epoch" in errors[0]
    assert "SIGTERM came at epoch" in errors[1]
    assert errors[0].split(" came at epoch ")[1].split(";")[0] == errors[1].split(" came at epoch ")[1].split(";")[0]


@pytest.mark.slow
def test_a_worker_without_memory_ends_both_and_a_restart_halves_the_batch_on_each(tmp_path, prepared_folder):
    """BatchNorm keeps its statistics, so the weights are those of a training with enough memory."""
    settings = {"changes": {"frozen_batchnorm": True}, "every": "1steps", "poor_worker": 1}
    end(*two_workers(prepared_folder, tmp_path / "rich", tmp_path / "rich", **(settings | {"poor_worker": None})))
    chief, poor = end(*two_workers(prepared_folder, tmp_path / "run", tmp_path / "out", **settings), code=75)
    assert "Out of memory on worker 1. From now on 2 images are taken at once" in poor
    assert "has lost another worker" in chief
    (remembered,) = json.loads((tmp_path / "run-host1/memory.json").read_text()).values()
    assert remembered == 2, "half of worker 1's part of a batch of 8"
    errors = end(*two_workers(prepared_folder, tmp_path / "run", tmp_path / "out", **settings))
    assert all("goes on from at_" in text for text in errors)
    rest, whole = (np.load(tmp_path / f"{name}0.npz") for name in ("out", "rich"))
    assert 5 < len(rest["losses"]) < len(whole["losses"])
    np.testing.assert_allclose(rest["losses"], whole["losses"][-len(rest["losses"]) :], atol=1e-5, rtol=0)
    np.testing.assert_allclose(rest["predictions"], whole["predictions"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_workers_with_different_trainings_refuse_before_the_first_step(tmp_path, prepared_folder):
    """With another fold, a worker would train on what the chief validates with, in steps of equal size."""
    changes = {"changes": {"fold": 0}, "others": {"fold": 1}}
    chief, other = end(*two_workers(prepared_folder, tmp_path / "run", tmp_path / "out", **changes), code=2)
    assert "Worker 1 refuses this training" in chief
    assert "Worker 1 has another experiment than worker 0" in other
    assert not (tmp_path / "run/log.csv").exists()


@pytest.mark.slow
def test_auto_batch_with_one_worker_that_lacks_memory_halves_the_batch_on_all(tmp_path, prepared_folder):
    changes = {"changes": {"frozen_batchnorm": True}, "poor_trial": 1}
    rich, poor = end(*two_workers(prepared_folder, tmp_path / "run", tmp_path / "out", **changes))
    assert "4 images fit into memory at once; each batch is taken in 1 micro-batches" in rich
    assert "2 images fit into memory at once; each batch is taken in 2 micro-batches" in poor
    first, second = (np.load(tmp_path / f"out{number}.npz") for number in range(2))
    np.testing.assert_array_equal(first["losses"], second["losses"])


def test_one_device_agrees_with_itself():
    assert (ONE_DEVICE.broadcast(7), ONE_DEVICE.maximum(3), ONE_DEVICE.broadcast_text("ü"), ONE_DEVICE.chief) == (
        7,
        3,
        "ü",
        True,
    )


def test_synchronized_batch_norm_sends_one_message_forwards_and_one_backwards(step_lab):
    """The 20 of a ResNet18: count, sum and sum of squares in float64; two gradients in float32."""
    norms = step_lab["learning"][:-3]
    assert len(norms) == 2 * 20
    channels = [(message["bytes"] // 8 - 1) // 2 for message in norms[:20]]
    assert channels == [64] * 5 + [128] * 5 + [256] * 5 + [512] * 5
    assert all(message["bytes"] == (2 * count + 1) * 8 for message, count in zip(norms[:20], channels, strict=True))
    assert {message["type"] for message in norms[:20]} == {"float64"}
    assert sorted(message["bytes"] for message in norms[20:]) == [2 * count * 4 for count in channels]
    assert step_lab["frozen"][-3:] == step_lab["frozen"], "a frozen one sends nothing"


def test_gradients_are_sent_in_few_messages_of_bounded_size(step_lab):
    """45 MB in three; every weight once, and besides the loss and the stop request, in the last message."""
    for norms in ("learning", "frozen"):
        messages = step_lab[norms][-3:]
        sizes = [message["bytes"] for message in messages]
        largest = 512 * 512 * 9 * 4
        assert all(size <= 16_000_000 + largest for size in sizes)
        assert all(size > 16_000_000 for size in sizes[:-1])
    assert sum(message["bytes"] for message in step_lab["learning"][-3:]) == 4 * (step_lab["gradients"] + 9600 + 2)
    assert sum(message["bytes"] for message in step_lab["frozen"]) == 4 * (step_lab["gradients"] + 2)


def test_the_first_gradients_are_sent_before_the_last_are_there(step_lab):
    """Of 39 gradients of convolutions. TensorFlow sends one message after the other; BatchNorm's come first."""
    waited = {norms: [message["gradients"] for message in step_lab[norms][-3:]] for norms in ("learning", "frozen")}
    assert waited == {"frozen": [3, 11, 39], "learning": [21, 25, 39]}
    for norms in ("learning", "frozen"):
        assert [message["messages"] for message in step_lab[norms]] == list(range(len(step_lab[norms])))


def test_xla_compiles_what_is_between_the_messages_and_gives_the_same_numbers(step_lab):
    """On logical CPU devices; 5 messages of each replica: two BatchNorms, forwards and backwards, and the gradient."""
    plain, compiled = step_lab["plain"], step_lab["xla"]
    assert plain["clusters"] == 0
    assert compiled["clusters"] >= 2 * 5
    assert plain["messages"] == compiled["messages"] == [2 * 5, 0], "all outside of the clusters"
    np.testing.assert_allclose(compiled["losses"], plain["losses"], atol=1e-6, rtol=0)
    assert compiled["weights"] == pytest.approx(plain["weights"], rel=1e-6)
    assert plain["losses"][-1] < plain["losses"][0]
