"""Checks DICOM files against limits before a decoder touches them, from their headers and with bounded memory.

Every check raises :class:`~.radiograph.UnreadableImage` with the reason when the file breaks a limit.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from keras_pneumo.data.radiographs.completeness import END
from keras_pneumo.data.radiographs.decoders import DECODERS, DEFLATED, RUN_LENGTH, UNCOMPRESSED
from keras_pneumo.data.radiographs.radiograph import MAX_FILE_BYTES, UnreadableImage, check_size

if TYPE_CHECKING:  # pydicom takes longer to import than a worker needs for twenty plain files
    import pydicom

LONG_FORM = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length has four bytes, after two that are reserved (PS3.5, 7.1.2)."""


GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that are read; colour only when its channels turn out to be equal."""

_OTHER_KINDS = ("PALETTE COLOR", "HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB")
"""Further ones of PS3.3 C.7.6.3.1.2, which a reason may name; any other text may be a person's name."""


def text_of(dataset: pydicom.Dataset, name: str) -> str:
    """The value of one tag as plain text, blank when it is absent or empty."""
    return str(dataset.get(name) or "").replace("\0", "").strip()


def with_preamble(data: bytes) -> bytes:
    """A DICOM file's bytes with the preamble and the letters DICM, and with a transfer syntax, where it lacks them.

    Some archives write the data set alone (as DICOM was before 1993), or leave out the first 132 bytes. A file is taken
    for one only when its first element has a tag that comes first and a sensible length; other bytes come back as they
    are, and are refused by the reader.
    """
    group, kind = data[:2], data[4:6]
    if data[128:132] == b"DICM" or len(data) < 16 or group not in (b"\x02\0", b"\x08\0"):
        return data
    number = int.from_bytes(data[2:4], "little")
    explicit = kind.isalpha() and kind.isupper()
    if explicit:
        length = int.from_bytes(data[8:12] if kind in LONG_FORM else data[6:8], "little")
    else:
        length = int.from_bytes(data[4:8], "little")
    if number > 0x18 or length > 64:  # from a group's length to the SOPInstanceUID
        return data
    if group == b"\x02\0":
        return bytes(128) + b"DICM" + data if explicit else data
    syntax = b"1.2.840.10008.1.2.1\0" if explicit else b"1.2.840.10008.1.2\0"
    meta = b"\x02\0\x10\0UI" + len(syntax).to_bytes(2, "little") + syntax
    return bytes(128) + b"DICM" + meta + data


def check_deflated(data: bytes) -> None:
    """Check how large a deflated data set becomes, piece by piece: a small file must not become gigabytes in memory."""
    if data[128:132] != b"DICM":
        return  # not a DICOM file: the reader refuses it with a better message
    syntax, start = _file_meta(data)
    if syntax != DEFLATED:
        return
    inflater, rest, total = zlib.decompressobj(-zlib.MAX_WBITS), data[start:], 0
    while rest and not inflater.eof:
        total += len(inflater.decompress(rest, 1 << 20))
        rest = inflater.unconsumed_tail
        if total > MAX_FILE_BYTES:
            raise UnreadableImage(f"its deflated data unpack to more than the {MAX_FILE_BYTES} bytes that are read")


def _file_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax and length of the file's meta group, which is explicit little endian (PS3.10, 7.1).

    pydicom's own reader unpacks the rest of the file in the same call, before its size can be checked.
    """
    position, syntax = 132, ""
    while data[position : position + 2] == b"\x02\x00":
        head = 12 if data[position + 4 : position + 6] in LONG_FORM else 8
        length = int.from_bytes(data[position + head - (4 if head == 12 else 2) : position + head], "little")
        if data[position + 2 : position + 4] == b"\x10\x00":
            syntax = data[position + head : position + head + length].decode("ascii", "replace").rstrip("\0 ")
        position += head + length
    if not syntax:
        raise UnreadableImage("it does not say how its pixels are stored (no TransferSyntaxUID)")
    return syntax, position


def transfer_syntax_of(dataset: pydicom.Dataset) -> str:
    """The transfer syntax (how the pixels are stored), when it is one that radiographs use."""
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if syntax is None:
        raise UnreadableImage("it does not say how its pixels are stored (no TransferSyntaxUID)")
    if not isinstance(syntax, str):
        raise UnreadableImage("it names several ways in which its pixels are stored (TransferSyntaxUID)")
    if syntax not in DECODERS and syntax not in UNCOMPRESSED:
        from pydicom.uid import UID

        # Damage can bring any text into this place; only what is a UID is quoted.
        way = f"as {UID(syntax).name}" if UID(syntax).is_valid else "in an unknown way"
        raise UnreadableImage(f"its pixels are stored {way}, which radiographs do not use")
    return str(syntax)


def check_pixels(dataset: pydicom.Dataset) -> str:
    """Check from the header that there is one grey frame of sensible size; returns the photometric interpretation."""
    if "PixelData" not in dataset:
        raise UnreadableImage("it holds no pixels (no PixelData)")
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    check_size(rows, columns)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableImage(f"it holds {frames} frames; one radiograph per file is read")
    photometric = text_of(dataset, "PhotometricInterpretation")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    colour = photometric in _COLOUR and samples == 3 and dataset.get("BitsAllocated") == 8
    if not colour and (photometric not in GREY or samples != 1):
        kind = photometric if photometric in (*GREY, *_COLOUR, *_OTHER_KINDS) else "an unknown kind"
        raise UnreadableImage(f"it is stored as {kind} with {samples} samples per "
                              "pixel; a grey radiograph (MONOCHROME1 or MONOCHROME2) is expected")  # fmt: skip
    allocated = dataset.get("BitsAllocated")
    if allocated not in (8, 16, 32):
        number = allocated if isinstance(allocated, int) else "an unknown number of"
        raise UnreadableImage(f"it allocates {number} bits per pixel; 8, 16 or 32 are expected")
    expected = rows * columns * samples * dataset.BitsAllocated // 8
    if transfer_syntax_of(dataset) in DECODERS:
        _check_encapsulated(dataset, rows, columns, expected, samples)
    elif photometric == "YBR_FULL_422":
        raise UnreadableImage("it is stored as YBR_FULL_422 without compression, which radiographs do not use")
    elif len(dataset.PixelData) not in (expected, expected + expected % 2):
        raise UnreadableImage(f"it holds {len(dataset.PixelData)} bytes of pixels where {expected} are expected")
    return photometric


def _check_encapsulated(dataset: pydicom.Dataset, rows: int, columns: int, expected: int, samples: int) -> None:
    """Check that the compressed frame's own header agrees with the DICOM header, before a decoder trusts it."""
    from pydicom.encaps import generate_frames

    frames = generate_frames(dataset.PixelData, number_of_frames=1)
    frame = next(frames)
    if next(frames, None) is not None:
        raise UnreadableImage("it holds more than one frame; one radiograph per file is read")
    run_length = transfer_syntax_of(dataset) == RUN_LENGTH  # has no header: the decoder goes by the DICOM header
    if run_length:
        _check_length(frame, expected)
    else:
        check_frame(frame, rows, columns, expected, samples)
    if run_length and _unpacked_rle_size(frame, expected) > expected + 1024:
        raise UnreadableImage(f"its run-length data unpack to far more than the {expected} bytes of its image")


