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
    "segmenter": lambda: build_unet("resnet18"),  # the score is its mask's
    "segmenter with head": lambda: build_unet("resnet18", attention="scse", image_head=True),
}


def answers(name, folder):
    """Everything asked of one network, by name."""
    model, images = NETWORKS[name](), np.load(folder / "images.npy")
    from_torch(model, load_safetensors(folder / f"{name}.safetensors"))
    outputs = model(images, training=False)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    found = {head: keras.ops.convert_to_numpy(logits) for head, logits in outputs.items()}
    for stage in STAGES:
        found |= {f"{method} {stage}": raw_maps(model, images, method, stage).maps for method in METHODS}
    return found | {"heat": heat_maps(model, images, "gradcam++", 2)}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    all_found = {f"{name}: {key}": array for name in NETWORKS for key, array in answers(name, place).items()}
    np.savez(place / f"{keras.backend.backend()}.npz", **all_found)
