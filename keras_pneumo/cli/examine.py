"""Examines this machine for `doctor`: one line for each thing it has or lacks, with what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from keras_pneumo import __version__
from keras_pneumo.data.radiographs.decoders import decoder_report
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow

PACKAGES = ("numpy", "pandas", "scikit-learn", "opencv-python-headless", "pydicom", "pycocotools")
TESTED_PYTHON = ((3, 11), (3, 13))
ENOUGH_MEMORY = 8e9
ENOUGH_DISK = 10e9
"""The full SIIM-ACR set is 1.9 GB as DICOM, and as much again prepared at 512 and 256."""


@dataclass(frozen=True)
class MachineCheck:
    """One line that `doctor` prints."""

    subject: str
    state: Literal["ok", "note", "fault"]
    text: str
    advice: str = ""


def examine(folder: Path) -> list[MachineCheck]:
    """Look at versions, devices, decoders, memory, and the disk under ``folder``."""
    return [
        _python(),
        *_packages(),
        *_engine(),
        *_decoders(),
        _memory(),
        _disk(folder),
    ]


def _python() -> MachineCheck:
    version = sys.version_info[:2]
    text = f"keras-pneumo {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if TESTED_PYTHON[0] <= version <= TESTED_PYTHON[1]:
        return MachineCheck("python", "ok", text)
    low, high = (".".join(map(str, end)) for end in TESTED_PYTHON)
    return MachineCheck("python", "note", text, f"TensorFlow has wheels for Python {low} to {high}; use one of these.")


def _packages() -> list[MachineCheck]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return [MachineCheck("packages", "ok", versions)]


def _engine() -> list[MachineCheck]:
    """TensorFlow, Keras, the devices they see, and how a training would use them."""
    if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("keras") is None:
        advice = "To train or predict: pip install 'keras-pneumo[train]'. Scoring and preparing need neither."
        return [MachineCheck("training", "note", "TensorFlow and Keras are not installed", advice)]
    import_tensorflow(for_command=True)
    import keras
    import tensorflow as tf

    findings = [MachineCheck("training", "ok", f"TensorFlow {tf.__version__}, Keras {keras.__version__}")]
    if keras.backend.backend() != "tensorflow":
        findings.append(
            MachineCheck(
                "backend", "fault", f"Keras runs on {keras.backend.backend()}", "Set KERAS_BACKEND=tensorflow."
            )
        )
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
        findings.append(MachineCheck("devices", "ok", f"{len(gpus)} GPU: {', '.join(names)}"))
    else:
        advice = ""
        if shutil.which("nvidia-smi"):
            advice = "nvidia-smi is here, but TensorFlow sees no GPU: pip install 'tensorflow[and-cuda]'."
        onednn = "on" if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1" else "off"
        if onednn == "off":
            advice += " Set TF_ENABLE_ONEDNN_OPTS=1: training is nearly twice as fast."
        text = f"no GPU; {psutil.cpu_count(logical=False) or 1} CPU cores, oneDNN {onednn}"
        findings.append(MachineCheck("devices", "note" if advice else "ok", text, advice.strip()))
    findings.append(_strategy(len(gpus)))
    return findings


def _strategy(gpus: int) -> MachineCheck:
    """What ``train --strategy auto`` would run on, by the same choice."""
    from keras_pneumo.training.distributed.cluster import choose_strategy

    try:
        return MachineCheck("strategy", "ok", choose_strategy("auto", os.environ, gpus).description)
    except PneumoError as fault:
        return MachineCheck("strategy", "fault", "the workers cannot be determined", str(fault))


def _decoders() -> list[MachineCheck]:
    findings = []
    for decoder in decoder_report():
        advice = "" if decoder.available else f"pip install {decoder.package}, to read files stored this way."
        text = f"{decoder.name}: {decoder.plugin}" if decoder.available else f"{decoder.name}: cannot be read"
        findings.append(MachineCheck("decoder", "ok" if decoder.available else "fault", text, advice))
    return findings


def _memory() -> MachineCheck:
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available >= ENOUGH_MEMORY:
        return MachineCheck("memory", "ok", text)
    return MachineCheck("memory", "note", text, "Under 8 GB, use an image size of 256 and a small batch.")


def _disk(folder: Path) -> MachineCheck:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free under {folder}"
    if not os.access(folder, os.W_OK):
        return MachineCheck("disk", "fault", text, f"You may not write in {folder}; choose another folder.")
    if free >= ENOUGH_DISK:
        return MachineCheck("disk", "ok", text)
    return MachineCheck("disk", "note", text, "The full SIIM-ACR set needs about 10 GB, prepared at two sizes.")
