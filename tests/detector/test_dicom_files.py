"""Tests of the files of DICOM objects: sources without identifiers, odd headers, objects of earlier runs."""

import io
import json

import numpy as np
import pandas as pd
import pydicom
import pytest
from detector_lab import DCIODVFY, check_valid, known_detector
from pydicom.uid import UID

from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.dicom_files import UnusableSource, is_uid, source_header

hd = pytest.importorskip("highdicom", reason="highdicom (extra dicom) is not installed")


@pytest.mark.parametrize("dicom", [True, False])
def test_no_object_of_an_earlier_run_lies_beside_a_new_answer(few, tmp_path, dicom):
    (path,) = sorted(few.iterdir())[:1]
    detect(known_detector(), [path], tmp_path, dicom=True)
    folder = tmp_path / "dicom" / path.stem
    assert (folder / "segmentation.dcm").exists()
    (folder / "notes.txt").write_text("somebody's own")
    detect(known_detector(probability=0.1, top=2), [path], tmp_path, dicom=dicom)
    kept = {"capture.dcm", "report.dcm", "notes.txt"} if dicom else {"notes.txt"}
    assert {path.name for path in folder.iterdir()} == kept


def write_siim_test_file(path, target):
    """Write a file like SIIM's test files: empty study and series UIDs, and an invalid SOP UID."""
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("ID_000012eaf", validation_mode=0)
        dataset.file_meta.MediaStorageSOPInstanceUID = UID("ID_000012eaf", validation_mode=0)
        dataset.save_as(target)


def test_files_without_identifiers_are_set_aside_or_get_them(few, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_siim_test_file(next(few.iterdir()), data / "ID_000012eaf.dcm")
    plain = detect(known_detector(), [data], tmp_path / "plain", dicom=True)
    assert len(plain.rows) == 1, "it is answered all the same"
    (aside,) = plain.set_aside
    for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "--make-uids"):
        assert word in aside["reason"]
    assert not (tmp_path / "plain/dicom").exists()
    made = detect(known_detector(), [data], tmp_path / "made", dicom=True, make_uids=True)
    assert (made.made_up, made.set_aside) == (1, [])
    written = json.loads((tmp_path / "made/ID_000012eaf.json").read_text())["dicom"]
    copy = pydicom.dcmread(tmp_path / "made" / written["source_copy"])
    assert is_uid(copy.SOPInstanceUID)
    assert copy.SOPInstanceUID == written["source"]
    np.testing.assert_array_equal(copy.pixel_array, pydicom.dcmread(next(few.iterdir())).pixel_array)
    segmentation = hd.seg.segread(tmp_path / "made" / written["segmentation"])
    study, series, instance = segmentation.get_source_image_uids()[0]
    assert (study, series, instance) == (copy.StudyInstanceUID, copy.SeriesInstanceUID, copy.SOPInstanceUID)
    again, _ = source_header((data / "ID_000012eaf.dcm").read_bytes(), make_uids=True)
    assert again.SOPInstanceUID == copy.SOPInstanceUID, "the same file always gets the same"
    if DCIODVFY:
        check_valid(tmp_path / "made")


@pytest.mark.parametrize("spacing", [["nan", "nan"], ["inf", "1"], ["0", "0"], ["-1", "-1"], "0.2", []])
def test_an_invalid_spacing_is_not_taken_over(few, tmp_path, spacing):
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.PixelSpacing, dataset.ImagerPixelSpacing = spacing, spacing
        dataset.save_as(tmp_path / "odd.dcm")
    source, _ = source_header((tmp_path / "odd.dcm").read_bytes())
    assert not {"PixelSpacing", "ImagerPixelSpacing"} & set(source.dir())
    result = detect(known_detector(), [tmp_path / "odd.dcm"], tmp_path / "out", dicom=True)
    if result.rows:  # a single number is refused when pixels are read
        assert (len(result.rows), result.set_aside) == (1, [])
        assert result.rows[0]["area_mm2"] is None
        (capture,) = (tmp_path / "out").rglob("capture.dcm")
        assert not {"PixelSpacing", "NominalScannedPixelSpacing"} & set(pydicom.dcmread(capture).dir())
        if DCIODVFY:
            check_valid(tmp_path / "out")


def test_the_second_spacing_is_taken_where_the_first_is_invalid(few, tmp_path):
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.PixelSpacing, dataset.ImagerPixelSpacing = ["nan", "nan"], ["0.25", "0.25"]
        dataset.save_as(tmp_path / "odd.dcm")
    source, _ = source_header((tmp_path / "odd.dcm").read_bytes())
    assert list(source.PixelSpacing) == [0.25, 0.25]


@pytest.mark.parametrize("failing", ["dicom_files.source_header", "dicom_objects.dicom_objects", "Dataset.save_as"])
def test_an_odd_header_costs_only_its_objects(few, tmp_path, monkeypatch, failing):
    class Odd:
        def save_as(self, *_, **__):
            raise ValueError("Unmistakable^Name")

    def odd(*_, **__):
        if failing == "Dataset.save_as":
            return {"report": Odd()}
        raise ValueError("Unmistakable^Name")

    module = "dicom_files.source_header" if failing == "dicom_files.source_header" else "dicom_objects.dicom_objects"
    monkeypatch.setattr(f"keras_pneumo.detector.{module}", odd)
    result = detect(known_detector(), [few], tmp_path, dicom=True)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == len(result.rows) == 3
    reasons = pd.read_csv(tmp_path / "quarantine.csv")["reason"]
    assert len(reasons) == 3
    assert reasons.str.contains("without DICOM objects: its header holds a value that DICOM objects cannot").all()
    assert not reasons.str.contains("Unmistakable").any()


def test_an_unusable_source_gives_a_reason(tmp_path):
    with pytest.raises(UnusableSource, match="not a DICOM file"):
        source_header(b"\x89PNG" + b"\0" * 200)
    dataset = pydicom.Dataset()
    dataset.PatientName = "X"
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=False, little_endian=True)
    with pytest.raises(UnusableSource):
        source_header(b"\0" * 128 + b"DICM" + stream.getvalue())


@pytest.mark.parametrize(
    ("text", "right"), [("1.2.3", True), ("", False), (None, False), ("ID_0", False), ("1.02", False)]
)
def test_valid_uids(text, right):
    assert is_uid(text) is right
