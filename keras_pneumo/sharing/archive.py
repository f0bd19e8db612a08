"""A package as one zip, written and unpacked; what is unpacked may come from anywhere.

Writing: a package folder becomes a zip with the same bytes for the same package. Unpacking: nothing is written before
the list within was read, and only files that it lists, each with its size and its hash, so that no path leaves the
folder, no file fills the disk, and no changed byte is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing.package import LIST, Package, check_list, read_package, require_new_folder
from keras_pneumo.storage.files import (
    LOCK_NAME,
    cache_folder,
    folder_lock,
    replacing,
    replacing_contents,
    sha256_file,
)
from keras_pneumo.storage.tables import listed

_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in a zip: the earliest that the format knows."""
_PIECE = 1 << 20
_MOST_LIST = 2**20
"""Bytes of the list, at most."""
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises of a damaged zip."""
_STORED = (".h5", ".safetensors", ".png", ".npy")
"""What packing makes no smaller."""


def write_zip(package: Package, out: Path) -> str:
    """Write a package as one zip, the list first; returns the zip's SHA-256.

    Raises:
        PneumoError: a file changed meanwhile, ``out`` exists, or the disk refuses.
    """
    if out.exists():
        raise PneumoError(f"{out} exists already. Choose another name; nothing was changed.")
    try:
        with replacing(out) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in (LIST, *package.files):
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                path = package.folder / name
                digest = hashlib.sha256()
                entry.file_size = path.stat().st_size
                with path.open("rb") as source, archive.open(entry, "w") as target:
                    while piece := source.read(_PIECE):
                        digest.update(piece)
                        target.write(piece)
                if name != LIST and digest.hexdigest() != package.files[name]:
                    raise PneumoError(f"{path} changed while the zip was written. Export again.")
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
            entries, record = _checked_entries(archive, source)
            with folder_lock(out), replacing_contents(out, (LIST,)) as folder:
                for name, each in record["files"].items():
                    _extract(archive, entries[name], folder / name, each, source)
                (folder / LIST).write_bytes(_list_bytes(archive, entries[LIST], source))
                package = read_package(folder)
    except FileNotFoundError:
        raise PneumoError(f"There is no file {source}. Name a zip that export wrote.") from None
    except _DAMAGED as error:
        raise PneumoError(f"{source} is no whole zip ({error}). Copy it again.") from None
    return replace(package, folder=out)


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


def _checked_entries(archive: zipfile.ZipFile, source: Path) -> tuple[dict[str, zipfile.ZipInfo], dict[str, Any]]:
    """The zip's files by name, and its checked list; both name the same files of the same sizes.

    Raises:
        PneumoError: they do not.
    """
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)
        plain = kind in (0, stat.S_IFREG) and not entry.is_dir() and not entry.flag_bits & 1
        if entry.filename in entries or not plain or entry.compress_type not in _PACKINGS:
            raise PneumoError(
                f"{source} holds {entry.filename!r:.80} twice, encrypted, packed in another way, or as a link or a "
                "folder. It was not written by export: delete it."
            )
        entries[entry.filename] = entry
    if LIST not in entries:
        raise PneumoError(f"{source} is no package: it has no {LIST}. Name a zip that export --format zip wrote.")
    try:
        content = json.load(io.BytesIO(_list_bytes(archive, entries[LIST], source)))
    except (ValueError, RecursionError) as error:
        raise PneumoError(f"{LIST} in {source} cannot be read ({error}). Get the zip again.") from None
    record = check_list(content, f"{LIST} in {source}")
    files = record["files"]
    if strange := sorted(set(entries) - {*files, LIST}):
        raise PneumoError(
            f"{source} holds {listed((repr(name)[:80] for name in strange), 3)}, which its list does not name. It was "
            "not written by export: delete it."
        )
    if missing := sorted(set(files) - set(entries)):
        raise PneumoError(f"{source} lacks {listed(missing, 3)}. Copy it again.")
    if wrong := [name for name, each in files.items() if entries[name].file_size != each["bytes"]]:
        raise PneumoError(f"{source}: {listed(wrong, 3)} has another size than its list says. Get the zip again.")
    return entries, record


def _list_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, source: Path) -> bytes:
    with archive.open(entry) as stream:
        data = stream.read(_MOST_LIST + 1)
    if len(data) > _MOST_LIST:
        raise PneumoError(f"{LIST} in {source} is larger than any list of ours. It may do harm: delete the zip.")
    return data


def _extract(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, each: dict[str, Any], source: Path
) -> None:
    """Write one listed file; never more bytes than the list says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), int(each["bytes"])
    with archive.open(entry) as stream, target.open("wb") as file:
        while piece := stream.read(_PIECE):
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            file.write(piece)
    if left or digest.hexdigest() != each["sha256"]:
        raise PneumoError(
            f"{source}: {entry.filename} was changed: its size or its hash is not the listed one. Get the zip again."
        )
