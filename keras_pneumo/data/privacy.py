"""Lists what in a folder may tell who a patient is, for a person to look at before the folder is handed on.

In comes any folder: radiographs, a prepared folder, runs, boards, answers. Out comes a report with a line for each
thing and how many files have it: DICOM tags that the basic profile of PS3.15 removes or replaces, names of files,
columns of tables, pseudonyms without a key, keys, text in and beside pictures. No value is in it: tags are counted, and
a name of a file that looks like an id is shown as its shape (``AAAA_999999.dcm``). Files are read in the pool of
processes, since they may be damaged or hostile; what cannot be read is counted.

It finds what programs can find. A face, a rare disease, or a name in free text of a page is left to the person.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_pneumo.data.labels.pseudonyms import KEY_FILE, PLAIN, key_of
from keras_pneumo.data.prepared.rendering import write_png
from keras_pneumo.data.radiographs.burnt_in import TextBox, burnt_in_text
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.data.radiographs.raster import read_limited
from keras_pneumo.data.radiographs.reading import RASTER_SUFFIXES, decode_radiograph, read_or_reason
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME, cache_folder
from keras_pneumo.storage.tables import IMAGE_SUFFIXES, column_name, counted, one_line, printable, read_rows
from keras_pneumo.storage.workers import Progress, map_files

if TYPE_CHECKING:
    from pydicom import Dataset

# -- What identifies ---------------------------------------------------------------------------------------------------

IDENTIFYING_VR = ("PN", "DA", "DT", "TM", "AE")
"""Value representations of names, dates, times and addresses of machines. The profile names such attributes one by one,
and asks for further dates and times by their representation (PS3.15, table E.1-1)."""

IDENTIFYING = frozenset((
    "PatientID", "IssuerOfPatientID", "OtherPatientIDs", "PatientSex", "PatientSexNeutered", "PatientAge",
    "PatientSize", "PatientWeight", "PatientAddress", "PatientTelephoneNumbers", "PatientTelecomInformation",
    "PatientInstitutionResidence", "CountryOfResidence", "RegionOfResidence", "EthnicGroup",
    "Occupation", "MilitaryRank", "BranchOfService", "PatientReligiousPreference", "PatientComments",
    "PatientState", "PregnancyStatus", "SmokingStatus", "SpecialNeeds", "MedicalRecordLocator", "MedicalAlerts",
    "Allergies", "AdditionalPatientHistory", "InsurancePlanIdentification", "ResponsibleOrganization",
    "AccessionNumber", "StudyID", "AdmissionID", "IssuerOfAdmissionID", "ServiceEpisodeID",
    "ServiceEpisodeDescription", "CurrentPatientLocation", "AdmittingDiagnosesDescription",
    "DischargeDiagnosisDescription", "VisitComments", "RouteOfAdmissions", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "ImagingServiceRequestComments", "OrderCallbackPhoneNumber",
    "OrderEntererLocation", "RequestingService", "ReasonForStudy",
    "ReasonForTheImagingServiceRequest", "ReasonForTheRequestedProcedure", "ReasonForVisit", "RequestedProcedureID",
    "RequestedProcedureComments", "RequestedProcedureDescription", "RequestedProcedureLocation",
    "ScheduledProcedureStepID", "ScheduledProcedureStepDescription", "ScheduledProcedureStepLocation",
    "PerformedProcedureStepID", "PerformedProcedureStepDescription", "PerformedLocation",
    "CommentsOnThePerformedProcedureStep", "PatientTransportArrangements", "StudyDescription", "SeriesDescription",
    "ProtocolName", "StudyComments", "ImageComments", "IdentifyingComments", "FrameComments", "AcquisitionComments",
    "DerivationDescription", "AcquisitionDeviceProcessingDescription", "ContributionDescription",
    "ImagePresentationComments", "TextComments", "TextString", "TextValue", "UnformattedTextValue",
    "InterpretationText", "InterpretationDiagnosisDescription", "ResultsComments", "Impressions",
    "DigitalSignaturesSequence", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName",
    "StationName", "ScheduledStationName", "PerformedStationName", "DeviceSerialNumber", "PlateID", "CassetteID",
    "GantryID", "GeneratorID", "DetectorID", "XRayDetectorID", "XRaySourceID", "PersonAddress",
    "PersonTelephoneNumbers", "PersonTelecomInformation", "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers", "PhysiciansOfRecordIdentificationSequence", "VerifyingOrganization",
    "NetworkID", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription", "ClinicalTrialSeriesID",
    "ClinicalTrialSeriesDescription", "ClinicalTrialCoordinatingCenterName",
))  # fmt: skip
"""Further attributes that the basic profile of PS3.15, table E.1-1 (2024b) removes, empties or replaces, by keyword, as
far as the objects of radiography have them: of the patient, of the visit and the order, in words of people, of places,
machines and people, of a trial."""

_CLASS_UIDS = frozenset((
    "SOPClassUID", "MediaStorageSOPClassUID", "TransferSyntaxUID", "ImplementationClassUID",
    "ReferencedSOPClassUID", "CodingSchemeUID", "ContextUID", "MappingResourceUID",
))  # fmt: skip
"""UIDs that name a kind of thing."""

_ID_COLUMNS = ("patientid", "patient", "subjectid", "subject", "nihid", "nihpatientid", "nihpatient")
_PERSONAL = re.compile(
    r"patient|subject|birth|surname|forename|firstname|lastname|fullname|^name$|^dob$|mrn|^ssn$|socialsecurity|"
    r"address|phone|e?mail$|physician|radiologist|referr|accession|hospital|insurance|(study|exam|visit)(date|time)"
)
"""Columns and keys, as :func:`~keras_pneumo.storage.tables.column_name` writes them, that are named after a person."""

_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-_. ]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])|"
    r"(?:0[1-9]|[12]\d|3[01])([-_. ])(?:0[1-9]|1[0-2])\2(?:19|20)\d\d)(?!\d)"
)
_NUMBER = re.compile(r"(?<![0-9a-zA-Z])[A-Za-z]{0,4}[-_]?\d{5,}(?![0-9a-zA-Z])")
_PERSON = re.compile(r"[^\W\d_]{2,}(\^|, ?)[^\W\d_]{2,}")
_WORDS = re.compile(r"(?<![^\W_])[A-Z][a-z]{2,}[-_ ][A-Z][a-z]{2,}(?![^\W_])")
"""Two words with a capital, as names of people are written; looked for in names of images and folders only."""
_UID = re.compile(r"[0-2](\.(0|[1-9]\d*)){3,}")
_HEX = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4,}){2,}|[0-9a-f]{16,}", re.IGNORECASE)
_OWN_NAME = re.compile(r"(images|masks)_\d+(\.npy)?|arrays_\d+\.json|events\.out\.tfevents\..*|\..*")
"""Names that this program makes; those of TensorBoard's files have a time and the machine's name."""

_TABLES = (".csv", ".tsv", ".csv.gz")
_MOST_TEXT = 64 * 2**20
_ROWS = 200_000
"""Rows of a table whose patients are looked at."""


@dataclass
class FileFacts:
    """What one file has."""

    kind: str = "other"
    """``DICOM``, ``picture``, ``table``, ``json``, ``page`` or ``other``."""
    tags: list[str] = field(default_factory=list)
    """Identifying tags with a value: keyword and number, each once."""
    uids: bool = False
    says_burnt_in: bool = False
    """Whether BurnedInAnnotation, or RecognizableVisualFeatures, says YES."""
    text: list[TextBox] = field(default_factory=list)
    """What may be text in the border."""
    seen: bool = False
    """Whether the pixels were looked at."""
    drawn: bool = False
    """Whether it is a picture in colour: drawn by a program, with words of its own."""
    beside: list[str] = field(default_factory=list)
    """Texts that a picture's file has beside the pixels, by their kind."""
    columns: list[str] = field(default_factory=list)
    """Columns or keys named after a person."""
    patients: Counter[str] = field(default_factory=Counter)
    """Values of patient columns: ``keyed``, ``plain`` or ``as given``."""
    command: bool = False
    """Whether it has a command line, with paths of this machine."""
    pictures: int = 0
    """Pictures within a page."""
    error: str = ""
    """Why it could not be examined, or not as a whole."""


