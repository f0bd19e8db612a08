"""Makes and checks the split by patient, from a seed, identified by its hash.

In comes the table of cases, out comes ``split.csv``: a test subset held out for good and folds over the rest, no
patient in two of them, label and mask size spread evenly. The order is a function of the seed and the patient ids
alone, never of the rows' order or a library's random numbers, so the same data give the same split for ever.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from keras_pneumo.data.labels.pseudonyms import key_free_names
from keras_pneumo.errors import PneumoError

if TYPE_CHECKING:
    import pandas as pd

SUBSETS = ("train", "validation", "test")
COLUMNS = ("image_id", "patient_id", "pneumothorax", "subset", "fold")

_SIZE_CLASSES = 3
"""Positives are spread by thirds of mask size: small, medium, large."""


def make_split(cases: pd.DataFrame, seed: int = 0, test_fraction: float = 0.2, folds: int = 5) -> pd.DataFrame:
    """Split cases by patient into a test subset and ``folds`` folds of the rest; fold 0 is the validation subset.

    Patients are taken one after another, those with most images first and otherwise in an order drawn from the seed;
    each goes where it brings the counts of negatives, small, medium and large positives, images and patients nearest
    to the wanted shares (least chi-square distance). When there are too few patients of a class for every fold to
    have both classes, fewer folds are made, and ``split.attrs["notes"]`` says so.

    Args:
        cases: columns image_id, patient_id, pneumothorax (0 or 1) and mask_pixels.
        seed: any whole number.
        test_fraction: share of the test subset, between 0 and 1.
        folds: at least 2.

    Returns:
        A row per case, sorted by image_id, with the columns :data:`COLUMNS`; fold is -1 in the test subset.

    Raises:
        PneumoError: an image occurs twice, or even with two folds a subset would have one class only.
    """
    if not 0.0 < test_fraction < 1.0 or folds < 2:
        raise PneumoError(
            f"A split needs a test fraction between 0 and 1 and at least 2 folds, not {test_fraction}, {folds}."
        )
    twice = cases["image_id"][cases["image_id"].duplicated()]
    if len(twice):
        raise PneumoError(f"The image {twice.iloc[0]} occurs twice in the table of cases. Prepare the folder again.")
    table = cases.sort_values("image_id", ignore_index=True)
    strata = _strata(table)
    for count in range(folds, 1, -1):
        bins = _assign(table["patient_id"], strata, seed, [test_fraction] + [(1 - test_fraction) / count] * count)
        if _every_bin_has_both(bins, table["pneumothorax"], count + 1):
            break
    else:
        raise PneumoError(_too_few(table))
    subset = np.where(bins == 0, "test", np.where(bins == 1, "validation", "train"))
    split = table[["image_id", "patient_id", "pneumothorax"]].assign(subset=subset, fold=bins - 1)
    if count < folds:
        reason = f"{folds} folds and a test subset, each with both classes, cannot be made from {_counts(table)}"
        split.attrs["notes"] = [f"Only {count} folds were made: {reason}."]
    return split


def test_only_split(cases: pd.DataFrame) -> pd.DataFrame:
    """The split of an external test set: every case is in the test subset, so nothing can be trained or fitted on it.

    Args:
        cases: columns image_id, patient_id and pneumothorax; one class is enough.

    Returns:
        A row per case, sorted by image_id, with the columns :data:`COLUMNS`; fold is -1.
    """
    table = cases.sort_values("image_id", ignore_index=True)
    return table[["image_id", "patient_id", "pneumothorax"]].assign(subset="test", fold=-1)


def is_test_only(split: pd.DataFrame) -> bool:
    """Whether a split is that of an external test set."""
    return len(split) > 0 and bool((split["subset"] == "test").all())


def split_sha256(split: pd.DataFrame) -> str:
    """The hash that identifies the split: SHA-256 over its rows by image id, the same for every key of pseudonyms."""
    table = split.sort_values("image_id")[list(COLUMNS)].astype({"pneumothorax": int, "fold": int})
    table = table.assign(patient_id=key_free_names(table["image_id"], table["patient_id"]))
    return hashlib.sha256(table.to_csv(index=False, header=False, lineterminator="\n").encode()).hexdigest()


def check_split(split: pd.DataFrame) -> None:
    """Check that a split has no leak and can be scored.

    Raises:
        PneumoError: a patient is in two subsets or two folds, an image occurs twice, a subset is unknown or
            missing, or a subset has one class only. Of an external test set one class is enough.
    """
    missing = [name for name in COLUMNS if name not in split]
    if missing:
        raise PneumoError(f"The split lacks the column {missing[0]}. Make it again with prepare.")
    twice = split["image_id"][split["image_id"].duplicated()]
    if len(twice):
        raise PneumoError(f"The split names the image {twice.iloc[0]} twice. Make it again with prepare.")
    unknown = sorted(set(split["subset"]) - set(SUBSETS))
    if unknown:
        raise PneumoError(f"The split has the subset {unknown[0]!r}; only {', '.join(SUBSETS)} are known.")
    for name in ("subset", "fold"):
        shared = split.groupby("patient_id")[name].nunique()
        shared = shared[shared > 1]
        if len(shared):
            shown = ", ".join(map(str, shared.index[:5])) + (", ..." if len(shared) > 5 else "")
            raise PneumoError(
                f"{len(shared)} patients are in more than one {name} of the split ({shown}), so the test would be no "
                "test. Make the split again with prepare and a patient table."
            )
    for subset in () if is_test_only(split) else SUBSETS:
        labels = split.loc[split["subset"] == subset, "pneumothorax"]
        if labels.nunique() < 2:
            raise PneumoError(
                f"The {subset} subset has {int((labels == 1).sum())} positive and {int((labels == 0).sum())} negative "
                "images; both classes are needed. Prepare more images."
            )


def subset_ids(split: pd.DataFrame, subset: str, fold: int | None = None) -> list[str]:
    """Image ids of one subset, in the table's order.

    Args:
        split: a table as :func:`make_split` makes it.
        subset: ``train``, ``validation`` or ``test``.
        fold: when given, validation is this fold and train all other folds; test stays what it is.

    Raises:
        PneumoError: there is no such subset or fold.
    """
    if subset not in SUBSETS:
        raise PneumoError(f"There is no subset {subset!r}; there are {', '.join(SUBSETS)}.")
    if subset == "test" or fold is None:
        chosen = split["subset"] == subset
    else:
        present = sorted(set(split["fold"]) - {-1})
        if not present:
            raise PneumoError(
                "This folder was prepared as an external test set: none of its images is for training or validation. "
                "Prepare the radiographs with keras-pneumo prepare, into another folder."
            )
        if fold not in present:
            raise PneumoError(f"There is no fold {fold}; this split has the folds {', '.join(map(str, present))}.")
        chosen = (split["fold"] == fold) if subset == "validation" else (split["fold"] != fold) & (split["fold"] >= 0)
    return [str(image_id) for image_id in split.loc[chosen, "image_id"]]


def _strata(table: pd.DataFrame) -> np.ndarray:
    """Class of each case: 0 for negatives, 1 to 3 for positives by thirds of mask size; shape (cases,)."""
    positive = (table["pneumothorax"] == 1).to_numpy()
    sizes = table["mask_pixels"].to_numpy(dtype=np.float64)
    edges = np.quantile(sizes[positive], [1 / _SIZE_CLASSES, 2 / _SIZE_CLASSES]) if positive.any() else np.zeros(2)
    return np.where(positive, 1 + np.searchsorted(edges, sizes), 0)


def _assign(patients: pd.Series, strata: np.ndarray, seed: int, shares: list[float]) -> np.ndarray:
    """A bin for each case, the same for all cases of a patient; shape (cases,), values 0 to len(shares) - 1."""
    names, index = np.unique(patients.to_numpy(dtype=str), return_inverse=True)
    # Images per class, then images in all and the patient itself, so that subsets come out right in size as well.
    counts = np.zeros((len(names), _SIZE_CLASSES + 3))
    np.add.at(counts, (index, strata), 1)
    counts[:, -2] = counts.sum(axis=1)
    counts[:, -1] = 1
    wanted = np.outer(shares, counts.sum(axis=0))  # (bins, classes)
    divisor = np.maximum(wanted, 1e-9)
    filled = np.zeros_like(wanted)
    ranks = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=lambda patient: (-counts[patient, -2], ranks[patient]))
    bin_of = np.zeros(len(names), dtype=np.int64)
    for patient in order:
        added = counts[patient]
        # Change of sum((filled - wanted)^2 / wanted) when this patient joins each bin.
        cost = (added * (2 * (filled - wanted) + added) / divisor).sum(axis=1)
        best = int(np.argmin(np.round(cost, 9)))
        filled[best] += added
        bin_of[patient] = best
    return bin_of[index]


def _every_bin_has_both(bins: np.ndarray, labels: pd.Series, count: int) -> bool:
    values = labels.to_numpy()
    return all(len(np.unique(values[bins == number])) == 2 for number in range(count))


def _counts(table: pd.DataFrame) -> str:
    positive = table["pneumothorax"] == 1
    return (
        f"{len(table)} images of {table['patient_id'].nunique()} patients: {int(positive.sum())} positive of "
        f"{table.loc[positive, 'patient_id'].nunique()} patients, {int((~positive).sum())} negative of "
        f"{table.loc[~positive, 'patient_id'].nunique()} patients"
    )


def _too_few(table: pd.DataFrame) -> str:
    return (
        f"A test, a validation and a training subset, each with both classes, cannot be made from {_counts(table)}. "
        "At least three patients with and three without pneumothorax are needed: prepare more images."
    )
