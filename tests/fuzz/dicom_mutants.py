"""Mutated DICOM files: tags, value representations, lengths, encapsulation and code streams.

A mutant is a function of one number, so that any find can be made again. Most change at random what the format is made
of, and how they must be read is not known; some are known to be harmless, to change one pixel, or to be unusable.
"""

from __future__ import annotations

import functools
import io
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from fuzz.outcomes import Mutant, Outcome, outcome_of
from hostile_lab import jpeg_lossless
from pydicom import config
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.rendering import Job, render
from keras_pneumo.data.prepared.scanning import _identify
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.reading import read_or_reason
from keras_pneumo.viewer.decoding import decode_bytes

PLANTED = "Plantedname"
"""A part of the patient's name in every file; no reason and no note may hold it."""

ROWS, COLUMNS = 48, 40
NATIVE = ("explicit", "implicit", "big endian", "deflated", "deep")
"""Seeds whose pixels are stored as they are."""

STREAMS = ("jpeg", "jpeg lossless", "jpeg-ls", "jpeg 2000", "rle")


def _image(kind: type[np.generic] = np.uint8, most: int = 255) -> np.ndarray:
    rng = np.random.default_rng(7)
    smooth = cv2.resize(
        rng.integers(0, most, (6, 5)).astype(np.float32), (COLUMNS, ROWS), interpolation=cv2.INTER_CUBIC
    )
    return (smooth + rng.normal(0, most / 50, smooth.shape)).clip(0, most).astype(kind)


def _dataset(image: np.ndarray, syntax: UID, **tags: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = UID("1.2.276.0.7230010.3.0.3.6.0")
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": "1.2.3.4",
        "StudyDate": "19010101",
        "StudyTime": "000000",
        "AccessionNumber": "77",
        "Modality": "CR",
        "ReferringPhysicianName": f"{PLANTED}^Doctor",
        "SeriesDescription": "view: PA",
        "PatientName": f"{PLANTED}^Given",
        "PatientID": f"{PLANTED}-4711",
        "PatientSex": "F",
        "PatientAge": "058Y",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.3",
        "StudyID": "1",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": image.shape[0],
        "Columns": image.shape[1],
        "PixelSpacing": [0.2, 0.2],
        "BitsAllocated": 8 * image.itemsize,
        "BitsStored": 8 * image.itemsize,
        "HighBit": 8 * image.itemsize - 1,
        "PixelRepresentation": 0,
    }
    for name, value in (values | tags).items():
        setattr(dataset, name, value)
    dataset.PixelData = image.tobytes()
    dataset["PixelData"].VR = "OW" if image.itemsize > 1 else "OB"
    return dataset


def _bytes(dataset: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    with config.disable_value_validation():
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    """Whole files by their kind; small, since what is attacked is the format."""
    image = _image()
    files = {
        "explicit": _dataset(image, ExplicitVRLittleEndian),
        "implicit": _dataset(image, ImplicitVRLittleEndian),
        "big endian": _dataset(image, ExplicitVRBigEndian),
        "deflated": _dataset(image, DeflatedExplicitVRLittleEndian),
        "deep": _dataset(
            _image(np.uint16, 4095),
            ExplicitVRLittleEndian,
            BitsStored=12,
            HighBit=11,
            WindowCenter="2048",
            WindowWidth="4096",
            RescaleSlope="1",
            RescaleIntercept="0",
            PhotometricInterpretation="MONOCHROME1",
        ),
    }
    for name, syntax in (("jpeg-ls", JPEGLSLossless), ("jpeg 2000", JPEG2000Lossless), ("rle", RLELossless)):
        dataset = _dataset(image, ExplicitVRLittleEndian)
        dataset.compress(syntax, generate_instance_uid=False)
        files[name] = dataset
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    for name, syntax, stream in (
        ("jpeg", JPEGBaseline8Bit, jpeg),
        ("jpeg lossless", JPEGLosslessSV1, jpeg_lossless(image)),
    ):
        files[name] = _dataset(image, syntax)
        files[name].PixelData = encapsulate([stream], has_bot=False)
        files[name]["PixelData"].is_undefined_length = True
    made = {name: _bytes(dataset) for name, dataset in files.items()}
    # As SIIM's files are: no element that the reader for plain files leaves to pydicom.
    del files["jpeg"].SpecificCharacterSet
    made["plain jpeg"] = _bytes(files["jpeg"])
    return made


@functools.cache
def _read_seed(name: str) -> np.ndarray:
    radiograph = decode_bytes(seeds()[name], "seed.dcm")
    assert isinstance(radiograph, Radiograph), (name, radiograph)
    return radiograph.pixels


def _open(name: str) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(seeds()[name]))


