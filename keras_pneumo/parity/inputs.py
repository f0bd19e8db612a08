"""The inputs that all backends get: files, images, truths, weights, gradients, parameters and plans.

In: a folder of radiographs or a prepared folder, or nothing, and the size of the networks' images. Out: the ladder's
folder with ``task.json``, ``inputs.npz`` and safetensors; whatever is drawn is drawn from one seed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from keras_pneumo.config import Augmentation
from keras_pneumo.data.batches.augmentation import draw_parameters
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import is_prepared
from keras_pneumo.data.radiographs.geometry import resize_image
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.reading import RASTER_SUFFIXES, find_images, read_radiograph
from keras_pneumo.errors import PneumoError
from keras_pneumo.models.weights import StateDict, to_torch
from keras_pneumo.parity.backends import INPUTS, TASK, write_arrays
from keras_pneumo.parity.networks import NETWORKS, build, randomise
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.storage.files import write_json, write_table

AUGMENTATION = Augmentation(
    flip=0.5, shift=0.1, scale=0.2, rotate=15, brightness=0.1, contrast=0.2, gamma=0.2, noise=0, clahe=0.5
)
"""Every augmentation but noise, which is compared with the PyTorch team's in tests/parity/pytorch."""

PHANTOMS = PhantomSettings(images=8, seed=11, positive_rate=0.5, monochrome1_rate=0.3)
MOST_FILES = 100
DECAY = {"sgd": 0.0, "adamw": 0.01}
TRUTH = "truth.csv"
AUGMENTED_SIZE, PREDICTED = 128, 24


@dataclass(frozen=True)
class LadderPlan:
    """The ladder's encoder and the sizes of its computations."""

    encoder: str = "resnet50"
    size: int = 64
    """Side of the networks' images, a multiple of 32."""
    forward_batch: int = 16
    """In training mode BatchNorm magnifies rounding where it has few numbers: with 8 images a logit was 1e-4 off."""
    gradient_batch: int = 4
    """This many images of the forward batch; float64 is slow."""
    batches: tuple[int, int] = (24, 4)
    """Batch of the training steps, classifier and U-Net. With 8 images a channel of the deepest stage has 32 numbers at
    size 64, and where they hardly differ BatchNorm magnifies rounding: one step in twenty was then 5e-3 off."""
    steps: int = 20
    peaks: tuple[float, float] = (1e-4, 1e-5)
    """Highest rate of the one-cycle schedule of those steps, classifier and U-Net. At ten times the rate, twenty steps
    of the U-Net are chaotic: PyTorch itself, from weights changed in the seventh digit, is 8e-3 off its losses."""
    networks: tuple[str, ...] = NETWORKS
    seed: int = 0


ONE_CYCLES = [
    {"steps": 20, "peak": 1.0, "rise": 0.3, "div_factor": 25.0, "final_div_factor": 1e4, "momentum": [0.85, 0.95]},
    {"steps": 997, "peak": 3e-4, "rise": 0.25, "div_factor": 10.0, "final_div_factor": 100.0, "momentum": [0.8, 0.9]},
    {"steps": 3, "peak": 0.1, "rise": 0.5, "div_factor": 25.0, "final_div_factor": 1e4, "momentum": [0.85, 0.95]},
]