@dataclass(frozen=True)
class PrivacyFinding:
    """A line of the report."""

    where: str
    what: str
    files: int
    look: bool
    """Whether a person has to look; otherwise it is only to be known."""
    advice: str = ""


@dataclass(frozen=True)
class PrivacyReport:
    """What a folder tells of patients."""

    folder: Path
    files: int
    findings: list[PrivacyFinding]
    pictures: list[tuple[Path, list[TextBox]]]
    """Pictures that may have text in their border."""

    @property
    def look(self) -> bool:
        """Whether there is something to look at before the folder is handed on."""
        return any(finding.look for finding in self.findings)


def examine_privacy(folder: Path, workers: int | None = None, progress: Progress | None = None) -> PrivacyReport:
    """Examine every file of a folder.

    Args:
        folder: any.
        workers: processes; None for one per core, as far as it pays.
        progress: called after every file.

    Raises:
        PneumoError: there is no such folder, or it holds no file.
    """
    if not folder.is_dir():
        raise PneumoError(f"There is no folder {folder}. Name the folder that is to be handed on.")
    paths = sorted(_files(folder))
    if not paths:
        raise PneumoError(f"{folder} holds no file. Name the folder that is to be handed on.")
    facts: dict[Path, FileFacts] = {}
    for number, (path, found) in enumerate(map_files(examine_file, _examined(folder, paths), workers, chunk=4), 1):
        facts[path] = found or FileFacts(error="reading it crashed, took too long or needed too much memory")
        if progress:
            progress(number, len(paths))
    findings = [
        *_tag_findings(facts),
        *_picture_findings(facts),
        *_table_findings(facts),
        *_name_findings(folder, paths),
    ]
    findings += _other_findings(paths, facts)
    findings.sort(key=lambda finding: not finding.look)
    pictures = [(path, facts[path].text) for path in paths if path in facts and facts[path].text]
    return PrivacyReport(folder, len(paths), findings, pictures)