def _unpacked_rle_size(frame: bytes, limit: int) -> int:
    """Bytes that a run-length frame unpacks to, counted until a little beyond ``limit`` (PS3.5, annex G).

    A run of 128 takes two bytes, so that a decoder that trusts the frame can need 64 times its size.
    """
    count, *offsets = struct.unpack("<16I", frame[:64])
    starts = [*offsets[: min(count, 15)], len(frame)]
    total = 0
    for start, end in pairwise(starts):
        position = start
        while position < end and total <= limit + 1024:
            head = frame[position]
            if head > 128:
                total += 257 - head
                position += 2
            elif head < 128:
                total += head + 1
                position += head + 2
            else:
                position += 1
    return total


def _check_length(frame: bytes, expected: int) -> None:
    if len(frame) > 2 * expected + 65536:
        raise UnreadableImage(
            f"its compressed image has {len(frame)} bytes, far more than the {expected} it unpacks to"
        )


def check_frame(frame: bytes, rows: int, columns: int, expected: int, samples: int = 1) -> None:
    """Check a compressed image before it is decoded: its own size agrees with the DICOM header, its length makes sense.

    Args:
        frame: a JPEG, JPEG-LS or JPEG 2000 code stream.
        rows: from the DICOM header.
        columns: likewise.
        expected: bytes that it unpacks to.
        samples: per pixel, from the DICOM header.

    Raises:
        UnreadableImage: it does not; without a size of its own it is not decoded.
    """
    if frame[4:8] == b"jP  ":
        raise UnreadableImage(
            "its JPEG 2000 image is wrapped in a JP2 file, where DICOM has the bare code stream (PS3.5, A.4.4); "
            "export it again, or decode it and save it as PNG"
        )
    header = _frame_header(frame)
    if header is None:
        raise UnreadableImage("its compressed image does not begin as JPEG, JPEG-LS or JPEG 2000 does, "
                              "so its pixels cannot be decoded within limits")  # fmt: skip
    if header[:2] != (rows, columns):
        raise UnreadableImage(
            f"its compressed image is of {header.rows}x{header.columns} pixels, its header gives {rows}x{columns}"
        )
    if frame.rfind(END, -64) < 0:  # DICOM and some encoders add a few bytes
        raise UnreadableImage("its compressed image does not end as it should, so it was cut short or is damaged")
    if header.components != samples:
        wanted = "one of grey is" if samples == 1 else f"{samples} are"
        raise UnreadableImage(f"its compressed image has {header.components} components; {wanted} expected")
    _check_length(frame, expected)


class _FrameHeader(NamedTuple):
    """What the header of a compressed image says."""

    rows: int
    columns: int
    components: int


def _frame_header(frame: bytes) -> _FrameHeader | None:
    """The header of a JPEG, JPEG-LS or JPEG 2000 code stream.

    None when it is neither, or is so odd that a decoder might use another header than this function does: bytes
    between the segments, a marker without a segment, a second frame.

    Markers: ITU-T T.81 table B.1 (SOFn; DHP, which gives the size of a hierarchical image), T.87 (SOF55), T.800 (SIZ).
    """
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 42:
        width, height, left, top = struct.unpack(">4I", frame[8:24])
        return _FrameHeader(height - top, width - left, int.from_bytes(frame[40:42]))
    if frame[:2] != b"\xff\xd8":
        return None
    position, header = 2, None
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4])
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xDA:  # the first scan
            return header
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            return None
        if (marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xDE, 0xF7):
            if header is not None or length < 8 or position + 10 > len(frame):
                return None
            height, width, components = struct.unpack(">2HB", frame[position + 5 : position + 10])
            header = _FrameHeader(height, width, components)
        position += 2 + length
    return None
