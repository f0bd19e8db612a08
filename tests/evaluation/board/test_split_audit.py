"""Shared patients of a split, by hand and on the real folds made image by image."""

import json

import pandas as pd
import pytest
from board_lab import REAL, needs_real

from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.split_audit import audit_split


def written(path, text):
    path.write_text(text)
    return path


def test_by_hand(tmp_path):
    split = written(
        tmp_path / "folds.csv",
        "fname,fold,exist_labels\na.png,0,1\nb.png,1,1\nc.png,0,0\nd.png,1,0\ne.png,1,0\nf.png,0,1\n",
    )
    patients = written(tmp_path / "p.csv", "image_id,patient_id\na,p\nb,p\nc,q\nd,q\ne,r\nf,s\n")
    audit = audit_split(split, patients)
    first = audit.folds[0]  # a and c share their patient with training; f's patient is unknown, so 1/3
    assert (first.images, first.positives, first.images_shared, first.positives_shared) == (3, 2, 2, 1)
    assert first.patients_shared == 2
    assert first.patient_auroc == 1.0  # a: 1, f: 1/3, c: 0
    assert first.patient_accuracy == pytest.approx(2 / 3)
    assert first.majority_accuracy == pytest.approx(1 / 3)
    assert audit.leaks
    assert audit.sentence.startswith("4 of 6 held-out images (67%) share a patient with training")
    assert audit.table.name.tolist() == ["fold 0", "fold 1"]


def test_patient_only_has_auroc_one_half_with_folds_by_patient(tmp_path):
    subsets = ["validation"] * 4 + ["train"] * 4 + ["test"] * 4
    rows = "".join(f"i{n},p{n // 2},{s},{n % 2},{-1 if s == 'test' else 0}\n" for n, s in enumerate(subsets))
    split = written(tmp_path / "split.csv", "image_id,patient_id,subset,pneumothorax,fold\n" + rows)
    audit = audit_split(split)
    assert [fold.name for fold in audit.folds] == ["validation", "test"]
    assert [fold.patient_auroc for fold in audit.folds] == [0.5, 0.5]
    assert not audit.leaks
    assert audit.sentence == "No patient is on both sides: none of 8 held-out images shares a patient with training."


def test_an_image_that_is_held_out_twice_counts_once(tmp_path):
    rows = "a,p,validation,0,0\nb,p,train,1,1\nc,q,train,1,1\nd,p,test,0,-1.0\ne,r,test,1,-1.0\n"
    split = written(tmp_path / "split.csv", "image_id,patient_id,subset,pneumothorax,fold\n" + rows)
    audit = audit_split(split)
    # fold 0 = validation = a; fold 1 = b and c; test = d and e. The patient p stands everywhere.
    assert audit.table.name.tolist() == ["fold 0", "fold 1", "validation", "test"]
    assert (audit.images, audit.images_shared) == (5, 3)
    assert audit.sentence.startswith("3 of 5 held-out images (60%) share a patient with training")


@pytest.mark.parametrize("name", ["val", "valid", "dev", "Validation"])
def test_a_validation_subset_of_another_name_is_audited(tmp_path, name):
    split = written(tmp_path / "s.csv", f"image_id,patient_id,subset,label\na,p,train,1\nb,p,{name},0\n")
    assert audit_split(split).leaks


@pytest.mark.parametrize("source", ["none", "dicom"])
def test_a_split_without_patients_is_refused(tmp_path, source):
    rows = "a,tag-1,0,train\nb,tag-2,1,validation\nc,tag-3,1,train\n"
    split = written(tmp_path / "split.csv", "image_id,patient_id,pneumothorax,subset\n" + rows)
    assert not audit_split(split).leaks  # a table of a stranger, whose patients have one image each
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"format": 1, "patients": source}))
    with pytest.raises(PneumoError, match=r"cannot be known. Give a patient table with --patients"):
        audit_split(split)
    patients = written(tmp_path / "p.csv", "image_id,patient_id\na,p\nb,p\nc,q\n")
    assert audit_split(split, patients).leaks
    manifest.write_text(json.dumps({"format": 1, "patients": "table"}))
    assert not audit_split(split).leaks


