"""Declares the label tables that are known: in which column a data set says what, one entry for each.

A table is recognised by its columns (:func:`recognise`): the entry whose columns are all there counts, and of several
the one with most columns. :mod:`.tables` reads them all in the same way, so another data set is another entry here.
What a blank and an uncertain label mean belongs to the data set; where it does not say, the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from keras_pneumo.data.radiographs.radiograph import MAX_PIXELS
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import IMAGE_COLUMNS, column_name, listed, one_line

Meaning = Literal["negative", "ignore"]
Uncertain = Literal["ignore", "positive", "negative"]

NIH_IMAGES = ("nih", "chestxray14", "chestxray8", "cxr14", "chestxnet", "siim", "rsna")
"""Parts of the names of data sets that contain SIIM's images, as :func:`.column_name` writes them."""


@dataclass(frozen=True)
class LabelOptions:
    """What the user decides about labels; the manifest keeps it. :func:`options_of` checks a user's words."""

    uncertain: Uncertain = "ignore"
    """What an uncertain label means: the image is left out, or counts as positive or negative (the policies of
    Irvin et al., "CheXpert", arXiv 1901.07031, section 4)."""
    blank: Meaning | None = None
    """What it means that a label is blank, or that an image has no mask; None: as the data set says, else refused."""
    readers: int = 2
    """How many readers must see a pneumothorax, where several read each image."""
    image_column: str | None = None
    label_column: str | None = None
    """The columns of a table that is not known."""
    any_view: bool = False
    """Whether images that the table calls lateral, or of another view, are let in."""
    mask_size: tuple[int, int] | None = None
    """Rows and columns of the grid that run-length masks refer to; None: as the table says, else 1024x1024."""


def options_of(
    uncertain: str = "ignore",
    blank: str | None = None,
    readers: int = 2,
    image_column: str | None = None,
    label_column: str | None = None,
    any_view: bool = False,
    mask_size: str | None = None,
) -> LabelOptions:
    """The options of a user's words.

    Raises:
        PneumoError: a word is none of those that its option takes.
    """
    if uncertain not in ("ignore", "positive", "negative"):
        raise PneumoError(f"--uncertain is ignore, positive or negative, not {uncertain!r}.")
    if blank is not None and blank not in ("negative", "ignore"):
        raise PneumoError(f"--blank is negative or ignore, not {blank!r}.")
    if readers < 1:
        raise PneumoError(f"--readers is at least 1, not {readers}.")
    size = None
    if mask_size is not None:
        match = re.fullmatch(r"([0-9]{1,5})[xX×]([0-9]{1,5})", mask_size.strip())
        size = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise PneumoError(f"--mask-size is ROWSxCOLUMNS, for example 512x512, not {mask_size!r}.")
    return LabelOptions(
        cast("Uncertain", uncertain),
        cast("Meaning | None", blank),
        readers,
        image_column,
        label_column,
        any_view,
        size,
    )


@dataclass(frozen=True)
class DataSet:
    """Where a table of one data set says what. Columns are named as in its header; case and signs do not count."""

    name: str
    columns: tuple[str, ...]
    """By these the table is recognised."""
    image: str
    """Column of the image's name, or of its path."""
    label: str
    """Column of the label."""
    kind: Literal["word", "findings", "masks"] = "word"
    """The label is a word or number of yes and no, a list of findings, or a mask as run-length text."""
    separator: str = "|"
    """Between findings."""
    blank: Meaning | None = None
    """What a blank label means; None where the data set does not say."""
    minus_one_is_uncertain: bool = False
    unlabelled: tuple[str, ...] = ()
    """Findings that leave open whether there is a pneumothorax."""
    reader: str = ""
    """Column of the reader, in tables with a row for each reader and finding."""
    parts: int = 1
    """How many parts of the image's path make its id, where file names alone are not unique."""
    patient: str = ""
    patient_pattern: str = ""
    """The patient within the image's path, where no column names one (a regular expression)."""
    view: str = ""
    lateral: str = ""
    """A second column that tells frontal from lateral views."""
    sex: str = ""
    age: str = ""
    birth: str = ""
    study_date: str = ""
    """Year of birth and date of the study, from which the age follows."""
    source: str = ""
    box: tuple[str, ...] = ()
    """Columns of a box: left, top, right, bottom, in the file's own pixels."""
    boxes_beside: str = ""
    """Pattern of the name of a table of boxes beside this one."""
    images_beside: str = ""
    """Pattern of the name of a table beside this one that names the images of each study."""
    study: str = ""
    """Column of the study, in both tables."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Every column from which something is taken."""
        names = (self.image, self.label, self.reader, self.patient, self.view, self.lateral, self.sex, self.age)
        more = (self.birth, self.study_date, self.source, self.study, *self.box)
        return tuple(name for name in (*names, *more) if name)


SIIM = DataSet("SIIM-ACR", ("ImageId", "EncodedPixels"), "ImageId", "EncodedPixels", "masks", blank="negative")
"""12,047 radiographs, 2,669 with pneumothorax, taken from NIH ChestX-ray14 and outlined anew (Kaggle, 2019). A row for
each mask, up to ten an image. PatientID is different in every file: only ``nih_id.csv`` names the patients."""

CANDID = DataSet("CANDID-PTX", ("SOPInstanceUID", "EncodedPixels"), "SOPInstanceUID", "EncodedPixels", "masks")
"""19,237 radiographs, one in five with pneumothorax (Feng et al., Radiology: AI 2021). Blank cells occur, and public
scripts disagree on what they mean."""

