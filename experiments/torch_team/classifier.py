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
from data import Radiographs, in_order, read_experiment, read_subsets, refuse
from submission import auroc, fit_threshold, write_submission
from training import UNSUPPORTED, arguments, autocast, cross_entropy, fit, load_start
from training import prepared as on_device


def build(experiment, init) -> torch.nn.Module:
    """Build torchvision's ResNet with one logit, started from ``init``, from ImageNet, or at random."""
    torch.manual_seed(experiment.seed)
    make = getattr(torchvision.models, experiment.encoder)
    weights = None
    if init is None and experiment.weights != "random":
        weights = f"IMAGENET1K_{experiment.weights[-2:].upper()}"
    try:
        network = make(weights=weights)
    except OSError as error:  # no network, and not in torch.hub's cache
        refuse(f"torchvision's {weights} weights cannot be had ({error}). Give starting weights with --init.")
    network.fc = torch.nn.Linear(network.fc.in_features, 1)
    if experiment.dropout:
        network.fc.register_forward_pre_hook(
            lambda layer, given: torch.nn.functional.dropout(given[0], experiment.dropout, layer.training)
        )
    if init is not None:
        load_start(network, init)
    return network


@torch.inference_mode()
def predict(network, data, experiment, flip=False) -> np.ndarray:
    """Return the logit of every image, or of its mirror image, (n,)."""
    network.eval()
    logits = []
    for images, _, _ in in_order(data, experiment.global_batch_size):
        with autocast(experiment):
            logits.append(network(on_device(images.flip(3) if flip else images)).float().flatten())
    return torch.cat(logits).cpu().double().numpy()


def probabilities(network, data, experiment) -> np.ndarray:
    """Return the probability of each image; with flip averaging the mean with its mirror image's."""
    passes = [False, True] if experiment.flip_averaging else [False]
    return np.mean([1 / (1 + np.exp(-predict(network, data, experiment, flip))) for flip in passes], axis=0)


def main() -> None:
    """Train, predict validation and test, write the submission."""
    given = arguments(__doc__.splitlines()[0])
    experiment = read_experiment(given.experiment, "classifier", UNSUPPORTED)
    tables, split = read_subsets(given.data, experiment.fold)
    ranges = {"train": experiment.augmentation}
    data = {
        name: Radiographs(given.data, table, experiment.image_size, augmentation=ranges.get(name), seed=experiment.seed)
        for name, table in tables.items()
    }
    network = build(experiment, given.init)
    given.out.mkdir(parents=True, exist_ok=True)

    def loss_of(logits, labels, _masks):
        return cross_entropy(logits, labels, experiment.label_smoothing, experiment.positive_weight).mean()

    def evaluate(network):
        logits, truth = predict(network, data["validation"], experiment), data["validation"].labels.numpy()
        return auroc(truth, logits), float(np.mean(np.logaddexp(0, logits) - truth * logits))

    network, seconds = fit(network, experiment, data["train"], loss_of, evaluate, given.out)
    predictions = {}
    for name, file in (("validation", "validation.csv"), ("test", "predictions.csv")):
        probability = probabilities(network, data[name], experiment)
        predictions[file] = pd.DataFrame({"image_id": tables[name]["image_id"], "probability": probability})
    held_out = tables["validation"]["label"].to_numpy()
    threshold = fit_threshold(held_out, predictions["validation.csv"]["probability"].to_numpy())
    team = f"torch {experiment.name}"
    write_submission(given.out, team, "classification", experiment, split, seconds, threshold, predictions)


if __name__ == "__main__":
    main()
