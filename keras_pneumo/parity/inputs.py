"""The inputs that all backends get: files, images, truths, weights, gradients, parameters and plans.

In: a folder of radiographs or a prepared folder, or nothing, and the size of the networks' images. Out: the ladder's
folder with ``task.json``, ``inputs.npz`` and safetensors; whatever is drawn is drawn from one seed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from keras_pneumo.data.radiographs.reading import RASTER_SUFFIXES, find_images, read_radiograph, require_radiographs
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import AREAS, BOTTOMS, COMPONENTS, GATES, TOPS
from keras_pneumo.models.weights import StateDict, to_torch
from keras_pneumo.parity.backends import INPUTS, TASK, write_arrays
from keras_pneumo.parity.choices import CHOICES, FITTED, MEANS, write_choice_inputs
from keras_pneumo.parity.drawn import DRAWN, EPOCHS, IMAGES, POSITIVES, SIZE, write_drawn_inputs
from keras_pneumo.parity.networks import NETWORKS, build, randomise
from keras_pneumo.parity.real_steps import CONTROLS, STEPS, write_real_inputs
from keras_pneumo.parity.settings import (
    EPOCH_LOSSES,
    LEARNING,
    PLATEAUS,
    SCHEDULE_EPOCH,
    SCHEDULE_STEPS,
    SCHEDULES,
    SETTINGS,
    write_settings_inputs,
)
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.storage.files import write_json, write_table

AUGMENTATION = Augmentation(
    flip=0.5, shift=0.1, scale=0.2, rotate=15, brightness=0.1, contrast=0.2, gamma=0.2, noise=0, clahe=0.5
)
"""Every augmentation but noise, which is drawn and added in the check of whole batches."""

PHANTOMS = PhantomSettings(images=8, seed=11, positive_rate=0.5, monochrome1_rate=0.3)
MOST_FILES = 100
DECAY = {"sgd": 0.001, "adamw": 0.01}
IMAGE_LOSS = [0.1, 3.0]
"""Label smoothing and weight of positives of an image-level loss."""
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
    mixed: bool | None = None
    """Whether mixed precision is compared; None: where there is a GPU."""
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
    phantoms = find_images(folder / "phantoms").paths
    made = [*phantoms, _as_jpeg(phantoms[0])]
    files, images, passed_over = _readable(made + (_files_of(data) if data else []))
    real = [image for image in images[len(made) :] if image.shape[0] == image.shape[1]]
    keras.utils.set_random_seed(plan.seed + 1)
    start = to_torch(build(NETWORKS[0], plan.encoder)) if real else {}
    radiographs = [resize_image(image, plan.size) for image in real]
    has_real = write_real_inputs(folder, radiographs, plan.encoder, plan.size, start)
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
            "image_loss": IMAGE_LOSS,
            "real_steps": {"steps": STEPS, "controls": CONTROLS} if has_real else None,
            **_recipes_task(plan),
            **asdict(plan),
            "mixed": has_gpu() if plan.mixed is None else plan.mixed,
        },
    )
    rng = np.random.default_rng(plan.seed)
    square = [image for image in images if image.shape[0] == image.shape[1]]
    arrays = _network_inputs(rng, square, plan) | _augmentation_inputs(rng, square) | _loss_inputs(rng)
    logits, masks, truth = _predictions(rng)
    arrays |= {"predicted_logits": logits, "predicted_masks": masks, **_drawn_inputs(), **_score_inputs()}
    write_arrays(folder / INPUTS, arrays)
    small = np.stack([resize_image(image, SIZE) for image in square])
    outlines = np.stack([_ellipse(np.random.default_rng(row), SIZE) for row in range(POSITIVES)])
    write_drawn_inputs(folder, small, outlines)
    save_file(write_settings_inputs(folder), folder / "small.start.safetensors")
    write_choice_inputs(folder)
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


def has_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _recipes_task(plan: LadderPlan) -> dict[str, Any]:
    """Say which recipes, settings and candidates the checks of whole recipes have."""

    def plain(figures: list[float]) -> list[float | None]:
        return [figure if np.isfinite(figure) else None for figure in figures]

    return {
        "recipe_images": {"images": IMAGES, "positives": POSITIVES, "epochs": EPOCHS},
        "drawn": list(DRAWN),
        "learning": list(LEARNING),
        "schedules": {label: experiment.name for label, experiment in SCHEDULES.items()},
        "schedule_steps": SCHEDULE_STEPS,
        "schedule_epoch": SCHEDULE_EPOCH,
        "plateaus": {label: {**plateau, "figures": plain(plateau["figures"])} for label, plateau in PLATEAUS.items()},
        "settings": list(SETTINGS),
        "epoch_losses": list(EPOCH_LOSSES),
        "choices": {name: [plain(figures) for figures in lists] for name, (_, _, lists) in CHOICES.items()},
        "averages": {
            network: {label: experiment.name for label, experiment in MEANS[network].items()}
            for network in plan.networks
        },
        "mask_rule": {
            "fitted": FITTED,
            "tops": TOPS,
            "areas": AREAS,
            "bottoms": BOTTOMS,
            "components": COMPONENTS,
            "quantiles": np.linspace(0.1, 0.9, GATES).tolist(),
        },
    }


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
        found = find_images(data)
        require_radiographs(data, found)
        paths = sorted(found.paths, key=lambda path: path.suffix.lower() in RASTER_SUFFIXES)
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


def _as_jpeg(phantom: Path) -> Path:
    """Write a phantom's pixels as a JPEG file beside it, whose decoders may differ."""
    path = phantom.with_name("phantom.jpg")
    cv2.imwrite(str(path), read_radiograph(phantom).pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return path


def _drawn_inputs() -> dict[str, np.ndarray]:
    """List draws whose parameters are compared, some of them of an image that was drawn before, and large masks."""
    masks = [_ellipse(np.random.default_rng(100 + row), rle.MASK_SIZE).astype(np.uint8) for row in range(3)]
    masks[2] = (np.random.default_rng(0).random(masks[2].shape) < 0.5).astype(np.uint8)  # many pixels are half in
    return {
        "drawn_images": np.arange(60) % 45,
        "drawn_repeats": (np.arange(60) >= 45).astype(np.int64),
        "large_masks": np.stack(masks),
    }


def _score_inputs() -> dict[str, np.ndarray]:
    """Draw labels and probabilities of some hundred images, with and without ties."""
    rng = np.random.default_rng(4)
    labels = (rng.random(300) < 0.3).astype(np.int64)
    scores = np.clip(rng.normal(0.4 + 0.15 * labels, 0.2), 0, 1)
    return {"score_labels": labels, "score_values ties": np.round(scores, 1), "score_values no ties": scores}


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
    return np.array(logits, np.float32)[:, None], off_ties(np.array(maps, np.float32))[..., None], pd.DataFrame(rows)


def off_ties(logits: np.ndarray) -> np.ndarray:
    """Mask logits whose probabilities lie off the middle between two of the 256 levels, float32 of the same shape.

    A sigmoid of float32 may round either way in its last bit, by library and by processor, and a probability in the
    very middle then becomes another level: one pixel of a mask, in one of some hundred ladders.
    """
    levels = 255 / (1 + np.exp(-logits.astype(np.float64)))
    middle = np.abs(levels - np.floor(levels) - 0.5) < 1e-3
    return np.where(middle, logits + np.float32(0.01), logits).astype(np.float32)
