"""Reads plain DICOM radiographs quickly: 8-bit grey, baseline JPEG, no table or window, as all of SIIM-ACR's are.

In come the bytes of a file, out comes exactly what :func:`~.dicom.decode_dicom` returns, or None when anything about
the file is unusual: then pydicom reads it, or says what is wrong with it. No file is refused here, and nothing is read
here that pydicom would read otherwise. It exists for speed: on such a file pydicom takes about as long again as libjpeg
does for the pixels, and importing it takes as long as preparing twenty files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from keras_pneumo.data.radiographs.completeness import ends_early
from keras_pneumo.data.radiographs.decoders import DECODERS, JPEG_BASELINE
from keras_pneumo.data.radiographs.limits import LONG_FORM, check_frame
from keras_pneumo.data.radiographs.radiograph import (
    Radiograph,
    UnreadableImage,
    check_size,
    one_of,
    other_view_of,
    shown_image_id,
    square_spacing,
    years_of,
)
from keras_pneumo.errors import PneumoError

_SHORT_FORM = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations whose length has two bytes; see :data:`~.limits.LONG_FORM` for the others."""

_TEXTS = {
    0x00020010: ("syntax", b"UI"),
    0x00080018: ("image_id", b"UI"),
    0x00080060: ("modality", b"CS"),
    0x00080070: ("maker", b"LO"),
    0x00100020: ("patient_id_tag", b"LO"),
    0x00100040: ("sex", b"CS"),
    0x00101010: ("age", b"AS"),
    0x00180015: ("body_part", b"CS"),
    0x00181164: ("imager_spacing", b"DS"),
    0x00185101: ("view", b"CS"),
    0x0020000D: ("study_uid_tag", b"UI"),
    0x00200020: ("orientation", b"CS"),
    0x00280004: ("photometric", b"CS"),
    0x00280030: ("spacing", b"DS"),
}
"""Tag -> the name of its text here, and the value representation that it must have."""

_NUMBERS = {
    0x00280002: "samples",
    0x00280010: "rows",
    0x00280011: "columns",
    0x00280100: "allocated",
    0x00280101: "stored",
    0x00280103: "signed",
}
"""Tag -> the name of its number here; US, so of two bytes."""

_UNUSUAL = frozenset({
    *(0x00280006, 0x00280008),  # PlanarConfiguration, NumberOfFrames
    *(0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281054, 0x00281056),  # window and rescale
    *(0x00283000, 0x00283010),  # tables
    *(0x00200037, 0x00187032, 0x00187034),  # ImageOrientationPatient, FieldOfViewRotation, FieldOfViewHorizontalFlip
    *(0x00540220, 0x20500020),  # ViewCodeSequence, PresentationLUTShape
})  # fmt: skip
"""Tags that decide about frames, grey values, orientation or view: a file that has one is not plain."""

_GROUP_LENGTH = 0x00020000
_CHARACTER_SET = 0x00080005
"""The only elements beside those above whose values pydicom takes apart, and that then must have the right form."""

_PIXELS = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ITEM, _LAST = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"

# ASCII without the backslash, which parts values, and the tilde, which some character sets replace.
_PLAIN_TEXT = re.compile(rb"[ -\[\]-}]*")
_PAIR = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,20})?)\\([0-9]{1,8}(?:\.[0-9]{1,20})?)")


@dataclass(frozen=True)
class PlainFile:
    """A plain DICOM file whose pixels are not decoded yet."""

    image_id: str
    sex: str
    age: float | None
    view: str
    other_view: str
    pixel_spacing_mm: float | None
    photometric: str
    rows: int
    columns: int
    frame: bytes = field(repr=False)
    """The JPEG stream."""
    patient_id_tag: str = field(repr=False)
    study_uid_tag: str = field(repr=False)
    transfer_syntax: str = JPEG_BASELINE
    maker: str = ""
    """Maker of the machine."""


