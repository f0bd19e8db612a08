"""Mask losses from the recipe's text, such as ``3 bce + 1 dice + 4 focal``: one value per image, in float32."""

from __future__ import annotations

import re

import torch
from torch.nn import functional as F


def mask_loss(recipe: str, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of the recipe's terms, shape (B,), of logits and masks (B, 1, S, S)."""
    z, t = logits.flatten(1), masks.flatten(1)
    terms = re.findall(r"([\d.]*)\s*\*?\s*([a-z]+)", recipe.lower())
    return sum(float(weight or 1) * TERMS[name](z, t) for weight, name in terms)


def bce(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy, mean over pixels."""
    return F.binary_cross_entropy_with_logits(z, t, reduction="none").mean(1)


def dice(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return one minus the soft Dice of each image, smoothed by one pixel, so that an empty mask has a gradient."""
    p = z.sigmoid()
    return 1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)


def focal(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the focal loss with gamma 2, mean over pixels (arXiv 1708.02002)."""
    cross = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    return ((2 * F.logsigmoid((1 - 2 * t) * z)).exp() * cross).mean(1)


def lovasz(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the Lovasz hinge of each image (arXiv 1705.08790)."""
    errors, order = (1 - (2 * t - 1) * z).sort(1, descending=True)
    sorted_t = t.gather(1, order)
    positives = t.sum(1, keepdim=True)
    jaccard = 1 - (positives - sorted_t.cumsum(1)) / (positives + (1 - sorted_t).cumsum(1))
    return (errors.relu() * torch.diff(jaccard, dim=1, prepend=torch.zeros_like(positives))).sum(1)


TERMS = {"bce": bce, "dice": dice, "focal": focal, "lovasz": lovasz}