_NIH = DataSet(
    "NIH ChestX-ray14",
    ("Image Index", "Finding Labels", "Follow-up #"),
    image="Image Index",
    label="Finding Labels",
    kind="findings",
    patient="Patient ID",
    patient_pattern=r"^(\d{8})_",
    view="View Position",
    sex="Patient Gender",
    age="Patient Age",
    boxes_beside="BBox_List*.csv*",
)
"""112,120 radiographs, 5,302 with pneumothorax by text-mining of reports; boxes of 98 in a table of their own."""

_GOOGLE = replace(
    _NIH,
    name="Google's adjudicated NIH",
    columns=(*_NIH.columns, "Pneumothorax"),
    label="Pneumothorax",
    kind="word",
    boxes_beside="",
)
"""4,376 of NIH's radiographs, 238 with pneumothorax by a panel of radiologists (Majkowska et al., Radiology 2020)."""

_CHEXPERT = DataSet(
    "CheXpert",
    ("Path", "Frontal/Lateral", "AP/PA", "Pneumothorax"),
    image="Path",
    label="Pneumothorax",
    blank="negative",  # "not mentioned" in the report
    minus_one_is_uncertain=True,
    parts=3,
    patient_pattern=r"(patient\d+)",
    view="AP/PA",
    lateral="Frontal/Lateral",
    sex="Sex",
    age="Age",
)
"""223,414 radiographs, 19,448 with pneumothorax and 3,145 uncertain, by rules from reports (arXiv 1901.07031)."""

_MIMIC = DataSet(
    "MIMIC-CXR-JPG",
    ("subject_id", "study_id", "Pneumothorax", "No Finding"),
    image="dicom_id",
    label="Pneumothorax",
    blank="negative",
    minus_one_is_uncertain=True,
    patient="subject_id",
    view="ViewPosition",
    images_beside="*metadata*.csv*",
    study="study_id",
)
"""377,110 radiographs, labelled by study as CheXpert's; ``mimic-cxr-2.0.0-metadata.csv`` names the images."""

_PADCHEST = DataSet(
    "PadChest",
    ("ImageID", "Labels", "Projection", "MethodLabel"),
    image="ImageID",
    label="Labels",
    kind="findings",
    separator=",",
    blank="ignore",
    unlabelled=("unchanged", "exclude", "suboptimal study"),
    patient="PatientID",
    view="Projection",
    sex="PatientSex_DICOM",
    birth="PatientBirth",
    study_date="StudyDate_DICOM",
)
"""160,861 radiographs; findings as Python writes a list (Bustos et al., Medical Image Analysis 2020)."""

_VINDR = DataSet(
    "VinDr-CXR",
    ("image_id", "class_name", "rad_id", "x_min", "y_min", "x_max", "y_max"),
    image="image_id",
    label="class_name",
    kind="findings",
    reader="rad_id",
    box=("x_min", "y_min", "x_max", "y_max"),
)
"""15,000 radiographs, each read by three radiologists; a row for each box and reader (Nguyen et al., 2022)."""

MASKS = replace(SIIM, name="table of masks")
"""Any table with an image column and EncodedPixels."""

GENERIC = DataSet(
    "table of labels",
    (),
    image="image",
    label="label",
    patient="patient_id",
    view="view",
    sex="sex",
    age="age",
    source="source",
)
"""Any table with an image column and a label column."""

KNOWN = (SIIM, CANDID, _NIH, _GOOGLE, _CHEXPERT, _MIMIC, _PADCHEST, _VINDR)

LABEL_COLUMNS = ("pneumothorax", "label")
"""Columns that hold the label of a table that is not known otherwise."""

_IMAGES = (*IMAGE_COLUMNS, "imageindex", "path", "file", "imagepath", "filepath")


def recognise(header: Sequence[str], options: LabelOptions) -> DataSet | None:
    """The data set whose table has this header; None where none fits.

    Raises:
        PneumoError: a column that ``options`` name is not there.
    """
    names = [column_name(cell) for cell in header]
    if options.image_column or options.label_column:
        return _chosen(header, names, options)
    if "probability" in names:  # predictions, not labels
        return None
    fitting = [entry for entry in KNOWN if {column_name(name) for name in entry.columns} <= set(names)]
    if fitting:
        return max(fitting, key=lambda entry: len(entry.columns))
    image = next((name for name in _IMAGES if name in names), None)
    if image is None:
        return None
    if "encodedpixels" in names:
        return None if "kind" in names else MASKS  # a table of devices has a kind for each mask
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    return replace(GENERIC, image=image, label=label) if label else None


def _chosen(header: Sequence[str], names: list[str], options: LabelOptions) -> DataSet:
    """A table whose columns the user names, one or both."""
    given = {"--image-column": options.image_column, "--label-column": options.label_column}
    for option, name in given.items():
        if name is not None and column_name(name) not in names:
            has = listed((repr(one_line(cell, 40)) for cell in header), 12)
            raise PneumoError(f"There is no column {name!r} ({option}); the table has {has}. Name one of these.")
    image = options.image_column or next((name for name in _IMAGES if name in names), None)
    label = options.label_column or next((name for name in LABEL_COLUMNS if name in names), None)
    if image is None or label is None:
        missing = "--image-column" if image is None else "--label-column"
        raise PneumoError(f"The table's columns are {listed(header, 12)}. Name the other column too, with {missing}.")
    return replace(GENERIC, image=image, label=label)
