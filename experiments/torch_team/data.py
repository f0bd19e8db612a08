"""What the other team's trainings read: the experiment, the prepared folder, and batches of augmented radiographs.

In: the files that both teams share (``experiment.json`` or an exported start, ``split.csv``, ``cases.csv``,
``images_<size>/*.png``, ``masks_<size>/*.png``). Out: batches for ``torch.utils.data``. Nothing of keras_pneumo is
imported: this is another team, with its own code and its own random draws from the same ranges.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image

MEMORY = 4e9
"""Bytes of decoded pixels that are held; a larger set is read from its PNG files as it is used."""


def refuse(reason: str) -> NoReturn:
    """End with a sentence and exit code 2."""
    print(f"Refused. {reason}", file=sys.stderr)
    raise SystemExit(2)


def read_experiment(path: Path, task: str, unsupported: dict) -> SimpleNamespace:
    """The settings in a run folder, its ``experiment.json``, or the safetensors file of ``keras-pneumo export``.

    Args:
        path: where they are.
        task: ``classifier`` or ``segmenter``; another one's settings are refused.
        unsupported: settings that this team does not have, with the only value that it takes.
    """
    file = path / "experiment.json" if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                record = json.loads((opened.metadata() or {})["experiment"])
        else:
            record = json.loads(file.read_text(encoding="utf-8"))
        settings = record.get("experiment", record)
        augmentation = SimpleNamespace(**settings["augmentation"])
        experiment = SimpleNamespace(**{**settings, "augmentation": augmentation})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        refuse(f"{file} holds no experiment ({error}). Name a run folder, its experiment.json, or an exported start.")
    if experiment.task != task:
        refuse(f"{file} is the experiment of a {experiment.task}; this trains a {task}.")
    if augmentation.clahe:
        refuse(f"{file} asks for augmentation.clahe, which this team does not have.")
    for name, value in unsupported.items():
        if getattr(experiment, name) != value:
            refuse(f"{file} asks for {name}={getattr(experiment, name)!r}; this team has {value!r} only.")
    return experiment


def read_subsets(folder: Path, fold: int) -> tuple[dict[str, pd.DataFrame], str]:
    """Tables (``image_id``, ``label``) of train, validation and test, and the split's hash."""
    try:
        split = pd.read_csv(folder / "split.csv", dtype={"image_id": str, "patient_id": str})
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(
            f"{folder} is no prepared folder ({error}). Make it with keras-pneumo prepare, or make train-classifier."
        )
    if fold not in set(split["fold"]):
        refuse(f"{folder} has no fold {fold}.")
    development = split["fold"] >= 0
    rows = {
        "train": development & (split["fold"] != fold),
        "validation": split["fold"] == fold,
        "test": split["subset"] == "test",
    }
    table = split.rename(columns={"pneumothorax": "label"})
    subsets = {name: table.loc[chosen, ["image_id", "label"]].reset_index(drop=True) for name, chosen in rows.items()}
    return subsets, str(manifest["split_sha256"])


class Radiographs(torch.utils.data.Dataset):
    """Images of one subset, and their masks where wanted; a whole batch is fetched and augmented at once."""

    def __init__(self, folder: Path, table: pd.DataFrame, size: int, masks=False, augmentation=None, crop=None) -> None:
        self.labels = torch.tensor(table["label"].to_numpy(), dtype=torch.float32)
        self.images = [folder / f"images_{size}" / f"{name}.png" for name in table["image_id"]]
        self.masks = [folder / f"masks_{size}" / f"{name}.png" for name in table["image_id"]] if masks else []
        self.size, self.augmentation, self.crop = size, augmentation, crop
        missing = [path for path in self.images if not path.is_file()]
        if missing:
            refuse(f"{len(missing)} images are missing, such as {missing[0]}. Prepare size {size} with keras-pneumo.")
        self.held = None
        if len(table) * size * size * (2 if masks else 1) < MEMORY:
            self.held = self._read(self.images), self._read(self.masks)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws):
        """A batch of (index, seed): images (B, 1, S, S) in [0, 1], labels (B,), masks like the images or None."""
        rows = [index for index, _ in draws]
        if self.held is not None:
            images, masks = self.held[0][rows], self.held[1][rows] if self.masks else None
        else:
            images = self._read([self.images[row] for row in rows])
            masks = self._read([self.masks[row] for row in rows]) if self.masks else None
        images, masks = images.float() / 255, None if masks is None else (masks > 0).float()
        labels = self.labels[rows]
        if self.augmentation is not None:
            generator = torch.Generator().manual_seed(draws[0][1])
            images, masks = augment(images, masks, self.augmentation, generator)
            if self.crop:
                top, left = torch.randint(self.size - self.crop + 1, (2,), generator=generator).tolist()
                window = (..., slice(top, top + self.crop), slice(left, left + self.crop))
                images, masks = images[window], masks[window]
                labels = masks.amax((1, 2, 3))
        return images, labels, masks

    def _read(self, paths):
        found = torch.zeros(len(paths), 1, self.size, self.size, dtype=torch.uint8)
        for row, path in enumerate(paths):
            if path.is_file():  # a negative has no mask
                found[row] = decode_image(str(path), ImageReadMode.GRAY)
        return found


