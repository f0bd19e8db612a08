"""Where networks predict: on TensorFlow's own device, or dealt out to all devices that a training's engine has.

The engine (``training.distribution``) stands above this package, so it is handed in: where variables are to be made,
and what predicts in a network's place. Every worker asks for the same batches in the same order and gets all rows back,
in order; so what is computed from them is the same on each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import keras


class Predictor(Protocol):
    """What a network is asked for."""

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch, as NumPy arrays (batch, ...) in its order."""


@dataclass(frozen=True)
class Sharing:
    """Where networks predict."""

    scope: Callable[[], contextlib.AbstractContextManager[Any]]
    """Within it networks are built and loaded."""
    share: Callable[[keras.Model], Predictor]
    """What predicts in a network's place."""
    devices: int = 1
    """How many share a batch."""
    workers: int = 1
    """How many processes must ask for the same."""


def _itself(model: keras.Model) -> Predictor:
    return model


ALONE = Sharing(contextlib.nullcontext, _itself)
"""One device, TensorFlow's default."""
