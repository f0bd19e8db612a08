"""Identifies the files of a data folder before any pixel is decoded: hash, image id, patient, way of storing.

In come paths, out comes a :class:`RadiographFile` for each. It runs in worker processes and is a module of its own for
that: like :mod:`~.rendering` it imports no pandas.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from keras_pneumo.data.labels.pseudonyms import patient_hash, study_hash
from keras_pneumo.data.radiographs.decoders import decoder_report
from keras_pneumo.data.radiographs.plain import PlainFile, open_plain
from keras_pneumo.data.radiographs.radiograph import UnreadableImage, shown_image_id
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.data.radiographs.reading import LINK_OUT, RASTER_SUFFIXES, FoundImages
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.storage.tables import image_id_of, one_line, printable
from keras_pneumo.storage.workers import FILE_FAILED, results_in_order

if TYPE_CHECKING:
    from keras_pneumo.data.radiographs.dicom import Header

_CHUNK = 16
"""Files that a worker takes at a time: one takes less than a millisecond, as handing it out does."""


@dataclass(frozen=True)
class RadiographFile:
    """One file of the data folder."""

    path: Path
    relative: str
    """Its path inside the data folder, with ``/``."""
    image_id: str
    """SOPInstanceUID, or for other files the stem."""
    stem: str
    sha256: str
    patient: str = ""
    """Hash of its PatientID, blank when there is none. It stays in memory; see ``data/labels/pseudonyms.py``."""
    study: str = ""
    """Likewise of its StudyInstanceUID."""
    transfer_syntax: str = ""
    error: str = ""
    """Why it cannot be used; blank when it may."""
    maker: str = ""
    """Maker of the machine, as a DICOM file names it."""
    source: str = ""
    """The hospital, data set or folder that it comes from."""


def check_decoders(files: Sequence[tuple[Path, str]]) -> None:
    """:func:`require_decoders` of files that are not prepared, each with its name; they are opened only if one lacks.

    Raises:
        PneumoError: as there.
    """
    if not all(status.available for status in decoder_report()):
        identified = results_in_order(_identify, files, chunk=_CHUNK)
        require_decoders([source for source in identified if source is not None])


def scan(folder: Path, found: FoundImages, workers: int | None = None) -> list[RadiographFile]:
    """Identify every file: its hash, image id and, for DICOM, transfer syntax.

    Returns:
        One entry per file, in their order, then one with its reason per link that is not followed.
    """
    jobs = [(path, printable(path.relative_to(folder).as_posix())) for path in found.paths]
    sources = results_in_order(_identify, jobs, workers, chunk=_CHUNK)
    identified = [
        source or _refused(path, relative, FILE_FAILED) for (path, relative), source in zip(jobs, sources, strict=True)
    ]
    links = [_refused(path, printable(path.relative_to(folder).as_posix()), LINK_OUT) for path in found.links_out]
    return identified + links


def _refused(path: Path, relative: str, reason: str) -> RadiographFile:
    return RadiographFile(path, relative, "", image_id_of(path.name), "", error=reason)


def _identify(job: tuple[Path, str]) -> RadiographFile:
    path, relative = job
    stem = image_id_of(path.name)
    try:
        data = read_limited(path)
    except UnreadableImage as error:
        return RadiographFile(path, relative, stem, stem, "", error=str(error))
    source = RadiographFile(path, relative, stem, stem, sha256_bytes(data))
    if path.suffix.lower() in RASTER_SUFFIXES:
        return source
    header: PlainFile | Header | None = open_plain(data, stem)
    if header is None:
        from keras_pneumo.data.radiographs.dicom import read_header

        try:
            header = read_header(data, stem)
        except UnreadableImage as error:
            return replace(source, error=str(error))
    return replace(
        source,
        image_id=image_id_of(shown_image_id(header.image_id, stem)),
        patient=patient_hash(header.patient_id_tag),
        study=study_hash(header.study_uid_tag),
        transfer_syntax=header.transfer_syntax,
        maker=one_line(header.maker, 40),
    )


def folder_sha256(sources: Sequence[RadiographFile]) -> str:
    """One hash for all files of the data folder, by their paths in it and their bytes."""
    lines = sorted(f"{source.sha256} {source.relative}\n" for source in sources)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_decoders(sources: Sequence[RadiographFile]) -> None:
    """Check, before any work, that there is a decoder for each of these files.

    Raises:
        PneumoError: at least one is; the message names the packages to install.
    """
    needed = Counter(source.transfer_syntax for source in sources if source.transfer_syntax and not source.error)
    missing = [status for status in decoder_report(needed) if not status.available]
    if missing:
        parts = ", ".join(f"{needed[status.transfer_syntax]} are stored as {status.name}" for status in missing)
        packages = " ".join(sorted({status.package for status in missing}))
        raise PneumoError(f"Of {len(sources)} files {parts}, and the decoder is missing. Run: pip install {packages}")