class Draws(torch.utils.data.Sampler):
    """Batches of (index, seed) for ``self.epoch``: every image once, or so many positives as the recipe wants.

    Batches of an epoch differ in size by at most one image, so that BatchNorm never sees a batch of one.
    """

    def __init__(self, labels: torch.Tensor, experiment: SimpleNamespace) -> None:
        self.labels, self.experiment, self.epoch = labels.numpy(), experiment, 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.experiment.global_batch_size)

    def __iter__(self):
        generator = np.random.default_rng([self.experiment.seed, self.epoch])
        rate = [value for start, value in self.experiment.positive_rate if self.epoch >= start][-1:]
        count = len(self.labels)
        order = generator.permutation(count)
        if rate:
            wanted = {1: round(count * rate[0]), 0: count - round(count * rate[0])}
            order = np.concatenate([self._of_class(generator, label, number) for label, number in wanted.items()])
            order = generator.permutation(order)
        seeds = generator.integers(2**31, size=count)
        pairs = list(zip(order.tolist(), seeds.tolist(), strict=True))
        for rows in np.array_split(np.arange(count), len(self)):
            yield [pairs[row] for row in rows]

    def _of_class(self, generator, label, number):
        members = np.flatnonzero(self.labels == label)
        rounds = [generator.permutation(members) for _ in range(-(-number // max(len(members), 1)))]
        return np.concatenate(rounds)[:number] if rounds else members[:0]


def batches(data: Radiographs, sampler) -> torch.utils.data.DataLoader:
    """A loader whose workers decode and augment whole batches while the network learns."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(8, max(cores - 2, 0))  # on two cores a worker would only take time from the network
    return torch.utils.data.DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(data: Radiographs, batch_size: int) -> torch.utils.data.DataLoader:
    """Every image once and in order, for evaluation."""
    starts = range(0, len(data), batch_size)
    return batches(data, [[(row, 0) for row in range(s, min(s + batch_size, len(data)))] for s in starts])


def as_is(batch):
    """The batch that ``__getitems__`` has already put together."""
    return batch


def augment(images, masks, ranges, generator):
    """Mirror, rotate and scale about the centre, shift (bilinear, black outside); then the grey levels and noise.

    Args:
        images: float (B, 1, S, S) in [0, 1].
        masks: the same with 0 and 1, moved alike; or None.
        ranges: the experiment's augmentation; each value is drawn uniformly, for each image.
        generator: source of the draws.
    """
    count = len(images)

    def drawn(low, high):
        return low + (high - low) * torch.rand(count, generator=generator)

    mirror = torch.where(drawn(0, 1) < ranges.flip, -1.0, 1.0)
    shift = torch.stack([drawn(-1, 1), drawn(-1, 1)], 1) * ranges.shift * 2  # affine_grid's image has side 2
    scale, angle = drawn(1 - ranges.scale, 1 + ranges.scale), torch.deg2rad(drawn(-1, 1) * ranges.rotate)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    turn = torch.stack([torch.stack([mirror * cos, -mirror * sin], 1), torch.stack([sin, cos], 1)], 1)
    if ranges.flip or ranges.shift or ranges.scale or ranges.rotate:
        theta = torch.cat([turn, -turn @ shift[:, :, None]], 2)  # from a place in the result to its source
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
        if masks is not None:
            masks = (F.grid_sample(masks, grid, "bilinear", "zeros", align_corners=False) >= 0.5).float()

    def each(low, high):
        return drawn(low, high)[:, None, None, None]

    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * each(1 - ranges.contrast, 1 + ranges.contrast) + mean
    images = (images + each(-ranges.brightness, ranges.brightness)).clamp(0, 1)
    images = images ** each(-ranges.gamma, ranges.gamma).exp()
    if ranges.noise:
        noise = torch.randn(images.shape, generator=generator)
        images = (images + noise * each(0, ranges.noise)).clamp(0, 1)
    return images, masks
