"""The DICOM file that objects are derived from: its identity, checked, mended where the standard is strict.

In: the bytes of a file whose pixels were already decoded within limits. Out: its header, without pixels, fit to be
named as a source. Objects that name a source need its three identifiers; SIIM-ACR's test files have empty study and
series UIDs and SOP UIDs that are no UIDs. These are refused in a sentence, or made up when that is asked for.

The DICOM objects of one answered radiograph as files in ``dicom/NAME``.

In: the source file, what was found, and where the answers go. Out: the files and their names, or the reason why there
are none, in words that quote nothing of the file: what an error quotes may be a person's name.
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
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_bytes

IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing")
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
"""What an object takes over from its source, and may be empty but not absent."""


class NoSource(PneumoError):  # noqa: N818 - it says what the file is not, and is always shown as a reason
    """A file that DICOM objects cannot name; the message is the reason, without the file's name."""


def source_header(data: bytes, make_uids: bool = False) -> tuple[pydicom.Dataset, list[str]]:
    """The header of a DICOM file for objects that name it, and which of its identifiers had to be made up.

    A made-up identifier is ``2.25.`` and a number from the hash of the file, so the same file always gets the same.

    Args:
        data: the file's bytes.
        make_uids: whether missing and malformed identifiers are made up rather than refused.

    Raises:
        NoSource: it is no DICOM file, or lacks an identifier.
    """
    if data[128:132] != b"DICM":
        raise NoSource("it is no DICOM file, so a DICOM object cannot name it as its source")
    with quiet():
        try:
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        except PneumoError:
            raise
        except Exception:  # pydicom raises every class of error on damaged files, and may quote what it found
            raise NoSource("its header cannot be read whole, so a DICOM object cannot name it") from None
        lacking = [name for name in IDENTIFIERS if not is_uid(header.get(name))]
        if lacking and not make_uids:
            raise NoSource(
                f"its {_listed(lacking)} {'is' if len(lacking) == 1 else 'are'} empty or no UID, so DICOM objects "
                "cannot name it; --make-uids makes them up"
            )
        digest = hashlib.sha256(data).digest()
        for name in lacking:
            number = int.from_bytes(hashlib.sha256(name.encode() + digest).digest()[:15], "big")
            setattr(header, name, UID(f"2.25.{number}"))
        if not is_uid(header.get("SOPClassUID")):
            raise NoSource("it does not say what kind of object it is (no SOPClassUID)")
        for name in _COPIED:
            if header.get(name) is None:
                setattr(header, name, "")
        if re.fullmatch(r"[0-9]{1,3}", str(header.get("PatientAge", ""))):
            header.PatientAge = f"{int(str(header.PatientAge)):03d}Y"  # SIIM writes 38 where DICOM wants 038Y
        spacing = next((one for one in map(_spacing, map(header.get, _SPACINGS)) if one), None)
        for name in _SPACINGS:  # what is no spacing must not travel on
            if not _spacing(header.get(name)) and name in header:
                delattr(header, name)
        if spacing:
            header.PixelSpacing = [format_number_as_ds(one) for one in spacing]
    return header, lacking


def _spacing(value: Any) -> list[float] | None:
    """Millimetres between rows and between columns, where a value gives that: some files hold 0, -1 or nan."""
    try:
        found = [float(one) for one in value]
    except (TypeError, ValueError):
        return None
    return found if len(found) == 2 and all(math.isfinite(one) and one > 0 for one in found) else None


def is_uid(value: object) -> bool:
    """Whether a value is a UID by the standard's rule (PS3.5, 9.1)."""
    return bool(value) and UID(str(value), validation_mode=0).is_valid


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


if TYPE_CHECKING:  # highdicom is an extra, and is asked for only where objects are
    from keras_pneumo.detector.dicom_objects import Finding

KINDS = ("source", "segmentation", "capture", "report")
"""What may stand in a folder of objects; ``source`` is the copy of a file that had to be given identifiers."""


def clear_objects(out: Path, name: str) -> None:
    """Remove the objects that an earlier run left for ``name``: a report must not lie beside another run's outline.

    Raises:
        PneumoError: the disk refuses.
    """
    folder = out / "dicom" / name
    if not folder.is_dir():
        return
    try:
        for kind in KINDS:
            (folder / f"{kind}.dcm").unlink(missing_ok=True)
    except OSError as error:
        raise PneumoError(
            f"Cannot remove the DICOM objects of an earlier run in {folder}: {error.strerror or error}. Remove them, "
            "or choose another folder."
        ) from error
    with contextlib.suppress(OSError):  # somebody keeps something of his own in it
        folder.rmdir()


def write_objects(
    path: Path, finding: Finding, out: Path, name: str, make_uids: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Write the objects of one radiograph, and a copy of the source where it had to be given identifiers.

    Args:
        path: the source.
        finding: what is put into them.
        out: folder of the answers.
        name: what the radiograph is called there.
        make_uids: whether to make up identifiers that the source lacks.

    Returns:
        The source's identifier and the files by kind, relative to ``out``, and the identifiers that were made up.

    Raises:
        NoSource: the source cannot be named, or holds what no object can take over.
        PneumoError: the disk refuses.
    """
    try:
        source, made_up, files = _encoded(path.read_bytes(), finding, make_uids)
    except PneumoError:
        raise
    except OSError as error:
        raise NoSource(f"it cannot be read a second time ({type(error).__name__})") from None
    except Exception as error:  # a header may hold anything
        raise NoSource(f"its header holds what no DICOM object can take over ({type(error).__name__})") from None
    told: dict[str, Any] = {"source": source, "identifiers_made_up": made_up}
    for kind, data in files.items():
        place = f"dicom/{name}/{kind}.dcm"
        write_bytes(out / place, data, durable=False)
        told[kind if kind != "source" else "source_copy"] = place
    return told, made_up


def _encoded(data: bytes, finding: Finding, make_uids: bool) -> tuple[str, list[str], dict[str, bytes]]:
    """The source's identifier, what of its identifiers was made up, and every object as the bytes of a file."""
    from keras_pneumo.detector.dicom_objects import dicom_objects

    source, made_up = source_header(data, make_uids)
    objects = dicom_objects(source, finding)
    files: dict[str, bytes] = {}
    with quiet():
        if made_up:
            full = pydicom.dcmread(io.BytesIO(data))
            for name in made_up:
                setattr(full, name, source[name].value)
            full.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
            objects = {"source": full, **objects}
        for kind, dataset in objects.items():
            stream = io.BytesIO()
            dataset.save_as(stream, enforce_file_format=True)
            files[kind] = stream.getvalue()
    return str(source.SOPInstanceUID), made_up, files