def test_labels_from_a_label_file_and_images_without_patient(tmp_path):
    split = written(tmp_path / "f.csv", "ImageId,fold\na,0\nb,1\nc,1\n")
    labels = written(tmp_path / "rle.csv", "ImageId, EncodedPixels\na,1 2\nb,-1\nc,3 4\nc,9 1\n")
    patients = written(tmp_path / "p.csv", "image_id,patient_id\na,p\nb,p\n")
    audit = audit_split(split, patients, labels)
    assert [fold.positives for fold in audit.folds] == [1, 1]
    assert audit.notes == ["1 image without a patient, each taken as a patient of its own."]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n", "needs an image column"),
        ("image_id,fold,label,patient_id\na,0,2,p\n", "row 2: the label is '2', not 0 or 1"),
        ("image_id,fold,patient_id\na,0,p\n", "has no label column"),
        ("image_id,fold,label\na,0,1\n", "has no patient_id"),
        ("image_id,fold,label,patient_id\na,0,1,p\na,1,1,p\n", "row 3: image 'a' was given before"),
        ("image_id,fold,label,patient_id\na,0,1,p\nb,x,1,q\n", "row 3: the fold is 'x', not a whole number"),
        ("image_id,fold,label,patient_id\na,0,1,p\nb,,1,q\n", "row 3: the fold is '', not a whole number"),
        ("image_id,subset,label,patient_id\na,train,1,p\nb,holdout,1,q\n", "row 3: the subset is 'holdout'"),
        ("image_id,fold,label,patient_id\na,0,1,p\nb,1,1,\nc,1,1,\n", "row 3: the patient id is blank"),
        ("image_id,fold,label,patient_id\na,0,1,image-a\nb,1,1,image-b\n", "cannot be known"),
        ("image_id,fold,label,patient_id\na,0,1,p\n", "has neither two folds nor a train subset"),
    ],
)
def test_refusals(tmp_path, text, sentence):
    with pytest.raises(PneumoError, match=sentence):
        audit_split(written(tmp_path / "s.csv", text))


def test_tables_that_do_not_belong_together(tmp_path):
    split = written(tmp_path / "s.csv", "image_id,fold\na,0\nb,1\n")
    other = written(tmp_path / "p.csv", "image_id,patient_id\nx,p\n")
    labels = written(tmp_path / "l.csv", "ImageId,EncodedPixels\na,-1\n")
    with pytest.raises(PneumoError, match=r"has no label for 1 image of .*, first 'b'"):
        audit_split(split, other, labels)
    labels.write_text("ImageId,EncodedPixels\na,-1\nb,-1\n")
    with pytest.raises(PneumoError, match="has none of the images"):
        audit_split(split, other, labels)


@needs_real
def test_real_folds_made_image_by_image_and_by_patient(tmp_path):
    """The figures that the tables' owner gives for these folds; and 0.5 once the same folds are made by patient."""
    tables = REAL / "siim_tables"
    audit = audit_split(tables / "image_level_folds_5.csv", tables / "nih_id.csv")
    assert [round(fold.patient_auroc, 3) for fold in audit.folds] == [0.842, 0.805, 0.812, 0.825, 0.835]
    accuracies = [fold.patient_accuracy for fold in audit.folds]
    assert (round(min(accuracies), 3), round(max(accuracies), 3)) == (0.841, 0.864)
    folds = pd.read_csv(tables / "image_level_folds_5.csv", dtype=str)
    patient = pd.read_csv(tables / "nih_id.csv", dtype=str).set_index("Kaggle_ID").NIH_ID.str[:8]
    owner = folds.fname.str.removesuffix(".png").map(patient).fillna(folds.fname)
    folds["fold"] = pd.factorize(owner)[0] % 5
    folds.to_csv(tmp_path / "by_patient.csv", index=False)
    by_patient = audit_split(tmp_path / "by_patient.csv", tables / "nih_id.csv")
    assert [fold.patient_auroc for fold in by_patient.folds] == [0.5] * 5
    assert not by_patient.leaks
