"""The detector's record, ``detector.json``: its settings, and a hash of every file that an answer depends on.

In: a detector folder. Out: the checked record, and the paths of the weights that it lists. Nothing is loaded that the
record does not list: a detector's version is the hash of its record, and an unlisted file could change the answers
while the version stays the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from keras_pneumo.config import Entries, validated
from keras_pneumo.detector.calibration import read_calibration
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import FILE as RULE_FILE
from keras_pneumo.storage.files import fits_content_hash, read_json, sha256_file

FILE = "detector.json"
FORMAT = 1
NETWORKS = "network_*.safetensors"
"""File names of the weights in a member's folder."""


Count = Annotated[int, Field(ge=0)]
Names = Annotated[list[Annotated[str, Field(pattern=r"^[\w. /-]{1,100}$")]], Field(min_length=1, max_length=1000)]
_SOURCE = r"^(classifier|own head|outline)((, | and )(classifier|own head|outline))*$"


class _Counts(Entries):
    images: Count
    patients: Count
    true_positive: Count
    false_positive: Count
    false_negative: Count
    true_negative: Count


class _Validation(Entries):
    counts: _Counts


class _Versions(Entries):
    keras_pneumo: str


class _Record(Entries):
    """What an answer depends on: a hash that was made anew says nothing of impossible values."""

    name: str
    versions: _Versions
    classifiers: Names
    segmenters: Names
    probability_source: Annotated[str, Field(pattern=_SOURCE)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    outline_area: Annotated[int, Field(ge=1)]
    calibration: dict[str, Any]
    validation: _Validation
    files: Annotated[dict[str, str], Field(min_length=1)]
    synthetic: bool = False


def read_detector_record(folder: Path) -> dict[str, Any]:
    """Read ``detector.json`` and check that it is unchanged and of a format that this version reads.

    Raises:
        PneumoError: it is missing, damaged or changed, or one of its values is impossible.
    """
    path = folder / FILE
    if not path.is_file():
        raise PneumoError(
            f"{folder} is not a detector: it has no {FILE}. Make one with keras-pneumo join CLASSIFIER --segmenter "
            "SEGMENTER --data PREPARED --out DETECTOR."
        )
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise PneumoError(f"{path} cannot be read: {error}. Copy the detector again.") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PneumoError(f"{path} is not of format {FORMAT}, which this version reads. Join the runs again.")
    if record.get("sha256") is None or not fits_content_hash(record):
        raise PneumoError(f"{path} was changed after it was written: its hash does not match. Copy the detector again.")
    try:
        validated(_Record, record, str(path))
    except PneumoError as error:
        raise PneumoError(f"{error} Copy the detector again, or join its runs again.") from None
    read_calibration(record["calibration"])
    return record


def check_files(folder: Path, record: dict[str, Any]) -> None:
    """Refuse a detector if one of its files is missing, changed, or outside its folder.

    Raises:
        PneumoError: naming the files.
    """
    files = record.get("files")
    if not isinstance(files, dict) or not files:
        raise PneumoError(f"{folder / FILE} lists no files. Copy the detector again.")
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
            f"{folder}: {', '.join(bad[:5])} {'is' if len(bad) == 1 else 'are'} missing or changed. "
            "Copy the whole detector again."
        )


def networks_of(folder: Path, record: dict[str, Any], member: str) -> list[Path]:
    """The weights of one member, as the record lists them; :func:`check_files` has compared their hashes.

    Args:
        folder: the detector's.
        record: from :func:`read_detector_record`.
        member: name of the member's folder within ``folder``.

    Raises:
        PneumoError: the member is outside the detector's folder, has no experiment or no weights, or its folder holds
            weights that are not listed, for instance because a detector was copied over an older one.
    """
    member_folder, files = folder / member, record["files"]
    if Path(member).name != member or member == ".." or member_folder.resolve().parent != folder.resolve():
        raise PneumoError(
            f"{folder / FILE} names the member {member!r}, which is not in its folder. Join the runs again."
        )
    listed = sorted(path for path in map(Path, files) if path.parent == Path(member) and path.match(NETWORKS))
    if not listed or f"{member}/experiment.json" not in files:
        raise PneumoError(f"{folder / FILE} lists no experiment or no weights of {member}. Join the runs again.")
    unlisted = sorted(path.name for path in member_folder.glob(NETWORKS) if path.relative_to(folder) not in listed)
    if unlisted:
        raise PneumoError(
            f"{member_folder} holds {', '.join(unlisted[:5])}, which {FILE} does not list. Copy the detector into an "
            "empty folder, not over another one."
        )
    return [folder / path for path in listed]
