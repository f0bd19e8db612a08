"""Work in several processes: every item once, bounded hand-out, and no process left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage import workers
from keras_pneumo.storage.workers import (
    IsolatedWorker,
    WorkerClosedError,
    WorkerCrashedError,
    WorkerTimeoutError,
    available_cores,
    map_files,
    map_in_processes,
    results_in_order,
    start_server,
)


def twice(number):
    return 2 * number


def die_on_seven(number):
    if number in (7, 8):
        os._exit(1)
    return number


def never_end_on_seven(number):
    if number == 7:
        time.sleep(60)
    return number


def where(_):
    return os.getpid()


def refuse_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def take_memory_on_seven(number):
    return np.empty(2**31, np.uint8).nbytes if number == 7 else number  # not touched, or it would end by its time


def refuse_the_disk(number):
    raise PneumoError("the disk is full")


@pytest.mark.parametrize("function", [refuse_three, die_on_seven, never_end_on_seven, take_memory_on_seven])
def test_row_34_row_35_whatever_a_file_does_costs_that_file_alone(function, monkeypatch):
    monkeypatch.setattr(workers, "FILE_SECONDS", 3.0)
    bad = {refuse_three: {3}, die_on_seven: {7, 8}}.get(function, {7})
    results = dict(map_files(function, range(10), 2, chunk=2))
    assert results == {number: None if number in bad else number for number in range(10)}


def slow_at_first(path):
    path.touch()
    time.sleep(0.5 if path.name == "0" else 0)
    return die_on_seven(int(path.name))


@pytest.mark.parametrize("chunk", [1, 2])
def test_results_come_in_order_and_few_wait_for_a_slow_one(tmp_path, chunk):
    paths = [tmp_path / str(number) for number in (0, *range(10, 40), 7, 8, 9)]
    results = map_files(slow_at_first, paths, 2, chunk=chunk, in_order=True)
    assert next(results) == (paths[0], 0)
    assert len(list(tmp_path.iterdir())) <= 2 * 4 * chunk, "what is done waits in memory"
    assert list(results) == [(path, None if path.name in "78" else int(path.name)) for path in paths[1:]]


def test_a_file_without_end_keeps_its_place(monkeypatch):
    monkeypatch.setattr(workers, "FILE_SECONDS", 3.0)
    results = list(map_files(never_end_on_seven, range(12), 2, in_order=True))
    assert results == [(number, None if number == 7 else number) for number in range(12)]


def test_a_full_disk_ends_the_work():
    with pytest.raises(PneumoError, match="disk"):
        list(map_files(refuse_the_disk, range(3), 1))


def test_processes_are_replaced_after_so_many_files(monkeypatch):
    monkeypatch.setattr(workers, "FILES_PER_PROCESS", 5)
    used = [process for _, process in map_files(where, range(12), 1)]
    assert [len(set(used[start : start + 5])) for start in (0, 5, 10)] == [1, 1, 1]
    assert len(set(used)) == 3
    assert os.getpid() not in used


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (2, 1), (2, 4), (2, 100)])
def test_every_item_comes_back_once(workers, chunk):
    results = map_in_processes(twice, list(range(30)), workers, chunk=chunk)
    assert sorted(results) == [(number, 2 * number) for number in range(30)]


def test_results_keep_the_items_order():
    for chunk in (1, 7):
        assert results_in_order(twice, range(30), 2, chunk) == [2 * number for number in range(30)]
    assert results_in_order(twice, []) == []


@pytest.mark.parametrize("chunk", [1, 3])
def test_items_that_kill_their_process_come_back_empty_and_their_neighbours_do_not(chunk):
    results = dict(map_in_processes(die_on_seven, list(range(20)), 2, chunk=chunk))
    assert results == {number: None if number in (7, 8) else number for number in range(20)}


@pytest.mark.parametrize("workers", [None, 1])
def test_a_single_worker_can_be_a_process_of_its_own(workers):
    assert dict(map_in_processes(where, [0], workers)) == {0: os.getpid()}
    assert dict(map_in_processes(where, [0], workers, isolated=True)) != {0: os.getpid()}
    results = dict(map_in_processes(die_on_seven, [6, 7, 9], workers, isolated=True))
    assert results == {6: 6, 7: None, 9: 9}


def test_a_process_that_reads_does_not_wait_for_tensorflow():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = "import keras_pneumo.data.radiographs.reading, sys; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (2, 1), (2, 3)])
def test_an_item_that_never_ends_comes_back_empty(workers, chunk):
    items = list(range(12))
    results = dict(map_in_processes(never_end_on_seven, items, workers, isolated=True, seconds=15, chunk=chunk))
    assert results == {number: None if number == 7 else number for number in range(12)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_ends_the_work(workers):
    with pytest.raises(ValueError, match="three"):
        list(map_in_processes(refuse_three, list(range(30)), workers))


def test_an_isolated_worker_outlives_a_crash_and_a_call_without_end():
    worker = IsolatedWorker()
    assert not worker.is_running
    assert worker.call(twice, 3, seconds=60) == 6
    pid = worker.call(where, 0, seconds=60)
    assert pid != os.getpid()
    with pytest.raises(WorkerCrashedError):
        worker.call(die_on_seven, 7, seconds=60)
    with pytest.raises(ValueError, match="three"):
        worker.call(refuse_three, 3, seconds=60)
    assert worker.call(where, 0, seconds=60) == worker.call(where, 0, seconds=60) != pid
    with pytest.raises(WorkerTimeoutError, match="2 seconds"):
        worker.call(never_end_on_seven, 7, seconds=2)
    assert worker.call(twice, 3, seconds=60) == 6
    worker.close()
    with pytest.raises(WorkerClosedError):
        worker.call(twice, 3, seconds=60)


def test_an_isolated_worker_is_replaced_after_so_many_calls(monkeypatch):
    monkeypatch.setattr(workers, "FILES_PER_PROCESS", 2)
    worker = IsolatedWorker()
    first, second, third = (worker.call(where, 0, seconds=60) for _ in range(3))
    assert first == second != third
    worker.close()


def put_pid_in_environment():
    os.environ["STARTED_BY"] = "initializer"


def started_by(_):
    return os.environ.get("STARTED_BY")


def test_each_process_runs_the_initializer_first():
    results = dict(map_in_processes(started_by, [0, 1], 2, initializer=put_pid_in_environment))
    assert results == {0: "initializer", 1: "initializer"}
    assert "STARTED_BY" not in os.environ


def environment_of(name):
    return os.environ.get(name)


def test_a_worker_has_the_environment_of_the_moment(monkeypatch):
    assert results_in_order(environment_of, ["KERAS_PNEUMO_TEST"], 2) == [None]
    monkeypatch.setenv("KERAS_PNEUMO_TEST", "now")  # the server of the workers runs already
    assert results_in_order(environment_of, ["KERAS_PNEUMO_TEST"], 2) == ["now"]
    monkeypatch.delenv("KERAS_PNEUMO_TEST")
    assert results_in_order(environment_of, ["KERAS_PNEUMO_TEST"], 2) == [None]


def parent_of(_):
    return os.getppid()


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_workers_are_forked_from_one_server_and_never_from_this_process():
    assert start_server()
    parents = {*results_in_order(parent_of, [0, 1], 2), *results_in_order(parent_of, [0, 1], 2)}
    assert len(parents) == 1
    assert os.getpid() not in parents


def test_where_the_system_refuses_a_server_workers_are_started_afresh(monkeypatch):
    def refuse():
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refuse)
    assert not start_server()
    assert results_in_order(twice, [1, 2], 2) == [2, 4]
    assert set(results_in_order(parent_of, [0, 1], 2)) == {os.getpid()}


def test_there_is_at_least_one_core():
    assert available_cores() >= 1


ORPHANS = """
import multiprocessing, os, signal, sys, time
from keras_pneumo.storage.workers import map_in_processes
if __name__ == "__main__":
    for done in map_in_processes(time.sleep, [0.01] * 2 + [600] * 4, 2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid):
    """Whether a process runs; one that has ended but was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look at processes")
def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for _ in range(600):  # a minute; without the watch they would sleep for ten
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
