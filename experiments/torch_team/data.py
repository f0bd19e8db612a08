"""Reads the prepared folder, and makes batches of augmented radiographs.

In: the files that both teams share (``split.csv``, ``manifest.json``, ``cases.csv``, ``images_<size>/*.png``,
``masks_<size>/*.png``, or the arrays of the same pixels, mapped where they are valid). Out: batches for
``torch.utils.data``. Nothing of keras_pneumo is imported: this is another team, with its own code. The order of the
images and the random numbers of the augmentation are fixed by the shared recipe through numpy's generators, so they are
not a reason why two results differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from augmentation import augment, crop, draw
from recipe import Recipe, refuse
from torchvision.io import ImageReadMode, decode_image

MEMORY = 4e9
"""Most bytes of decoded pixels kept in memory; a larger set is read from its PNG files when it is used."""


def read_subsets(folder: Path, fold: int) -> tuple[dict[str, pd.DataFrame], str]:
    """Read tables (``image_id``, ``label``) of train, validation and test, and the split's hash."""
    try:
        split = pd.read_csv(folder / "split.csv", dtype={"image_id": str, "patient_id": str})
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(
            f"{folder} is not a prepared folder ({error}). Make it with keras-pneumo prepare, or make train-classifier."
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


def is_synthetic(folder: Path) -> bool:
    """Whether a prepared folder holds phantoms; :func:`read_subsets` has read its manifest before."""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("synthetic") is True


def mapped_arrays(folder: Path, size: int):
    """Map the folder's arrays of one size (images, masks, and each image id's row in both); None without valid ones.

    They are valid when they have the sizes and times of their record, and the record those hashes of the PNG files that
    the manifest has. Images are in the order of ``cases.csv``, masks too, eight pixels a byte, for those that have one.
    """
    try:
        record = json.loads((folder / f"arrays_{size}.json").read_text(encoding="utf-8"))
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        names = pd.read_csv(folder / "cases.csv", dtype={"image_id": str}, keep_default_na=False)["image_id"].tolist()
        outlined = [name for name in names if f"masks_{size}/{name}.png" in files]
        hashes = [files[f"images_{size}/{name}.png"] for name in names]
        hashes += [files[f"masks_{size}/{name}.png"] for name in outlined]
        if record["format"] != 1 or record["files_sha256"] != hashlib.sha256("".join(hashes).encode()).hexdigest():
            return None
        arrays = []
        for kind, rows in (("images", names), ("masks", outlined)):
            path = folder / f"{kind}_{size}.npy"
            kept, status = record["arrays"][path.name], path.stat()
            if (kept["bytes"], kept["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
                return None
            arrays.append(np.load(path, mmap_mode="r") if rows else np.zeros((0, size, -(-size // 8)), np.uint8))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rows_of = [{name: row for row, name in enumerate(rows)} for rows in (names, outlined)]
    return *arrays, *rows_of


class Radiographs(torch.utils.data.Dataset):
    """Images of one subset, optionally with masks; a whole batch is read and augmented at once."""

    def __init__(
        self, folder: Path, table: pd.DataFrame, size: int, masks=False, augmentation=None, crop=None, seed=0
    ) -> None:
        self.labels = torch.tensor(table["label"].to_numpy(), dtype=torch.float32)
        self.images = [folder / f"images_{size}" / f"{name}.png" for name in table["image_id"]]
        self.masks = [folder / f"masks_{size}" / f"{name}.png" for name in table["image_id"]] if masks else []
        self.size, self.augmentation, self.crop, self.seed = size, augmentation, crop, seed
        missing = [path for path in self.images if not path.is_file()]
        if missing:
            refuse(f"{len(missing)} images are missing, such as {missing[0]}. Prepare size {size} with keras-pneumo.")
        self.held = None
        self.mapped = mapped_arrays(folder, size)
        self.names = table["image_id"].tolist()
        if self.mapped is None and len(table) * size * size * (2 if masks else 1) < MEMORY:
            self.held = self._read(self.images), self._read(self.masks)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws):
        """Return a batch of (image, epoch, repeat): images (B, 1, S, S) in [0, 1], labels (B,), masks or None."""
        rows = [image for image, _, _ in draws]
        if self.mapped is not None:
            images, masks = self._from_arrays([self.names[row] for row in rows])
        elif self.held is not None:
            images, masks = self.held[0][rows], self.held[1][rows] if self.masks else None
        else:
            images = self._read([self.images[row] for row in rows])
            masks = self._read([self.masks[row] for row in rows]) if self.masks else None
        masks = None if masks is None else (masks > 0).float()
        labels = self.labels[rows]
        if self.augmentation is None:
            return images.float() / 255, labels, masks
        drawn = draw(self.seed, draws)
        images, masks = augment(images, masks, self.augmentation, drawn)
        if self.crop:
            images, masks = crop(images, self.crop, drawn), crop(masks, self.crop, drawn)
            labels = masks.amax((1, 2, 3))
        return images, labels, masks

    def _from_arrays(self, names):
        images, masks, image_rows, mask_rows = self.mapped
        images = torch.from_numpy(images[[image_rows[name] for name in names]])[:, None]
        if not self.masks:
            return images, None
        drawn = np.zeros((len(names), 1, self.size, self.size), np.uint8)
        for out, name in zip(drawn, names, strict=True):
            if name in mask_rows:  # a negative has no mask
                out[0] = np.unpackbits(masks[mask_rows[name]], axis=-1, count=self.size)
        return images, torch.from_numpy(drawn)

    def _read(self, paths):
        pixels = torch.zeros(len(paths), 1, self.size, self.size, dtype=torch.uint8)
        for row, path in enumerate(paths):
            if path.is_file():  # a negative has no mask
                pixels[row] = decode_image(str(path), ImageReadMode.GRAY)
        return pixels


class Draws(torch.utils.data.Sampler):
    """Batches of (image, epoch, repeat) for ``self.epoch``: every image once, or the recipe's share of positives.

    Batches of an epoch differ in size by at most one image, so that BatchNorm never sees a batch of one.
    """

    def __init__(self, labels: torch.Tensor, recipe: Recipe) -> None:
        self.labels, self.recipe, self.epoch = labels.numpy(), recipe, 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.recipe.global_batch_size)

    @property
    def smallest(self) -> int:
        """Return the images of the smallest batch."""
        return len(self.labels) // len(self)

    def __iter__(self):
        generator = np.random.default_rng(np.random.SeedSequence([self.recipe.seed, self.epoch, 1]))
        rate = [value for start, value in self.recipe.positive_rate if self.epoch >= start][-1:]
        count = len(self.labels)
        if rate:
            wanted = {1: round(count * rate[0]), 0: count - round(count * rate[0])}
            order = np.concatenate([self._of_class(generator, label, number) for label, number in wanted.items()])
            order = generator.permutation(order)
        else:
            order = generator.permutation(count)
        came: dict[int, int] = {}
        keys = []
        for image in order.tolist():
            keys.append((image, self.epoch, came.get(image, 0)))
            came[image] = came.get(image, 0) + 1
        for rows in np.array_split(np.arange(count), len(self)):
            yield [keys[row] for row in rows]

    def _of_class(self, generator, label, number):
        members = np.flatnonzero(self.labels == label)
        rounds = [generator.permutation(members) for _ in range(-(-number // max(len(members), 1)))]
        return np.concatenate(rounds)[:number] if rounds else members[:0]


def batches(data: Radiographs, sampler) -> torch.utils.data.DataLoader:
    """Make a loader whose workers decode and augment whole batches while the network learns."""
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
    """Make a loader of every image once and in order, for evaluation."""
    starts = range(0, len(data), batch_size)
    return batches(data, [[(row, 0, 0) for row in range(s, min(s + batch_size, len(data)))] for s in starts])


def as_is(batch):
    """Return the batch that ``__getitems__`` has already put together."""
    return batch
