"""The recipe of a training: all settings that both teams share, read from the files of either team.

In: a run folder, its ``experiment.json``, or the safetensors file of an exported start. Out: a :class:`Recipe`. A
setting that this team does not know is refused: it would otherwise be left out in silence, and the two results could
not be compared. ``keras_pneumo/config.py`` says in words what each setting means, and its range.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open


@dataclasses.dataclass
class Augmentation:
    """Ranges of the random changes of an image."""

    flip: float  # probability
    shift: float  # share of the side
    scale: float  # relative
    rotate: float  # degrees
    brightness: float  # added
    contrast: float  # relative
    gamma: float  # of the exponent's logarithm
    noise: float  # standard deviation
    clahe: float  # probability


@dataclasses.dataclass
class Recipe:
    """Everything that decides a training."""

    name: str
    task: str  # classifier, segmenter
    # The network.
    encoder: str  # resnet18, resnet34, resnet50
    weights: str  # imagenet_v1, imagenet_v2, random
    image_size: int
    dropout: float
    attention: str | None  # scse; segmenter
    image_head: bool  # segmenter
    # The data.
    seed: int
    fold: int
    global_batch_size: int
    positive_rate: list  # [[first epoch, share of positives], ...]
    augmentation: Augmentation
    crop: int | None  # segmenter
    # The loss.
    positive_weight: float  # classifier
    label_smoothing: float  # classifier
    loss: str  # segmenter, such as "3 bce + 1 dice + 4 focal"
    image_loss_weight: float  # segmenter with image_head
    # The learning.
    frozen_epochs: int
    epochs: int
    frozen_batchnorm: bool
    accumulation: int  # micro-batches of a batch
    optimizer: str  # adamw, sgd
    learning_rate: float
    frozen_learning_rate: float | None
    depth_decay: float
    weight_decay: float
    clip_norm: float | None
    precision: str  # auto, float32, mixed_float16, mixed_bfloat16
    schedule: str  # one_cycle, cosine, warm_restarts, plateau, constant
    warmup_fraction: float
    start_divisor: float
    final_divisor: float
    restart_epochs: int
    restart_factor: int
    plateau_factor: float
    plateau_patience: int
    patience: int | None
    # The weights that are kept, and how they predict.
    ema: float
    swa_epochs: int
    top_k: int
    flip_averaging: bool
    deterministic: bool = True  # recipes from before this setting were

    @property
    def total_epochs(self) -> int:
        """Return the epochs of both phases."""
        return self.frozen_epochs + self.epochs


def refuse(reason: str) -> NoReturn:
    """End with a sentence and exit code 2."""
    print(f"Refused. {reason}", file=sys.stderr)
    raise SystemExit(2)


def read_recipe(path: Path, task: str) -> Recipe:
    """Read a recipe; another task's is refused.

    Args:
        path: run folder, ``experiment.json``, or the safetensors file of ``keras-pneumo export``.
        task: ``classifier`` or ``segmenter``.
    """
    file = path / "experiment.json" if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                record = json.loads((opened.metadata() or {})["experiment"])
        else:
            record = json.loads(file.read_text(encoding="utf-8"))
        settings = dict(record.get("experiment", record))
        ranges = dict(settings["augmentation"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        refuse(f"{file} holds no experiment ({error}). Name a run folder, its experiment.json, or an exported start.")
    for kind, values in ((Recipe, settings), (Augmentation, ranges)):
        fields = dataclasses.fields(kind)
        if unknown := sorted(set(values) - {field.name for field in fields}):
            refuse(f"{file} has settings that this team does not know: {', '.join(unknown)}.")
        needed = {field.name for field in fields if field.default is dataclasses.MISSING}
        if missing := sorted(needed - set(values)):
            refuse(f"{file} lacks the settings {', '.join(missing)}.")
    recipe = Recipe(**{**settings, "augmentation": Augmentation(**ranges)})
    if recipe.task != task:
        refuse(f"{file} is the experiment of a {recipe.task}; this trains a {task}.")
    return recipe
