"""Remembers which files of a prepared folder were verified, so that a start need not hash a hundred thousand again.

In: files with the hashes that the manifest has for them. Out: whether exactly these files, with these hashes, were
verified on this machine before and are untouched since. By what the system says of a file that is written to: its size,
both its times (of the content, and of any change, which no program can set back) and its inode. A copied folder, a
restored backup or one changed byte are other files, which are hashed again.

The memory is one fingerprint for each set of files, in ``verified.json`` in the user's cache folder (see
:func:`~.files.cache_folder`). Without it, or where it cannot be written, every start hashes all files.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import cache_folder, read_json, write_json

FILE = "verified.json"

KEPT = 200
"""Fingerprints remembered, the last ones: some for each fold, size and prepared folder."""

SETTLED_SECONDS = 2.0
"""A file that was changed within this time is not trusted: a further change might leave its times as they are, since
file systems count in ticks of some milliseconds, some of two seconds."""


def fingerprint(folder: Path, files: Mapping[str, str]) -> str | None:
    """SHA-256 over what the system says of some files, and over their wanted hashes.

    Args:
        folder: the prepared folder.
        files: path in the folder -> SHA-256 that the manifest has for it.

    Returns:
        None where a file is missing or was changed just now.
    """
    latest = (time.time() - SETTLED_SECONDS) * 1e9
    root = folder.resolve()
    digest = hashlib.sha256(str(root).encode())
    for name, wanted in files.items():
        try:
            about = (root / name).stat()
        except OSError:
            return None
        if max(about.st_mtime_ns, about.st_ctime_ns) > latest:
            return None
        values = (about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev)
        digest.update(f"\n{name} {wanted} {values}".encode())
    return digest.hexdigest()


def was_verified(mark: str) -> bool:
    """Whether files with this fingerprint were verified before."""
    return mark in _remembered()


def remember_verified(mark: str) -> None:
    """Remember that all files with this fingerprint have their wanted hashes.

    The fingerprint must have been taken before they were hashed, so that a change meanwhile gives another one.
    """
    try:
        write_json(cache_folder() / FILE, [*(old for old in _remembered() if old != mark), mark][-KEPT:])
    except PneumoError:
        return


def _remembered() -> list[str]:
    try:
        content = read_json(cache_folder() / FILE)
    except (OSError, ValueError):
        return []
    return [mark for mark in content if isinstance(mark, str)] if isinstance(content, list) else []
