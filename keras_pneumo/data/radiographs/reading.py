"""Any radiograph file to pixels, chosen by its ending: for preparing and for predicting on files as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_pneumo.data.radiographs.dicom import read_dicom
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import read_image

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_radiograph(path: Path) -> Radiograph:
    """Read a PNG or JPEG file by its ending, and every other file as DICOM.

    Raises:
        UnreadableImage: with the reason; see :func:`read_dicom` and :func:`read_image`.
    """
    return read_image(path) if path.suffix.lower() in RASTER_SUFFIXES else read_dicom(path)


def read_or_reason(path: Path) -> Radiograph | str:
    """A radiograph, or why it is none, in a form that worker processes can hand back.

    It stands here because a worker imports the module of what it runs, and this one brings no TensorFlow.
    """
    try:
        return read_radiograph(path)
    except UnreadableImage as error:
        return str(error)


def iter_images(paths: Iterable[Path]) -> Iterator[tuple[Path, Radiograph | UnreadableImage]]:
    """Read files one after another; a bad one comes out as its error, so that it never stops the others.

    Yields:
        The path with the radiograph, whose ``pixels`` are uint8 of shape (height, width), or with the reason.
    """
    for path in paths:
        try:
            yield path, read_radiograph(path)
        except UnreadableImage as error:
            yield path, error
