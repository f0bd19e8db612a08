"""Runs scripts with the Python of PyTorch's own environment: files in, files out."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

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


@pytest.fixture
def reference(tmp_path, torch_python):
    """``reference(task, arguments, arrays=..., state=...)`` runs one task of torch_reference.py; returns its folder."""

    def run(task, arguments, arrays=None, state=None):
        from safetensors.numpy import save_file

        folder = tmp_path / task
        folder.mkdir(exist_ok=True)
        (folder / "task.json").write_text(json.dumps(arguments))
        if arrays is not None:
            np.savez(folder / "in.npz", **arrays)
        if state is not None:
            save_file(state, folder / "in.safetensors")
        script = Path(__file__).with_name("torch_reference.py")
        done = subprocess.run(
            [str(torch_python), str(script), task, str(folder)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run
