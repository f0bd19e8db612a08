"""Tells whether a compressed image is whole where its decoder fills what is missing and says nothing.

A code stream that was cut short and closed again with its last marker has a valid header and a valid end. Decoders
then fill the missing rows with one grey. JPEG 2000 and run lengths are not in here, since their decoders refuse such
streams, nor is JPEG-LS, which CharLS reads to its last bit (:data:`~.decoders.DECODERS`). A progressive JPEG that was
cut between two of its scans has no missing rows: it is blurred.
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
    """Whether a JPEG image that Pillow decoded lacks its last pixels, or the last bits of them.

    Where the data end before the image does, libjpeg makes the rest grey. So only an image whose last block is of that
    very grey is decoded a second time, with noise after its data: the pixels differ when the decoder came to need it.
    A progressive image, which is sent several times in finer and finer detail, is decoded twice whatever its pixels,
    and lacks some where a scan is missing (:func:`scans_are_missing`).

    Args:
        jpeg: a baseline, extended sequential or progressive JPEG.
        pixels: what Pillow made of it, uint8 (H, W).
    """
    end = jpeg.rfind(END)
    if end < 0:
        return False
    missing = scans_are_missing(jpeg)
    if missing:
        return True
    rows, columns = pixels.shape
    last = pixels[(rows - 1) // 8 * 8 :, (columns - 1) // 8 * 8 :]
    if missing is None and (last != _GREY).any():
        return False
    with Image.open(io.BytesIO(jpeg[:end] + _NOISE + jpeg[end:]), formats=("JPEG",)) as picture:
        again = np.array(picture.convert("L"))
    return not np.array_equal(again, pixels)


def scans_are_missing(jpeg: bytes) -> bool | None:
    """Whether a progressive JPEG ends before every coefficient came to its last bit; None when it is not progressive.

    Each scan sends some of a block's 64 coefficients down to a bit that its header names (T.81, G.1.1.1). The standard
    lets an encoder stop before bit 0; none that is in use does.

    Args:
        jpeg: a JPEG that a decoder accepted.
    """
    lowest: dict[int, list[int]] = {}  # by component: the last bit that came of each coefficient, 99 for none
    position = 2
    while 0 <= position < len(jpeg) - 3:
        position = jpeg.find(b"\xff", position)
        marker = jpeg[position + 1] if 0 <= position < len(jpeg) - 9 else 0xD9
        if marker == 0xD9:
            break
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD8:  # within coded data, or without a length
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(jpeg[position + 2 : position + 4])
        segment = jpeg[position + 4 : position + 2 + length]
        if marker == 0xC2:
            lowest = {component: [99] * 64 for component in segment[6::3]}
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        elif marker == 0xDA and segment:
            first, final, bits = segment[-3:]
            for component in segment[1:-3:2]:
                if component in lowest and final < 64:
                    lowest[component][first : final + 1] = [bits & 15] * (final + 1 - first)
        position += 2 + length
    return any(bit != 0 for bits in lowest.values() for bit in bits) if lowest else None
