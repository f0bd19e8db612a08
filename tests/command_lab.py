"""Runs keras-pneumo as a user does, and checks its output."""

import os
import re
import shlex
import subprocess
from pathlib import Path

from warm_lab import warm

REPOSITORY = Path(__file__).parents[1]


def run(*arguments, cwd=None, timeout=600, python=None):
    """``keras-pneumo ARGUMENTS`` in a process of its own; ``python``: the words that start it, else a warm one."""
    return subprocess.run(
        [*(python or warm()), "-m", "keras_pneumo", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)},
    )


def shell(line, cwd):
    """Runs a line from a help text as a shell would, with this environment's keras-pneumo."""
    for part in line.split("&&"):
        words = shlex.split(part)
        assert words[0] == "keras-pneumo"
        result = run(*words[1:], cwd=cwd)
        assert result.returncode == 0, result.stderr
        yield result


def refused(result, *words):
    """The process gave one clear message, without a traceback, and ended with 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def example(command):
    text = " ".join(run(command, "--help").stdout.split())
    match = re.search(r"Example[^:]*: (keras-pneumo .*?)(?: Arguments|[│╭]| ?\w*Options|$)", text)
    assert match, text
    return re.sub(r"[╭╮╰╯│─].*", "", match.group(1)).strip()
