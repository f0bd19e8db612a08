"""The sides of ``inference.py``: a process that predicts the same batch again and again.

    python inference_worker.py ours RUN SIZE BATCH
    python inference_worker.py onnx RUN SIZE BATCH
    python inference_worker.py torch classifier|segmenter eager|compiled SIZE BATCH

Each takes a NumPy batch and gives NumPy logits. The last one runs in PyTorch's environment and imports nothing of this
project.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import UnmeasurableError, serve


def _images(size: int, batch: int) -> Any:
    """Images as a radiograph comes to the network."""
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
