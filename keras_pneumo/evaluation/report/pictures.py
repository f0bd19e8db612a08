"""Radiographs and outlines for a page: small, inside the page, and sharp at any size.

In: a grey image as uint8 array, masks as runs. Out: a ``data:`` address of a JPEG, and outlines as SVG paths on the
1024 grid that lie over it. Outlines stay lines, so a reader can switch them off and see the radiograph beneath.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError

ImageLoader = Callable[[str], np.ndarray]
"""Gives the radiograph of an image id: uint8, shape (height, width), black air."""


def data_uri(image: np.ndarray, side: int = 384, quality: int = 82) -> str:
    """A grey image as a ``data:image/jpeg`` address, its longer side at most ``side`` pixels.

    Raises:
        PneumoError: it is not a uint8 array of two dimensions.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise PneumoError(f"A radiograph must be a grey uint8 image, not {image.dtype} of shape {image.shape}.")
    scale = side / max(image.shape)
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PneumoError("A radiograph could not be packed as JPEG for the report.")
    return "data:image/jpeg;base64," + base64.b64encode(packed.tobytes()).decode()


def outline(runs: rle.Runs, tolerance: float = 1.5) -> str:
    """The mask's outline as an SVG path on the 1024 grid, holes included; '' for an empty mask.

    Args:
        runs: the mask.
        tolerance: how far, in pixels of the grid, the simplified line may stray.
    """
    contours, _ = cv2.findContours(rle.draw(runs), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    path = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, closed=True).reshape(-1, 2)
        path.append("M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z")
    return "".join(path)
