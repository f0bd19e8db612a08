"""Tests of how a fault of the program itself ends: code 70, one sentence, and a log without anything of the user's."""

import importlib
import os
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from command_lab import REPOSITORY

from keras_pneumo.cli import COMMANDS, main
from keras_pneumo.cli.failure import MOST_LOGS, log_of, report_failure
from keras_pneumo.config import read_experiment
from keras_pneumo.errors import FAILED, PneumoError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

PLANTED = """
import sys
import keras_pneumo.cli.data as commands
from keras_pneumo.cli import main

def phantom_command():
    {fault}

commands.phantom_command = phantom_command
sys.argv = ["keras-pneumo", "phantom", "--out=/data/Smith"]
main(["phantom"])
"""


def planted(fault, cache, code=PLANTED, **options):
    """A process whose command ``phantom`` runs one line."""
    environment = {**ENVIRONMENT, "KERAS_PNEUMO_CACHE": str(cache), "COLUMNS": "200"}
    line = [sys.executable, "-c", code.format(fault=fault)]
    return subprocess.run(line, env=environment, text=True, **({"capture_output": True} | options))


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("raise KeyError('Smith^John')", "KeyError"),
        ("raise MemoryError", "MemoryError"),
        ("raise BrokenPipeError(32, 'Smith^John')", "BrokenPipeError"),
        ("raise EOFError('Smith^John')", "EOFError"),
        ("assert False, 'Smith^John'", "AssertionError"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
    ],
)
def test_a_planted_fault_ends_with_70_a_sentence_and_a_log(tmp_path, fault, name):
    result = planted(fault, tmp_path)
    assert result.returncode == 70, result.stderr
    assert "Traceback" not in result.stderr
    (log,) = (tmp_path / "errors").iterdir()
    assert result.stderr.startswith("Failed. The program has a fault: ")
    assert str(log) in result.stderr
    text = log.read_text()
    assert name in text
    assert "command: phantom --out" in text
    assert "keras_pneumo/cli/__init__.py, line " in text
    assert "Smith" not in text, "neither the message nor the value of an option"
    assert str(REPOSITORY) not in text, "nor the folders of this machine"


@pytest.mark.parametrize("name", COMMANDS)
def test_row_49_every_command_ends_a_fault_with_70(name, own_cache, monkeypatch, capsys):
    """Never with 1, which means that the command is done and something was set aside."""

    def broken():
        raise KeyError("Smith^John")

    module = importlib.import_module(f"keras_pneumo.cli.{COMMANDS[name].module}")
    monkeypatch.setattr(module, f"{name.replace('-', '_')}_command", broken)
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == FAILED == 70
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("Failed. The program has a fault: KeyError: 'Smith^John' (")
    assert "Please send " in message


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("sys.exit(1)", "SystemExit"),
        ("sys.exit('Smith^John')", "SystemExit"),
        ("sys.exit(0)", "SystemExit"),
        ("import threading; t = threading.Thread(target=lambda: {}['Smith^John']); t.start(); t.join()", "KeyError"),
        ("import asyncio; asyncio.run(asyncio.sleep('Smith^John'))", "TypeError"),
        ("raise type('Broken', (Exception,), {'__str__': lambda self: 1 / 0})()", "Broken"),
        ("raise type('PanicException', (BaseException,), {})('Smith^John')", "PanicException"),
        (r"raise ValueError('Smith\udcff\x1b[2J')", "ValueError"),
    ],
)
def test_row_49_a_library_that_ends_the_program_a_thread_and_a_broken_error_end_with_70(tmp_path, fault, cause):
    result = planted(fault, tmp_path)
    assert result.returncode == 70, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Failed. The program has a fault: ")
    assert "\x1b" not in result.stderr
    (log,) = (tmp_path / "errors").iterdir()
    assert cause in log.read_text()
    assert "Smith" not in log.read_text()


@pytest.mark.parametrize(
    ("fault", "code"),
    [("raise KeyError('x')", 70), ("from keras_pneumo import PneumoError; raise PneumoError('No.')", 2), ("pass", 0)],
)
def test_row_49_a_console_that_is_full_or_closed_changes_no_exit_code(tmp_path, fault, code):
    with Path("/dev/full").open("w") as full:
        result = planted(fault, tmp_path, capture_output=False, stdout=full, stderr=full)
    assert result.returncode == code
    environment = {**ENVIRONMENT, "KERAS_PNEUMO_CACHE": str(tmp_path)}
    line = [sys.executable, "-c", PLANTED.format(fault=fault)]
    closed = subprocess.run(["bash", "-c", f"{shlex.join(line)} >&- 2>&-"], env=environment)
    assert closed.returncode == code


