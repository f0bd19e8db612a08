"""Tests that a command killed at a random moment gives the result of an unbroken one when its line is run again."""

import re
import subprocess
import sys

import pytest
from command_lab import REPOSITORY
from worker_lab import environment_of

COMMANDS = "predict,join,compare,explain"


@pytest.mark.slow
def test_row_42_a_kill_of_each_command(tmp_path):
    """``make kills`` kills each thirty times, and prepare, train and detect too.

    Those have tests of their own: test_prepare.py, test_trainer_kills.py and the detector's test_detect.py.
    """
    lab = [sys.executable, REPOSITORY / "tests/kill_lab.py", "--kills", "1", "--out", tmp_path / "lab"]
    done = subprocess.run(
        [*lab, "--only", COMMANDS, "--seed", "1"], capture_output=True, text=True, env=environment_of(), timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ended = re.findall(r"^(\w+) .*kills: 1.*the same result each time$", done.stdout, re.MULTILINE)
    assert ended == COMMANDS.split(","), done.stdout
