"""A classifier's operating threshold on the disk, in the file that holds a segmenter's rule for masks.

Like the rule it is fitted on validation, kept with the best weights during the training, and fitted again by all that
predicts (mirror images, several checkpoints) when the training is done.
"""

from __future__ import annotations

import json
from pathlib import Path

from keras_pneumo.data.files import write_json
from keras_pneumo.prediction.postprocess import FILE


def write_threshold(folder: Path, threshold: float, images: int) -> None:
    """Write ``postprocess.json``: the threshold on the probability, and on how many images it was fitted."""
    write_json(folder / FILE, {"threshold": threshold, "fitted_on_validation": {"images": images}})


def read_threshold(folder: Path) -> float | None:
    """The threshold of a folder's ``postprocess.json``; None where there is none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["threshold"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(found) if isinstance(found, int | float) and 0 <= found <= 1 else None
