"""Metadata-only baselines, on tables small enough to check by hand and on the real tables."""

import numpy as np
import pytest
from board_lab import REAL, needs_real
from scipy import special

from keras_pneumo.evaluation.board.baselines import (
    age_sex_view,
    all_empty,
    baselines,
    majority,
    patient_only,
    times_imaged,
)
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.scoring import metrics

TABLE = """image_id,patient_id,subset,pneumothorax,sex,age,view
a,p,train,1,M,60,PA
b,p,train,0,F,50,AP
c,q,train,0,M,40,PA
d,r,validation,0,F,,PA
e,p,test,1,M,60,PA
f,q,test,0,,20,
g,new,test,1,F,70,AP
"""


def truth_of(tmp_path, text=TABLE):
    path = tmp_path / "t.csv"
    path.write_text(text)
    return read_truth(path)


def test_by_hand(tmp_path):
    truth = truth_of(tmp_path)
    assert majority(truth).probability.tolist() == [0.25] * 3
    assert all_empty(truth).probability.tolist() == [0.0] * 3
    assert all_empty(truth).outlines_nothing
    assert patient_only(truth).probability.tolist() == [0.5, 0.0, 0.25]
    probability = times_imaged(truth).probability  # p was imaged 3 times, q twice, new once
    assert probability[0] > probability[1] > probability[2]


def test_age_sex_view_is_a_fitted_logistic_regression(tmp_path):
    rng = np.random.default_rng(0)
    rows = ["image_id,patient_id,subset,pneumothorax,sex,age,view"]
    for number in range(2000):
        age = int(rng.integers(20, 90))
        ill = rng.random() < special.expit(0.1 * (age - 55))
        rows.append(f"{number},{number},{'train' if number < 1500 else 'test'},{int(ill)},,{age},")
    truth = truth_of(tmp_path, "\n".join(rows) + "\n")
    age = truth.cases.age.to_numpy()
    probability = age_sex_view(truth).probability
    np.testing.assert_allclose(probability, special.expit(0.1 * (age - 55)), atol=0.06)
    np.testing.assert_array_equal(probability, age_sex_view(truth).probability)


def test_a_baseline_that_cannot_be_computed_gives_the_reason(tmp_path):
    truth = truth_of(tmp_path, "image_id,pneumothorax\na,1\nb,0\nc,0\n")
    by_name = {baseline.name: baseline for baseline in baselines(truth)}
    assert by_name["Majority"].probability.tolist() == [1 / 3] * 3
    assert "taken from the scored images" in by_name["Majority"].explanation
    assert "no training labels" in by_name["Patient only"].skipped
    assert "no age, sex or view" in by_name["Age, sex, view"].skipped
    assert "no patient table" in by_name["Times imaged"].skipped
    alike = truth_of(tmp_path, TABLE.replace("a,p,train,1", "a,p,train,0"))
    assert times_imaged(alike).skipped == "The training labels are all alike."


def test_patient_only_has_auroc_one_half_with_a_split_by_patient(tmp_path):
    truth = truth_of(tmp_path, TABLE.replace("e,p", "e,s").replace("f,q", "f,t"))
    assert metrics.auroc(truth.pneumothorax, patient_only(truth).probability) == 0.5


@needs_real
def test_real_images_per_patient():
    """The label file's owner gives 0.839 for the number of images of the patient."""
    tables = REAL / "siim_tables"
    truth = read_truth(tables / "train-rle.csv.gz", patients=tables / "nih_id.csv")
    assert metrics.auroc(truth.pneumothorax, times_imaged(truth).probability) == pytest.approx(0.839, abs=5e-4)
