"""The PyTorch team's classifier: torchvision's ResNet on the prepared folder, by the shared recipe.

    python experiments/torch_team/classifier.py --experiment runs/demo_classifier --data data/prepared/phantom \\
        --out runs/torch_classifier [--init start.safetensors]

``make torch-classifier`` does all of it, from the Keras team's own starting weights.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torchvision
from data import Radiographs, in_order, is_synthetic, read_subsets
from recipe import Recipe, read_recipe, refuse
from submission import auroc, declaration, fit_threshold, write_submission
from training import arguments, autocast, cross_entropy, fit, load_start, set_up
from training import prepared as on_device


def build(recipe: Recipe, init) -> torch.nn.Module:
    """Build torchvision's ResNet with one logit, started from ``init``, from ImageNet, or at random."""
    make = getattr(torchvision.models, recipe.encoder)
    weights = None
    if init is None and recipe.weights != "random":
        weights = f"IMAGENET1K_{recipe.weights[-2:].upper()}"
    try:
        network = make(weights=weights)
    except OSError as error:  # no network, and not in torch.hub's cache
        refuse(f"torchvision's {weights} weights cannot be had ({error}). Give starting weights with --init.")
    network.fc = torch.nn.Linear(network.fc.in_features, 1)
    if recipe.dropout:
        network.fc.register_forward_pre_hook(
            lambda layer, given: torch.nn.functional.dropout(given[0], recipe.dropout, layer.training)
        )
    if init is not None:
        load_start(network, init)
    return network


@torch.inference_mode()
def predict(network, data, recipe, flip=False) -> np.ndarray:
    """Return the logit of every image, or of its mirror image, (n,)."""
    network.eval()
    logits = []
    for images, _, _ in in_order(data, recipe.global_batch_size):
        with autocast(recipe):
            logits.append(network(on_device(images.flip(3) if flip else images)).float().flatten())
    return torch.cat(logits).cpu().double().numpy()


def probabilities(networks, data, recipe) -> np.ndarray:
    """Return the probability of each image: the mean over the networks and, with flip averaging, mirror images."""
    passes = [(network, flip) for network in networks for flip in ([False, True] if recipe.flip_averaging else [False])]
    return np.mean([1 / (1 + np.exp(-predict(network, data, recipe, flip))) for network, flip in passes], axis=0)


def run(network, recipe: Recipe, given) -> None:
    """Train the network, predict validation and test, write the submission."""
    tables, split = read_subsets(given.data, recipe.fold)
    ranges = {"train": recipe.augmentation}
    data = {
        name: Radiographs(given.data, table, recipe.image_size, augmentation=ranges.get(name), seed=recipe.seed)
        for name, table in tables.items()
    }
    given.out.mkdir(parents=True, exist_ok=True)

    def loss_of(logits, labels, _masks):
        return cross_entropy(logits, labels, recipe.label_smoothing, recipe.positive_weight)

    def evaluate(network):
        logits, truth = predict(network, data["validation"], recipe), data["validation"].labels.numpy()
        return auroc(truth, logits), float(np.mean(np.logaddexp(0, logits) - truth * logits))

    networks, seconds = fit(network, recipe, data["train"], loss_of, evaluate, given.out, given.compile)
    predictions = {}
    for name, file in (("validation", "validation.csv"), ("test", "predictions.csv")):
        probability = probabilities(networks, data[name], recipe)
        predictions[file] = pd.DataFrame({"image_id": tables[name]["image_id"], "probability": probability})
    held_out = tables["validation"]["label"].to_numpy()
    threshold = fit_threshold(held_out, predictions["validation.csv"]["probability"].to_numpy())
    more = {"init": given.init, "synthetic": is_synthetic(given.data)}
    declared = declaration(f"torch {recipe.name}", "classification", recipe, split, seconds, **more)
    write_submission(given.out, declared, threshold, predictions)


def main() -> None:
    """Read the command line and the recipe; train and submit."""
    given = arguments(__doc__.splitlines()[0])
    recipe = read_recipe(given.experiment, "classifier")
    read_subsets(given.data, recipe.fold)  # refused before a network is built
    set_up(recipe)
    run(build(recipe, given.init), recipe, given)


if __name__ == "__main__":
    main()
