"""The sanity check of heat maps: they must change when the learnt weights are replaced by random ones.

In: a network and a function that makes heat maps. Out: how alike the maps stay while weights are drawn anew, from the
output down to the image, block by block, each on top of the ones before (the cascading randomisation of Adebayo et al.,
arXiv 1810.03292). A map that stays alike to the end shows the radiograph or the architecture, whatever it looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import numpy as np
import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.scoring.saliency import UNINFORMATIVE, rank_correlation
from keras_pneumo.models.resnet import leaf_layers
from keras_pneumo.models.weights import module_name

HeatMaker = Callable[[keras.Model, np.ndarray], np.ndarray]
"""From a network and images, float32 (B, S, S, 1), to heat, float32 (B, S, S)."""


def cascade(model: keras.Model, images: np.ndarray, heat_of: HeatMaker, seed: int = 0) -> pd.DataFrame:
    """Rank correlation of the maps with those of the learnt network, after each block that is made random.

    Args:
        model: one of ours; it has its own weights again when this returns.
        images: float32 (B, S, S, 1) in [0, 1].
        heat_of: makes the maps.
        seed: of the random weights.

    Returns:
        ``step`` (from 1), ``block`` (the one made random in this step), ``likeness`` (mean rank correlation of the
        images' maps with their own, of those that have heat) and its ``lowest`` and ``highest`` over the images.

    Raises:
        PneumoError: no image has any heat to begin with.
    """
    rows = []
    with _weights_kept(model):
        own = heat_of(model, images)
        hot = np.ptp(own, axis=(1, 2)) > 0
        if not hot.any():
            raise PneumoError(
                "None of these images has any heat, so the sanity check cannot be made. Use other images."
            )
        for step, (block, layers) in enumerate(weight_blocks(model), start=1):
            for layer in layers:
                draw_anew(layer, np.random.default_rng([seed, step]))
            again = heat_of(model, images)
            likeness = [rank_correlation(*pair) for pair in zip(own[hot], again[hot], strict=True)]
            rows.append((step, block, float(np.mean(likeness)), min(likeness), max(likeness)))
    return pd.DataFrame(rows, columns=["step", "block", "likeness", "lowest", "highest"])


def uninformative(table: pd.DataFrame) -> bool:
    """Whether the maps are, by :func:`cascade`'s last row, much the same with every weight random."""
    return bool(table["likeness"].iloc[-1] >= UNINFORMATIVE)


def weight_blocks(model: keras.Model) -> list[tuple[str, list[keras.layers.Layer]]]:
    """The network's layers with weights in blocks by PyTorch's names, the output's first and the stem last.

    A residual block or a block of the decoder is one block, and so is the stem.
    """
    blocks: dict[str, list[keras.layers.Layer]] = {}
    for layer in leaf_layers(model):
        module = module_name(layer.name)
        part = re.match(r"(layer\d\.\d+|decoder\.blocks\.\d+)\.", module)
        stem = module in ("conv1", "bn1")
        blocks.setdefault(part.group(1) if part else "stem" if stem else module, []).append(layer)
    return list(reversed(blocks.items()))


def draw_anew(layer: keras.layers.Layer, random: np.random.Generator) -> None:
    """Give a layer the weights of a new one; for BatchNorm the statistics of a new one, too."""
    for variable in layer.weights:
        initializer = getattr(layer, f"{variable.name}_initializer", None)
        if initializer is None:  # a variable that is never used
            continue
        settings = initializer.get_config()
        if "seed" in settings:  # the layer's own seed would draw the weights that the training started from
            settings["seed"] = int(random.integers(2**31))
        variable.assign(type(initializer).from_config(settings)(variable.shape, variable.dtype))


@contextmanager
def _weights_kept(model: keras.Model) -> Iterator[None]:
    kept = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]
    try:
        yield
    finally:
        for weight, value in zip(model.weights, kept, strict=True):
            weight.assign(value)
