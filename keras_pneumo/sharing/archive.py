"""A package as one zip, written and unpacked; what is unpacked may come from anywhere.

Writing: a package folder becomes a zip with the same bytes for the same package. Unpacking: nothing is written before
the list within was read, and only files that it lists, each with its size and its hash, so that no path leaves the
folder, no file fills the disk, and no changed byte is taken.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing.package import LIST, Package, read_list, read_package, require_new_folder
from keras_pneumo.storage.files import (
    LOCK_NAME,
    cache_folder,
    folder_lock,
    replacing,
    replacing_contents,
    sha256_file,
)
from keras_pneumo.storage.tables import listed

_MOST_LIST = 2**20
"""Bytes of the list, at most."""
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises of a damaged or an encrypted zip."""
_STORED = (".h5", ".safetensors", ".png", ".npy")
"""What packing makes no smaller."""


def write_zip(package: Package, out: Path) -> str:
    """Write a package as one zip, the list first; returns the zip's SHA-256.

    Raises:
        PneumoError: ``out`` exists, or the disk refuses.
    """
    if out.exists():
        raise PneumoError(f"{out} exists already. Choose another name; nothing was changed.")
    try:
        with replacing(out) as stream, zipfile.ZipFile(stream, "w") as archive:
            for name in (LIST, *package.files):
                entry = zipfile.ZipInfo(name)  # of 1980: the same package gives the same zip
                entry.compress_type = _PACKINGS[not name.endswith(_STORED)]
                entry.external_attr = 0o644 << 16
                entry.file_size = (package.folder / name).stat().st_size
                with (package.folder / name).open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)
    except OSError as error:
        raise PneumoError(
            f"Cannot write {out}: {error.strerror or error}. Free some space there, or choose another folder."
        ) from error
    return sha256_file(out)


def unpack_zip(source: Path, out: Path) -> Package:
    """Unpack the zip of a package into a new or empty folder, and check every file.

    Raises:
        PneumoError: it is no such zip, a file is missing, changed or not listed, a name leaves the folder, or ``out``
            holds something; nothing of it is then left.
    """
    require_new_folder(out, but=(LOCK_NAME,))
    try:
        with zipfile.ZipFile(source) as archive:
            names = _checked_names(archive, source)
            with folder_lock(out), replacing_contents(out, (LIST,)) as folder:
                for name in names:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    # zipfile gives no more bytes than the size that was compared with the list.
                    with archive.open(name) as packed, (folder / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
                package = read_package(folder, source)
    except FileNotFoundError:
        raise PneumoError(f"There is no file {source}. Name a zip that export wrote.") from None
    except _DAMAGED as error:
        raise PneumoError(f"{source} is no whole zip ({error}). Copy it again.") from None
    return replace(package, folder=out)


def _checked_names(archive: zipfile.ZipFile, source: Path) -> list[str]:
    """The names of the zip's files, which are those of its checked list, of the same sizes.

    Raises:
        PneumoError: they are not.
    """
    entries = archive.infolist()
    sizes = {entry.filename: entry.file_size for entry in entries}
    if LIST not in sizes:
        raise PneumoError(f"{source} is no package: it has no {LIST}. Name a zip that export --format zip wrote.")
    if sizes[LIST] > _MOST_LIST:
        raise PneumoError(f"{LIST} in {source} is larger than any list of ours. It may do harm: delete the zip.")
    listing = read_list(archive.read(LIST), f"{LIST} of {source}")
    wanted = {LIST: sizes[LIST], **{name: each.bytes for name, each in listing.files.items()}}
    other = sorted(name for name in {*sizes, *wanted} if sizes.get(name) != wanted.get(name))
    if other or len(entries) > len(sizes) or any(entry.compress_type not in _PACKINGS for entry in entries):
        raise PneumoError(
            f"{source} is not what its list says: {listed((repr(name)[:80] for name in other), 3) or 'a file'} is "
            "missing, not listed, of another size, there twice, or packed in another way. Get the zip again."
        )
    return list(wanted)


def unpacked(source: Path) -> Path:
    """The folder of a zip's package in this user's cache, unpacked once and checked each time.

    Raises:
        PneumoError: as :func:`unpack_zip`.
    """
    if not source.is_file():
        raise PneumoError(f"There is no file {source}. Name a zip that export wrote.")
    folder = cache_folder() / "packages" / sha256_file(source)[:32]
    if (folder / LIST).is_file():
        return read_package(folder).folder
    return unpack_zip(source, folder).folder
