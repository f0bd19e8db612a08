"""The checks of what is drawn: the order of images, the parameters of augmentation, crops, and whole batches.

In: an experiment, which both teams read from one file, and images with labels and masks as PNG files. Out: by the
functions that ``keras-pneumo train`` calls, each epoch's draws, batch bounds and parameters, and the batches that the
network gets. PyTorch's side draws by its own sampler, data set and loader. So a wrong range, an order shuffled within a
buffer, or another share of positives shows here, before anything is learnt.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Augmentation, Experiment, read_experiment
from keras_pneumo.data.batches.augmentation import PARAMETERS, crop_corner
from keras_pneumo.data.radiographs.geometry import resize_mask
from keras_pneumo.parity.backends import RECIPES, Backend
from keras_pneumo.storage.files import write_json

if TYPE_CHECKING:
    from keras_pneumo.data.batches.images import ImageSet

EVERY_RANGE = Augmentation(
    flip=0.4, shift=0.1, scale=0.2, rotate=15, brightness=0.1, contrast=0.2, gamma=0.25, noise=0.05, clahe=0.3
)
"""Every range has a value of its own, so that none can stand for another."""

SIZE, CROP, IMAGES, POSITIVES = 64, 32, 22, 9
"""Images of the recipes' checks: with batches of 8 an epoch has batches of 8, 7 and 7 images."""

EPOCHS = 3

_COMMON = {"weights": "random", "encoder": "resnet18", "image_size": SIZE, "global_batch_size": 8, "seed": 5}

DRAWN = {
    "every_image_once": CLASSIFIER.replace(
        **_COMMON, name="every_image_once", augmentation=EVERY_RANGE, positive_rate=()
    ),
    "share_of_positives": SEGMENTER.replace(
        **_COMMON,
        name="share_of_positives",
        augmentation=EVERY_RANGE,
        positive_rate=((0, 0.8), (2, 0.35)),
        crop=CROP,
    ),
}
"""The recipes that are drawn by: a classifier's, and a segmenter's with crops and a share of positives."""


def write_drawn_inputs(folder: Path, images: np.ndarray, masks: np.ndarray) -> None:
    """Write the images, masks and recipes of these checks, as files that both teams read.

    Args:
        folder: the ladder's.
        images: uint8 (n, SIZE, SIZE); the first ones are taken, again and again where there are few.
        masks: 0 or 1, (POSITIVES, SIZE, SIZE), of the first images.
    """
    for kind in ("images", "masks"):
        (folder / f"{kind}_{SIZE}").mkdir()
    for number, image_id in enumerate(image_ids()):
        cv2.imwrite(str(folder / f"images_{SIZE}" / f"{image_id}.png"), images[number % len(images)])
        if number < POSITIVES:
            cv2.imwrite(str(folder / f"masks_{SIZE}" / f"{image_id}.png"), (masks[number] * 255).astype(np.uint8))
    for name, experiment in DRAWN.items():
        write_recipe(folder, name, experiment)


def write_recipe(folder: Path, name: str, experiment: Experiment) -> None:
    """Write an experiment where :func:`recipe_of` and the PyTorch team find it."""
    (folder / RECIPES).mkdir(exist_ok=True)
    write_json(folder / RECIPES / f"{name}.json", experiment.model_dump(mode="json"))


def recipe_of(folder: Path, name: str) -> Experiment:
    """Read the experiment of that name, as ``keras-pneumo train`` does."""
    return read_experiment(folder / RECIPES / f"{name}.json")


def image_ids() -> list[str]:
    """List the ids of the recipes' images."""
    return [f"image{number:02}" for number in range(IMAGES)]


def labels() -> np.ndarray:
    """Return the labels of the recipes' images, (n,), 0 or 1."""
    return (np.arange(IMAGES) < POSITIVES).astype(np.int64)


def order(backend: Backend) -> None:
    """Compute which image is drawn when, how often it came before, and the bounds of the batches."""
    from keras_pneumo.training.trainer import plan_of

    for name in DRAWN:
        plan = plan_of(recipe_of(backend.folder, name), 0, EPOCHS)
        arrays = {"images of each batch": np.array([len(rows) for rows in plan.rows(IMAGES)])}
        for epoch in range(EPOCHS):
            images, repeats = plan.draws(labels(), epoch)
            arrays[f"epoch {epoch + 1}: images"] = images.astype(np.int64)
            arrays[f"epoch {epoch + 1}: times drawn before"] = repeats.astype(np.int64)
        backend.write(f"order.{name}", arrays)


def parameters(backend: Backend) -> None:
    """Compute each draw's parameters of augmentation, and the corner of its crop, from equal draws."""
    from keras_pneumo.training.trainer import plan_of

    images, repeats = backend.inputs["drawn_images"], backend.inputs["drawn_repeats"]
    for name in DRAWN:
        experiment = recipe_of(backend.folder, name)
        plan = plan_of(experiment, 0, EPOCHS)
        columns: dict[str, list[np.ndarray]] = {}
        for epoch in range(EPOCHS):
            values, noise_seeds = plan.parameters(epoch, images, repeats)
            for column, kind in enumerate(PARAMETERS):
                columns.setdefault(kind, []).append(values[:, column])
            columns.setdefault("noise seeds", []).append(noise_seeds.astype(np.float32))
            if experiment.crop:
                corners = [crop_corner(seeds, (SIZE, SIZE), experiment.crop) for seeds in noise_seeds]
                columns.setdefault("corners of crops", []).append(np.array(corners, np.float32))
        backend.write(f"drawn.{name}", {kind: np.concatenate(parts) for kind, parts in columns.items()})


def batches(backend: Backend) -> None:
    """Assemble the batches of two epochs, as the network gets them."""
    from keras_pneumo.data.batches.pipeline import training_batches
    from keras_pneumo.training.trainer import plan_of

    for name in DRAWN:
        plan = plan_of(recipe_of(backend.folder, name), 1, EPOCHS - 1)
        arrays = {}
        for step, (images, target) in enumerate(training_batches(image_set(backend.folder, name), plan)):
            parts = target if isinstance(target, dict) else {"image": target}
            arrays[f"step {step + 1}: labels"] = parts["image"].numpy()[:, 0]
            arrays[f"step {step + 1}: images"] = images.numpy()
            if "mask" in parts:
                arrays[f"step {step + 1}: masks"] = parts["mask"].numpy()
        backend.write(f"batches.{name}", arrays)


def image_set(folder: Path, name: str) -> ImageSet:
    """Open the recipes' images, and for a segmenter's recipe their masks, as a training has them."""
    from keras_pneumo.data.batches.images import ImageSet

    ids, segments = image_ids(), recipe_of(folder, name).task == "segmenter"
    paths = tuple(str(folder / f"images_{SIZE}" / f"{image_id}.png") for image_id in ids)
    masks = tuple(
        str(folder / f"masks_{SIZE}" / f"{image_id}.png") if segments and number < POSITIVES else ""
        for number, image_id in enumerate(ids)
    )
    return ImageSet(tuple(ids), labels(), SIZE, paths, masks)


def reduced_masks(backend: Backend) -> None:
    """Reduce masks to each size."""
    masks = backend.inputs["large_masks"]
    backend.write(
        "masks",
        {
            f"mask {number} at {size}": resize_mask(mask, size).astype(np.uint8)
            for number, mask in enumerate(masks)
            for size in backend.task["sizes"]
        },
    )
