"""Files to answers: overlays and DICOM objects line up with their source, bad files are set aside, nobody is named."""

import io
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import fatal_render
import numpy as np
import pandas as pd
import pydicom
import pytest
from known_detector import dice, expected_mask, known_detector
from pydicom.uid import UID

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.reading import find_files, read_radiograph
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.detector import Answer
from keras_pneumo.detector.dicom_files import UnusableSource, is_uid, source_header
from keras_pneumo.detector.overlay import mask_at_size, overlay_mask
from keras_pneumo.detector.summary import caption, error_rate_of
from keras_pneumo.errors import PneumoError

hd = pytest.importorskip("highdicom", reason="highdicom (extra dicom) is not installed")
REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[3] / "shared")) / "siim_mini" / "dicom"
DCIODVFY = shutil.which("dciodvfy")


@pytest.fixture(scope="module")
def few(tmp_path_factory, phantoms):
    """Three DICOM files, one of them stored inverted where there is one."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(phantoms.rglob("*.dcm"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def answered(tmp_path_factory, few):
    """Answers for the three, with DICOM objects."""
    out = tmp_path_factory.mktemp("answered")
    done = detect(known_detector(), [few], out, dicom=True)
    assert not done.set_aside
    return out


def source_pixels(path):
    pixels = pydicom.dcmread(path).pixel_array
    return 255 - pixels if pydicom.dcmread(path).PhotometricInterpretation == "MONOCHROME1" else pixels


def check_alignment(path, out):
    """Mask, overlay, Segmentation and Secondary Capture of one file lie where its own pixels say."""
    pixels = source_pixels(path)
    expected = expected_mask(pixels)
    told = json.loads((out / f"{path.stem}.json").read_text())
    segmentation = hd.seg.segread(out / told["dicom"]["segmentation"])
    mask = segmentation.pixel_array.squeeze() > 0
    assert mask.shape == pixels.shape
    right = dice(mask, expected)
    assert right > 0.95
    for wrong in (mask[:, ::-1], mask[::-1], mask.T, np.roll(mask, 32, axis=1)):
        assert dice(wrong, expected) < right - 0.02
    np.testing.assert_array_equal(rle.decode(told["encoded_pixels"]) > 0, mask)
    assert segmentation.get_source_image_uids()[0][2] == path.stem
    picture = cv2.imread(str(out / told["overlay"]))
    capture = pydicom.dcmread(out / told["dicom"]["capture"])
    np.testing.assert_array_equal(capture.pixel_array, picture[..., ::-1])
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == path.stem
    coloured = np.ptp(picture, axis=2) > 60
    padded = np.pad(mask.astype(np.uint8), 8)  # at the border of the picture the mask has an edge too
    edge, near = (
        cv2.morphologyEx(padded, cv2.MORPH_GRADIENT, np.ones((size, size)))[8:-8, 8:-8] > 0 for size in (9, 15)
    )
    assert coloured.any()
    assert edge[coloured].mean() > 0.99, "what is coloured is the mask's edge"
    text = np.zeros_like(mask)
    text[int(0.9 * len(text)) :] = True
    untouched = ~near & ~text
    # Another JPEG decoder than ours may round otherwise.
    np.testing.assert_allclose(picture[untouched].astype(int), np.repeat(pixels[untouched][:, None], 3, axis=1), atol=2)


def check_objects(path, out):
    """What the three objects name and say, read back with highdicom and pydicom."""
    told = json.loads((out / f"{path.stem}.json").read_text())
    source = pydicom.dcmread(path, stop_before_pixels=True)
    for kind in ("segmentation", "capture", "report"):
        one = pydicom.dcmread(out / told["dicom"][kind])
        assert one.StudyInstanceUID == source.StudyInstanceUID
        assert one.PatientID == source.PatientID
        assert one.SoftwareVersions == "0.1.0+test"
        assert one.ManufacturerModelName == "keras-pneumo bright"
        assert "esearch use only" in one.SeriesDescription
        assert is_uid(one.SOPInstanceUID)
    report = hd.sr.srread(out / told["dicom"]["report"])
    (image,) = report.content.get_image_measurement_groups()
    assert image.source_images[0].referenced_sop_instance_uid == path.stem
    (certainty,) = image.get_measurements()
    assert certainty.value == pytest.approx(80)
    assert certainty.name.meaning == "Probability of pneumothorax"
    assert image.finding_type is None
    assert len(image.get_qualitative_evaluations()) == 1, "nothing to disagree about"
    capture = pydicom.dcmread(out / told["dicom"]["capture"])
    assert capture.ConversionType == "WSD"
    for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        assert capture.get(name) == source.get(name)
    assert image.get_qualitative_evaluations()[0].value.meaning == "Present"
    (region,) = report.content.get_planar_roi_measurement_groups()
    assert region.get_measurements()[0].value == pytest.approx(told["area_mm2"], rel=1e-3)
    spacing = float(source.PixelSpacing[0])
    assert told["area_mm2"] == pytest.approx(rle.decode(told["encoded_pixels"]).sum() * spacing**2, rel=1e-3)
    whole = str(report)
    assert "0.1.0+test" in whole
    assert "Research use only" in whole


def check_valid(out):
    """dciodvfy finds no error in any object."""
    made = sorted(path for path in (out / "dicom").rglob("*.dcm") if path.name != "source.dcm")
    assert made
    for path in made:
        told = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True)
        assert "Error" not in told.stderr + told.stdout, f"{path.name}: {told.stderr}"


def test_objects_of_phantoms_line_up_and_name_their_source(answered, few):
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


@pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not here")
@pytest.mark.slow
def test_objects_of_real_files_line_up_and_are_valid(tmp_path):
    done = detect(known_detector(), [REAL], tmp_path, dicom=True)
    assert len(done.rows) == 10
    for path in REAL.glob("*.dcm"):
        check_alignment(path, tmp_path)
        check_objects(path, tmp_path)
    if DCIODVFY:
        check_valid(tmp_path)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian's dicom3tools) is not installed")
def test_a_no_has_a_report_and_no_segmentation(few, tmp_path):
    done = detect(known_detector(probability=0.1, top=2), [next(few.iterdir())], tmp_path, dicom=True)
    (row,) = done.rows
    assert (row["pneumothorax"], row["outlined"], row["encoded_pixels"]) == (False, False, "-1")
    assert not list(tmp_path.rglob("segmentation.dcm"))
    (path,) = tmp_path.rglob("report.dcm")
    (image,) = hd.sr.srread(path).content.get_image_measurement_groups()
    assert image.get_qualitative_evaluations()[0].value.meaning == "Absent"
    check_valid(tmp_path)


@pytest.mark.parametrize("dicom", [True, False])
def test_no_object_of_an_earlier_run_lies_beside_a_new_answer(few, tmp_path, dicom):
    (path,) = sorted(few.iterdir())[:1]
    detect(known_detector(), [path], tmp_path, dicom=True)
    folder = tmp_path / "dicom" / path.stem
    assert (folder / "segmentation.dcm").exists()
    (folder / "notes.txt").write_text("somebody's own")
    detect(known_detector(probability=0.1, top=2), [path], tmp_path, dicom=dicom)
    kept = {"capture.dcm", "report.dcm", "notes.txt"} if dicom else {"notes.txt"}
    assert {one.name for one in folder.iterdir()} == kept


def test_pixels_that_once_lost_something_are_said_to_have(few, tmp_path):
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
    ("probability", "top", "said"),
    [
        (0.4, 0.5, "answered no, yet an area is outlined"),
        (0.8, 2, "answered yes, yet nothing is outlined"),
        (0.8, 0.5, None),
    ],
)
def test_a_disagreement_of_answer_and_outline_is_said_everywhere(few, tmp_path, probability, top, said):
    (path,) = sorted(few.iterdir())[:1]
    # The classifier opens the gate all the same, as one does that is calibrated downwards.
    detector = known_detector(probability=probability, top=top)
    detector = replace(detector, postprocessing=replace(detector.postprocessing, gate=0.0))
    detect(detector, [path], tmp_path, dicom=True)
    assert json.loads((tmp_path / f"{path.stem}.json").read_text())["disagreement"] == said
    answer = detector.answer([read_radiograph(path).pixels])[0]
    assert caption(detector, answer)[:-2] == ([f"Answer and outline disagree: {said}"] if said else [])
    report = hd.sr.srread(tmp_path / "dicom" / path.stem / "report.dcm").content
    for group in [*report.get_image_measurement_groups(), *report.get_planar_roi_measurement_groups()]:
        told = [one.value.meaning for one in group.get_qualitative_evaluations()]
        assert [one for one in told if one not in ("Present", "Absent")] == ([f"Disagree: {said}"] if said else [])
    if DCIODVFY:
        check_valid(tmp_path)


@pytest.mark.parametrize(("gate", "told"), [(0.25, {"source": "outline", "from": 0.25}), (0.0, None)])
def test_an_answer_says_whose_it_is(few, tmp_path, gate, told):
    (path,) = sorted(few.iterdir())[:1]
    detector = known_detector(probability=0.7)
    parameters = replace(detector.postprocessing, gate=gate, gate_source="outline")
    detector = replace(detector, postprocessing=parameters, probability_source="classifier and outline")
    detect(detector, [path], tmp_path)
    found = json.loads((tmp_path / f"{path.stem}.json").read_text())
    assert found["probability_source"] == "classifier and outline"
    assert found["gate"] == told
    assert found["classifier_probability"] == pytest.approx(0.7, abs=1e-6)
    assert found["own_head_probability"] is None
    assert found["probability"] == detector.answer([read_radiograph(path).pixels])[0].probability


def as_siim_test_file(path, target):
    """A file as SIIM's test files are: empty study and series UIDs, a SOP UID that is none."""
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("ID_000012eaf", validation_mode=0)
        dataset.file_meta.MediaStorageSOPInstanceUID = UID("ID_000012eaf", validation_mode=0)
        dataset.save_as(target)


