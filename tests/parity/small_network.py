"""Heat maps of a small network on whichever Keras backend is set: ``python small_network.py FOLDER``.

Reads ``images.npy`` and writes ``<backend>.npz``. The network is a small one with an ``encoder`` of five stages, its
weights numbers that every backend makes alike.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_pneumo.prediction.gradcam import METHODS, STAGES, heat_maps, raw_maps


def network():
    """Five strided convolutions with BatchNorm, pooling, and one logit."""
    pixels = keras.Input((None, None, 1))
    x, stages = pixels, []
    for number in range(5):
        x = keras.layers.Conv2D(4 + number, 3, strides=2, padding="same", data_format="channels_last")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        stages.append(x)
    encoder = keras.Model(pixels, stages, name="encoder")
    image = keras.Input((None, None, 1))
    pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last")(encoder(image)[-1])
    model = keras.Model(image, keras.layers.Dense(1)(pooled))
    rng = np.random.default_rng(1)
    # All above nought in variances and scales; kernels either side of it.
    model.set_weights(
        [rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else rng.normal(0, 0.4, w.shape) for w in model.get_weights()]
    )
    return model


folder = Path(sys.argv[1])
model, images = network(), np.load(folder / "images.npy")
found = {f"{method}.{stage}": raw_maps(model, images, method, stage).maps for method in METHODS for stage in STAGES}
np.savez(folder / f"{keras.backend.backend()}.npz", heat=heat_maps(model, images, "gradcam++", 2), **found)
