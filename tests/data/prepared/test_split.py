"""The split: patients kept together, classes spread, the same for ever, and refused when it would be worthless."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import read_labels
from keras_pneumo.data.labels.patients import read_patients
from keras_pneumo.data.prepared.split import COLUMNS, check_split, make_split, split_sha256, subset_ids
from keras_pneumo.errors import PneumoError

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared")) / "siim_tables"


def cases(patients=60, seed=0, positive=0.4):
    """One to four images per patient; labels and mask sizes at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        for number in range(int(rng.integers(1, 5))):
            is_positive = int(rng.random() < positive)
            rows.append(
                (f"{patient}.{number}", f"p{patient}", is_positive, is_positive * int(rng.integers(50, 90_000)))
            )
    return pd.DataFrame(rows, columns=["image_id", "patient_id", "pneumothorax", "mask_pixels"])


def test_columns_rows_and_subsets():
    table = cases()
    split = make_split(table)
    assert tuple(split.columns) == COLUMNS
    assert sorted(split["image_id"]) == sorted(table["image_id"])
    assert list(split["image_id"]) == sorted(split["image_id"])
    assert set(split.loc[split["subset"] == "test", "fold"]) == {-1}
    assert set(split.loc[split["subset"] == "validation", "fold"]) == {0}
    assert set(split.loc[split["subset"] == "train", "fold"]) == {1, 2, 3, 4}
    assert "notes" not in split.attrs
    check_split(split)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), data_seed=st.integers(0, 10_000), patients=st.integers(30, 90))
def test_no_patient_in_two_folds_and_order_of_rows_is_of_no_account(seed, data_seed, patients):
    table = cases(patients, data_seed)
    split = make_split(table, seed)
    assert (split.groupby("patient_id")["fold"].nunique() == 1).all()
    shuffled = table.sample(frac=1, random_state=seed)
    assert split_sha256(make_split(shuffled, seed)) == split_sha256(split)


def test_classes_and_sizes_are_spread():
    table = cases(400, seed=3)
    split = make_split(table, seed=1).merge(table[["image_id", "mask_pixels"]])
    share = table["pneumothorax"].mean()
    assert abs((split["subset"] == "test").mean() - 0.2) < 0.01
    for _, fold in split.groupby("fold"):
        assert abs(fold["pneumothorax"].mean() - share) < 0.02
        sizes = fold.loc[fold["pneumothorax"] == 1, "mask_pixels"]
        assert abs((sizes < 30_000).mean() - 1 / 3) < 0.1
        assert abs((sizes > 60_000).mean() - 1 / 3) < 0.1


def test_seeds_differ():
    table = cases()
    assert split_sha256(make_split(table, 0)) != split_sha256(make_split(table, 1))


def test_the_same_split_for_ever():
    # Written down once: a change here silently unfreezes every published result.
    assert split_sha256(make_split(cases(), 7)) == "a7bfa08cbe1b9ec22932df6c65e5af824b742cf1f099852c6be80c7d07746b86"


def test_hash_is_over_sorted_rows():
    split = make_split(cases())
    assert split_sha256(split.sample(frac=1, random_state=0)) == split_sha256(split)
    changed = split.copy()
    changed.loc[0, "subset"] = "train" if changed.loc[0, "subset"] != "train" else "test"
    assert split_sha256(changed) != split_sha256(split)


def test_hash_survives_the_csv(tmp_path):
    split = make_split(cases())
    split.to_csv(tmp_path / "split.csv", index=False)
    again = pd.read_csv(tmp_path / "split.csv", dtype={"image_id": str, "patient_id": str})
    assert split_sha256(again) == split_sha256(split)


def test_row_27_fewer_folds_are_made_and_noted():
    # Four positive patients: the test subset and three folds.
    rows = [(f"{i}", f"p{i}", int(i < 4), 100 * int(i < 4)) for i in range(40)]
    split = make_split(pd.DataFrame(rows, columns=["image_id", "patient_id", "pneumothorax", "mask_pixels"]))
    assert set(split["fold"]) == {-1, 0, 1, 2}
    assert "Only 3 folds were made" in split.attrs["notes"][0]
    assert "4 positive of 4 patients" in split.attrs["notes"][0]
    check_split(split)


