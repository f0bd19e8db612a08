"""Tests of the check that all workers train the same; the workers are threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME
from keras_pneumo.training.distributed.agreement import check_agreement
from keras_pneumo.training.distributed.strategy import ONE_DEVICE

IDENTITY = {"experiment": "a", "split": "b", "prepared images": "c"}


class Threads:
    """A distribution whose workers are threads."""

    def __init__(self, worker, shared):
        self.worker, self.shared, self.chief, self.workers = worker, shared, worker == 0, shared.parties

    def all(self, value):
        self.shared.values[self.worker] = value
        self.shared.wait(timeout=20)
        values = dict(self.shared.values)
        self.shared.wait(timeout=20)
        return values

    def broadcast(self, value):
        return self.all(value)[0]

    broadcast_text = broadcast

    def maximum(self, value):
        return max(self.all(value).values())


def refusals(identities, folders, seconds=0.0):
    """The refusal of each worker; empty where it goes on."""
    shared = threading.Barrier(len(identities))
    shared.values = {}

    def check(number):
        try:
            check_agreement(Threads(number, shared), identities[number], folders[number], seconds)
        except PneumoError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(identities)) as pool:
        return list(pool.map(check, range(len(identities))))


def test_workers_with_the_same_training_go_on(tmp_path):
    assert refusals([IDENTITY] * 3, [tmp_path] * 3) == ["", "", ""]


def test_one_worker_alone_is_not_checked(tmp_path):
    check_agreement(ONE_DEVICE, IDENTITY, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_refuse_where_one_differs_and_that_one_says_how(tmp_path):
    messages = refusals([IDENTITY, IDENTITY, IDENTITY | {"split": "x", "prepared images": "y"}], [tmp_path] * 3)
    assert messages[0] == messages[1] == "Worker 2 refuses this training. Its own output says why."
    assert messages[2].startswith("Worker 2 has another prepared images and another split than worker 0.")


@pytest.mark.parametrize("stale", [None, "", "123"])
def test_a_worker_that_does_not_see_the_run_folder_says_so(tmp_path, stale):
    """Also where its own disk has a folder of that name, with a lock of an earlier run."""
    folders = [tmp_path / "chief", tmp_path / "other"]
    folders[0].mkdir()
    if stale is not None:
        folders[1].mkdir()
        (folders[1] / LOCK_NAME).write_text(stale)
    messages = refusals([IDENTITY, IDENTITY], folders)
    assert "Worker 1 refuses" in messages[0]
    assert "Worker 1 does not see the run folder of worker 0" in messages[1]


def test_a_folder_that_appears_late_is_waited_for(tmp_path):
    """A network file system may show a new folder late."""
    (tmp_path / "chief").mkdir()
    link = threading.Timer(0.3, (tmp_path / "late").symlink_to, [tmp_path / "chief"])
    link.start()
    assert refusals([IDENTITY, IDENTITY], [tmp_path / "chief", tmp_path / "late"], seconds=20.0) == ["", ""]
