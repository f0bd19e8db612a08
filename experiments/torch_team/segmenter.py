"""The PyTorch team's segmenter: ``smp.Unet`` on the prepared folder, by the shared recipe.

    python experiments/torch_team/segmenter.py --experiment runs/demo_segmenter --data data/prepared/phantom \\
        --out runs/torch_segmenter [--init start.safetensors]

``make torch-segmenter`` does all of it, from the Keras team's own starting weights. The postprocessing
of masks is fitted on validation: a threshold on the probability, the least area of a mask at 1024x1024, and, with an
image-level head, the least image-level probability. (The Keras team has a second threshold and component sizes too.)
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from data import Radiographs, in_order, read_experiment, read_subsets, refuse
from losses import mask_loss
from masks import MASK_SIZE, decode, encode
from submission import auroc, write_submission
from training import DEVICE, UNSUPPORTED, arguments, autocast, cross_entropy, fit, load_start
from training import prepared as on_device

LEVELS = 255
CUTS = np.arange(26, 243, 12)  # thresholds tried, about 0.1 to 0.95
AREAS = (1, 100, 200, 400, 600, 1000, 1500, 2000, 3000, 5000, 8000)  # least areas tried, in pixels at 1024x1024


class Postprocessing(NamedTuple):
    """What turns a quantised map into a mask: threshold, least area, least image-level probability."""

    cut: int
    area: int
    gate: float

    def mask(self, probability_map: np.ndarray, image: float) -> np.ndarray:
        """Return the mask, bool (1024, 1024)."""
        mask = probability_map >= self.cut
        return mask if image >= self.gate and mask.sum() >= self.area else np.zeros_like(mask)


def build(experiment, init) -> torch.nn.Module:
    """Build smp's U-Net, started from ``init``, with ImageNet's encoder, or at random."""
    torch.manual_seed(experiment.seed)
    encoder_weights = None if init is not None or experiment.weights == "random" else "imagenet"
    head = {"classes": 1, "dropout": experiment.dropout} if experiment.image_head else None
    try:
        network = smp.Unet(
            experiment.encoder, encoder_weights=encoder_weights, decoder_attention_type=experiment.attention,
            classes=1, aux_params=head,
        )  # fmt: skip
    except OSError as error:
        refuse(f"smp's ImageNet weights cannot be had ({error}). Give starting weights with --init.")
    if init is not None:
        load_start(network, init)
    return network


@torch.inference_mode()
def predict(network, data, experiment, flip_averaging: bool):
    """Yield each image's map in 255ths, uint8 (S, S), the image head's probability or None, and the loss."""
    network.eval()
    for images, labels, masks in in_order(data, experiment.global_batch_size):
        probability, image, loss = 0, 0, None
        for flip in (False, True) if flip_averaging else (False,):
            with autocast(experiment):
                outputs = network(on_device(images.flip(3) if flip else images))
            logits, head = outputs if experiment.image_head else (outputs, None)
            logits = logits.float()
            if masks is not None and not flip:
                loss = mask_loss(experiment.loss, logits, masks.to(DEVICE)).cpu()
                if head is not None:
                    loss += experiment.image_loss_weight * cross_entropy(head.cpu(), labels)
            probability = probability + (logits.flip(3) if flip else logits).sigmoid()
            image = image + head.float().sigmoid().flatten() if head is not None else None
        share = 2 if flip_averaging else 1
        maps = (probability / share * LEVELS).round().byte()[:, 0].cpu()
        image = [None] * len(maps) if image is None else (image / share).tolist()
        for row, probability_map in enumerate(maps):
            yield probability_map, image[row], None if loss is None else loss[row].item()


def enlarge(probability_map: torch.Tensor) -> np.ndarray:
    """Enlarge a map to the grid of masks, uint8 (1024, 1024)."""
    pixels = probability_map[None, None].float()
    big = torch.nn.functional.interpolate(pixels, MASK_SIZE, mode="bilinear", align_corners=False)
    return big.round().byte()[0, 0].numpy()


def fit_postprocessing(maps, image, truth) -> tuple[Postprocessing, float]:
    """Find the parameters of highest mean Dice (both empty counts 1) on these maps; return them and that Dice."""
    areas, shared, total = [], [], np.array([mask.sum() for mask in truth])
    for probability_map, mask in zip(maps, truth, strict=True):
        big = enlarge(probability_map)
        counts = [np.bincount(values, minlength=LEVELS + 1)[::-1].cumsum()[::-1] for values in (big.ravel(), big[mask])]
        areas.append(counts[0][CUTS])
        shared.append(counts[1][CUTS])
    areas, shared = np.array(areas), np.array(shared)  # (n, cuts)
    sums = areas + total[:, None]
    dice = np.where(sums == 0, 1.0, 2 * shared / np.maximum(sums, 1))
    empty = (total == 0).astype(float)[:, None]
    gates = [0.0] if image is None else [0.0, *np.quantile(image, np.linspace(0.1, 0.9, 9))]
    candidates = []
    for gate in gates:
        open_gate = True if image is None else (image >= gate)[:, None]
        for area in AREAS:
            mean = np.where(open_gate & (areas >= area), dice, empty).mean(0)
            candidates += [
                (value, Postprocessing(int(cut), area, float(gate))) for cut, value in zip(CUTS, mean, strict=True)
            ]
    best = max(value for value, _ in candidates)
    return next(parameters for value, parameters in candidates if value >= best - 1e-9), float(best)


def postprocess(table, maps, image, parameters: Postprocessing) -> pd.DataFrame:
    """Return mask and probability of each image: the image head's if used, else what the least area reaches."""
    rows = []
    for probability_map, head in zip(maps, image, strict=True):
        big = enlarge(probability_map)
        reached = np.partition(big.ravel(), -parameters.area)[-parameters.area] / LEVELS
        mask = parameters.mask(big, 1.0 if head is None else head)
        rows.append((head if parameters.gate > 0 else reached, encode(mask)))
    return pd.DataFrame(rows, columns=["probability", "encoded_pixels"]).assign(image_id=table["image_id"].to_numpy())


