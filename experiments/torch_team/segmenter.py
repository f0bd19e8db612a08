"""The PyTorch team's segmenter: ``smp.Unet`` on the prepared folder, by the shared recipe.

    python experiments/torch_team/segmenter.py --experiment runs/demo_segmenter --data data/prepared/phantom \\
        --out runs/torch_segmenter [--init start.safetensors]

``make torch-segmenter`` does all of it, from the Keras team's own starting weights. This team makes probability maps;
the masks are the referee's work, by ``keras-pneumo masks``, which fits the postprocessing on validation and applies it
to test, for every team alike. So a difference between two teams' masks is one of their networks.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torchvision
from data import Radiographs, in_order, is_synthetic, read_subsets
from losses import mask_loss
from recipe import Recipe, read_recipe, refuse
from submission import declaration
from training import DEVICE, arguments, autocast, cross_entropy, fit, load_start, set_up
from training import prepared as on_device

LEVELS = 255


def build(recipe: Recipe, init) -> torch.nn.Module:
    """Build smp's U-Net, started from ``init``, with torchvision's ImageNet weights in its encoder, or at random."""
    head = {"classes": 1, "dropout": recipe.dropout} if recipe.image_head else None
    network = smp.Unet(
        recipe.encoder, encoder_weights=None, decoder_attention_type=recipe.attention, classes=1, aux_params=head
    )
    if init is not None:
        load_start(network, init)
    elif recipe.weights != "random":
        weights = f"IMAGENET1K_{recipe.weights[-2:].upper()}"
        try:
            network.encoder.load_state_dict(getattr(torchvision.models, recipe.encoder)(weights=weights).state_dict())
        except OSError as error:
            refuse(f"torchvision's {weights} weights cannot be had ({error}). Give starting weights with --init.")
    return network


@torch.inference_mode()
def predict(networks, data, recipe: Recipe, flip_averaging: bool):
    """Yield each image's map in 255ths, uint8 (S, S), the image head's probability or None, and its loss or None.

    The first two are means over the networks and, with flip averaging, over the image and its mirror image. There is a
    loss where one network predicts images with masks once.
    """
    passes = [(network.eval(), flip) for network in networks for flip in ([False, True] if flip_averaging else [False])]
    for images, labels, masks in in_order(data, recipe.global_batch_size):
        probability, image, losses = 0, 0, [None] * len(images)
        for network, flip in passes:
            with autocast(recipe):
                outputs = network(on_device(images.flip(3) if flip else images))
            if masks is not None and len(passes) == 1:
                losses = losses_of(outputs, labels.to(DEVICE), masks.to(DEVICE), recipe).tolist()
            logits, head = outputs if recipe.image_head else (outputs, None)
            probability = probability + (logits.flip(3) if flip else logits).float().sigmoid()
            image = image + head.float().sigmoid().flatten() if head is not None else None
        maps = (probability.nan_to_num() / len(passes) * LEVELS).round().byte()[:, 0].cpu().numpy()
        heads = [None] * len(maps) if image is None else (image / len(passes)).tolist()
        yield from zip(maps, heads, losses, strict=True)


def losses_of(outputs, labels, masks, recipe: Recipe) -> torch.Tensor:
    """Return the loss of each image, (B,): of its mask and, with an image head, of its label."""
    logits, head = outputs if recipe.image_head else (outputs, None)
    losses = mask_loss(recipe.loss, logits.float(), masks)
    return losses if head is None else losses + recipe.image_loss_weight * cross_entropy(head, labels)


def write_maps(folder: Path, subset: str, table: pd.DataFrame, predictions) -> list:
    """Write a subset's maps as PNG files and its image-level probabilities, as the referee reads them.

    Returns:
        The images' losses.
    """
    (folder / subset).mkdir(parents=True, exist_ok=True)
    heads, losses = [], []
    for image_id, (probability_map, head, loss) in zip(table["image_id"], predictions, strict=True):
        cv2.imwrite(str(folder / subset / f"{image_id}.png"), probability_map, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        heads.append(head)
        losses.append(loss)
    if None not in heads:
        columns = {"image_id": table["image_id"], "probability": heads}
        pd.DataFrame(columns).to_csv(folder / f"{subset}.csv", index=False)
    return losses


def make_masks(command: str, maps: Path, truth: Path, out: Path, *options: str) -> dict:
    """Call the referee's command; return what it fitted on validation."""
    words = [*shlex.split(command), str(maps), "--truth", str(truth), "--out", str(out), *options]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        refuse(f"{words[0]} cannot be started ({error}). Name the referee's command with --masks.")
    if done.returncode:
        refuse(f"{shlex.join(words)} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return json.loads((out / "postprocess.json").read_text(encoding="utf-8"))


def run(network, recipe: Recipe, given) -> None:
    """Train the network, predict the maps of validation and test, hand them to the referee's command."""
    tables, split = read_subsets(given.data, recipe.fold)
    size, ranges = recipe.image_size, recipe.augmentation
    data = {
        "train": Radiographs(given.data, tables["train"], size, True, ranges, recipe.crop, recipe.seed),
        "validation": Radiographs(given.data, tables["validation"], size, True),
        "test": Radiographs(given.data, tables["test"], size),
    }
    maps = given.out / "maps"
    shutil.rmtree(maps, ignore_errors=True)  # of an earlier training that was not finished
    maps.mkdir(parents=True)

    def loss_of(outputs, labels, masks):
        return losses_of(outputs, labels, masks, recipe)

    def evaluate(network):
        predictions = predict([network], data["validation"], recipe, False)
        losses = write_maps(maps, "validation", tables["validation"], predictions)
        fitted = make_masks(given.masks, maps, given.data, given.out / "validation", "--no-components")
        return fitted["fitted_on_validation"]["dice"], float(np.mean(losses))

    networks, seconds = fit(network, recipe, data["train"], loss_of, evaluate, given.out, given.compile)
    for subset in ("validation", "test"):
        write_maps(maps, subset, tables[subset], predict(networks, data[subset], recipe, recipe.flip_averaging))
    more = {"init": given.init, "synthetic": is_synthetic(given.data)}
    declared = declaration(f"torch {recipe.name}", "joint", recipe, split, seconds, **more)
    (maps / "submission.json").write_text(json.dumps(declared, indent=2) + "\n", encoding="utf-8")
    fitted = make_masks(given.masks, maps, given.data, given.out / "submission")
    print(f"Masks: {fitted['rule']}; on validation Dice {fitted['fitted_on_validation']['dice']:.4f}")
    print(given.out / "submission")


def main() -> None:
    """Read the command line and the recipe; train and submit."""
    given = arguments(__doc__.splitlines()[0], masks=True)
    recipe = read_recipe(given.experiment, "segmenter")
    read_subsets(given.data, recipe.fold)  # refused before a network is built
    set_up(recipe)
    run(build(recipe, given.init), recipe, given)


if __name__ == "__main__":
    main()
