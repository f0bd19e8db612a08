"""Preparing with labels of every form and from several folders, end to end."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pydicom
import pytest
from command_lab import run
from small_siim import block, radiograph, without_key, write_labels, write_png, write_siim

import keras_pneumo as kp
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.prepared.folder import load_prepared, verify_files
from keras_pneumo.data.prepared.manifest import prepared_sha256
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import write_table

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_more").exists(), reason="no real radiographs beside the repository")

COUNT = 12


def write_images(folder, first=0, count=COUNT):
    for number in range(first, first + count):
        write_png(folder / f"i{number:02}.png", radiograph(number))
    return folder


def labels_only(folder, header="image,label,patient_id", first=0, positive=lambda number: number % 2):
    write_images(folder, first)
    rows = "".join(f"i{n:02}.png,{int(positive(n))},p{n}\n" for n in range(first, first + COUNT))
    (folder / "labels.csv").write_text(f"{header}\n{rows}")
    return folder


def test_a_table_of_labels_alone_makes_a_folder_for_classifiers(tmp_path):
    summary = prepare(labels_only(tmp_path / "data"), tmp_path / "out", [32], workers=1)
    assert (summary.images, summary.positive, summary.patients, summary.set_aside) == (12, 6, 12, 0)
    prepared = load_prepared(tmp_path / "out")
    verify_files(prepared, 32)
    assert not (tmp_path / "out" / "masks_32").exists()
    assert set(prepared.cases["source"]) == {"table of labels"}
    assert "encoded_pixels" not in prepared.truth
    assert "source" not in prepared.truth  # there is one only
    assert list(prepared.cases["patient_id"]) == [f"p{number}" for number in range(12)]
    assert prepared.manifest["patients"] == "table"
    assert prepared.manifest["labels"] == [
        {
            "source": "table of labels", "data_set": "table of labels", "file": "labels.csv", "positive": 6,
            "negative": 6, "image_column": "image", "label_column": "label",
        }
    ]  # fmt: skip
    assert any("6 of 6 positives have no mask" in note for note in summary.notes)
    with pytest.raises(PneumoError, match=r"6 of the 6 positives .* a segmenter can be neither"):
        prepared.encoded_pixels()
    again = prepare(tmp_path / "data", tmp_path / "out", [32, 64], workers=1)
    assert (again.rendered, again.prepared_sha256) == (12, summary.prepared_sha256)


def test_another_meaning_of_the_labels_is_another_folder(tmp_path):
    data = labels_only(tmp_path / "data")
    with (data / "labels.csv").open("a") as stream:
        stream.write("i12.png,unsure,p12\n")
    write_images(data, 12, 1)
    summary = prepare(data, tmp_path / "out", [32], workers=1)
    assert (summary.images, summary.set_aside) == (12, 1)
    assert "uncertain (row 14)" in (tmp_path / "out" / "quarantine.csv").read_text()
    with pytest.raises(PneumoError, match="the labels differ"):
        prepare(data, tmp_path / "out", [32], workers=1, options=LabelOptions(uncertain="positive"))
    other = prepare(data, tmp_path / "other", [32], workers=1, options=LabelOptions(uncertain="positive"))
    assert (other.images, other.positive) == (13, 7)
    record = json.loads((tmp_path / "other" / "manifest.json").read_text())["labels"][0]
    assert (record["uncertain"], record["uncertain_images"]) == ("positive", 1)


def test_masks_beside_images_are_drawn_and_no_radiographs(tmp_path):
    for number in range(COUNT):
        write_png(tmp_path / "data" / f"i{number:02}.img.png", radiograph(number))
        if number % 2:
            mask = radiograph(number) * 0
            mask[16:32, 8:24] = 255
            write_png(tmp_path / "data" / f"i{number:02}.mask.png", mask)
    with pytest.raises(PneumoError, match="6 images of 12 have no mask"):
        prepare(tmp_path / "data", tmp_path / "out", [32], workers=1)
    summary = prepare(tmp_path / "data", tmp_path / "out", [32], workers=1, options=LabelOptions(blank="negative"))
    assert (summary.images, summary.positive, summary.set_aside) == (12, 6, 0)
    cases = load_prepared(tmp_path / "out").cases
    assert set(cases["mask_pixels"]) == {0, 256 * 256}


def test_paths_name_images_whose_file_names_are_alike(tmp_path):
    rows = ["Path,Sex,Age,Frontal/Lateral,AP/PA,Pneumothorax"]
    for number in range(COUNT):
        path = f"train/patient{number:05}/study1/view1_frontal.jpg"
        write_png(tmp_path / "data" / path, radiograph(number))
        rows.append(f"CheXpert-v1.0-small/{path},Male,70,Frontal,AP,{number % 2}.0")
    (tmp_path / "data" / "train.csv").write_text("\n".join(rows))
    summary = prepare(tmp_path / "data", tmp_path / "out", [32], workers=1)
    assert (summary.images, summary.positive, summary.set_aside) == (12, 6, 0)
    case = load_prepared(tmp_path / "out").cases.iloc[0]
    assert (case["image_id"], case["patient_id"]) == ("patient00000-study1-view1_frontal", "patient00000")
    assert (case["sex"], case["age"], case["view"]) == ("M", 70, "AP")


def test_boxes_go_along_as_boxes(tmp_path):
    write_images(tmp_path / "data")
    rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(COUNT):
        finding, box = ("Pneumothorax,0", "1,2,11,22") if number % 2 else ("No finding,14", ",,,")
        rows += [f"i{number:02},{finding},{reader},{box}" for reader in ("R1", "R2")]
    (tmp_path / "data" / "annotations.csv").write_text("\n".join(rows))
    prepare(tmp_path / "data", tmp_path / "out", [32], workers=1)
    boxes = pd.read_csv(tmp_path / "out" / "boxes.csv")
    assert len(boxes) == 12
    assert tuple(boxes.iloc[0]) == ("i01", 1, 2, 10, 20)


def test_a_label_folder_that_cannot_be_read_is_refused_before_the_radiographs_are(tmp_path, monkeypatch):
    write_images(tmp_path / "data")
    (tmp_path / "data" / "notes.csv").write_text("case;score\n")
    monkeypatch.setattr("keras_pneumo.data.prepared.plan.scan", lambda *_: pytest.fail("radiographs were read"))
    with pytest.raises(PneumoError, match="case;score"):
        prepare(tmp_path / "data", tmp_path / "out", [32], workers=1)


# -- Several folders ---------------------------------------------------------------------------------------------------


def test_several_folders_are_sources(tmp_path):
    write_siim(tmp_path / "masks")
    labels_only(tmp_path / "labels", first=20)
    folders = [tmp_path / "masks", tmp_path / "labels"]
    summary = prepare(folders, tmp_path / "out", [32], workers=1)
    assert (summary.images, summary.positive, summary.set_aside) == (24, 12, 0)
    prepared = load_prepared(tmp_path / "out")
    verify_files(prepared, 32)
    assert prepared.cases["source"].value_counts().to_dict() == {"masks": 12, "labels": 12}
    assert prepared.manifest["sources"] == {
        "labels": {"images": 12, "positive": 6},
        "masks": {"images": 12, "positive": 6},
    }
    assert set(prepared.truth["source"]) == {"masks", "labels"}
    assert prepared.manifest["source_notes"] == []
    again = prepare(folders, tmp_path / "out", [32], workers=1)
    assert (again.rendered, again.prepared_sha256) == (0, summary.prepared_sha256)
    with pytest.raises(PneumoError, match="the folders differ"):
        prepare([folders[0], labels_only(tmp_path / "third", first=40)], tmp_path / "out", [32], workers=1)


def test_patients_of_files_count_where_another_folder_has_a_table(tmp_path):
    write_siim(tmp_path / "tags", kinds=("dicom",))
    for path in (tmp_path / "tags").rglob("*.dcm"):  # two files of each patient
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"tag-{int(dataset.PatientID[4:]) % 6}"
        dataset.save_as(path)
    labels_only(tmp_path / "table", first=20)
    summary = prepare([tmp_path / "tags", tmp_path / "table"], tmp_path / "out", [32], workers=1)
    assert summary.patients == 6 + 12


def test_label_and_source_that_go_together_are_said(tmp_path):
    labels_only(tmp_path / "sick", positive=lambda number: number < 10)
    labels_only(tmp_path / "well", first=20, positive=lambda number: number < 22)
    summary = prepare([tmp_path / "sick", tmp_path / "well"], tmp_path / "out", [32], workers=1)
    note = next(note for note in summary.notes if "go together" in note)
    assert "sick 83% of 12, well 17% of 12" in note
    assert "Cramer's V 0.67" in note  # chi2 = 24 * (100 - 4)^2 / 12^4 by hand: V = 96 / 144


def test_the_same_image_in_two_folders_is_one_patient_and_its_labels_are_compared(tmp_path):
    labels_only(tmp_path / "one")
    rows = [(f"n{number:02}", block(number) if number % 2 or number == 4 else "-1") for number in range(COUNT)]
    for number in range(COUNT):
        write_png(tmp_path / "two" / f"n{number:02}.png", radiograph(number))
    write_labels(tmp_path / "two" / "train-rle.csv", rows)
    summary = prepare([tmp_path / "one", tmp_path / "two"], tmp_path / "out", [32], workers=1)
    prepared = load_prepared(tmp_path / "out")
    assert summary.patients == 12
    patients = prepared.cases.set_index("image_id")["patient_id"]
    assert patients["i04"] == patients["n04"] == "p4"
    note = next(note for note in summary.notes if "more than one source" in note)
    assert note.startswith("12 radiographs are in more than one source. Their labels differ for 1: ")
    assert "i04 (one: 0) and n04 (two: 1)" in note
    assert prepared.manifest["source_notes"] == [note]


def test_equal_ids_in_two_folders_get_the_folders_names(tmp_path):
    labels_only(tmp_path / "a")
    labels_only(tmp_path / "b")
    (tmp_path / "second.csv").write_text((tmp_path / "b" / "labels.csv").read_text())
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "out", [32], workers=1)
    ids = set(load_prepared(tmp_path / "out").cases["image_id"])
    assert {"a-i00", "b-i00"} <= ids
    assert len(ids) == 24
    # One folder with two tables: two sources of the same images.
    both = prepare(
        [tmp_path / "a"] * 2, tmp_path / "twice", [32], [tmp_path / "a/labels.csv", tmp_path / "second.csv"], workers=1
    )
    assert both.images == 24
    assert both.patients == 12


def test_folders_and_tables_must_match_in_number(tmp_path):
    folders = [labels_only(tmp_path / name) for name in "abc"]
    with pytest.raises(PneumoError, match="3 folders and 2 --labels"):
        prepare(folders, tmp_path / "out", [32], [tmp_path / "x.csv"] * 2)


@needs_real
@pytest.mark.slow
def test_nih_labels_and_siim_labels_on_the_same_real_images(tmp_path):
    more = REAL / "siim_more"
    table = pd.read_csv(more / "images.csv", dtype=str)
    (tmp_path / "siim").mkdir()
    (tmp_path / "nih").mkdir()
    for row in table.itertuples():
        source = next(more.rglob(f"{row.ImageId}.png"))
        shutil.copy(source, tmp_path / "siim" / source.name)
        shutil.copy(source, tmp_path / "nih" / row.nih_name)
    shutil.copy(more / "train-rle.csv", tmp_path / "siim")
    table[["ImageId", "patient_id"]].to_csv(tmp_path / "siim" / "patients.csv", index=False)
    labels = [tmp_path / "siim" / "train-rle.csv", REAL / "siim_tables" / "Data_Entry_2017_v2020.csv.gz"]
    folders = [tmp_path / "siim", tmp_path / "nih"]
    summary = prepare(folders, tmp_path / "out", [64], labels, [], workers=1)
    prepared = load_prepared(tmp_path / "out")
    assert summary.images == 326
    assert summary.patients == 145
    known = table.set_index("ImageId")
    differing = int((known["pneumothorax"] != known["nih_label"]).sum())
    assert any(f"Their labels differ for {differing}: " in note for note in summary.notes)
    assert prepared.manifest["sources"]["siim"]["positive"] == 56


def test_a_folder_from_before_sources_keeps_its_tables(tmp_path):
    write_siim(tmp_path / "data")
    first = prepare(tmp_path / "data", tmp_path / "out", [32], workers=1)
    assert set(load_prepared(tmp_path / "out").cases["source"]) == {"SIIM-ACR"}
    # As it was written before: no column source in cases.csv, nothing of labels and sources in the manifest.
    path = tmp_path / "out" / "manifest.json"
    without_key(tmp_path / "out", [f"tag-{number}" for number in range(12)])
    manifest = json.loads(path.read_text())
    table = load_prepared(tmp_path / "out").cases.drop(columns="source")
    manifest["tables"]["cases.csv"] = write_table(tmp_path / "out" / "cases.csv", table)
    manifest["prepared_sha256"] = prepared_sha256(manifest["tables"], manifest["pixels"])
    for name in ("labels", "sources", "source_notes"):
        del manifest[name]
    path.write_text(json.dumps(manifest))
    again = prepare(tmp_path / "data", tmp_path / "out", [32, 64], workers=1)
    assert again.prepared_sha256 == manifest["prepared_sha256"] != first.prepared_sha256
    assert "source" not in load_prepared(tmp_path / "out").cases


# -- Command and front door --------------------------------------------------------------------------------------------


def test_the_command_takes_every_option_of_labels(tmp_path):
    data = tmp_path / "data"
    write_images(data)
    answers = ["ptx", "none", "unsure", "", *["ptx", "none"] * 4]
    rows = "".join(f"i{number:02},{answer}\n" for number, answer in enumerate(answers))
    (data / "reading.csv").write_text("file no,answer\n" + rows.replace("ptx", "yes").replace("none", "no"))
    command = ["prepare", "data", "--out", "out", "--size", "32", "--workers", "1", "--image-column", "file no"]
    refusal = run(*command, "--label-column", "answer", cwd=tmp_path)
    assert refusal.returncode == 2
    assert "--blank negative" in refusal.stderr
    done = run(*command, "--label-column", "answer", "--blank", "ignore", "--uncertain", "positive", cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # the blank one is set aside
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())["labels"][0]
    assert (record["positive"], record["negative"], record["uncertain"]) == (6, 5, "positive")
    assert (record["blank"], record["blank_rows"], record["label_column"]) == ("ignore", 1, "answer")


def test_the_front_door_takes_labels_and_several_folders(tmp_path):
    folders = [labels_only(tmp_path / "a"), labels_only(tmp_path / "b", first=20)]
    with pytest.warns(UserWarning, match="12 of 12 positives have no mask"):
        prepared = kp.prepare(folders, tmp_path / "out", 32, labels=[folder / "labels.csv" for folder in folders])
    assert set(prepared.cases["source"]) == {"a", "b"}
    with pytest.raises(PneumoError, match="--uncertain is ignore, positive or negative"):
        kp.prepare(folders[0], tmp_path / "other", 32, uncertain="never")


def test_a_segmenter_is_refused_where_there_are_no_masks(tmp_path):
    with pytest.warns(UserWarning, match="no mask"):
        prepared = kp.prepare(labels_only(tmp_path / "a"), tmp_path / "out", 32)
    with pytest.raises(PneumoError, match="Train a classifier, or prepare only data with masks"):
        prepared.dataset("train", image_size=32, batch_size=2, masks=True)
