import io
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from keras_pneumo.phantoms.cohort import PhantomSettings, make_case, make_patient
from keras_pneumo.phantoms.dicom import encode_dicom, encode_jpeg

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[3] / "shared")) / "siim_mini" / "dicom"

# Read with pydicom 3.0.2 from 1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878027.dcm, the first file of the
# competition's official sample; None where files differ.
SIIM_META = [
    ("FileMetaInformationVersion", "OB", b"\x00\x01"),
    ("MediaStorageSOPClassUID", "UI", "1.2.840.10008.5.1.4.1.1.7"),
    ("MediaStorageSOPInstanceUID", "UI", None),
    ("TransferSyntaxUID", "UI", "1.2.840.10008.1.2.4.50"),
    ("ImplementationClassUID", "UI", "1.2.276.0.7230010.3.0.3.6.0"),
    ("ImplementationVersionName", "SH", "OFFIS_DCMTK_360"),
]
SIIM_TAGS = [
    ("SpecificCharacterSet", "CS", "ISO_IR 100"),
    ("SOPClassUID", "UI", "1.2.840.10008.5.1.4.1.1.7"),
    ("SOPInstanceUID", "UI", None),
    ("StudyDate", "DA", "19010101"),
    ("StudyTime", "TM", "000000.00"),
    ("AccessionNumber", "SH", ""),
    ("Modality", "CS", "CR"),
    ("ConversionType", "CS", "WSD"),
    ("ReferringPhysicianName", "PN", ""),
    ("SeriesDescription", "LO", None),
    ("PatientName", "PN", None),
    ("PatientID", "LO", None),
    ("PatientBirthDate", "DA", ""),
    ("PatientSex", "CS", None),
    ("PatientAge", "AS", None),
    ("BodyPartExamined", "CS", "CHEST"),
    ("ViewPosition", "CS", None),
    ("StudyInstanceUID", "UI", None),
    ("SeriesInstanceUID", "UI", None),
    ("StudyID", "SH", ""),
    ("SeriesNumber", "IS", 1),
    ("InstanceNumber", "IS", 1),
    ("PatientOrientation", "CS", ""),
    ("SamplesPerPixel", "US", 1),
    ("PhotometricInterpretation", "CS", "MONOCHROME2"),
    ("Rows", "US", 1024),
    ("Columns", "US", 1024),
    ("PixelSpacing", "DS", None),
    ("BitsAllocated", "US", 8),
    ("BitsStored", "US", 8),
    ("HighBit", "US", 7),
    ("PixelRepresentation", "US", 0),
    ("LossyImageCompression", "CS", "01"),
    ("LossyImageCompressionMethod", "CS", "ISO_10918_1"),
    ("PixelData", "OB", None),
]


def picture(seed: int = 0) -> np.ndarray:
    """A smooth slope with a little grain."""
    slope = np.add.outer(np.linspace(20, 150, 1024), np.linspace(0, 80, 1024))
    return (slope + np.random.default_rng(seed).normal(0, 2, slope.shape)).astype(np.uint8)


def written(patient: int = 0, monochrome1_rate: float = 0.0) -> pydicom.Dataset:
    case = make_case(0, patient, 0, PhantomSettings(monochrome1_rate=monochrome1_rate))
    return pydicom.dcmread(io.BytesIO(encode_dicom(picture(), case)))


def listed(elements: pydicom.Dataset) -> list[tuple[str, str, object]]:
    return [(element.keyword, element.VR, element.value) for element in elements]


@pytest.mark.parametrize("patient", range(5))
def test_tags_kinds_and_fixed_values_are_siims(patient: int) -> None:
    dataset = written(patient)
    meta = [entry for entry in listed(dataset.file_meta) if entry[0] != "FileMetaInformationGroupLength"]
    for tags, expected_tags in ((meta, SIIM_META), (listed(dataset), SIIM_TAGS)):
        assert [entry[:2] for entry in tags] == [entry[:2] for entry in expected_tags]
        for (keyword, _, value), (_, _, expected) in zip(tags, expected_tags, strict=True):
            assert expected is None or value == expected, keyword


def test_oddities() -> None:
    first, second = written(0), written(1)
    assert first.PatientAge.isdigit()  # the standard wants 038Y
    assert first.PatientID == str(first.PatientName)
    assert len(first.PatientID) == 36
    assert first.PatientID != second.PatientID
    assert first.SeriesDescription == f"view: {first.ViewPosition}"
    assert first.StudyInstanceUID.startswith("1.2.276.0.7230010.3.1.2.8323329.")
    spacings = {written(patient)["PixelSpacing"].value[0].original_string for patient in range(30)}
    assert "0.14300000000000002" in spacings  # 19 characters; a DS has at most 16


def test_images_of_one_patient_share_no_patient_id() -> None:
    settings = PhantomSettings()
    case = next(make_case(0, patient, 1, settings) for patient in range(20) if _images(patient) > 1)
    other = make_case(0, case.patient, 0, settings)
    assert case.patient_id == other.patient_id
    assert case.file_uuid != other.file_uuid


def _images(patient: int) -> int:
    return len(make_patient(0, patient, 0.22).positives)


def test_pixels_come_back_as_they_were_but_for_jpeg() -> None:
    decoded = written().pixel_array
    assert decoded.shape == (1024, 1024)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - picture()).max() <= 8


def test_monochrome1_is_stored_inverted() -> None:
    dataset = written(monochrome1_rate=1.0)
    assert dataset.PhotometricInterpretation == "MONOCHROME1"
    assert np.abs(255 - dataset.pixel_array.astype(int) - picture()).max() <= 8


def test_the_frame_is_one_baseline_jpeg_of_even_length_in_an_undefined_length_element() -> None:
    dataset = written()
    assert dataset["PixelData"].is_undefined_length
    assert dataset.PixelData[:8] == bytes.fromhex("feff00e000000000")  # an empty offset table, as theirs
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    assert len(frames) == 1
    frame = frames[0]
    assert len(frame) % 2 == 0
    # Start marker, then the quantisation table of quality 92, which begins as SIIM's.
    assert frame[:20] == bytes.fromhex("ffd8ffdb00430003020202020203020202030303")
    assert bytes.fromhex("ffc0000b080400040001011100") in frame  # SOF0: baseline, 8 bits, 1024x1024, one component
    assert frame.rstrip(b"\0").endswith(b"\xff\xd9")


def test_jpeg_streams_are_padded_to_even_length() -> None:
    streams = [encode_jpeg(picture(seed)[:64, :64]) for seed in range(12)]
    assert all(len(stream) % 2 == 0 for stream in streams)
    assert any(stream.endswith(b"\xff\xd9\0") for stream in streams)
    assert any(stream.endswith(b"\xff\xd9") for stream in streams)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real DICOM files in {REAL}")
def test_against_the_real_files() -> None:
    phantom = written()
    for path in sorted(REAL.glob("*.dcm")):
        siim = pydicom.dcmread(path)
        for mine, real in ((phantom, siim), (phantom.file_meta, siim.file_meta)):
            assert [(e.tag, e.VR) for e in mine] == [(e.tag, e.VR) for e in real]
        mine, real = (next(generate_frames(d.PixelData, number_of_frames=1)) for d in (phantom, siim))
        assert mine[: 2 + 69 + 2 + 11] == real[: 2 + 69 + 2 + 11]  # start, quantisation table, frame header
