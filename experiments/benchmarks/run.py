"""A run beside its steps: the start, the whole demo's classifier, what the host waits for, and checkpoints.

The other side of the first two rows is the PyTorch team's script (``experiments/torch_team/classifier.py``): the same
recipe, the same prepared folder, the same first weights, a whole command from the line to its end. Ours does more in
that time: it verifies every file, writes checkpoints, and ends with a report, its intervals and its heat maps.

The last two rows compare this project with itself: with a reading of loss, norm and stop request after each step, and
with a checkpoint that is written before the next step begins. Their figures come from one short training in a process
of its own (``python run.py count PREPARED``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import Lab
from measuring import Command, MeasurementError, OwnRow, Row

IMAGES = 900
READ_BEFORE = 3
"""Values that were read after each step: loss, norm, stop request."""

OURS_FIRST = """
import os, sys
from keras_pneumo.quiet import import_tensorflow
import_tensorflow()
from keras_pneumo.training.step import TrainingNetwork
step = TrainingNetwork.take_step
def first(self, data):
    float(step(self, data)["loss"])
    os._exit(0)
TrainingNetwork.take_step = first
from keras_pneumo.cli import main
main(sys.argv[1:])
"""
"""The command ``train``, which ends after its first step."""

THEIRS_FIRST = """
import os, runpy, sys, torch
step = torch.optim.AdamW.step
def first(self, *given, **named):
    step(self, *given, **named)
    os._exit(0)
