"""From a network and a batch of images to probabilities: the one loop over images and their mirror images.

In: what predicts (a Keras network, one that is distributed over several devices, or one on ONNX Runtime), and images.
Out: the probability of a pneumothorax of each image (classifiers, and segmenters with an image head) and of each pixel
(segmenters), for the image and, where the experiment averages flips, for its mirror image.

A run's network predicts as a :class:`CompiledNetwork`: one graph for batches of any size. Images and their mirror
images are one batch. Where that is larger than wanted, or does not fit into memory, :class:`MicroBatchPredictor`
predicts it part by part. An image's prediction does not depend on the others of its batch, so this changes nothing but
rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.errors import PneumoError


class Predictor(Protocol):
    """Anything that predicts a batch as a Keras network does."""

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch, as NumPy arrays (batch, ...) in its order."""


class Logits(NamedTuple):
    """A network's outputs for one batch."""

    image: np.ndarray | None
    """Whether the image shows a pneumothorax, float32 (B,); None for a segmenter without an image head."""
    mask: np.ndarray | None
    """Whether each pixel does, float32 (B, S, S); None for a classifier."""


class Probabilities(NamedTuple):
    """The probabilities of one batch."""

    image: np.ndarray | None
    """Of each image, (B,): float64 by a classifier, float32 by a segmenter's image head; None without one."""
    maps: np.ndarray | None
    """Of each pixel, float32 (B, S, S); None for a classifier."""


def predict_passes(network: Predictor, images: np.ndarray, flip_averaging: bool) -> Iterator[Probabilities]:
    """Predict a batch, with flip averaging together with its mirror images, whose maps are turned back.

    Args:
        network: a classifier or a segmenter.
        images: float32 (B, S, S, 1) in [0, 1].
        flip_averaging: whether mirror images are predicted.

    Yields:
        The probabilities of each pass; callers average them.
    """
    rows = len(images)
    logits = predict_logits(network, np.concatenate([images, images[:, :, ::-1]]) if flip_averaging else images)
    for mirrored in (False, True) if flip_averaging else (False,):
        some = slice(rows, None) if mirrored else slice(rows)
        if logits.mask is None:
            assert logits.image is not None
            yield Probabilities(sigmoid(logits.image[some]), None)
            continue
        maps = sigmoid(logits.mask[some], np.float32)
        image = None if logits.image is None else sigmoid(logits.image[some], np.float32)
        yield Probabilities(image, maps[:, :, ::-1] if mirrored else maps)


def predict_logits(network: Predictor, images: Any) -> Logits:
    """The logits of one batch, float32 (B, S, S, 1) in [0, 1], by their meaning."""
    outputs = network.predict_on_batch(images)
    if isinstance(outputs, dict):
        return Logits(np.asarray(outputs["image"])[:, 0], np.asarray(outputs["mask"])[..., 0])
    outputs = np.asarray(outputs)
    return Logits(outputs[:, 0], None) if outputs.ndim == 2 else Logits(None, outputs[..., 0])


def sigmoid(logits: np.ndarray, dtype: type[np.floating[Any]] = np.float64) -> np.ndarray:
    """Probabilities of logits of any size, without overflow: float64 for images, float32 for maps.

    Not ``scipy.special.expit``: its float32 results differ from these in the last bits, which moves a pixel in 200,000
    of a map to the next of its 256 levels, so a run's masks would no longer be the ones it had.
    """
    return np.asarray(np.exp(-np.logaddexp(dtype(0), -logits.astype(dtype))))


class CompiledNetwork:
    """A Keras network that predicts on one device by one graph, made once for images of any number and size.

    ``keras.Model.predict_on_batch`` makes a second graph when the last batch is smaller, which takes seconds.
    """

    def __init__(self, model: keras.Model, jit: bool = False) -> None:
        """Predict with ``model``, from float32 (B, S, S, 1) in [0, 1] to logits; with ``jit`` compiled by XLA."""
        images = tf.TensorSpec((None, None, None, 1), tf.float32)
        self.function = tf.function(
            lambda batch: model(batch, training=False),
            input_signature=[images],
            autograph=False,
            jit_compile=jit or None,
        )

    def predict_on_batch(self, x: Any) -> Any:
        """The logits of a batch, as NumPy arrays."""
        return tf.nest.map_structure(lambda logits: logits.numpy(), self.predict_function([(x,)]))

    def predict_function(self, data: Any) -> Any:
        """The logits as tensors; what Keras's ``predict_on_batch`` calls, where a model is given this function."""
        ((images,),) = data
        return self.function(tf.cast(images, tf.float32))


@dataclass(frozen=True)
class DistributedPredictor:
    """Where networks are made and predict: on one device, or on all devices of a training's distribution.

    The distribution (``training.distributed``) stands above this package, so it hands this in. Every worker predicts
    the same batches in the same order and gets all rows back, in order; so what is computed from them is the same on
    each.
    """

    scope: Callable[[], contextlib.AbstractContextManager[Any]]
    """A context in which networks are built and loaded."""
    distribute: Callable[[keras.Model], Predictor]
    """Makes the predictor that stands for a network."""
    devices: int = 1
    """How many devices share a batch."""
    workers: int = 1
    """How many processes predict the same batches together."""
    engines: Set[str] = frozenset()
    """The programs that have run networks, with versions, where Keras was not the only choice."""


SINGLE_DEVICE = DistributedPredictor(contextlib.nullcontext, CompiledNetwork)
"""One device, TensorFlow's default."""


class MicroBatchPredictor:
    """A predictor that predicts a batch in parts, and halves the parts when one does not fit into memory."""

    def __init__(
        self,
        predictor: Predictor,
        size: int | None = None,
        smallest: int = 1,
        on_halved: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Predict with ``predictor``.

        Args:
            predictor: predicts each part.
            size: images of a part; None: whole batches.
            smallest: images that a part must hold: one for each device that shares it.
            on_halved: called with the new size of a part when one did not fit. It must raise where other workers
                predict the same parts: they would wait for the rest of a larger one.
        """
        self.predictor = predictor
        self.size = size
        self.smallest = smallest
        self.on_halved = on_halved

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch.

        Raises:
            PneumoError: the memory is too small for the smallest part.
        """
        rows = len(x)
        outputs: list[Any] = []
        done = 0
        while done < rows:
            size = min(self.size or rows, rows)
            try:
                part = x if size == rows else x[done : done + size]
                outputs.append(self.predictor.predict_on_batch(part))
                done += size
            except tf.errors.ResourceExhaustedError:
                if size <= self.smallest:
                    number = "one image" if size == 1 else f"{size} images"
                    raise PneumoError(
                        f"The memory is too small to predict even {number} at once. Check that nothing else uses the "
                        "device, or use another device."
                    ) from None
                self.size = max(-(-size // 2), self.smallest)
                self.on_halved(self.size)
        if len(outputs) == 1:
            return outputs[0]
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs)
