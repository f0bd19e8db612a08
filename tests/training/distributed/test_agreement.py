"""Whether workers mean the same training: with distributions of threads, which agree as those of processes do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME
from keras_pneumo.training.distributed.agreement import check_agreement
from keras_pneumo.training.distributed.strategy import ONE_DEVICE

KNOWN = {"experiment": "a", "split": "b", "prepared images": "c"}


class Threads:
    """A distribution, for workers that are threads."""

    def __init__(self, worker, shared):
        self.worker, self.shared, self.chief, self.workers = worker, shared, worker == 0, shared.parties

    def all(self, value):
        self.shared.values[self.worker] = value
        self.shared.wait(timeout=20)
        found = dict(self.shared.values)
        self.shared.wait(timeout=20)
        return found

    def broadcast(self, value):
        return self.all(value)[0]

    broadcast_text = broadcast

    def maximum(self, value):
        return max(self.all(value).values())


def asked(knowns, folders, seconds=0.0):
    """What each worker is told; empty where it goes on."""
    shared = threading.Barrier(len(knowns))
    shared.values = {}

    def one(number):
        try:
            check_agreement(Threads(number, shared), knowns[number], folders[number], seconds)
        except PneumoError as fault:
            return str(fault)
        return ""

    with ThreadPoolExecutor(len(knowns)) as pool:
        return list(pool.map(one, range(len(knowns))))


def test_workers_that_mean_the_same_go_on(tmp_path):
    assert asked([KNOWN] * 3, [tmp_path] * 3) == ["", "", ""]


def test_one_worker_alone_is_not_asked(tmp_path):
    check_agreement(ONE_DEVICE, KNOWN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_refuse_where_one_differs_and_that_one_says_how(tmp_path):
    said = asked([KNOWN, KNOWN, KNOWN | {"split": "x", "prepared images": "y"}], [tmp_path] * 3)
    assert said[0] == said[1] == "Worker 2 refuses this training. Its own output says why."
    assert said[2].startswith("Worker 2 has another prepared images and another split than worker 0.")


@pytest.mark.parametrize("stale", [None, "", "123"])
def test_a_worker_that_does_not_see_the_run_folder_says_so(tmp_path, stale):
    """Not even where its own disk has a folder of that name, with a lock of an earlier run."""
    folders = [tmp_path / "chief", tmp_path / "other"]
    folders[0].mkdir()
    if stale is not None:
        folders[1].mkdir()
        (folders[1] / LOCK_NAME).write_text(stale)
    said = asked([KNOWN, KNOWN], folders)
    assert "Worker 1 refuses" in said[0]
    assert "Worker 1 does not see the run folder of worker 0" in said[1]


def test_a_folder_that_appears_late_is_waited_for(tmp_path):
    """As a network file system shows it."""
    (tmp_path / "chief").mkdir()
    link = threading.Timer(0.3, (tmp_path / "late").symlink_to, [tmp_path / "chief"])
    link.start()
    assert asked([KNOWN, KNOWN], [tmp_path / "chief", tmp_path / "late"], seconds=20.0) == ["", ""]
