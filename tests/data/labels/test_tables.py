"""Label tables of every known data set: small ones written here, and the real ones counted."""

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.tables import NO, YES, LabelQuestionError, read_table_labels
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "label_tables").exists(), reason="no real tables beside the repository")


def read(path, text, **options):
    path.write_text(text)
    return read_table_labels(path, LabelOptions(**options))


def positives(labels):
    return {name: label.positive for name, label in labels.images.items()}


# -- One small table of each data set ----------------------------------------------------------------------------------

NIH = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"


def test_nih(tmp_path):
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Pneumothorax,10.5,20,30,40.25,,,\n"
        "00000001_000.png,Mass,1,2,3,4,,,\n"
    )
    labels = read(
        tmp_path / "Data_Entry_2017.csv",
        NIH + "00000001_000.png,Mass|Pneumothorax,0,1,58,M,PA\n"
        "00000001_001.png,No Finding,1,1,058Y,M,AP\n"
        "00000012_000.png,Hydropneumothorax,0,12,,F,\n",
    )
    assert positives(labels) == {"00000001_000": True, "00000001_001": False, "00000012_000": True}
    first, second, third = labels.images.values()
    assert first.boxes == ((10.5, 20, 30, 40.25),)
    assert not first.has_mask
    assert (first.facts.patient, first.facts.sex, first.facts.age, first.facts.view) == ("00000001", "M", 58, "PA")
    assert (second.facts.age, third.facts.age, third.facts.patient) == (58, None, "00000012")
    assert labels.data_set == "NIH ChestX-ray14"
    assert [path.name for path in labels.other_files] == ["BBox_List_2017.csv"]


def test_google(tmp_path):
    header = NIH.strip() + ",Fracture,Pneumothorax\n"
    labels = read(
        tmp_path / "g.csv",
        header + "00000013_026.png,Emphysema,26,13,57,M,AP,NO,YES\n00000013_008.png,Pneumothorax,8,13,60,M,AP,NO,NO\n",
    )
    assert positives(labels) == {"00000013_026": True, "00000013_008": False}


CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,Pneumothorax\n" + "".join(
    f"CheXpert-v1.0-small/train/patient0000{number}/study1/view1_{view}.jpg,Female,68,{view.title()},{side},{label}\n"
    for number, view, side, label in (
        (1, "frontal", "AP", "1.0"),
        (2, "frontal", "PA", "0.0"),
        (3, "frontal", "AP", "-1.0"),
        (4, "frontal", "AP", ""),
        (5, "lateral", "", "1.0"),
    )
)


def test_chexpert(tmp_path):
    name = "patient0000{}-study1-view1_frontal".format
    labels = read(tmp_path / "c.csv", CHEXPERT)
    assert positives(labels) == {name(1): True, name(2): False, name(4): False}
    assert labels.parts == 3
    assert "uncertain (row 4)" in labels.left_out[name(3)]
    assert "its view is Lateral" in labels.left_out["patient00005-study1-view1_lateral"]
    assert labels.images[name(1)].facts == ("patient00001", "F", 68, "AP", "")
    assert labels.record == {
        "positive": 1, "negative": 2, "uncertain": "ignore", "uncertain_images": 1, "blank": "negative",
        "blank_rows": 1, "not_frontal": 1,
    }  # fmt: skip
    for policy, value in (("positive", True), ("negative", False)):
        assert positives(read(tmp_path / "c.csv", CHEXPERT, uncertain=policy))[name(3)] is value
    assert name(4) not in read(tmp_path / "c.csv", CHEXPERT, blank="ignore").images


