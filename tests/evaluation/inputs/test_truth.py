"""The truth from a prepared folder, a plain table and SIIM's own files, and the message for every wrong row."""

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from board_lab import REAL, needs_real
from label_lab import FORMS

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import read_labels
from keras_pneumo.data.prepared.split import split_sha256
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.truth import SINGLE_NOTE, read_truth

TRUTH = """image_id,patient_id,subset,fold,pneumothorax,encoded_pixels,sex,age,view,pixel_spacing_mm
a,p1,test,-1,1,10 5,M,60,PA,0.14
b,p1,test,-1,0,-1,M,61,AP,
c,p2,train,1,1,0 3,F,,PA,0.2
d,p3,validation,0,0,-1,,,,
"""


def prepared(folder: Path, text: str = TRUTH, **manifest: object) -> Path:
    (folder / "truth.csv").write_text(text)
    tables = {"truth.csv": hashlib.sha256(text.encode()).hexdigest()}
    split = split_sha256(pd.read_csv(folder / "truth.csv"))
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "split_sha256": split, "tables": tables} | manifest))
    return folder


def test_prepared_folder(tmp_path):
    truth = read_truth(prepared(tmp_path, patients="dicom", patients_note="Every file has its own patient."))
    assert truth.cases.image_id.tolist() == ["a", "b"]
    assert truth.pneumothorax.tolist() == [True, False]
    assert truth.areas.tolist() == [5, 0]
    assert truth.development.image_id.tolist() == ["c", "d"]
    assert truth.split_sha256 == json.loads((tmp_path / "manifest.json").read_text())["split_sha256"]
    assert (truth.patients, truth.notes) == ("dicom", ["Every file has its own patient."])
    assert truth.n_patients == 1
    assert truth.cases.age.tolist() == [60, 61]
    (tmp_path / "manifest.json").unlink()
    assert read_truth(tmp_path / "truth.csv").split_sha256 == truth.split_sha256  # from the rows themselves


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("age", "900", "900"),
        ("age", "-3", "-3"),
        ("age", "inf", "inf"),
        ("pixel_spacing_mm", "0", "0"),
        ("pixel_spacing_mm", "-0.14", "-0.14"),
        ("pixel_spacing_mm", "1e308", "1e+308"),
    ],
)
def test_row_47_an_age_or_spacing_that_cannot_be_is_noted_with_its_row_and_not_used(tmp_path, name, value, shown):
    """Row 47 of the faults."""
    plain = "61" if name == "age" else "0.14"
    rows = "".join(f"{image},{patient},{label},{cell}\n" for image, patient, label, cell in (
        ("a", "p", 1, plain), ("b", "q", 0, value), ("c", "r", 0, "")
    ))  # fmt: skip
    (tmp_path / "labels.csv").write_text(f"image_id,patient_id,pneumothorax,{name}\n" + rows)
    truth = read_truth(tmp_path / "labels.csv")
    assert truth.cases[name].isna().tolist() == [False, True, True]
    (note,) = truth.notes
    assert note.startswith(f"labels.csv: 1 {name} value outside of")
    assert note.endswith(f"count as unknown: row 3 ({shown}).")


@pytest.mark.parametrize("source", ["none", "dicom"])
def test_a_patient_table_counts_for_a_folder_that_was_prepared_without(tmp_path, source):
    single_images = TRUTH.replace("b,p1", "b,p4")
    folder = prepared(tmp_path, single_images, patients=source, patients_note="Grouping does nothing: give --patients.")
    table = tmp_path / "patients.csv"
    table.write_text("image_id,patient_id\na,x\nb,x\nc,x\nd,y\n")
    truth = read_truth(folder, patients=table)
    assert truth.cases.patient_id.tolist() == ["x", "x"]
    assert truth.development.patient_id.tolist() == ["x", "y"], "so that a leak can be seen"
    assert (truth.patients, truth.notes, truth.n_patients) == ("table", [], 1)
    assert truth.split_sha256 == read_truth(folder).split_sha256
    table.write_text("image_id,patient_id\na,x\n")
    with pytest.raises(PneumoError, match="has no patient for 3 images"):
        read_truth(folder, patients=table)
    (tmp_path / "grouped").mkdir()
    table.write_text("image_id,patient_id\na,x\n")
    grouped = read_truth(prepared(tmp_path / "grouped", patients=source), patients=table)
    assert grouped.cases.patient_id.tolist() == ["p1", "p1"], "the patients it was split by stay"


def test_another_subset(tmp_path):
    truth = read_truth(prepared(tmp_path), subset="validation")
    assert truth.cases.image_id.tolist() == ["d"]
    assert truth.development.image_id.tolist() == ["c"]
    with pytest.raises(PneumoError, match="no image in the subset 'tset'; it has test, train, validation"):
        read_truth(tmp_path, subset="tset")


def test_an_edited_table_is_refused(tmp_path):
    prepared(tmp_path)
    (tmp_path / "truth.csv").write_text(TRUTH.replace("b,p1,test,-1,0", "b,p1,test,-1,1"))
    with pytest.raises(PneumoError, match=r"is not the table that manifest\.json describes"):
        read_truth(tmp_path)


def test_a_manifest_of_another_split_is_refused(tmp_path):
    prepared(tmp_path, split_sha256="e" * 64)
    with pytest.raises(PneumoError, match="is not the split that its manifest records"):
        read_truth(tmp_path)


@pytest.mark.parametrize("content", ["[]", '"text"', '{"format": 2}', '{"tables": []}'])
def test_a_manifest_of_another_shape_is_refused(tmp_path, content):
    prepared(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PneumoError, match="is not of format 1"):
        read_truth(tmp_path)


