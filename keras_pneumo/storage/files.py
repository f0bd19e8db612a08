"""Writes files whole or not at all, hashes them, and locks folders.

In come bytes, tables and paths; out go files that are either whole or absent. Every fault of the disk (full, read-only,
no permission) becomes one sentence, with the old file still in place and the temporary one gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import filelock

from keras_pneumo.errors import PneumoError

if TYPE_CHECKING:  # each worker process imports this module, and pandas takes most of a second
    import pandas as pd

TEMPORARY_SUFFIX = ".part"
"""Ending of a file that is still being written; such a file may be deleted by whoever holds the folder's lock."""

_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
"""The names that :func:`replacing` has mkstemp make: anybody may have a file that merely ends in ``.part``."""

LOCK_NAME = ".lock"
_CHUNK = 1 << 20


def sha256_bytes(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes, durable: bool = True) -> str:
    """Write ``data`` to ``path``, making its folder: to a temporary name, flushed to the disk, then renamed.

    Args:
        path: the file.
        data: what it is to hold.
        durable: False leaves the flushing to the system: a power cut may then leave a damaged file.

    Returns:
        The SHA-256 of ``data``, so that a caller can record it without reading the file again.

    Raises:
        PneumoError: the disk is full, read-only or closed to us; ``path`` is then as it was before.
    """
    try:
        with replacing(path, durable) as stream:
            stream.write(data)
    except OSError as error:
        raise PneumoError(_disk_message(path, error)) from error
    return sha256_bytes(data)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A stream to a temporary file beside ``path``, which takes its name when the block ends without an error.

    For contents that come piece by piece; :func:`write_bytes` is this for bytes in memory.

    Raises:
        OSError: the disk refuses; the temporary file is gone, and ``path`` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        # mkstemp makes files for their owner alone; a prepared folder is read by the other team too.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)


def create_secret(path: Path, data: bytes) -> bool:
    """Write a file that its owner alone may read, whole or not at all, where there is none yet.

    Returns:
        Whether it was written; False where another process was first, whose file is left as it is.

    Raises:
        PneumoError: the disk is full, read-only or closed to us.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:  # mkstemp makes files for their owner alone
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(temporary, path)  # unlike a rename it never replaces a file
            except FileExistsError:
                return False
            except OSError:  # a disk without links
                if path.exists():
                    return False
                Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise PneumoError(_disk_message(path, error)) from error
    return True


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to the disk; some network disks do not know how, and then their server does it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> str:
    """Write ``value`` as JSON with sorted keys, the same bytes for the same value; returns the hash."""
    return write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON in UTF-8, or nested more deeply than any file of ours.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write ``table`` as UTF-8 csv with a header and ``\\n`` line ends; missing values are blank; returns the hash."""
    return write_bytes(path, table_bytes(table))


def table_bytes(table: pd.DataFrame) -> bytes:
    """The bytes that :func:`write_table` writes."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def require_writable(folder: Path) -> None:
    """Make ``folder`` and try to write in it.

    Raises:
        PneumoError: that is not possible; call this before any work.
    """
    if folder.exists() and not folder.is_dir():
        raise PneumoError(f"{folder} is a file, but a folder is to be written there. Give another name.")
    probe = folder / f".probe-{os.getpid()}"
    write_bytes(probe, b"")
    probe.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that :func:`write_bytes` was still writing."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporary(folder: Path) -> None:
    """Delete the files that an interrupted run left half written in ``folder``, at any depth."""
    for path in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        if is_temporary(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def cache_folder() -> Path:
    """The user's folder for downloads and measurements: ``$KERAS_PNEUMO_CACHE``, else :func:`default_cache_folder`."""
    named = os.environ.get("KERAS_PNEUMO_CACHE")
    return Path(named) if named else default_cache_folder()


def default_cache_folder() -> Path:
    """``$XDG_CACHE_HOME/keras_pneumo``, else ``~/.cache/keras_pneumo``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "keras_pneumo"


def acquire(path: Path, busy: str) -> filelock.BaseFileLock:
    """A lock on a file, held by this process; it goes away with the process, however that ends.

    Raises:
        PneumoError: another process holds it; ``busy`` says what to do.
        OSError: the disk refuses a lock.
    """
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise PneumoError(busy) from None
    return lock


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the lock goes away with the process, however that ends.

    Raises:
        PneumoError: another process holds it.
    """
    busy = f"Another run is working in {folder}. Wait until it has ended, or give this one a folder of its own."
    try:
        lock = acquire(folder / LOCK_NAME, busy)
    except OSError as error:
        raise PneumoError(_disk_message(folder / LOCK_NAME, error)) from error
    try:
        yield
    finally:
        lock.release()


def _disk_message(path: Path, error: OSError) -> str:
    """A sentence on what went wrong on the disk, where, and what to do."""
    remedies = {
        errno.ENOSPC: "Free some space there and run the same command again.",
        errno.EDQUOT: "Free some of your quota there and run the same command again.",
        errno.EACCES: "Give yourself the right to write there, or choose another folder.",
        errno.EPERM: "Give yourself the right to write there, or choose another folder.",
        errno.EROFS: "That disk is read-only: choose another folder.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }
    remedy = remedies.get(error.errno or 0, "Choose another folder, or mend the disk and run the same command again.")
    return f"Cannot write {path.name} in {path.parent}: {error.strerror or error}. {remedy}"