def test_mimic(tmp_path):
    text = "subject_id,study_id,No Finding,Pneumothorax\n10,500,,1.0\n11,501,1.0,\n12,502,,-1.0\n"
    with pytest.raises(PneumoError, match="must lie beside it"):
        read(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", text)
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv").write_text(
        "dicom_id,subject_id,study_id,ViewPosition\na-1,10,500,PA\na-2,10,500,LATERAL\nb-1,11,501,AP\nc-1,12,502,\n"
        "d-1,13,503,PA\n"
    )
    labels = read(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", text)
    assert positives(labels) == {"a-1": True, "b-1": False}
    assert labels.images["a-1"].facts.patient == "10"
    assert labels.images["b-1"].facts.view == "AP"
    assert set(labels.left_out) == {"a-2", "c-1"}


PADCHEST = "ImageID,PatientID,PatientBirth,PatientSex_DICOM,StudyDate_DICOM,Projection,MethodLabel,Labels\n"


def test_padchest(tmp_path):
    labels = read(
        tmp_path / "p.csv",
        PADCHEST + "a.png,p1,1930.0,F,20140915,PA,Physician,\"['pleural effusion', ' pneumothorax']\"\n"
        "b.png,p2,1929.0,M,20150914,L,Physician,['pneumothorax']\n"
        "c.png,p3,,M,20150914,AP_horizontal,Physician,['normal']\n"
        "d.png,p4,1950,M,20150914,PA,RNN_model,[]\n"
        "e.png,p5,1950,M,20150914,PA,RNN_model,['unchanged']\n"
        "f.png,p6,1950,M,20150914,COSTAL,RNN_model,['normal']\n",
    )
    assert positives(labels) == {"a": True, "c": False}
    assert labels.images["a"].facts == ("p1", "F", 84, "PA", "")
    assert labels.images["c"].facts.view == "AP"
    assert set(labels.left_out) == {"b", "d", "e", "f"}
    assert "blank" in labels.left_out["d"]
    assert "uncertain" in labels.left_out["e"]


def test_vindr_readers_must_agree(tmp_path):
    text = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n" + "".join(
        f"{image},{finding},0,{reader},{box}\n"
        for image, finding, reader, box in (
            ("a", "Pneumothorax", "R1", "10,20,110,220"),
            ("a", "Pneumothorax", "R1", "1,2,3,4"),
            ("a", "Nodule/Mass", "R2", "1,2,3,4"),
            ("a", "Pneumothorax", "R3", "12,20,110,220"),
            ("b", "Pneumothorax", "R1", "1,2,3,4"),
            ("b", "No finding", "R2", ",,,"),
            ("c", "No finding", "R1", ",,,"),
        )
    )
    found = {number: positives(read(tmp_path / "v.csv", text, readers=number)) for number in (1, 2, 3)}
    assert found == {
        1: {"a": True, "b": True, "c": False},
        2: {"a": True, "b": False, "c": False},
        3: {"a": False, "b": False, "c": False},
    }
    labels = read(tmp_path / "v.csv", text)
    assert labels.images["a"].boxes == ((10, 20, 100, 200), (1, 2, 2, 2), (12, 20, 98, 200))
    assert labels.images["b"].boxes == ()  # its label is no pneumothorax
    assert labels.record["readers"] == 2


def test_candid_asks_what_a_blank_cell_means(tmp_path):
    text = "SOPInstanceUID,EncodedPixels\n1.2,5 3\n1.3,-1\n1.4,\n"
    with pytest.raises(LabelQuestionError, match=r"CANDID-PTX.*--blank negative.*--blank ignore"):
        read(tmp_path / "c.csv", text)
    assert positives(read(tmp_path / "c.csv", text, blank="negative")) == {"1.2": True, "1.3": False, "1.4": False}
    ignored = read(tmp_path / "c.csv", text, blank="ignore")
    assert positives(ignored) == {"1.2": True, "1.3": False}
    assert ignored.left_out == {"1.4": "its mask is blank (row 4)"}
    assert ignored.has_masks


def test_siim_in_the_same_way_as_ever(tmp_path):
    labels = read(tmp_path / "train-rle.csv", "ImageId, EncodedPixels\na,5 3\nb, -1\nc,\n")
    assert (labels.data_set, labels.record, labels.has_masks) == ("SIIM-ACR", {}, True)
    assert positives(labels) == {"a": True, "b": False, "c": False}
    assert positives(read(tmp_path / "l.csv", "a,5 3\nb,-1\n")) == {"a": True, "b": False}


def test_the_further_columns_of_a_table_of_masks(tmp_path):
    text = "ImageId,EncodedPixels,patient_id,age,source\na,5 3,p1,61,north\na,20 3,p1,61,north\nb,-1,p2,,south\n"
    labels = read(tmp_path / "l.csv", text)
    assert labels.images["a"].facts == ("p1", "", 61, "", "north")
    assert labels.images["b"].facts == ("p2", "", None, "", "south")


# -- Anyone's table ----------------------------------------------------------------------------------------------------


def test_the_further_columns_of_any_table(tmp_path):
    labels = read(
        tmp_path / "l.csv",
        "image,label,patient_id,sex,age,view,source\na.png,yes,p1,female,61,AP,north\nb.png,no,p2,M,x,,south\n",
    )
    assert labels.images["a"].facts == ("p1", "F", 61, "AP", "north")
    assert labels.images["b"].facts == ("p2", "M", None, "", "south")


def test_faults_are_named_by_row_and_spoil_their_image_only(tmp_path):
    labels = read(tmp_path / "l.csv", "image,label\na,1\nb,-1\nc,0\n,1\nd,1\nd,0\ne,1\ne,1\n")
    assert positives(labels) == {"a": True, "c": False, "e": True}
    assert labels.images["e"].rows == (8, 9)
    assert [(item.row, item.image_id) for item in labels.rejected] == [(3, "b"), (5, ""), (6, "d"), (7, "d")]
    assert "'-1', neither yes (1) nor no (0)" in labels.rejected[0].reason
    assert "contradict" in labels.rejected[2].reason


