"""How one of several workers leaves: with its code and its reason, at once."""

import signal

import pytest

from keras_pneumo.cli.workers import ended_together
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training.run_folder import RunLocation

tf = pytest.importorskip("tensorflow")


class Worker:
    """A distribution of two workers, of which this is the second."""

    workers, worker, chief = 2, 1, False

    def __init__(self, broadcast=lambda value: value):
        self.broadcast = self.broadcast_text = broadcast


@pytest.fixture
def leaves(monkeypatch):
    """Runs some work as a worker; gives what the process would exit with, None where it goes on."""

    def left(code):
        raise SystemExit(code)

    monkeypatch.setattr("keras_pneumo.cli.workers.os._exit", left)

    def run(work=lambda: None, distribution=None):
        try:
            with ended_together(distribution or Worker()):
                work()
        except SystemExit as end:
            return end.code
        return None

    return run


def failing(fault):
    def work(*_):
        raise fault

    return work


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (PneumoError("The labels are damaged."), 2, "Refused. The labels are damaged."),
        (Stopped("SIGTERM came.", 75), 75, "Stopped. SIGTERM came."),
        (OSError(28, "No space left on device", "runs/x"), 2, "Refused. No space left on device: runs/x."),
        (IndexError("ours"), 1, "IndexError: ours"),
    ],
)
def test_each_fault_has_its_code_and_words(leaves, capsys, fault, code, said):
    assert leaves(failing(fault)) == code
    heard = capsys.readouterr().err
    assert said in " ".join(heard.split())
    assert ("Traceback" in heard) is (code == 1)


def test_one_worker_that_waits_for_the_report_and_gets_a_signal_may_be_started_again(leaves, capsys):
    def waiting(value):
        signal.raise_signal(signal.SIGUSR1)
        return value

    before = signal.getsignal(signal.SIGUSR1)
    assert leaves(distribution=Worker(waiting)) == 75
    assert "The same command again" in " ".join(capsys.readouterr().err.split())
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (tf.errors.UnavailableError(None, None, "gone"), 75),
        (tf.errors.InternalError(None, None, "Collective ops is aborted by: Socket closed"), 75),
        (tf.errors.InternalError(None, None, "cuDNN failed to initialize"), 1),  # its own: starting again helps nobody
    ],
)
def test_a_lost_worker_is_told_from_a_fault_of_ones_own(leaves, capsys, fault, code):
    distribution = Worker(failing(fault))
    assert leaves(distribution=distribution) == code
    heard = " ".join(capsys.readouterr().err.split())
    assert ("has lost another worker" in heard) is (code == 75)
    assert fault.message in heard, "the cause is told in either case"


def test_a_worker_whose_chief_refused_a_folder_says_so(leaves, capsys):
    from keras_pneumo.training.trainer import shared_location

    distribution = Worker(failing(tf.errors.UnavailableError(None, None, "Collective ops is aborted")))
    assert leaves(lambda: shared_location(distribution, lambda: RunLocation(None, False)), distribution) == 75
    assert "has lost another worker" in " ".join(capsys.readouterr().err.split())


def test_who_is_alone_keeps_his_faults(leaves):
    class Alone(Worker):
        workers = 1

    with pytest.raises(PneumoError):
        leaves(failing(PneumoError("x")), Alone())
