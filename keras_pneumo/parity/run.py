"""Runs the ladder: all backends compute, they are compared, and the answer is written.

The answer is ``parity.json`` and the page ``parity.html``. PyTorch's process runs beside ours; Keras's other backends
follow one by one, so two cores are enough for all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras_pneumo import __version__
from keras_pneumo.errors import PneumoError
from keras_pneumo.parity import backends, checks
from keras_pneumo.parity.backends import KERAS, KERAS_ON_JAX, KERAS_ON_TORCH, TORCH
from keras_pneumo.parity.inputs import LadderPlan, write_inputs
from keras_pneumo.parity.ladder import Ladder, evaluate_checks
from keras_pneumo.parity.page import write_page
from keras_pneumo.storage.files import folder_lock, require_writable, write_json

EXCHANGE, ANSWER, PAGE = "exchange", "parity.json", "parity.html"


def run_ladder(
    out: Path,
    data: Path | None = None,
    plan: LadderPlan | None = None,
    python: Path | None = None,
    script: Path | None = None,
    keep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Ladder:
    """Run every backend, compare them, and write the answer.

    Args:
        out: folder for the answer; ``exchange`` in it holds what the processes backends.
        data: radiographs or a prepared folder, besides the phantoms that are always read.
        plan: encoder and sizes.
        python: see :func:`keras_pneumo.parity.backends.torch_python`.
        script: see :func:`keras_pneumo.parity.backends.torch_script`.
        keep: whether the exchanged files stay; they stay anyway where a check is broken.
        progress: called with the name of the work that starts.

    Raises:
        PneumoError: there is no PyTorch environment, no radiograph, or a process failed. A check beyond its bound is a
            result, not an error.
    """
    interpreter, torch_half = backends.torch_python(python), backends.torch_script(script)
    others = {KERAS_ON_TORCH: (interpreter, "PyTorch"), KERAS_ON_JAX: (backends.jax_python(), "JAX")}
    notify = progress or (lambda _: None)
    require_writable(out)
    with folder_lock(out):
        folder = out / EXCHANGE
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        notify("inputs")
        write_inputs(folder, data, plan or LadderPlan())
        process = backends.start_torch(interpreter, torch_half, folder)
        try:
            checks.run_checks(folder, KERAS, lambda name: notify(f"Keras on TensorFlow: {name}"))
            notify("waiting for PyTorch")
            _need(backends.wait_for(process, folder, TORCH), "PyTorch's process", folder / f"{TORCH}.log")
        finally:
            backends.stop(process)
        for name, (other, label) in others.items():
            if other is None:
                continue
            notify(f"Keras on {label}: all its checks")
            process = backends.start_keras_on(name, other, folder)
            try:
                _need(backends.wait_for(process, folder, name), f"Keras on {label}", folder / f"{name}.log")
            finally:
                backends.stop(process)
        notify("comparing")
        ladder = Ladder(evaluate_checks(folder), backends.read_task(folder), _versions(folder))
        write_json(out / ANSWER, as_json(ladder))
        write_page(out / PAGE, ladder)
        if not keep and not ladder.broken:
            shutil.rmtree(folder)
    return ladder


def as_json(ladder: Ladder) -> dict[str, Any]:
    """Return the answer as it is written; an infinite difference becomes the word."""
    results = [asdict(result) | {"passed": result.passed} for result in ladder.results]
    for result in results:
        for name in (KERAS, KERAS_ON_TORCH, KERAS_ON_JAX):
            if result[name] is not None:
                figures = result[name].items()
                result[name] = {key: "infinite" if value == float("inf") else value for key, value in figures}
    return {
        "verdict": ladder.verdict,
        "passed": not ladder.broken,
        "rungs": results,
        "versions": ladder.versions,
        "keras_pneumo": __version__,
        "encoder": ladder.task["encoder"],
        "size": ladder.task["size"],
        "data": ladder.task["data"],
    }


def _need(failure: str, who: str, log: Path) -> None:
    if failure:
        raise PneumoError(f"{who} failed: {failure}. Its output is in {log}.")


def _versions(folder: Path) -> dict[str, dict[str, str]]:
    """Read the versions that each backend computed with."""
    return {
        name: dict(json.loads((folder / name / backends.VERSIONS).read_text(encoding="utf-8")))
        for name in (TORCH, KERAS, KERAS_ON_TORCH, KERAS_ON_JAX)
        if (folder / name / backends.VERSIONS).exists()
    }
