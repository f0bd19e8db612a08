"""Do two devices, and two processes, learn what one device learns? Losses, predictions and wall time side by side.

    python experiments/benchmarks/replicas.py [--steps 20] [--size 64] [--encoder resnet18] [--optimizer sgd]
        [--json replicas.json]

Each way is a process (or two) of its own on the same phantoms, from the same start, with the same global batch of 8:
one device; the CPU divided into two logical devices (MirroredStrategy); two worker processes on loopback
(MultiWorkerMirroredStrategy). On one host the last two share its cores, so they cannot be faster; what they show is
that the result is the same, and what it costs. A control shows what rounding alone may do: one device again, each first
weight moved by one part in ten million. (AdamW divides each gradient by its own size, so from a random start it makes
differences of rounding large within some steps, at any number of devices: ``--optimizer adamw``.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_pneumo.config import CLASSIFIER, Experiment

CONTROL = "1 (control)"
WAYS = {
    "1": "one device",
    CONTROL: "one device, started 1e-7 away",
    "2 (logical)": "the CPU divided in two",
    "2 workers": "two processes on loopback",
}


def experiment_of(size: int, encoder: str, optimizer: str) -> Experiment:
    """Clipping, label smoothing, an average of the weights: whatever could differ between replicas."""
    return CLASSIFIER.replace(
        name="replicas", encoder=encoder, weights="random", image_size=size, frozen_epochs=0, epochs=50,
        global_batch_size=8, positive_rate=((0, 0.5),), label_smoothing=0.1, ema=0.5, clip_norm=1.0,
        optimizer=optimizer,
    )  # fmt: skip


def work(prepared_folder: Path, out: Path, way: str, steps: int, experiment: Experiment, precision: str) -> None:
    """Train ``steps`` steps one way and write losses, predictions and seconds to ``out``."""
    import keras
    import tensorflow as tf

    from keras_pneumo.data.pipeline import evaluation_batches, open_source
    from keras_pneumo.data.prepared import load_prepared
    from keras_pneumo.prediction.run import build
    from keras_pneumo.training.distribution import start_engine
    from keras_pneumo.training.loop import plan_of
    from keras_pneumo.training.optimization import image_losses, make_optimizer
    from keras_pneumo.training.slices import learner

    strategy, replicas = {
        "1": ("one", None),
        CONTROL: ("one", None),
        "2 (logical)": ("mirrored", 2),
        "2 workers": ("multiworker", None),
    }[way]
    engine = start_engine(strategy, replicas)
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    tf.config.experimental.enable_op_determinism()
    prepared = load_prepared(prepared_folder)
    source = open_source(prepared, prepared.subset("train"), experiment.image_size)
    held_out = open_source(prepared, prepared.subset("validation"), experiment.image_size)
    with engine.scope():
        model = build(experiment, synchronized=engine.replicas > 1)
        optimizer = make_optimizer(experiment, model, experiment.learning_rate, steps)
        network = learner(model, image_losses(experiment), optimizer, engine=engine)
    if way == CONTROL:
        signs = np.random.default_rng(0)
        for variable in network.trainable_variables:
            value = keras.ops.convert_to_numpy(variable)
            variable.assign(value * (1 + 1e-7 * signs.choice([-1.0, 1.0], value.shape)))
    losses, ends = [], []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            losses.append(float((logs or {})["loss"]))
            ends.append(time.perf_counter())

    batches = engine.batches(source, plan_of(experiment, 0, experiment.epochs))
    network.fit(batches, epochs=1, steps_per_epoch=steps, callbacks=[Record()], shuffle=False, verbose=0)
    logits = np.concatenate([network.predict_on_batch(images) for images in evaluation_batches(held_out, 8)])
    predictions = 1 / (1 + np.exp(-logits[:, 0]))
    if engine.chief:
        np.savez(out, losses=losses, predictions=predictions, seconds=(ends[-1] - ends[0]) / (steps - 1))
    engine.agree(0)


def run(prepared: Path, folder: Path, way: str, given: argparse.Namespace) -> dict[str, np.ndarray]:
    """Start the process or processes of one way, and read what they found."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{one.getsockname()[1]}" for one in ports]
    for one in ports:
        one.close()
    out = folder / f"{way}.npz"
    options = [f"--{name}={getattr(given, name)}" for name in ("steps", "size", "encoder", "optimizer", "precision")]
    processes = []
    for index in range(2 if way == "2 workers" else 1):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.pop("TF_CONFIG", None)
        if way == "2 workers":
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
        command = [sys.executable, __file__, *options, "--way", way, "--prepared", str(prepared), "--out", str(out)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(f"{way}: {said[-3000:]}")
    return dict(np.load(out))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--json", type=Path)
    for name in ("--way", "--prepared", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    experiment = experiment_of(given.size, given.encoder, given.optimizer)
    if given.way:
        work(Path(given.prepared), Path(given.out), given.way, given.steps, experiment, given.precision)
        return
    from keras_pneumo.data.phantom import PhantomSettings, write_phantoms
    from keras_pneumo.data.prepared import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = PhantomSettings(images=60, seed=5, positive_rate=0.5, size_scale=4.0)
        write_phantoms(folder / "phantoms", settings)
        prepare(folder / "phantoms", folder / "prepared", [given.size], patients=folder / "phantoms/patients.csv")
        found = {way: run(folder / "prepared", folder, way, given) for way in WAYS}
    one = found["1"]
    what = f"{given.encoder}, {given.size} px, {given.optimizer}, {given.steps} steps of 8 images"
    print(f"{what}, {len(one['predictions'])} predictions")
    print("| replicas | first and last loss | losses differ by | predictions differ by | seconds a step |")
    print("|---|---|---|---|---|")
    rows = []
    for way, values in found.items():
        loss = float(np.abs(values["losses"] - one["losses"]).max())
        probability = float(np.abs(values["predictions"] - one["predictions"]).max())
        ends = f"{values['losses'][0]:.6f}, {values['losses'][-1]:.6f}"
        print(f"| {way}: {WAYS[way]} | {ends} | {loss:.1e} | {probability:.1e} | {float(values['seconds']):.2f} |")
        rows.append(
            {"name": f"loss of {way} against 1e-5", "ratio": loss / 1e-5, "low": None, "high": None, "goal": 1.0,
             "note": f"predictions {probability:.1e}, {float(values['seconds']):.2f} s a step"}
        )  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps({"machine": platform.platform(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
