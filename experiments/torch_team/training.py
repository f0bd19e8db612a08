"""The PyTorch team's training: two phases, one optimizer, the best epoch by the validation score.

In: a network, its loss and a function that evaluates it (validation score and loss). Out: the network with its best
weights, and a log. Written as a PyTorch project would: channels-last, autocast with a scaled loss where the GPU gains
from it, pinned and non-blocking copies, fused optimizers.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from data import Draws, batches, refuse
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(1, 3, 1, 1)
UNSUPPORTED = {"ema": 0.0, "swa_epochs": 0, "top_k": 1, "patience": None, "accumulation": 1}
"""Settings of the shared recipe that this team does not have, with the only value that it accepts."""


def arguments(description: str) -> SimpleNamespace:
    """Parse the command line that all trainings of this team have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--experiment", type=Path, required=True, help="run folder, experiment.json or exported start")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="where weights, log and submission go")
    parser.add_argument("--init", type=Path, help="starting weights as safetensors, such as the Keras team's")
    given = parser.parse_args()
    if (given.out / "submission").exists():
        refuse(f"{given.out} holds a submission already. Choose another --out, or remove it; nothing was changed.")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32 for products as for convolutions, TensorFlow's default too
    return given


def load_start(network: torch.nn.Module, path: Path) -> None:
    """Load all weights from a safetensors file; every tensor must fit."""
    try:
        network.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        refuse(f"The weights in {path} do not fit this network: {error}")


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return a batch on the device: three normalised channels, channels-last."""
    images = images.to(DEVICE, non_blocking=True)
    return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def half_type(experiment: SimpleNamespace) -> torch.dtype | None:
    """Return the experiment's half precision; for ``auto`` float16 on GPUs with tensor cores, else None."""
    if experiment.precision == "auto":
        return torch.float16 if CUDA and torch.cuda.get_device_capability() >= (7, 0) else None
    return {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}.get(experiment.precision)


def autocast(experiment: SimpleNamespace) -> torch.autocast:
    """Return the context that networks run in."""
    dtype = half_type(experiment)
    return torch.autocast(DEVICE.type, dtype, enabled=dtype is not None)


def fit(network, experiment, data, loss_of, evaluate, out: Path) -> tuple[torch.nn.Module, float]:
    """Train; the network ends with its best epoch's weights, which are saved in ``out``.

    Args:
        network: torchvision's ResNet or ``smp.Unet``.
        experiment: the recipe.
        data: training radiographs.
        loss_of: (network's output, labels, masks) -> mean loss.
        evaluate: network -> (score, loss) on validation.
        out: folder for log.csv and best.safetensors.

    Returns:
        The network, and the seconds that training took.
    """
    network.to(DEVICE, memory_format=torch.channels_last)
    sampler = Draws(data.labels, experiment)
    loader = batches(data, sampler)
    rows, best, kept = [], (-np.inf, -np.inf), None
    began = time.monotonic()
    thaw, end = experiment.frozen_epochs, experiment.frozen_epochs + experiment.epochs
    frozen_rate = experiment.frozen_learning_rate or experiment.learning_rate
    phases = [("frozen", range(thaw), frozen_rate), ("whole", range(thaw, end), experiment.learning_rate)]
    for phase, epochs, rate in phases if thaw else phases[1:]:
        set_learning(network, experiment, phase == "whole")
        optimizer = make_optimizer(network, experiment, rate)
        schedule = make_schedule(optimizer, experiment, len(epochs) * len(sampler), len(sampler))
        scaler = torch.amp.GradScaler(DEVICE.type, enabled=half_type(experiment) == torch.float16)
        for epoch in epochs:
            sampler.epoch, started = epoch, time.monotonic()
            set_modes(network, experiment, phase == "whole")
            loss = one_epoch(network, experiment, loader, loss_of, optimizer, schedule, scaler) / len(data)
            speed = len(data) / (time.monotonic() - started)
            if not np.isfinite(loss):
                refuse(f"The loss of epoch {epoch + 1} is no longer finite. Lower the learning rate.")
            score, validation_loss = evaluate(network)
            if experiment.schedule == "plateau":
                schedule.step(score)
            better = (score, -validation_loss) > best
            if better:
                best, kept = (score, -validation_loss), copy.deepcopy(network.state_dict())
            rows.append([epoch + 1, phase, loss, validation_loss, score, round(speed, 1), int(better)])
            figures = f"loss {loss:.4f}, validation loss {validation_loss:.4f}, score {score:.4f}"
            print(f"epoch {epoch + 1:>3} ({phase}): {figures}, {speed:.1f} images/s{', best' * better}", flush=True)
    took = time.monotonic() - began
    if kept is None:
        refuse("No epoch gave a finite validation score. Lower the learning rate.")
    network.load_state_dict(kept)
    columns = ["epoch", "phase", "loss", "validation_loss", "score", "images_per_second", "best"]
    pd.DataFrame(rows, columns=columns).to_csv(out / "log.csv", index=False)
    save_file({name: value.cpu().contiguous() for name, value in kept.items()}, out / "best.safetensors")
    return network, took


