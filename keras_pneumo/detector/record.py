"""The detector's record: what it is, and a hash of every file that an answer depends on.

In: a detector folder. Out: ``detector.json``, checked, and the paths of the weights that it names. Nothing is loaded
that the record does not name: the version of a detector is the hash of this record, so a file that it says nothing of
would change answers under an unchanged version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.storage.files import sha256_bytes, sha256_file

FILE = "detector.json"
FORMAT = 1
NETWORKS = "network_*.safetensors"
"""Weights within the folder of a run that was joined."""


def content_hash(record: dict[str, Any]) -> str:
    """The hash that ``detector.json`` gives of itself, less that hash."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return sha256_bytes(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode())


def read_record(folder: Path) -> dict[str, Any]:
    """``detector.json``, checked to be whole and of a format that this version reads.

    Raises:
        PneumoError: there is none, or it was changed.
    """
    path = folder / FILE
    if not path.is_file():
        raise PneumoError(
            f"{folder} is no detector: it has no {FILE}. Make one with keras-pneumo join CLASSIFIER --segmenter "
            "SEGMENTER --data PREPARED --out DETECTOR."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PneumoError(f"{path} cannot be read: {error}. Copy the detector again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(f"{path} is not of format {FORMAT}, the one this version reads.")
    if record.get("sha256") != content_hash(record):
        raise PneumoError(f"{path} was changed after it was written: its hash does not fit. Copy the detector again.")
    return record


def check_files(folder: Path, record: dict[str, Any]) -> None:
    """Refuse a detector of which a file is missing, changed, or outside its folder.

    Raises:
        PneumoError: naming the files.
    """
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        raise PneumoError(f"{folder / FILE} names no files. Copy the detector again.")
    if RULE_FILE not in files:
        raise PneumoError(f"{folder / FILE} gives no hash of {RULE_FILE}. Join the runs again.")
    root = folder.resolve()
    bad = []
    for name, digest in files.items():
        path = folder / name
        inside = path.resolve().is_relative_to(root)
        if not inside or not path.is_file() or sha256_file(path) != digest:
            bad.append(name)
    if bad:
        raise PneumoError(
            f"{folder}: {', '.join(bad[:5])} {'is' if len(bad) == 1 else 'are'} missing or not as written. "
            "Copy the detector again, whole."
        )


def networks_of(folder: Path, record: dict[str, Any], member: str) -> list[Path]:
    """The weights of one joined run, by the record's own list, whose hashes :func:`check_files` has compared.

    Args:
        folder: the detector's.
        record: from :func:`read_record`.
        member: name of the run's folder within ``folder``.

    Raises:
        PneumoError: the run lies elsewhere, has no experiment or no weights, or weights lie there that are not listed,
            as when a detector is copied over an older one with more checkpoints.
    """
    place, files = folder / member, record["files"]
    if Path(member).name != member or member == ".." or place.resolve().parent != folder.resolve():
        raise PneumoError(f"{folder / FILE} names the run {member!r}, which is not in its folder. Join the runs again.")
    listed = sorted(path for path in map(Path, files) if path.parent == Path(member) and path.match(NETWORKS))
    if not listed or f"{member}/experiment.json" not in files:
        raise PneumoError(f"{folder / FILE} names no experiment or no weights of {member}. Join the runs again.")
    strange = sorted(path.name for path in place.glob(NETWORKS) if path.relative_to(folder) not in listed)
    if strange:
        raise PneumoError(
            f"{place} holds {', '.join(strange[:5])}, which {FILE} does not name. Copy the detector into an empty "
            "folder, not over another one."
        )
    return [folder / path for path in listed]
