"""PyTorch's part of the ladder: prediction files, and scores from their definitions."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import torch

SIDE = 1024


def files(task, given, keep):
    """Write a PyTorch team's submission of these logits: ``submission.json`` and ``predictions.csv``."""
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


def truths_of(path):
    """Read the true masks, by image id, each bool (pixels,), columns first."""
    with Path(path).open() as file:
        return {row["image_id"]: decode(row["encoded_pixels"]) for row in csv.DictReader(file)}


def scores(predictions, truth):
    """Return mean Dice (both empty 1, one empty 0) and AUROC (ties half), from their definitions."""
    with Path(predictions).open() as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    truths = truths_of(truth)
    dice = []
    for image_id, mask in truths.items():
        predicted = decode(rows[image_id]["encoded_pixels"])
        total = mask.sum() + predicted.sum()
        dice.append(2 * (mask & predicted).sum() / total if total else 1.0)
    ill = np.array([float(rows[image_id]["probability"]) for image_id, mask in truths.items() if mask.any()])
    well = np.array([float(rows[image_id]["probability"]) for image_id, mask in truths.items() if not mask.any()])
    higher = (ill[:, None] > well).mean() + (ill[:, None] == well).mean() / 2
    return {"dice": float(np.mean(dice)), "auroc": float(higher)}
