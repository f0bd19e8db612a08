"""Finds radiographs in folders and reads them, whatever their file format.

In come folders and files, out come paths, and for each file a :class:`Radiograph` or the reason why it is none. It
brings no TensorFlow, no pandas and, before a file needs it, no pydicom, because every worker process that reads files
imports it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from keras_pneumo.data.radiographs.plain import decode_plain
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import decode_image, read_limited
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_SUFFIXES, counted, listed, printable, set_aside_sentences

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg")


LINK_OUT = (
    "it is a link to outside of the folder, and such links are not followed; copy what it names into the folder, or "
    "name its own folder"
)
"""Why a link is set aside: a folder that others made must not have files of this machine read and shown."""


OTHER_FORMATS = (
    ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k", ".jxl",
    ".heic", ".dcm.gz",
)  # fmt: skip
"""Endings of images that are not read, so that they are named rather than passed over in silence."""

NOT_READ = "images of this format are not read; convert it to DICOM, PNG or JPEG"


class FoundImages(NamedTuple):
    """The files of a folder that may be radiographs."""

    paths: list[Path]
    """Sorted."""
    mask_folders: list[str]
    """Folders that were not searched because they are named after masks, relative to the folder."""
    links_out: list[Path]
    """Links to files or folders outside of the folder, which are not followed (:data:`LINK_OUT`); sorted."""
    other_formats: list[Path]
    """Files with one of the endings of :data:`OTHER_FORMATS`; sorted."""


class FoundFiles(NamedTuple):
    """Radiographs that were named one by one or by their folder."""

    files: list[tuple[Path, str]]
    """Each file with its name in the tables."""
    refused: list[dict[str, object]]
    """``file, reason`` of what is set aside before it is opened: links out of a folder, images of other formats."""


def find_images(folder: Path, skip: Collection[Path] = ()) -> FoundImages:
    """Every file under ``folder`` that may be a radiograph, and what was not searched.

    Files count by their ending, or as DICOM by their first bytes when they have none. Hidden files and folders,
    prepared folders and the folders in ``skip`` are not entered; nor are folders named after masks, because
    drawn masks often carry the very names of their images and would be taken for them. Links are followed only where
    they stay inside ``folder``, which may be a link itself.

    Raises:
        PneumoError: ``folder`` is not a folder that can be read.
    """
    if not folder.is_dir():
        raise PneumoError(f"{folder} is not a folder. Give the folder that holds the radiographs and the label csv.")
    top = folder.resolve()
    skipped = {path.resolve() for path in skip}
    images: list[Path] = []
    mask_folders: list[str] = []
    links_out: list[Path] = []
    other_formats: list[Path] = []
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
        out = [name for name in folders if _leads_out(here / name, top)]
        folders[:] = [name for name in folders if name not in out]
        links_out += [here / name for name in out if (here / name).resolve() not in skipped]
        for name in files:
            path = here / name
            if name.startswith("."):
                continue
            if _leads_out(path, top):
                links_out += [path] if _is_named_as_image(path) is not False else []
            elif _may_be_image(path):
                images.append(path)
            elif name.lower().endswith(OTHER_FORMATS):
                other_formats.append(path)
    return FoundImages(sorted(images), mask_folders, sorted(links_out), sorted(other_formats))


def _leads_out(path: Path, top: Path) -> bool:
    """Whether ``path`` is a link to outside of the folder ``top``, which is no link."""
    return path.is_symlink() and not path.resolve().is_relative_to(top)


def not_searched(mask_folder: str) -> str:
    """A sentence on a folder of :attr:`FoundImages.mask_folders` whose masks are not used."""
    return f"The folder {mask_folder} was not searched: masks come from the csv."


def other_format_notes(folder: Path, found: FoundImages) -> list[str]:
    """A sentence on the files of :attr:`FoundImages.other_formats`, if there are any."""
    if not found.other_formats:
        return []
    names = listed((_name_in(folder, path) for path in found.other_formats), 3)
    return [
        f"{counted(len(found.other_formats), 'file')} beside the radiographs cannot be read ({names}). Convert what is "
        "meant to be one to DICOM, PNG or JPEG."
    ]


def find_files(paths: Sequence[Path], out: Path | None = None) -> FoundFiles:
    """Every radiograph named or in a named folder, with its name in the tables.

    Args:
        paths: files and folders. A file that is named is read wherever a link leads.
        out: where pictures will be written: not searched, since those of an earlier call are no radiographs.

    Raises:
        PneumoError: a path does not exist, or is ``out`` itself, or there is no radiograph at all.
    """
    files: list[tuple[Path, str]] = []
    refused: list[dict[str, object]] = []
    skip = [] if out is None else [out]
    for path in paths:
        if path.is_dir():
            if out is not None and path.resolve() == out.resolve():
                raise PneumoError(
                    f"{path} holds the radiographs, and pictures written there would be taken for some. Name another "
                    "--out; a folder within it will do."
                )
            found = find_images(path, skip)
            files += [(image, _name_in(path, image)) for image in found.paths]
            refused += _set_aside(path, found)
        elif path.exists():
            files.append((path, printable(path.name)))
        else:
            raise PneumoError(f"There is no {path}. Name DICOM, PNG or JPEG files, or a folder that holds them.")
    if not files:
        raise _no_radiograph(paths, refused)
    return FoundFiles(files, refused)


def require_radiographs(folder: Path, found: FoundImages) -> None:
    """Check that something was found in a folder.

    Raises:
        PneumoError: nothing was; the message names the files there that are not read.
    """
    if not found.paths:
        raise _no_radiograph([folder], _set_aside(folder, found))


def _set_aside(folder: Path, found: FoundImages) -> list[dict[str, object]]:
    """``file, reason`` of what a folder holds that is not opened."""
    pairs = ((LINK_OUT, found.links_out), (NOT_READ, found.other_formats))
    return [{"file": _name_in(folder, path), "reason": reason} for reason, files in pairs for path in files]


def _no_radiograph(paths: Sequence[Path], refused: Sequence[dict[str, object]]) -> PneumoError:
    advice = " ".join(set_aside_sentences(refused)) or "Name the folder that holds the radiographs."
    return PneumoError(f"{', '.join(map(str, paths))}: there is no DICOM, PNG or JPEG file. {advice}")


def _name_in(folder: Path, path: Path) -> str:
    return printable(path.relative_to(folder).as_posix())


def read_radiograph(path: Path) -> Radiograph:
    """Read a PNG or JPEG file by its ending, and every other file as DICOM.

    Raises:
        UnreadableImage: with the reason; see :func:`~.dicom.read_dicom` and :func:`~.raster.decode_image`.
    """
    return decode_radiograph(read_limited(path), path)


def decode_radiograph(data: bytes, path: Path) -> Radiograph:
    """The radiograph in the bytes of a file, read by its ending as :func:`read_radiograph` does.

    Raises:
        UnreadableImage: likewise.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return decode_image(data, path.stem)
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


def _is_named_as_image(path: Path) -> bool | None:
    """Whether a file's ending is one of radiographs; None where it has none, so that only its bytes can tell."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # a UID without ending seems to end in .123456
        return False
    return None


def _may_be_image(path: Path) -> bool:
    named = _is_named_as_image(path)
    if named is not None:
        return named
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