def test_files_without_identifiers_are_told_or_mended(few, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    as_siim_test_file(next(few.iterdir()), data / "ID_000012eaf.dcm")
    plain = detect(known_detector(), [data], tmp_path / "plain", dicom=True)
    assert len(plain.rows) == 1, "it is answered all the same"
    (aside,) = plain.set_aside
    for word in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "--make-uids"):
        assert word in aside["reason"]
    assert not (tmp_path / "plain/dicom").exists()
    made = detect(known_detector(), [data], tmp_path / "made", dicom=True, make_uids=True)
    assert (made.made_up, made.set_aside) == (1, [])
    told = json.loads((tmp_path / "made/ID_000012eaf.json").read_text())["dicom"]
    copy = pydicom.dcmread(tmp_path / "made" / told["source_copy"])
    assert is_uid(copy.SOPInstanceUID)
    assert copy.SOPInstanceUID == told["source"]
    np.testing.assert_array_equal(copy.pixel_array, pydicom.dcmread(next(few.iterdir())).pixel_array)
    segmentation = hd.seg.segread(tmp_path / "made" / told["segmentation"])
    study, series, instance = segmentation.get_source_image_uids()[0]
    assert (study, series, instance) == (copy.StudyInstanceUID, copy.SeriesInstanceUID, copy.SOPInstanceUID)
    again, _ = source_header((data / "ID_000012eaf.dcm").read_bytes(), make_uids=True)
    assert again.SOPInstanceUID == copy.SOPInstanceUID, "the same file always gets the same"
    if DCIODVFY:
        check_valid(tmp_path / "made")


