"""The backends of the ladder: their processes, and the files that they exchange.

PyTorch, our code on TensorFlow, our code on Keras's torch backend and, where there is JAX, on its JAX backend. Every
process gets the ladder's folder and writes into a folder of its own there: an npz for each computation, arrays by name
in the order of the computation, and ``absent.json`` with the reason for each computation that it cannot do. TensorFlow
and the CUDA build of torch end in a segmentation fault when they meet in one process, so they never do.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_json

ENVIRONMENT = "KERAS_PNEUMO_TORCH_PYTHON"
CHECKOUT = Path(__file__).parents[2]
TASK, INPUTS, RECIPES, ABSENT, VERSIONS = "task.json", "inputs.npz", "recipes", "absent.json", "versions.json"
SCRIPT = Path("experiments/torch_team/ladder.py")

JAX_ENVIRONMENT = "KERAS_PNEUMO_JAX_PYTHON"
"""The variable that names a Python with JAX and Keras."""

TORCH, KERAS, KERAS_ON_TORCH, KERAS_ON_JAX = "torch", "keras", "keras_on_torch", "keras_on_jax"
"""PyTorch, our code on TensorFlow, on Keras's torch backend and on its JAX backend; also their folders' names."""

OTHERS = {KERAS_ON_TORCH: "torch", KERAS_ON_JAX: "jax"}
"""Keras's other backends, by their folders."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Keeps malloc from giving memory back after each operator: worth 1.2 to 1.6 to PyTorch on a CPU."""

SECONDS = 1800
"""Time limit of a process; a check takes seconds, or on a busy machine minutes."""


@dataclass(frozen=True)
class Backend:
    """One of our backends: where it reads and writes, and what it was given."""

    folder: Path
    """The ladder's."""
    name: str
    task: dict[str, Any]
    inputs: dict[str, np.ndarray]

    @property
    def own(self) -> Path:
        """The backend's own folder."""
        return self.folder / self.name

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays of a check."""
        write_arrays(self.own / f"{name}.npz", arrays)

    def state(self, network: str, kind: str) -> dict[str, np.ndarray]:
        """Read weights or gradients that all backends share."""
        from keras_pneumo.models.weights import load_safetensors

        return load_safetensors(self.folder / f"{network}.{kind}.safetensors")


def torch_python(given: Path | None = None) -> Path:
    """Find the Python that has PyTorch: as given, $KERAS_PNEUMO_TORCH_PYTHON, or .venv-torch of checkout or folder.

    Raises:
        PneumoError: there is none, or the one that is named does not exist.
    """
    named = given or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if named is not None:
        if not named.exists():
            raise PneumoError(f"There is no Python {named}. Name the Python of PyTorch's environment.")
        return named
    for folder in (CHECKOUT, Path.cwd()):
        python = folder / ".venv-torch/bin/python"
        if python.exists():
            return python
    raise PneumoError(
        "The ladder needs PyTorch, in an environment of its own. Run `make setup-torch` in a checkout of the project, "
        f"or name that environment's Python with --torch-python or in ${ENVIRONMENT}."
    )


def jax_python() -> Path | None:
    """Find the Python that has JAX and Keras, which $KERAS_PNEUMO_JAX_PYTHON names; None where it names none.

    Raises:
        PneumoError: the one that is named does not exist.
    """
    if not os.environ.get(JAX_ENVIRONMENT):
        return None
    python = Path(os.environ[JAX_ENVIRONMENT])
    if not python.exists():
        raise PneumoError(f"There is no Python {python}, which ${JAX_ENVIRONMENT} names. Name one with jax and keras.")
    return python


def torch_script(given: Path | None = None) -> Path:
    """Find PyTorch's script of the ladder, which is not part of the package.

    Raises:
        PneumoError: it was not found.
    """
    path = given if given is not None else in_checkout(SCRIPT)
    if path is not None and path.is_file():
        return path
    raise PneumoError(
        f"PyTorch's script of the ladder, {given or SCRIPT}, was not found. Run this in a checkout of the project, or "
        "name the file with --torch-script."
    )


def in_checkout(relative: Path) -> Path | None:
    """Find a file that is not part of the package: in its checkout, or below the present folder."""
    return next((path for folder in (CHECKOUT, Path.cwd()) if (path := folder / relative).is_file()), None)


def start_torch(python: Path, script: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start PyTorch's process, which computes every check."""
    return _start([str(python), str(script), str(folder)], folder / TORCH, {})


def start_keras_on(backend: str, python: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Start the package's own code in another environment, on another of Keras's backends."""
    command = [str(python), "-m", "keras_pneumo.parity.checks", str(folder), backend]
    return _start(command, folder / backend, {"KERAS_BACKEND": OTHERS[backend], "PYTHONPATH": str(CHECKOUT)})


def _start(command: list[str], log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "KERAS_BACKEND")}
    with log.with_suffix(".log").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env={**inherited, **variables})


def wait_for(process: subprocess.Popen[bytes], folder: Path, backend: str) -> str:
    """Wait for a process to end. Return "" where it succeeded, else the last line that it wrote."""
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"it did not end within {SECONDS} seconds"
    if code == 0:
        return ""
    return last_line(folder / f"{backend}.log") or f"it ended with {code}"


def last_line(log: Path) -> str:
    """The last line of a process's output that says something, at most 300 characters; blank where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4000, 0))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""
    return ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, because something else failed."""
    if process.poll() is None:
        process.kill()
        process.wait()


def read_task(folder: Path) -> dict[str, Any]:
    """Read the task that every process gets."""
    return dict(json.loads((folder / TASK).read_text(encoding="utf-8")))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz whose names keep their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz, in the order in which they were written."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def write_absent(folder: Path, reasons: Mapping[str, str]) -> None:
    """Write why a backend has no answer to some checks."""
    write_json(folder / ABSENT, dict(reasons))


def read_absent(folder: Path) -> dict[str, str]:
    """Read the reasons, by computation."""
    path = folder / ABSENT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def versions_of(names: list[str]) -> dict[str, str]:
    """Return the versions of the packages that a backend computes with, and of its Python."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
