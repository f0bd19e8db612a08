"""Runs scripts with the Python of PyTorch's own environment: files in, files out."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from warm_lab import PYTORCH, warm

from keras_pneumo.errors import PneumoError
from keras_pneumo.parity import backends


@pytest.fixture(scope="session")
def torch_python():
    """The interpreter that has torch; a test is skipped where none is named and none found."""
    try:
        return backends.torch_python()
    except PneumoError as error:
        if os.environ.get(backends.ENVIRONMENT):
            raise  # named but absent is an error of the set-up, not a reason to skip
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def run_reference(torch_python):
    """``run_reference(task, folder, arguments)`` runs a task of torch_reference.py where its other inputs lie."""

    def run(task, folder, arguments):
        (folder / "task.json").write_text(json.dumps(arguments))
        done = subprocess.run(
            [*warm(torch_python, PYTORCH), str(Path(__file__).with_name("torch_reference.py")), task, str(folder)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture
def reference(tmp_path, run_reference):
    """``reference(task, arguments, arrays=..., state=...)`` runs one task of torch_reference.py; returns its folder."""

    def run(task, arguments, arrays=None, state=None):
        from safetensors.numpy import save_file

        folder = tmp_path / task
        folder.mkdir(exist_ok=True)
        if arrays is not None:
            np.savez(folder / "in.npz", **arrays)
        if state is not None:
            save_file(state, folder / "in.safetensors")
        run_reference(task, folder, arguments)
        return folder

    return run