def write_inputs(folder: Path, data: Path | None, plan: LadderPlan) -> None:
    """Write all inputs into a folder.

    Raises:
        PneumoError: ``data`` holds no radiograph, or none that can be read; or a size is not a multiple of 32.
    """
    if plan.size % 32 or plan.size < 32:
        raise PneumoError(f"The ladder's networks take images whose side is a multiple of 32, not {plan.size}.")
    write_phantoms(folder / "phantoms", PHANTOMS, workers=1)
    files, images, passed_over = _readable(find_images(folder / "phantoms")[0] + (_files_of(data) if data else []))
    write_json(
        folder / TASK,
        {
            "files": [str(path.resolve()) for path in files],
            "passed_over": passed_over,
            "data": str(data) if data else "",
            "sizes": [512, 256, 128],
            "one_cycles": ONE_CYCLES,
            "training": {
                network: {"steps": plan.steps, "peak": peak, "momentum": [0.85, 0.95]}
                for network, peak in zip(NETWORKS, plan.peaks, strict=True)
            },
            "optimizers": {"sgd": [0.8, 0.4], "adamw": [0.001, 0.0005], "decay": DECAY, "shares": [1.0, 0.5]},
            **asdict(plan),
        },
    )
    rng = np.random.default_rng(plan.seed)
    square = [image for image in images if image.shape[0] == image.shape[1]]
    arrays = _network_inputs(rng, square, plan) | _augmentation_inputs(rng, square) | _loss_inputs(rng)
    logits, masks, truth = _predictions(rng)
    write_arrays(folder / INPUTS, {**arrays, "predicted_logits": logits, "predicted_masks": masks})
    write_table(folder / TRUTH, truth)
    for network in plan.networks:
        keras.utils.set_random_seed(plan.seed + 1)
        model = build(network, plan.encoder)
        save_file(calm(to_torch(model)), folder / f"{network}.start.safetensors")
        randomise(model, rng, arrays["image"])
        state = to_torch(model)
        save_file(state, folder / f"{network}.weights.safetensors")
        # Tensor by tensor another size, down to where Adam's epsilon matters.
        gradients = {
            name: (rng.normal(0, 10 ** rng.uniform(-8, -2), array.shape)).astype(array.dtype)
            for name, array in state.items()
        }
        save_file(gradients, folder / f"{network}.gradients.safetensors")


def calm(state: StateDict) -> StateDict:
    """Shut the residual branches of random start weights: their last BatchNorm's scale becomes 0 (arXiv 1706.02677).

    A plain random start is chaotic: PyTorch itself, from weights changed in their seventh digit, is some per cent off
    after twenty steps, so the comparison would say nothing.
    """
    deep = any(name.endswith("layer1.0.bn3.weight") for name in state)
    last = re.compile(rf"layer\d\.\d+\.bn{3 if deep else 2}\.weight$")
    return {name: np.zeros_like(array) if last.search(name) else array for name, array in state.items()}


def _files_of(data: Path) -> list[Path]:
    """List radiographs of a folder, DICOM first; of a prepared folder, its PNGs of the largest size."""
    if is_prepared(data):
        sizes = sorted(int(path.name[7:]) for path in data.glob("images_*") if path.name[7:].isdigit())
        paths = sorted((data / f"images_{sizes[-1]}").glob("*.png")) if sizes else []
    else:
        paths = sorted(find_images(data)[0], key=lambda path: path.suffix.lower() in RASTER_SUFFIXES)
    if not paths:
        raise PneumoError(f"{data} holds no radiograph. Name a folder of DICOM or PNG files, or a prepared folder.")
    return paths[:MOST_FILES]


def _readable(paths: list[Path]) -> tuple[list[Path], list[np.ndarray], int]:
    """Read files; return those that are radiographs, their pixels, and how many are not."""
    files, images = [], []
    for path in paths:
        try:
            images.append(read_radiograph(path).pixels)
            files.append(path)
        except UnreadableImage:
            continue
    return files, images, len(paths) - len(files)


