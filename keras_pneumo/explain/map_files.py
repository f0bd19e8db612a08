"""Raw heat maps in a file, so that those of the PyTorch twin can be scored beside ours.

``maps.npz``: ``image_ids`` (n,), ``maps`` float32 (n, h, w) with their sign on the stage's grid, ``logits`` (n,),
``method`` and ``stage``. ``experiments/torch_team/gradcam.py`` reads such a file and writes one.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.gradcam import RawMaps
from keras_pneumo.storage.files import write_bytes

MAPS = "maps.npz"
_NAMES = ("image_ids", "maps", "logits", "method", "stage")


def write_maps(path: Path, image_ids: Sequence[str], raw: RawMaps, method: str, stage: int) -> None:
    """Write the maps of some images.

    Raises:
        PneumoError: the file cannot be written.
    """
    content = io.BytesIO()
    names = np.array(list(image_ids), dtype=np.str_)
    np.savez_compressed(content, image_ids=names, maps=raw.maps, logits=raw.logits, method=method, stage=stage)
    write_bytes(path, content.getvalue())


def read_twin_maps(path: Path, image_ids: Sequence[str], method: str, stage: int, grid: Sequence[int]) -> RawMaps:
    """Read the twin's maps of these images, in their order.

    Args:
        path: the file.
        image_ids: which images.
        method: of our maps.
        stage: of our maps.
        grid: height and width of ours.

    Raises:
        PneumoError: the file cannot be read, or its maps are of another method, stage, grid or of other images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PneumoError(
            f"{path} holds no maps ({error}); it needs {', '.join(_NAMES)}, as experiments/torch_team/gradcam.py "
            "writes them."
        ) from error
    twin_method, twin_stage = str(arrays["method"]), int(arrays["stage"])
    if (twin_method, twin_stage) != (method, stage):
        raise PneumoError(
            f"The maps in {path} are {twin_method} of stage {twin_stage}, ours {method} of stage {stage}. Give "
            f"--method {twin_method} --stage {twin_stage}, or make theirs again."
        )
    row_of = {str(image_id): row for row, image_id in enumerate(arrays["image_ids"])}
    missing = [image_id for image_id in image_ids if image_id not in row_of]
    if missing:
        raise PneumoError(
            f"{path} has no map of {len(missing)} of the {len(image_ids)} images; first {missing[0]}. "
            "Make the maps of all images again."
        )
    rows = [row_of[image_id] for image_id in image_ids]
    maps, logits = np.asarray(arrays["maps"], np.float32), np.asarray(arrays["logits"], np.float32).reshape(-1)
    if maps.ndim != 3 or len(maps) != len(row_of) or maps.shape[1:] != tuple(grid) or len(logits) != len(row_of):
        raise PneumoError(
            f"The maps in {path} have the shape {maps.shape}; {len(row_of)} images need {(len(row_of), *grid)}."
        )
    if not np.isfinite(maps).all():
        raise PneumoError(f"The maps in {path} hold values that are not finite. Make the maps again.")
    return RawMaps(maps[rows], logits[rows])
