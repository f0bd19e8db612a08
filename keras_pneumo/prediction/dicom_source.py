"""The DICOM file that objects are derived from: its identity, checked, mended where the standard is strict.

In: the bytes of a file whose pixels were already decoded within limits. Out: its header, without pixels, fit to be
named as a source. Objects that name a source need its three identifiers; SIIM-ACR's test files have empty study and
series UIDs and SOP UIDs that are no UIDs. These are refused in a sentence, or made up when that is asked for.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from typing import Any

import pydicom
from pydicom.uid import UID
from pydicom.valuerep import format_number_as_ds

from keras_pneumo.data.dicom import quiet
from keras_pneumo.errors import PneumoError

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
