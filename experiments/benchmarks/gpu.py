"""Training on a GPU in mixed precision: ours against PyTorch with autocast, channels-last and ``torch.compile``.

Ours on TensorFlow, as ``keras-pneumo train`` runs; and, where there is JAX, the same networks, losses, optimizer and
input on Keras's JAX backend, which says what the code costs rather than the engine.

Fed from a prepared folder of phantoms with augmentation, each side by its own input, so a network that waits for data
shows; the seconds waited, the share of them and the share of the GPU's peak stand beside the speeds. Without a GPU the
rows say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from measuring import Row, Worker

HERE = Path(__file__).resolve().parent
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "V100": 125e12, "T4": 65e12}
"""Dense float16 operations per second of NVIDIA's data sheets, by a part of the GPU's name."""
IMAGES = 310
SIZES = (256, 512)


def rows(lab: Lab) -> Iterator[Row]:
    """ResNet50 and the U-Net on it, at 256 and 512 pixels."""
    for task, name, batch in (("classifier", "ResNet50", 64), ("segmenter", "U-Net on ResNet50", 32)):
        for size in SIZES:
            for script in ("keras_step.py", "jax_step.py"):
                yield row(lab, task, name, size, batch, script=script)


def row(
    lab: Lab,
    task: str,
    name: str,
    size: int,
    batch: int,
    encoder: str = "resnet50",
    gpu: bool = True,
    script: str = "keras_step.py",
) -> Row:
    """One row; without ``gpu`` and small it runs on a CPU, for the test."""
    folder = lab.folder / "-".join([f"phantoms-gpu-{IMAGES}-prepared", *map(str, SIZES)])

    def prepare() -> None:
        lab.prepared(lab.phantoms(IMAGES, "--size-scale", "6", name=f"phantoms-gpu-{IMAGES}"), *SIZES)

    options = ["--task", task, "--encoder", encoder, "--size", str(size), "--batch", str(batch), "--data", folder]
    options += ["--precision", "mixed_float16", "--gpu"] if gpu else []
    engine = "tensorflow" if script == "keras_step.py" else "jax"
    reason = lab.missing(lab.python, engine)
    reason = reason or lab.missing(lab.torch_python, "torch", "torchvision", "segmentation-models-pytorch")
    theirs = [lab.torch_python or "", HERE / "torch_step.py", *options, *(["--compile"] if gpu else [])]
    where = "training on a GPU" + (", Keras on JAX" if engine == "jax" else "")
    return Row(
        f"{where}, {name}, {size} px, batch {batch}, mixed precision",
        "images/s",
        1.0,
        Worker([lab.python, HERE / script, *options], 10, lab.environment, warm_up=10),
        Worker(theirs, 10, lab.torch_environment, warm_up=10),
        f"Each side fed by its own input from {IMAGES} phantoms.",
        prepare=prepare,
        unmeasurable="this machine has no GPU" if gpu and not lab.gpu else reason,
        finish=lambda result: shares(result, lab.gpu),
    )


def shares(result: dict, gpu: str) -> dict:
    """The share of time that each side waited for data, and the share of the GPU's peak, where it is known."""
    peak = next((value for part, value in PEAKS.items() if part in gpu), None)
    flops = result["theirs"].get("flops", 0.0)
    parts = []
    for side, label in (("ours", "ours"), ("theirs", "PyTorch")):
        figures = result[side]
        figures["waited_share"] = figures["data_seconds"] / figures["seconds"]
        text = f"{label} waited for data {figures['waited_share']:.0%} of the time"
        if peak and flops:
            figures["peak_share"] = figures["speed"] * flops / peak
            text += f" and reached {figures['peak_share']:.0%} of the peak"
        parts.append(text)
    where = f"{gpu}: " if gpu else ""
    return {"note": f"{result['note']} {where}{'; '.join(parts)}."}
