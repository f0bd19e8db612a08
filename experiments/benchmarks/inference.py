"""Prediction with a trained network: ResNet50 and its U-Net at 256 pixels, batches of 16 and single radiographs.

Ours is what ``keras-pneumo predict`` calls for a batch: the predictors of a run folder, with BatchNorm folded into the
convolutions. The other sides, on the same images, float32, on a CPU:

- PyTorch as an expert would run it: torchvision's and smp's networks in channels-last, ``eval`` and ``inference_mode``,
  malloc kept from giving memory back; once as it is, and once by ``torch.compile``;
- ONNX Runtime on the file that ``keras-pneumo export --format onnx`` writes of the same run.

Weights are random: they cost the same as learnt ones. ``torch.compile`` is measured at batches of 16 only, since each
compilation takes a minute.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from measuring import Row, Worker

SIZE = 256
BATCHES = {16: 2, 1: 16}
"""Images of a batch, and how many batches a measurement has: about a second."""
NETWORKS = {"classifier": "ResNet50", "segmenter": "U-Net on ResNet50"}
GOAL = 1.0

MAKE_RUN = """
import json, sys
from pathlib import Path
from keras_pneumo.quiet import import_tensorflow
import_tensorflow()
from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.inference.export import export_run
from keras_pneumo.inference.run import FORMAT, build, read_run, versions
folder, task, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
base = {"classifier": CLASSIFIER, "segmenter": SEGMENTER}[task]
experiment = base.replace(encoder="resnet50", weights="random", image_size=size, global_batch_size=16)
folder.mkdir(parents=True, exist_ok=True)
build(experiment).save_weights(folder / "best.weights.h5")
record = {"format": FORMAT, "experiment": experiment.model_dump(mode="json"), "versions": versions()}
(folder / "experiment.json").write_text(json.dumps(record))
"""
EXPORT = MAKE_RUN + 'export_run(read_run(folder), "onnx", folder / "network.onnx")\n'


def rows(lab: Lab) -> Iterator[Row]:
    """Each network and batch against PyTorch, PyTorch compiled, and ONNX Runtime."""
    worker = Path(__file__).with_name("inference_worker.py").resolve()
    no_torch = lab.missing(lab.torch_python, "torch", "torchvision")
    no_smp = lab.missing(lab.torch_python, "torch", "torchvision", "segmentation-models-pytorch")
    no_onnx = lab.missing(lab.python, "onnx", "onnxruntime", "tf2onnx")
    for task, network in NETWORKS.items():
        run = lab.folder / f"inference-{task}"

        def make(code: str, wanted: Path, task: str = task, run: Path = run) -> None:
            if not wanted.exists():
                command = [str(part) for part in (lab.python, "-c", code, run, task, SIZE)]
                subprocess.run(command, env={**os.environ, **lab.environment}, check=True, capture_output=True)

        for batch, count in BATCHES.items():

            def side(
                python: Path | None, *arguments: object, env: dict[str, str], batch: int = batch, count: int = count
            ) -> Worker:
                given = [python or lab.python, worker, *(str(part) for part in (*arguments, SIZE, batch))]
                return Worker(given, runs=count, env=env, warm_up=2)

            ours = side(lab.python, "ours", run, env={**lab.environment})
            what = f"{network} at {SIZE} px, batch {batch}: prediction against"
            for kind, title in (("eager", "PyTorch"), ("compiled", "PyTorch compiled"))[: 2 if batch > 1 else 1]:
                yield Row(
                    f"{what} {title}", "images/s", GOAL, ours,
                    side(lab.torch_python, "torch", task, kind, env={**lab.torch_environment}),
                    note="float32, channels-last, inference_mode, malloc tuned; the same images, random weights",
                    prepare=lambda make=make, run=run: make(MAKE_RUN, run / "experiment.json"),
                    unmeasurable=no_torch if task == "classifier" else no_smp,
                )  # fmt: skip
            yield Row(
                f"{what} ONNX Runtime", "images/s", GOAL, ours,
                side(lab.python, "onnx", run, env={**lab.environment}),
                note="the file that export --format onnx writes of the same run, CPU kernels",
                prepare=lambda make=make, run=run: make(EXPORT, run / "network.onnx"),
                unmeasurable=no_onnx,
            )  # fmt: skip
