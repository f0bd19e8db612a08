"""Writes files and folders whole or not at all, hashes them, and locks folders.

In come bytes, tables and paths; out go files that are either whole or absent, and results of several files that are
complete, or plainly are not. Every fault of the disk (full, read-only, no permission) becomes one sentence, with the
old file still in place and the temporary one gone.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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

UNFINISHED = ".unfinished-"
"""How the name of a folder begins that a result is being written in; see :func:`replacing_contents`."""

_COMPLETE = ".complete-"
"""How it begins when all is written and only its contents have to be put in their place."""

_ORDER, _OLDER = ".order.json", ".older"
"""Within such a folder: the names that come into place, in order, and those that must not stay; what was there."""

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
    handle, temporary = _make_temporary(path)
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


@contextlib.contextmanager
def replacing_contents(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A new folder within ``folder`` for a result of several files, which appears when the block ends without an error.

    Until then ``folder`` keeps its older result; what else lies in it stays. The older result's last name goes out
    first and the new one's comes in last, so that a result with that name is never a mixture of two. What a killed
    process leaves is settled by the next call: see :func:`settle`.

    Args:
        folder: where the result goes; made if need be. The caller holds its lock, or that of the folder around it.
        names: of all files and folders that such a result may have; the last one's presence tells that it is complete.
            Those that the block does not write are removed from ``folder``. What the block writes besides is kept too.

    Raises:
        PneumoError: the disk is full, read-only or closed to us; ``folder`` then has its older result.
    """
    made = _make_folder(folder)
    try:
        settle(folder)
        new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
    except OSError as error:
        raise PneumoError(_disk_message(folder / names[-1], error)) from error
    try:
        yield new
        written = {path.name for path in new.iterdir()}
        order = [*sorted(written - set(names)), *(name for name in names if name in written)]
        write_json(new / _ORDER, {"written": order, "absent": [name for name in names if name not in written]})
        flush_folder(new)
        new = new.rename(folder / new.name.replace(UNFINISHED, _COMPLETE))
        _put_in_place(new, folder)
    except OSError as error:
        raise PneumoError(_disk_message(folder / names[-1], error)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _remove_if_unused(made)


def _put_in_place(new: Path, folder: Path) -> None:
    """Put a complete result into ``folder``, or what a killed process has left to be put there.

    Raises:
        OSError: the disk refuses; the older result is back in place.
        ValueError: the record of the names is damaged.
    """
    order = read_json(new / _ORDER)
    written, absent = [[str(name) for name in order[kind]] for kind in ("written", "absent")]
    old = new / _OLDER
    old.mkdir(exist_ok=True)
    try:
        for name in [*reversed(written), *absent]:
            if os.path.lexists(folder / name) and (name in absent or os.path.lexists(new / name)):
                (folder / name).rename(old / name)
        for name in written:
            if os.path.lexists(new / name):
                (new / name).rename(folder / name)
    except OSError:
        for name in reversed(written):
            if os.path.lexists(folder / name) and not os.path.lexists(new / name):
                (folder / name).rename(new / name)
        for name in [*absent, *written]:
            if os.path.lexists(old / name):
                (old / name).rename(folder / name)
        raise
    flush_folder(folder)


def settle(folder: Path) -> None:
    """Bring a folder in order in which a process was killed: put a complete result in place, delete what is unfinished.

    Of :func:`replacing_contents` and :func:`write_bytes` into ``folder`` itself. The caller holds its lock.

    Raises:
        OSError: the disk refuses.
    """
    for path in sorted(folder.glob(".*")):
        if path.name.startswith(_COMPLETE):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                _put_in_place(path, folder)
        if path.name.startswith((_COMPLETE, UNFINISHED)):
            shutil.rmtree(path, ignore_errors=True)
        elif is_temporary(path.name):
            path.unlink(missing_ok=True)


def discard_unannounced(folder: Path) -> None:
    """Take away a result that a killed process was putting into a folder without an older one; then :func:`settle`.

    For commands that need an empty folder: the next call then makes its result anew, with its own options, as after a
    kill a moment earlier. The caller holds the folder's lock.

    Raises:
        OSError: the disk refuses.
    """
    for new in sorted(folder.glob(f"{_COMPLETE}*")):
        if any((new / _OLDER).glob("*")):
            continue  # it replaces an older one, which :func:`settle` must not lose
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for name in map(str, reversed(read_json(new / _ORDER)["written"])):
                if (folder / name).is_dir() and not os.path.lexists(new / name):
                    shutil.rmtree(folder / name)
                elif not os.path.lexists(new / name):
                    (folder / name).unlink(missing_ok=True)
            shutil.rmtree(new)
    settle(folder)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is a lock, or was left by a killed process: a folder of such is empty."""
    return name == LOCK_NAME or name.startswith((UNFINISHED, _COMPLETE)) or is_temporary(name)


def create_secret(path: Path, data: bytes) -> bool:
    """Write a file that its owner alone may read, whole or not at all, where there is none yet.

    Returns:
        Whether it was written; False where another process was first, whose file is left as it is.

    Raises:
        PneumoError: the disk is full, read-only or closed to us.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _make_temporary(path)
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


def content_hash(record: dict[str, Any]) -> str:
    """The SHA-256 of a record's values, without its own entry ``sha256``."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return sha256_bytes(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode())


def with_content_hash(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its :func:`content_hash` as ``sha256``: what is changed in the file later can be told by it."""
    return record | {"sha256": content_hash(record)}


def fits_content_hash(record: dict[str, Any]) -> bool:
    """Whether a record is as it was written; True for one of an earlier version, which has no ``sha256``."""
    recorded = record.get("sha256")
    try:
        return recorded is None or recorded == content_hash(record)
    except (ValueError, RecursionError):  # a text or a depth that can be read and not written
        return False


def write_table(path: Path, table: pd.DataFrame) -> str:
    """Write ``table`` as UTF-8 csv with a header and ``\\n`` line ends; missing values are blank; returns the hash."""
    return write_bytes(path, table_bytes(table))


def table_bytes(table: pd.DataFrame) -> bytes:
    """The bytes that :func:`write_table` writes."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def require_writable(folder: Path) -> None:
    """Try to write in ``folder``, or in the place where it will be made.

    Raises:
        PneumoError: that is not possible; call this before any work.
    """
    made = _make_folder(folder)
    try:
        # Of a name that the next command takes for a leftover: this one may be killed in between.
        handle, probe = _make_temporary(folder / "probe")
        os.close(handle)
        Path(probe).unlink(missing_ok=True)
    except OSError as error:
        raise PneumoError(_disk_message(folder, error)) from error
    finally:
        _remove_if_unused(made)


def _make_temporary(path: Path) -> tuple[int, str]:
    """Make and open a file beside ``path``, for its owner alone, of a name that :func:`is_temporary` knows."""
    return tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)


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
    """Hold ``folder``, made if need be, for this process; the lock goes away with the process, however that ends.

    Whoever refuses within the block, before anything is written, leaves no new folder behind.

    Raises:
        PneumoError: another process holds it, or it cannot be made.
    """
    made = _make_folder(folder)
    lock = _locked(folder / LOCK_NAME, folder)
    try:
        yield
    finally:
        if made:
            _remove_if_unused(made, folder / LOCK_NAME)
        lock.release()


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the name of a file or folder that is to be made, for this process, by a lock beside it.

    The folders in which a killed process was making it (``.NAME.`` and eight letters, as tempfile names them) go.

    Raises:
        PneumoError: another process holds it, or its folder cannot be made.
    """
    made = _make_folder(path.parent)
    beside = path.with_name(f".{path.name}{LOCK_NAME}")
    lock = _locked(beside, path)
    try:
        for left in path.parent.glob(f"{glob.escape(f'.{path.name}.')}*"):
            if re.fullmatch(r"[a-z0-9_]{8}", left.name.removeprefix(f".{path.name}.")) and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: who tries to take it then sees that it is gone
            beside.unlink()
        _remove_if_unused(made)
        lock.release()


def require_free(folder: Path) -> None:
    """Refuse a folder that another process holds: a command asks before it loads what takes seconds.

    Raises:
        PneumoError: it is held.
    """
    if (folder / LOCK_NAME).exists():
        with folder_lock(folder):
            pass


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; returns the folders that were made for it, the innermost first.

    Raises:
        PneumoError: the disk refuses, or there is a file of that name.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PneumoError(
            f"{folder} is a file, but a folder is to be written there. Give another name; nothing was changed."
        ) from None
    except OSError as error:
        raise PneumoError(_disk_message(folder, error)) from error
    return missing


def _locked(path: Path, what: Path) -> filelock.BaseFileLock:
    busy = f"Another run is working in {what}. Wait until it has ended, or give this one a folder of its own."
    try:
        return acquire(path, busy)
    except OSError as error:
        raise PneumoError(_disk_message(path, error)) from error


def _remove_if_unused(made: Sequence[Path], lock: Path | None = None) -> None:
    """Remove folders that were made just now, the innermost first, where nothing but the ``lock`` is in them."""
    with contextlib.suppress(OSError):
        if made and lock is not None and list(made[0].iterdir()) == [lock]:
            lock.unlink()
        for folder in made:
            folder.rmdir()


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
