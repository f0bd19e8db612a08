"""Mixed precision on a GPU to which TensorFlow cannot be brought: our networks on JAX beside PyTorch, in one process.

The ladder's own check of mixed precision, of the same functions on both sides, at the size and batch of a training:

    KERAS_BACKEND=jax python tests/parity/pytorch/mixed_on_gpu.py PREPARED SIZE

Prints the largest difference of the logits in each mode, as a share of their range, beside the ladder's bound, and ends
with 1 where one is beyond it. The images are those of a prepared folder; the weights are random, and as large as a
start's. Needs JAX, Keras and PyTorch with torchvision and segmentation_models_pytorch in one environment.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import jax
import keras
import numpy as np
import torch

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "experiments/torch_team")]

import ladder_networks  # noqa: E402 # both lie in the folders just named

from keras_pneumo.data.batches.images import images_of, open_source  # noqa: E402
from keras_pneumo.data.prepared.folder import load_prepared  # noqa: E402
from keras_pneumo.models.weights import save_safetensors  # noqa: E402
from keras_pneumo.parity import checks, comparison  # noqa: E402
from keras_pneumo.parity.backends import KERAS_ON_JAX, Backend, read_arrays  # noqa: E402
from keras_pneumo.parity.ladder import MIXED  # noqa: E402
from keras_pneumo.parity.networks import NETWORKS, build  # noqa: E402

BATCH = 16


def main(prepared: Path, size: int, encoder: str = "resnet50") -> int:
    """Compute both sides, print the differences, and give the exit code."""
    folder = load_prepared(prepared)
    ids = folder.split.loc[folder.split["subset"] == "train", "image_id"].head(BATCH)
    given = {"image": images_of(open_source(folder, list(ids), size), range(BATCH)).astype(np.float32) / 255}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{BATCH} images of {size} px, {encoder}; PyTorch {torch.__version__} on {device}, JAX {jax.__version__} on",
        end=" ",
    )
    print(jax.devices()[0].device_kind)
    beyond = False
    with tempfile.TemporaryDirectory() as text:
        exchange = Path(text)
        task = {"networks": NETWORKS, "encoder": encoder, "mixed": True}
        backend = Backend(exchange, KERAS_ON_JAX, task, given)
        backend.own.mkdir()
        expected = {}
        for network in NETWORKS:
            keras.utils.set_random_seed(0)
            save_safetensors(build(network, encoder), exchange / f"{network}.weights.safetensors")
            state = {name: torch.from_numpy(array) for name, array in backend.state(network, "weights").items()}
            theirs = ladder_networks.build(network, encoder)
            ladder_networks.mixed(theirs, given, state, expected.__setitem__, network)
        checks.COMPUTATIONS["mixed"](backend)
        for network in NETWORKS:
            ours, theirs = read_arrays(backend.own / f"mixed.{network}.npz"), expected[f"mixed.{network}"]
            for name, array in theirs.items():
                gap = comparison.compare({name: array}, {name: ours[name]}, MIXED.measure, MIXED.limit)
                beyond |= not gap.within
                print(f"{network}, {name}: {gap.relative:.1e} of the range, bound {MIXED.limit:g}")
    return int(beyond)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
