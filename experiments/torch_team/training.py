"""The PyTorch team's training: two phases, one optimizer each, the best epochs by the validation score.

In: a network, its loss and a function that evaluates it (validation score and loss). Out: the networks with the best
weights, and a log. Written as a PyTorch project would: channels-last, autocast with a scaled loss where the GPU gains
from it, pinned and non-blocking copies, fused optimizers, ``torch.compile`` if asked for, averages of weights by
``torch.optim.swa_utils``.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from data import Draws, batches
from recipe import Recipe, refuse
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MEAN = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(1, 3, 1, 1)
LOSS_SCALE = 2.0**15
"""First scale of the loss in float16; both teams begin with the same."""


def arguments(description: str, masks: bool = False) -> SimpleNamespace:
    """Parse the command line that all trainings of this team have; a segmenter's names the command for masks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--experiment", type=Path, required=True, help="run folder, experiment.json or exported start")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="where weights, log and submission go")
    parser.add_argument("--init", type=Path, help="starting weights as safetensors, such as the Keras team's")
    parser.add_argument("--compile", action="store_true", help="compile the network; prints the seconds it takes")
    if masks:
        parser.add_argument("--masks", default="keras-pneumo masks", help="the referee's command for masks")
    given = parser.parse_args()
    if (given.out / "submission").exists():
        refuse(f"{given.out} holds a submission already. Choose another --out, or remove it; nothing was changed.")
    return given


def set_up(recipe: Recipe) -> None:
    """Set what holds for the whole process: the seed, TF32, and whether operations are deterministic.

    TF32 is on for products as for convolutions, which is TensorFlow's default too.
    """
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a check for bugs, which takes time
    torch.backends.cudnn.benchmark = not recipe.deterministic
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA's BLAS is first used


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


def half_type(recipe: Recipe) -> torch.dtype | None:
    """Return the recipe's half precision; for ``auto`` float16 on GPUs with tensor cores, else None."""
    if recipe.precision == "auto":
        return torch.float16 if CUDA and torch.cuda.get_device_capability() >= (7, 0) else None
    return {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}.get(recipe.precision)


def autocast(recipe: Recipe) -> torch.autocast:
    """Return the context that networks run in."""
    dtype = half_type(recipe)
    return torch.autocast(DEVICE.type, dtype, enabled=dtype is not None)