@pytest.mark.parametrize("positive", [0, 1, 2, 40, 39])
def test_row_27_too_few_of_a_class_is_said_with_the_counts(positive):
    rows = [(f"{i}", f"p{i}", int(i < positive), 100 * int(i < positive)) for i in range(40)]
    with pytest.raises(PneumoError, match=f"40 images of 40 patients: {positive} positive"):
        make_split(pd.DataFrame(rows, columns=["image_id", "patient_id", "pneumothorax", "mask_pixels"]))


def test_one_patient_cannot_be_split():
    rows = [(f"{i}", "p", i % 2, 100 * (i % 2)) for i in range(40)]
    with pytest.raises(PneumoError, match="of 1 patients"):
        make_split(pd.DataFrame(rows, columns=["image_id", "patient_id", "pneumothorax", "mask_pixels"]))


@pytest.mark.parametrize("options", [{"test_fraction": 0.0}, {"test_fraction": 1.0}, {"folds": 1}])
def test_options_that_make_no_split(options):
    with pytest.raises(PneumoError, match="between 0 and 1 and at least 2 folds"):
        make_split(cases(), **options)


def test_an_image_twice_is_refused():
    table = pd.concat([cases(), cases().head(1)])
    with pytest.raises(PneumoError, match="twice"):
        make_split(table)


def test_row_13_patient_in_two_subsets_is_refused_by_name():
    split = make_split(cases())
    patient = split.loc[split["subset"] == "test", "patient_id"].iloc[0]
    split.loc[split.index[split["subset"] == "train"][0], "patient_id"] = patient
    with pytest.raises(PneumoError, match="more than one subset") as error:
        check_split(split)
    assert patient in str(error.value)


def test_patient_in_two_folds_is_refused():
    split = make_split(cases())
    two = split.index[split["fold"] == 1][0], split.index[split["fold"] == 2][0]
    split.loc[list(two), "patient_id"] = "torn"
    with pytest.raises(PneumoError, match=r"more than one fold .*torn"):
        check_split(split)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda split: split.drop(columns="fold"), "lacks the column fold"),
        (lambda split: pd.concat([split, split.head(1)]), "twice"),
        (lambda split: split.assign(subset=split["subset"].replace("test", "exam")), "'exam'"),
        (
            lambda split: split.assign(pneumothorax=(split["subset"] != "test") * split["pneumothorax"]),
            "test subset has 0",
        ),
        (lambda split: split[split["subset"] != "validation"], "validation subset has 0 positive and 0 negative"),
    ],
)
def test_worthless_splits_are_refused(change, part):
    with pytest.raises(PneumoError, match=part):
        check_split(change(make_split(cases())))


def test_subsets_by_fold():
    split = make_split(cases())
    assert subset_ids(split, "validation") == subset_ids(split, "validation", fold=0)
    assert subset_ids(split, "train") == subset_ids(split, "train", fold=0)
    everything = set(split["image_id"]) - set(subset_ids(split, "test"))
    seen = []
    for fold in range(5):
        train, validation = set(subset_ids(split, "train", fold)), subset_ids(split, "validation", fold)
        assert train | set(validation) == everything
        assert not train & set(validation)
        assert subset_ids(split, "test", fold) == subset_ids(split, "test")
        seen += validation
    assert sorted(seen) == sorted(everything)


def test_unknown_subset_or_fold():
    split = make_split(cases())
    with pytest.raises(PneumoError, match="no subset 'exam'"):
        subset_ids(split, "exam")
    for fold in (5, -1):
        with pytest.raises(PneumoError, match=f"no fold {fold}; this split has the folds 0, 1, 2, 3, 4"):
            subset_ids(split, "train", fold)


@pytest.mark.skipif(not REAL.exists(), reason="no real tables beside the repository")
def test_the_real_data_are_spread_to_a_tenth_of_a_percent():
    labels, patients = read_labels(REAL / "train-rle.csv.gz"), read_patients(REAL / "nih_id.csv")
    rows = [(i, patients[i], int(label.positive), rle.area(label.runs)) for i, label in labels.images.items()]
    split = make_split(pd.DataFrame(rows, columns=["image_id", "patient_id", "pneumothorax", "mask_pixels"]))
    check_split(split)
    assert split["patient_id"].nunique() == 6_171
    assert abs((split["subset"] == "test").mean() - 0.2) < 0.001
    for _, fold in split.groupby("fold"):
        assert abs(fold["pneumothorax"].mean() - 2_669 / 12_047) < 0.001
