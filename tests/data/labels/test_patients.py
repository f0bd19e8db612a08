"""Patients of images: from a table in every form it comes in, or from the files."""

import os
from pathlib import Path

import pytest

from keras_pneumo.data.labels.patients import (
    MOST_IN_STUDY,
    find_patient_table,
    group_images,
    read_patients,
)
from keras_pneumo.data.labels.pseudonyms import patient_hash
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_tables").exists(), reason="no real tables beside the repository")


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
    tags = {"a": patient_hash("one"), "b": patient_hash("one"), "c": patient_hash("two")}
    grouping = group_images(["a", "b", "c"], None, tags)
    assert grouping.patient_of["a"] == grouping.patient_of["b"] != grouping.patient_of["c"]
    assert (grouping.source, grouping.note) == ("dicom", "")


def test_grouping_that_does_nothing_is_noted():
    by_tag = group_images(["a", "b"], None, {"a": patient_hash("one"), "b": patient_hash("two")})
    assert by_tag.source == "dicom"
    assert "PatientID is different in every file" in by_tag.note
    without = group_images(["a", "b"], None, {})
    assert without.source == "none"
    assert "does nothing" in without.note
    assert without.patient_of == {"a": "image-a", "b": "image-b"}


def test_images_of_one_study_are_of_one_patient_whatever_else_is_said():
    studies = {"a": "s", "b": "s", "c": "t", "d": "t", "e": ""}
    by_tag = group_images("abcde", None, {"a": "patient-1", "c": "patient-2", "d": "patient-3"}, studies)
    assert by_tag.patient_of == {
        "a": "patient-1", "b": "patient-1", "c": "patient-2", "d": "patient-2", "e": "image-e",
    }  # fmt: skip
    nothing_else = group_images("abcde", None, {}, studies)
    assert nothing_else.patient_of["a"] == nothing_else.patient_of["b"] != nothing_else.patient_of["c"]
    assert nothing_else.note == ""
    table = {"a": "p", "b": "q", "c": "r", "d": "r", "e": "q"}
    by_table = group_images("abcde", table, {}, studies)
    assert by_table.patient_of == {"a": "p", "b": "p", "c": "r", "d": "r", "e": "p"}, "and e, as b is"
    assert by_table.note == (
        "The patient table gives radiographs of one study to several patients; they count as one patient."
    )
    assert group_images("cd", table, {}, studies).note == ""


def test_a_study_of_too_many_images_is_a_placeholder():
    names = [str(number) for number in range(MOST_IN_STUDY + 1)]
    grouping = group_images(names, None, {}, dict.fromkeys(names, "s"))
    assert len(set(grouping.patient_of.values())) == len(names)
    assert len(set(group_images(names[1:], None, {}, dict.fromkeys(names[1:], "s")).patient_of.values())) == 1