def main() -> None:
    """Train, fit the postprocessing, predict validation and test, write the submission."""
    given = arguments(__doc__.splitlines()[0])
    experiment = read_experiment(given.experiment, "segmenter", UNSUPPORTED)
    tables, split = read_subsets(given.data, experiment.fold)
    size, ranges = experiment.image_size, experiment.augmentation
    data = {
        "train": Radiographs(given.data, tables["train"], size, True, ranges, experiment.crop, experiment.seed),
        "validation": Radiographs(given.data, tables["validation"], size, True),
        "test": Radiographs(given.data, tables["test"], size),
    }
    texts = pd.read_csv(given.data / "truth.csv", dtype=str).set_index("image_id")["encoded_pixels"]
    truth = [decode(texts[image_id]) for image_id in tables["validation"]["image_id"]]
    labels = tables["validation"]["label"].to_numpy()
    network = build(experiment, given.init)
    given.out.mkdir(parents=True, exist_ok=True)

    def loss_of(outputs, labels, masks):
        logits, head = outputs if experiment.image_head else (outputs, None)
        loss = mask_loss(experiment.loss, logits.float(), masks).mean()
        return loss if head is None else loss + experiment.image_loss_weight * cross_entropy(head, labels).mean()

    def evaluate(network):
        maps, image, losses = zip(*predict(network, data["validation"], experiment, False), strict=True)
        _, dice = fit_postprocessing(maps, np.array(image) if experiment.image_head else None, truth)
        return dice, float(np.mean(losses))

    network, seconds = fit(network, experiment, data["train"], loss_of, evaluate, given.out)
    maps, image, _ = zip(*predict(network, data["validation"], experiment, experiment.flip_averaging), strict=True)
    parameters, dice = fit_postprocessing(maps, np.array(image) if experiment.image_head else None, truth)
    predictions = {"validation.csv": postprocess(tables["validation"], maps, image, parameters)}
    maps, image, _ = zip(*predict(network, data["test"], experiment, experiment.flip_averaging), strict=True)
    predictions["predictions.csv"] = postprocess(tables["test"], maps, image, parameters)
    ranking = auroc(labels, predictions["validation.csv"]["probability"].to_numpy())
    cut = f"probability {parameters.cut / LEVELS:.2f} on at least {parameters.area} pixels"
    print(f"Masks: {cut}, image-level {parameters.gate:.2f}; on validation Dice {dice:.4f}, AUROC {ranking:.4f}")
    (given.out / "rule.json").write_text(json.dumps(parameters._asdict()) + "\n", encoding="utf-8")
    threshold = parameters.gate if parameters.gate > 0 else parameters.cut / LEVELS
    write_submission(given.out, f"torch {experiment.name}", "joint", experiment, split, seconds, threshold, predictions)


if __name__ == "__main__":
    main()