def test_row_49_a_result_that_cannot_be_written_is_refused(tmp_path):
    with Path("/dev/full").open("w") as full:
        result = planted("from keras_pneumo.cli.console import say; say('x')", tmp_path, capture_output=False,
                         stdout=full, stderr=subprocess.PIPE)  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("Refused. ")
    assert "No space left on device" in result.stderr


def test_row_49_an_experiment_file_that_ends_the_program_is_refused(tmp_path):
    (tmp_path / "bad.py").write_text("raise SystemExit(1)")
    with pytest.raises(PneumoError, match=r"could not be run: SystemExit: 1\. Mend the file"):
        read_experiment(tmp_path / "bad.py")


def test_without_a_place_for_the_log_the_sentence_says_so(tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(file))
    monkeypatch.setattr("keras_pneumo.cli.failure.tempfile.gettempdir", lambda: str(file))
    assert report_failure(IndexError("x")) == 70
    assert "No log could be written" in " ".join(capsys.readouterr().err.split())


def test_only_the_newest_logs_are_kept(tmp_path, own_cache):
    folder = tmp_path / "cache/errors"
    folder.mkdir(parents=True)
    for number in range(MOST_LOGS + 5):
        (folder / f"keras-pneumo-20200101-{number:06d}-1.log").touch()
    report_failure(IndexError("x"))
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == MOST_LOGS
    assert names[0] == "keras-pneumo-20200101-000006-1.log"


def test_the_log_follows_an_error_into_the_process_that_it_happened_in():
    with ProcessPoolExecutor(1) as pool, pytest.raises(TypeError) as raised:
        pool.submit(sorted, 3).result()
    assert "concurrent/futures" in log_of(raised.value) or "process.py, line" in log_of(raised.value)
    assert "in _process_worker" in log_of(raised.value)


OUTPUT = """
import sys
from keras_pneumo.cli.console import out, say, warn
import keras_pneumo.cli.data as commands
from keras_pneumo.cli import main

def phantom_command():
    for number in range(100_000):
        {fault}

commands.phantom_command = phantom_command
main({arguments})
"""


@pytest.mark.parametrize("call", ["say('x' * 100)", "warn('x' * 100)"])
def test_a_command_whose_output_nobody_reads_ends_with_141_and_without_a_word(tmp_path, call):
    reading, writing = os.pipe()
    os.close(reading)
    outputs = {"stdout": writing, "stderr": subprocess.PIPE} if "say" in call else {"stdout": 2, "stderr": writing}
    result = planted(call, tmp_path, OUTPUT.replace("{arguments}", "['phantom']"), capture_output=False, **outputs)
    os.close(writing)
    assert result.returncode == 141, result.stderr
    assert not result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["phantom", "--help"], ["--version"]])
def test_a_help_that_nobody_reads_ends_with_141(tmp_path, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    code = OUTPUT.replace("{arguments}", repr(arguments)).replace("commands.phantom_command = phantom_command\n", "")
    result = planted("pass", tmp_path, code, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert result.returncode == 141, result.stderr
    assert not result.stderr


def test_a_help_of_which_only_the_beginning_is_read_ends_with_141():
    line = f"{shlex.quote(sys.executable)} -m keras_pneumo prepare --help"
    result = subprocess.run(
        ["bash", "-c", line + " | head -n 3 >/dev/null; echo ${PIPESTATUS[0]}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (result.stdout.strip(), result.stderr) == ("141", "")


def test_a_refusal_that_nobody_reads_ends_with_141(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "keras_pneumo", "inspect", str(tmp_path / "nowhere")]
    result = subprocess.run(
        line, stderr=writing, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    os.close(writing)
    assert result.returncode == 141
    assert not result.stdout


def test_a_damaged_installation_ends_with_70(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('half of it is gone')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    line = [sys.executable, "-m", "keras_pneumo", "--version"]
    result = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert result.returncode == 70
    assert "Failed. keras-pneumo is not installed as it should be: half of it is gone." in result.stderr
    assert "Traceback" not in result.stderr