def _network_inputs(rng: np.random.Generator, images: list[np.ndarray], plan: LadderPlan) -> dict[str, np.ndarray]:
    """Make batches of the radiographs, their mirror images and both turned by 90 degrees, each with a random truth.

    The truths are not the radiographs' own: only equality matters here.
    """
    small = np.stack([resize_image(image, plan.size) for image in images[-64:]])
    pool = np.concatenate([small, small[:, :, ::-1], small.transpose(0, 2, 1), small[:, ::-1].transpose(0, 2, 1)])
    pool = pool[..., None].astype(np.float32) / np.float32(255)
    truths = _truths(rng, len(pool), plan.size)
    first = rng.permutation(len(pool))[: plan.forward_batch]
    arrays = {"image": pool[first], **{f"truth_{head}": values[first] for head, values in truths.items()}}
    for network, batch in zip(NETWORKS, plan.batches, strict=True):
        drawn = np.stack([rng.permutation(len(pool))[:batch] for _ in range(plan.steps)])
        arrays[f"{network}_images"] = pool[drawn]
        for head, values in truths.items():
            arrays[f"{network}_{head}"] = values[drawn]
    return arrays


def _truths(rng: np.random.Generator, count: int, size: int) -> dict[str, np.ndarray]:
    """Make labels (n, 1) and masks (n, size, size, 1), float32, 0 or 1; every other mask is empty."""
    labels = (np.arange(count) % 2).astype(np.float32)[:, None]
    blobs = np.stack([_ellipse(rng, size) for _ in range(count)])[..., None]
    return {"image": labels, "mask": blobs * labels[..., None, None]}


def _ellipse(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a filled ellipse somewhere, float32 (size, size), 0 or 1."""
    centre = rng.integers(size // 4, 3 * size // 4, 2)
    axes = rng.integers(size // 12 + 1, size // 5 + 2, 2)
    canvas = np.zeros((size, size), np.uint8)
    shape = (int(centre[0]), int(centre[1])), (int(axes[0]), int(axes[1]))
    return cv2.ellipse(canvas, *shape, float(rng.uniform(0, 180)), 0, 360, 1, -1).astype(np.float32)


def _augmentation_inputs(rng: np.random.Generator, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    chosen = np.stack([resize_image(image, AUGMENTED_SIZE) for image in images[:4] + images[-4:]])[..., None]
    parameters, _ = draw_parameters(AUGMENTATION, 3, 0, np.arange(len(chosen)), np.zeros(len(chosen), int))
    masks = np.stack([_ellipse(rng, AUGMENTED_SIZE) for _ in chosen])[..., None].astype(np.uint8)
    return {"augmented_images": chosen, "augmented_masks": masks, "parameters": parameters}


def _loss_inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Make logits of every size, sure and right, sure and wrong, and masks, one of them empty and one full."""
    logits = rng.normal(0, 1, (6, 32, 32, 1)) * np.array([0.1, 1, 3, 10, 30, 3])[:, None, None, None]
    masks = np.stack([_ellipse(rng, 32) for _ in range(6)])[..., None]
    masks[4], masks[5] = 0, 1
    labels = np.array([0, 1, 0, 1, 0, 1], np.float32)[:, None]
    return {"loss_logits": logits.astype(np.float32), "loss_masks": masks, "loss_labels": labels}


def _predictions(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Make image logits (n, 1) and mask logits (n, 64, 64, 1) of a mediocre team, and the truth they are scored on."""
    rows, maps, logits = [], [], []
    for number in range(PREDICTED):
        ill = number % 3 == 0
        mask = _ellipse(rng, rle.MASK_SIZE) if ill else np.zeros((rle.MASK_SIZE, rle.MASK_SIZE), np.float32)
        seen = cv2.resize(cv2.GaussianBlur(mask, (0, 0), 24), (64, 64), interpolation=cv2.INTER_AREA)
        maps.append(9 * seen - 5 + rng.normal(0, 1, seen.shape))
        logits.append(rng.normal(1.0 if ill else -1.0, 1.5))
        encoded = rle.encode(mask.astype(np.uint8)) if ill else "-1"
        rows.append({"image_id": f"image{number:02}", "patient_id": f"p{number // 2}", "encoded_pixels": encoded})
    return np.array(logits, np.float32)[:, None], np.array(maps, np.float32)[..., None], pd.DataFrame(rows)
