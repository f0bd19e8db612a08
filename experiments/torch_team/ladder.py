"""PyTorch's part of the ladder: ``PYTHON_OF_PYTORCH ladder.py FOLDER``, started by ``keras-pneumo parity``.

Reads ``task.json``, ``inputs.npz`` and safetensors from FOLDER and writes into ``FOLDER/torch`` an npz for each check,
arrays by name in the order of the computation. Written as a PyTorch team would write it, with torch, torchvision and
segmentation_models_pytorch; nothing of keras_pneumo is imported. This file has the checks of pixels and files;
``ladder_networks.py`` those of networks and training.
"""

import csv
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import ladder_networks
import numpy as np
import pydicom
import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

SIDE = 1024
PLUGINS = {"1.2.840.10008.1.2.4.50": "pillow"}
"""Decoding plugin by transfer syntax: Pillow for baseline JPEG, as SIIM-ACR's files are; pylibjpeg for all others."""


def read_file(path):
    """Read a DICOM, PNG or JPEG file as uint8, white for dense."""
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        image = image[..., 0] if image.ndim == 3 else image
        return image if image.dtype == np.uint8 else stretched(image)
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = PLUGINS.get(str(syntax), "pylibjpeg") if syntax.is_compressed else ""
    values = pydicom.pixels.pixel_array(dataset, raw=True, decoding_plugin=plugin)
    window = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    if window or values.dtype != np.uint8 or "RescaleSlope" in dataset:
        values = pydicom.pixels.apply_modality_lut(values, dataset)
        if window:
            low, high = pydicom.pixels.apply_windowing(np.array([-1e30, 1e30]), dataset)
            values = pydicom.pixels.apply_windowing(values, dataset)
            values = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        else:
            values = stretched(values)
    return 255 - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def stretched(values):
    """Scale the smallest value to 0 and the largest to 255."""
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def pixels(task, given, keep):
    """Checks 1 and 2: decoded pixels, and resized by the one call that both teams make."""
    images = {}
    for number, name in enumerate(task["files"]):
        path = Path(name)
        images[f"file {number} ({path.suffix[1:]})"] = read_file(path)
    keep("pixels", images)
    resized = {
        f"{name} at {size}": image
        if image.shape == (size, size)
        else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        for name, image in images.items()
        for size in task["sizes"]
        if image.shape[0] == image.shape[1] >= size
    }
    keep("resized", resized)
    square = [image for image in images.values() if image.shape == (SIDE, SIDE)][:8]
    if square:
        batch = torch.from_numpy(np.stack(square))[:, None].float()
        antialiased = transforms.resize(batch, [256, 256], antialias=True)
        keep("antialiased", {"images": np.stack(square), "resized": antialiased[:, 0].numpy()})


