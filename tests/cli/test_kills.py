"""Tests that a command killed at a random moment gives the result of an unbroken one when its line is run again."""

import re
import subprocess
import sys

import pytest
from command_lab import REPOSITORY
from worker_lab import environment_of

COMMANDS = "prepare,train,predict,join,detect,compare,explain"


@pytest.mark.slow
def test_row_17_row_42_a_kill_of_each_command(tmp_path):
    """``make kills`` kills each thirty times."""
    lab = [sys.executable, REPOSITORY / "tests/kill_lab.py", "--kills", "1", "--out", tmp_path / "lab"]
    done = subprocess.run([*lab, "--seed", "1"], capture_output=True, text=True, env=environment_of(), timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ended = re.findall(r"^(\w+) .*kills: 1.*the same result each time$", done.stdout, re.MULTILINE)
    assert ended == COMMANDS.split(","), done.stdout
