"""A training step: ours, as ``keras-pneumo train`` takes it, against PyTorch's, tuned.

The same networks (torchvision's ResNet50 and smp's U-Net, to which ours are equal weight for weight), the same losses,
AdamW, float32, on a batch that stays the same, so that reading and augmentation do not count. Ours is deterministic, as
training is by default. PyTorch gets what an expert would give it: channels-last, fused AdamW, malloc that keeps its
memory, threads that sleep on a shared machine; the rows named "compiled" add ``torch.compile``, whose compilation
takes minutes and does not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from measuring import Row, Worker

HERE = Path(__file__).resolve().parent
NETWORKS = {"classifier": ("ResNet50", 16, 4), "segmenter": ("U-Net on ResNet50", 8, 4)}
"""Name, batch size, and steps of a run at 128 pixels; a quarter of them at 256."""


def rows(lab: Lab) -> Iterator[Row]:
    """Both networks at 128 and 256 pixels; at 256 also against PyTorch compiled."""
    for task in NETWORKS:
        for size, compiled in ((128, False), (256, False), (256, True)):
            yield row(lab, task, size, compiled)


def row(lab: Lab, task: str, size: int, compiled: bool, encoder: str = "resnet50") -> Row:
    """One row."""
    name, batch, steps = NETWORKS[task]
    steps = max(steps * 128 * 128 // size**2, 1)
    options = ["--task", task, "--encoder", encoder, "--size", str(size), "--batch", str(batch)]
    theirs = [lab.torch_python or "", HERE / "torch_step.py", *options]
    waits = "default OpenMP" if lab.quiet else "OMP_WAIT_POLICY=PASSIVE"
    return Row(
        f"training step, {name}, {size} px, batch {batch}{', PyTorch compiled' if compiled else ''}",
        "images/s",
        1.0,
        Worker([lab.python, HERE / "keras_step.py", *options], steps, lab.environment, warm_up=2),
        Worker([*theirs, *(["--compile"] if compiled else [])], steps, lab.torch_environment, warm_up=2),
        f"PyTorch channels-last, fused AdamW, malloc tuned, {waits}{', torch.compile' if compiled else ''}.",
        unmeasurable=lab.missing(lab.torch_python, "torch", "torchvision", "segmentation-models-pytorch"),
    )
