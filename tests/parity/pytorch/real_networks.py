"""Our networks on whichever Keras backend is set: ``python real_networks.py FOLDER``.

Reads ``images.npy`` and each network's ``<network>.safetensors``; writes ``<backend>.npz``: the logits, and the heat
maps of every method and stage. Nothing is changed in Keras or in its backend.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from keras_pneumo.explain.gradcam import METHODS, STAGES, heat_maps, raw_maps
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import from_torch, load_safetensors

NETWORKS = {
    "classifier": lambda: build_classifier("resnet18"),
    "segmenter": lambda: build_unet("resnet18"),  # its score is that of the mask
    "segmenter with head": lambda: build_unet("resnet18", attention="scse", image_head=True),
}


def outputs_of(name, folder):
    """The logits and heat maps of one network, by name."""
    model, images = NETWORKS[name](), np.load(folder / "images.npy")
    from_torch(model, load_safetensors(folder / f"{name}.safetensors"))
    logits = model(images, training=False)
    logits = logits if isinstance(logits, dict) else {"logits": logits}
    arrays = {head: keras.ops.convert_to_numpy(values) for head, values in logits.items()}
    for stage in STAGES:
        arrays |= {f"{method} {stage}": raw_maps(model, images, method, stage).maps for method in METHODS}
    return arrays | {"heat": heat_maps(model, images, "gradcam++", 2)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    arrays = {f"{name}: {key}": array for name in NETWORKS for key, array in outputs_of(name, folder).items()}
    np.savez(folder / f"{keras.backend.backend()}.npz", **arrays)
