"""A package: a run or a detector to be handed on, whose list has every file's size and hash; it may come from anywhere.

A package is a folder that loads as the run or the detector does that it was made of (:mod:`.packing`); it comes as one
zip (:mod:`.archive`) or from a hub (:mod:`.hub`)::

    package.json       what it is, and the SHA-256 and size of every file
    README.md          the model card
    a run:             experiment.json, best.weights.h5, best.safetensors, postprocess.json, log.csv, board.csv, ...
    a detector:        detector.json and the files that it lists, board/board.csv

With predictions also ``submission/``. It is checked against its list before anything else is read; no TensorFlow here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from keras_pneumo.config import Entries, validated
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import fits_content_hash, replacing_contents, sha256_file
from keras_pneumo.storage.tables import listed

LIST = "package.json"
FORMAT = 1
SUBMISSION = "submission"
"""Folder of the predictions, where they go with it."""

MOST_BYTES = 8 * 2**30
"""Limit of a package that is received: the largest detector of ours, of ten networks at 512 pixels, has 2 GiB."""

_PART = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
FileName = Annotated[str, Field(pattern=f"^({_PART}/){{0,3}}{_PART}$")]
"""A path that stays within the package, and names no hidden file."""

Kind = Literal["run", "detector"]


class _File(Entries):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class _List(Entries):
    """The content of ``package.json``."""

    kind: Kind
    name: str
    synthetic: bool
    files: Annotated[dict[FileName, _File], Field(min_length=1, max_length=500)]
    sha256: str


@dataclass(frozen=True)
class Package:
    """A package folder whose files are those of its list."""

    folder: Path
    kind: Kind
    name: str
    """Of the experiment, or of the detector."""
    synthetic: bool
    files: dict[str, str]
    """SHA-256 of every file but the list itself, by its name within the folder."""
    sha256: str
    """Of the list's content: two packages with the same one are the same."""


def copy_package(package: Package, out: Path) -> Package:
    """Copy a package into a new or empty folder, and check the copy.

    Raises:
        PneumoError: ``out`` holds something, or the copy is not the same.
    """
    require_new_folder(out)
    with replacing_contents(out, (LIST,)) as folder:
        shutil.copytree(package.folder, folder, dirs_exist_ok=True)
    return read_package(out)


def require_new_folder(out: Path, but: Sequence[str] = ()) -> None:
    """Refuse a folder that holds something, apart from the names in ``but``.

    Raises:
        PneumoError: it does, or it is a file.
    """
    if out.exists() and (not out.is_dir() or any(path.name not in but for path in out.iterdir())):
        raise PneumoError(f"{out} is not empty. Give a new or an empty folder; nothing was changed.")


def read_package(folder: Path, called: Path | None = None) -> Package:
    """Read a package's list, and check every file against it; a refusal names ``called``, by default the folder.

    Raises:
        PneumoError: it is none, a file is missing, changed or not listed, or it is of a later version.
    """
    called = called or folder
    try:
        data = (folder / LIST).read_bytes()
    except OSError:
        raise PneumoError(
            f"{called} is no package: it has no {LIST}. Name a zip that export wrote, or its unpacked folder."
        ) from None
    record = read_list(data, f"{LIST} of {called}")
    changed = [name for name, each in record.files.items() if not _is(folder, name, each)]
    if changed:
        raise PneumoError(
            f"{called}: {listed(changed)} {'is' if len(changed) == 1 else 'are'} missing or changed: the hash is not "
            f"the one in {LIST}. Get the package again."
        )
    # Weights that nobody listed could be predicted with: a run takes all checkpoints that it finds.
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if unlisted := sorted(name for name in there - {*record.files, LIST} if not name.startswith(".")):
        raise PneumoError(
            f"{called} holds {listed(unlisted)}, which {LIST} does not list. Delete that, or unpack the package "
            "into an empty folder."
        )
    hashes = {name: each.sha256 for name, each in record.files.items()}
    return Package(folder, record.kind, record.name, record.synthetic, hashes, record.sha256)


def read_list(data: bytes, where: str) -> _List:
    """The list of a package from the bytes of ``package.json``, checked; a refusal names ``where``.

    Raises:
        PneumoError: it is of a later version, was changed, or names a file outside of its folder.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PneumoError(f"{where} cannot be read: {error}. Get the package again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(f"{where} is not of format {FORMAT}, the one that this version reads. Use a newer version.")
    if record.get("sha256") is None or not fits_content_hash(record):
        raise PneumoError(f"{where} was changed after it was written: its hash does not match. Get the package again.")
    checked = validated(_List, record, where)
    if (total := sum(each.bytes for each in checked.files.values())) > MOST_BYTES:
        raise PneumoError(
            f"{where} lists {total / 2**30:,.0f} GiB; at most {MOST_BYTES // 2**30} are taken. It may have been made "
            "to fill the disk: delete it."
        )
    return checked


def _is(folder: Path, name: str, expected: _File) -> bool:
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    return inside and path.stat().st_size == expected.bytes and sha256_file(path) == expected.sha256
