"""Tests of the DICOM objects: same grid as their source, its UIDs, valid files, the right answer."""

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from detector_lab import (
    DCIODVFY,
    check_valid,
    checked_detector,
    cut_dicom,
    dice,
    drawn_hand,
    expected_mask,
    known_detector,
)
from pydicom.uid import ExplicitVRLittleEndian

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.drawn import segmentation_labels
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.radiographs.geometry import mask_on_image
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.detector import Answer
from keras_pneumo.detector.dicom_files import is_uid
from keras_pneumo.detector.summary import caption

hd = pytest.importorskip("highdicom", reason="highdicom (extra dicom) is not installed")
REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[3] / "shared")) / "siim_mini" / "dicom"


@pytest.fixture(scope="module")
def answered(tmp_path_factory, few):
    """Answers for the three files, with DICOM objects."""
    out = tmp_path_factory.mktemp("answered")
    result = detect(known_detector(), [few], out, dicom=True)
    assert not result.set_aside
    return out


def source_pixels(path):
    pixels = pydicom.dcmread(path).pixel_array
    return 255 - pixels if pydicom.dcmread(path).PhotometricInterpretation == "MONOCHROME1" else pixels


def check_alignment(path, out):
    """Checks the position of mask, overlay, Segmentation and Secondary Capture against the pixels of the file."""
    pixels = source_pixels(path)
    expected = expected_mask(pixels)
    written = json.loads((out / f"{path.stem}.json").read_text())
    segmentation = hd.seg.segread(out / written["dicom"]["segmentation"])
    mask = segmentation.pixel_array.squeeze() > 0
    assert mask.shape == pixels.shape
    right = dice(mask, expected)
    assert right > 0.95
    for wrong in (mask[:, ::-1], mask[::-1], mask.T, np.roll(mask, 32, axis=1)):
        assert wrong.shape != expected.shape or dice(wrong, expected) < right - 0.02
    np.testing.assert_array_equal(mask_on_image(rle.decode(written["encoded_pixels"]), *pixels.shape) > 0, mask)
    assert (written["rows"], written["columns"]) == (segmentation.Rows, segmentation.Columns) == pixels.shape
    source_uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
    assert segmentation.get_source_image_uids()[0][2] == source_uid
    picture = cv2.imread(str(out / written["overlay"]))
    capture = pydicom.dcmread(out / written["dicom"]["capture"])
    np.testing.assert_array_equal(capture.pixel_array, picture[..., ::-1])
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source_uid
    coloured = np.ptp(picture, axis=2) > 60
    padded = np.pad(mask.astype(np.uint8), 8)  # at the border of the picture the mask has an edge too
    edge, near = (
        cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, np.ones((size, size)))[8:-8, 8:-8] > 0 for size in (9, 15)
    )
    assert coloured.any()
    assert edge[coloured].mean() > 0.99, "what is coloured is the mask's edge"
    text = np.zeros_like(mask)
    text[len(text) - max(text.shape) // 10 :] = True
    untouched = ~near & ~text
    # Another JPEG decoder than ours may round otherwise.
    np.testing.assert_allclose(picture[untouched].astype(int), np.repeat(pixels[untouched][:, None], 3, axis=1), atol=2)


def check_objects(path, out):
    """Checks the content of the three objects, read with highdicom and pydicom."""
    written = json.loads((out / f"{path.stem}.json").read_text())
    source = pydicom.dcmread(path, stop_before_pixels=True)
    for kind in ("segmentation", "capture", "report"):
        dataset = pydicom.dcmread(out / written["dicom"][kind])
        assert dataset.StudyInstanceUID == source.StudyInstanceUID
        assert dataset.PatientID == source.PatientID
        assert dataset.SoftwareVersions == "0.1.0+test"
        assert dataset.ManufacturerModelName == "keras-pneumo bright"
        assert "esearch use only" in dataset.SeriesDescription
        assert is_uid(dataset.SOPInstanceUID)
    report = hd.sr.srread(out / written["dicom"]["report"])
    (image,) = report.content.get_image_measurement_groups()
    assert image.source_images[0].referenced_sop_instance_uid == path.stem
    (probability,) = image.get_measurements()
    assert probability.value == pytest.approx(80)
    assert probability.name.meaning == "Probability of pneumothorax"
    assert image.finding_type is None
    assert len(image.get_qualitative_evaluations()) == 1, "nothing to disagree about"
    capture = pydicom.dcmread(out / written["dicom"]["capture"])
    assert capture.ConversionType == "WSD"
    for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        assert capture.get(name) == source.get(name)
    assert image.get_qualitative_evaluations()[0].value.meaning == "Present"
    (region,) = report.content.get_planar_roi_measurement_groups()
    assert region.get_measurements()[0].value == pytest.approx(written["area_mm2"], rel=1e-3)
    spacing = float(source.PixelSpacing[0])
    pixel = spacing * max(source.Rows, source.Columns) / 1024  # of the grid of EncodedPixels
    assert written["area_mm2"] == pytest.approx(rle.decode(written["encoded_pixels"]).sum() * pixel**2, rel=1e-3)
    text = report.to_json()
    assert "0.1.0+test" in text
    assert "Research use only" in text


def test_objects_of_phantoms_have_their_sources_grid_and_name_it(answered, few):
    for path in few.iterdir():
        check_alignment(path, answered)
        check_objects(path, answered)
    table = pd.read_csv(answered / "predictions.csv")
    assert sorted(table["image_id"]) == sorted(path.stem for path in few.iterdir())
    assert (table["pneumothorax"] == 1).all()
    assert not (answered / "quarantine.csv").exists()


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_objects_of_phantoms_are_valid_dicom(answered):
    check_valid(answered)


CUTS = {
    "portrait": (slice(0, 1024), slice(160, 865)),
    "landscape": (slice(300, 901), slice(0, 1024)),
    "small": (slice(400, 501), slice(400, 480)),
}
"""Parts of a radiograph that are not square; the last is smaller than the networks' images."""


@pytest.mark.parametrize("name", CUTS)
def test_objects_of_radiographs_that_are_not_square_have_their_sources_grid(few, tmp_path, name):
    source = min(few.iterdir())
    path = cut_dicom(source, tmp_path / f"{source.stem}.dcm", *CUTS[name])
    assert not detect(known_detector(), [path], tmp_path / "out", dicom=True).set_aside
    check_alignment(path, tmp_path / "out")
    check_objects(path, tmp_path / "out")
    notes = " ".join(json.loads((tmp_path / f"out/{path.stem}.json").read_text())["notes"])
    assert "not square" in notes
    assert ("enlarged" in notes) == (name == "small")
    if DCIODVFY:
        check_valid(tmp_path / "out")


@pytest.mark.parametrize("shape", [(1841, 1955), (900, 500), (1024, 1024)])
def test_a_known_mask_is_found_on_the_sources_pixels_with_its_area(few, tmp_path, shape):
    truth = np.zeros(shape, np.uint8)
    cv2.ellipse(truth, (shape[1] // 4, shape[0] // 3), (shape[1] // 8, shape[0] // 5), 20, 0, 360, 1, -1)
    dataset = pydicom.dcmread(min(few.iterdir()))
    dataset.Rows, dataset.Columns = shape
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PhotometricInterpretation, dataset.PixelSpacing = "MONOCHROME2", [0.2, 0.2]
    data = (truth * 200 + 20).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "drawn.dcm", enforce_file_format=True)
    detect(known_detector(), [tmp_path / "drawn.dcm"], tmp_path / "out", dicom=True)
    (path,) = (tmp_path / "out").rglob("segmentation.dcm")
    mask = hd.seg.segread(path).pixel_array.squeeze() > 0
    assert mask.shape == shape
    assert dice(mask, truth) > 0.98
    assert dice(np.roll(mask, 12, axis=0), truth) < dice(mask, truth) - 0.01
    capture = pydicom.dcmread(path.with_name("capture.dcm"))
    assert (capture.Rows, capture.Columns, [float(mm) for mm in capture.PixelSpacing]) == (*shape, [0.2, 0.2])
    (region,) = hd.sr.srread(path.with_name("report.dcm")).content.get_planar_roi_measurement_groups()
    assert region.get_measurements()[0].value == pytest.approx(truth.sum() * 0.04, rel=0.03)
    if DCIODVFY:
        check_valid(tmp_path / "out")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here")
@pytest.mark.slow
def test_objects_of_real_files_have_their_sources_grid_and_are_valid(tmp_path):
    result = detect(known_detector(), [REAL], tmp_path, dicom=True)
    assert len(result.rows) == 10
    for path in REAL.glob("*.dcm"):
        check_alignment(path, tmp_path)
        check_objects(path, tmp_path)
    if DCIODVFY:
        check_valid(tmp_path)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_objects_of_a_detector_trained_on_phantoms_say_so(few, tmp_path):
    detect(replace(known_detector(), record={"synthetic": True}), [min(few.iterdir())], tmp_path, dicom=True)
    for kind in ("segmentation", "capture", "report"):
        (path,) = tmp_path.rglob(f"{kind}.dcm")
        description = pydicom.dcmread(path).SeriesDescription
        assert "Trained on phantoms. Research use only" in description
        assert len(description) <= 64
    assert "Trained on phantoms" in str(hd.sr.srread(path))
    if DCIODVFY:
        check_valid(tmp_path)


def test_a_negative_answer_has_a_report_and_no_segmentation(few, tmp_path):
    result = detect(known_detector(probability=0.1, top=2), [next(few.iterdir())], tmp_path, dicom=True)
    (row,) = result.rows
    assert (row["pneumothorax"], row["outlined"], row["encoded_pixels"]) == (False, False, "-1")
    assert not list(tmp_path.rglob("segmentation.dcm"))
    (path,) = tmp_path.rglob("report.dcm")
    (image,) = hd.sr.srread(path).content.get_image_measurement_groups()
    assert image.get_qualitative_evaluations()[0].value.meaning == "Absent"
    check_valid(tmp_path)


def test_an_image_not_like_the_training_images_has_a_report_without_an_answer(few, tmp_path):
    (path,) = sorted(few.iterdir())[:1]
    dataset = pydicom.dcmread(path)
    hand = drawn_hand(dataset.Rows)
    dataset.BodyPartExamined = ""
    dataset.PixelData, dataset.file_meta.TransferSyntaxUID = hand.tobytes(), ExplicitVRLittleEndian
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "hand.dcm", enforce_file_format=True)
    detector = checked_detector([pydicom.dcmread(path).pixel_array], top=0.5)
    result = detect(detector, [tmp_path / "hand.dcm"], tmp_path / "out", dicom=True)
    assert (len(result.rows), len(result.set_aside)) == (0, 1)
    made = {each.stem: each for each in (tmp_path / "out/dicom").rglob("*.dcm")}
    assert made.keys() == {"capture", "report"}, "no segmentation, although the network outlines the bright bones"
    report = hd.sr.srread(made["report"])
    (group,) = report.content.get_image_measurement_groups()
    (evaluation,) = group.get_qualitative_evaluations()
    assert (evaluation.name.meaning, evaluation.value.meaning) == (
        "Check of the input image", "Not like the training images")  # fmt: skip
    assert not group.get_measurements()
    assert not report.content.get_planar_roi_measurement_groups()
    text = report.to_json()
    for word in ("Present", "Absent", "robability", "Plain chest X-ray"):
        assert word not in text, word
    assert "its distance to them is" in text
    assert "BodyPartExamined" not in pydicom.dcmread(made["capture"])
    if DCIODVFY:
        check_valid(tmp_path / "out")


def test_lossy_compression_of_the_source_is_recorded(few, tmp_path):
    dataset = pydicom.dcmread(next(few.iterdir()))
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio, dataset.LossyImageCompressionMethod = ["12.5", "2"], ["ISO_10918_1"] * 2
    dataset.save_as(tmp_path / "a.dcm")
    detect(known_detector(), [tmp_path / "a.dcm"], tmp_path / "out", dicom=True)
    capture = pydicom.dcmread(next((tmp_path / "out").rglob("capture.dcm")))
    assert capture.LossyImageCompression == "01"
    assert list(capture.LossyImageCompressionRatio) == [12.5, 2]
    assert list(capture.LossyImageCompressionMethod) == ["ISO_10918_1"] * 2
    if DCIODVFY:
        check_valid(tmp_path / "out")


@pytest.mark.parametrize(
    ("probability", "top", "disagreement"),
    [
        (0.4, 0.5, "answered no, yet an area is outlined"),
        (0.8, 2, "answered yes, yet nothing is outlined"),
        (0.8, 0.5, None),
    ],
)
def test_a_disagreement_of_answer_and_outline_is_in_every_output(few, tmp_path, probability, top, disagreement):
    (path,) = sorted(few.iterdir())[:1]
    # Without a gate there is a mask even where the answer is no.
    detector = known_detector(probability=probability, top=top)
    detector = replace(detector, postprocessing=replace(detector.postprocessing, gate=0.0))
    detect(detector, [path], tmp_path, dicom=True)
    assert json.loads((tmp_path / f"{path.stem}.json").read_text())["disagreement"] == disagreement
    answer = detector.answer([read_radiograph(path).pixels])[0]
    assert caption(detector, answer)[:-2] == ([f"Answer and outline disagree: {disagreement}"] if disagreement else [])
    report = hd.sr.srread(tmp_path / "dicom" / path.stem / "report.dcm").content
    for group in [*report.get_image_measurement_groups(), *report.get_planar_roi_measurement_groups()]:
        evaluations = [evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()]
        others = [text for text in evaluations if text not in ("Present", "Absent")]
        assert others == ([f"Disagree: {disagreement}"] if disagreement else [])
    if DCIODVFY:
        check_valid(tmp_path)


def test_names_of_any_script_are_kept(few, tmp_path):
    dataset = pydicom.dcmread(next(few.iterdir()))
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Zoë"
    dataset.save_as(tmp_path / "a.dcm")
    detector = replace(known_detector(), name="Größe\\ лёгкие 肺")
    detect(detector, [tmp_path / "a.dcm"], tmp_path / "out", dicom=True)
    objects = {path.stem: pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")}
    assert objects.keys() == {"segmentation", "capture", "report"}
    for dataset in objects.values():
        assert dataset.ManufacturerModelName == "keras-pneumo Größe_ лёгкие 肺"
        assert str(dataset.PatientName) == "Müller^Zoë"
    algorithm = objects["segmentation"].SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "keras-pneumo Größe_ лёгкие 肺"
    assert "лёгкие 肺" in str(objects["report"])
    assert caption(detector, known_answer())[-1] == "keras-pneumo Groe\\ 0.1.0+test. Research use only"
    if DCIODVFY:
        check_valid(tmp_path / "out")


def known_answer(probability=0.8):
    return Answer(probability, 0.8, None, np.zeros((128, 128), np.uint8), np.zeros((1024, 1024), np.uint8))


def drawn_radiograph(few, path, shape, **tags):
    """Write a radiograph of dark grey with a bright ellipse, with these tags; its mask, uint8."""
    truth = np.zeros(shape, np.uint8)
    cv2.ellipse(truth, (shape[1] // 4, shape[0] // 3), (shape[1] // 8, shape[0] // 5), 20, 0, 360, 1, -1)
    dataset = pydicom.dcmread(min(few.iterdir()))
    dataset.Rows, dataset.Columns = shape
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        dataset.pop(name, None)
    for name, value in tags.items():
        setattr(dataset, name, value)
    data = (truth * 200 + 20).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return truth


@pytest.mark.parametrize(
    ("tags", "area"),
    [
        ({}, None),
        ({"ImagerPixelSpacing": [0.25, 0.25]}, 0.0625),
        ({"PixelSpacing": [0.2, 0.3]}, None),  # pixels that are not square
        ({"ImagerPixelSpacing": [0.2, 0.3]}, None),
    ],
)
def test_a_source_without_or_with_odd_spacing_has_a_valid_segmentation_on_its_pixels(few, tmp_path, tags, area):
    shape = (900, 700)
    truth = drawn_radiograph(few, tmp_path / "drawn.dcm", shape, **tags)
    (row,) = detect(known_detector(), [tmp_path / "drawn.dcm"], tmp_path / "out", dicom=True).rows
    (path,) = (tmp_path / "out").rglob("segmentation.dcm")
    segmentation = hd.seg.segread(path)
    assert (segmentation.Rows, segmentation.Columns) == shape
    assert dice(segmentation.pixel_array.squeeze() > 0, truth) > 0.98
    if area is None:
        assert row["area_mm2"] is None
    else:
        assert row["area_mm2"] == pytest.approx(truth.sum() * area, rel=0.03)
    capture = pydicom.dcmread(path.with_name("capture.dcm"))
    spacing = next(iter(tags.values()), None)
    assert (None if spacing is None else [float(mm) for mm in capture.PixelSpacing]) == spacing
    if DCIODVFY:
        check_valid(tmp_path / "out")


def test_a_segmentation_is_read_back_as_the_label_of_its_source(few, tmp_path):
    """What one person's detector writes is another's label: on the same pixels, whatever the source's shape."""
    shape = (900, 700)
    data = tmp_path / "data"
    data.mkdir()
    truth = drawn_radiograph(few, data / "drawn.dcm", shape)
    detect(known_detector(), [data / "drawn.dcm"], tmp_path / "out", dicom=True)
    (path,) = (tmp_path / "out").rglob("segmentation.dcm")
    labels = segmentation_labels(tmp_path / "out", [path], LabelOptions())
    ((image_id, label),) = labels.images.items()
    assert image_id == str(pydicom.dcmread(data / "drawn.dcm").SOPInstanceUID)
    assert label.mask_shapes == (shape,)
    mask = mask_on_image(rle.draw(label.runs), *shape) > 0
    written = hd.seg.segread(path).pixel_array.squeeze() > 0
    edge = cv2.morphologyEx(written.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    assert (mask == written)[~edge].all(), "but for a pixel at its edge"
    assert dice(mask, truth) > 0.98
