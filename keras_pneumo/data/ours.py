"""Whether a folder may be filled with prepared radiographs: an empty one, or one that was prepared before.

In comes the folder that a user named; what is refused stays as it is. It exists because other programs have a
``manifest.json`` and a ``cases.csv`` too, and preparing writes over tables and removes half-written files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from keras_pneumo.data.devices import FILE as DEVICES
from keras_pneumo.data.journal import JOURNAL_NAME
from keras_pneumo.data.manifest import MANIFEST_NAME, TABLES
from keras_pneumo.errors import PneumoError

CONTACT_SHEET = "contact_sheet.png"
"""What ``keras-pneumo inspect`` draws into a prepared folder."""

_SIZE_FOLDER = re.compile(r"(images|masks)_\d+")


def require_ours(out: Path) -> None:
    """Refuse to fill a folder that holds something else.

    It is ours with a journal, with a manifest of ours, or when it holds nothing but names of ours: then a damaged
    manifest can be mended.

    Raises:
        PneumoError: it is not.
    """
    if not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and not _own(path.name))
    if others and not (out / JOURNAL_NAME).exists() and not _has_manifest(out):
        raise PneumoError(
            f"{out} holds other files ({others[0]!r}) and is no prepared folder. Give an empty or a new folder with "
            "--out."
        )


def _own(name: str) -> bool:
    return name in (MANIFEST_NAME, *TABLES, DEVICES, CONTACT_SHEET) or _SIZE_FOLDER.fullmatch(name) is not None


def _has_manifest(out: Path) -> bool:
    try:
        manifest = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "prepared_sha256"} <= manifest.keys()
