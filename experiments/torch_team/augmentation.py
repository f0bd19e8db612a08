"""Random transforms of radiographs and their masks, in PyTorch.

The random numbers are fixed by the shared recipe: twelve numbers in [0, 1) from numpy's Philox generator, keyed by the
seed and started at (epoch, image, how often that image came before in the epoch). So both teams see the same pixels at
the same step; the transform is each team's own code. CLAHE is OpenCV's on both sides, since no other library has the
same; noise is numpy's standard normal numbers, from a generator whose key is the last two of the twelve numbers.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.nn import functional as F

NUMBERS = 12


def draw(seed: int, keys) -> np.ndarray:
    """Draw the numbers of each (image, epoch, repeat), float64 (B, 12)."""
    counters = [np.array([0, epoch, image, repeat], np.uint64) for image, epoch, repeat in keys]
    return np.stack([np.random.Generator(np.random.Philox(counter=c, key=seed)).random(NUMBERS) for c in counters])


def augment(images, masks, ranges, drawn):
    """CLAHE; mirror, rotate and scale about the centre, shift (bilinear, black outside); grey levels; noise.

    Args:
        images: uint8 (B, 1, S, S); the result is float in [0, 1].
        masks: float, 0 or 1, transformed in the same way; or None.
        ranges: the experiment's augmentation.
        drawn: from :func:`draw`.
    """
    images = equalise(images, drawn[:, 9] < ranges.clahe).float() / 255
    u = torch.from_numpy(drawn).T  # (12, B)
    signed = (2 * u - 1).float()
    mirror = torch.where(u[0] < ranges.flip, -1.0, 1.0)
    shift = signed[1:3].T * ranges.shift * 2  # affine_grid's image has side 2
    scale, angle = 1 + signed[3] * ranges.scale, torch.deg2rad(signed[4] * ranges.rotate)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([torch.stack([mirror * cos, -mirror * sin], 1), torch.stack([sin, cos], 1)], 1)
    if ranges.flip or ranges.shift or ranges.scale or ranges.rotate:
        theta = torch.cat([turn, -turn @ shift[:, :, None]], 2)  # from a point in the result to its source
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
        if masks is not None:
            masks = (F.grid_sample(masks, grid, "bilinear", "zeros", align_corners=False) >= 0.5).float()
    brightness, contrast, gamma = signed[5:8, :, None, None, None]
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + contrast * ranges.contrast) + mean
    images = (images + brightness * ranges.brightness).clamp(0, 1) ** (gamma * ranges.gamma).exp()
    if ranges.noise:
        strength = (u[8] * ranges.noise).float()[:, None, None, None]
        images = (images + noise(seeds(drawn), images.shape[1:]) * strength).clamp(0, 1)
    return images, masks


def equalise(images, chosen):
    """Equalise the chosen images: CLAHE with clip limit 2 on 8x8 tiles; uint8 (B, 1, S, S)."""
    if not chosen.any():
        return images
    clahe, images = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)), images.clone()
    for row in np.flatnonzero(chosen):
        images[row, 0] = torch.from_numpy(clahe.apply(images[row, 0].numpy()))
    return images


def seeds(drawn: np.ndarray) -> np.ndarray:
    """Return the last two numbers of each image as whole numbers, int32 (B, 2)."""
    return (drawn[:, 10:] * (2**31 - 1)).astype(np.int32)


def noise(keys: np.ndarray, shape) -> torch.Tensor:
    """Draw standard normal numbers for each image, float32 (B, *shape)."""
    generators = [np.random.Generator(np.random.Philox(key=key.astype(np.uint64))) for key in keys]
    return torch.from_numpy(np.stack([each.standard_normal(tuple(shape), np.float32) for each in generators]))


def crop(pixels, side: int, drawn):
    """Crop a square of each image, (B, 1, side, side), at the corner given by the last two numbers."""
    room = pixels.shape[-1] - side + 1
    corners = (seeds(drawn) / 2**31 * room).astype(int)
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, (top, left) in zip(pixels, corners, strict=True)]
    )
