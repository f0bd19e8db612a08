"""The DICOM objects of one answered radiograph as files in ``dicom/NAME``.

In: the source file, what was found, and where the answers go. Out: the files and their names, or the reason why there
are none, in words that quote nothing of the file: what an error quotes may be a person's name.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom

from keras_pneumo.data.dicom import quiet
from keras_pneumo.data.files import write_bytes
from keras_pneumo.errors import PneumoError
from keras_pneumo.prediction.dicom_source import NoSource, source_header

if TYPE_CHECKING:  # highdicom is an extra, and is asked for only where objects are
    from keras_pneumo.prediction.dicom_objects import Finding

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
    except NoSource:
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
    from keras_pneumo.prediction.dicom_objects import dicom_objects

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
