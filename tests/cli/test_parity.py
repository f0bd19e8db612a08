"""The command parity: its table, refusals and exit codes. (The whole ladder: tests/parity/pytorch.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from ladder_lab import ladder, result
from rich.console import Console

from keras_pneumo.cli import parity as command
from keras_pneumo.parity import backends
from keras_pneumo.parity.comparison import Difference

REPOSITORY = Path(__file__).parents[2]


def test_the_table_in_a_pipe_is_plain_and_complete(monkeypatch, capsys):
    from keras_pneumo.cli import console

    piped = Console(width=40)
    monkeypatch.setattr(command, "out", piped)
    monkeypatch.setattr(console, "out", piped)
    broken = Difference(1.0, 0.2, 0.2, first="[bold]conv1", worst="[bold]conv1", compared=9)
    command.show_ladder(ladder(result(), result(6, "Forward", "in training mode", broken, None, "no such package")))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    line = next(line for line in printed.splitlines() if "6. Forward" in line)
    for word in ("in training mode", "1.0e+00", "2.0e-01", "–", "[bold]conv1", "BROKEN"):
        assert word in line, "a row is one line however narrow the pipe"
    assert "6. All that remains. Keras on torch: no such package." in printed
    assert printed.strip().splitlines()[-1].startswith("Not yet")


def test_the_command_refuses_before_anything_is_loaded(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_pneumo", "parity", "--torch-python", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert "There is no Python nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("check", "code"), [(result(), 0), (result(keras=Difference(1, 1, 1, "a", "a", 1)), 1)])
def test_the_exit_code_tells_whether_a_check_is_broken(monkeypatch, check, code):
    from keras_pneumo.parity import run

    monkeypatch.setenv(backends.ENVIRONMENT, sys.executable)
    monkeypatch.setattr(run, "run_ladder", lambda *_, **__: ladder(check))
    if code == 0:
        command.parity_command(out_folder=Path("x"))
        return
    with pytest.raises(typer.Exit) as end:
        command.parity_command(out_folder=Path("x"))
    assert end.value.exit_code == code
