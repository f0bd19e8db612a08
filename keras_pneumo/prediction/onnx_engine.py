"""ONNX Runtime in place of Keras for predicting, where it is faster: the same weights, checked to give the same logits.

In: one of our networks. Out: an object with the one method of a Keras model that prediction uses. The export is made
anew each time a detector is opened, into a folder that is then removed: a detector stays a folder of weights alone.

Needs onnx, tf2onnx and onnxruntime (extra ``export``).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_pneumo.config import Experiment
from keras_pneumo.prediction.export import export_network


class OnnxNetwork:
    """A network as ONNX Runtime runs it; to prediction it is a model."""

    def __init__(self, session: Any) -> None:
        """Take an ``onnxruntime.InferenceSession`` of an export."""
        self.session = session
        self.names = [output.name for output in session.get_outputs()]

    def predict_on_batch(self, images: Any) -> Any:
        """Logits of float32 (B, S, S, 1) in [0, 1]: (B, 1), (B, S, S, 1), or both as ``image`` and ``mask``."""
        given = {"radiograph": np.ascontiguousarray(images, np.float32)}
        found = dict(zip(self.names, self.session.run(self.names, given), strict=True))
        if len(found) == 1:
            return next(iter(found.values()))
        return {"image": found["image_logit"], "mask": found["mask_logits"]}


def on_onnx(model: keras.Model, experiment: Experiment) -> OnnxNetwork:
    """The network on ONNX Runtime.

    Raises:
        PneumoError: a package is missing, or the logits differ by more than an export's may.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_network(model, experiment, "onnx", path)
        import onnxruntime

        return OnnxNetwork(onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]))
