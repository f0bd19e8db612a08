"""Tests of what a run has learned from: its table, and how other images are compared with it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.labels.pseudonyms import PseudonymKey, patient_hash
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.provenance import (
    COLUMNS,
    LEARNED,
    LEARNED_SHA256,
    check_held_out,
    compare_images,
    describe_images,
    image_keys,
    learned_images,
    used_images,
    with_earlier,
    without_names,
)
from keras_pneumo.storage.files import write_table


def keys(*rows):
    """Rows of (image, patient, file, pixels, synthetic)."""
    names = ["image_id", "patient_id", "source_sha256", "pixels_sha256", "synthetic"]
    return pd.DataFrame(rows, columns=names).astype({"synthetic": int})


def learned(*rows, subset="train"):
    return keys(*rows).assign(subset=subset, earlier=0, difference_hash="")[list(COLUMNS)]


def same(seen, images):
    """Names of what each image shares, without ``same_``."""
    table = compare_images(seen, images)
    columns = [name for name in table if name.startswith("same_")]
    return [{name.removeprefix("same_") for name in columns if row[name]} for _, row in table.iterrows()]


@pytest.mark.parametrize(
    ("image", "shared"),
    [
        (("b", "Q", "f2", "p2", 0), set()),
        (("a", "Q", "f2", "p2", 0), {"image"}),
        (("a.png", "Q", "f2", "p2", 0), {"image"}),
        (("b", "P", "f2", "p2", 0), {"patient"}),
        (("b", "Q", "f1", "p2", 0), {"file"}),
        (("b", "Q", "f2", "p1", 0), {"pixels"}),
        (("a", "P", "f1", "p1", 0), {"image", "patient", "file", "pixels"}),
        (("a", "P", "f1", "p2", 1), {"file"}),  # a phantom's ids say nothing about a radiograph's
        (("b", "", "", "", 0), set()),
        (("b", "7", "f2", "p2", 0), {"patient"}),  # NIH's own way of writing 00000007
        (("00000007_003", "", "f2", "p2", 0), {"patient"}),
        (("00000008_003", "image-00000008_003", "f2", "p2", 0), set()),
    ],
)
@pytest.mark.parametrize("travels", [False, True])
def test_images_are_compared_by_file_pixels_image_and_patient(image, shared, travels):
    seen = learned(("a", "P", "f1", "p1", 0), ("c", "00000007", "", "", 0), ("d", "", "", "", 0))
    assert same(without_names(seen) if travels else seen, keys(image)) == [shared]


def test_a_table_that_travels_holds_no_id():
    seen = learned(("1.2.3", "00000007", "f1", "p1", 0))
    text = without_names(seen).to_csv()
    assert "1.2.3" not in text
    assert "00000007" not in text
    assert "f1" in text


ROWS = st.lists(st.tuples(*[st.sampled_from(["", "1", "01", "x", "y", "00000001_000"])] * 4, st.sampled_from([0, 1])))


@given(ROWS, ROWS)
def test_comparing_is_symmetric_and_every_known_image_is_found(first, second):
    one, other = keys(*first), keys(*second)
    assert any(same(one, other)) == any(same(other, one))
    for row, shared in zip(first, same(one, one), strict=True):
        assert "image" in shared
        assert ("file" in shared) == bool(row[2])


def test_images_of_two_runs_stand_once_where_they_were_used_alike():
    first = learned(("a", "P", "f", "p", 0), ("b", "Q", "g", "q", 0))
    again = with_earlier(first, first)
    pd.testing.assert_frame_equal(again, first)
    other = with_earlier(learned(("b", "Q", "g", "q", 0), ("c", "R", "h", "r", 0)), first.assign(earlier=1))
    assert other[["image_id", "earlier"]].to_numpy().tolist() == [["b", 0], ["c", 0], ["a", 2]]


# ---------------------------------------------------------------- of run folders


def run_of(folder, prepared, fold=0, **record):
    """A run folder as a training leaves it, less its weights."""
    record = {"split_sha256": prepared.manifest["split_sha256"], "synthetic": True} | record
    return SimpleNamespace(folder=folder, record=record, experiment=CLASSIFIER.replace(fold=fold))


def test_a_run_of_an_earlier_version_is_known_by_its_prepared_folder(tmp_path, prepared_folder, monkeypatch):
    prepared = load_prepared(prepared_folder)
    for command in (
        f"keras-pneumo train e.py --data {prepared_folder}",
        f"train --prepared={prepared_folder} --data x",
    ):
        table = learned_images(run_of(tmp_path, prepared, command=command))
        assert set(table["image_id"]) == set(prepared.subset("train")) | set(prepared.subset("validation"))
        assert set(table["patient_id"]) <= set(prepared.cases["patient_id"])
        assert (table["source_sha256"].str.len() == 64).all()
        assert (table["pixels_sha256"].str.len() == 64).all()
        assert set(table["synthetic"]) == {1}
    assert len(learned_images(run_of(tmp_path, prepared, fold=1, command=""), [prepared])) == len(table)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/siim").symlink_to(prepared_folder)
    assert len(learned_images(run_of(tmp_path, prepared, command="keras-pneumo train e.py --data raw/siim"))) == len(
        table
    )


@pytest.mark.parametrize("command", ["", "keras-pneumo train e.py --data /no/where", "a 'torn quote"])
def test_what_cannot_be_known_is_said(tmp_path, prepared_folder, command):
    with pytest.raises(PneumoError, match=r"not known which images .* earlier version.*Put that folder back"):
        learned_images(run_of(tmp_path, load_prepared(prepared_folder), command=command))


def test_a_table_that_was_changed_or_lost_is_refused(tmp_path, prepared_folder):
    prepared = load_prepared(prepared_folder)
    table = used_images(prepared, 0)
    run = run_of(tmp_path, prepared, **{LEARNED_SHA256: write_table(tmp_path / LEARNED, table)})
    pd.testing.assert_frame_equal(learned_images(run), table, check_dtype=False)
    path = tmp_path / LEARNED
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PneumoError, match="was changed after the training"):
        learned_images(run)
    path.unlink()
    with pytest.raises(PneumoError, match="cannot be read"):
        learned_images(run, [prepared])


def test_a_start_from_the_same_split_and_fold_is_allowed_and_another_fold_is_not(tmp_path, prepared_folder):
    prepared = load_prepared(prepared_folder)
    run = run_of(tmp_path, prepared)
    table = used_images(prepared, 0)
    result = check_held_out(run, table, prepared, 0)
    held_out = len(prepared.subset("validation")) + len(prepared.subset("test"))
    assert (result.learned, result.held_out) == (len(table), held_out)
    assert result.compared["image"] == len(table)
    assert result.compared["file"] == table["source_sha256"].nunique()
    assert result.compared["patient"] == 0  # of phantoms
    radiographs = check_held_out(run, table.assign(synthetic=0), prepared, 0)
    assert radiographs.compared["patient"] == table["patient_id"].nunique()
    with pytest.raises(PneumoError, match="holds out"):
        check_held_out(run, table, prepared, 1)
    with pytest.raises(PneumoError, match="holds out"):  # validation of another split may not be validation here
        check_held_out(run_of(tmp_path, prepared, split_sha256="another"), table, prepared, 0)


def test_what_is_shared_is_refused_by_name(tmp_path, prepared_folder):
    phantoms = load_prepared(prepared_folder)
    prepared = replace(phantoms, manifest=phantoms.manifest | {"synthetic": False})
    run = run_of(tmp_path, prepared, split_sha256="another")
    test = image_keys(prepared, prepared.subset("test"))
    blank = dict.fromkeys(("source_sha256", "pixels_sha256", "difference_hash"), "")
    none = test.assign(image_id="other", patient_id="", **blank, subset="train", earlier=1)[list(COLUMNS)]
    assert check_held_out(run, none, prepared, 0).compared == {"file": 0, "pixels": 0, "image": 1, "patient": 0}

    image = none.assign(pixels_sha256=test["pixels_sha256"])
    first = test["image_id"].iloc[0]
    with pytest.raises(PneumoError, match=rf"learned from {len(test)} images of them \({first}.* more\)\. Start from"):
        check_held_out(run, image, prepared, 0)

    patient = none.assign(patient_id=test["patient_id"]).iloc[:1]
    name = test["patient_id"].iloc[0]
    with pytest.raises(PneumoError, match=rf"other images of 1 patient of them \({name}; .*same number in two hosp"):
        check_held_out(run, patient, prepared, 0)
    check_held_out(run, patient.assign(synthetic=1), prepared, 0)
    check_held_out(run, patient, phantoms, 0)


@pytest.mark.parametrize("own", [b"a", b"b"])
def test_a_start_says_where_patients_cannot_be_compared(tmp_path, prepared_folder, own):
    def named(secret, names):
        return [PseudonymKey(secret * 32).pseudonym(patient_hash(name)) for name in names]

    phantoms = load_prepared(prepared_folder)
    cases = phantoms.cases.assign(patient_id=named(own, phantoms.cases["patient_id"]))
    prepared = replace(phantoms, cases=cases, manifest=phantoms.manifest | {"synthetic": False})
    run = run_of(tmp_path, prepared, split_sha256="another")
    table = learned(("else", named(b"a", ["someone else"])[0], "f", "p", 0))
    result = check_held_out(run, table, prepared, 0)
    held_out = len(prepared.subset("validation")) + len(prepared.subset("test"))
    assert (result.other_key, bool(result.caution)) == ((0, False) if own == b"a" else (held_out, True))
    assert f"Patients of {held_out} of {held_out} images" in result.caution or own == b"a"
    assert check_held_out(run, table, phantoms, 0).caution == ""  # of phantoms no patients are compared


def test_a_folder_that_joins_phantoms_and_radiographs_counts_as_radiographs(prepared_copy):
    path = prepared_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    assert describe_images(load_prepared(prepared_copy), 1) == "synthetic phantoms (1 image)"
    manifest["sources"] = {"A": {}, "B": {}}
    path.write_text(json.dumps(manifest))
    prepared = load_prepared(prepared_copy)
    assert set(image_keys(prepared)["synthetic"]) == {0}
    assert describe_images(prepared, 3000) == "A, B, synthetic phantoms among them (3,000 images)"
