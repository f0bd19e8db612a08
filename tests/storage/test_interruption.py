"""Signals that ask work to stop: noted within a context, or an end at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from keras_pneumo.errors import Stopped
from keras_pneumo.storage.interruption import Interruption, stopped_at_once


def test_a_signal_is_caught_within_only():
    before = signal.getsignal(signal.SIGTERM)
    messages = []
    interruption = Interruption(messages.append)
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (interruption.wanted, interruption.exit_code, interruption.name) == (True, 75, "SIGUSR1")
    assert signal.getsignal(signal.SIGTERM) is before
    assert "finished and saved" in messages[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_there_is_nothing_to_save_ends_at_once_with_its_code(number, code):
    before = signal.getsignal(number)

    @stopped_at_once("The training is done.")
    def report():
        os.kill(os.getpid(), number)
        time.sleep(5)

    with pytest.raises(Stopped, match=r"came\. The training is done") as stopped:
        report()
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before


WORK = """
import sys, time
from keras_pneumo.storage.interruption import Interruption
interruption = Interruption(lambda text: print(text, flush=True))
with interruption.listening():
    print("listens", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_a_second_ctrl_c_ends_at_once():
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C once more stops at once" in process.stdout.readline()
    assert process.poll() is None, "the first one is only noted"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT


def test_a_second_sigterm_is_ignored():
    """Schedulers send the signal more than once; a second one must not interrupt a save."""
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert "SIGTERM: this step is finished" in process.stdout.readline()
    assert process.poll() is None
    process.kill()
    process.wait()