def _files(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".git")
        yield from (Path(base) / name for name in names if name != LOCK_NAME)


def _examined(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The files to open: of a prepared folder's sizes only the largest, and no masks, which are drawn."""
    sizes: dict[Path, int] = {}
    for path in paths:
        if match := re.fullmatch(r"images_(\d+)", path.parent.name):
            sizes[path.parent.parent] = max(sizes.get(path.parent.parent, 0), int(match[1]))
    return [
        path
        for path in paths
        if not path.is_symlink()
        and not re.fullmatch(r"masks_\d+", path.parent.name)
        and (path.parent.parent not in sizes or not re.fullmatch(r"images_\d+", path.parent.name)
             or path.parent.name == f"images_{sizes[path.parent.parent]}")
    ]  # fmt: skip


# -- One file ----------------------------------------------------------------------------------------------------------


def examine_file(path: Path) -> FileFacts:
    """What one file has. It runs in a worker process, since the file may be anything."""
    name = path.name.lower()
    try:
        if name.endswith(_TABLES):
            return _examine_table(path)
        if name.endswith((".json", ".jsonl")):
            return _examine_json(path)
        if name.endswith((".html", ".htm")):
            text = path.read_bytes()[:_MOST_TEXT]
            return FileFacts("page", pictures=text.count(b"data:image/"))
        if path.suffix.lower() in RASTER_SUFFIXES:
            return _examine_picture(path)
        if _may_be_dicom(path):
            return _examine_dicom(path)
    except (PneumoError, OSError, ValueError) as error:
        kind = "table" if name.endswith(_TABLES) else "picture" if path.suffix.lower() in RASTER_SUFFIXES else "DICOM"
        return FileFacts(kind, error=type(error).__name__)
    return FileFacts()


def _may_be_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or start[:3] == b"\x08\x00\x05" or start[:3] == b"\x08\x00\x08"


def _examine_dicom(path: Path) -> FileFacts:
    from keras_pneumo.data.radiographs.dicom import open_dataset, quiet

    facts = FileFacts("DICOM")
    data = read_limited(path)
    with quiet():
        found: set[str] = set()
        try:
            for stop in (True, False):  # damaged pixels hide no tag before them, and good ones none behind them
                dataset = open_dataset(data, stop_before_pixels=stop, every_tag=True)
                for part in (dataset.file_meta, dataset):
                    _examine_dataset(part, facts, found, 0)
                facts.tags = sorted(found)
        except (PneumoError, Exception) as error:  # refused, or damaged: pydicom raises every class of error
            facts.error = type(error).__name__
    try:
        facts.text = burnt_in_text(decode_radiograph(data, path).pixels)
        facts.seen = True
    except UnreadableImage:
        pass  # a Segmentation or a report has no radiograph; a damaged file is set aside by every command
    return facts


def _examine_dataset(dataset: Dataset, facts: FileFacts, found: set[str], depth: int) -> None:
    """Add the identifying tags of a data set, and of its sequences, that have a value."""
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    for tag in dataset.keys():  # noqa: SIM118 - iterating over a data set itself converts each element, damaged ones too
        element = dataset.get_item(tag)
        try:
            vr = getattr(element, "VR", None) or dictionary_VR(tag)
        except KeyError:
            vr = "UN"
        if vr == "SQ" and depth < 16:
            for item in dataset[tag].value or ():
                _examine_dataset(item, facts, found, depth + 1)
        if not _has_value(getattr(element, "value", None)):
            continue
        keyword = keyword_for_tag(tag)
        if tag.is_private:
            found.add("private tags")
        elif tag.group & 0xFF00 == 0x6000 and tag.element in (0x3000, 0x4000):
            found.add("overlays (60xx,3000)")
        elif tag.group & 0xFF00 == 0x5000:
            found.add("curves (50xx)")
        elif keyword in ("BurnedInAnnotation", "RecognizableVisualFeatures"):
            facts.says_burnt_in |= b"YES" in _bytes_of(getattr(element, "value", b"")).upper()
        elif vr == "UI":
            facts.uids |= keyword not in _CLASS_UIDS
        elif keyword in IDENTIFYING or vr in IDENTIFYING_VR:
            found.add(f"{keyword or 'unknown'} ({tag.group:04X},{tag.element:04X})")


def _has_value(value: Any) -> bool:
    if value is None:
        return False
    return bool(_bytes_of(value).strip(b"\0 \\^=")) if isinstance(value, bytes | str) else bool(str(value).strip())


def _bytes_of(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


_HARMLESS_TEXT = frozenset((
    "dpi", "jfif", "jfif_version", "jfif_unit", "jfif_density", "gamma", "aspect", "progressive", "progression",
    "adobe", "adobe_transform", "transparency", "srgb", "interlace",
))  # fmt: skip
"""What Pillow reads of a picture's file beside its pixels that is no text."""


def _examine_picture(path: Path) -> FileFacts:
    import io

    from PIL import Image

    facts = FileFacts("picture")
    data = read_limited(path)
    with Image.open(io.BytesIO(data)) as image:
        facts.beside = sorted(one_line(str(name), 30) for name in image.info if str(name) not in _HARMLESS_TEXT)
    try:
        facts.text, facts.seen = burnt_in_text(decode_radiograph(data, path).pixels), True
    except UnreadableImage:
        facts.drawn = True
    return facts


def _examine_table(path: Path) -> FileFacts:
    facts = FileFacts("table")
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    names = [column_name(cell) for cell in header]
    ids = [number for number, name in enumerate(names) if name in _ID_COLUMNS]
    counts = {"patients"} if "images" in names else set()  # of a board or its subgroups: how many
    facts.columns = [
        one_line(cell, 40)
        for number, (cell, name) in enumerate(zip(header, names, strict=True))
        if number not in ids and name not in counts and _PERSONAL.search(name)
    ]
    for row, (_, cells) in enumerate(rows):
        if row >= _ROWS or not ids:
            break
        for number in ids:
            if number < len(cells) and (kind := _kind_of_patient(cells[number])):
                facts.patients[kind] += 1
    return facts


def _kind_of_patient(name: str) -> str:
    """Which kind of name a patient has in a table; blank where it is none but the image's own."""
    if not name or name.startswith("image-"):
        return ""
    key = PLAIN if name.startswith("sha256:") else key_of(name)
    return "as given" if not key else "plain" if key == PLAIN else "keyed"


def _examine_json(path: Path) -> FileFacts:
    facts = FileFacts("json")
    if path.stat().st_size > _MOST_TEXT:
        return FileFacts("json", error="TooLarge")
    text = path.read_text(encoding="utf-8", errors="replace")
    documents = text.splitlines() if path.suffix.lower() == ".jsonl" else [text]
    keys: dict[str, str] = {}
    stack: list[Any] = [json.loads(document) for document in documents if document.strip()]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            for key, each in value.items():
                name = column_name(str(key))
                facts.command |= key == "command" and isinstance(each, str) and "/" in each
                if isinstance(each, str | int | float) and name != "name" and _PERSONAL.search(name) and each != "":
                    keys[name] = one_line(str(key), 40)
                stack.append(each)
        elif isinstance(value, list):
            stack.extend(value)
    own = {"patients", "patientsnote", "samepatient", "otherpatients", "patientscored"}
    facts.columns = sorted(shown for name, shown in keys.items() if name not in own)
    return facts


# -- Lines of the report -----------------------------------------------------------------------------------------------


def _tag_findings(facts: Mapping[Path, FileFacts]) -> list[PrivacyFinding]:
    dicom = [found for found in facts.values() if found.kind == "DICOM"]
    times = Counter(tag for found in dicom for tag in found.tags)
    advice = "Empty or replace it by the basic profile of PS3.15, annex E, with a program for that."
    findings = [PrivacyFinding("DICOM tag", tag, number, True, advice) for tag, number in sorted(times.items())]
    if uids := sum(found.uids for found in dicom):
        why = "The profile replaces them: whoever has the archive finds the patient by them."
        findings.append(PrivacyFinding("DICOM tag", "UIDs of studies, series or images", uids, False, why))
    if burnt := sum(found.says_burnt_in for found in dicom):
        why = "Look at these pictures, or leave them out."
        findings.append(PrivacyFinding("DICOM tag", "BurnedInAnnotation: YES", burnt, True, why))
    return findings


def _picture_findings(facts: Mapping[Path, FileFacts]) -> list[PrivacyFinding]:
    found = list(facts.values())
    seen, drawn = sum(each.seen for each in found), sum(each.drawn for each in found)
    findings = []
    if text := sum(bool(each.text) for each in found):
        what = f"may have text in the border (of {seen:,} examined)"
        findings.append(PrivacyFinding("pixels", what, text, True, "Look at them, with --sheet PNG."))
    if drawn:
        why = "They are in colour, so drawn by a program, with words of its own. Look at the radiographs they show."
        findings.append(PrivacyFinding("pixels", "pictures not examined", drawn, False, why))
    beside = Counter(name for each in found for name in each.beside)
    for name, number in sorted(beside.items()):
        why = "Look at it with a viewer of metadata, or write the picture anew without it."
        findings.append(PrivacyFinding("picture file", f"text beside the pixels: {name}", number, True, why))
    if pages := [each.pictures for each in found if each.pictures]:
        why = "Text burnt into radiographs is in them too."
        what = f"{counted(sum(pages), 'picture')} within pages, not examined"
        findings.append(PrivacyFinding("page", what, len(pages), False, why))
    return findings


def _table_findings(facts: Mapping[Path, FileFacts]) -> list[PrivacyFinding]:
    findings = []
    for kind, where in (("table", "column"), ("json", "key")):
        times = Counter(name for found in facts.values() if found.kind == kind for name in found.columns)
        for name, number in sorted(times.items()):
            findings.append(PrivacyFinding(f"{kind} {where}", name, number, True, "Leave it out unless it is needed."))
    lines = {
        "plain": (
            "pseudonyms or hashes without a key",
            True,
            "They are undone by trying. Prepare the data into another folder.",
        ),
        "as given": (
            "patients as a table names them",
            True,
            "Make sure that these are no numbers of a hospital: they are written as they stand.",
        ),
        "keyed": (
            "pseudonyms with a key",
            False,
            f"They cannot be undone without {KEY_FILE}. Rows of one patient stay linked.",
        ),
    }
    for kind, (what, look, why) in lines.items():
        if number := sum(found.patients[kind] > 0 for found in facts.values()):
            findings.append(PrivacyFinding("table column", what, number, look, why))
    return findings


def _name_findings(folder: Path, paths: Iterable[Path]) -> list[PrivacyFinding]:
    shapes: dict[str, Counter[str]] = {}
    parts = {part for path in paths for part in path.relative_to(folder).parts}
    times = Counter(part for path in paths for part in set(path.relative_to(folder).parts))
    for part in sorted(parts):
        if kind := kind_of_name(part):
            shapes.setdefault(kind, Counter())[shape_of(part)] += times[part]
    findings = []
    for kind, counts in sorted(shapes.items()):
        example = counts.most_common(1)[0][0]
        if kind == "a UID":
            why = "Whoever has the archive finds the patient by it."
            findings.append(PrivacyFinding("file name", "has the form of a UID", counts.total(), False, why))
        else:
            what = f"looks like {kind}, as {example}"
            findings.append(PrivacyFinding("file name", what, counts.total(), True, "Rename these files and folders."))
    return findings


def kind_of_name(name: str) -> str:
    """What the name of a file or folder looks like: ``a date``, ``an id``, ``a person's name``, ...; blank when not."""
    name = printable(name)
    if any(not letter.isprintable() for letter in name):
        return "a text with control characters"
    if _OWN_NAME.fullmatch(name):
        return ""
    stem = re.sub(r"(\.[A-Za-z][A-Za-z0-9]{0,8}){1,2}$", "", name)
    if _UID.fullmatch(stem):
        return "a UID"
    stem = _HEX.sub("", stem)
    if _DATE.search(stem):
        return "a date"
    if _PERSON.search(stem) or (_WORDS.search(stem) and (name.lower().endswith(IMAGE_SUFFIXES) or stem == name)):
        return "a person's name"
    return "an id" if _NUMBER.search(stem) else ""


def shape_of(name: str) -> str:
    """A name with every digit as 9 and every letter as A or a, by which it is known and not told."""
    name = one_line(printable(name), 60)
    stem, dot, ending = name.rpartition(".")
    known = dot and ending.isalpha() and len(ending) <= 5
    text = stem if known else name
    text = "".join("9" if c.isdigit() else ("A" if c.isupper() else "a") if c.isalpha() else c for c in text)
    return f"{text}.{ending}" if known else text


def shown_path(path: Path) -> str:
    """A path within the folder, each part that looks like an id as its shape."""
    return "/".join(shape_of(part) if kind_of_name(part) not in ("", "a UID") else part for part in path.parts)


def _other_findings(paths: Iterable[Path], facts: Mapping[Path, FileFacts]) -> list[PrivacyFinding]:
    findings = []
    if keys := sum(path.name == KEY_FILE for path in paths):
        why = "Whoever has it can try numbers of patients. Leave it out of what you hand on, and keep it."
        findings.append(PrivacyFinding("key", KEY_FILE, keys, True, why))
    if failed := sum(bool(found.error) for found in facts.values()):
        why = "Nobody knows what is in them: leave them out, or look at them with another program."
        findings.append(PrivacyFinding("file", "could not be examined", failed, True, why))
    if commands := sum(found.command for found in facts.values()):
        why = "Its paths may name a user or a project."
        findings.append(PrivacyFinding("record", "has the command line", commands, False, why))
    if events := sum(path.name.startswith("events.out.tfevents") for path in paths):
        why = "TensorBoard writes it so."
        findings.append(PrivacyFinding("file name", "has the name of the machine", events, False, why))
    opened = sum(found.kind == "other" and not found.error and path.name != KEY_FILE for path, found in facts.items())
    if opened:
        why = "Weights, arrays and texts: this program writes no patient there but pixels, into arrays."
        findings.append(PrivacyFinding("file", "of another kind, not examined", opened, False, why))
    logs = cache_folder() / "errors"
    if logs.is_dir() and (number := len(list(logs.glob("*.log")))):
        why = f"Not in this folder but in {logs}; they have no message, file name or value."
        findings.append(PrivacyFinding("log", "logs of faults of this program", number, False, why))
    return findings


# -- A sheet of pictures to look at ------------------------------------------------------------------------------------

_TILE, _COLUMNS, _MOST_TILES = 320, 5, 60


def draw_text_sheet(report: PrivacyReport, out: Path, workers: int | None = None) -> int:
    """Draw the pictures that may have text in their border, each with a frame around it, and its number.

    Returns:
        How many are drawn: the first 60 of them.

    Raises:
        PneumoError: there is none, or the file cannot be written.
    """
    import cv2
    import numpy as np

    chosen = dict(report.pictures[:_MOST_TILES])
    if not chosen:
        raise PneumoError(
            f"No picture in {report.folder} may have text in its border: there is nothing to draw. Leave out --sheet."
        )
    tiles = {}
    for path, radiograph in map_files(read_or_reason, list(chosen), workers):
        if radiograph is None or isinstance(radiograph, str):
            continue
        rows, columns = radiograph.pixels.shape
        scale = _TILE / max(rows, columns)
        size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
        tile = np.zeros((_TILE, _TILE, 3), np.uint8)
        small = cv2.resize(radiograph.pixels, size, interpolation=cv2.INTER_AREA)
        tile[: size[1], : size[0]] = cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
        for box in chosen[path]:
            left, top = round(box.left * scale) - 3, round(box.top * scale) - 3
            right, bottom = round((box.left + box.width) * scale) + 3, round((box.top + box.height) * scale) + 3
            cv2.rectangle(tile, (left, top), (right, bottom), (0, 176, 255), 1)
        tiles[path] = tile
    drawn = [tiles[path] for path in chosen if path in tiles]
    for number, tile in enumerate(drawn, start=1):
        cv2.putText(tile, str(number), (6, _TILE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 176, 255), 1, cv2.LINE_AA)
    blank = np.zeros((_TILE, _TILE, 3), np.uint8)
    rest = -len(drawn) % _COLUMNS if len(drawn) > _COLUMNS else 0
    drawn_rows = [*drawn, *[blank] * rest]
    sheet = np.vstack([np.hstack(drawn_rows[i : i + _COLUMNS]) for i in range(0, len(drawn_rows), _COLUMNS)])
    write_png(out, sheet)
    return len(drawn)
