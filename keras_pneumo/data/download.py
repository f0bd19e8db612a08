"""The SIIM-ACR data from Kaggle, through kagglehub, into a folder that ``prepare`` reads.

In comes the name of a Kaggle competition or data set, out comes a folder of DICOM files and csv tables. Nothing else in
the package uses the network, and this only when asked.

Sources, as far as public threads tell (2023 to 2024; not checked since): the competition's own page now serves the
second-stage images, named ``ID_...``, while its label file names the first-stage ones, which were once fetched with
a script of the competition that no longer works. People therefore used copies such as the data set
``seesee/siim-train-test``, which was reported gone in September 2023. So any source can be named, and one without
labelled images is said to be that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import cache_folder, folder_lock, read_json, require_writable, sha256_file, write_json
from keras_pneumo.storage.tables import counted, image_id_of, one_line

COMPETITION = "siim-acr-pneumothorax-segmentation"
"""Kaggle's name of the competition; the default source."""

_RECORD = ".download.json"
_FIRST = "downloads.json"
"""In the user's cache: source -> file -> SHA-256, as they were at the first download."""

_CACHE = ".kagglehub"
_TOKEN_HELP = (
    "Make a token at https://www.kaggle.com/settings (API) and put it into the environment variable KAGGLE_API_TOKEN "
    "or the file ~/.kaggle/access_token."
)


@dataclass(frozen=True)
class DownloadSummary:
    """What is in the folder now."""

    folder: Path
    """What to give to ``prepare``: normally the folder asked for."""
    images: int
    labels: Path | None
    """The label file that fits the images, None when there is none."""
    fetched: bool
    """False when the folder held the source already."""
    notes: list[str] = field(default_factory=list)


def download(out: Path, source: str = COMPETITION) -> DownloadSummary:
    """Fetch ``source`` into ``out``; an interrupted download goes on where it was.

    Args:
        out: a new or empty folder, or one that an earlier call began.
        source: a competition (``name``) or a data set (``owner/name``) on Kaggle.

    Raises:
        PneumoError: kagglehub, the token, the accepted rules or the network is missing, there is no such source, or
            the folder cannot be used; the message says which, and what to do.
    """
    out = Path(out)
    require_writable(out)
    with folder_lock(out):
        record = _read_record(out)
        if record is not None and record != source:
            raise PneumoError(f"{out} already holds {record} from Kaggle. Give another folder for {source}.")
        if record is None:
            foreign = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
            if foreign and not (out / _CACHE).exists():
                raise PneumoError(f"{out} holds other files, for example {foreign[0]}. Give an empty folder.")
        folder = out if record is not None else _fetch(out, source)
    return _summary(folder, source, fetched=record is None)


def _fetch(out: Path, source: str) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise PneumoError("Downloading needs kagglehub. Run: pip install keras-pneumo[kaggle]") from None
    fetch = kagglehub.dataset_download if "/" in source else kagglehub.competition_download
    cache = out / _CACHE
    try:
        with _environment("KAGGLEHUB_CACHE", str(cache.resolve())):
            got = Path(fetch(source))
    except PneumoError:
        raise
    except Exception as error:  # kagglehub's own errors share no base class
        raise PneumoError(_explain(error, source)) from error
    if cache.resolve() not in got.resolve().parents:
        return got  # inside a Kaggle or Colab notebook the data lie there already, read-only
    if not got.is_dir():
        raise PneumoError(f"Kaggle gave a single file for {source}, not a folder of radiographs. Name another source.")
    files = _compared(got, source)
    for path in sorted(got.iterdir()):
        path.replace(out / path.name)
    write_json(out / _RECORD, {"source": source, "sha256": files})
    shutil.rmtree(cache, ignore_errors=True)
    return out


def _compared(got: Path, source: str) -> dict[str, str]:
    """The hash of every file that arrived, compared with those of this source's first download on this machine.

    Kaggle publishes no hashes, so the first download is trusted, and every later one must be the same.

    Raises:
        PneumoError: a file is another than at the first download.
    """
    files = {path.relative_to(got).as_posix(): sha256_file(path) for path in sorted(got.rglob("*")) if path.is_file()}
    first = cache_folder() / _FIRST
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = read_json(first)
        known = content if isinstance(content, dict) else {}
    before = known.get(source)
    if isinstance(before, dict) and before != files:
        changed = sorted(name for name in before.keys() | files.keys() if before.get(name) != files.get(name))
        raise PneumoError(
            f"Kaggle gave other files as {source} than at the first download on this machine: "
            f"{counted(len(changed), 'file')} differ, for example {one_line(changed[0])}. If the source was changed on "
            f"purpose, delete {first} and run this again."
        )
    if before is None:
        write_json(first, known | {source: files})
    return files


def _read_record(out: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(out / _RECORD)["source"])
    return None


def _summary(folder: Path, source: str, *, fetched: bool) -> DownloadSummary:
    from keras_pneumo.data.labels.finding import find_labels, search_labels
    from keras_pneumo.data.radiographs.reading import find_images, not_searched, other_format_notes

    found = find_images(folder)
    images = found.paths
    notes = [*(not_searched(name) for name in found.mask_folders), *other_format_notes(folder, found)]
    labels = None
    try:
        names = {image_id_of(path.name) for path in images}
        labels = find_labels(search_labels(folder, images), names).path
    except PneumoError as error:
        notes.append(f"What Kaggle serves as {source} cannot be prepared as it is. {error} Or name another source.")
    return DownloadSummary(folder, len(images), labels, fetched, notes)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _explain(error: Exception, source: str) -> str:
    """What is missing and what to do, from one of kagglehub's or requests' errors, told by class name and HTTP status.

    The names are those of kagglehub 1.0 and requests 2; going by names spares importing either to ask.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    status = _status(error)
    page = f"https://www.kaggle.com/{'datasets' if '/' in source else 'competitions'}/{source}"
    if names & {"UnauthenticatedError", "CredentialError"} or status == 401:
        return f"Kaggle knows no valid token of yours. {_TOKEN_HELP}"
    if status == 403:
        if "/" in source:
            return f"Kaggle does not let your account read {source}. Open {page} in a browser and ask for access."
        return f"You have not accepted the rules of {source} on Kaggle. Accept them at {page}/rules and run this again."
    if status == 404:
        return f"Kaggle has no {source}, or has it no longer. Look for {page} in a browser, or name another source."
    if status is not None:
        return f"Kaggle answered with error {status} for {source}. Wait some minutes and run this again."
    if names & {"ConnectionError", "Timeout", "ChunkedEncodingError", "TimeoutError"}:
        return (
            "Kaggle cannot be reached over the network. Check the connection and run this again; it goes on from there."
        )
    if "DataCorruptionError" in names:
        return f"What arrived of {source} was damaged on the way and was deleted. Run this again."
    if isinstance(error, OSError):
        return (
            f"The data cannot be written: {error.strerror or error}. Free some space (about 5 GB) and run this again."
        )
    return f"kagglehub could not fetch {source}: {' '.join(str(error).split())[:300] or type(error).__name__}."


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return int(status) if isinstance(status, int) else None
