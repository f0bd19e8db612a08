"""Tests that one of several workers ends at once, with the right exit code and message."""

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
    """Calls a function as a worker; gives the exit code of the process, None where it goes on."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("keras_pneumo.cli.workers.os._exit", leave)

    def run(function=lambda: None, distribution=None):
        try:
            with ended_together(distribution or Worker()):
                function()
        except SystemExit as end:
            return end.code
        return None

    return run


def failing(error):
    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PneumoError("The labels are damaged."), 2, "Refused. The labels are damaged."),
        (Stopped("SIGTERM came.", 75), 75, "Stopped. SIGTERM came."),
        (OSError(28, "No space left on device", "runs/x"), 2, "Refused. No space left on device: runs/x."),
        (IndexError("a bug"), 70, "Failed. The program has a fault: IndexError: a bug"),
    ],
)
def test_each_error_has_its_exit_code_and_message(leaves, capsys, own_cache, error, code, message):
    assert leaves(failing(error)) == code
    output = capsys.readouterr().err
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_worker_that_gets_a_signal_while_it_waits_for_the_report_may_be_started_again(leaves, capsys):
    def waiting(value):
        signal.raise_signal(signal.SIGUSR1)
        return value

    before = signal.getsignal(signal.SIGUSR1)
    assert leaves(distribution=Worker(waiting)) == 75
    assert "The same command again" in " ".join(capsys.readouterr().err.split())
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tf.errors.UnavailableError(None, None, "gone"), 75),
        (tf.errors.InternalError(None, None, "Collective ops is aborted by: Socket closed"), 75),
        (
            tf.errors.InternalError(None, None, "cuDNN failed to initialize"),
            70,
        ),  # its own: starting again does not help
    ],
)
def test_a_lost_worker_and_an_error_of_this_worker_have_different_messages(leaves, capsys, own_cache, error, code):
    distribution = Worker(failing(error))
    assert leaves(distribution=distribution) == code
    output = " ".join(capsys.readouterr().err.split())
    assert ("has lost another worker" in output) is (code == 75)
    assert error.message in output, "the cause is named in either case"


def test_a_worker_whose_chief_refused_a_folder_says_so(leaves, capsys):
    from keras_pneumo.training.trainer import shared_location

    distribution = Worker(failing(tf.errors.UnavailableError(None, None, "Collective ops is aborted")))
    assert leaves(lambda: shared_location(distribution, lambda: RunLocation(None, False)), distribution) == 75
    assert "has lost another worker" in " ".join(capsys.readouterr().err.split())


def test_a_single_process_raises_its_errors(leaves):
    class Alone(Worker):
        workers = 1

    with pytest.raises(PneumoError):
        leaves(failing(PneumoError("x")), Alone())
