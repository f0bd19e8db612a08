"""Reads PNG and JPEG files as grey radiographs.

In comes a path, out comes a :class:`~.radiograph.Radiograph` whose ``image_id`` is the file's stem.
Orientation tags (EXIF) are ignored on purpose: masks refer to the pixels as stored.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from keras_pneumo.data.radiographs.completeness import ENDS_EARLY, ends_early
from keras_pneumo.data.radiographs.radiograph import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    Radiograph,
    UnreadableImage,
    check_size,
    stretch,
)
from keras_pneumo.errors import PneumoError

_FORMATS = ("PNG", "JPEG")
_GREY_8 = ("L", "1")
_GREY_16 = ("I;16", "I;16B", "I;16L", "I")
_COLOUR = ("RGB", "RGBA", "LA", "P")


def read_limited(path: Path) -> bytes:
    """All bytes of a file that is not empty and not larger than :data:`MAX_FILE_BYTES`.

    Raises:
        UnreadableImage: it is, or it cannot be opened.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever, a device would never end
            raise UnreadableImage("it is a pipe, a device or a socket; only regular files are read")
        size = status.st_size
        if size == 0:
            raise UnreadableImage("the file is empty")
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(f"the file has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read: {error.strerror or error}") from error


def decode_image(data: bytes, image_id: str) -> Radiograph:
    """The radiograph in the bytes of a PNG or JPEG file; ``stem`` is its id.

    Grey of 8 bits is taken as it is; grey of 16 bits is stretched from its smallest to its largest value (see
    :func:`~.radiograph.stretch`). A colour file is accepted when its three channels are equal.

    Raises:
        UnreadableImage: not a PNG or JPEG, damaged, too large, or in real colour.
    """
    # Pillow fills the rest of a truncated image with grey when another library has set this flag.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            # Our own limit is checked next, from the header; Pillow's comes as a warning first.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                check_size(picture.height, picture.width)
                if getattr(picture, "n_frames", 1) != 1:
                    raise UnreadableImage("it holds several frames; one radiograph per file is read")
                pixels = _grey(picture)
                if picture.format == "JPEG" and ends_early(data, pixels):
                    raise UnreadableImage(ENDS_EARLY)
                return Radiograph(pixels, image_id)
    except PneumoError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(f"its header gives far more than the {MAX_PIXELS} pixels that are decoded") from None
    except UnidentifiedImageError:
        raise UnreadableImage("it is neither a PNG nor a JPEG file, whatever its name says") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and zlib.error
        raise UnreadableImage(f"its pixels cannot be decoded: {_first_line(error)}") from error


def _grey(picture: Image.Image) -> np.ndarray:
    """uint8, shape (height, width)."""
    if picture.mode in _GREY_8:
        return np.array(picture.convert("L"))
    if picture.mode in _GREY_16:
        return stretch(np.array(picture))
    if picture.mode in _COLOUR:
        channels = np.array(picture.convert("RGBA"))
        if (channels[..., 3] != 255).any():
            raise UnreadableImage("it has transparent pixels; a radiograph has none")
        red, green, blue = channels[..., 0], channels[..., 1], channels[..., 2]
        if (red != green).any() or (red != blue).any():
            raise UnreadableImage("it is in colour; a grey radiograph is expected")
        return np.ascontiguousarray(red)
    raise UnreadableImage(f"its pixels are of the kind {picture.mode!r}; grey of 8 or 16 bits is expected")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