torch.optim.AdamW.step = first
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def rows(lab: Lab) -> Iterator[Row | OwnRow]:
    """The rows of this file."""
    folder = lab.folder / "run"
    prepared = lab.folder / "phantoms-demo-prepared-96"
    experiment, start = lab.repository / "experiments/demo_classifier.py", folder / "start.safetensors"
    ours_out, theirs_out = folder / "ours", folder / "theirs"
    script = lab.repository / "experiments/torch_team/classifier.py"
    missing = lab.missing(lab.torch_python, "torch", "torchvision")
    environment = {**lab.environment, "KERAS_PNEUMO_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = f"{lab.repository}:{lab.repository / 'experiments'}"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        radiographs = lab.phantoms(IMAGES, "--seed", "0", "--size-scale", "6", name="phantoms-demo")
        assert lab.prepared(radiographs, 96) == prepared
        if not start.is_file():
            command = lab.command("export", experiment, "--out", start)
            done = subprocess.run(
                [str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True
            )
            if done.returncode:
                raise MeasurementError(f"the start could not be exported: {done.stderr[-300:]}")

    def empty(out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)

    train = ["train", experiment, "--data", prepared, "--out", ours_out]
    theirs = [script, "--experiment", start, "--init", start, "--data", prepared, "--out", theirs_out]
    torch_python = lab.torch_python or Path(sys.executable)
    yield Row(
        "start: from the line to the first step",
        "starts/s",
        1.0,
        Command([lab.python, "-c", OURS_FIRST, *train], 1, environment, before=lambda: empty(ours_out)),
        Command(
            [torch_python, "-c", THEIRS_FIRST, *theirs], 1, lab.torch_environment, before=lambda: empty(theirs_out)
        ),
        "The demo's classifier: imports, checks, images, network, tracing and one step, against the PyTorch team's.",
        prepare=prepare,
        unmeasurable=missing,
    )
    yield Row(
        "the demo's classifier, ten epochs, whole command",
        "commands/s",
        1.0,
        Command(lab.command(*train), 1, environment, before=lambda: empty(ours_out), after=lambda: trained(ours_out)),
        Command(
            [torch_python, *theirs],
            1,
            lab.torch_environment,
            before=lambda: empty(theirs_out),
            after=lambda: trained(theirs_out),
        ),
        "Ours ends with intervals, baselines, heat maps and a report, which the PyTorch team's script does not make.",
        pairs=2,
        prepare=prepare,
        unmeasurable=missing,
        finish=training_alone,
    )

    def counted() -> dict[str, Any]:
        prepare()
        done = subprocess.run(
            [str(lab.python), __file__, "count", str(prepared)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise MeasurementError(f"the counting ended with {done.returncode}: {done.stderr[-300:]}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def reads() -> dict[str, Any]:
        figures = counted()
        return {"ratio": READ_BEFORE / max(figures["reads_per_step"], 1 / figures["steps"]), **figures}

    def stall() -> dict[str, Any]:
        figures = counted()
        return {"ratio": figures["written_at_once_seconds"] / figures["stall_seconds"], **figures}

    yield OwnRow(
        "host reads of a step, before and now", "reads", None, reads,
        "Times that the host waits for the device's values in a step; it was three.",
    )  # fmt: skip
    yield OwnRow(
        "checkpoint: waiting of the training", "s", None, stall,
        "Seconds that a checkpoint keeps the training, against writing it before the next step.",
    )  # fmt: skip


def trained(out: Path) -> dict[str, float]:
    """The seconds of training, as a team declares them in its submission: without imports, predictions and report."""
    declared = json.loads((out / "submission/submission.json").read_text(encoding="utf-8"))
    return {"training_seconds": declared["training_hours"] * 3600}


def training_alone(result: dict[str, Any]) -> dict[str, Any]:
    """The row's note, with the training alone."""
    ours, theirs = (result[side]["training_seconds"] for side in ("ours", "theirs"))
    alone = f"Training alone, as each team declares it: {ours:.1f} s and {theirs:.1f} s, ratio {theirs / ours:.2f}."
    return {"training_ratio": theirs / ours, "note": f"{result['note']} {alone}"}


def count(prepared_folder: Path, steps_between_checkpoints: int = 25) -> dict[str, float]:
    """Train one epoch of the demo's classifier: host reads per step, and what checkpoints cost."""
    from keras_pneumo.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf
    from demo_classifier import EXPERIMENT as BASE

    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.training import checkpoints
    from keras_pneumo.training.callbacks import CheckpointInterval
    from keras_pneumo.training.step import TrainingNetwork
    from keras_pneumo.training.trainer import Trainer, TrainingOptions

    reads, at_step, saving, writing = [0], [], [0.0, 0], [0.0]
    tensor = type(tf.constant(0.0)).__mro__[1]  # the class that all eager tensors have their methods from
    convert, save, complete, step = tensor._numpy, Trainer.save, checkpoints._complete, TrainingNetwork.take_step

    def counted(self: Any) -> Any:
        reads[0] += 1
        return convert(self)

    def timed_save(self: Any, network: Any) -> None:
        before, started = reads[0], time.perf_counter()
        save(self, network)
        reads[0] = before  # a checkpoint reads every weight
        if network is not None:
            saving[0] += time.perf_counter() - started
            saving[1] += 1

    def timed_complete(*given: Any) -> Any:
        started = time.perf_counter()
        path = complete(*given)
        writing[0] += time.perf_counter() - started
        return path

    def watched(self: Any, data: Any) -> Any:
        at_step.append(reads[0])
        return step(self, data)

    tensor._numpy, Trainer.save, checkpoints._complete = counted, timed_save, timed_complete
    TrainingNetwork.take_step = watched
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingOptions(checkpoint_every=CheckpointInterval(None, steps_between_checkpoints))
        trainer = Trainer(BASE.replace(epochs=1), load_prepared(prepared_folder), Path(folder), options)
        trainer.run(None, None)
    number = max(saving[1], 1)
    return {
        "reads_per_step": (at_step[-1] - at_step[0]) / (len(at_step) - 1),
        "stall_seconds": saving[0] / number,
        "written_at_once_seconds": (saving[0] + writing[0]) / number,
        "checkpoints": number,
        "steps": len(at_step),
    }


if __name__ == "__main__":
    if sys.argv[1:2] != ["count"] or len(sys.argv) != 3:
        raise SystemExit("usage: run.py count PREPARED")
    print(json.dumps(count(Path(sys.argv[2]))))
