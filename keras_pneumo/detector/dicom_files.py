"""DICOM objects of one answered radiograph, written as files into ``dicom/NAME``.

In: the source file, whose pixels were already decoded within limits, and the detector's finding. Out: the files and
their names, or the reason why there are none. A reason quotes nothing of the file: that could be a person's name.

Objects that name a source need its three identifiers, and take over parts of its header. The standard is strict about
both. SIIM-ACR's test files have empty study and series UIDs, and SOP UIDs that are not valid. Such a file is refused
with a reason, or gets made-up identifiers where the user asks for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from keras_pneumo.data.radiographs.dicom import quiet
from keras_pneumo.data.radiographs.limits import with_preamble
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_bytes

if TYPE_CHECKING:  # highdicom is an extra: it is imported only where objects are wanted
    from keras_pneumo.detector.dicom_objects import Finding

OBJECT_FILES = ("source", "segmentation", "capture", "report")
"""The files of one radiograph; ``source`` is the copy of a file that had to get identifiers."""

IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
"""What an object takes over from its source. It may be empty but not absent."""


class UnusableSource(PneumoError):  # noqa: N818 - it is a state of the file, and is always shown as a reason
    """A file that DICOM objects cannot name; the message is the reason, without the file's name."""


def write_objects(
    path: Path, finding: Finding, out: Path, name: str, make_uids: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Write the objects of one radiograph, and a copy of the source where it had to get identifiers.

    Args:
        path: the source.
        finding: the content of the objects.
        out: folder of the answers.
        name: of the radiograph in that folder.
        make_uids: whether to make up identifiers that the source lacks.

    Returns:
        The source's identifier and the files by kind, relative to ``out``; and the identifiers that were made up.

    Raises:
        UnusableSource: the source cannot be named, or its header cannot be taken over.
        PneumoError: a file cannot be written.
    """
    try:
        source, made_up, files = _encoded(path.read_bytes(), finding, make_uids)
    except PneumoError:
        raise
    except OSError as error:
        raise UnusableSource(f"it cannot be read a second time ({type(error).__name__})") from None
    except Exception as error:  # a header may hold anything
        reason = f"its header holds a value that DICOM objects cannot take over ({type(error).__name__})"
        raise UnusableSource(reason) from None
    written: dict[str, Any] = {"source": source, "identifiers_made_up": made_up}
    for kind, data in files.items():
        file = f"dicom/{name}/{kind}.dcm"
        write_bytes(out / file, data, durable=False)
        written[kind if kind != "source" else "source_copy"] = file
    return written, made_up


def objects_in(written: dict[str, Any]) -> list[str]:
    """The files, relative to the folder of the answers, that :func:`write_objects` says it wrote."""
    return [written[kind] for kind in (*OBJECT_FILES[1:], "source_copy") if kind in written]


def clear_objects(out: Path, name: str) -> None:
    """Remove the objects of an earlier run for ``name``: its report must not lie beside a new run's outline.

    Raises:
        PneumoError: a file cannot be removed.
    """
    folder = out / "dicom" / name
    if not folder.is_dir():
        return
    try:
        for kind in OBJECT_FILES:
            (folder / f"{kind}.dcm").unlink(missing_ok=True)
    except OSError as error:
        raise PneumoError(
            f"Cannot remove the DICOM objects of an earlier run in {folder}: {error.strerror or error}. Remove them, "
            "or choose another folder."
        ) from error
    with contextlib.suppress(OSError):  # somebody keeps a file of his own in it
        folder.rmdir()


def _encoded(data: bytes, finding: Finding, make_uids: bool) -> tuple[str, list[str], dict[str, bytes]]:
    """The source's identifier, which of its identifiers were made up, and every object as the bytes of a file."""
    from keras_pneumo.detector.dicom_objects import dicom_objects

    source, made_up = source_header(data, make_uids)
    objects = dicom_objects(source, finding)
    files: dict[str, bytes] = {}
    with quiet():
        if made_up:
            full = pydicom.dcmread(io.BytesIO(with_preamble(data)))
            for name in made_up:
                setattr(full, name, source[name].value)
            full.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
            objects = {"source": full, **objects}
        for kind, dataset in objects.items():
            stream = io.BytesIO()
            dataset.save_as(stream, enforce_file_format=True)
            files[kind] = stream.getvalue()
    return str(source.SOPInstanceUID), made_up, files


def source_header(data: bytes, make_uids: bool = False) -> tuple[pydicom.Dataset, list[str]]:
    """Read the header of a DICOM file, without pixels, and correct it for objects that name the file.

    A made-up identifier is ``2.25.`` and a number from the hash of the file, so the same file always gets the same.

    Args:
        data: the file's bytes.
        make_uids: whether missing and malformed identifiers are made up rather than refused.

    Returns:
        The header, and the names of the identifiers that were made up.

    Raises:
        UnusableSource: it is not a DICOM file, or lacks an identifier.
    """
    data = with_preamble(data)
    if data[128:132] != b"DICM":
        raise UnusableSource("it is not a DICOM file, so DICOM objects cannot name it as their source")
    with quiet():
        try:
            header = pydicom.dcmread(io.BytesIO(data))  # behind the pixels too, where elements are out of order
        except PneumoError:
            raise
        except Exception:  # pydicom raises any kind of error on damaged files, and may quote their content
            raise UnusableSource("its header cannot be read completely, so DICOM objects cannot name it") from None
        lacking = [name for name in IDENTIFIERS if not is_uid(header.get(name))]
        if lacking and not make_uids:
            raise UnusableSource(
                f"its {_listed(lacking)} {'is' if len(lacking) == 1 else 'are'} empty or not a valid UID, so DICOM "
                "objects cannot name it; give --make-uids to make them up"
            )
        digest = hashlib.sha256(data).digest()
        for name in lacking:
            number = int.from_bytes(hashlib.sha256(name.encode() + digest).digest()[:15], "big")
            setattr(header, name, UID(f"2.25.{number}"))
        if not is_uid(header.get("SOPClassUID")):
            raise UnusableSource("it has no SOPClassUID, the kind of object that it is")
        for name in _COPIED:
            if header.get(name) is None:
                setattr(header, name, "")
        if re.fullmatch(r"[0-9]{1,3}", str(header.get("PatientAge", ""))):
            header.PatientAge = f"{int(str(header.PatientAge)):03d}Y"  # SIIM writes 38 where DICOM wants 038Y
        spacing = next((pair for pair in map(_spacing, map(header.get, _SPACINGS)) if pair), None)
        for name in _SPACINGS:  # an invalid spacing must not be taken over
            if not _spacing(header.get(name)) and name in header:
                delattr(header, name)
        if spacing:
            header.PixelSpacing = [format_number_as_ds(millimetres) for millimetres in spacing]
    return header, lacking


def _spacing(value: Any) -> list[float] | None:
    """Millimetres between rows and between columns, or None: some files hold 0, -1 or nan."""
    try:
        spacing = [float(number) for number in value]
    except (TypeError, ValueError):
        return None
    return spacing if len(spacing) == 2 and all(math.isfinite(number) and number > 0 for number in spacing) else None


def is_uid(value: object) -> bool:
    """Whether a value is a UID by the standard (PS3.5, 9.1)."""
    return bool(value) and UID(str(value), validation_mode=0).is_valid


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
