"""Compares what two devices, or two processes, learn with what one device learns: losses, predictions and seconds.

    python experiments/benchmarks/replicas.py [--steps 20] [--size 64] [--encoder resnet18] [--optimizer sgd]
        [--only float64] [--json replicas.json]

Each set-up runs in one process (or two) of its own, on the same phantoms, from the same start weights, with the same
global batch of 8: one device; the CPU divided into two logical devices (MirroredStrategy); two worker processes on
127.0.0.1 (MultiWorkerMirroredStrategy). The last two share the cores of one host, so they cannot be faster. They show
whether the result is the same, and what it costs: messages, bytes and seconds of a step.

Everything is done twice. In float64 rounding is far below the differences that are looked for, so a difference is an
error of the method: more than 1e-5 in any loss ends the command with 1. In float32, in which networks are trained, a
control shows what rounding alone can do: one device again, each first weight changed in its last bit (left out by
--only float64). A ResNet from a random start makes such differences large within some steps, at any number of devices.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_pneumo.config import CLASSIFIER, Experiment

if TYPE_CHECKING:
    from lab import Lab
    from measuring import OwnRow

BOUND = 1e-5
"""On the difference of any loss in float64."""

PAIRS = 2
"""Of a row; each run of a side starts its processes anew."""

PRECISIONS = ("float64", "float32")
CONTROL = "1 (control)"
SETUPS = {
    "1": "one device",
    CONTROL: "one device, each first weight changed in its last bit",
    "2 (logical)": "the CPU divided in two",
    "2 workers": "two processes on loopback",
}


@dataclass(frozen=True)
class Message:
    """One message of a step: a reduction over all replicas."""

    bytes: int
    """That a replica contributes."""
    type: str
    gradients: int
    """Gradients of convolutions (of their input, of their kernel) for which it waits."""
    messages: int
    """Other messages that must have ended before."""


def messages_of(graph: Any) -> list[Message]:
    """The messages of one replica's step, in the order in which they are sent, read from the step's graph.

    Args:
        graph: of a concrete function of :meth:`keras_pneumo.training.distributed.strategy.Distribution.step_function`.
    """
    operations = graph.get_operations()
    reductions = [operation for operation in operations if operation.type == "CollectiveReduceV2"]
    reductions = [operation for operation in reductions if operation.device == reductions[0].device]
    waits: dict[Any, set[Any]] = {}  # for which reductions and gradients of convolutions an operation waits
    for operation in operations:  # in the order in which they were made, so inputs come first
        waits[operation] = found = set()
        for source in [each.op for each in operation.inputs] + list(operation.control_inputs):
            found |= waits.get(source, set())
            if source.type == "CollectiveReduceV2" or source.type.startswith("Conv2DBackprop"):
                found.add(source)
    messages = []
    for reduction in reductions:
        value = reduction.inputs[0]
        before = sum(source.type == "CollectiveReduceV2" for source in waits[reduction])
        size = value.shape.num_elements() * value.dtype.size
        messages.append(Message(size, value.dtype.name, len(waits[reduction]) - before, before))
    return messages


def experiment_of(size: int, encoder: str, optimizer: str) -> Experiment:
    """The experiment, with all that could differ between replicas: clipping, label smoothing, averaged weights."""
    return CLASSIFIER.replace(
        name="replicas", encoder=encoder, weights="random", image_size=size, frozen_epochs=0, epochs=50,
        global_batch_size=8, positive_rate=((0, 0.5),), label_smoothing=0.1, ema=0.5, clip_norm=1.0,
        optimizer=optimizer,
    )  # fmt: skip


def train_steps(
    prepared_folder: Path, out: Path, setup: str, steps: int, experiment: Experiment, precision: str
) -> None:
    """Trains ``steps`` steps in one set-up and writes losses, predictions and seconds to ``out``."""
    import keras

    from keras_pneumo.data.batches.images import open_source
    from keras_pneumo.data.batches.pipeline import evaluation_batches
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.inference.run import build
    from keras_pneumo.training.distributed.strategy import start_distribution
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer
    from keras_pneumo.training.step import training_network
    from keras_pneumo.training.trainer import plan_of, set_determinism

    strategy, replicas = {
        "1": ("one", None),
        CONTROL: ("one", None),
        "2 (logical)": ("mirrored", 2),
        "2 workers": ("multiworker", None),
    }[setup]
    distribution = start_distribution(strategy, replicas)
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    set_determinism(experiment)
    prepared = load_prepared(prepared_folder)
    source = open_source(prepared, prepared.subset("train"), experiment.image_size)
    held_out = open_source(prepared, prepared.subset("validation"), experiment.image_size)
    with distribution.scope():
        model = build(experiment, synchronized=distribution.replicas > 1)
        optimizer = make_optimizer(experiment, model, experiment.learning_rate, steps)
        network = training_network(model, image_losses(experiment), optimizer, distribution=distribution)
    if setup == CONTROL:
        signs = np.random.default_rng(0)
        for variable in network.trainable_variables:
            value = keras.ops.convert_to_numpy(variable)
            away = np.where(signs.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
            variable.assign(np.nextafter(value, away))
    losses, ends = [], []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            losses.append(float((logs or {})["loss"]))
            ends.append(time.perf_counter())

    batches = distribution.batches(source, plan_of(experiment, 0, experiment.epochs))
    network.fit(batches, epochs=1, steps_per_epoch=steps, callbacks=[Record()], shuffle=False, verbose=0)
    logits = np.concatenate([network.predict_on_batch(images) for images in evaluation_batches(held_out, 8)])
    predictions = 1 / (1 + np.exp(-logits[:, 0]))
    messages = messages_of(network.graph.get_concrete_function().graph) if distribution.strategy else []
    if distribution.chief:
        np.savez(
            out, losses=losses, predictions=predictions, seconds=(ends[-1] - ends[0]) / (steps - 1),
            messages=len(messages), megabytes=sum(message.bytes for message in messages) / 1e6,
        )  # fmt: skip
    distribution.broadcast(0)


def run(prepared: Path, folder: Path, setup: str, precision: str, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Runs the process or processes of one set-up, and reads what they wrote."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    for server in sockets:
        server.close()
    out = folder / f"{setup}.{precision}.npz"
    options = [f"--{name}={getattr(args, name)}" for name in ("steps", "size", "encoder", "optimizer")]
    options.append(f"--precision={precision}")
    processes = []
    for index in range(2 if setup == "2 workers" else 1):
        repository = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": repository}
        environment.pop("TF_CONFIG", None)
        if setup == "2 workers":
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
        command = [sys.executable, __file__, *options, "--setup", setup, "--prepared", str(prepared), "--out", str(out)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        errors = process.communicate()[1]
        if process.returncode:
            sys.exit(f"{setup}: {errors[-3000:]}")
    return dict(np.load(out))


def rows(lab: Lab) -> Iterator[OwnRow]:
    """The rows of this file: a step's speed on two devices or workers, against one device on the same cores."""
    from measuring import OwnRow

    def measure(setup: str) -> dict[str, Any]:
        settings = argparse.Namespace(steps=12, size=64, encoder="resnet18", optimizer="sgd")
        lab.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=lab.folder) as name:
            prepared = make_prepared(Path(name), settings.size)
            pairs = [
                [run(prepared, Path(name), each, "float32", settings) for each in ("1", setup)] for _ in range(PAIRS)
            ]
        ratios = [float(one["seconds"] / other["seconds"]) for one, other in pairs]
        other = pairs[-1][1]
        note = f"{other['messages']} messages, {other['megabytes']:.1f} MB and {other['seconds']:.2f} s a step."
        return {
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "pairs": ratios,
            "note": f"{note} The devices share the cores, so this is the cost of communication, not a gain.",
        }  # fmt: skip

    for setup, description in list(SETUPS.items())[2:]:
        name = f"replicas: a training step on {description}, against one device"
        yield OwnRow(name, "steps/s", None, functools.partial(measure, setup))


