"""Finding images and labels in a folder, and reading label files and patient tables in every form they come in."""

import csv
import gzip
import os
from pathlib import Path

import pytest
from small_siim import radiograph, write_dicom, write_labels, write_png

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.patients import find_patient_table, group_images, pseudonym, read_patients
from keras_pneumo.data.labels.siim import Rejected, find_images, find_label_csv, read_labels
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_tables").exists(), reason="no real tables beside the repository")


def texts(labels):
    return {image_id: rle.encode_runs(label.runs) for image_id, label in labels.images.items()}


# -- label files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "ImageId, EncodedPixels\na,-1\nb, 5 3\n",
        "ImageId,EncodedPixels\na, -1\nb,5 3\n",
        "\ufeffImageId,EncodedPixels\na,-1\nb,5 3\n",
        "\ufeffa,-1\nb, 5 3\n",
        "a,-1\nb,5 3\n",
        "b,5 3\na,-1\n",
        "ImageId,EncodedPixels\r\na,\r\nb,5 3\r\n",
        "image_id,encoded_pixels\na,-1\n\n   \nb,5 3\n",
        "fold,ImageId,EncodedPixels,source\n0,a,-1,x\n1,b,5 3,y\n",
        "EncodedPixels,ImageId\n-1,a\n5 3,b\n",
        'ImageId,EncodedPixels\n"a","-1"\n"b","5 3"\n',
        "ImageId,EncodedPixels\na.dcm,-1\nb.png,5 3\n",
        "ImageId,EncodedPixels\na,-1\nb,5 3",
    ],
)
def test_every_form_of_the_label_file(tmp_path, content):
    path = tmp_path / "train-rle.csv"
    path.write_bytes(content.encode())
    labels = read_labels(path)
    assert texts(labels) == {"a": "-1", "b": "5 3"}
    assert labels.rejected == []
    assert labels.images["b"].positive
    assert not labels.images["a"].positive


def test_gzipped_label_file(tmp_path):
    with gzip.open(tmp_path / "train-rle.csv.gz", "wt") as stream:
        stream.write("ImageId, EncodedPixels\na,-1\n")
    assert texts(read_labels(tmp_path / "train-rle.csv.gz")) == {"a": "-1"}


def test_rows_of_one_image_are_united(tmp_path):
    path = write_labels(tmp_path / "l.csv", [("a", "0 4"), ("b", "-1"), ("a", "2 4"), ("a", "100 1")])
    labels = read_labels(path)
    assert texts(labels) == {"a": "0 6 94 1", "b": "-1"}
    assert labels.images["a"].rows == (2, 4, 5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 3", "3 numbers"),
        ("-5 2", "negative gap"),
        ("5 0", "length 0"),
        ("1048576 1", "ends at pixel 1048577"),
        ("five 2", "'five'"),
        ("NaN", "'NaN'"),
    ],
)
def test_a_bad_row_is_named_and_spoils_its_image_only(tmp_path, text, reason):
    path = write_labels(tmp_path / "l.csv", [("a", "0 4"), ("b", "7 1"), ("a", text), ("c", "-1")])
    labels = read_labels(path)
    assert texts(labels) == {"b": "7 1", "c": "-1"}
    assert labels.spoilt == {"a": (4,)}
    assert [(item.file, item.row) for item in labels.rejected] == [("l.csv", 4)]
    assert reason in labels.rejected[0].reason
    assert "image a" in labels.rejected[0].reason


def test_rows_are_lines_of_the_file(tmp_path):
    (tmp_path / "l.csv").write_text("ImageId,EncodedPixels\n\na,-1\n\n\nb,odd one\n")
    assert read_labels(tmp_path / "l.csv").rejected[0].row == 6


def test_rows_without_pixels_or_image(tmp_path):
    (tmp_path / "l.csv").write_text("ImageId,EncodedPixels\na\n,5 3\nb,-1\n")
    labels = read_labels(tmp_path / "l.csv")
    assert texts(labels) == {"b": "-1"}
    assert [item.row for item in labels.rejected] == [2, 3]
    assert labels.spoilt == {"a": (2,)}


def test_empty_and_drawn_at_once_is_no_label(tmp_path):
    labels = read_labels(write_labels(tmp_path / "l.csv", [("a", "-1"), ("a", "5 3"), ("b", "-1"), ("b", " ")]))
    assert texts(labels) == {"b": "-1"}
    assert labels.spoilt == {"a": (2, 3)}


