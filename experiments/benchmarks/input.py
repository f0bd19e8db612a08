"""Input at 512 pixels with augmentation: this project's datasets against PyTorch's DataLoader with albumentations.

Ours is ``kp.load_prepared(folder).dataset(...)``, shuffled and augmented, with TensorFlow's deterministic operations
switched on as in a training. The other side reads the very same PNG files (or holds their pixels in memory, decoded),
augments them with albumentations 2.0.8 in as many processes as there are cores and hands over batches of float32 in
[0, 1], as ours does. It is tuned: grey pixels as uint8 through shared memory and floats made at the end, processes that
stay, OpenCV with one thread in each, batches ahead, malloc that keeps its memory. Its changes are of the same kinds and
ranges, in its own arithmetic (uint8, tables for contrast, brightness and gamma), which is less exact and cheaper.

The first row opens the folder for the first time (PNG files are hashed and decoded, and the array of pixels written)
and takes one epoch; the others are later epochs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from worker import serve

if TYPE_CHECKING:  # the other side's environment lacks what these need
    from lab import Lab
    from measuring import OwnRow, Row, Worker

RADIOGRAPHS, SIZE, BATCH = 400, 512, 16
GOAL = 2.0


def rows(lab: Lab) -> Iterator[Row | OwnRow]:
    """The rows of this file."""
    from measuring import Row, Worker

    prepared = lab.folder / f"phantoms-input-prepared-{SIZE}"
    missing = lab.missing(lab.torch_python, "torch", "albumentations")

    def prepare() -> None:
        assert lab.prepared(lab.phantoms(RADIOGRAPHS, name="phantoms-input"), SIZE) == prepared

    def side(who: str, what: str, runs: int, cores: int, masks: bool) -> Worker:
        python = lab.python if who == "ours" else lab.torch_python or lab.python
        bound = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))]
        environment = lab.environment if who == "ours" else lab.torch_environment
        argv = [*bound, python, Path(__file__), who, what, prepared, "masks" if masks else "labels"]
        return Worker(argv, runs=runs, env={**environment, "NO_ALBUMENTATIONS_UPDATE": "1"})

    most = len(os.sched_getaffinity(0))
    for cores in sorted({1, most}):
        where = f"{cores} core{'s' * (cores > 1)}"
        for what, other, runs in (
            ("files", "reading PNG files", 2),
            ("memory", "its images in memory", 4),
        ):
            yield Row(
                f"input: later epochs at {SIZE}, against {other}, {where}",
                "images/s",
                GOAL,
                side("ours", "later", runs, cores, masks=False),
                side("theirs", what, runs, cores, masks=False),
                f"DataLoader with albumentations, {cores if cores > 1 else 'no'} worker processes, {other}",
                prepare=prepare,
                unmeasurable=missing,
            )
    yield Row(
        f"input: later epochs at {SIZE} with masks, against its images in memory",
        "images/s",
        GOAL,
        side("ours", "later", 3, most, masks=True),
        side("theirs", "memory", 3, most, masks=True),
        "DataLoader with albumentations, its images and masks in memory",
        prepare=prepare,
        unmeasurable=missing,
    )
    yield Row(
        f"input: opening and first epoch at {SIZE}, against reading PNG files",
        "images/s",
        1.0,
        side("ours", "first", 1, most, masks=False),
        side("theirs", "first", 1, most, masks=False),
        "ours checks each file's hash, decodes it once and writes the array for all later starts; theirs starts its "
        "processes and reads",
        prepare=prepare,
        unmeasurable=missing,
    )


def ours(what: str, prepared: Path, masks: bool) -> Callable[[int], int]:
    """A function that takes some epochs of the training images and gives their number."""
    import tensorflow as tf

    import keras_pneumo as kp

    tf.config.experimental.enable_op_determinism()

    def dataset() -> tf.data.Dataset:
        folder = kp.load_prepared(prepared)
        return folder.dataset("train", SIZE, BATCH, masks, kp.Augmentation(), shuffle=True)

    held = dataset() if what == "later" else None

    def run(epochs: int) -> int:
        images = 0
        for _ in range(epochs):
            if held is None:
                for path in (*prepared.glob("*.npy"), *prepared.glob("arrays_*.json")):
                    path.unlink()
            for batch, _target in held if held is not None else dataset():
                images += batch.shape[0]
        return images

    return run


def theirs(what: str, prepared: Path, masks: bool) -> Callable[[int], int]:
    """The same with PyTorch and albumentations."""
    import albumentations
    import cv2
    import numpy as np
    import pandas as pd
    import torch

    split = pd.read_csv(prepared / "split.csv", dtype={"image_id": str})
    table = split[(split["fold"] > 0)].reset_index(drop=True)  # fold 0 is for validation
    transform = albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(
                scale=(0.9, 1.1), translate_percent=(-0.05, 0.05), rotate=(-10, 10), interpolation=1, fill=0, p=1.0
            ),
            albumentations.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.2, p=1.0),
            albumentations.RandomGamma(gamma_limit=(82, 122), p=1.0),
        ]
    )

    def read(kind: str, row: int) -> np.ndarray:
        pixels = cv2.imread(str(prepared / f"{kind}_{SIZE}" / f"{table['image_id'][row]}.png"), cv2.IMREAD_GRAYSCALE)
        return np.zeros((SIZE, SIZE), np.uint8) if pixels is None else pixels  # a negative has no mask

    kinds = ("images", "masks") if masks else ("images",)
    held = {kind: np.stack([read(kind, row) for row in range(len(table))]) for kind in kinds if what == "memory"}
    labels = table["pneumothorax"].to_numpy(np.float32)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, row: int) -> tuple[object, ...]:
            given = {kind[:-1]: held[kind][row] if held else read(kind, row) for kind in kinds}
            changed = transform(**given)
            target = changed["mask"][None] if masks else labels[row]
            return changed["image"][None], target

    def loader() -> torch.utils.data.DataLoader:
        cores = len(os.sched_getaffinity(0))
        workers = cores if cores > 1 else 0
        ahead = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
        return torch.utils.data.DataLoader(
            Images(),
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            worker_init_fn=lambda number: cv2.setNumThreads(0),
            **ahead,
        )

    cv2.setNumThreads(0)
    kept = loader() if what != "first" else None

    def run(epochs: int) -> int:
        images = 0
        for _ in range(epochs):
            for batch, target in kept or loader():
                floats = batch.float().div_(255)
                if masks:
                    target = (target > 0).float()
                images += len(floats)
        return images

    return run


if __name__ == "__main__":
    side = ours if sys.argv[1] == "ours" else theirs
    serve(lambda: side(sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "masks"))
