"""The check of real steps: the real recipe on real radiographs, beside PyTorch's own sensitivity to the last bit.

In: radiographs that the user names, and the recipe from which all classifiers' experiments start. Out: the loss of each
of 50 steps of both teams, from equal weights, and of PyTorch again from weights of which one differs in its last bit.
At usual rates a training is chaotic: such a bit moves the later losses by per cents. So equal losses cannot be asked
for; what can be asked is that Keras is no further from PyTorch than PyTorch is from itself.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.models.weights import StateDict, from_torch
from keras_pneumo.parity.backends import TORCH, Backend, read_arrays
from keras_pneumo.parity.drawn import recipe_of, write_recipe
from keras_pneumo.parity.networks import build, to_numpy
from keras_pneumo.storage.files import write_table

STEPS, CONTROLS, BATCH = 50, 4, 16
FEWEST = 2 * BATCH
"""Radiographs without which there is nothing to draw from."""

RECIPE, FOLDER, TABLE, LOSSES = "real_steps", "real", "real.csv", "real_steps"
DISTANCE = "distance of the losses"


def write_real_inputs(folder: Path, images: list[np.ndarray], encoder: str, size: int, start: StateDict) -> bool:
    """Write radiographs, recipe and start weights; return whether there are radiographs enough.

    Args:
        folder: the ladder's.
        images: uint8 (size, size) each. Every other one counts as positive: only equality matters here.
        encoder: of the classifier.
        size: of the images.
        start: the network's random start weights.
    """
    if len(images) < FEWEST:
        return False
    (folder / FOLDER / f"images_{size}").mkdir(parents=True)
    rows = [{"image_id": f"real{number:03}", "label": number % 2} for number in range(len(images))]
    for row, image in zip(rows, images, strict=True):
        cv2.imwrite(str(folder / FOLDER / f"images_{size}" / f"{row['image_id']}.png"), image)
    write_table(folder / FOLDER / TABLE, pd.DataFrame(rows))
    epochs = -(-STEPS // -(-len(images) // BATCH))
    recipe = CLASSIFIER.replace(
        name=RECIPE, encoder=encoder, weights="random", image_size=size, frozen_epochs=0, epochs=epochs,
        global_batch_size=BATCH,
    )  # fmt: skip
    write_recipe(folder, RECIPE, recipe)
    save_file(start, folder / "real.start.safetensors")
    return True


def real_steps(backend: Backend) -> None:
    """Take the steps, as ``keras-pneumo train`` does."""
    from keras_pneumo.data.batches.images import ImageSet
    from keras_pneumo.data.batches.pipeline import training_batches
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer
    from keras_pneumo.training.step import training_network
    from keras_pneumo.training.trainer import plan_of

    if not backend.task["real_steps"]:
        return
    recipe = recipe_of(backend.folder, RECIPE)
    table = pd.read_csv(backend.folder / FOLDER / TABLE, dtype={"image_id": str})
    ids, images = tuple(table["image_id"]), backend.folder / FOLDER / f"images_{recipe.image_size}"
    paths = tuple(str(images / f"{image_id}.png") for image_id in ids)
    source = ImageSet(ids, table["label"].to_numpy(), recipe.image_size, paths, ("",) * len(ids))
    plan = plan_of(recipe, 0, recipe.epochs)
    model = build("classifier", recipe.encoder)
    from_torch(model, backend.state("real", "start"))
    epoch_steps = len(plan.rows(len(ids)))
    optimizer = make_optimizer(recipe, model, recipe.learning_rate, recipe.epochs * epoch_steps, epoch_steps)
    network = training_network(model, image_losses(recipe), optimizer)
    losses = []
    for batch, target in training_batches(source, plan).take(STEPS):
        losses.append(float(to_numpy(network.train_on_batch(batch, target, return_dict=True)["loss"])))
    backend.write(LOSSES, {"losses": np.array(losses)})


def distances(folder: Path, backend: str) -> dict[str, np.ndarray]:
    """Return how far a backend's losses are from PyTorch's: the root of the mean squared difference.

    PyTorch's own is the largest of its controls: trainings from weights of which one differs in its last bit.
    """
    reference = read_arrays(folder / TORCH / f"{LOSSES}.npz")
    if backend == TORCH:
        return {DISTANCE: np.array([max(own_distances(reference))])}
    path = folder / backend / f"{LOSSES}.npz"
    if not path.exists():
        return {}
    return {DISTANCE: np.array([_distance(read_arrays(path)["losses"], reference["losses"])])}


def own_distances(reference: dict[str, np.ndarray]) -> list[float]:
    """Return the distance of each of PyTorch's controls."""
    return [_distance(losses, reference["losses"]) for name, losses in reference.items() if name != "losses"]


def _distance(losses: np.ndarray, others: np.ndarray) -> float:
    return float(np.sqrt(np.mean((losses - others) ** 2)))
