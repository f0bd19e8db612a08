"""Reads DICOM files as grey radiographs, with named decoders and under limits.

In comes a path, out comes a :class:`Radiograph`: one 2-D frame, rescaled, windowed and inverted as its tags say. Any
other file raises :class:`UnreadableImage` with the reason. A file without the DICOM preamble is not taken for DICOM.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing, pixel_array

from keras_pneumo.data.radiographs.decoders import DECODERS
from keras_pneumo.data.radiographs.limits import check_deflated, check_pixels, text_of, transfer_syntax_of
from keras_pneumo.data.radiographs.radiograph import (
    Radiograph,
    UnreadableImage,
    one_of,
    square_spacing,
    stretch,
    turned_note,
    years_of,
)
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.errors import PneumoError

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # for the reason given in quiet

_TAGS = [
    *("SOPInstanceUID", "PatientID", "PatientSex", "PatientAge", "ViewPosition", "PixelSpacing", "ImagerPixelSpacing"),
    *("PatientOrientation", "ImageOrientationPatient", "FieldOfViewRotation", "FieldOfViewHorizontalFlip"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "SpecificCharacterSet"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
]


@dataclass(frozen=True)
class Header:
    """Identity of a DICOM file, read before its pixels are decoded."""

    image_id: str
    transfer_syntax: str
    patient_id_tag: str = field(default="", repr=False)


def read_header(data: bytes, stem: str) -> Header:
    """Identity and transfer syntax of the DICOM file whose bytes are given, without decoding pixels.

    Raises:
        UnreadableImage: not a DICOM file, damaged, or of a transfer syntax that holds no radiographs.
    """
    with quiet():
        dataset = _dataset(data, stop_before_pixels=True)
        syntax = transfer_syntax_of(dataset)
        return Header(text_of(dataset, "SOPInstanceUID") or stem, syntax, text_of(dataset, "PatientID"))


def read_dicom(path: Path) -> Radiograph:
    """Read one DICOM radiograph.

    Images of 8 bits without rescale and window are taken as stored. Otherwise the modality rescale (or table) and the
    first window (or VOI table) are applied (PS3.3 C.11.1, C.11.2, by pydicom) and the output range becomes 0 to 255;
    without a window the image's smallest value becomes 0 and its largest 255. MONOCHROME1 is inverted last.

    Raises:
        UnreadableImage: the file cannot be read, is no DICOM file, or does not hold one grey 2-D frame of
            sensible size.
    """
    return decode_dicom(read_limited(path), path.stem)


def decode_dicom(data: bytes, stem: str) -> Radiograph:
    """The radiograph in the bytes of a DICOM file; ``stem`` is its id when it has no SOPInstanceUID."""
    with quiet():
        return _decode(_dataset(data, stop_before_pixels=False), stem)


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
        stored = pixel_array(dataset, index=0, raw=True, decoding_plugin=plugin)
        if stored.ndim != 2:
            raise UnreadableImage(f"its pixels have {stored.ndim} dimensions; one 2-D frame is expected")
        image = _to_grey(stored, dataset)
        return Radiograph(
            pixels=np.ascontiguousarray(255 - image if photometric == "MONOCHROME1" else image),
            image_id=text_of(dataset, "SOPInstanceUID") or stem,
            sex=one_of(text_of(dataset, "PatientSex"), ("M", "F")),
            age=years_of(text_of(dataset, "PatientAge")),
            view=one_of(text_of(dataset, "ViewPosition"), ("PA", "AP")),
            pixel_spacing_mm=_spacing(dataset),
            patient_id_tag=text_of(dataset, "PatientID"),
            turned=_turned(dataset),
            photometric=photometric,
        )
    except PneumoError:
        raise
    except RecursionError:
        raise UnreadableImage("its sequences are nested too deeply") from None
    except Exception as error:  # pydicom and its plugins raise every class of error on damaged files
        raise UnreadableImage(f"its pixels cannot be decoded: {_reason(error)}") from error


def _dataset(data: bytes, *, stop_before_pixels: bool) -> pydicom.Dataset:
    try:
        check_deflated(data)
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=stop_before_pixels, specific_tags=_TAGS)
    except PneumoError:
        raise
    except InvalidDicomError:
        raise UnreadableImage("it is no DICOM file: the preamble and the letters DICM are missing") from None
    except RecursionError:
        raise UnreadableImage("its sequences are nested too deeply") from None
    except Exception as error:  # as above
        raise UnreadableImage(f"its header cannot be read: {_reason(error)}") from error


def _to_grey(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored values to uint8 before inversion; see :func:`read_dicom` for how."""
    has_table = bool(dataset.get("VOILUTSequence"))
    has_window = dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None
    values = apply_modality_lut(stored, dataset)
    if has_table:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return _scale(apply_voi(values.astype(np.int64), dataset), 0, 2**bits - 1)
    if has_window:
        with np.errstate(over="ignore"):
            # Far below and far above the window stand its output's two ends, whatever the file's bits and slope.
            low, high = apply_windowing(np.array([-1e30, 1e30]), dataset)
        return _scale(apply_windowing(values, dataset), low, high)
    if stored.dtype == np.uint8 and dataset.get("BitsStored") == 8 and np.array_equal(values, stored):
        return stored
    return stretch(values)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0).astype(np.uint8)


def _spacing(dataset: pydicom.Dataset) -> float | None:
    values = (dataset.get(name) for name in ("PixelSpacing", "ImagerPixelSpacing"))
    return square_spacing(tuple(map(float, value)) for value in values if value is not None and len(value) == 2)


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
    return " ".join((str(error).strip() or type(error).__name__).split())[:200]
