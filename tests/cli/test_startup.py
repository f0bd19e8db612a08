"""Tests of what the command line imports before it runs a command, and of its list of commands."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_pneumo.cli import COMMANDS

REPOSITORY = Path(__file__).parents[2]
HEAVY = ["tensorflow", "keras", "pandas", "numpy", "scipy", "sklearn", "cv2", "matplotlib", "pydicom", "pydantic"]
SLOW = {"tensorflow", "keras", "torch", "pandas", "scipy", "sklearn", "matplotlib"}
"""What takes from a third of a second to some seconds to import."""


def imported_by(*arguments):
    """The top-level names of all modules that a process has imported when ``keras-pneumo ARGUMENTS`` ends."""
    code = (
        "import sys\n"
        "from keras_pneumo.cli import main\n"
        "try:\n"
        f"    main({list(arguments)!r})\n"
        "finally:\n"
        "    print('IMPORTED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_import_no_heavy_package(arguments):
    assert not imported_by(*arguments) & set(HEAVY)


@pytest.mark.parametrize(
    "command", ["compare", "audit-split", "prepare", "inspect", "phantom", "train", "detect", "masks"]
)
def test_the_help_of_a_command_needs_no_tensorflow(command):
    assert not imported_by(command, "--help") & {"tensorflow", "keras", "torch"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_imports_nothing_that_takes_long(name):
    assert not imported_by(name, "--help") & SLOW


def test_preparing_hands_out_its_files_without_what_only_training_and_scoring_need():
    code = "import sys, keras_pneumo.data.prepared.prepare; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not set(result.stdout.split()) & {*SLOW, "pydicom"}


def test_the_referee_imports_scipy_and_scikit_learn_only_to_compute():
    code = (
        "import sys, keras_pneumo.evaluation.compare, keras_pneumo.evaluation.board.split_audit\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not set(result.stdout.split()) & (SLOW - {"pandas"})


def test_workers_that_read_radiographs_import_neither_pandas_nor_pydicom():
    code = (
        "import sys, keras_pneumo.data.prepared.rendering, keras_pneumo.data.prepared.scanning\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not set(result.stdout.split()) & {*SLOW, "pydicom", "typer", "rich"}


def test_a_worker_that_imports_the_command_again_imports_no_command_line():
    code = "import sys, keras_pneumo.__main__; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not set(result.stdout.split()) & {*HEAVY, "typer", "rich"}


def test_the_command_train_imports_what_prepares_data_only_for_raw_data():
    code = "import sys, keras_pneumo.cli.train; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    imported = result.stdout.split()
    assert "keras_pneumo.data.prepared.folder" in imported
    assert not {"keras_pneumo.phantoms", "keras_pneumo.data.prepared.prepare", "tensorflow"} & set(imported)


def test_importing_the_package_imports_no_heavy_package():
    code = "import keras_pneumo, sys; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert not set(result.stdout.split()) & set(HEAVY)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_docstring_says(name):
    module = importlib.import_module(f"keras_pneumo.cli.{COMMANDS[name].module}")
    text = inspect.getdoc(getattr(module, f"{name.replace('-', '_')}_command"))
    assert COMMANDS[name].summary == " ".join(text.split("\n\n")[0].split())


def test_every_command_of_the_modules_is_listed():
    modules = {command.module for command in COMMANDS.values()}
    written = {
        name.removesuffix("_command").replace("_", "-")
        for module in modules
        for name, _ in inspect.getmembers(importlib.import_module(f"keras_pneumo.cli.{module}"), inspect.isfunction)
        if name.endswith("_command")
    }
    assert written == set(COMMANDS)


def test_no_module_draws_with_pyplot():
    """pyplot looks for a window system, and in a notebook it would change how the user's own pictures are shown.

    Optuna's plots are pyplot's; no notebook draws them, since a sweep is a command only.
    """
    package = REPOSITORY / "keras_pneumo"
    drawing = [path for path in package.rglob("*.py") if re.search(r"import.*pyplot|matplotlib\.use", path.read_text())]
    assert [path.name for path in drawing] == ["sweep.py"]


@pytest.mark.parametrize(("command", "frozen"), [(True, True), (False, False)])
def test_only_in_a_process_of_a_command_what_was_imported_is_never_looked_at_again(command, frozen):
    code = (
        "import gc; from keras_pneumo.quiet import import_tensorflow;"
        f"import_tensorflow(for_command={command}); print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout == f"True {frozen}\n"