def one_epoch(network, experiment, loader, loss_of, optimizer, schedule, scaler) -> float:
    """Take all steps of an epoch; return the sum of the images' losses."""
    total = torch.zeros((), device=DEVICE)  # read once an epoch: each reading waits for the GPU
    for images, labels, masks in loader:
        labels = labels.to(DEVICE, non_blocking=True)
        masks = None if masks is None else masks.to(DEVICE, non_blocking=True)
        with autocast(experiment):
            outputs = network(prepared(images))
        loss = loss_of(outputs, labels, masks)  # outside autocast: sums over masks overflow float16
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if experiment.clip_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), experiment.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if schedule is not None and experiment.schedule != "plateau":
            schedule.step()
        total += loss.detach() * len(images)
    return total.item()


def set_learning(network, experiment, encoder_learns: bool) -> None:
    """Set which parameters learn."""
    normed = {id(p) for module in norms(network) for p in module.parameters()} if experiment.frozen_batchnorm else ()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_((encoder_learns or depth_of(name) == 5) and id(parameter) not in normed)


def set_modes(network, experiment, encoder_learns: bool) -> None:
    """Set training mode, except for frozen BatchNorm, whose statistics stay too."""
    network.train()
    for name, module in network.named_modules():
        frozen = experiment.frozen_batchnorm or (not encoder_learns and depth_of(name + ".") < 5)
        if frozen and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def norms(network) -> list[torch.nn.Module]:
    """Return all BatchNorm layers."""
    return [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def depth_of(name: str) -> int:
    """Return the depth of a parameter: 0 for the stem, 1 to 4 for the ResNet's stages, 5 for head and decoder."""
    inner = name.removeprefix("encoder.")
    stage = re.match(r"layer([1-4])\.", inner)
    return int(stage.group(1)) if stage else 0 if inner.startswith(("conv1.", "bn1.")) else 5


def make_optimizer(network, experiment, rate: float) -> torch.optim.Optimizer:
    """Make AdamW or SGD; with depth decay deeper stages learn faster; no weight decay on BatchNorm and biases."""
    groups: dict[tuple[int, bool], list] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth_of(name), parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": rate * experiment.depth_decay ** (5 - depth),
            "weight_decay": experiment.weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]
    if experiment.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(settings, lr=rate, fused=True)


def make_schedule(optimizer, experiment, steps: int, epoch_steps: int):
    """Make the experiment's schedule over a phase; None for a constant rate."""
    schedulers = torch.optim.lr_scheduler
    rates = [group["lr"] for group in optimizer.param_groups]
    if experiment.schedule == "one_cycle":
        divisors = {"div_factor": experiment.start_divisor, "final_div_factor": experiment.final_divisor}
        return schedulers.OneCycleLR(optimizer, rates, steps, pct_start=experiment.warmup_fraction, **divisors)
    if experiment.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, steps)
    if experiment.schedule == "warm_restarts":
        first = experiment.restart_epochs * epoch_steps
        return schedulers.CosineAnnealingWarmRestarts(optimizer, first, experiment.restart_factor)
    if experiment.schedule == "plateau":
        settings = {"factor": experiment.plateau_factor, "patience": experiment.plateau_patience}
        return schedulers.ReduceLROnPlateau(optimizer, "max", **settings)
    return None


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing=0.0, positive_weight=1.0) -> torch.Tensor:
    """Return the binary cross-entropy of each image-level logit, (B,); a positive counts ``positive_weight`` times."""
    smoothed = labels * (1 - smoothing) + smoothing / 2
    weight = 1 + labels * (positive_weight - 1)
    return F.binary_cross_entropy_with_logits(logits.float().flatten(), smoothed, weight, reduction="none")
