"""Worker: training steps of PyTorch, as an expert would take them, on the PyTorch team's networks and losses.

Channels-last, fused AdamW, autocast and a scaled loss for ``--precision mixed_float16``, ``torch.compile`` when asked
for. Of one batch that stays the same, or with ``--data`` of the PyTorch team's own loader over a prepared folder; then
the answer also has ``data_seconds``. Run by PyTorch's environment; imports nothing of keras_pneumo.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker import UnmeasurableError, serve, step_parser

TEAM = Path(__file__).resolve().parents[1] / "torch_team"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Read the command line and serve."""
    parser = step_parser()
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    serve(lambda: set_up(given))


def set_up(given: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """The network, its optimizer and its batches, ready; gives the function that takes steps."""
    import torch
    from torch.nn import functional

    if given.gpu and not torch.cuda.is_available():
        raise UnmeasurableError("PyTorch has no GPU here")
    sys.path.insert(0, str(TEAM))
    from losses import mask_loss

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    network = build(given).to(device, memory_format=torch.channels_last).train()
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    dtype = {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}.get(given.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    forward = torch.compile(network) if given.compile else network
    batches = iter(real_batches(given) if given.data else one_batch(given, device))

    def step(images: Any, target: Any) -> Any:
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
            logits = forward(pixels)
        if given.task == "classifier":
            loss = functional.binary_cross_entropy_with_logits(logits.float(), target)
        else:
            loss = mask_loss("3 bce + 1 dice + 4 focal", logits.float(), target).mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    def run(count: int) -> dict[str, float]:
        waited = 0.0
        for _ in range(count):
            began = time.perf_counter()
            images, target = next(batches)
            waited += time.perf_counter() - began
            loss = step(images, target)
        loss.item()  # wait for the device
        return {"work": count * given.batch, "data_seconds": waited, "flops": flops}

    flops = 0.0
    if given.gpu:
        from torch.utils.flop_counter import FlopCounterMode

        plain, forward = forward, network  # counted without the compiler
        with FlopCounterMode(display=False) as counter:
            step(*next(batches))
        flops, forward = counter.get_total_flops() / given.batch, plain
    return run


def build(given: argparse.Namespace) -> Any:
    """torchvision's ResNet with one logit, or smp's U-Net, at random."""
    if given.task == "classifier":
        import torch
        import torchvision

        network = getattr(torchvision.models, given.encoder)(weights=None)
        network.fc = torch.nn.Linear(network.fc.in_features, 1)
        return network
    import segmentation_models_pytorch as smp

    return smp.Unet(given.encoder, encoder_weights=None, classes=1)


def one_batch(given: argparse.Namespace, device: Any) -> Iterator[Any]:
    """One batch, again and again: noise, with a square as the mask."""
    import torch

    images = torch.rand(given.batch, 1, given.size, given.size, device=device)
    if given.task == "classifier":
        target = (torch.arange(given.batch, device=device) % 2).float()[:, None]
    else:
        target = torch.zeros_like(images)
        target[:, :, : given.size // 4, : given.size // 4] = 1
    while True:
        yield images, target


def real_batches(given: argparse.Namespace) -> Iterator[Any]:
    """The PyTorch team's batches of a prepared folder, augmented, epoch after epoch."""
    import data

    ranges = {"flip": 0.5, "shift": 0.05, "scale": 0.1, "rotate": 10.0, "brightness": 0.1, "contrast": 0.2}
    augmentation = SimpleNamespace(**ranges, gamma=0.2, noise=0.0, clahe=0.0)
    experiment = SimpleNamespace(seed=0, global_batch_size=given.batch, positive_rate=(), augmentation=augmentation)
    tables, _ = data.read_subsets(given.data, 0)
    masks = given.task == "segmenter"
    table = tables["train"]
    table = table.iloc[: len(table) // given.batch * given.batch]  # whole batches only: a new shape is compiled anew
    source = data.Radiographs(given.data, table, given.size, masks, augmentation, None, 0)
    sampler = data.Draws(source.labels, experiment)
    loader = data.batches(source, sampler)
    for epoch in range(1000):
        sampler.epoch = epoch
        for images, labels, drawn in loader:
            yield images, drawn if masks else labels[:, None]


if __name__ == "__main__":
    main()
