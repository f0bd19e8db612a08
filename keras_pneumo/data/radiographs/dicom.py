"""Reads DICOM files as grey radiographs, with named decoders and under limits.

In comes a path, out comes a :class:`Radiograph`: one 2-D frame, rescaled, windowed and inverted as its tags say. Any
other file raises :class:`UnreadableImage` with the reason. A file without the DICOM preamble is read when its first
element is one that a DICOM file begins with.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array

from keras_pneumo.data.radiographs.completeness import ENDS_EARLY, GUARDED, ends_early, guarded
from keras_pneumo.data.radiographs.decoders import DECODERS, JPEG_BASELINE
from keras_pneumo.data.radiographs.limits import (
    GREY,
    check_deflated,
    check_pixels,
    text_of,
    transfer_syntax_of,
    with_preamble,
)
from keras_pneumo.data.radiographs.radiograph import (
    Radiograph,
    UnreadableImage,
    by_rows,
    one_of,
    other_view_of,
    shown_image_id,
    square_spacing,
    stretch,
    turned_note,
    years_of,
)
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import one_line

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # for the reason given in quiet

_TAGS = [
    *("SOPInstanceUID", "StudyInstanceUID", "PatientID", "PatientSex", "PatientAge", "ViewPosition"),
    *("PixelSpacing", "ImagerPixelSpacing"),
    *("PatientOrientation", "ImageOrientationPatient", "FieldOfViewRotation", "FieldOfViewHorizontalFlip"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "SpecificCharacterSet"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("Modality", "BodyPartExamined", "ViewCodeSequence", "Manufacturer"),
]


@dataclass(frozen=True)
class Header:
    """Identity of a DICOM file, read before its pixels are decoded."""

    image_id: str
    transfer_syntax: str
    patient_id_tag: str = field(default="", repr=False)
    study_uid_tag: str = field(default="", repr=False)
    maker: str = ""
    """Maker of the machine."""


def read_header(data: bytes, stem: str) -> Header:
    """Identity and transfer syntax of the DICOM file whose bytes are given, without decoding pixels.

    Raises:
        UnreadableImage: not a DICOM file, damaged, or of a transfer syntax that holds no radiographs.
    """
    with quiet():
        # All of it: in a file whose elements are out of order the identity may lie behind the pixels.
        dataset = open_dataset(data, stop_before_pixels=False)
        try:
            syntax = transfer_syntax_of(dataset)
            image_id = text_of(dataset, "SOPInstanceUID") or stem
            return Header(
                image_id,
                syntax,
                text_of(dataset, "PatientID"),
                text_of(dataset, "StudyInstanceUID"),
                text_of(dataset, "Manufacturer"),
            )
        except PneumoError:
            raise
        except Exception as error:  # pydicom reads a value only now, and raises any class of error on a damaged one
            raise UnreadableImage(f"its header cannot be read: {_reason(error)}") from error


def read_dicom(path: Path) -> Radiograph:
    """Read one DICOM radiograph.

    Images of 8 bits without rescale and window are taken as stored. Otherwise the modality rescale (or table) and the
    first window (or VOI table) are applied (PS3.3 C.11.1, C.11.2, by pydicom) and the output range becomes 0 to 255;
    without a window the image's smallest value becomes 0 and its largest 255. A window that is no number, or that makes
    the whole image one grey because it misses its values, gives way to the file's next window, then to that range; a
    note says so. MONOCHROME1 and PresentationLUTShape INVERSE are inverted last, once. Colour is read when its three
    channels are equal.

    Raises:
        UnreadableImage: the file cannot be read, is no DICOM file, or does not hold one grey 2-D frame of
            sensible size.
    """
    return decode_dicom(read_limited(path), path.stem)


def decode_dicom(data: bytes, stem: str) -> Radiograph:
    """The radiograph in the bytes of a DICOM file; ``stem`` is its id when it has no SOPInstanceUID."""
    with quiet():
        return _decode(open_dataset(data, stop_before_pixels=False), stem)


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from warning of odd values: it quotes them, and a value may be a person's name.

    Warnings and pydicom's settings belong to the whole process, so only one thread at a time may run in here.
    """
    with _one_at_a_time, warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _decode(dataset: pydicom.Dataset, stem: str) -> Radiograph:
    try:
        photometric = check_pixels(dataset)
        syntax = transfer_syntax_of(dataset)
        plugin = DECODERS[syntax][0] if syntax in DECODERS else ""
        grey = photometric in GREY
        if syntax in GUARDED:
            dataset.PixelData = encapsulate([guarded(_frame(dataset))])
        stored = pixel_array(dataset, index=0, raw=grey, decoding_plugin=plugin)
        if not grey:
            stored = _one_channel(stored)
        if stored.ndim != 2:
            raise UnreadableImage(f"its pixels have {stored.ndim} dimensions; one 2-D frame is expected")
        if syntax == JPEG_BASELINE and ends_early(_frame(dataset), stored):
            raise UnreadableImage(ENDS_EARLY)
        image, grey_note = _to_grey(stored, dataset)
        shape = text_of(dataset, "PresentationLUTShape").upper()
        inverse = photometric == "MONOCHROME1" or (photometric == "MONOCHROME2" and shape == "INVERSE")
        if inverse and photometric == "MONOCHROME2":
            grey_note = f"{grey_note} The pixels were inverted (PresentationLUTShape INVERSE).".strip()
        return Radiograph(
            pixels=np.ascontiguousarray(255 - image if inverse else image),
            image_id=shown_image_id(text_of(dataset, "SOPInstanceUID"), stem),
            sex=one_of(text_of(dataset, "PatientSex"), ("M", "F")),
            age=years_of(text_of(dataset, "PatientAge")),
            view=one_of(text_of(dataset, "ViewPosition"), ("PA", "AP")),
            pixel_spacing_mm=_spacing(dataset),
            patient_id_tag=text_of(dataset, "PatientID"),
            study_uid_tag=text_of(dataset, "StudyInstanceUID"),
            other_view=_other_view(dataset),
            turned=_turned(dataset),
            photometric=photometric,
            grey_note=grey_note,
        )
    except PneumoError:
        raise
    except RecursionError:
        raise UnreadableImage("its sequences are nested too deeply") from None
    except MemoryError:
        raise UnreadableImage("decoding it needs more memory than one file may take") from None
    except Exception as error:  # pydicom and its plugins raise every class of error on damaged files
        raise UnreadableImage(f"its pixels cannot be decoded: {_reason(error)}") from error


