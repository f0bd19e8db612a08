"""A synthetic radiograph as a DICOM file that differs from SIIM-ACR's only in its pixels.

In: an image and its case. Out: the bytes of a file. Tags, their order and their oddities were read from ten of SIIM's
files with pydicom 3.0.2: an age of "38" where DICOM wants "038Y", a patient name and id that are a random UUID new in
every file, a study date of 1 January 1901, a Pixel Spacing longer than its type allows, and dcmtk 3.6.0 as the writer.
The pixels are one JPEG Baseline frame of quality 92 with tables of its own and without a JFIF header, as theirs are.
"""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.tag import Tag
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from keras_pneumo.phantoms.cohort import Case

JPEG_QUALITY = 92
"""SIIM's quantisation table begins 3 2 2 2 2 2 3 2: the standard's luminance table at libjpeg's quality 92."""


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode one grey image, uint8, as a baseline JPEG stream of even length and without a JFIF header."""
    done, packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    if not done:
        raise RuntimeError("OpenCV could not write a JPEG")
    stream = packed.tobytes()
    # libjpeg writes an APP0 segment (marker, two bytes of length, the rest) after the start marker; SIIM's have none.
    if stream[2:4] == b"\xff\xe0":
        stream = stream[:2] + stream[4 + int.from_bytes(stream[4:6], "big") :]
    return stream + b"\0" * (len(stream) % 2)


def encode_dicom(image: np.ndarray, case: Case) -> bytes:
    """Return the bytes of a DICOM file; ``image`` is uint8, bone white; MONOCHROME1 stores it inverted."""
    stored = 255 - image if case.monochrome1 else image
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID(case.image_id)
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.ImplementationClassUID = UID("1.2.276.0.7230010.3.0.3.6.0")
    meta.ImplementationVersionName = "OFFIS_DCMTK_360"
    dataset = Dataset()
    dataset.file_meta = meta
    for keyword, kind, value in _tags(image, case):
        # Not validated on purpose: SIIM's age and spacing break the standard.
        dataset[keyword] = DataElement(Tag(keyword), kind, value, validation_mode=config.IGNORE)
    pixels = DataElement(Tag("PixelData"), "OB", encapsulate([encode_jpeg(stored)], has_bot=False))
    pixels.is_undefined_length = True
    dataset["PixelData"] = pixels
    target = BytesIO()
    dcmwrite(target, dataset, enforce_file_format=True)
    return target.getvalue()


def _tags(image: np.ndarray, case: Case) -> list[tuple[str, str, object]]:
    rows, columns = image.shape
    return [
        ("SpecificCharacterSet", "CS", "ISO_IR 100"),
        ("SOPClassUID", "UI", SecondaryCaptureImageStorage),
        ("SOPInstanceUID", "UI", case.image_id),
        ("StudyDate", "DA", "19010101"),
        ("StudyTime", "TM", "000000.00"),
        ("AccessionNumber", "SH", ""),
        ("Modality", "CS", "CR"),
        ("ConversionType", "CS", "WSD"),
        ("ReferringPhysicianName", "PN", ""),
        ("SeriesDescription", "LO", f"view: {case.view}"),
        ("PatientName", "PN", case.file_uuid),
        ("PatientID", "LO", case.file_uuid),
        ("PatientBirthDate", "DA", ""),
        ("PatientSex", "CS", case.sex),
        ("PatientAge", "AS", str(case.age)),
        ("BodyPartExamined", "CS", "CHEST"),
        ("ViewPosition", "CS", case.view),
        ("StudyInstanceUID", "UI", case.study_uid),
        ("SeriesInstanceUID", "UI", case.series_uid),
        ("StudyID", "SH", ""),
        ("SeriesNumber", "IS", "1"),
        ("InstanceNumber", "IS", "1"),
        ("PatientOrientation", "CS", ""),
        ("SamplesPerPixel", "US", 1),
        ("PhotometricInterpretation", "CS", "MONOCHROME1" if case.monochrome1 else "MONOCHROME2"),
        ("Rows", "US", rows),
        ("Columns", "US", columns),
        ("PixelSpacing", "DS", [case.pixel_spacing, case.pixel_spacing]),
        ("BitsAllocated", "US", 8),
        ("BitsStored", "US", 8),
        ("HighBit", "US", 7),
        ("PixelRepresentation", "US", 0),
        ("LossyImageCompression", "CS", "01"),
        ("LossyImageCompressionMethod", "CS", "ISO_10918_1"),
    ]
