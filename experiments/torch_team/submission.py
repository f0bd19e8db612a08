"""Writes the PyTorch team's submission; AUROC and the operating threshold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open

PREPROCESSING = "the prepared folder's PNGs, scaled to [0, 1], ImageNet mean and standard deviation"


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve, exact, ties counted half."""
    ranks, positive = pd.Series(score).rank().to_numpy(), truth == 1
    p, n = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


def fit_threshold(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the threshold of highest sensitivity + specificity, halfway between scores; of several the middle one."""
    scores = np.unique(probability)
    cuts = (np.append(0.0, scores[:-1]) + scores) / 2
    positive, negative = np.sort(probability[truth == 1]), np.sort(probability[truth == 0])
    missed = np.searchsorted(positive, cuts) / len(positive)
    value = np.searchsorted(negative, cuts) / len(negative) - missed
    best = np.flatnonzero(value >= value.max() - 1e-12)
    return float(cuts[best[(len(best) - 1) // 2]])


def declaration(
    team: str, task: str, recipe, split: str, seconds: float,
    framework=f"PyTorch {torch.__version__}", preprocessing=PREPROCESSING, init: Path | None = None, synthetic=False,
) -> dict:  # fmt: skip
    """Return what the team declares about its predictions, the content of submission.json."""
    if init is not None:
        with safe_open(init, "pt") as file:
            seen = (file.metadata() or {}).get("pretraining", f"unknown images ({init.name})")
    else:
        seen = "none" if recipe.weights == "random" else "ImageNet-1k"
    return {
        "format": 1,
        "team": team,
        "framework": framework,
        "task": task,
        "split_sha256": split,
        "subset": "test",
        "pretraining": {"images": seen, "image_ids": []},
        "synthetic": synthetic,
        "image_size": recipe.image_size,
        "seeds": [recipe.seed],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "training_hours": round(seconds / 3600, 4),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "preprocessing": preprocessing,
    }


def write_submission(out: Path, declared: dict, threshold: float, tables: dict[str, pd.DataFrame]) -> None:
    """Write the submission folder: submission.json, predictions.csv (test) and validation.csv."""
    folder = out / "submission"
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / name, index=False, float_format="%.17g", lineterminator="\n")
    content = json.dumps(declared | {"threshold": threshold}, indent=2)
    (folder / "submission.json").write_text(content + "\n", encoding="utf-8")
    print(folder)
