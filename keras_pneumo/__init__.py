"""Pneumothorax on chest radiographs: Keras twins of PyTorch's networks, and an honest referee. Research use only.

``import keras_pneumo as kp`` gives the names of ``__all__``; ``docs/python.md`` shows each at work. A name is imported
when it is first used, and TensorFlow with the first name that needs it, so the import itself takes no time.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_pneumo.api import (
        Prepared,
        Run,
        build_classifier,
        build_unet,
        compare,
        evaluate,
        load_detector,
        load_prepared,
        load_run,
        prepare,
        read_radiograph,
        score,
        train,
        write_phantoms,
    )
    from keras_pneumo.config import CLASSIFIER, SEGMENTER, Augmentation, Experiment
    from keras_pneumo.errors import PneumoError
    from keras_pneumo.evaluation.scoring.masks import dice

__version__ = "0.1.0"

__all__ = [
    "CLASSIFIER",
    "SEGMENTER",
    "Augmentation",
    "Experiment",
    "PneumoError",
    "Prepared",
    "Run",
    "build_classifier",
    "build_unet",
    "compare",
    "dice",
    "evaluate",
    "load_detector",
    "load_prepared",
    "load_run",
    "prepare",
    "read_radiograph",
    "score",
    "train",
    "write_phantoms",
]

_MODULES = {
    "CLASSIFIER": "config",
    "SEGMENTER": "config",
    "Augmentation": "config",
    "Experiment": "config",
    "PneumoError": "errors",
    "dice": "evaluation.scoring.masks",
}
"""Where a public name is defined, if not in ``api``."""

# TensorFlow reads this when it is first imported. It leaves oneDNN off on x86 CPUs without AVX-512, where it nearly
# doubles the training speed.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# TensorFlow's C++ side calls a missing GPU an error, and buries our own lines in notices. What matters reaches us as an
# exception all the same; set the variable to 0 to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'api')}"), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    """The public names, those not imported yet included."""
    return sorted({*globals(), *__all__})