# -- Changes whose truth is known ------------------------------------------------------------------------------------


def _harmless(rng: random.Random) -> Mutant:
    name = rng.choice(list(seeds()))
    dataset = _open(name)
    kind = rng.randrange(6)
    if kind == 0:
        tag = rng.choice(["ReferringPhysicianName", "SeriesDescription", "StudyTime", "AccessionNumber", "StudyID"])
        text = rng.choice(["", "A^B", "x" * 64, "1\\2\\3", "\x1b[31m", "\xe9\xe8", " "])
        with config.disable_value_validation():
            setattr(dataset, tag, text)
        change = f"{tag} is {text!r}"
    elif kind == 1:
        block = dataset.private_block(0x0009, "FUZZ", create=True)
        block.add_new(rng.randrange(1, 255), "LO", "x" * rng.randrange(60))
        change = "a private element"
    elif kind == 2:
        dataset.preamble = rng.randbytes(128)
        change = "a preamble of noise"
    elif kind == 3:
        dataset.add_new(0xFFFCFFFC, "OB", b"\0" * 2 * rng.randrange(1, 200))
        change = "padding behind the pixels"
    elif kind == 4:
        tag = rng.choice(
            ["StudyTime", "AccessionNumber", "SeriesDescription", "StudyID", "InstanceNumber", "StudyDate"]
        )
        delattr(dataset, tag)
        change = f"no {tag}"
    else:
        item = pydicom.Dataset()
        item.CodeValue, item.CodeMeaning = "1", "nothing of importance"
        dataset.ProcedureCodeSequence = [item] * rng.randrange(1, 5)
        change = "a sequence of codes"
    return Mutant(_bytes(dataset), f"{name}: {change}", "same", _read_seed(name))


def _one_pixel(rng: random.Random) -> Mutant:
    """Another value of one pixel: the picture read must have it, and no other."""
    name = rng.choice(["explicit", "implicit", "big endian", "deflated"])
    dataset = _open(name)
    pixels = _read_seed(name).copy()
    row, column, value = rng.randrange(ROWS), rng.randrange(COLUMNS), rng.randrange(256)
    pixels[row, column] = value
    dataset.PixelData = pixels.tobytes()
    return Mutant(_bytes(dataset), f"{name}: pixel {row}, {column} is {value}", "same", pixels)


