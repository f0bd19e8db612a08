"""Tests of the cluster: workers from the environment, connections within a time limit, and the strategy."""

import json
import socket
import threading
import time

import pytest

from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training.distributed.cluster import Cluster, choose_strategy, find_cluster, wait_for_all


def config(workers, index=0, kind="worker", **more):
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": workers, **more}, "task": {"type": kind, "index": index}})}


SLURM = {
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "node[2,10]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_ID": "1234567",
}  # fmt: skip


def test_workers_of_tf_config_with_and_without_a_chief():
    cluster = find_cluster(config(["a:1", "b:2"], 1))
    assert (cluster.workers, cluster.index) == (("a:1", "b:2"), 1)
    assert find_cluster({"TF_CONFIG": cluster.tf_config()}).workers == cluster.workers
    cluster = find_cluster(config(["b:2"], 0, chief=["a:1"]))
    assert (cluster.workers, cluster.index) == (("a:1", "b:2"), 1)
    assert find_cluster(config(["b:2"], 0, "chief", chief=["a:1"])).index == 0


def test_one_process_is_no_cluster():
    assert find_cluster({}) is None
    assert find_cluster(config(["a:1"])) is None
    assert find_cluster({"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_cluster({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}) is None, "a batch script is no step"


def set_slurm(monkeypatch, environment):
    """TensorFlow's resolver looks at the process's own variables."""
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        if name.startswith("SLURM"):
            monkeypatch.setenv(name, value)


def test_slurms_hosts_are_in_the_order_of_its_ranks(monkeypatch):
    """TensorFlow's resolver sorts by name, which puts node10 before node2; Slurm does not."""
    set_slurm(monkeypatch, SLURM)
    cluster = find_cluster(SLURM)
    assert cluster.workers == ("node2:24567", "node2:24568", "node10:24567", "node10:24568")
    assert cluster.index == 2


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"TF_CONFIG": "{"}, "cannot be read"),
        ({"TF_CONFIG": "[]"}, "cannot be read"),
        ({"TF_CONFIG": '{"cluster": {}}'}, "cannot be read"),
        (config(["a", "b:2"]), "'a' is not an address"),
        (config(["a:1", "b:99999"]), "not an address"),
        (config(["a..b:1", "b:2"]), "'a..b:1' is not an address"),
        (config(["a:²", "b:2"]), "not an address"),
        (config(["a:1", "a:1"]), "same address"),
        (config(["a:1", "b:2"], 2), "this is worker 2"),
        (config(["a:1", "b:2"], 0, "ps"), "may only name workers"),
        ({**SLURM, "SLURM_PROCID": ""}, "SLURM_PROCID are not set"),
        ({**SLURM, "SLURM_PROCID": "7"}, "this is worker 7"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(y2)"}, "do not fit together"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "5"}, "do not fit together"),
    ],
)
def test_row_26_variables_that_do_not_fit_together_are_refused(monkeypatch, environment, word):
    set_slurm(monkeypatch, environment)
    with pytest.raises(PneumoError, match=word):
        find_cluster(environment)


def test_auto_takes_the_devices_that_are_there():
    assert choose_strategy("auto", {}, 0).description == "one device, CPU:0"
    assert choose_strategy("auto", {}, 1).description == "one device, GPU:0"
    assert (choose_strategy("auto", {}, 4).kind, choose_strategy("auto", {}, 4).description) == (
        "mirrored",
        "mirrored, 4 GPUs",
    )
    assert choose_strategy("auto", {}, 4, replicas=1).kind == "one"
    assert choose_strategy("one", config(["a:1", "b:2"], 0), 4).kind == "one"
    choice = choose_strategy("auto", config(["a:1", "b:2"], 1), 0)
    assert (choice.kind, choice.cluster.index) == ("multiworker", 1)
    assert "ring" in choice.description
    assert "NCCL" in choose_strategy("auto", config(["a:1", "b:2"], 1), 8).description


@pytest.mark.parametrize(
    ("requested", "gpus", "replicas", "word"),
    [
        ("both", 0, None, "no strategy 'both'"),
        ("multiworker", 0, None, "TF_CONFIG"),
        ("mirrored", 0, None, "--replicas 2"),
        ("auto", 2, 3, "more than the 2 GPUs"),
        ("one", 2, 2, "is one device, not 2"),
    ],
)
def test_a_strategy_that_cannot_be_had_is_refused(requested, gpus, replicas, word):
    with pytest.raises(PneumoError, match=word):
        choose_strategy(requested, {}, gpus, replicas)


def test_a_worker_without_gpus_is_not_divided():
    with pytest.raises(PneumoError, match="start more workers"):
        choose_strategy("auto", config(["a:1", "b:2"], 1), 0, replicas=2)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_row_26_a_worker_that_cannot_be_reached_is_named_within_the_time_limit():
    cluster = Cluster((f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"), 0, "TF_CONFIG")
    messages = []
    started = time.monotonic()
    with pytest.raises(Stopped, match=r"has waited 1 s for worker 1 \(127.0.0.1:\d+\)") as caught:
        wait_for_all(cluster, 1.0, messages.append)
    assert caught.value.exit_code == 75
    assert time.monotonic() - started < 30
    assert "waits for worker 1" in messages[0]


def test_row_26_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PneumoError, match=f"Port {port}.*in use"):
            wait_for_all(Cluster((f"127.0.0.1:{port}", "127.0.0.1:1"), 0, "TF_CONFIG"), 1.0)


def wait_together(clusters):
    messages = []

    def wait(cluster):
        try:
            wait_for_all(cluster, 20.0)
        except PneumoError as error:
            messages.append(str(error))

    threads = [threading.Thread(target=wait, args=(cluster,)) for cluster in clusters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return messages


def test_all_workers_reach_each_other():
    workers = tuple(f"127.0.0.1:{free_port()}" for _ in range(3))
    assert wait_together([Cluster(workers, number, "TF_CONFIG") for number in range(3)]) == []


def test_workers_with_lists_in_another_order_are_refused():
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    # Each is at home at its own address, but the second calls itself worker 0.
    messages = wait_together([Cluster((first, second), 0, "TF_CONFIG"), Cluster((second, first), 0, "TF_CONFIG")])
    assert any("answers as worker 0" in message for message in messages)