def _frame(dataset: pydicom.Dataset) -> bytes:
    """The code stream of compressed pixels, which :func:`~.limits.check_pixels` found to be a single one."""
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def open_dataset(data: bytes, *, stop_before_pixels: bool, every_tag: bool = False) -> pydicom.Dataset:
    """The data set in the bytes of a DICOM file, with the tags needed here or every tag; for use within :func:`quiet`.

    Raises:
        UnreadableImage: it is no DICOM file, its header is damaged, or it unpacks to too much.
    """
    tags = None if every_tag else _TAGS
    try:
        data = with_preamble(data)
        check_deflated(data)
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels, specific_tags=tags)
    except PneumoError:
        raise
    except InvalidDicomError:
        raise UnreadableImage(
            "it is no DICOM file: the preamble and the letters DICM are missing, and it does not begin as one"
        ) from None
    except RecursionError:
        raise UnreadableImage("its sequences are nested too deeply") from None
    except Exception as error:  # as above
        raise UnreadableImage(f"its header cannot be read: {_reason(error)}") from error


def _to_grey(stored: np.ndarray, dataset: pydicom.Dataset) -> tuple[np.ndarray, str]:
    """Stored values to uint8 before inversion, and a note where a window was not followed; see :func:`read_dicom`."""
    _check_rescale(dataset)
    values = apply_modality_lut(stored, dataset)
    several = values.min() != values.max()
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        image = by_rows(lambda some: _scale(apply_voi(some.astype(np.int64), dataset), 0, 2**bits - 1), values)
        if not several or image.min() != image.max():
            return image, ""
    windows = _windows(dataset)
    for number, window in enumerate(windows):
        if window is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            # Far below and far above the window stand its output's two ends, whatever the file's bits and slope.
            low, high = apply_windowing(np.array([-1e30, 1e30]), dataset, index=number)
            image = by_rows(partial(_windowed, dataset=dataset, index=number, low=low, high=high), values)
        if not several or image.min() != image.max():
            return image, "The file's first window misses its values; the next one was used." if number else ""
    missed = "The file's window misses its values, so their own range was used." if windows else ""
    if stored.dtype == np.uint8 and dataset.get("BitsStored") == 8 and np.array_equal(values, stored):
        return stored, missed
    return stretch(values), missed


