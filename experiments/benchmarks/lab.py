"""What the rows of the benchmarks share: interpreters, a scratch folder, phantoms, and the machine that they run on.

In: this machine. Out: a :class:`Lab`, which every ``rows(lab)`` gets, and :func:`describe_machine`, which is written
beside the figures, since a ratio without its machine says little.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from measuring import MeasurementError

from keras_pneumo.parity.backends import KEEP_MEMORY

REPOSITORY = Path(__file__).resolve().parents[2]

BUSY = 0.1
"""With more than this share of all cores in use before a row, the machine is not quiet."""

PACKAGES = ("numpy", "opencv-python-headless", "scikit-learn", "tensorflow", "keras", "jax", "onnxruntime")
TORCH_PACKAGES = ("torch", "torchvision", "segmentation-models-pytorch", "monai", "albumentations")


@dataclass
class Lab:
    """Where the rows are measured."""

    folder: Path
    """Scratch, for phantoms and what commands write; it may be used again by the next run."""
    torch_python: Path | None
    """The interpreter of PyTorch's environment; None where there is none."""
    quiet: bool
    """Whether nothing else runs on the machine: how PyTorch's threads should wait depends on it."""
    gpu: str = ""
    """The name of the GPU; '' without one."""
    python: Path = Path(sys.executable)
    """This project's interpreter."""
    repository: Path = REPOSITORY
    environment: Mapping[str, str] = field(
        default_factory=lambda: {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    """For a side that runs this project's code."""
    growth: tuple[int, ...] = (1, 10, 100)
    """By how much the data grows in the rows of growth."""
    say: Callable[[str], None] = print

    @property
    def torch_environment(self) -> dict[str, str]:
        """For a side that runs PyTorch, tuned: malloc keeps its memory, and threads sleep on a shared machine."""
        return dict(KEEP_MEMORY) if self.quiet else {**KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE"}

    def command(self, *arguments: str | Path) -> list[str | Path]:
        """A command line of ``keras-pneumo``."""
        return [self.python, "-m", "keras_pneumo", *arguments]

    def missing(self, python: Path | None, *packages: str) -> str:
        """Why an interpreter cannot be used for a row: '' if it has all these packages."""
        if python is None:
            return f"no environment with {' and '.join(packages)} (make setup-torch)"
        absent = sorted(name for name in packages if name not in installed(python))
        return f"{', '.join(absent)} not installed in {python.parent.parent.name}" if absent else ""

    def phantoms(self, images: int, *options: str, name: str = "") -> Path:
        """A folder of that many phantoms; made once."""
        folder = self.folder / (name or "-".join(["phantoms", str(images), *(text.strip("-") for text in options)]))
        self._make(folder, "phantom", folder, "--images", str(images), *options)
        return folder

    def prepared(self, radiographs: Path, *sizes: int) -> Path:
        """The prepared folder of some radiographs at some sizes; made once."""
        folder = self.folder / f"{radiographs.name}-prepared-{'-'.join(str(size) for size in sizes)}"
        options = [part for size in sizes for part in ("--size", str(size))]
        self._make(folder, "prepare", radiographs, "--out", folder, *options)
        return folder

    def _make(self, folder: Path, *arguments: str | Path) -> None:
        finished = folder.with_name(f"{folder.name}.finished")
        if finished.exists() and folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        done = subprocess.run(
            [str(part) for part in self.command(*arguments)],
            env={**os.environ, **self.environment},
            cwd=self.repository,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1):
            raise MeasurementError(f"keras-pneumo {arguments[0]} failed: {(done.stdout + done.stderr)[-500:].strip()}")
        finished.touch()


def open_lab(folder: Path, quiet: bool | None = None, **settings: Any) -> Lab:
    """The lab of this machine; ``quiet`` is measured unless it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("KERAS_PNEUMO_TORCH_PYTHON")
    torch_python = Path(given) if given else REPOSITORY / ".venv-torch/bin/python"
    quiet = busy_share() <= BUSY if quiet is None else quiet
    return Lab(folder, torch_python if torch_python.exists() else None, quiet, gpu_name(), **settings)


def busy_share(seconds: float = 1.0) -> float:
    """The share of all cores that is in use now, 0 to 1."""
    return psutil.cpu_percent(interval=seconds) / 100


def gpu_name() -> str:
    """The name of the first NVIDIA GPU, '' without one."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


_INSTALLED: dict[Path, dict[str, str]] = {}


def installed(python: Path) -> dict[str, str]:
    """The packages of an interpreter's environment and their versions, names in small letters with hyphens."""
    if python not in _INSTALLED:
        code = (
            "import importlib.metadata, json; found = importlib.metadata.distributions();"
            "print(json.dumps({(d.metadata['Name'] or '').lower().replace('_', '-'): d.version for d in found}))"
        )
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
        _INSTALLED[python] = json.loads(done.stdout) if done.returncode == 0 else {}
    return _INSTALLED[python]


def describe_machine(lab: Lab) -> dict[str, Any]:
    """The machine and the versions: what must be equal for two rows to stand in one table."""
    flags = _cpu_flags()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed(lab.python)}
    others = installed(lab.torch_python) if lab.torch_python else {}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in flags],
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": lab.gpu,
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "torch_versions": {name: others[name] for name in TORCH_PACKAGES if name in others},
    }


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor()


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split())


def _cpu_info(key: str) -> str:
    """The first value of a key of Linux's description of the CPU; '' elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
