"""All columns climb, are compared, and the answer is written: ``parity.json`` and the page ``parity.html``.

PyTorch's process runs beside ours; the third column follows, so that two cores are enough for three stacks.
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
from keras_pneumo.parity import backend as column
from keras_pneumo.parity import processes as exchange
from keras_pneumo.parity.inputs import LadderPlan, write_inputs
from keras_pneumo.parity.ladder import Ladder, judge
from keras_pneumo.parity.page import write_page
from keras_pneumo.parity.processes import KERAS, KERAS_ON_TORCH, TORCH
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
    """Climb with every column, compare, write the answer.

    Args:
        out: folder for the answer; ``exchange`` in it holds what the processes exchange.
        data: radiographs or a prepared folder, besides the phantoms that are always read.
        plan: encoder and sizes.
        python: see :func:`exchange.torch_python`.
        script: see :func:`exchange.torch_script`.
        keep: whether the exchanged files stay; they stay anyway where a rung is broken.
        progress: called with what is being done.

    Raises:
        PneumoError: there is no PyTorch environment, no radiograph, or a process failed; a rung beyond its bound is no
            error but a result.
    """
    found, half = exchange.torch_python(python), exchange.torch_script(script)
    say = progress or (lambda _: None)
    require_writable(out)
    with folder_lock(out):
        folder = out / EXCHANGE
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        say("inputs")
        write_inputs(folder, data, plan or LadderPlan())
        process = exchange.start_torch(found, half, folder)
        try:
            column.climb(folder, KERAS, lambda rung: say(f"Keras on TensorFlow: {rung}"))
            say("waiting for PyTorch")
            _need(exchange.wait_for(process, folder, TORCH), "PyTorch's process", folder / f"{TORCH}.log")
        finally:
            exchange.stop(process)
        say("Keras on PyTorch: all its rungs")
        process = exchange.start_keras_on_torch(found, folder)
        try:
            failure = exchange.wait_for(process, folder, KERAS_ON_TORCH)
            _need(failure, "Keras on its torch backend", folder / f"{KERAS_ON_TORCH}.log")
        finally:
            exchange.stop(process)
        say("comparing")
        ladder = Ladder(judge(folder), exchange.read_task(folder), _versions(folder))
        write_json(out / ANSWER, as_json(ladder))
        write_page(out / PAGE, ladder)
        if not keep and not ladder.broken:
            shutil.rmtree(folder)
    return ladder


def as_json(ladder: Ladder) -> dict[str, Any]:
    """The answer as it is written; an infinite difference becomes the word."""
    rungs = [asdict(result) | {"passed": result.passed} for result in ladder.results]
    for rung in rungs:
        for name in ("keras", "keras_on_torch"):
            if rung[name] is not None:
                rung[name] = {key: "infinite" if one == float("inf") else one for key, one in rung[name].items()}
    return {
        "verdict": ladder.verdict,
        "passed": not ladder.broken,
        "rungs": rungs,
        "versions": ladder.versions,
        "keras_pneumo": __version__,
        "encoder": ladder.task["encoder"],
        "size": ladder.task["size"],
        "data": ladder.task["data"],
    }


def _need(failure: str, who: str, log: Path) -> None:
    if failure:
        raise PneumoError(f"{who} failed: {failure}. All it said is in {log}.")


def _versions(folder: Path) -> dict[str, dict[str, str]]:
    """What each column computed with."""
    return {
        name: dict(json.loads((folder / name / column.VERSIONS).read_text(encoding="utf-8")))
        for name in (TORCH, KERAS, KERAS_ON_TORCH)
    }
