"""A network that is asked about few images at once, where a whole batch would not fit into memory.

In: what predicts, and how many images it may be asked about at once. Out: something that predicts in its place and
gives the same answers for the whole batch. Predictions of an image do not depend on the others of its batch, so this
changes nothing but rounding, and not even that where a batch is no larger than a part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_pneumo.errors import PneumoError
from keras_pneumo.prediction.sharing import Predictor


class InParts:
    """A predictor's answers, found part by part; the parts are halved when one does not fit."""

    def __init__(
        self,
        predictor: Predictor,
        at_once: int | None = None,
        fewest: int = 1,
        halved: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Ask ``predictor``.

        Args:
            predictor: what is asked.
            at_once: images of a part; None: whole batches.
            fewest: what a part must hold: an image for each device that shares it.
            halved: told the images of a part from then on, when one did not fit. Where others predict the same parts it
                must raise: they would wait for the rest of a larger one.
        """
        self.predictor = predictor
        self.at_once = at_once
        self.fewest = fewest
        self.halved = halved

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch.

        Raises:
            PneumoError: the memory is too small for the smallest part.
        """
        rows = len(x)
        found: list[Any] = []
        done = 0
        while done < rows:
            images = min(self.at_once or rows, rows)
            try:
                part = x if images == rows else x[done : done + images]
                found.append(self.predictor.predict_on_batch(part))
                done += images
            except tf.errors.ResourceExhaustedError:
                if images <= self.fewest:
                    number = "one image" if images == 1 else f"{images} images"
                    raise PneumoError(
                        f"The memory is too small to predict even {number} at once. See that nothing else uses "
                        "the device, or use another."
                    ) from None
                self.at_once = max(-(-images // 2), self.fewest)
                self.halved(self.at_once)
        if len(found) == 1:
            return found[0]
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *found)
