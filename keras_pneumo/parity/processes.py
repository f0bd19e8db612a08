"""Between the processes: which Python has PyTorch, how it is started, and the files that go to and fro.

Every process gets the ladder's folder and writes into a folder of its own there: an npz for each rung, arrays by name
in the order of the computation, and ``absent.json`` with the reason for each rung that it cannot climb. TensorFlow and
the CUDA build of torch end in a segmentation fault when they meet in one process, so they never do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_json

ENVIRONMENT = "KERAS_PNEUMO_TORCH_PYTHON"
CHECKOUT = Path(__file__).parents[2]
TASK, ABSENT = "task.json", "absent.json"
SCRIPT = Path("experiments/torch_team/ladder.py")

TORCH, KERAS, KERAS_ON_TORCH = "torch", "keras", "keras_on_torch"
"""The columns: PyTorch, our code on TensorFlow, our code on Keras's torch backend; also the names of their folders."""

SECONDS = 900
"""No process takes longer than this; a rung takes seconds."""


def torch_python(given: Path | None = None) -> Path:
    """The Python that has PyTorch: the one given, $KERAS_PNEUMO_TORCH_PYTHON, or .venv-torch of checkout or folder.

    Raises:
        PneumoError: there is none, or the one that is named does not exist.
    """
    named = given or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if named is not None:
        if not named.exists():
            raise PneumoError(f"There is no Python {named}; name that of PyTorch's environment.")
        return named
    for folder in (CHECKOUT, Path.cwd()):
        python = folder / ".venv-torch/bin/python"
        if python.exists():
            return python
    raise PneumoError(
        "The ladder needs PyTorch, in an environment of its own. Run `make setup-torch` in a checkout of the project, "
        f"or name that environment's Python with --torch-python or in ${ENVIRONMENT}."
    )


def torch_script(given: Path | None = None) -> Path:
    """PyTorch's half of the ladder, which is no part of the package.

    Raises:
        PneumoError: it was not found.
    """
    for path in [given] if given is not None else [CHECKOUT / SCRIPT, Path.cwd() / SCRIPT]:
        if path.is_file():
            return path
    raise PneumoError(
        f"PyTorch's half of the ladder, {given or SCRIPT}, was not found. Run this in a checkout of the project, or "
        "name the file with --torch-script."
    )


def start_torch(python: Path, script: Path, folder: Path) -> subprocess.Popen[bytes]:
    """PyTorch's process, climbing every rung."""
    return _start([str(python), str(script), str(folder)], folder / TORCH, {})


def start_keras_on_torch(python: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The package's own code in PyTorch's environment, on Keras's torch backend."""
    command = [str(python), "-m", "keras_pneumo.parity.backend", str(folder), KERAS_ON_TORCH]
    return _start(command, folder / KERAS_ON_TORCH, {"KERAS_BACKEND": "torch", "PYTHONPATH": str(CHECKOUT)})


def _start(command: list[str], log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    with log.with_suffix(".log").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env={**inherited, **variables})


def wait_for(process: subprocess.Popen[bytes], folder: Path, column: str) -> str:
    """Wait for a process to end; what it wrote last, where it failed, and nothing where it did not."""
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"it had not ended after {SECONDS} seconds"
    if code == 0:
        return ""
    lines = (folder / f"{column}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"it ended with {code}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, because something else failed."""
    if process.poll() is None:
        process.kill()
        process.wait()


def read_task(folder: Path) -> dict[str, Any]:
    """What every process is told."""
    return dict(json.loads((folder / TASK).read_text(encoding="utf-8")))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz whose names keep their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz, in the order in which they were written."""
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def write_absent(folder: Path, reasons: Mapping[str, str]) -> None:
    """Why a column has no answer for some rungs."""
    write_json(folder / ABSENT, dict(reasons))


def read_absent(folder: Path) -> dict[str, str]:
    """The reasons, by rung."""
    path = folder / ABSENT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def versions_of(names: list[str]) -> dict[str, str]:
    """Versions of the packages that a column computes with, and of its Python."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