def _unusable(rng: random.Random) -> Mutant:
    name = rng.choice(list(seeds()))
    dataset = _open(name)
    native = name in NATIVE
    choices: list[tuple[str, Callable[[], object]]] = [
        ("Rows doubled", lambda: setattr(dataset, "Rows", 2 * ROWS)),
        ("Columns and 7 more", lambda: setattr(dataset, "Columns", COLUMNS + 7)),
        ("Rows 0", lambda: setattr(dataset, "Rows", 0)),
        ("65535 x 65535", lambda: (setattr(dataset, "Rows", 65535), setattr(dataset, "Columns", 65535))),
        ("no pixels", lambda: delattr(dataset, "PixelData")),
        ("no Rows", lambda: delattr(dataset, "Rows")),
        ("two frames", lambda: setattr(dataset, "NumberOfFrames", 2)),
        ("three samples", lambda: setattr(dataset, "SamplesPerPixel", 3)),
        ("slope 0", lambda: setattr(dataset, "RescaleSlope", "0")),
        ("slope nan", lambda: setattr(dataset, "RescaleSlope", "nan")),
        ("intercept 1e308", lambda: setattr(dataset, "RescaleIntercept", "1e308")),
    ]
    if native:
        kept = rng.randrange(0, len(dataset.PixelData) * 9 // 10)
        choices += [(f"{kept} bytes of pixels", lambda: setattr(dataset, "PixelData", dataset.PixelData[:kept]))] * 3
    else:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1)).rstrip(b"\0")
        kept = rng.randrange(2, len(frame) * 3 // 4)
        video = UID("1.2.840.10008.1.2.4.100")
        choices.append(("a video's syntax", lambda: setattr(dataset.file_meta, "TransferSyntaxUID", video)))
        choices += [
            (f"{kept} bytes of the stream", lambda: setattr(dataset, "PixelData", encapsulate([frame[:kept]])))
        ] * 4
    change, act = rng.choice(choices)
    with config.disable_value_validation():
        act()
        if "PixelData" in dataset and not native:
            dataset["PixelData"].is_undefined_length = True
        return Mutant(_bytes(dataset), f"{name}: {change}", "refused")


# -- Changes whose truth is not known --------------------------------------------------------------------------------

_REPRESENTATIONS = [
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"OB", b"OD", b"OF", b"OW"),
    *(b"PN", b"SH", b"SL", b"SQ", b"SS", b"ST", b"TM", b"UC", b"UI", b"UL", b"UN", b"UR", b"US", b"UT", b"SV", b"UV"),
    *(b"OL", b"OV", b"\0\0", b"ZZ", b"ob"),
]
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_VALUES = [
    *(
        b"",
        b"\\",
        b"1\\2",
        b"\\\\\\\\",
        b"NaN",
        b"-inf",
        b"1e308",
        b"1e308\\1e308",
        b"-1",
        b"0",
        b"1e-320",
        b"\xff" * 8,
    ),
    *(b"\0" * 8, b"\x1b[31m", b"\r\n\r\n", b"-rf", b"../../../x", b"=1+1", b"<script>", b"9" * 400, b"x" * 20_000),
    *(
        "é\u202e".encode(),
        "\U0001f600".encode(),
        b"\xed\xa0\x80",
        b"ISO 2022 IR 87",
        b"ISO_IR 192",
        b"1.2.840.10008.1.2",
    ),
    *(b"MONOCHROME1", b"PALETTE COLOR", b"YBR_FULL", b"INVERSE", b"000Y", b"999Y", b"LATERAL", b"\x01\0", b"\xff\xff"),
]
_LENGTHS = [0, 1, 2, 3, 7, 0x7F, 0xFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]


class _Element:
    """Where an element of a file in explicit little endian lies."""

    def __init__(self, data: bytes, start: int) -> None:
        self.start = start
        self.vr = data[start + 4 : start + 6]
        self.long = self.vr in _LONG
        self.value = start + (12 if self.long else 8)
        form = "<I" if self.long else "<H"
        self.length = struct.unpack_from(form, data, start + (8 if self.long else 6))[0]
        self.end = len(data) if self.length == 0xFFFFFFFF else self.value + self.length


def _elements(data: bytes) -> list[_Element]:
    elements, position = [], 132
    while position + 12 <= len(data):
        elements.append(_Element(data, position))
        position = elements[-1].end
    return elements


def _header(rng: random.Random) -> Mutant:
    """One to three changes of elements in explicit little endian."""
    name = rng.choice(["explicit", "deep", "plain jpeg", "plain jpeg", *STREAMS])
    data, changes = seeds()[name], []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not (elements := _elements(data)):
            break
        element = rng.choice(elements)
        start, tag = element.start, data[element.start : element.start + 4].hex()
        kind = rng.choice(
            ["vr", "length", "tag", "value", "value", "bit", "bit", "drop", "twice", "swap", "insert", "cut"]
        )
        if kind == "vr":
            data = data[: start + 4] + rng.choice(_REPRESENTATIONS) + data[start + 6 :]
        elif kind == "length":
            length = rng.choice([*_LENGTHS, element.length + 1, max(0, element.length - 1), element.length * 2])
            if element.long:
                data = data[: start + 8] + struct.pack("<I", length & 0xFFFFFFFF) + data[start + 12 :]
            else:
                data = data[: start + 6] + struct.pack("<H", length & 0xFFFF) + data[start + 8 :]
        elif kind == "tag":
            other = rng.choice(elements)
            source = data[other.start : other.start + 4] if rng.random() < 0.5 else rng.randbytes(4)
            data = data[:start] + source + data[start + 4 :]
        elif kind == "value" and element.length < 0xFFFF:
            value = rng.choice(_VALUES)[:0xFFFE]
            value += b" " * (len(value) % 2 and rng.random() < 0.9)
            size = struct.pack("<I" if element.long else "<H", len(value))
            data = data[: element.value - len(size)] + size + value + data[element.end :]
        elif kind == "bit":
            place = rng.randrange(start, max(start + 1, min(element.end, start + 100, len(data))))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif kind == "drop":
            data = data[:start] + data[element.end :]
        elif kind == "twice":
            data = data[: element.end] + data[start : element.end] * rng.choice([1, 1, 3, 50]) + data[element.end :]
        elif kind == "swap":
            other = rng.choice(elements)
            first, second = sorted((element, other), key=lambda each: each.start)
            if first is not second:
                data = (
                    data[: first.start]
                    + data[second.start : second.end]
                    + data[first.end : second.start]
                    + data[first.start : first.end]
                    + data[second.end :]
                )
        elif kind == "insert":
            nest = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
                "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
            )
            noise = rng.choice(
                [rng.randbytes(rng.randrange(1, 64)), nest * rng.choice([1, 10, 1000, 3000]), b"\0" * 4096]
            )
            data = data[:start] + noise + data[start:]
        elif kind == "cut":
            data = data[: rng.randrange(len(data))]
        changes.append(f"{kind} at {tag}")
    return Mutant(data, f"{name}: {', '.join(changes)}")


