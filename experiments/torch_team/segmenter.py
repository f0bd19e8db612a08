"""Where the pneumothorax is, by the PyTorch team: ``smp.Unet`` on the prepared folder, by the shared recipe.

    python experiments/torch_team/segmenter.py --experiment runs/demo_segmenter --data data/prepared/phantom \\
        --out runs/torch_segmenter [--init start.safetensors]

``make torch-segmenter`` does all of it, from the Keras team's own starting weights. Masks are cut by a rule fitted on
validation: a threshold on the probability, the least area of a mask at 1024x1024, and, with an image-level head, the
least probability of an image that may have one. (The Keras team's rule has a second threshold and component sizes too.)
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
from submission import auroc, hand_in
from training import DEVICE, UNSUPPORTED, arguments, autocast, cross_entropy, fit, load_start
from training import prepared as on_device

LEVELS = 255
CUTS = np.arange(26, 243, 12)  # thresholds tried, about 0.1 to 0.95
AREAS = (1, 100, 200, 400, 600, 1000, 1500, 2000, 3000, 5000, 8000)  # least areas tried, in pixels at 1024x1024


class Rule(NamedTuple):
    """How a map of levels becomes a mask."""

    cut: int
    area: int
    gate: float

    def mask(self, levels: np.ndarray, image: float) -> np.ndarray:
        """The mask, bool (1024, 1024)."""
        mask = levels >= self.cut
        return mask if image >= self.gate and mask.sum() >= self.area else np.zeros_like(mask)


def build(experiment, init) -> torch.nn.Module:
    """smp's U-Net, started from ``init``, with ImageNet's encoder, or at random."""
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
    """For each image: its map as levels, uint8 (S, S), the image head's probability or None, and its mask's loss."""
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
        levels = (probability / share * LEVELS).round().byte()[:, 0].cpu()
        image = [None] * len(levels) if image is None else (image / share).tolist()
        for row, one in enumerate(levels):
            yield one, image[row], None if loss is None else loss[row].item()


def enlarge(levels: torch.Tensor) -> np.ndarray:
    """A map on the grid of masks, uint8 (1024, 1024)."""
    big = torch.nn.functional.interpolate(levels[None, None].float(), MASK_SIZE, mode="bilinear", align_corners=False)
    return big.round().byte()[0, 0].numpy()


def fit_rule(levels, image, truth) -> tuple[Rule, float]:
    """The rule of highest mean Dice (both empty counts 1) on these maps, and that Dice."""
    areas, shared, total = [], [], np.array([mask.sum() for mask in truth])
    for one, mask in zip(levels, truth, strict=True):
        big = enlarge(one)
        counts = [np.bincount(some, minlength=LEVELS + 1)[::-1].cumsum()[::-1] for some in (big.ravel(), big[mask])]
        areas.append(counts[0][CUTS])
        shared.append(counts[1][CUTS])
    areas, shared = np.array(areas), np.array(shared)  # (n, cuts)
    sums = areas + total[:, None]
    dice = np.where(sums == 0, 1.0, 2 * shared / np.maximum(sums, 1))
    empty = (total == 0).astype(float)[:, None]
    gates = [0.0] if image is None else [0.0, *np.quantile(image, np.linspace(0.1, 0.9, 9))]
    found = []
    for gate in gates:
        open_gate = True if image is None else (image >= gate)[:, None]
        for area in AREAS:
            mean = np.where(open_gate & (areas >= area), dice, empty).mean(0)
            found += [(value, Rule(int(cut), area, float(gate))) for cut, value in zip(CUTS, mean, strict=True)]
    best = max(value for value, _ in found)
    return next(rule for value, rule in found if value >= best - 1e-9), float(best)


def answers(table, levels, image, rule: Rule) -> pd.DataFrame:
    """Mask and probability of each image: the image head's if the rule asks it, else what the least area reaches."""
    rows = []
    for one, head in zip(levels, image, strict=True):
        big = enlarge(one)
        level = np.partition(big.ravel(), -rule.area)[-rule.area] / LEVELS
        mask = rule.mask(big, 1.0 if head is None else head)
        rows.append((head if rule.gate > 0 else level, encode(mask)))
    return pd.DataFrame(rows, columns=["probability", "encoded_pixels"]).assign(image_id=table["image_id"].to_numpy())


def main() -> None:
    """Train, fit the rule, predict validation and test, hand in."""
    given = arguments(__doc__.splitlines()[0])
    experiment = read_experiment(given.experiment, "segmenter", UNSUPPORTED)
    tables, split = read_subsets(given.data, experiment.fold)
    size, ranges = experiment.image_size, experiment.augmentation
    data = {
        "train": Radiographs(given.data, tables["train"], size, True, ranges, experiment.crop),
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

    def judge(network):
        levels, image, losses = zip(*predict(network, data["validation"], experiment, False), strict=True)
        _, dice = fit_rule(levels, np.array(image) if experiment.image_head else None, truth)
        return dice, float(np.mean(losses))

    network, seconds = fit(network, experiment, data["train"], loss_of, judge, given.out)
    levels, image, _ = zip(*predict(network, data["validation"], experiment, experiment.flip_averaging), strict=True)
    rule, dice = fit_rule(levels, np.array(image) if experiment.image_head else None, truth)
    handed = {"validation.csv": answers(tables["validation"], levels, image, rule)}
    levels, image, _ = zip(*predict(network, data["test"], experiment, experiment.flip_averaging), strict=True)
    handed["predictions.csv"] = answers(tables["test"], levels, image, rule)
    ranking = auroc(labels, handed["validation.csv"]["probability"].to_numpy())
    cut = f"probability {rule.cut / LEVELS:.2f} on at least {rule.area} pixels, image-level {rule.gate:.2f}"
    print(f"Masks: {cut}; on validation Dice {dice:.4f}, AUROC {ranking:.4f}")
    (given.out / "rule.json").write_text(json.dumps(rule._asdict()) + "\n", encoding="utf-8")
    threshold = rule.gate if rule.gate > 0 else rule.cut / LEVELS
    hand_in(given.out, f"torch {experiment.name}", "joint", experiment, split, seconds, threshold, handed)


if __name__ == "__main__":
    main()
