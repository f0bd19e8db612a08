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

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import fits_content_hash, read_json, replacing_contents, sha256_file
from keras_pneumo.storage.tables import listed

LIST = "package.json"
FORMAT = 1
SUBMISSION = "submission"
"""Folder of the predictions, where they go with it."""

MOST_FILES = 500
MOST_BYTES = 8 * 2**30
"""Limits of a package that is received: the largest detector of ours, of ten networks at 512 pixels, has 2 GiB."""

_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,99}/){0,3}[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)

Kind = Literal["run", "detector"]


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


def read_package(folder: Path) -> Package:
    """Read a package's list, and check every file against it.

    Raises:
        PneumoError: it is none, a file is missing, changed or not listed, or it is of a later version.
    """
    record = check_list(_json_of(folder / LIST), str(folder / LIST))
    files: dict[str, dict[str, Any]] = record["files"]
    changed = [name for name, each in files.items() if not _is(folder, name, each)]
    if changed:
        raise PneumoError(
            f"{folder}: {listed(changed)} {'is' if len(changed) == 1 else 'are'} missing or changed: the hash is not "
            f"the one in {LIST}. Get the package again."
        )
    # Weights that nobody listed could be predicted with: a run takes all checkpoints that it finds.
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    unlisted = sorted(name for name in there - {*files, LIST} if not name.startswith("."))
    if unlisted:
        raise PneumoError(
            f"{folder} holds {listed(unlisted)}, which {LIST} does not list. Delete that, or unpack the package "
            "into an empty folder."
        )
    hashes = {name: str(each["sha256"]) for name, each in files.items()}
    return Package(folder, record["kind"], record["name"], record["synthetic"], hashes, record["sha256"])


def check_list(record: Any, where: str) -> dict[str, Any]:
    """The list of a package, checked: it may come from anywhere.

    Args:
        record: the content of ``package.json``.
        where: what a refusal names.

    Raises:
        PneumoError: it is of a later version, was changed, or names a file outside of its folder.
    """
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(f"{where} is not of format {FORMAT}, the one that this version reads. Use a newer version.")
    if record.get("sha256") is None or not fits_content_hash(record):
        raise PneumoError(f"{where} was changed after it was written: its hash does not match. Get the package again.")
    files = record.get("files")
    whole = (
        record.get("kind") in ("run", "detector")
        and isinstance(record.get("name"), str)
        and isinstance(record.get("synthetic"), bool)
        and isinstance(files, dict)
        and 0 < len(files) <= MOST_FILES
    )
    if not whole or not isinstance(files, dict):
        raise PneumoError(f"{where} is no list of a package. Get the package again.")
    for name, each in files.items():
        if not _NAME.fullmatch(name) or name == LIST:
            raise PneumoError(
                f"{where} lists {name!r:.80}, which is no plain name of a file within the package. It may have been "
                "made to do harm: delete it."
            )
        digest, size = (each.get("sha256"), each.get("bytes")) if isinstance(each, dict) else (None, None)
        if not re.fullmatch(r"[0-9a-f]{64}", str(digest)) or type(size) is not int or size < 0:
            raise PneumoError(f"{where} has no hash or no size of {name}. Get the package again.")
    if (total := sum(each["bytes"] for each in files.values())) > MOST_BYTES:
        raise PneumoError(
            f"{where} lists {total / 2**30:,.0f} GiB; at most {MOST_BYTES // 2**30} are taken. It may have been made "
            "to fill the disk: delete it."
        )
    return record


def _is(folder: Path, name: str, expected: dict[str, Any]) -> bool:
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    if not inside or not path.is_file() or path.stat().st_size != expected["bytes"]:
        return False
    return sha256_file(path) == expected["sha256"]


def _json_of(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError:
        raise PneumoError(
            f"{path.parent} is no package: it has no {LIST}. Name a zip that export wrote, or its unpacked folder."
        ) from None
    except ValueError as error:
        raise PneumoError(f"{path} cannot be read: {error}. Get the package again.") from None
