"""Checkpoints: everything a training needs to go on, on the disk, whole or not at all.

In: arrays by name, a state that is plain JSON, and files of the run folder that belong to this moment (the best
weights). Out: a folder ``checkpoints/at_EEEE_SSSSSS`` (epochs and steps done) with ``arrays.safetensors``,
``state.json``, ``kept/`` and, written last, ``COMPLETE.json`` with the SHA-256 of each file. The folder is written
under a temporary name, flushed and renamed, so a kill at any moment leaves the one before it; a truncated or altered
one is passed over when it is read. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes, sha256_file, write_bytes

FOLDER = "checkpoints"
ARRAYS, STATE, KEPT, MARKER = "arrays.safetensors", "state.json", "kept", "COMPLETE.json"
COMPLETE_ONES = 2
"""How many complete checkpoints stay; the older one is there for the case that the disk damages the newer."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, verified."""

    folder: Path
    arrays: Arrays
    state: dict[str, Any]

    @property
    def kept(self) -> dict[str, Path]:
        """The run folder's files of that moment, by their path in the run folder."""
        return _kept(self.folder)


def save(run: Path, epoch: int, step: int, arrays: Arrays, state: dict[str, Any], files: Iterable[str]) -> Path:
    """Write a checkpoint of the run folder ``run`` and remove all but the last two.

    Args:
        run: the run folder.
        epoch: epochs done.
        step: steps done of the epoch after them.
        arrays: weights, optimizer and the like, by name.
        state: plain JSON.
        files: paths in the run folder of the files that belong to this moment; they are linked, not copied, so they
            must be replaced by renaming, never written to in place.

    Raises:
        PneumoError: the disk is full or closed to us; the checkpoints before then stand, and nothing of this one is
        left.
    """
    folder = run / FOLDER
    target = folder / f"at_{epoch:04d}_{step:06d}"
    temporary = folder / f".writing_{target.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / KEPT).mkdir(parents=True)
        hashes = {
            ARRAYS: _write(temporary / ARRAYS, safetensors.numpy.save(arrays)),
            STATE: _write(temporary / STATE, (json.dumps(state, indent=1) + "\n").encode()),
        }
        for name in files:
            (temporary / KEPT / name).parent.mkdir(exist_ok=True)
            _link(run / name, temporary / KEPT / name)
            hashes[f"{KEPT}/{name}"] = sha256_file(temporary / KEPT / name)
        _write(temporary / MARKER, (json.dumps(hashes, indent=1, sort_keys=True) + "\n").encode())
        flush_folder(temporary)
        if target.exists():  # the same moment again, after going back
            shutil.rmtree(target)
        temporary.rename(target)
        flush_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise PneumoError(_sentence(folder, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    keep(run, COMPLETE_ONES)
    return target


def keep(run: Path, count: int) -> None:
    """Remove all but the last ``count`` complete checkpoints, and what interrupted writes left."""
    for left in (run / FOLDER).glob(".writing_*"):
        shutil.rmtree(left, ignore_errors=True)
    complete = [folder for folder in folders(run) if (folder / MARKER).is_file()]
    for folder in complete[: len(complete) - count]:
        (folder / MARKER).unlink(missing_ok=True)  # first, so that a half-removed one is never taken for whole
        shutil.rmtree(folder, ignore_errors=True)


def folders(run: Path) -> list[Path]:
    """The checkpoints' folders, oldest first."""
    return sorted((run / FOLDER).glob("at_*_*"))


def latest(run: Path, tell: Callable[[str], None] = lambda sentence: None) -> Checkpoint | None:
    """The last complete checkpoint that is as it was written; damaged ones are passed over, each with a sentence."""
    for folder in reversed(folders(run)):
        try:
            return read(folder)
        except PneumoError as fault:
            tell(str(fault))
    return None


def read(folder: Path) -> Checkpoint:
    """One checkpoint, every file compared with the hash that was written last.

    Raises:
        PneumoError: it is not complete, or a file is missing, truncated or altered.
    """
    try:
        hashes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        contents = {name: (folder / name).read_bytes() for name in (ARRAYS, STATE)}
        found = {name: sha256_bytes(content) for name, content in contents.items()}
        found |= {name: sha256_file(folder / name) for name in hashes if name not in contents}
        if wrong := [name for name, value in hashes.items() if found.get(name) != value]:
            raise PneumoError(f"{folder} is passed over: {', '.join(wrong)} is not as it was written.")
        return Checkpoint(folder, safetensors.numpy.load(contents[ARRAYS]), json.loads(contents[STATE]))
    except (OSError, ValueError, KeyError, AttributeError, safetensors.SafetensorError) as error:
        raise PneumoError(f"{folder} is passed over: it is not complete ({type(error).__name__}).") from error


def put_back(run: Path, checkpoint: Checkpoint, removable: str) -> None:
    """Make the run folder's files those of the checkpoint's moment.

    Args:
        run: the run folder.
        checkpoint: from :func:`latest`.
        removable: pattern of files in the run folder that came later and are to go.
    """
    for path in run.glob(removable):
        if path.relative_to(run).as_posix() not in checkpoint.kept:
            path.unlink()
    for name, path in checkpoint.kept.items():
        if not (run / name).is_file() or not (run / name).samefile(path):
            write_bytes(run / name, path.read_bytes())


def _kept(folder: Path) -> dict[str, Path]:
    root = folder / KEPT
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def _write(path: Path, content: bytes) -> str:
    """Write and flush; the hash is of what was meant, so what the disk made of it is found out."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return sha256_bytes(content)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        _write(target, source.read_bytes())  # a disk without hard links


def flush_folder(folder: Path) -> None:
    """Flush a folder's names; some network disks do not know how, and then their server does it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sentence(folder: Path, error: OSError) -> str:
    return (
        f"The checkpoint could not be written in {folder}: {error.strerror or error}. The one before it stands. Free "
        "some space there and run the same command again; it goes on from there."
    )