def normalised(task, given, keep):
    """Check 3: three equal channels, ImageNet's mean and standard deviation."""
    grey = torch.from_numpy(given["augmented_images"]).permute(0, 3, 1, 2).float() / 255
    tensor = transforms.normalize(grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    keep("normalised", {f"image {number}": image.permute(1, 2, 0).numpy() for number, image in enumerate(tensor)})


def augmented(task, given, keep):
    """Check 4: CLAHE, one affine map, contrast, brightness and gamma, with the parameters that both teams get."""
    flip, shift_x, shift_y, scale, degrees, brightness, contrast, gamma, _, clahe = given["parameters"].T
    images = given["augmented_images"].copy()
    for row in np.flatnonzero(clahe > 0.5):
        images[row, ..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(images[row, ..., 0])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(given["augmented_masks"]).permute(0, 3, 1, 2).float()
    # From a point in the result to its source, in affine_grid's units: half a side is 1.
    cos = torch.from_numpy(np.cos(np.radians(degrees)) / scale).float()
    sin = torch.from_numpy(np.sin(np.radians(degrees)) / scale).float()
    mirror = torch.from_numpy(1 - 2 * flip)
    x, y = torch.from_numpy(2 * shift_x), torch.from_numpy(2 * shift_y)
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin, mirror * (sin * y - cos * x)], 1),
            torch.stack([sin, cos, -(sin * x + cos * y)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    masks = functional.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    factor, added, exponent = (
        torch.from_numpy(values)[:, None, None, None] for values in (contrast, brightness, gamma)
    )
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (((pixels - mean) * factor + mean) + added).clamp(0, 1) ** exponent
    changed = {f"image {number}": image.permute(1, 2, 0).numpy() for number, image in enumerate(pixels)}
    moved = {f"mask {number}": (mask.permute(1, 2, 0) >= 0.5).float().numpy() for number, mask in enumerate(masks)}
    keep("augmented", changed | moved)


def files(task, given, keep):
    """Check 13: a PyTorch team's submission of these logits: ``submission.json`` and ``predictions.csv``."""
    folder = keep.folder / "submission"
    folder.mkdir(exist_ok=True)
    probability = torch.sigmoid(torch.from_numpy(given["predicted_logits"][:, 0]).double())
    maps = torch.round(torch.sigmoid(torch.from_numpy(given["predicted_masks"][..., 0])) * 255).byte().numpy()
    rows = []
    for number, (value, probability_map) in enumerate(zip(probability, maps, strict=True)):
        large = cv2.resize(probability_map, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        mask = large >= 128  # one half of 255, rounded up
        rows.append([f"image{number:02}", repr(value.item()), encode(mask)])
    with (folder / "predictions.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["image_id", "probability", "encoded_pixels"], *rows])
    info = {"format": 1, "team": "ladder, PyTorch", "framework": "PyTorch", "task": "joint", "threshold": 0.5}
    (folder / "submission.json").write_text(json.dumps(info))
    (keep.folder / "scores.json").write_text(json.dumps(scores(folder / "predictions.csv", task["truth"])))


def encode(mask):
    """Encode a mask as SIIM's relative runs, down the columns: gap and length in turn; ``-1`` for none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]]) if len(starts) else starts
    return " ".join(f"{gap} {end - start}" for gap, start, end in zip(gaps, starts, ends, strict=True)) or "-1"


def decode(text):
    """Decode a text of runs to its mask, bool (pixels,), columns first."""
    mask = np.zeros(SIDE * SIDE, bool)
    numbers = [] if text.strip() == "-1" else [int(word) for word in text.split()]
    end = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[end + gap : end + gap + length] = True
        end += gap + length
    return mask


def scores(predictions, truth):
    """Check 14: mean Dice (both empty 1, one empty 0) and AUROC (ties half), from their definitions."""
    with Path(predictions).open() as first, Path(truth).open() as second:
        rows = {row["image_id"]: row for row in csv.DictReader(first)}
        truths = {row["image_id"]: decode(row["encoded_pixels"]) for row in csv.DictReader(second)}
    dice = []
    for image_id, mask in truths.items():
        predicted = decode(rows[image_id]["encoded_pixels"])
        total = mask.sum() + predicted.sum()
        dice.append(2 * (mask & predicted).sum() / total if total else 1.0)
    ill = np.array([float(rows[image_id]["probability"]) for image_id, mask in truths.items() if mask.any()])
    well = np.array([float(rows[image_id]["probability"]) for image_id, mask in truths.items() if not mask.any()])
    higher = (ill[:, None] > well).mean() + (ill[:, None] == well).mean() / 2
    return {"dice": float(np.mean(dice)), "auroc": float(higher)}


class Keeper:
    """``keep(name, arrays)`` writes an npz into PyTorch's folder."""

    def __init__(self, folder):
        """Make the folder."""
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, name, arrays):
        """Write the arrays of one check."""
        np.savez(self.folder / f"{name}.npz", **arrays)


def versions():
    """Return the versions that this backend computes with."""
    versions = {"python": sys.version.split()[0]}
    for name in ("torch", "torchvision", "segmentation-models-pytorch", "numpy", "opencv-python-headless", "pydicom"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def main(folder):
    """Compute every check."""
    task = json.loads((folder / "task.json").read_text()) | {"truth": str(folder / "truth.csv")}
    given = dict(np.load(folder / "inputs.npz"))
    keep = Keeper(folder / "torch")
    for compute in (pixels, normalised, augmented, files):
        compute(task, given, keep)
    ladder_networks.compute(folder, task, given, keep)
    (keep.folder / "versions.json").write_text(json.dumps(versions()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the Keras process computes at the same time
    main(Path(sys.argv[1]))
