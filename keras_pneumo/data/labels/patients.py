"""Finds the patient of each image: from a table, else from the DICOM files, else unknown.

Each of SIIM's files has a random PatientID of its own, so only a table (``nih_id.csv``) shows that 12,047 images come
from 6,171 patients. Where no images can be grouped, a sentence that says so is kept with the prepared folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_COLUMNS, column_name, image_id_of, read_rows

PATIENT_TABLES = ("patients.csv", "patients.csv.gz", "nih_id.csv", "nih_id.csv.gz")
"""Names under which a patient table is found at the top of the data folder."""

_PATIENT_COLUMNS = ("patientid", "patient", "subjectid", "subject", "nihpatient", "nihpatientid")
_NIH_DIGITS = 8
"""NIH ChestX-ray14 names are ``<patient, 8 digits>_<follow-up>.png``."""


@dataclass(frozen=True)
class Grouping:
    """The patients of a set of images."""

    patient_of: dict[str, str]
    """Image id -> patient id."""
    source: str
    """``table``, ``dicom`` or ``none``."""
    note: str
    """A sentence for the user when grouping does nothing, or leaves some images out; otherwise blank."""


def find_patient_table(folder: Path) -> Path | None:
    """The patient table at the top of ``folder``, or of a folder beside it, under a name of :data:`PATIENT_TABLES`.

    Data sets often come as one folder of images and another of tables. A table from beside is taken only when it is the
    only one there, so that nothing is guessed.
    """
    own = [folder / name for name in PATIENT_TABLES if (folder / name).is_file()]
    if own:
        return own[0]
    parent = folder.resolve().parent
    beside = sorted(path for name in ("nih_id.csv", "nih_id.csv.gz") for path in parent.glob(f"*/{name}"))
    return beside[0] if len(beside) == 1 else None


def read_patients(path: Path) -> dict[str, str]:
    """Read a patient table: image id -> patient id.

    Its header names an image column (``ImageId``, ``Kaggle_ID``, ...) and either a patient column (``patient_id``,
    ``subject``, ...) or ``NIH_ID``, whose first 8 digits are the patient.

    Raises:
        PneumoError: there are no such columns, a row is incomplete, or an image has two patients.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    names = [column_name(cell) for cell in header]
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    patient = next((names.index(name) for name in (*_PATIENT_COLUMNS, "nihid") if name in names), None)
    if image is None or patient is None:
        raise PneumoError(
            f"{path} is no patient table: its header must name ImageId and patient_id (or Kaggle_ID, NIH_ID)."
        )
    is_nih = names[patient] == "nihid"
    patients: dict[str, str] = {}
    for number, cells in rows:
        if len(cells) <= max(image, patient) or not cells[image] or not cells[patient]:
            raise PneumoError(
                f"{path}, row {number}, lacks the image id or the patient. Complete it or delete the row."
            )
        name = cells[patient][:_NIH_DIGITS] if is_nih else cells[patient]
        if is_nih and not (len(name) == _NIH_DIGITS and name.isascii() and name.isdigit()):
            raise PneumoError(
                f"{path}, row {number}: {cells[patient][:40]!r} is no NIH image name (8 digits come first). "
                "Mend the row."
            )
        image_id = image_id_of(cells[image])
        if patients.setdefault(image_id, name) != name:
            raise PneumoError(
                f"{path}, row {number}: image {image_id} already belongs to another patient. "
                "Remove one of the two rows."
            )
    if not patients:
        raise PneumoError(f"{path} names no patient at all. Check that it is the right file.")
    return patients


MOST_IN_STUDY = 20
"""Radiographs that one study may have: where more share a StudyInstanceUID, it is a placeholder, as some programs write
one into all files, and says nothing."""


def same_patient(patient_of: Mapping[str, str], key_of: Mapping[str, str]) -> dict[str, str]:
    """The patients of images, where images that share a key are of one patient, as their patients' other images are.

    Args:
        patient_of: image id -> patient.
        key_of: image id -> key; blank or absent where an image has none.
    """
    leader: dict[str, str] = {}

    def first(patient: str) -> str:
        while patient in leader:
            patient = leader[patient]
        return patient

    owner: dict[str, str] = {}
    for image_id in patient_of:
        if not (key := key_of.get(image_id)):
            continue
        patient = first(patient_of[image_id])
        other = first(owner.setdefault(key, patient))
        if other != patient:
            keep, drop = sorted((patient, other), key=lambda name: (name.startswith("image-"), name))
            leader[drop] = keep
    return {image_id: first(patient) for image_id, patient in patient_of.items()}


def group_images(
    image_ids: Sequence[str],
    table: Mapping[str, str] | None,
    tags: Mapping[str, str],
    studies: Mapping[str, str] | None = None,
) -> Grouping:
    """Give each image a patient: from the table, else from its file's PatientID, else the image is its own patient.

    Images of one study are of one patient in any case.

    Args:
        image_ids: the images.
        table: what :func:`read_patients` read, or None.
        tags: image id -> :func:`~.pseudonyms.patient_hash` of PatientID, blank or absent where there is none.
        studies: image id -> :func:`~.pseudonyms.study_hash` of StudyInstanceUID, likewise.

    Raises:
        PneumoError: a table is given that names none of the images.
    """
    times = Counter(studies.values()) if studies else Counter()
    study_of = {image_id: study for image_id, study in (studies or {}).items() if times[study] <= MOST_IN_STUDY}
    if table is not None:
        named = {image_id: table[image_id] for image_id in image_ids if image_id in table}
        if not named:
            raise PneumoError("The patient table names none of the images. Check that it belongs to these data.")
        rest = len(image_ids) - len(named)
        note = f"{rest} of {len(image_ids)} images are not in the patient table; each counts as a patient of its own."
        patient_of = {image_id: named.get(image_id, f"image-{image_id}") for image_id in image_ids}
        grouped = same_patient(patient_of, study_of)
        pairs = {(study_of[name], patient) for name, patient in named.items() if study_of.get(name)}
        torn = len(pairs) - len({study for study, _ in pairs})
        several = "The patient table gives radiographs of one study to several patients; they count as one patient."
        return Grouping(grouped, "table", " ".join([note] * bool(rest) + [several] * bool(torn)))
    patient_of = {image_id: tags.get(image_id) or f"image-{image_id}" for image_id in image_ids}
    patient_of = same_patient(patient_of, study_of)
    any_tag = any(tags.get(image_id) for image_id in image_ids)
    note = ""
    if len(set(patient_of.values())) == len(patient_of):
        why = "PatientID is different in every file" if any_tag else "the files name no patient"
        note = (
            f"Grouping by patient does nothing here: there is no patient table and {why}. Images of one patient may "
            "stand in training and test, which raises scores; give a table with --patients (for SIIM: nih_id.csv)."
        )
    return Grouping(patient_of, "dicom" if any_tag else "none", note)