def _check_rescale(dataset: pydicom.Dataset) -> None:
    """Refuse a rescale that leaves no values: of slope 0, or not of finite numbers."""
    if dataset.get("ModalityLUTSequence"):
        return
    for name in ("RescaleSlope", "RescaleIntercept"):
        value = dataset.get(name)
        number = 1.0 if value is None or value == "" else float(value)
        if not math.isfinite(number) or abs(number) > 1e12 or (number == 0 and name == "RescaleSlope"):
            raise UnreadableImage(f"its {name} is zero, infinite or no number, so its grey values are not known")


def _windows(dataset: pydicom.Dataset) -> list[tuple[float, float] | None]:
    """Centre and width of each window; None for one that is not of sensible numbers."""
    centres, widths = (_values(dataset, name) for name in ("WindowCenter", "WindowWidth"))
    windows: list[tuple[float, float] | None] = []
    for centre, width in zip(centres, widths, strict=False):
        try:
            pair = float(centre), float(width)
        except ValueError:
            pair = math.nan, math.nan
        windows.append(pair if math.isfinite(pair[0]) and 0 < pair[1] <= 1e12 else None)
    return windows


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    """The grey pixels (H, W) of a picture (H, W, 3) whose channels are equal."""
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UnreadableImage("its pixels are not one picture of three channels")
    if (pixels[..., 0] != pixels[..., 1]).any() or (pixels[..., 0] != pixels[..., 2]).any():
        raise UnreadableImage("it is in colour; a grey radiograph is expected")
    return np.ascontiguousarray(pixels[..., 0])


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0).astype(np.uint8)


def _windowed(values: np.ndarray, dataset: pydicom.Dataset, index: int, low: float, high: float) -> np.ndarray:
    return _scale(apply_windowing(values, dataset, index=index), low, high)


def _spacing(dataset: pydicom.Dataset) -> float | None:
    spacings = []
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        with contextlib.suppress(ValueError):  # a text that is no number
            spacings.append(tuple(map(float, _values(dataset, name))))
    return square_spacing(spacings)


def _other_view(dataset: pydicom.Dataset) -> str:
    """:func:`other_view_of` a header."""
    codes = dataset.get("ViewCodeSequence")
    meaning = text_of(codes[0], "CodeMeaning") if codes else ""
    modality, body_part, view = (text_of(dataset, name) for name in ("Modality", "BodyPartExamined", "ViewPosition"))
    return other_view_of(modality, body_part, view, meaning)


def _turned(dataset: pydicom.Dataset) -> str:
    """:func:`turned_note` of a header; without PatientOrientation from ImageOrientationPatient (PS3.3 C.7.6.2.1.1)."""
    orientation = _values(dataset, "PatientOrientation")
    if not orientation:
        orientation = _directions(_values(dataset, "ImageOrientationPatient"))
    rotation = "".join(_values(dataset, "FieldOfViewRotation")[:1]).partition(".")[0]
    return turned_note(orientation, rotation, "".join(_values(dataset, "FieldOfViewHorizontalFlip")[:1]).upper())


def _directions(cosines: list[str]) -> list[str]:
    """The patient's main direction along the rows and down the columns, from six direction cosines."""
    try:
        values = np.array([float(value) for value in cosines]).reshape(2, 3)
    except ValueError:
        return []
    if not np.isfinite(values).all() or not values.any(axis=1).all():
        return []
    largest = np.abs(values).argmax(axis=1)  # axes point to the patient's left, back and head
    return ["LPH"[axis] if row[axis] > 0 else "RAF"[axis] for row, axis in zip(values, largest, strict=True)]


def _values(dataset: pydicom.Dataset, name: str) -> list[str]:
    """The values of one tag as texts; none when it is absent or empty."""
    value = dataset.get(name)
    if value is None or value == "":
        return []
    several = value if isinstance(value, MultiValue | list) else [value]
    return [str(each).replace("\0", "").strip() for each in several]


def _reason(error: BaseException) -> str:
    """A library's message without what it quotes, which may be a person's name, on one line of printable characters."""
    message = re.sub(r"b?'[^']*'|b?\"[^\"]*\"", "...", str(error))
    return one_line(message, 200) or type(error).__name__