def _anywhere(rng: random.Random) -> Mutant:
    """Bits, bytes and pieces anywhere in a file of any kind."""
    name = rng.choice(list(seeds()))
    data = bytearray(seeds()[name])
    kind = rng.choice(["bits", "bytes", "cut", "insert", "hole", "splice", "no preamble", "noise behind"])
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.choice([1, 4, 32])):
            data[rng.randrange(len(data))] = rng.choice([0, 0xFF, 0x7F, 0x80, rng.randrange(256)])
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "insert":
        place = rng.randrange(len(data))
        data[place:place] = rng.randbytes(rng.choice([1, 2, 16, 300]))
    elif kind == "hole":
        place = rng.randrange(len(data))
        del data[place : place + rng.choice([1, 2, 16, 300])]
    elif kind == "splice":
        other = seeds()[rng.choice(list(seeds()))]
        data = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    elif kind == "no preamble":
        del data[: rng.choice([128, 132, 4])]
    else:
        data += rng.randbytes(rng.choice([1, 7, 1000]))
    return Mutant(bytes(data), f"{name}: {kind}")


def _stream(rng: random.Random) -> Mutant:
    """Changes within a valid encapsulation: of markers and sizes, and of what is packed."""
    name = rng.choice(STREAMS)
    dataset = _open(name)
    frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    kind = rng.choice(
        ["bits", "bits", "marker", "size", "hole", "twice", "zeros", "other", "fragments", "table", "empty"]
    )
    table = rng.random() < 0.5
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 2, 16])):
            data_start = 0 if rng.random() < 0.5 else len(frame) // 4
            frame[rng.randrange(data_start, len(frame))] ^= 1 << rng.randrange(8)
    elif kind == "marker":
        places = [place for place in range(len(frame) - 1) if frame[place] == 0xFF]
        if places:
            frame[rng.choice(places) + 1] = rng.choice(
                [0xC0, 0xC2, 0xC3, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xE0, 0xF7, 0x4F]
            )
    elif kind == "size":
        place = rng.randrange(min(80, len(frame) - 2))
        frame[place : place + 2] = rng.choice([b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\1", b"\x20\0"])
    elif kind == "hole":
        place = rng.randrange(len(frame))
        del frame[place : place + rng.choice([1, 8, 100])]
    elif kind == "twice":
        place = rng.randrange(len(frame))
        frame[place:place] = frame[place : place + rng.choice([8, 64, 1000])] * rng.choice([1, 10])
    elif kind == "zeros":
        place, length = rng.randrange(len(frame)), rng.choice([4, 64, 400])
        frame[place : place + length] = rng.choice([b"\0", b"\xff"]) * min(length, len(frame) - place)
    elif kind == "other":
        other = _open(rng.choice([each for each in STREAMS if each != name]))
        frame = bytearray(next(generate_frames(other.PixelData, number_of_frames=1)))
    fragments = rng.choice([2, 3, 7]) if kind == "fragments" else 1
    frame += b"\0" * (len(frame) % 2)
    packed = encapsulate([bytes(frame)], fragments_per_frame=fragments, has_bot=table)
    dataset.PixelData = packed
    dataset["PixelData"].is_undefined_length = True
    data = _bytes(dataset)
    place = data.rindex(packed)
    if kind == "table":  # pydicom writes no damaged encapsulation
        at = place + rng.randrange(min(24, len(packed)))
        data = data[:at] + rng.randbytes(1) + data[at + 1 :]
    elif kind == "empty":
        data = data[:place] + rng.choice([b"", packed[:8], packed[:8] + packed[-8:]]) + data[place + len(packed) :]
    return Mutant(data, f"{name} stream: {kind}")


_KINDS: list[Callable[[random.Random], Mutant]] = [_header, _header, _header, _anywhere, _anywhere, _stream, _stream]


def mutant(number: int) -> Mutant:
    """The mutant of this number: always the same."""
    rng = random.Random(number)
    part = rng.random()
    if part < 0.08:
        return _harmless(rng)
    if part < 0.12:
        return _one_pixel(rng)
    if part < 0.25:
        return _unusable(rng)
    return rng.choice(_KINDS)(rng)


# -- What is done with one -------------------------------------------------------------------------------------------


def try_number(job: tuple[int, str]) -> Outcome:
    """Read the mutant of a number from a file of the folder, as commands do in their workers."""
    number, folder = job
    path = Path(folder) / f"{number}.dcm"
    made = mutant(number)
    try:
        path.write_bytes(made.data)
        return try_file(path, made, number % 8 == 0)
    finally:
        path.unlink(missing_ok=True)


def try_file(path: Path, made: Mutant, rendered: bool = True) -> Outcome:
    """Read one file as prepare (both its steps), predict, detect and the page read it, and compare what they say."""

    def read() -> Radiograph:
        found = _identify((path, path.name))
        read_as_file = read_or_reason(path)
        read_as_bytes = decode_bytes(path.read_bytes(), path.name)
        if isinstance(read_as_file, str) != isinstance(read_as_bytes, str):
            raise AssertionError(f"the page and the commands differ: {made.change}")
        job = Job(path, "rendered", rle.unite([]), (32,), path.parent, any_view=True)
        if rendered and render(job).error and not isinstance(read_as_file, str):
            raise AssertionError(f"it is read and not rendered: {made.change}")
        _check_words(found.error, made)
        if isinstance(read_as_file, str) or isinstance(read_as_bytes, str):
            _check_words(str(read_as_file), made)
            raise UnreadableImage(str(read_as_file))
        if not np.array_equal(read_as_file.pixels, read_as_bytes.pixels) or read_as_file.notes != read_as_bytes.notes:
            raise AssertionError(f"the reader for plain files and pydicom differ: {made.change}")
        if not found.error and found.image_id != read_as_file.image_id:
            raise AssertionError(f"its header gives {found.image_id!r}, its pixels {read_as_file.image_id!r}")
        return read_as_file

    return outcome_of(made, read, lambda radiograph: _fault(radiograph, made))


def _check_words(reason: str, made: Mutant) -> None:
    if PLANTED in reason or len(reason) > 400 or not reason.isprintable():
        raise AssertionError(f"a reason quotes the file or cannot be shown ({made.change}): {reason[:200]!r}")


def _fault(radiograph: Radiograph, made: Mutant) -> str:
    """What is wrong with a radiograph that was read; blank when nothing is."""
    pixels, spacing = radiograph.pixels, radiograph.pixel_spacing_mm
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
        return f"pixels of {pixels.dtype} {pixels.shape}: {made.change}"
    if spacing is not None and not 0.01 <= spacing <= 10:
        return f"a spacing of {spacing}: {made.change}"
    if radiograph.age is not None and not 0 <= radiograph.age <= 120:
        return f"an age of {radiograph.age}: {made.change}"
    notes = " ".join(radiograph.notes)
    if PLANTED in notes or not notes.isprintable():
        return f"a note quotes the file: {made.change}"
    if made.wanted is not None and not np.array_equal(pixels, made.wanted):
        return f"silently other pixels: {made.change}"
    return ""
