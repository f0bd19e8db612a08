"""Tests that one of several workers ends at once, with the right exit code and message."""

import signal
import socket
from pathlib import Path

import pytest
import typer
from command_lab import REPOSITORY, refused, run
from worker_lab import free_ports, tf_config

from keras_pneumo.cli import app
from keras_pneumo.cli.workers import data_of, ended_together, one_of
from keras_pneumo.errors import PneumoError, Stopped
from keras_pneumo.training.run_folder import RunLocation

tf = pytest.importorskip("tensorflow")


def test_data_is_named_with_an_option_or_without_one():
    a, b = Path("a"), Path("b")
    assert data_of(a, None, "DATA") == data_of([a], None, "DATA") == data_of(None, [a], "DATA") == [a]
    assert data_of([], [a, b], "DATA") == data_of([a, b], [], "DATA") == [a, b]
    with pytest.raises(PneumoError, match="named twice, as DATA and with --data"):
        data_of(a, [b], "DATA")
    with pytest.raises(PneumoError, match="No data is named"):
        data_of([], None, "DATA")
    assert one_of([a]) == a
    with pytest.raises(PneumoError, match="takes one folder, and --data names 2"):
        one_of([a, b])


WITH_DATA = (
    "prepare",
    "inspect",
    "train",
    "find-lr",
    "sweep",
    "predict",
    "explain",
    "evaluate",
    "audit-split",
    "parity",
)
WITH_DATA += ("compare-frameworks", "join", "detect", "view")


@pytest.mark.parametrize("name", WITH_DATA)
def test_every_command_that_reads_radiographs_takes_them_with_data(name):
    command = typer.main.get_command(app).commands[name]
    assert any("--data" in parameter.opts for parameter in command.params)
    if any(parameter.name == "experiment_file" for parameter in command.params):
        assert any("--set" in parameter.opts for parameter in command.params), "and its settings with --set"


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


SMALLEST = REPOSITORY / "experiments/smallest_classifier.py"
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG cannot be read"),
        ({"TF_CONFIG": tf_config([1, 99999], 0)}, "'127.0.0.1:99999' is not an address"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID, SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE are not set"),
    ],
)
@pytest.mark.parametrize("command", ["train", "predict"])
def test_row_26_variables_that_do_not_fit_are_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, prepared_folder, variables, words, command
):
    for name in ("TF_CONFIG", *SLURM):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # No run of that name: the variables are looked at first.
    what = SMALLEST if command == "train" else tmp_path / "no run"
    result = run(command, what, "--data", prepared_folder, "--out", tmp_path / "out")
    refused(result, words)
    assert "tensorflow" not in result.stderr.lower()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "predict"])
def test_row_26_a_port_in_use_and_a_worker_that_never_comes(tmp_path, monkeypatch, prepared_folder, tiny_runs, command):
    what = SMALLEST if command == "train" else tiny_runs / "classifier"
    line = [command, what, "--data", prepared_folder, "--out", tmp_path / "out", "--wait-for-workers", "2"]
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        monkeypatch.setenv("TF_CONFIG", tf_config([port, *free_ports(1)], 0))
        refused(run(*line), f"Port {port}, which TF_CONFIG gives worker 0 (127.0.0.1), is in use here.")
    monkeypatch.setenv("TF_CONFIG", tf_config(free_ports(2), 0))
    result = run(*line)
    assert result.returncode == 75, result.stderr
    assert "Stopped. Worker 0 has waited 2 s for worker 1 (127.0.0.1:" in result.stderr
    assert not (tmp_path / "out").exists(), "and nothing is left"
