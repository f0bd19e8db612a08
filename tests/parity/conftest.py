"""The way to PyTorch: a script run by the Python of PyTorch's own environment, files in, files out."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def torch_python():
    """The interpreter that has torch: $KERAS_PNEUMO_TORCH_PYTHON, else .venv-torch in the repository, else None."""
    given = os.environ.get("KERAS_PNEUMO_TORCH_PYTHON")
    if given:
        return given  # stated but absent is an error of the set-up, not a reason to skip
    beside = ROOT / ".venv-torch" / "bin" / "python"
    return str(beside) if beside.exists() else None


@pytest.fixture
def reference(tmp_path):
    """``reference(task, arguments, arrays=..., state=...)`` runs one task of torch_reference.py; returns its folder."""
    python = torch_python()
    if python is None:
        pytest.skip("no PyTorch environment: set KERAS_PNEUMO_TORCH_PYTHON or make .venv-torch")

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
            [python, str(script), task, str(folder)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run