def test_names_keep_their_letters(few, tmp_path):
    dataset = pydicom.dcmread(next(few.iterdir()))
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Zoë"
    dataset.save_as(tmp_path / "a.dcm")
    detector = replace(known_detector(), name="Größe\\ лёгкие 肺")
    detect(detector, [tmp_path / "a.dcm"], tmp_path / "out", dicom=True)
    objects = {path.stem: pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")}
    assert objects.keys() == {"segmentation", "capture", "report"}
    for one in objects.values():
        assert one.ManufacturerModelName == "keras-pneumo Größe_ лёгкие 肺"
        assert str(one.PatientName) == "Müller^Zoë"
    named = objects["segmentation"].SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert named.AlgorithmName == "keras-pneumo Größe_ лёгкие 肺"
    assert "лёгкие 肺" in str(objects["report"])
    assert caption(detector, known_answer())[-1] == "keras-pneumo Groe\\ 0.1.0+test. Research use only"
    if DCIODVFY:
        check_valid(tmp_path / "out")


def known_answer(probability=0.8):
    return Answer(probability, 0.8, None, np.zeros((128, 128), np.uint8), np.zeros((1024, 1024), np.uint8))


def test_ids_and_names_are_no_formulas(few, tmp_path):
    (tmp_path / "films").mkdir()
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("=HYPERLINK(1)", validation_mode=0)
        dataset.save_as(tmp_path / "films/+a.dcm")
    (tmp_path / "films/@b.dcm").write_bytes(b"no radiograph")
    (row,) = detect(known_detector(top=2), [tmp_path / "films"], tmp_path / "out").rows
    table = pd.read_csv(tmp_path / "out/predictions.csv", dtype=str)
    assert table[["file", "image_id", "encoded_pixels"]].to_numpy().tolist() == [["'+a.dcm", "'=HYPERLINK(1)", "-1"]]
    assert row["image_id"] == "=HYPERLINK(1)"
    assert pd.read_csv(tmp_path / "out/quarantine.csv")["file"].tolist() == ["'@b.dcm"]


def test_pictures_of_an_earlier_run_are_no_radiographs(few, tmp_path):
    for path in few.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for _ in range(2):
        done = detect(known_detector(), [tmp_path], tmp_path / "out", dicom=True)
        assert (len(done.rows), done.set_aside) == (3, [])
    with pytest.raises(PneumoError, match="Name another --out"):
        detect(known_detector(), [tmp_path], tmp_path)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_crash_costs_its_own_file_however_few_there_are(few, tmp_path, monkeypatch, workers):
    (tmp_path / "films").mkdir()
    for path in few.iterdir():
        (tmp_path / "films" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "films/fatal.dcm").write_bytes(b"ends its process")
    monkeypatch.setenv("FATAL_FILE", "fatal.dcm")
    # Spawned workers import the function by its name, so the fatal one lives in a module of the tests.
    monkeypatch.setattr("keras_pneumo.detector.detect.read_or_reason", fatal_render.read)
    done = detect(known_detector(), [tmp_path / "films"], tmp_path / "out", workers=workers)
    assert len(done.rows) == 3
    (aside,) = done.set_aside
    assert aside["file"] == "fatal.dcm"
    assert aside["reason"].startswith("its decoder crashed")


def test_bad_files_are_set_aside_and_nobody_is_named(few, tmp_path, capsys, recwarn):
    data = tmp_path / "data"
    data.mkdir()
    named = pydicom.dcmread(next(few.iterdir()))
    named.PatientName, named.PatientID = "Unmistakable^Name", "UNMISTAKABLE"
    named.save_as(data / "named.dcm")
    named.Rows = 5000
    named.save_as(data / "liar.dcm")
    (data / "broken.dcm").write_bytes(b"no dicom at all")
    cv2.imwrite(str(data / "plain.png"), np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    cv2.imwrite(str(data / "wide.png"), np.zeros((256, 300), np.uint8))
    done = detect(known_detector(), [data], tmp_path / "out", dicom=True)
    quarantine = pd.read_csv(tmp_path / "out/quarantine.csv").set_index("file")["reason"]
    assert set(quarantine.index) == {"liar.dcm", "broken.dcm", "plain.png", "wide.png"}
    assert "no DICOM file" in quarantine["broken.dcm"]
    assert "300 columns" in quarantine["wide.png"]
    assert quarantine["plain.png"].startswith("answered, but without DICOM objects")
    assert {row["file"] for row in done.rows} == {"named.dcm", "plain.png"}
    spoken = capsys.readouterr()
    texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".csv")]
    everything = " ".join([*texts, spoken.out, spoken.err, *(str(one.message) for one in recwarn), str(done)])
    assert "unmistakable" not in everything.lower()


