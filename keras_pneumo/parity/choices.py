"""The checks of what is chosen and joined: validation scores, epochs that are kept, averages, and the rule of masks.

In: scores, networks and maps that both teams get. Out: by the functions of ``keras-pneumo train``, ``predict`` and
``masks``, the scores, the epochs that are kept, the rates of a plateau, when the training stops, mean probabilities and
maps, the fitted postprocessing, and its masks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.config import SEGMENTER, Experiment
from keras_pneumo.evaluation.scoring.metrics import auroc, fit_threshold
from keras_pneumo.models.weights import from_torch
from keras_pneumo.parity.backends import Backend
from keras_pneumo.parity.drawn import SIZE, image_set, recipe_of, write_recipe
from keras_pneumo.parity.networks import CLASSIFIER, UNET, build
from keras_pneumo.parity.settings import PLAIN, given_training
from keras_pneumo.storage.files import write_table

STANDING = PLAIN.replace(learning_rate=1e-5, epochs=8, weight_decay=0)

CHOICES: dict[str, tuple[str, Experiment, list[list[float]]]] = {
    "choice_best": (
        "the best epochs, with ties",
        STANDING.replace(name="choice_best", top_k=3),
        [[0.5, 0.7, 0.7, 0.6, 0.9, 0.9, 0.7, 0.9], [0.9, 0.5, 0.4, 0.3, 0.6, 0.6, 0.2, 0.5]],
    ),
    "choice_not_a_number": (
        "scores that are no number",
        STANDING.replace(name="choice_not_a_number", top_k=2, epochs=5),
        [[math.nan, 0.6, 0.8, math.nan, 0.7], [1.0, 1.0, math.nan, 0.1, 0.9]],
    ),
    "choice_patience": (
        "patience, in each phase anew",
        STANDING.replace(name="choice_patience", patience=2, frozen_epochs=4, epochs=6),
        [[0.5, 0.4, 0.5, 0.6, 0.7, 0.7, 0.6, 0.9, 0.9, 0.9], [1.0] * 10],
    ),
    "choice_plateau": (
        "the rate after a plateau",
        STANDING.replace(name="choice_plateau", schedule="plateau", plateau_factor=0.5, plateau_patience=1, epochs=9),
        [[0.5, 0.50006, 0.50006, 0.5001, 0.50012, 0.50013, 0.50014, 0.6, 0.5], [1.0] * 9],
    ),
}
"""In words, recipe, scores and losses by epoch. The plateau's scores rise by less and by more than its threshold."""

_SEGMENTER = SEGMENTER.replace(
    **{name: getattr(PLAIN, name) for name in ("encoder", "weights", "image_size", "global_batch_size")}
)

MEANS = {
    network: {
        "with mirror images": base.replace(name=f"mean_{network}", flip_averaging=True),
        "images alone": base.replace(name=f"mean_{network}_alone", flip_averaging=False),
    }
    for network, base in ((CLASSIFIER, PLAIN), (UNET, _SEGMENTER))
}
"""Recipes by which two networks predict together."""

FITTED = 16
"""The postprocessing is fitted on so many of the predicted maps, and applied to the others."""


def write_choice_inputs(folder: Path) -> None:
    """Write the recipes."""
    for name, (_, experiment, _) in CHOICES.items():
        write_recipe(folder, name, experiment)
    for recipes in MEANS.values():
        for experiment in recipes.values():
            write_recipe(folder, experiment.name, experiment)


def validation_scores(backend: Backend) -> None:
    """Compute AUROC and the threshold of probabilities with many ties, and of others without."""
    given = backend.inputs
    arrays = {}
    for name in ("ties", "no ties"):
        truth, score = given["score_labels"], given[f"score_values {name}"]
        arrays[f"AUROC, {name}"] = np.array([auroc(truth, score)])
        arrays[f"threshold, {name}"] = np.array([fit_threshold(truth, score)])
    backend.write("validation_scores", arrays)


