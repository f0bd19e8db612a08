"""Writes one radiograph and its mask as PNG files at every size, from one decode.

In comes a :class:`Job`, out comes a :class:`Rendered` with the hash of each file written. It runs in worker processes
and is a module of its own for that: they import no pandas. A file that cannot be read comes back as a reason, not as an
exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.geometry import proportions_fault, resize_image, resize_mask, shape_fault
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes, sha256_file, write_bytes

_FILTER_UP = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP) if hasattr(cv2, "IMWRITE_PNG_FILTER") else ()
"""Each row as its difference to the row above. OpenCV 4.10 chooses itself: the same pixels in other bytes."""

_IMAGE_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *_FILTER_UP,
]
"""How radiographs become PNG files, fixed so that the same pixels give the same bytes. Their noise never repeats, so
looking for repetitions, which takes most of zlib's time, finds chance ones and even makes the file larger: on real
radiographs at 512 pixels this takes 2.0 ms for 110 kB, zlib's levels 1, 3 and 9 take 4.9, 8.0 and 50 ms for 121, 118
and 103 kB; reading it back takes 1.3 ms in place of 2.2."""

_MASK_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *_FILTER_UP,
]
"""Likewise for masks, which are long runs of one value: 0.5 ms for 1.5 kB, where level 3 takes 1.7 ms for 2.0 kB."""


@dataclass(frozen=True)
class Job:
    """What a worker needs for one image."""

    path: Path
    image_id: str
    runs: rle.Runs
    sizes: tuple[int, ...]
    out: Path
    any_view: bool = False
    """Whether a file is taken that says it is no frontal radiograph of the chest."""
    mask_shapes: tuple[tuple[int, int], ...] = ()
    """Rows and columns on which the mask was drawn, where it was not on the canonical frame."""


@dataclass
class Rendered:
    """The result for one image, as the journal keeps it."""

    image_id: str
    pixels_sha256: str = ""
    """Of the decoded pixels before resizing: the same whatever sizes are written."""
    sex: str = ""
    age: float | None = None
    view: str = ""
    rows: int | None = None
    columns: int | None = None
    """Both of the file; None in what was prepared before radiographs of any shape were."""
    pixel_spacing_mm: float | None = None
    files: dict[str, str] = field(default_factory=dict)
    """Path inside the prepared folder -> SHA-256."""
    vanished: list[int] = field(default_factory=list)
    """Sizes at which a positive's mask has no pixel left."""
    error: str = ""


def image_name(image_id: str, size: int) -> str:
    """Path of an image inside the prepared folder."""
    return f"images_{size}/{image_id}.png"


def mask_name(image_id: str, size: int) -> str:
    """Path of a positive's mask inside the prepared folder."""
    return f"masks_{size}/{image_id}.png"


def expected_names(image_id: str, size: int, has_mask: bool) -> list[str]:
    """Every file that an image has at one size."""
    return [image_name(image_id, size), mask_name(image_id, size)] if has_mask else [image_name(image_id, size)]


def intact_files(folder: Path, files: dict[str, str]) -> set[str]:
    """Those of ``files`` (path in the folder -> SHA-256) that are there and unchanged."""

    def is_intact(item: tuple[str, str]) -> bool:
        try:
            return sha256_file(folder / item[0]) == item[1]
        except OSError:
            return False

    with ThreadPoolExecutor() as threads:  # hashing and reading leave the interpreter's lock
        items = list(files.items())
        return {item[0] for item, intact in zip(items, threads.map(is_intact, items), strict=True) if intact}


def render(job: Job) -> Rendered:
    """Decode one image, write it and its mask at all sizes.

    Raises:
        PneumoError: a file cannot be written; that is no fault of the image, so it ends the whole run.
    """
    try:
        radiograph = read_radiograph(job.path)
        if reason := shape_fault(radiograph.pixels):
            raise UnreadableImage(reason)
        if radiograph.other_view and not job.any_view:
            raise UnreadableImage(f"{radiograph.other_view}; --any-view lets it in")
        for shape in job.mask_shapes:
            if reason := proportions_fault(shape, (radiograph.pixels.shape[0], radiograph.pixels.shape[1])):
                raise UnreadableImage(reason)
    except UnreadableImage as error:
        return Rendered(job.image_id, error=str(error))
    rendered = Rendered(
        job.image_id,
        pixels_sha256=sha256_bytes(np.ascontiguousarray(radiograph.pixels).data),
        sex=radiograph.sex,
        age=radiograph.age,
        view=radiograph.view,
        rows=radiograph.pixels.shape[0],
        columns=radiograph.pixels.shape[1],
        pixel_spacing_mm=radiograph.pixel_spacing_mm,
    )
    mask = rle.draw(job.runs) if rle.area(job.runs) else None
    for size in job.sizes:  # files are not flushed one by one: each one's hash is checked before it is used or kept
        name = image_name(job.image_id, size)
        rendered.files[name] = write_png(
            job.out / name, resize_image(radiograph.pixels, size), _IMAGE_PNG, durable=False
        )
        if mask is not None:
            small = resize_mask(mask, size)
            name = mask_name(job.image_id, size)
            rendered.files[name] = write_png(job.out / name, small * np.uint8(255), _MASK_PNG, durable=False)
            if not small.any():
                rendered.vanished.append(size)
    return rendered


def write_png(path: Path, image: np.ndarray, settings: Sequence[int] = (), durable: bool = True) -> str:
    """Write a PNG; returns the hash of its bytes.

    Args:
        path: of the file.
        image: uint8 (H, W), or (H, W, 3) in blue, green, red.
        settings: OpenCV's, of its compression.
        durable: whether it must outlast a power cut from now on.

    Raises:
        PneumoError: OpenCV cannot, or the disk is full, read-only or closed to us.
    """
    encoded, data = cv2.imencode(".png", image, settings)
    if not encoded:
        raise PneumoError(f"OpenCV could not write {path.name} as PNG. Install opencv-python-headless again.")
    return write_bytes(path, data.tobytes(), durable=durable)
