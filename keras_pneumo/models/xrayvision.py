"""torchxrayvision's ResNet50, which has learned from five data sets of chest radiographs, as a start for our networks.

In: its published file (``resnet50-res512-all``: a state dict of ``torch.save``, read without unpickling), or the same
tensors as safetensors. Out: a state dict by torchvision's names that gives the same numbers in our classifier.

What differs, and how it is kept equal:

- Its input is one channel from -1024 (black) to 1024 (white), which is ``2048 x - 1024`` of our x in [0, 1]. Ours are
  three channels, each x less ImageNet's mean m and divided by its deviation s. Its stem's kernel k becomes ``a_c k``
  for channel c, where ``sum a_c / s_c = 2048`` and ``sum a_c m_c / s_c = 1024``; of all such a the shortest. So the sum
  over our channels is its own convolution everywhere: also at the border, where both networks pad with 0 after the
  normalisation, and 0 adds nothing to either sum.
- It has 18 outputs; ours is the one of pneumothorax, so that the classifier answers as it does before it has learned
  anything. torchxrayvision then moves the probability by an operating point of its own; a threshold is fitted here.

Source: torchxrayvision ``models.py`` (``ResNet``, ``model_urls``) and ``utils.py`` (``normalize``), Cohen et al.,
"TorchXRayVision: A library of chest X-ray datasets and models", MIDL 2022, under the Apache licence 2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from keras_pneumo.models.torch_archive import load_torch_archive
from keras_pneumo.models.weights import StateDict, load_safetensors

PATHOLOGIES = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis", "Effusion",
    "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion", "Fracture",
    "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip
"""What its outputs are, in their order."""

IMAGES = "torchxrayvision's PadChest, NIH ChestX-ray14, RSNA, SIIM-ACR and VinDr-CXR"
"""The images that it has learned from, as a submission declares them; which of each is not published."""

BLACK, WHITE = -1024.0, 1024.0
"""Its pixel range."""


def read_weights(path: Path) -> StateDict:
    """Read a file of weights to start from, by PyTorch's names: safetensors, or a state dict of ``torch.save``.

    torchxrayvision's ResNet50 is known by its shape and changed for our networks; see the module's docstring.

    Raises:
        PneumoError: the file cannot be read, or its stem takes one channel and it is not torchxrayvision's.
    """
    state = read_state(path)
    if is_xrayvision(state):
        return three_channels(state)
    if "conv1.weight" in state and state["conv1.weight"].shape[1:2] == (1,):
        raise PneumoError(
            f"{path} is a network of one channel whose range of pixels is not known: only torchxrayvision's ResNet50 "
            f"with its {len(PATHOLOGIES)} outputs is. Use weights made for three channels."
        )
    return state


def read_state(path: Path) -> StateDict:
    """The tensors of a file as they are: a state dict of ``torch.save`` by its ending, else safetensors.

    Raises:
        PneumoError: the file cannot be read.
    """
    return load_torch_archive(path) if is_torch_file(path) else load_safetensors(path)


def is_torch_file(path: Path) -> bool:
    """Whether a file's ending is one of ``torch.save``."""
    return path.suffix in (".pt", ".pth")


def is_xrayvision(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict has the shapes of torchxrayvision's ResNet50, as published or of its class."""
    shapes = {name: array.shape for name, array in _plain(state).items()}
    return shapes.get("conv1.weight") == (64, 1, 7, 7) and shapes.get("fc.weight") == (len(PATHOLOGIES), 2048)


def three_channels(state: Mapping[str, np.ndarray]) -> StateDict:
    """torchxrayvision's tensors for our three normalised channels and one output; see the module's docstring."""
    mean, deviation = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    # sum over channels of a (x - mean) / deviation = (WHITE - BLACK) x + BLACK, for every x
    equations = np.stack([1 / deviation, mean / deviation])
    shares = np.linalg.lstsq(equations, np.array([WHITE - BLACK, -BLACK]), rcond=None)[0]  # (3,), the shortest solution
    row = PATHOLOGIES.index("Pneumothorax")
    result = _plain(state)
    stem = result["conv1.weight"]
    result["conv1.weight"] = (shares[:, None, None] * stem.astype(np.float64)).astype(stem.dtype)
    return result | {name: result[name][row : row + 1] for name in ("fc.weight", "fc.bias") if name in result}


def _plain(state: Mapping[str, np.ndarray]) -> StateDict:
    """The tensors by torchvision's names; those of its class have ``model.`` before them, and operating points."""
    return {name.removeprefix("model."): array for name, array in state.items() if name != "op_threshs"}