def choices(backend: Backend) -> None:
    """Train with scores that are written down: which epochs are best and kept, the rates, and the end."""
    for name, plan in backend.task["choices"].items():
        scores, losses = ([math.nan if value is None else value for value in values] for values in plan)
        trainer, _ = given_training(backend, name, scores, losses)
        trainer.run_phases(None)
        trainer.checkpoint_writer.wait()
        rows = trainer.log.rows
        kept = sorted((trainer.folder / "checkpoints").glob("epoch_*.weights.h5"))
        backend.write(
            f"choices.{name}",
            {
                "epochs": np.array([row.epoch for row in rows], np.float64),
                "best so far": np.array([row.best for row in rows], np.float64),
                "kept": np.array([int(path.name[6:9]) for path in kept], np.float64),
                "rates": np.array([row.learning_rate for row in rows]),
            },
        )


def averages(backend: Backend) -> None:
    """Predict with two networks together, with and without mirror images."""
    from keras_pneumo.inference.ensemble import mean_maps, mean_probability
    from keras_pneumo.inference.maps import quantise
    from keras_pneumo.inference.predictor import CompiledNetwork
    from keras_pneumo.inference.run import RunFolder

    for network in backend.task["networks"]:
        predictors: list[Any] = []
        for kind in ("weights", "start"):
            model = build(network, backend.task["encoder"])
            from_torch(model, backend.state(network, kind))
            predictors.append(CompiledNetwork(model))
        source = image_set(backend.folder, MEANS[CLASSIFIER]["images alone"].name)
        images = np.stack([source.image(row) for row in range(len(source))])[..., None] / np.float32(255)
        some = {SIZE: images}.__getitem__
        arrays: dict[str, np.ndarray] = {}
        for label, recipe in MEANS[network].items():
            members = [(RunFolder(backend.own, recipe_of(backend.folder, recipe.name), {}), predictors)]
            if network == CLASSIFIER:
                arrays[f"{label}: probabilities"] = mean_probability(members, some)
                continue
            maps, probability = mean_maps(members, some)
            assert probability is not None  # by its image head
            arrays |= {f"{label}: probabilities": probability, f"{label}: maps": quantise(maps)}
        arrays = {name: values.astype(np.float64) for name, values in arrays.items()}
        backend.write(f"averages.{network}", arrays)


def mask_rule(backend: Backend) -> None:
    """Fit the postprocessing on some maps, and apply it to the others, as ``keras-pneumo masks`` does."""
    from keras_pneumo.inference.maps import quantise
    from keras_pneumo.inference.predictor import sigmoid
    from keras_pneumo.inference.team_maps import make_masks

    given, folder = backend.inputs, backend.own / "maps"
    ids = [f"image{number:02}" for number in range(len(given["predicted_logits"]))]
    for subset, rows in (("validation", range(FITTED)), ("test", range(FITTED, len(ids)))):
        (folder / subset).mkdir(parents=True, exist_ok=True)
        for row in rows:
            quantised = quantise(sigmoid(given["predicted_masks"][row, ..., 0], np.float32))
            cv2.imwrite(str(folder / subset / f"{ids[row]}.png"), quantised)
        table = {
            "image_id": [ids[row] for row in rows],
            "probability": [float(sigmoid(given["predicted_logits"][row, 0])) for row in rows],
        }
        write_table(folder / f"{subset}.csv", pd.DataFrame(table))
    made = make_masks(folder, backend.own / "masks", backend.folder / "truth.csv", team="ladder")
    fitted, search = made.parameters, made.search
    assert search is not None  # nothing was given but maps
    answers = pd.read_csv(backend.own / "masks/predictions.csv", dtype=str, keep_default_na=False)
    arrays = {name: np.array([str(getattr(fitted, name))]) for name in ("top", "area", "gate", "bottom", "component")}
    arrays["Dice on the images it was fitted on"] = np.array([f"{search.dice:.9f}"])
    arrays["masks"] = answers.sort_values("image_id")["encoded_pixels"].to_numpy("U")
    backend.write("mask_rule", arrays)