def open_plain(data: bytes, stem: str) -> PlainFile | None:
    """The header and the JPEG stream of a plain DICOM file, or None when it is not one.

    Args:
        data: the file.
        stem: its id when it has no SOPInstanceUID.
    """
    if DECODERS[JPEG_BASELINE][0] != "pillow":
        return None
    texts = dict.fromkeys((name for name, _ in _TEXTS.values()), "")
    numbers: dict[str, int] = {}
    frame = None
    for tag, kind, value in _elements(data):
        if tag in _TEXTS:
            name, expected = _TEXTS[tag]
            text = _text(value, pair=expected == b"DS")
            if kind != expected or text is None:
                return None
            texts[name] = text
        elif tag in _NUMBERS:
            if kind != b"US" or len(value) != 2:
                return None
            numbers[_NUMBERS[tag]] = int.from_bytes(value, "little")
        elif (
            tag in _UNUSUAL
            or (tag == _GROUP_LENGTH and (kind != b"UL" or len(value) != 4))
            or (tag == _CHARACTER_SET and (kind != b"CS" or _text(value, pair=False) is None))
        ):
            return None
        elif tag == _PIXELS:
            frame = _single_frame(value)
    if frame is None or len(numbers) != len(_NUMBERS) or texts["syntax"] != JPEG_BASELINE:
        return None
    if texts["orientation"]:  # only SIIM's own way, blank, is read here
        return None
    one_grey_byte = {"samples": 1, "allocated": 8, "stored": 8, "signed": 0}
    if not one_grey_byte.items() <= numbers.items() or texts["photometric"] not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    rows, columns = numbers["rows"], numbers["columns"]
    try:
        check_size(rows, columns)
        check_frame(frame, rows, columns, rows * columns)
    except UnreadableImage:
        return None  # pydicom's way finds it too, and says so
    return PlainFile(
        image_id=texts["image_id"] or stem,
        sex=one_of(texts["sex"], ("M", "F")),
        age=years_of(texts["age"]),
        view=one_of(texts["view"], ("PA", "AP")),
        other_view=other_view_of(texts["modality"], texts["body_part"], texts["view"]),
        pixel_spacing_mm=square_spacing(map(_numbers, (texts["spacing"], texts["imager_spacing"]))),
        photometric=texts["photometric"],
        rows=rows,
        columns=columns,
        frame=frame,
        patient_id_tag=texts["patient_id_tag"],
        study_uid_tag=texts["study_uid_tag"],
        maker=texts["maker"],
    )


def decode_plain(data: bytes, stem: str) -> Radiograph | None:
    """The radiograph in the bytes of a plain DICOM file, or None when it is not one or cannot be decoded."""
    plain = open_plain(data, stem)
    if plain is None:
        return None
    try:
        with Image.open(io.BytesIO(plain.frame), formats=("JPEG",)) as picture:
            if picture.mode != "L" or picture.size != (plain.columns, plain.rows):
                return None
            pixels = np.array(picture)
        if ends_early(plain.frame, pixels):
            return None
    except PneumoError:
        raise
    except Exception:  # damaged; Pillow raises every class of error, and pydicom's way gives the reason
        return None
    return Radiograph(
        pixels=255 - pixels if plain.photometric == "MONOCHROME1" else pixels,
        image_id=shown_image_id(plain.image_id, stem),
        sex=plain.sex,
        age=plain.age,
        view=plain.view,
        other_view=plain.other_view,
        pixel_spacing_mm=plain.pixel_spacing_mm,
        patient_id_tag=plain.patient_id_tag,
        study_uid_tag=plain.study_uid_tag,
        photometric=plain.photometric,
    )


def _elements(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, value representation and value of each element, explicit little endian, as far as all is as usual.

    The value of compressed pixels is all that follows them. It stops before an element that is out of order, of unknown
    representation, of undefined length or longer than the file.
    """
    if data[128:132] != b"DICM":
        return
    position, before = 132, -1
    while position + 8 <= len(data):
        tag = int.from_bytes(data[position : position + 2], "little") << 16
        tag |= int.from_bytes(data[position + 2 : position + 4], "little")
        kind = data[position + 4 : position + 6]
        if kind in _SHORT_FORM:
            start, length = position + 8, int.from_bytes(data[position + 6 : position + 8], "little")
        elif kind in LONG_FORM and position + 12 <= len(data):
            start, length = position + 12, int.from_bytes(data[position + 8 : position + 12], "little")
        else:
            return
        if tag == _PIXELS and kind == b"OB" and length == _UNDEFINED:
            yield tag, kind, data[start:]
            return
        if tag <= before or tag >= _PIXELS or start + length > len(data):
            return
        yield tag, kind, data[start : start + length]
        position, before = start + length, tag


def _single_frame(pixels: bytes) -> bytes | None:
    """The only frame of compressed pixels (PS3.5, A.4), when it is one fragment with nothing behind it."""
    table = int.from_bytes(pixels[4:8], "little")
    if pixels[:4] != _ITEM or table not in (0, 4) or any(pixels[8 : 8 + table]):
        return None
    start = 16 + table
    end = start + int.from_bytes(pixels[start - 4 : start], "little")
    return pixels[start:end] if pixels[start - 8 : start - 4] == _ITEM and pixels[end:] == _LAST else None


def _text(value: bytes, pair: bool) -> str | None:
    """A value as :func:`~.limits.text_of` returns it, or None when reading it would need more than ASCII."""
    value = value.rstrip(b"\0 ")
    if pair:
        return text if not (text := value.decode("ascii", "replace").strip()) or _PAIR.fullmatch(text) else None
    return value.decode("ascii").strip() if _PLAIN_TEXT.fullmatch(value) else None


def _numbers(pair: str) -> tuple[float, ...]:
    return tuple(float(number) for number in pair.split("\\")) if pair else ()
