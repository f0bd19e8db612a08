"""Tells whether a compressed image is whole where its decoder fills what is missing and says nothing.

A code stream that was cut short and closed again with its last marker has a valid header and a valid end. Decoders
then fill the missing rows with one grey. JPEG 2000 and run lengths are not in here, since their decoders refuse such
streams, nor is JPEG-LS, which CharLS reads to its last bit (:data:`~.decoders.DECODERS`).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from keras_pneumo.data.radiographs.decoders import JPEG_EXTENDED, JPEG_LOSSLESS

END = b"\xff\xd9"
"""The last marker of JPEG and JPEG-LS (EOI, T.81) and of JPEG 2000 (EOC, T.800); it occurs nowhere within the data."""

ENDS_EARLY = "its data end before its last pixel, so it was cut short or is damaged"
"""The reason where :func:`ends_early` is true."""

_NO_CODE = b"\xff\x00" * 8
"""64 bits of one, with the zero byte that follows each FF in coded data (T.81, B.1.1.5). No Huffman code is all ones
(T.81, annex C), and no value takes more than 16 further bits."""

_NOISE = bytes(1 + number * 97 % 251 for number in range(64))
"""Bits without pattern and without FF: as coded data they give blocks that are not flat."""

_GREY = 128
"""What libjpeg makes of a block without data: all coefficients 0."""


GUARDED = (*JPEG_LOSSLESS, JPEG_EXTENDED)
"""Transfer syntaxes whose decoder takes a wrong code for an error, as the JPEG Committee's (pylibjpeg-libjpeg) does."""


def guarded(frame: bytes) -> bytes:
    """A code stream that its decoder refuses where it is not whole, and decodes to the same pixels where it is.

    Bits that are no Huffman code follow the data of its last scan: a decoder comes upon them only when pixels are
    missing. It costs nothing.

    Args:
        frame: a whole code stream of one of the transfer syntaxes of :data:`GUARDED`.
    """
    end = frame.rfind(END)
    return frame[:end] + _NO_CODE + frame[end:]


def ends_early(jpeg: bytes, pixels: np.ndarray) -> bool:
    """Whether a JPEG image that Pillow decoded lacks its last pixels.

    Where the data end before the image does, libjpeg makes the rest grey. So only an image whose last block is of that
    very grey is decoded a second time, with noise after its data: the pixels differ when the decoder came to need it.

    Args:
        jpeg: a baseline or extended sequential JPEG.
        pixels: what Pillow made of it, uint8 (H, W).
    """
    rows, columns = pixels.shape
    last = pixels[(rows - 1) // 8 * 8 :, (columns - 1) // 8 * 8 :]
    end = jpeg.rfind(END)
    if end < 0 or (last != _GREY).any():
        return False
    with Image.open(io.BytesIO(jpeg[:end] + _NOISE + jpeg[end:]), formats=("JPEG",)) as picture:
        again = np.array(picture.convert("L"))
    return not np.array_equal(again, pixels)
