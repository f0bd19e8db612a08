"""Tests of the comparison of a prepared folder with the images that a run has learned from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.labels.pseudonyms import PseudonymKey, patient_hash
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.inference.contamination import FILE, compare_with, contamination_by
from keras_pneumo.inference.provenance import used_images, without_names

SHARES = ["same_file", "same_pixels", "same_image", "same_patient", "near_duplicate"]


@pytest.fixture
def prepared(prepared_folder):
    """The phantoms, as if they were radiographs, so that patients are compared."""
    phantoms = load_prepared(prepared_folder)
    return replace(phantoms, manifest=phantoms.manifest | {"synthetic": False})


def blank(learned, *keep):
    """What was learned from, by the named columns only."""
    empty = {name: "" for name in ("source_sha256", "pixels_sha256", "difference_hash") if name not in keep}
    others = {name: [f"other {n}" for n in range(len(learned))] for name in ("image_id", "patient_id")}
    return learned.assign(**empty, **{name: values for name, values in others.items() if name not in keep})


def test_at_home_exactly_train_and_validation_are_learned_from(prepared):
    learned = used_images(prepared, 0)
    ids = prepared.cases["image_id"].tolist()
    found = compare_with(learned, prepared, ids)
    used = set(prepared.subset("train", fold=0)) | set(prepared.subset("validation", fold=0))
    assert found.table["image_id"].tolist() == ids
    assert found.shared.tolist() == [image_id in used for image_id in ids]
    assert found.learned == len(used)
    assert found.sentences == [
        f"{len(used)} of {len(ids)} images are or may be among the {len(used)} that were learned from "
        f"(the same file: {len(used)})."
    ]


@pytest.mark.parametrize(
    ("column", "share"),
    [
        ("source_sha256", "same_file"),
        ("pixels_sha256", "same_pixels"),
        ("image_id", "same_image"),
        ("patient_id", "same_patient"),
        ("difference_hash", "near_duplicate"),
    ],
)
@pytest.mark.parametrize("travels", [False, True])
def test_each_key_alone_is_found(prepared, column, share, travels):
    learned = blank(used_images(prepared, 0), column).iloc[:3]
    learned = without_names(learned) if travels else learned
    found = compare_with(learned, prepared, prepared.cases["image_id"].tolist())
    shown = found.table[SHARES].any()
    assert [name for name in SHARES if shown[name]] == [share]
    assert 3 <= found.shared.sum() <= 12
    assert found.without_hash == (0 if column == "difference_hash" else 3)
    assert any("difference hash" in text for text in found.sentences)


def test_of_other_images_none_is_found_and_the_table_says_how_near_they_are(prepared, tmp_path):
    test = prepared.subset("test")
    patients = prepared.cases.set_index("image_id")["patient_id"]
    learned = used_images(prepared, 0)
    assert not set(patients[test]) & set(learned["patient_id"])
    found = compare_with(learned, prepared, test)
    assert not found.shared.any()
    assert found.sentences == [f"None of the {len(test)} images is among the {len(learned)} that were learned from."]
    written = pd.read_csv(found.write(tmp_path))
    assert (tmp_path / FILE).is_file()
    assert written["image_id"].tolist() == test
    assert (written["nearest_bits"] > 40).all()
    assert (written[SHARES] == 0).all(axis=None)


def test_what_is_not_known_is_said_and_nothing_is_called_shared(prepared, tmp_path):
    run = SimpleNamespace(folder=tmp_path, record={"split_sha256": "f" * 64}, experiment=CLASSIFIER, unlisted_images="")
    found = contamination_by([run], prepared)
    assert not found.shared.any()
    assert len(found.table) == len(prepared.cases)
    (sentence,) = found.sentences
    assert sentence.startswith("It cannot be checked whether images here were learned from. It is not known which")
    assert np.all(pd.read_csv(found.write(tmp_path))["nearest_bits"].isna())


def with_pseudonyms(table, secret):
    """The table with pseudonyms of its patients, of one key; None: hashes without one."""
    key = PseudonymKey(secret * 32).pseudonym if secret else str
    return table.assign(patient_id=[key(patient_hash(name)) for name in table["patient_id"]])


@pytest.mark.parametrize("travels", [False, True])
@pytest.mark.parametrize(
    ("learned_with", "here", "compared"),
    [(b"a", b"a", True), (b"a", b"b", False), (b"a", None, False), (None, b"a", False), (None, None, True)],
)
def test_pseudonyms_of_other_keys_are_not_compared_and_it_is_said(prepared, learned_with, here, compared, travels):
    learned = with_pseudonyms(blank(used_images(prepared, 0), "patient_id").iloc[:3], learned_with)
    learned = without_names(learned) if travels else learned
    folder = replace(prepared, cases=with_pseudonyms(prepared.cases, here))
    found = compare_with(learned, folder, folder.cases["image_id"].tolist())
    total = len(prepared.cases)
    assert found.table["same_patient"].any() == compared
    assert found.other_key == (0 if compared else total)
    said = [text for text in found.sentences if "different keys" in text]
    assert [text.partition(" could")[0] for text in said] == (
        [] if compared else [f"Patients of {total} of {total} images"]
    )


def test_what_else_is_shared_is_found_where_keys_differ(prepared):
    learned = with_pseudonyms(used_images(prepared, 0), b"a")
    folder = replace(prepared, cases=with_pseudonyms(prepared.cases, b"b"))
    found = compare_with(learned, folder, folder.cases["image_id"].tolist())
    assert found.shared.sum() == len(learned)
    assert not found.table["same_patient"].any()
    assert found.other_key == len(folder.cases)
