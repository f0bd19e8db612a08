"""What a folder tells of patients: each thing planted is found, and no value of it is told."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from command_lab import run
from hostile_lab import behind_the_pixels
from PIL import Image, PngImagePlugin
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless
from small_siim import dicom, radiograph, save, write_png, write_siim

from keras_pneumo.data.labels.pseudonyms import KEY_FILE, PseudonymKey, patient_hash
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.data.privacy import (
    IDENTIFYING,
    draw_text_sheet,
    examine_file,
    examine_privacy,
    kind_of_name,
    shape_of,
    shown_path,
)
from keras_pneumo.errors import PneumoError

SECRETS = ("Unmistakable", "4711", "19700102", "Elsewhere", "Smithers", "31415926")


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """No logs of this machine."""


def planted(**tags):
    values = {
        "PatientName": "Unmistakable^Jane", "PatientID": "MRN 4711", "PatientBirthDate": "19700102",
        "InstitutionName": "St. Elsewhere", "ReferringPhysicianName": "Smithers", "AccessionNumber": "31415926",
    }  # fmt: skip
    return dicom(radiograph(1), "1.2.3.77", **values | tags)


def found(report, where):
    return {finding.what: finding.files for finding in report.findings if finding.where == where and finding.look}


def test_every_keyword_is_in_the_dictionary():
    assert [name for name in IDENTIFYING if tag_for_keyword(name) is None] == []


def test_tags_are_listed_with_counts_and_without_values(tmp_path):
    save(planted(), tmp_path / "a.dcm")
    other = planted(PatientID="", ReferringPhysicianName="", AccessionNumber=" ")
    other.OtherPatientIDsSequence = Sequence([Dataset()])
    other.OtherPatientIDsSequence[0].PatientComments = "Unmistakable"
    other.private_block(0x0011, "SMITHERS", create=True).add_new(1, "LO", "31415926")
    save(other, tmp_path / "b.dcm")
    report = examine_privacy(tmp_path, workers=1)
    assert found(report, "DICOM tag") == {
        "PatientName (0010,0010)": 2,
        "PatientID (0010,0020)": 1,
        "PatientBirthDate (0010,0030)": 2,
        "InstitutionName (0008,0080)": 2,
        "ReferringPhysicianName (0008,0090)": 1,
        "AccessionNumber (0008,0050)": 1,
        "PatientComments (0010,4000)": 1,
        "private tags": 1,
    }
    assert report.look
    assert not any(secret in str(report.findings) for secret in SECRETS)
    assert [finding.what for finding in report.findings if not finding.look] == ["UIDs of studies, series or images"]


@pytest.mark.parametrize(("tag", "value"), [("BurnedInAnnotation", "YES"), ("RecognizableVisualFeatures", "YES")])
def test_what_a_header_says_of_its_pixels_is_listed(tmp_path, tag, value):
    save(planted(**{tag: value}), tmp_path / "a.dcm")
    save(planted(**{tag: "NO"}), tmp_path / "b.dcm")
    assert found(examine_privacy(tmp_path, workers=1), "DICOM tag")["BurnedInAnnotation: YES"] == 1


def test_a_tag_behind_the_pixels_is_listed_and_damaged_pixels_hide_none_before_them(tmp_path):
    save(dicom(radiograph(1), "1.2.3.77"), tmp_path / "a.dcm")
    behind_the_pixels(tmp_path / "a.dcm", 0x00081070, b"PN", b"Smithers")
    assert "OperatorsName (0008,1070)" in examine_file(tmp_path / "a.dcm").tags
    dataset = planted()
    dataset.compress(RLELossless, generate_instance_uid=False)
    save(dataset, tmp_path / "b.dcm")
    whole = (tmp_path / "b.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(whole[:-40])
    facts = examine_file(tmp_path / "b.dcm")
    assert {"PatientName (0010,0010)", "AccessionNumber (0008,0050)"} <= set(facts.tags)


def test_an_implicit_file_without_preamble_and_a_broken_one_are_examined(tmp_path):
    data = save(planted(), tmp_path / "a.dcm").read_bytes()
    (tmp_path / "bare.dcm").write_bytes(data[132:])
    (tmp_path / "half.dcm").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.dcm").write_bytes(b"Unmistakable" * 50)
    report = examine_privacy(tmp_path, workers=1)
    assert found(report, "DICOM tag")["PatientName (0010,0010)"] >= 2
    assert found(report, "file")["could not be examined"] >= 1
    assert not any(secret in str(report.findings) for secret in SECRETS)


def test_text_in_the_border_is_found_and_drawn(tmp_path):
    image = np.full((400, 600), 30, np.uint8)
    write_png(tmp_path / "clean.png", image)
    cv2.putText(image, "DOE JANE 4711", (10, 380), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1, cv2.LINE_AA)
    write_png(tmp_path / "named.png", image)
    cv2.imwrite(str(tmp_path / "drawn.png"), np.dstack([image, image // 2, image]))
    report = examine_privacy(tmp_path, workers=1)
    assert found(report, "pixels") == {"may have text in the border (of 2 examined)": 1}
    assert [path.name for path, _ in report.pictures] == ["named.png"]
    assert any(finding.what == "pictures not examined" and finding.files == 1 for finding in report.findings)
    assert draw_text_sheet(report, tmp_path / "sheet.png", workers=1) == 1
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (320, 320, 3)
    assert (sheet == (0, 176, 255)).all(axis=2).sum() > 100, "the frame"
    with pytest.raises(PneumoError, match="nothing to draw"):
        draw_text_sheet(examine_privacy(_only(tmp_path / "clean"), workers=1), tmp_path / "none.png")


def _only(folder):
    write_png(folder / "plain.png", radiograph(2))
    return folder


def test_text_beside_the_pixels_of_a_picture_is_found(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "Unmistakable")
    Image.fromarray(radiograph(1)).save(tmp_path / "a.png", pnginfo=info)
    Image.fromarray(radiograph(1)).save(tmp_path / "b.jpg", comment=b"Unmistakable")
    Image.fromarray(radiograph(1)).save(tmp_path / "c.jpg")
    report = examine_privacy(tmp_path, workers=1)
    assert found(report, "picture file") == {
        "text beside the pixels: Comment": 1,
        "text beside the pixels: comment": 1,
    }
    assert "Unmistakable" not in str(report.findings)


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("MUELLER_12345678.dcm", "an id", "AAAAAAA_99999999.dcm"),
        ("2019-03-04.png", "a date", "9999-99-99.png"),
        ("scan20190304", "a date", "aaaa99999999"),
        ("04.03.2019 b.jpg", "a date", "99.99.9999 a.jpg"),
        ("Doe^Jane.dcm", "a person's name", "Aaa^Aaaa.dcm"),
        ("Doe, Jane", "a person's name", "Aaa, Aaaa"),
        ("Doe_Jane.png", "a person's name", "Aaa_Aaaa.png"),
        ("a\x1b[31m.dcm", "a text with control characters", "a [99a.dcm"),
        ("1.2.276.0.7230010.3.1.2.8323329.300.151787.dcm", "a UID", None),
        ("images_512", "", None),
        ("train-rle.csv", "", None),
        ("patient00017", "", None),
        ("i07.png", "", None),
        ("5d41402abc4b2a76b9719d911017c592.png", "", None),
        ("events.out.tfevents.1732600000.host.1234.0.v2", "", None),
        ("Data_Entry.csv", "", None),
    ],
)
def test_names_of_files(name, kind, shape):
    assert kind_of_name(name) == kind
    assert shape is None or shape_of(name) == shape


def test_a_path_is_shown_without_what_identifies():
    assert shown_path(Path("set/MUELLER_12345678/1.2.3.4.dcm")) == "set/AAAAAAA_99999999/1.2.3.4.dcm"


def test_tables_and_records(tmp_path):
    key = PseudonymKey(bytes(32))
    pd.DataFrame({"ImageId": ["a", "b"], "Patient Birth-Date": "x", "name": "Unmistakable", "sex": "F"}).to_csv(
        tmp_path / "a.csv", index=False
    )
    for name, patients in {
        "keyed": [key.pseudonym(patient_hash("a"))],
        "plain": [patient_hash("a")],
        "hashed": ["sha256:0123"],
        "given": ["MRN 4711"],
        "own": ["image-i"],
        "none": [""],
    }.items():
        pd.DataFrame({"image_id": ["i"], "patient_id": patients}).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "a.json").write_text(
        json.dumps({"rows": [{"PatientName": "Unmistakable", "name": "x", "patients": 3}]})
    )
    (tmp_path / "experiment.json").write_text(json.dumps({"command": "train --data /home/smithers"}))
    (tmp_path / KEY_FILE).write_text("ab" * 32)
    report = examine_privacy(tmp_path, workers=1)
    assert found(report, "table column") == {
        "Patient Birth-Date": 1,
        "name": 1,
        "pseudonyms or hashes without a key": 2,
        "patients as a table names them": 1,
    }
    assert found(report, "json key") == {"PatientName": 1}
    assert found(report, "key") == {KEY_FILE: 1}
    others = {finding.what for finding in report.findings if not finding.look}
    assert others == {"pseudonyms with a key", "has the command line"}
    assert not any(secret in str(report.findings) for secret in (*SECRETS, "smithers"))


def test_a_count_of_patients_beside_a_count_of_images_names_nobody(tmp_path):
    pd.DataFrame({"team": ["a"], "images": [180], "patients": [87]}).to_csv(tmp_path / "board.csv", index=False)
    assert not examine_privacy(tmp_path, workers=1).look
    pd.DataFrame({"team": ["a"], "patients": ["Unmistakable"]}).to_csv(tmp_path / "names.csv", index=False)
    assert found(examine_privacy(tmp_path, workers=1), "table column") == {"patients": 1}


def test_a_prepared_folder_of_pseudonyms_is_fine_without_its_key(tmp_path):
    write_siim(tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "out", [32, 64], workers=1)
    with_key = examine_privacy(tmp_path / "out", workers=1)
    assert {(finding.where, finding.what) for finding in with_key.findings if finding.look} == {("key", KEY_FILE)}
    (tmp_path / "out" / KEY_FILE).unlink()
    assert not examine_privacy(tmp_path / "out", workers=1).look
    raw = run("doctor", "--privacy", tmp_path / "data", "--workers", "1")
    assert raw.returncode == 1
    assert "look DICOM tag: PatientName (0010,0010): 8 files." in raw.stdout.replace("\n", " ")
    assert "Nemo" not in raw.stdout
    clean = run("doctor", "--privacy", tmp_path / "out", "--workers", "1")
    assert clean.returncode == 0
    assert "Nothing to look at was found." in clean.stdout.replace("\n", " ")


def test_only_the_largest_images_are_searched_and_no_masks(tmp_path):
    for name in ("images_32", "images_64", "masks_64"):
        write_png(tmp_path / name / "a.png", radiograph(1))
    report = examine_privacy(tmp_path, workers=1)
    assert report.files == 3
    assert examine_file(tmp_path / "images_64" / "a.png").seen
    assert not report.look


def test_folders_that_cannot_be_examined(tmp_path):
    with pytest.raises(PneumoError, match="no folder"):
        examine_privacy(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PneumoError, match="holds no file"):
        examine_privacy(tmp_path / "empty")
    assert run("doctor", "--sheet", tmp_path / "a.png").returncode == 2