def test_long_rows_are_read(tmp_path):
    text = "0 1" + " 1 1" * 200_000
    labels = read_labels(write_labels(tmp_path / "l.csv", [("a", text)]))
    assert rle.area(labels.images["a"].runs) == 200_001
    assert csv.field_size_limit() == 131_072  # other users of the csv module keep their own limit


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"id,target\n1,0\n", "no label file"),
        (b"one,two,three\n", "no label file"),
        ("ImageId,EncodedPixels\nä,-1\n".encode("latin-1"), "not UTF-8"),
        ("ImageId,EncodedPixels\na,-1\n".encode("utf-16"), "not UTF-8"),
        (b'ImageId,EncodedPixels\n"a,-1\n', "is not csv"),
        (b"PK\x03\x04\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_no_label_file(tmp_path, content, part):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(PneumoError, match=part) as error:
        read_labels(tmp_path / "l.csv")
    assert "l.csv" in str(error.value)


def test_damaged_gzip_and_missing_file(tmp_path):
    (tmp_path / "l.csv.gz").write_bytes(gzip.compress(b"ImageId,EncodedPixels\n" * 9999)[:50])
    with pytest.raises(PneumoError, match="cannot be read"):
        read_labels(tmp_path / "l.csv.gz")
    with pytest.raises(PneumoError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


@needs_real
def test_the_whole_real_label_file():
    labels = read_labels(REAL / "siim_tables" / "train-rle.csv.gz")
    positive = [label for label in labels.images.values() if label.positive]
    assert (len(labels.images), len(positive), len(labels.rejected)) == (12_047, 2_669, 0)
    assert sum(len(label.rows) for label in positive) == 3_576
    areas = sorted(rle.area(label.runs) for label in positive)
    # Counted apart with plain numpy over all rows; the median of the rows' sums, overlaps twice, would be 8,771.
    assert (areas[0], areas[len(areas) // 2]) == (55, 8_630)


@needs_real
def test_the_real_sample_without_header_agrees_with_the_full_file():
    sample = read_labels(REAL / "siim_mini" / "train-rle-sample.csv")
    full = read_labels(REAL / "siim_mini" / "train-rle.csv")
    assert len(sample.images) == 10
    assert len(full.images) == 88
    assert sum(label.positive for label in full.images.values()) == 40
    assert texts(sample) == {image_id: texts(full)[image_id] for image_id in sample.images}


# -- finding -----------------------------------------------------------------------------------------------------------


def test_images_are_found_at_any_depth_and_masks_are_not(tmp_path):
    for name in ("a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png"):
        write_png(tmp_path / name, radiograph(1))
    write_dicom(tmp_path / "d" / "1.2.826.0.123456", radiograph(1), uid="1.2.826.0.123456")
    for name in ("png_masks/3.png", ".hidden/6.png", ".7.png", "notes.txt", "train-rle.csv", "d/8.1234"):
        write_png(tmp_path / name, radiograph(1))
    for name in ("prepared/manifest.json", "prepared/cases.csv", "prepared/images_64/9.png", "out/10.png"):
        write_png(tmp_path / name, radiograph(1))
    found, notes = find_images(tmp_path, skip=[tmp_path / "out"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert sorted(names) == sorted(
        ["a/b/c/1.dcm", "2.DCM", "png/3.png", "jpg/4.JPEG", "mit Leerzeichen/ž 5.png", "d/1.2.826.0.123456"]
    )
    assert found == sorted(found)
    assert notes == ["The folder png_masks was not searched: masks come from the csv."]


def test_linked_folders_are_followed_once(tmp_path):
    write_png(tmp_path / "real" / "1.png", radiograph(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "data")
    assert [path.name for path in find_images(tmp_path / "data")[0]] == ["1.png"]


def test_data_folder_that_is_none(tmp_path):
    with pytest.raises(PneumoError, match="not a folder"):
        find_images(tmp_path / "none")


def test_label_file_with_most_of_the_images_wins(tmp_path):
    full = write_labels(tmp_path / "train-rle.csv", [("a", "-1"), ("b", "-1"), ("c", "-1")])
    write_labels(tmp_path / "train-rle-sample.csv", [("a", "-1")], header=None, bom=True)
    write_labels(tmp_path / "deep" / "train_of_others.csv", [("x", "-1")] * 50)
    write_labels(tmp_path / "train_metadata.csv", [("a", "1")], header=("id", "class"))
    assert find_label_csv(tmp_path, {"a", "b", "c"}) == full


def test_sample_is_taken_when_there_is_nothing_else(tmp_path):
    sample = write_labels(tmp_path / "train-rle-sample.csv", [("a", "-1")], header=None)
    assert find_label_csv(tmp_path, {"a"}) == sample


def test_sample_loses_a_draw(tmp_path):
    write_labels(tmp_path / "a-train-rle-sample.csv", [("a", "5 1")])
    full = write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    assert find_label_csv(tmp_path, {"a"}) == full


def test_two_label_files_must_be_chosen_from(tmp_path):
    write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    write_labels(tmp_path / "old" / "rle.csv", [("a", "5 1")])
    with pytest.raises(PneumoError, match="Several label files") as error:
        find_label_csv(tmp_path, {"a"})
    assert "train-rle.csv" in str(error.value)
    assert "old/rle.csv" in str(error.value)
    assert "--labels" in str(error.value)


def test_two_equal_copies_are_no_question(tmp_path):
    write_labels(tmp_path / "train-rle.csv", [("a", "-1")])
    write_labels(tmp_path / "old" / "train-rle.csv", [("a", "-1")])
    assert find_label_csv(tmp_path, {"a"}).name == "train-rle.csv"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"ImageId;EncodedPixels\n1;-1\n", r"train-rle\.csv is separated by semicolons. Save it with commas"),
        ("ImageId,EncodedPixels\n\u00e9,-1\n".encode("latin-1"), r"train-rle\.csv is not UTF-8 text"),
        (b"ImageId,EncodedPixels\n2,-1\n", r"train-rle\.csv name none of its images"),
    ],
)
def test_a_label_file_that_will_not_do_says_why(tmp_path, content, part):
    (tmp_path / "train-rle.csv").write_bytes(content)
    with pytest.raises(PneumoError, match=part) as raised:
        find_label_csv(tmp_path, ["1"])
    assert ("name none" in str(raised.value)) == ("name none" in part)


def test_no_label_file(tmp_path):
    with pytest.raises(PneumoError, match="No label csv"):
        find_label_csv(tmp_path, {"a"})
    write_labels(tmp_path / "train-rle.csv", [("x", "-1")])
    with pytest.raises(PneumoError, match=r"train-rle.csv name none of its images"):
        find_label_csv(tmp_path, {"a"})


# -- patients ----------------------------------------------------------------------------------------------------------


def table(tmp_path, content):
    path = tmp_path / "patients.csv"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "content",
    [
        "ImageId,patient_id\na,p\nb,q\n",
        "\ufeffimage_id, Patient ID\na,p\nb,q\n",
        "age,Patient,Image\n1,p,a\n2,q,b\n",
        "ImageId,patient_id\na.dcm,p\nb.png,q\na,p\n",
    ],
)
def test_patient_tables(tmp_path, content):
    assert read_patients(table(tmp_path, content)) == {"a": "p", "b": "q"}


def test_nih_names_give_the_patient(tmp_path):
    path = table(tmp_path, "Kaggle_ID,NIH_ID\na,00028864_007.png\nb,00028864_010.png\nc,00015606_016.png\n")
    assert read_patients(path) == {"a": "00028864", "b": "00028864", "c": "00015606"}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a,p\n", "no patient table"),
        ("ImageId,EncodedPixels\na,-1\n", "no patient table"),
        ("", "no patient table"),
        ("ImageId,patient_id\n", "names no patient"),
        ("ImageId,patient_id\na,p\na,q\n", "row 3.*another patient"),
        ("ImageId,patient_id\na,p\nb,\n", "row 3"),
        ("ImageId,patient_id\na,p\nb\n", "row 3"),
        ("Kaggle_ID,NIH_ID\na,28864_007.png\n", "row 2.*no NIH image name"),
    ],
)
def test_patient_tables_that_will_not_do(tmp_path, content, part):
    with pytest.raises(PneumoError, match=part):
        read_patients(table(tmp_path, content))


def test_patient_table_is_found_by_its_name(tmp_path):
    assert find_patient_table(tmp_path) is None
    path = table(tmp_path, "ImageId,patient_id\na,p\n")
    assert find_patient_table(tmp_path) == path


@needs_real
def test_real_patient_table():
    patients = read_patients(REAL / "siim_tables" / "nih_id.csv")
    assert len(patients) == 12_047
    assert len(set(patients.values())) == 6_171


def test_grouping_by_table_says_who_is_missing():
    grouping = group_images(["a", "b", "c"], {"a": "p", "b": "p", "x": "q"}, {})
    assert grouping.patient_of == {"a": "p", "b": "p", "c": "image-c"}
    assert grouping.source == "table"
    assert "1 of 3 images" in grouping.note


def test_table_of_other_images_is_refused():
    with pytest.raises(PneumoError, match="none of the images"):
        group_images(["a"], {"x": "p"}, {})


def test_grouping_by_files_that_share_a_patient():
    tags = {"a": pseudonym("one"), "b": pseudonym("one"), "c": pseudonym("two")}
    grouping = group_images(["a", "b", "c"], None, tags)
    assert grouping.patient_of["a"] == grouping.patient_of["b"] != grouping.patient_of["c"]
    assert (grouping.source, grouping.note) == ("dicom", "")


def test_grouping_that_does_nothing_is_said():
    by_tag = group_images(["a", "b"], None, {"a": pseudonym("one"), "b": pseudonym("two")})
    assert by_tag.source == "dicom"
    assert "PatientID is different in every file" in by_tag.note
    without = group_images(["a", "b"], None, {})
    assert without.source == "none"
    assert "does nothing" in without.note
    assert without.patient_of == {"a": "image-a", "b": "image-b"}


def test_patient_ids_of_files_are_not_given_away():
    assert "4711" not in pseudonym("MRN 4711")
    assert pseudonym("MRN 4711") == pseudonym("MRN 4711") != pseudonym("MRN 4712")
    assert pseudonym("") == ""


def test_rejected_is_plain_data():
    assert Rejected("a.csv", 3, "why") == Rejected("a.csv", 3, "why")
