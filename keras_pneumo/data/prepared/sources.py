"""The files of a data folder before their pixels are decoded: who they are, and which of them can be used.

In come paths and labels, out comes one source per image, in the order of image ids, and everything set aside
with its reason: unreadable files, one id on two different images, images without a label, labels without an image.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keras_pneumo.data.labels.cases import Labels, Rejected
from keras_pneumo.data.labels.patients import pseudonym
from keras_pneumo.data.radiographs.decoders import decoder_report
from keras_pneumo.data.radiographs.dicom import read_header
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.data.radiographs.reading import RASTER_SUFFIXES
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.storage.tables import image_id_of, printable
from keras_pneumo.storage.workers import results_in_order

_MAX_ID = 180
"""Bytes of an image id: file systems allow 255 for a name, and ours gets an ending and a temporary one."""


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
    """Pseudonym of the file's PatientID, blank when it has none."""
    transfer_syntax: str = ""
    error: str = ""
    """Why it cannot be used; blank when it may."""


def scan(folder: Path, paths: Sequence[Path], workers: int | None = None) -> list[RadiographFile]:
    """Identify every file: its hash, image id and, for DICOM, transfer syntax; one entry per path, in their order."""
    jobs = [(path, printable(path.relative_to(folder).as_posix())) for path in paths]
    sources = results_in_order(_identify, jobs, workers)
    crashed = "reading its header ends the program that does it"
    return [
        source or RadiographFile(path, relative, "", printable(path.stem), "", error=crashed)
        for (path, relative), source in zip(jobs, sources, strict=True)
    ]


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
    try:
        header = read_header(data, stem)
    except UnreadableImage as error:
        return replace(source, error=str(error))
    return replace(
        source,
        image_id=header.image_id,
        patient=pseudonym(header.patient_id_tag),
        transfer_syntax=header.transfer_syntax,
    )


def folder_sha256(sources: Sequence[RadiographFile]) -> str:
    """One hash for all files of the data folder, by their paths in it and their bytes."""
    lines = sorted(f"{source.sha256} {source.relative}\n" for source in sources)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_decoders(sources: Sequence[RadiographFile]) -> None:
    """Say once, before any work, which decoder is missing for these files.

    Raises:
        PneumoError: at least one is; the message names the packages to install.
    """
    needed = Counter(source.transfer_syntax for source in sources if not source.error)
    missing = [status for status in decoder_report() if needed[status.transfer_syntax] and not status.available]
    if missing:
        parts = ", ".join(f"{needed[status.transfer_syntax]} are stored as {status.name}" for status in missing)
        packages = " ".join(sorted({status.package for status in missing}))
        raise PneumoError(f"Of {len(sources)} files {parts}, and the decoder is missing. Run: pip install {packages}")


def named_by_labels(sources: Sequence[RadiographFile], label_ids: Collection[str]) -> list[RadiographFile]:
    """Settle each source's image id: the SOPInstanceUID when the labels know it, else the file's name when they do.

    The competition's second-stage files are named ``ID_...`` and labelled by that name.
    """
    known = set(label_ids)
    return [
        replace(source, image_id=source.stem) if source.image_id not in known and source.stem in known else source
        for source in sources
    ]


def choose(sources: Sequence[RadiographFile], labels: Labels) -> tuple[list[RadiographFile], list[Rejected], list[str]]:
    """Pick one usable source per labelled image.

    Returns:
        The sources sorted by image id, what is set aside (files, and rows of the label file), and notes on copies.
    """
    set_aside = [Rejected(source.relative, None, source.error) for source in sources if source.error]
    notes: list[str] = []
    groups: dict[str, list[RadiographFile]] = {}
    for source in sources:
        if source.error:
            continue
        reason = _bad_id(source.image_id)
        if reason:
            set_aside.append(Rejected(source.relative, None, reason))
        else:
            groups.setdefault(source.image_id, []).append(source)
    chosen: list[RadiographFile] = []
    for image_id, group in sorted(groups.items()):
        if len({source.sha256 for source in group}) > 1:
            names = ", ".join(source.relative for source in group)
            reason = f"image id {image_id} stands on different files ({names}), so none of them is used"
            set_aside += [Rejected(source.relative, None, reason) for source in group]
            continue
        notes += [f"{source.relative} is a copy of {group[0].relative} and was left out." for source in group[1:]]
        if image_id in labels.images:
            chosen.append(group[0])
        elif image_id in labels.rejected_rows:
            rows = ", ".join(map(str, labels.rejected_rows[image_id]))
            set_aside.append(
                Rejected(group[0].relative, None, f"its label in {labels.path.name} (row {rows}) cannot be used")
            )
        else:
            set_aside.append(Rejected(group[0].relative, None, f"no row of {labels.path.name} names it"))
    present = {source.image_id for source in sources}
    set_aside += [
        Rejected(labels.path.name, label.rows[0], f"there is no file for image {image_id}")
        for image_id, label in labels.images.items()
        if image_id not in present
    ]
    return chosen, set_aside + labels.rejected, notes


def _bad_id(image_id: str) -> str:
    """Why an image id cannot be the name of a file; blank when it can. It may come from a stranger's DICOM file."""
    if not image_id or image_id.startswith(".") or not image_id.isprintable() or set(image_id) & set('/\\:*?"<>|'):
        return f"its image id {image_id[:60]!r} cannot be the name of a file"
    if len(image_id.encode()) > _MAX_ID:
        return f"its image id has {len(image_id.encode())} bytes, more than the {_MAX_ID} that are taken"
    return ""