def test_hostile_ids_stay_inside_the_folder_and_equal_ones_apart(few, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("../../outside", validation_mode=0)
        dataset.save_as(data / "a.dcm")
        dataset.save_as(data / "b.dcm")
    detect(known_detector(), [data], tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(names) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("spacing", [["nan", "nan"], ["inf", "1"], ["0", "0"], ["-1", "-1"], "0.2", []])
def test_what_is_no_spacing_does_not_travel_on(few, tmp_path, spacing):
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.PixelSpacing, dataset.ImagerPixelSpacing = spacing, spacing
        dataset.save_as(tmp_path / "odd.dcm")
    source, _ = source_header((tmp_path / "odd.dcm").read_bytes())
    assert not {"PixelSpacing", "ImagerPixelSpacing"} & set(source.dir())
    done = detect(known_detector(), [tmp_path / "odd.dcm"], tmp_path / "out", dicom=True)
    if done.rows:  # a single number is refused when pixels are read
        assert (len(done.rows), done.set_aside) == (1, [])
        assert done.rows[0]["area_mm2"] is None
        (capture,) = (tmp_path / "out").rglob("capture.dcm")
        assert not {"PixelSpacing", "NominalScannedPixelSpacing"} & set(pydicom.dcmread(capture).dir())
        if DCIODVFY:
            check_valid(tmp_path / "out")


def test_the_other_spacing_is_taken_where_the_first_is_none(few, tmp_path):
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.PixelSpacing, dataset.ImagerPixelSpacing = ["nan", "nan"], ["0.25", "0.25"]
        dataset.save_as(tmp_path / "odd.dcm")
    source, _ = source_header((tmp_path / "odd.dcm").read_bytes())
    assert list(source.PixelSpacing) == [0.25, 0.25]


@pytest.mark.parametrize("place", ["dicom_files.source_header", "dicom_objects.dicom_objects", "Dataset.save_as"])
def test_an_odd_header_costs_its_objects_alone(few, tmp_path, monkeypatch, place):
    class Odd:
        def save_as(self, *_, **__):
            raise ValueError("Unmistakable^Name")

    def odd(*_, **__):
        if place == "Dataset.save_as":
            return {"report": Odd()}
        raise ValueError("Unmistakable^Name")

    module = "dicom_files.source_header" if place == "dicom_files.source_header" else "dicom_objects.dicom_objects"
    monkeypatch.setattr(f"keras_pneumo.detector.{module}", odd)
    done = detect(known_detector(), [few], tmp_path, dicom=True)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == len(done.rows) == 3
    reasons = pd.read_csv(tmp_path / "quarantine.csv")["reason"]
    assert len(reasons) == 3
    assert reasons.str.contains("without DICOM objects: its header holds a value that DICOM objects cannot").all()
    assert not reasons.str.contains("Unmistakable").any()


@pytest.mark.parametrize("end", [KeyboardInterrupt, PneumoError("Cannot write: no space left.")])
def test_what_was_complete_keeps_its_rows_however_it_ends(few, tmp_path, end):
    (tmp_path / "films").mkdir()
    for number, path in enumerate(sorted(few.iterdir())):
        (tmp_path / f"films/{number}.dcm").write_bytes(path.read_bytes())
    (tmp_path / "films/0a.dcm").write_bytes(b"no radiograph")

    def stop(count, _):
        if count == 3:
            raise end

    with pytest.raises(type(end) if isinstance(end, Exception) else end):
        detect(known_detector(), [tmp_path / "films"], tmp_path / "out", batch=1, progress=stop)
    rows = pd.read_csv(tmp_path / "out/predictions.csv")
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set(rows["image_id"].astype(str))
    aside = tmp_path / "out/quarantine.csv"
    assert len(rows) + (len(pd.read_csv(aside)) if aside.exists() else 0) == 3, "of four files three were done"


def test_an_answer_that_could_not_be_written_has_no_row(few, tmp_path, monkeypatch):
    from keras_pneumo.detector import detect as module

    first = sorted(path.stem for path in few.iterdir())[0]
    whole = module.write_json

    def full(path, value):
        if path.stem != first:
            raise PneumoError("Cannot write: no space left.")
        return whole(path, value)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(PneumoError, match="no space left"):
        detect(known_detector(), [few], tmp_path)
    assert pd.read_csv(tmp_path / "predictions.csv")["image_id"].astype(str).tolist() == [first]


@pytest.mark.slow
def test_worker_processes_give_the_same_answers(few, answered, tmp_path):
    detect(known_detector(), [few], tmp_path, workers=2)
    first, second = (pd.read_csv(folder / "predictions.csv") for folder in (answered, tmp_path))
    pd.testing.assert_frame_equal(first, second)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(PneumoError, match="There is no"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(PneumoError, match="no DICOM"):
        find_files([tmp_path])


def test_what_no_object_can_name_is_said(tmp_path):
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
def test_what_is_a_uid(text, right):
    assert is_uid(text) is right


def test_what_an_answer_means_is_exact():
    counts = known_detector().counts  # 30 right and 10 wrong yes, 152 right and 8 wrong no; 38 of 200 positive
    yes, no = error_rate_of(counts, True), error_rate_of(counts, False)
    assert (yes.wrong, yes.answers, no.wrong, no.answers) == (10, 40, 8, 160)
    assert "about 25 have no pneumothorax" in yes.sentence
    assert "about 5 have a pneumothorax" in no.sentence
    assert "19% of 200" in yes.sentence
    assert yes.low < 0.25 < yes.high


@pytest.mark.parametrize("side", [1500, 2000, 2500, 3072])
def test_a_mask_on_a_larger_grid_goes_by_the_middle_of_each_pixel(side):
    rng = np.random.default_rng(0)
    mask = (rng.random((1024, 1024)) < 0.5).astype(np.uint8)
    middle = (2 * np.arange(side) + 1) * 1024  # in parts of 1 / (2 * side), whole numbers
    at, free = middle // (2 * side), np.flatnonzero(middle % (2 * side))  # a middle on a border may go either way
    there = mask_at_size(mask, side)
    np.testing.assert_array_equal(there[free][:, free], mask[at][:, at][free][:, free])
    np.testing.assert_array_equal(mask_at_size(mask[:, ::-1], side)[free][:, free], there[:, ::-1][free][:, free])


@pytest.mark.parametrize("side", [512, 1024, 2048])
def test_a_mask_keeps_its_place_on_any_grid(side):
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:200, 300:700] = 1
    there = mask_at_size(mask, side)
    rows, columns = np.nonzero(there)
    factor = side / 1024
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (
        100 * factor,
        200 * factor,
        300 * factor,
        700 * factor,
    )
    assert overlay_mask(np.zeros((side, side), np.uint8), there).shape == (side, side, 3)