def make_prepared(folder: Path, size: int) -> Path:
    """A prepared folder of 60 phantoms, made within a folder."""
    from keras_pneumo.data.prepared.prepare import prepare
    from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

    settings = PhantomSettings(images=60, seed=5, positive_rate=0.5, size_scale=4.0)
    write_phantoms(folder / "phantoms", settings)
    prepare(folder / "phantoms", folder / "prepared", [size], patients=folder / "phantoms/patients.csv")
    return folder / "prepared"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--only", choices=PRECISIONS)
    parser.add_argument("--json", type=Path)
    for name in ("--precision", "--setup", "--prepared", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    precisions = [args.only] if args.only else list(PRECISIONS)
    setups = {setup: what for setup, what in SETUPS.items() if setup != CONTROL or "float32" in precisions}
    experiment = experiment_of(args.size, args.encoder, args.optimizer)
    if args.setup:
        train_steps(Path(args.prepared), Path(args.out), args.setup, args.steps, experiment, args.precision)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = make_prepared(folder, args.size)
        results = {
            (setup, precision): run(prepared, folder, setup, precision, args)
            for precision in precisions
            for setup in setups
        }
    deviations = {key: differences(values, results["1", key[1]]) for key, values in results.items()}
    last = precisions[-1]
    count = len(results["1", last]["predictions"])
    print(f"{args.encoder}, {args.size} px, {args.optimizer}, {args.steps} steps of 8 images, {count} predictions")
    heads = [f"{what} differ by ({precision})" for precision in precisions for what in ("losses", "predictions")]
    print(f"| replicas | first and last loss | {' | '.join(heads)} | messages a step | seconds a step |")
    print(f"|---|---|{'---|' * len(heads)}---|---|")
    deviation_rows = []
    for setup, description in setups.items():
        losses, *sent = (results[setup, last][name] for name in ("losses", "messages", "megabytes", "seconds"))
        cells = " | ".join(f"{value:.1e}" for precision in precisions for value in deviations[setup, precision])
        print(
            f"| {setup}: {description} | {losses[0]:.6f}, {losses[-1]:.6f} | {cells} | "
            f"{sent[0]}, {sent[1]:.1f} MB | {sent[2]:.2f} |"
        )
        for precision in precisions:
            loss, prediction = deviations[setup, precision]
            deviation_rows.append(
                {"name": f"loss of {setup} in {precision} against {BOUND}", "ratio": loss / BOUND, "low": None,
                 "high": None, "goal": 1.0 if precision == "float64" else None, "note": f"predictions {prediction:.1e}"}
            )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"machine": platform.platform(), "rows": deviation_rows}, indent=1) + "\n")
    if any(loss > BOUND for (_, precision), (loss, _) in deviations.items() if precision == "float64"):
        sys.exit(f"In float64 a loss differs by more than {BOUND}.")


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> tuple[float, float]:
    """The largest difference in the loss of any step, and in any prediction."""
    losses, predictions = (float(np.abs(first[name] - second[name]).max()) for name in ("losses", "predictions"))
    return losses, predictions


if __name__ == "__main__":
    main()