def test_paths_are_shortened_as_far_as_names_stay_unique(tmp_path):
    unique = read(tmp_path / "l.csv", "path,label\nx/a.png,1\nx/b.png,0\n")
    assert (list(unique.images), unique.parts) == (["a", "b"], 1)
    again = read(tmp_path / "l.csv", "path,label\nx/1/a.png,1\nx\\2\\a.png,0\n")
    assert (list(again.images), again.parts) == (["x-1-a", "x-2-a"], 3)


def test_a_blank_of_an_unknown_table_is_asked_about(tmp_path):
    with pytest.raises(LabelQuestionError, match=r"blank in 2 rows \(first: row 3\)"):
        read(tmp_path / "l.csv", "image,label\na,1\nb,\nc,NaN\n")
    assert positives(read(tmp_path / "l.csv", "image,label\na,1\nb,\n", blank="negative")) == {"a": True, "b": False}


def test_what_is_no_label_table_is_quoted(tmp_path):
    with pytest.raises(PneumoError, match=r"(?s)id,target.*1,0.*--image-column.*docs/your-data.md"):
        read(tmp_path / "l.csv", "id,target\n1,0\n")
    chosen = read(tmp_path / "l.csv", "id,target\n1,0\n", image_column="id", label_column="target")
    assert positives(chosen) == {"1": False}
    assert chosen.record["label_column"] == "target"


words = st.sampled_from(sorted(YES | NO))
names = st.text("abcdefghij0123456789_-", min_size=1, max_size=12)


@given(st.dictionaries(names, words, min_size=1), st.booleans(), st.sampled_from(["", ".png", ".dcm"]))
def test_every_word_of_yes_and_no_in_any_case_and_order_of_columns(tmp_path_factory, table, swapped, ending):
    path = tmp_path_factory.getbasetemp() / "words.csv"
    columns = [["image", *(name + ending for name in table)], ["label", *(word.upper() for word in table.values())]]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(zip(*(columns[::-1] if swapped else columns), strict=True))
    labels = read_table_labels(path, LabelOptions())
    assert positives(labels) == {name: word in YES for name, word in table.items()}
    assert labels.rejected == []


# -- The real tables ---------------------------------------------------------------------------------------------------


def real(name, **options):
    return read_table_labels(REAL / name, LabelOptions(**options))


def count(labels):
    return len(labels.images), sum(label.positive for label in labels.images.values())


@needs_real
def test_the_real_nih_table():
    labels = real("siim_tables/Data_Entry_2017_v2020.csv.gz")
    assert count(labels) == (112_120, 5_302)
    assert labels.rejected == []
    assert len({label.facts.patient for label in labels.images.values()}) == 30_805
    assert {label.facts.view for label in labels.images.values()} == {"PA", "AP"}


@needs_real
def test_the_real_nih_boxes(tmp_path):
    for name in ("siim_tables/Data_Entry_2017_v2020.csv.gz", "label_tables/BBox_List_2017.csv.gz"):
        (tmp_path / Path(name).name).symlink_to(REAL / name)
    labels = read_table_labels(tmp_path / "Data_Entry_2017_v2020.csv.gz", LabelOptions())
    assert sum(len(label.boxes) for label in labels.images.values()) == 98
    assert not any(label.has_mask for label in labels.images.values())


@needs_real
def test_the_real_table_of_google():
    assert count(real("siim_tables/google2019_nih-chest-xray-labels.csv.gz")) == (4_376, 238)


@needs_real
def test_the_real_chexpert_table():
    labels = real("label_tables/chexpert_train.csv.gz", any_view=True)
    assert count(labels)[1] == 19_448
    assert labels.record["uncertain_images"] == 3_145
    assert len(labels.images) == 223_414 - 3_145
    frontal = real("label_tables/chexpert_train.csv.gz")
    # 32,387 lateral; 17 called frontal whose AP/PA is LL or RL.
    assert frontal.record["not_frontal"] == 32_387 + 17
    assert count(frontal)[1] == 19_448 - 1_755


@needs_real
def test_the_real_padchest_part():
    labels = real("label_tables/padchest_part.csv.gz", any_view=True)
    assert count(labels)[1] == 573
    assert len(labels.images) + len(labels.left_out) == 8_545
    assert real("label_tables/padchest_part.csv.gz").record["not_frontal"] == 2_732


@needs_real
def test_the_real_vindr_table():
    assert count(real("label_tables/vinbigdata-train.csv.gz", readers=1)) == (15_000, 96)
    assert count(real("label_tables/vinbigdata-train.csv.gz"))[1] == 58
    assert count(real("label_tables/vinbigdata-train.csv.gz", readers=3))[1] == 45
