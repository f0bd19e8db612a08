"""Draws a sheet of small radiographs with their masks outlined, for a person to look at before training.

In comes a prepared folder, out comes one PNG: a strip of images for each subset and label. A transposed, mirrored or
shifted mask, an inverted image or a wrong label is seen at once. Captions name no patient.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.data.prepared.rendering import write_png
from keras_pneumo.data.prepared.split import SUBSETS
from keras_pneumo.errors import PneumoError

RESEARCH_USE = "Research use only. Not for diagnosis."

_TILE = 224
"""Side of one image on the sheet, in pixels."""
_ENOUGH = 256
"""Prepared size that is large enough for a tile: a larger one would only take longer."""
_COLUMNS = 8
_GAP, _CAPTION, _HEADING, _TOP = 10, 40, 34, 64
_BACKGROUND, _INK, _FAINT, _OUTLINE = (24, 26, 30), (236, 236, 236), (168, 172, 180), (255, 176, 0)
_SMALL_RADIUS = 4
"""A piece of mask within so many pixels on the sheet gets a ring around it."""
_ID_TAIL = 22
"""Characters of an image id that are shown: SIIM's ids differ only at their end."""


def draw_contact_sheet(
    prepared: PreparedFolder, out: Path, size: int | None = None, per_group: int = 8, seed: int = 0
) -> Path:
    """Draw up to ``per_group`` positives and as many negatives of each subset, masks outlined in orange.

    Args:
        prepared: the folder.
        out: the PNG to write.
        size: prepared size to draw from; None: the smallest from 256 on, or else the largest.
        per_group: images per subset and label.
        seed: another seed shows other images.

    Returns:
        ``out``.

    Raises:
        PneumoError: the size was not prepared, a needed file is damaged, ``per_group`` is below 1, or ``out`` cannot be
            written.
    """
    if per_group < 1:
        raise PneumoError(f"A contact sheet shows at least one image per group, not {per_group}.")
    if size is None:
        sizes = prepared.manifest["sizes"]
        size = min((side for side in sizes if side >= _ENOUGH), default=max(sizes))
    cases = prepared.cases.set_index("image_id")
    share_of = (100.0 * cases["mask_pixels"] / rle.MASK_SIZE**2).to_dict()
    strips: list[tuple[str, list[str]]] = []
    for subset in SUBSETS:
        ids = prepared.subset(subset)
        for label, label_text in ((1, "pneumothorax"), (0, "no pneumothorax")):
            of_label = [image_id for image_id in ids if cases.at[image_id, "pneumothorax"] == label]
            chosen = _pick(of_label, per_group, seed)
            heading = f"{subset}: {label_text}, {len(chosen)} of {len(of_label)}"
            starts = range(0, max(len(chosen), 1), _COLUMNS)
            strips += [(heading if start == 0 else "", chosen[start : start + _COLUMNS]) for start in starts]
    verify_files(prepared, size, [image_id for _, ids in strips for image_id in ids])

    columns = max(3, *(len(ids) for _, ids in strips))  # three are wide enough for the title
    height = _TOP + len(strips) * (_HEADING + _TILE + _CAPTION) + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_TILE + _GAP), height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    title = f"{len(cases)} radiographs, {int(cases['pneumothorax'].sum())} with pneumothorax, {size} x {size} pixels"
    if prepared.synthetic:
        title = f"Synthetic (phantoms): {title}"
    pen.text((_GAP, 10), title, _INK, font=ImageFont.load_default(20))
    pen.text((_GAP, 38), f"{RESEARCH_USE} Outline: the reference mask.", _OUTLINE, font=ImageFont.load_default(15))
    for row, (heading, ids) in enumerate(strips):
        top = _TOP + row * (_HEADING + _TILE + _CAPTION)
        pen.text((_GAP, top + 8), heading, _INK, font=ImageFont.load_default(17))
        for column, image_id in enumerate(ids):
            left = _GAP + column * (_TILE + _GAP)
            share = share_of[image_id]
            sheet.paste(_tile(prepared, image_id, size), (left, top + _HEADING))
            vanished = image_id in prepared.manifest["vanished"].get(str(size), [])
            mask_text = f"mask {share:.2f}%" + (f", none left at {size}" if vanished else "") if share else "no mask"
            _caption(pen, (left, top + _HEADING + _TILE + 3), image_id, mask_text)
    write_png(Path(out), cv2.cvtColor(np.asarray(sheet), cv2.COLOR_RGB2BGR))
    return Path(out)


def _pick(image_ids: list[str], count: int, seed: int) -> list[str]:
    """``count`` of the ids in an order that depends on the seed alone."""
    return sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())[:count]


def _tile(prepared: PreparedFolder, image_id: str, size: int) -> Image.Image:
    image = _read_grey(prepared.image_path(image_id, size))
    picture = cv2.cvtColor(cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2RGB)
    path = prepared.mask_path(image_id, size)
    if path.exists():
        mask = _read_grey(path)
        # Every pixel that the mask touches counts, so that a mask of a few pixels stays on the sheet.
        small = (cv2.resize(mask, (_TILE, _TILE), interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
        outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _OUTLINE, 1, cv2.LINE_8)
        for outline in outlines:
            (x, y), radius = cv2.minEnclosingCircle(outline)
            if radius < _SMALL_RADIUS:
                cv2.circle(picture, (round(x), round(y)), 2 * _SMALL_RADIUS, _OUTLINE, 1, cv2.LINE_AA)
    return Image.fromarray(picture)


def _read_grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _caption(pen: ImageDraw.ImageDraw, corner: tuple[int, int], image_id: str, second_line: str) -> None:
    tail = image_id if len(image_id) <= _ID_TAIL else "..." + image_id[-_ID_TAIL:]
    pen.text(corner, tail, _INK, font=ImageFont.load_default(14))
    pen.text((corner[0], corner[1] + 17), second_line, _FAINT, font=ImageFont.load_default(14))
