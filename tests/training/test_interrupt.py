"""Ctrl-C in a process of its own: the first one is kept for the step's end, the second ends at once."""

import signal
import subprocess
import sys

WORK = """
import sys, time
from keras_pneumo.training.callbacks import Interruption
found = Interruption(lambda text: print(text, flush=True))
with found.listening():
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


def test_a_second_sigterm_is_noted_no_further():
    """Schedulers send it more than once; what is being saved must not be cut off."""
    process = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    assert "SIGTERM: this step is finished" in process.stdout.readline()
    assert process.poll() is None
    process.kill()
    process.wait()