def test_labels_without_masks(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id,pneumothorax\na,1\nb,0\n")
    truth = read_truth(path)
    assert truth.runs is None
    assert truth.areas is None
    assert truth.subset == "all"
    assert truth.notes == [SINGLE_NOTE]
    assert truth.patients == "none"


@pytest.mark.parametrize(
    "start", ["", "ImageId, EncodedPixels\n", "ImageId,EncodedPixels\n", "\ufeffImageId,EncodedPixels\n"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_siim_label_file(tmp_path, start, packed):
    data = (start + "x,0 4\ny, -1\nx,2 4\nz,\n").encode()
    path = tmp_path / ("train.csv.gz" if packed else "train.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    truth = read_truth(path)
    assert truth.cases.image_id.tolist() == ["x", "y", "z"]
    assert truth.areas.tolist() == [6, 0, 0]  # pixels 0..3 and 2..5 united


@pytest.mark.parametrize("content", FORMS)
def test_the_referee_reads_a_label_file_as_preparing_does(tmp_path, content):
    path = tmp_path / "train-rle.csv"
    path.write_bytes(content.encode())
    truth = read_truth(path)
    areas = {image_id: rle.area(label.runs) for image_id, label in read_labels(path).images.items()}
    assert dict(zip(truth.cases.image_id, truth.areas.tolist(), strict=True)) == areas == {"a": 0, "b": 3}


@pytest.mark.parametrize("row", ["b", "b,5 3,9", ",5 3", "b,5 3 1"])
def test_a_row_that_preparing_rejects_is_refused_by_the_referee(tmp_path, row):
    path = tmp_path / "train-rle.csv"
    path.write_text(f"ImageId,EncodedPixels\na,-1\n{row}\n")
    assert set(read_labels(path).images) == {"a"}
    with pytest.raises(PneumoError, match="row 3"):
        read_truth(path)


def test_ids_and_patients_beside_a_label_file(tmp_path):
    (tmp_path / "train.csv").write_text("ImageId,EncodedPixels\nx,0 4\ny,-1\nz,-1\n")
    (tmp_path / "ids.csv").write_text("ImageId\nx\ny\n")
    (tmp_path / "nih.csv").write_text("Kaggle_ID,NIH_ID\nx,00000007_001.png\ny,00000007_002.png\nz,00000008_000.png\n")
    truth = read_truth(tmp_path / "train.csv", ids=tmp_path / "ids.csv", patients=tmp_path / "nih.csv")
    assert truth.cases.patient_id.tolist() == ["00000007", "00000007"]
    assert truth.development.patient_id.tolist() == ["00000008"]
    assert truth.patients == "table"
    (tmp_path / "ids.csv").write_text("ImageId\nx\nq\n")
    with pytest.raises(PneumoError, match=r"names 1 image without a label in .*train.csv: 'q'"):
        read_truth(tmp_path / "train.csv", ids=tmp_path / "ids.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ImageId,EncodedPixels\nx,1 2 3\n", "row 2: image x: EncodedPixels holds 3 numbers"),
        ("ImageId,EncodedPixels\ny,-1\nx,1 2\nx,-1\n", r"row 3: image x: one row says that .* \(rows 3, 4\)"),
        ("image_id,pneumothorax,encoded_pixels\na,0,1 2\n", "image a: the image has a mask but its pneumothorax is 0"),
        ("image_id,pneumothorax,encoded_pixels\na,1,1 2\nb,1,-1\n", "1 image with a pneumothorax but no mask"),
        ("image_id,pneumothorax\na,1\na,0\n", r"row 3: image a: the image was given before \(rows 2, 3\)"),
        ("image_id,pneumothorax\na,yes\n", "row 2: image a: pneumothorax is 'yes'; it must be 0 or 1"),
        ("image_id,patient_id,pneumothorax\na,,1\n", "row 2: the patient id is blank"),
        ("image_id,pneumothorax\n ,1\n", "row 2: the image id is blank"),
        ("image_id,sex\na,M\n", "where ImageId and EncodedPixels or pneumothorax are expected"),
        ("", "is empty"),
        ("image_id,pneumothorax\n", "has no rows"),
        ("a,b,c,d\n1,2,3,4\n", "is not a label table: its first line is 'a, b, c, d'"),
    ],
)
def test_refusals(tmp_path, text, sentence):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(PneumoError, match=sentence):
        read_truth(path)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    data = bytearray(gzip.compress(b"ImageId,EncodedPixels\n" + b"x,0 4\n" * 500))
    data[12:16] = b"\xff\xff\xff\xff"
    (tmp_path / "train.csv.gz").write_bytes(data)
    with pytest.raises(PneumoError, match=r"train\.csv\.gz cannot be read"):
        read_truth(tmp_path / "train.csv.gz")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PneumoError, match=r"There is no .*truth\.csv\. A prepared folder holds it"):
        read_truth(tmp_path)
    with pytest.raises(PneumoError, match=r"There is no .*nowhere.csv"):
        read_truth(tmp_path / "nowhere.csv")


@needs_real
def test_real_tables():
    tables = REAL / "siim_tables"
    truth = read_truth(tables / "train-rle.csv.gz", ids=tables / "stage1_test_ids.csv", patients=tables / "nih_id.csv")
    assert (len(truth.cases), int(truth.pneumothorax.sum()), len(truth.development)) == (1372, 290, 10675)
    whole = read_truth(tables / "train-rle.csv.gz", patients=tables / "nih_id.csv")
    assert (len(whole.cases), int(whole.pneumothorax.sum()), whole.n_patients) == (12047, 2669, 6171)
    assert int(whole.areas[whole.areas > 0].min()) == 55
