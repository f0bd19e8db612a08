"""Growth: time per image and peak memory of each command with once, ten and a hundred times as many radiographs.

The radiographs are 30 phantoms, reduced to 128 pixels, as PNG; each further copy has noise and a patient of its own, so
that no two files are equal. A command's ratio is its memory with the fewest radiographs over that with the most: 1 is
flat, and the goal of 0.83 allows a fifth more. The time per image falls, since the start is paid once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from lab import Lab
from measuring import Command, OwnRow, run_command

BASE = 30
SIZE = 64
SOURCE_SIZE = 128
FLAT = 1 / 1.2
EXPERIMENT = """
from keras_pneumo.config import CLASSIFIER

EXPERIMENT = CLASSIFIER.replace(
    name="growth", encoder="resnet18", weights="random", image_size=64, frozen_epochs=0, epochs=1, schedule="constant"
)
"""


def rows(lab: Lab) -> Iterator[OwnRow]:
    """A row for each command."""
    reason = "" if len(lab.growth) > 1 else "no factors of growth were asked for (GROWTH=1,10,100)"
    for name, work in (
        ("prepare", "preparing PNGs at 64 px"),
        ("train", "one epoch of ResNet18 at 64 px, with its report"),
        ("predict", "the same network on all radiographs"),
        ("compare", "the board of the test subset"),
    ):
        yield OwnRow(
            f"growth, memory of {name}", "", FLAT, lambda name=name: grow(lab, name), f"{name}: {work}.", reason
        )


def grow(lab: Lab, name: str) -> dict[str, Any]:
    """The figures of a command at each factor, and the ratio of the memories."""
    steps = []
    for factor in sorted(lab.growth):
        folder = lab.folder / f"growth-{factor}"
        images = BASE * factor
        make_inputs(lab, folder, factor, before=name)
        figures = run_command(command(lab, folder, name, images))
        steps.append({"times": factor, "images": images, **figures})
        lab.say(f"  {factor}x: {figures['seconds']:.1f} s, {figures['memory_mb']:.0f} MB")
    memory = [step["memory_mb"] for step in steps]
    parts = [f"{s['times']}x: {1000 * s['seconds'] / s['images']:.0f} ms, {s['memory_mb']:.0f} MB" for s in steps]
    return {
        "ratio": memory[0] / memory[-1],
        "growth": steps,
        "note": f"{name}, time per image (whole command) and peak memory: {'; '.join(parts)}.",
    }


def command(lab: Lab, folder: Path, name: str, images: int) -> Command:
    """A command on the radiographs of a folder; what it wrote before is removed first."""
    out = folder / name
    arguments: dict[str, list[str | Path]] = {
        "prepare": ["prepare", folder / "radiographs", "--out", out, "--size", str(SIZE)],
        "train": ["train", folder / "growth.py", "--data", folder / "prepare", "--out", out],
        "predict": ["predict", folder / "train", "--data", folder / "radiographs", "--out", out],
        "compare": ["compare", folder / "train", "--truth", folder / "prepare", "--out", out],
    }
    return Command(
        lab.command(*arguments[name]),
        images,
        {**lab.environment, "KERAS_PNEUMO_CACHE": str(folder / "cache")},
        lab.repository,
        before=lambda: shutil.rmtree(out, ignore_errors=True),
        exit_codes=(0, 1),
    )


def make_inputs(lab: Lab, folder: Path, factor: int, before: str) -> None:
    """Write the radiographs, and run the commands before ``before`` whose outputs are missing."""
    if not (folder / "radiographs/patients.csv").exists():
        write_radiographs(lab, folder / "radiographs", factor)
    (folder / "growth.py").write_text(EXPERIMENT, encoding="utf-8")
    finished = {"prepare": "prepare/manifest.json", "train": "train/report.html"}
    for name, file in finished.items():
        if name == before:
            return
        if not (folder / file).exists():
            run_command(command(lab, folder, name, BASE * factor))


def write_radiographs(lab: Lab, folder: Path, factor: int) -> None:
    """Write ``factor`` copies of the phantoms as PNG, with labels and patients."""
    import keras_pneumo as kp

    phantoms = lab.phantoms(BASE, "--size-scale", "6", "--seed", "3", name="growth-phantoms")
    labels = pd.read_csv(phantoms / "train-rle.csv", skipinitialspace=True)
    patients = pd.read_csv(phantoms / "patients.csv", dtype=str).set_index("ImageId")["patient_id"]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for path in sorted(phantoms.rglob("*.dcm")):
        whole = kp.read_radiograph(path).pixels
        pixels[path.stem] = cv2.resize(whole, (SOURCE_SIZE, SOURCE_SIZE), interpolation=cv2.INTER_AREA)
    tables, owners = [], []
    rng = np.random.default_rng(0)
    for copy in range(factor):
        for image_id, image in pixels.items():
            noise = rng.integers(-2, 3, image.shape) if copy else 0
            cv2.imwrite(str(folder / f"{image_id}-{copy}.png"), np.clip(image + noise, 0, 255).astype(np.uint8))
        tables.append(labels.assign(ImageId=labels["ImageId"] + f"-{copy}"))
        owners += [(f"{image_id}-{copy}", f"{patients[image_id]}-{copy}") for image_id in pixels]
    pd.concat(tables).to_csv(folder / "train-rle.csv", index=False)
    pd.DataFrame(owners, columns=["ImageId", "patient_id"]).to_csv(folder / "patients.csv", index=False)
