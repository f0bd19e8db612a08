"""Random transforms of radiographs and their masks, in PyTorch.

The random numbers are fixed by the shared recipe: twelve numbers in [0, 1) from numpy's Philox generator, keyed by the
seed and started at (epoch, image, how often that image came before in the epoch). So both teams see the same pixels at
the same step; the transform is each team's own code. (Noise has its own generator in each framework.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

NUMBERS = 12


def draw(seed: int, keys) -> np.ndarray:
    """Draw the numbers of each (image, epoch, repeat), float64 (B, 12)."""
    counters = [np.array([0, epoch, image, repeat], np.uint64) for image, epoch, repeat in keys]
    return np.stack([np.random.Generator(np.random.Philox(counter=c, key=seed)).random(NUMBERS) for c in counters])


def augment(images, masks, ranges, drawn):
    """Mirror, rotate and scale about the centre, shift (bilinear, black outside); then the grey levels and noise.

    Args:
        images: float (B, 1, S, S) in [0, 1].
        masks: the same with 0 and 1, transformed in the same way; or None.
        ranges: the experiment's augmentation.
        drawn: from :func:`draw`.
    """
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
        generator = torch.Generator().manual_seed(int(drawn[0, 10] * 2**31))
        noise = torch.randn(images.shape, generator=generator) * u[8].float()[:, None, None, None] * ranges.noise
        images = (images + noise).clamp(0, 1)
    return images, masks


def crop(pixels, side: int, drawn):
    """Crop a square of each image, (B, 1, side, side), at the corner given by the last two numbers."""
    room = pixels.shape[-1] - side + 1
    corners = (np.floor(drawn[:, 10:] * (2**31 - 1)) / 2**31 * room).astype(int)
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, (top, left) in zip(pixels, corners, strict=True)]
    )
