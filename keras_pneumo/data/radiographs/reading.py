"""Finds radiographs in folders and reads them, whatever their file format.

In come folders and files, out come paths, and for each file a :class:`Radiograph` or the reason why it is none. It
brings no TensorFlow, no pandas and, before a file needs it, no pydicom, because every worker process that reads files
imports it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from keras_pneumo.data.radiographs.plain import decode_plain
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import read_image, read_limited
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_SUFFIXES, printable

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")


class FoundImages(NamedTuple):
    """The files of a folder that may be radiographs."""

    paths: list[Path]
    """Sorted."""
    mask_folders: list[str]
    """Folders that were not searched because they are named after masks, relative to the folder."""


def find_images(folder: Path, skip: Collection[Path] = ()) -> FoundImages:
    """Every file under ``folder`` that may be a radiograph, and the folders that were not searched.

    Files count by their ending, or as DICOM by their first bytes when they have none. Hidden files and folders,
    prepared folders and the folders in ``skip`` are not entered; nor are folders named after masks, because
    drawn masks often carry the very names of their images and would be taken for them.

    Raises:
        PneumoError: ``folder`` is not a folder that can be read.
    """
    if not folder.is_dir():
        raise PneumoError(f"{folder} is not a folder. Give the folder that holds the radiographs and the label csv.")
    skipped = {path.resolve() for path in skip}
    images: list[Path] = []
    mask_folders: list[str] = []
    visited: set[Path] = set()
    for base, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        here = Path(base)
        real = here.resolve()
        if real in visited or real in skipped or ("manifest.json" in files and "cases.csv" in files):
            folders.clear()
            continue
        visited.add(real)
        masks = sorted(name for name in folders if "mask" in name.lower())
        mask_folders += [printable((here / name).relative_to(folder).as_posix()) for name in masks]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in masks)
        images += [here / name for name in files if not name.startswith(".") and _may_be_image(here / name)]
    return FoundImages(sorted(images), mask_folders)


def not_searched(mask_folder: str) -> str:
    """A sentence on a folder of :attr:`FoundImages.mask_folders` whose masks are not used."""
    return f"The folder {mask_folder} was not searched: masks come from the csv."


def find_files(paths: Sequence[Path], out: Path | None = None) -> list[tuple[Path, str]]:
    """Every radiograph named or in a named folder, with its name in the tables.

    Args:
        paths: files and folders.
        out: where pictures will be written: not searched, since those of an earlier call are no radiographs.

    Raises:
        PneumoError: a path does not exist, or is ``out`` itself, or there is no radiograph at all.
    """
    files: list[tuple[Path, str]] = []
    skip = [] if out is None else [out]
    for path in paths:
        if path.is_dir():
            if out is not None and path.resolve() == out.resolve():
                raise PneumoError(
                    f"{path} holds the radiographs, and pictures written there would be taken for some. Name another "
                    "--out; a folder within it will do."
                )
            files += [(image, printable(image.relative_to(path).as_posix())) for image in find_images(path, skip)[0]]
        elif path.is_file():
            files.append((path, printable(path.name)))
        else:
            raise PneumoError(f"There is no {path}. Name DICOM, PNG or JPEG files, or a folder that holds them.")
    if not files:
        raise PneumoError(f"{', '.join(map(str, paths))}: there is no DICOM, PNG or JPEG file. Name another folder.")
    return files


def read_radiograph(path: Path) -> Radiograph:
    """Read a PNG or JPEG file by its ending, and every other file as DICOM.

    Raises:
        UnreadableImage: with the reason; see :func:`~.dicom.read_dicom` and :func:`~.raster.read_image`.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return read_image(path)
    data = read_limited(path)
    plain = decode_plain(data, path.stem)
    if plain is not None:
        return plain
    from keras_pneumo.data.radiographs.dicom import decode_dicom

    return decode_dicom(data, path.stem)


def read_or_reason(path: Path) -> Radiograph | str:
    """A radiograph, or the reason why it is none, in a form that worker processes can hand back."""
    try:
        return read_radiograph(path)
    except UnreadableImage as error:
        return str(error)


def _raise_unreadable(error: OSError) -> NoReturn:
    raise PneumoError(
        f"The folder {error.filename} cannot be read: {error.strerror}. Give yourself the right to read it."
    )


def _may_be_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # a UID without ending seems to end in .123456
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
