"""Prediction with a trained network: ResNet50 and its U-Net at 256 pixels, batches of 16 and single radiographs.

Ours is what ``keras-pneumo predict`` calls for a batch: the predictors of a run folder, with BatchNorm folded into the
convolutions. The other sides, on the same images, float32, on a CPU:

- PyTorch as an expert would run it: torchvision's and smp's networks in channels-last, ``eval`` and ``inference_mode``,
  malloc kept from giving memory back; once as it is, and once by ``torch.compile``;
- ONNX Runtime on the file that ``keras-pneumo export --format onnx`` writes of the same run.

Weights are random: they cost the same as learnt ones. The ends of a side (``python inference.py ours|onnx|torch ...``)
are the workers; the one for PyTorch imports nothing of this project.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import KEEP_MEMORY, Lab
from measuring import Row, Worker
from worker import UnmeasurableError, serve

SIZE = 256
BATCHES = (16, 1)
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
    import subprocess

    here = Path(__file__).resolve()
    no_torch = lab.missing(lab.torch_python, "torch", "torchvision")
    no_smp = lab.missing(lab.torch_python, "torch", "torchvision", "segmentation-models-pytorch")
    no_onnx = lab.missing(lab.python, "onnx", "onnxruntime", "tf2onnx")
    for task, network in NETWORKS.items():
        run = lab.folder / f"inference-{task}"

        def make(code: str, wanted: Path, task: str = task, run: Path = run) -> None:
            if not wanted.exists():
                command = [str(part) for part in (lab.python, "-c", code, run, task, SIZE)]
                subprocess.run(command, env={**_environment(), **lab.environment}, check=True, capture_output=True)

        for batch in BATCHES:
            count = 4 if batch == 16 else 24

            def side(
                python: Path | None, *arguments: object, env: dict[str, str], batch: int = batch, count: int = count
            ) -> Worker:
                given = [python or lab.python, here, *(str(part) for part in arguments), str(SIZE), str(batch)]
                return Worker(given, runs=count, env=env, warm_up=2)

            ours = side(lab.python, "ours", run, env={**lab.environment, **KEEP_MEMORY})
            what = f"{network} at {SIZE} px, batch {batch}: prediction against"
            for kind, title in (("eager", "PyTorch"), ("compiled", "PyTorch compiled")):
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


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def _images(size: int, batch: int):  # noqa: ANN202 - NumPy is not imported by the harness
    import numpy as np

    return np.random.default_rng(0).random((batch, size, size, 1)).astype(np.float32)


def ours(run: Path, size: int, batch: int) -> Callable[[int], int]:
    """The predictors that ``keras-pneumo predict`` opens."""
    from keras_pneumo.quiet import import_tensorflow

    import_tensorflow()
    from keras_pneumo.inference.run import load_predictors, read_run

    (network,) = load_predictors(read_run(run))
    images = _images(size, batch)

    def predict(count: int) -> int:
        for _ in range(count):
            network.predict_on_batch(images)
        return count * batch

    return predict


def onnx(run: Path, size: int, batch: int) -> Callable[[int], int]:
    """The run's export on ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "network.onnx", providers=["CPUExecutionProvider"])
    images = _images(size, batch)

    def predict(count: int) -> int:
        for _ in range(count):
            session.run(None, {"radiograph": images})
        return count * batch

    return predict


def torch(task: str, kind: str, size: int, batch: int) -> Callable[[int], int]:
    """PyTorch's network; from NumPy and back to it, as ours."""
    import torch
    import torchvision

    if task == "classifier":
        network = torchvision.models.resnet50()
        network.fc = torch.nn.Linear(network.fc.in_features, 1)
    else:
        import segmentation_models_pytorch as smp

        head = {"classes": 1, "pooling": "avg", "dropout": 0.2}
        network = smp.Unet("resnet50", encoder_weights=None, classes=1, aux_params=head)
    network = network.eval().to(memory_format=torch.channels_last)
    if kind == "compiled":
        network = torch.compile(network)
    grey = torch.from_numpy(_images(size, batch)).permute(0, 3, 1, 2)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    @torch.inference_mode()
    def predict(count: int) -> int:
        for _ in range(count):
            outputs = network(((grey - mean) / deviation).contiguous(memory_format=torch.channels_last))
            for logits in outputs if isinstance(outputs, tuple) else (outputs,):
                logits.numpy()
        return count * batch

    try:
        predict(1)
    except Exception as error:
        if kind != "compiled":
            raise
        raise UnmeasurableError(f"torch.compile failed: {str(error).splitlines()[0][:200]}") from None
    return predict


if __name__ == "__main__":
    side, *arguments, size, batch = sys.argv[1:]
    if side == "torch":
        serve(lambda: torch(*arguments, int(size), int(batch)))
    else:
        serve(lambda: {"ours": ours, "onnx": onnx}[side](Path(arguments[0]), int(size), int(batch)))
