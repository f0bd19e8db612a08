"""PyTorch's part of the ladder: ``PYTHON_OF_PYTORCH ladder.py FOLDER``, started by ``keras-pneumo parity``.

Reads ``task.json``, ``inputs.npz`` and safetensors from FOLDER and writes into ``FOLDER/torch`` an npz for each check,
arrays by name in the order of the computation. Written as a PyTorch team would write it, with torch, torchvision and
segmentation_models_pytorch; nothing of keras_pneumo is imported. This file has the checks of pixels,
``ladder_networks.py`` those of networks and steps, ``ladder_recipes.py`` those of whole recipes, and
``ladder_masks.py`` and ``ladder_files.py`` those of masks, prediction files and scores.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import ladder_files
import ladder_masks
import ladder_networks
import ladder_recipes
import numpy as np
import pydicom
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

PLUGINS = {"1.2.840.10008.1.2.4.50": "pillow"}
"""Decoding plugin by transfer syntax: Pillow for baseline JPEG, as SIIM-ACR's files are; pylibjpeg for all others."""


def read_file(path):
    """Read a DICOM, PNG or JPEG file as uint8, white for dense."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        with Image.open(path) as opened:
            image = np.asarray(opened)
        return image[..., 2] if image.ndim == 3 else image
    if path.suffix.lower() == ".png":
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
    """Decoded pixels, and resized by the one call that both teams make."""
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
    square = [image for image in images.values() if image.shape == (1024, 1024)][:8]
    if square:
        batch = torch.from_numpy(np.stack(square))[:, None].float()
        antialiased = transforms.resize(batch, [256, 256], antialias=True)
        keep("antialiased", {"images": np.stack(square), "resized": antialiased[:, 0].numpy()})


def normalised(task, given, keep):
    """Three equal channels, ImageNet's mean and standard deviation."""
    grey = torch.from_numpy(given["augmented_images"]).permute(0, 3, 1, 2).float() / 255
    tensor = transforms.normalize(grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    keep("normalised", {f"image {number}": image.permute(1, 2, 0).numpy() for number, image in enumerate(tensor)})


def augmented(task, given, keep):
    """CLAHE, one affine map, contrast, brightness and gamma, with the parameters that both teams get."""
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
    for compute in (pixels, normalised, augmented, ladder_masks.reduced, ladder_masks.rule, ladder_files.files):
        compute(task, given, keep)
    ladder_networks.compute(folder, task, given, keep)
    ladder_recipes.compute(folder, task, given, keep)
    (keep.folder / "versions.json").write_text(json.dumps(versions()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # the Keras process computes at the same time
    main(Path(sys.argv[1]))
