"""Tests of warm_lab.py: what it starts is to its caller what Python itself starts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_lab import REPOSITORY
from warm_lab import warm

SHOW = """
import json, os, sys
sys.stderr.write("aside")
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("NAME"), sys.path[:3], sys.stdin.read(), __name__]))
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "shown.py").write_text(SHOW)
    return tmp_path


@pytest.mark.parametrize("words", [["-c", SHOW], ["-m", "shown"], ["shown.py"]])
@pytest.mark.parametrize("code", [0, 3])
def test_a_program_sees_and_gives_what_it_does_under_python_itself(module, words, code):
    environment = {**os.environ, "NAME": "a name", "PYTHONPATH": str(REPOSITORY)}
    one, other = (
        subprocess.run(
            [*python, *words, "an argument", str(code)],
            capture_output=True, text=True, input="given", cwd=module, env=environment, timeout=120,
        )
        for python in ([sys.executable], warm())
    )  # fmt: skip
    assert one.returncode == other.returncode == code
    assert one.stderr == other.stderr == "aside"
    assert json.loads(one.stdout) == json.loads(other.stdout)


def test_what_others_wrote_is_imported_already_and_ours_is_not():
    code = (
        "import sys; print('keras' in sys.modules, [name for name in sys.modules if name.startswith('keras_pneumo')])"
    )
    done = subprocess.run([*warm(), "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_an_error_has_its_traceback_and_exit_code():
    done = subprocess.run([*warm(), "-c", "print(1); raise ValueError('of its own')"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "1\n")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: of its own\n")


def test_where_a_variable_is_read_at_import_python_itself_is_started():
    code = "import sys; print('tensorflow' in sys.modules)"
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    done = subprocess.run([*warm(), "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "False\n"


WAITS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print(os.getpid(), flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, -2), (signal.SIGKILL, -9)])
def test_a_signal_reaches_it(number, code):
    process = subprocess.Popen([*warm(), "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    fork = int(process.stdout.readline())
    process.send_signal(number)
    # Its end closes the pipe, so nothing of it is left when the pipe ends.
    assert process.stdout.read() == ""
    assert process.wait(timeout=60) == code
    until = time.monotonic() + 30
    while is_there(fork):  # the server has yet to hear of it
        assert time.monotonic() < until
        time.sleep(0.01)


def is_there(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