class BestEpochs:
    """The weights of the best epoch, and of the best ``top_k`` epochs, which predict together."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self.score, self.loss, self.best = -np.inf, np.inf, None
        self.kept: list[tuple[float, int, dict]] = []  # (score, epoch, weights), best first

    def add(self, network: torch.nn.Module, epoch: int, score: float, loss: float) -> bool:
        """Keep the epoch's weights if they are good enough; return whether they are the best so far.

        The best has the highest score and, of equal ones, the lowest loss. Of equal scores at the end of the ``top_k``
        the earlier epoch stays.
        """
        better = bool(np.isfinite([score, loss]).all()) and (score, -loss) > (self.score, -self.loss)
        among = np.isfinite(score) and (len(self.kept) < self.top_k or score > self.kept[-1][0])
        if better or among:
            weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        if better:
            self.score, self.loss, self.best = score, loss, weights
        if among:
            self.kept = sorted([*self.kept, (score, epoch, weights)], key=lambda kept: -kept[0])[: self.top_k]
        return better

    def states(self) -> dict[str, dict]:
        """Return the weights to predict with by their file names: the best ``top_k`` if several are kept."""
        if len(self.kept) < 2:
            return {"best": self.best}
        return {f"epoch_{epoch:03d}": weights for _, epoch, weights in sorted(self.kept, key=lambda kept: kept[1])}


def fit(network, recipe, data, loss_of, evaluate, out: Path, compiled=False) -> tuple[list[torch.nn.Module], float]:
    """Train; save the best weights and the log in ``out``.

    Args:
        network: torchvision's ResNet or ``smp.Unet``.
        recipe: the settings.
        data: training radiographs.
        loss_of: (network's output, labels, masks) -> loss of each image, (B,).
        evaluate: network -> (score, loss) on validation.
        out: folder for log.csv, best.safetensors and, of several epochs that predict, epoch_*.safetensors.
        compiled: whether the network is compiled.

    Returns:
        The networks that predict together, and the seconds that training took.
    """
    network.to(DEVICE, memory_format=torch.channels_last)
    if compiled:
        network.compile()
    sampler = Draws(data.labels, recipe)
    loader = batches(data, sampler)
    best, rows, average_of_last = BestEpochs(recipe.top_k), [], None
    began = time.monotonic()

    def report(evaluated, epoch, phase, loss, started, rates):
        """Evaluate, keep the weights if they are good, add a line to the log; return the score."""
        speed = len(data) / (time.monotonic() - started)
        score, validation_loss = evaluate(evaluated)
        better = best.add(evaluated, epoch, score, validation_loss)
        rows.append([epoch, phase, loss, validation_loss, score, rates[-1], round(speed, 1), int(better)])
        figures = f"loss {loss:.4f}, validation loss {validation_loss:.4f}, score {score:.4f}"
        print(f"epoch {epoch:>3} ({phase}): {figures}, {speed:.1f} images/s{', best' * better}", flush=True)
        return score

    thaw, end = recipe.frozen_epochs, recipe.total_epochs
    frozen_rate = recipe.frozen_learning_rate or recipe.learning_rate
    phases = [("frozen", range(thaw), frozen_rate), ("whole", range(thaw, end), recipe.learning_rate)]
    for phase, epochs, rate in phases if thaw else phases[1:]:
        set_learning(network, recipe, phase == "whole")
        optimizer = make_optimizer(network, recipe, rate)
        schedule = make_schedule(optimizer, recipe, len(epochs) * len(sampler), len(sampler))
        scaler = torch.amp.GradScaler(DEVICE.type, LOSS_SCALE, enabled=half_type(recipe) == torch.float16)
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None
        waited = 0
        for epoch in epochs:
            sampler.epoch, started = epoch, time.monotonic()
            set_modes(network, recipe, phase == "whole")
            timed = "first step" if compiled and epoch == epochs[0] else None
            loss = one_epoch(network, recipe, loader, loss_of, optimizer, schedule, scaler, average, timed) / len(data)
            if not np.isfinite(loss):
                refuse(f"The loss of epoch {epoch + 1} is no longer finite. Lower the learning rate.")
            before = best.score if best.best is not None else None
            rates = [group["lr"] for group in optimizer.param_groups]
            score = report(average.module if average else network, epoch + 1, phase, loss, started, rates)
            if recipe.schedule == "plateau":
                schedule.step(score)
            if epoch >= end - recipe.swa_epochs:
                average_of_last = average_of_last or AveragedModel(network)
                average_of_last.update_parameters(network)
            waited = 0 if before is None or score > before else waited + 1
            if recipe.patience is not None and waited >= recipe.patience:
                break  # ends the phase, not the training
        if average is not None:
            network.load_state_dict(average.module.state_dict())
    if average_of_last is not None:
        started, averaged = time.monotonic(), average_of_last.module
        if not recipe.frozen_batchnorm:
            with autocast(recipe):
                update_bn((prepared(images) for images, _, _ in loader), averaged)  # the last epoch's images again
        report(averaged, end + 1, "average", float("nan"), started, [float("nan")])
    took = time.monotonic() - began
    if best.best is None:
        refuse("No epoch gave a finite validation score. Lower the learning rate.")
    columns = ["epoch", "phase", "loss", "validation_loss", "score", "learning_rate", "images_per_second", "best"]
    pd.DataFrame(rows, columns=columns).to_csv(out / "log.csv", index=False)
    networks = []
    for name, weights in ({"best": best.best} | best.states()).items():
        save_file({key: value.contiguous() for key, value in weights.items()}, out / f"{name}.safetensors")
    for weights in best.states().values():
        networks.append(copy.deepcopy(network))
        networks[-1].load_state_dict(weights)
    return networks, took


def one_epoch(network, recipe, loader, loss_of, optimizer, schedule, scaler, average=None, timed=None) -> float:
    """Take all steps of an epoch; return the sum of the images' losses."""
    total = torch.zeros((), device=DEVICE)  # read once an epoch: each reading waits for the GPU
    parts = min(recipe.accumulation, loader.batch_sampler.smallest)
    began = time.monotonic()
    for images, labels, masks in loader:
        count = len(images)
        optimizer.zero_grad(set_to_none=True)
        for start, end in itertools.pairwise(count * number // parts for number in range(parts + 1)):
            part_labels = labels[start:end].to(DEVICE, non_blocking=True)
            part_masks = None if masks is None else masks[start:end].to(DEVICE, non_blocking=True)
            with autocast(recipe):
                outputs = network(prepared(images[start:end]))
            # Outside autocast, since sums over masks overflow float16. Every image weighs the same, whatever its part.
            loss = loss_of(outputs, part_labels, part_masks).sum() / count
            scaler.scale(loss).backward()
            total += loss.detach() * count
        if recipe.clip_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() >= scale:  # else the gradient overflowed float16 and no step was taken
            if schedule is not None and recipe.schedule != "plateau":
                schedule.step()
            if average is not None:
                average.update_parameters(network)
        if timed:
            print(f"{timed}, with compilation: {time.monotonic() - began:.1f} s", flush=True)
            timed = None
    return total.item()


def set_learning(network, recipe, encoder_learns: bool) -> None:
    """Set which parameters learn."""
    normed = {id(p) for module in norms(network) for p in module.parameters()} if recipe.frozen_batchnorm else ()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_((encoder_learns or depth_of(name) == 5) and id(parameter) not in normed)


def set_modes(network, recipe, encoder_learns: bool) -> None:
    """Set training mode, except for frozen BatchNorm, whose statistics stay too."""
    network.train()
    for name, module in network.named_modules():
        frozen = recipe.frozen_batchnorm or (not encoder_learns and depth_of(name + ".") < 5)
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


def make_optimizer(network, recipe, rate: float) -> torch.optim.Optimizer:
    """Make AdamW or SGD; with depth decay deeper stages learn faster; no weight decay on BatchNorm and biases."""
    groups: dict[tuple[int, bool], list] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth_of(name), parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": rate * recipe.depth_decay ** (5 - depth),
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=rate, momentum=0.9, fused=True)
    return torch.optim.AdamW(settings, lr=rate, fused=True)


def make_schedule(optimizer, recipe, steps: int, epoch_steps: int):
    """Make the recipe's schedule over a phase; None for a constant rate."""
    schedulers = torch.optim.lr_scheduler
    rates = [group["lr"] for group in optimizer.param_groups]
    if recipe.schedule == "one_cycle":
        divisors = {"div_factor": recipe.start_divisor, "final_div_factor": recipe.final_divisor}
        return schedulers.OneCycleLR(optimizer, rates, steps, pct_start=recipe.warmup_fraction, **divisors)
    if recipe.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, steps)
    if recipe.schedule == "warm_restarts":
        first = recipe.restart_epochs * epoch_steps
        return schedulers.CosineAnnealingWarmRestarts(optimizer, first, recipe.restart_factor)
    if recipe.schedule == "plateau":
        settings = {"factor": recipe.plateau_factor, "patience": recipe.plateau_patience}
        return schedulers.ReduceLROnPlateau(optimizer, "max", **settings)
    return None


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing=0.0, positive_weight=1.0) -> torch.Tensor:
    """Return the binary cross-entropy of each image-level logit, (B,); a positive counts ``positive_weight`` times."""
    smoothed = labels * (1 - smoothing) + smoothing / 2
    weight = 1 + labels * (positive_weight - 1)
    return F.binary_cross_entropy_with_logits(logits.float().flatten(), smoothed, weight, reduction="none")
