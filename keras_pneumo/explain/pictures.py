"""Pictures of heat maps: the radiograph in grey, and beside it the same radiograph with the heat over it.

In: a radiograph, its heat, and perhaps another map of it, the true outline and a caption. Out: one colour picture. The
grey radiograph is shown too because heat hides what lies under it. "Research use only" is part of the picture, since
pictures get separated from their page.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.rendering import write_png
from keras_pneumo.data.radiographs.geometry import pad_to_square, placement_of
from keras_pneumo.evaluation.report.saliency_report import METHODS

SIDE = 512
"""Height and width of each picture side by side; smaller radiographs are enlarged to it."""

STRENGTH = 0.72
"""How much of the radiograph the hottest pixel hides, 0 to 1; less heat hides less, and no heat nothing."""

OUTLINE = (255, 210, 63)
"""The true outline's colour (red, green, blue), as in the reports."""

NOTICE = "Research use only"
_FOOT = 46
_GAP = 4


def colour_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay heat over a radiograph.

    Args:
        image: uint8 (S, S), grey.
        heat: float (S, S), 0 to 1.

    Returns:
        uint8 (S, S, 3): red, green, blue.
    """
    quantised = np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(quantised, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    cover = (STRENGTH * np.sqrt(np.clip(heat, 0, 1)))[..., None]  # the root, so that moderate heat is visible
    grey = np.repeat(image[..., None], 3, axis=2)
    return np.rint(grey * (1 - cover) + colours * cover).astype(np.uint8)


def overlay_heat_map(
    image: np.ndarray,
    heat: np.ndarray,
    caption: str = "",
    truth: rle.Runs | None = None,
    beside: np.ndarray | None = None,
    synthetic: bool = False,
) -> np.ndarray:
    """Draw one radiograph and its heat side by side.

    Args:
        image: uint8 (height, width).
        heat: float (S, S), 0 to 1, over the square that the image is padded to; any S.
        caption: a line under the pictures.
        truth: the true mask on the grid of 1024, outlined in every picture; None where it is not known.
        beside: another map, as ``heat``, that is laid over the radiograph a third time.
        synthetic: whether the network was trained on phantoms; the picture then says so.

    Returns:
        uint8 (SIDE + foot, 2 SIDE + gap, 3): red, green, blue; a SIDE and a gap wider with ``beside``. Padding is cut
        off, so that an image that is not square has fewer rows or narrower pictures.
    """
    shrinks = max(image.shape) > SIDE
    square = pad_to_square(image)
    grey = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    pictures = [np.repeat(grey[..., None], 3, axis=2)]
    for each in [heat] if beside is None else [heat, beside]:
        fitted = cv2.resize(each.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        pictures.append(colour_heat(grey, fitted))
    if truth is not None and rle.area(truth):
        scale = SIDE / rle.MASK_SIZE
        lines, _ = cv2.findContours(rle.draw(truth), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # Contours are drawn at sixteenths of a pixel, so that they are smooth.
        fine = [np.rint((line + 0.5) * (scale * 16) - 8).astype(np.int32) for line in lines]
        for picture in pictures:
            cv2.polylines(picture, fine, True, OUTLINE, 1, cv2.LINE_AA, shift=4)
    top, bottom, left, right = placement_of(image).box(SIDE)
    pictures = [picture[top:bottom, left:right] for picture in pictures]
    gap = np.zeros((bottom - top, _GAP, 3), np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    notice = f"Trained on phantoms. {NOTICE}" if synthetic else NOTICE
    return _with_foot(np.concatenate(parts, axis=1), caption, notice)


def caption(probability: float, method: str, stage: int, verdict: str = "") -> str:
    """The line under a picture: a verdict if there is one, the probability if it is known, and the map's name."""
    number = f"probability {probability:.3f}, " if math.isfinite(probability) else ""
    return f"{verdict}{': ' if verdict else ''}{number}{METHODS[method]} of stage {stage}"


def write_overlay(path: Path, picture: np.ndarray) -> None:
    """Write a picture of :func:`overlay_heat_map` as PNG.

    Raises:
        PneumoError: it cannot be written.
    """
    write_png(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), durable=False)


def _with_foot(picture: np.ndarray, caption: str, notice: str) -> np.ndarray:
    """A dark strip below with the caption on the left and the notice on the right."""
    width = picture.shape[1]
    foot = Image.new("RGB", (width, _FOOT), (14, 16, 19))
    draw = ImageDraw.Draw(foot)
    font = ImageFont.load_default(17)
    room = width - 28 - draw.textlength(notice, font=font) - 24
    while caption and draw.textlength(caption, font=font) > room:
        caption = caption[:-2].rstrip(" .…") + "…"
    draw.text((14, _FOOT / 2), caption, font=font, fill=(225, 229, 234), anchor="lm")
    draw.text((width - 14, _FOOT / 2), notice, font=font, fill=(242, 154, 140), anchor="rm")
    return np.concatenate([picture, np.asarray(foot)])
