import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from keras_pneumo.phantoms.cohort import MAX_IMAGES, Case, PhantomSettings, list_images, make_case, make_patient

SETTINGS = PhantomSettings()


def cases(images: int, seed: int = 0, settings: PhantomSettings = SETTINGS) -> list[Case]:
    return [
        make_case(seed, patient, image, settings)
        for patient, image in list_images(seed, images, settings.positive_rate)
    ]


@pytest.fixture(scope="module")
def many() -> list[Case]:
    return cases(3000)


@given(seed=st.integers(0, 2**31 - 1), patient=st.integers(0, 10**5))
def test_a_case_is_a_pure_function_of_its_numbers(seed: int, patient: int) -> None:
    assert make_case(seed, patient, 0, SETTINGS) == make_case(seed, patient, 0, SETTINGS)
    with pytest.raises(IndexError, match="images"):
        make_case(seed, patient, MAX_IMAGES, SETTINGS)


@given(seed=st.integers(0, 2**31 - 1), images=st.integers(1, 60), more=st.integers(1, 60))
def test_more_images_keep_the_earlier_ones(seed: int, images: int, more: int) -> None:
    assert list_images(seed, images + more, 0.22)[:images] == list_images(seed, images, 0.22)
    assert len(list_images(seed, images, 0.22)) == images


def test_patients_have_one_to_six_images_of_one_person(many: list[Case]) -> None:
    counts = np.bincount([case.patient for case in many])
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    people = {(case.patient_id, case.sex) for case in many}
    assert len(people) == len(counts)
    for patient in range(50):
        ages = [case.age for case in many if case.patient == patient]
        assert max(ages) - min(ages) <= 1


def test_ids_are_those_of_no_other_image(many: list[Case]) -> None:
    assert len({case.image_id for case in many}) == len(many)
    assert len({case.file_uuid for case in many}) == len(many)
    for case in many[:20]:
        # SIIM: 1.2.276.0.7230010.3.1.<4, 2 or 3>.8323329.<process>.<second>.<microsecond>
        assert case.image_id.startswith("1.2.276.0.7230010.3.1.4.8323329.")
        assert case.image_id.split(".")[-2].startswith("1517875")
        root, last = case.image_id.replace(".3.1.4.", ".3.1.2.").rsplit(".", 1)
        assert case.study_uid == f"{root}.{int(last) - 1}"
        assert case.series_uid == f"{root.replace('.3.1.2.', '.3.1.3.')}.{int(last) - 2}"


@pytest.mark.parametrize("rate", [0.0, 0.22, 0.5, 1.0])
def test_the_share_of_positives_is_the_requested_one(rate: float) -> None:
    settings = PhantomSettings(positive_rate=rate)
    share = np.mean([case.positive for case in cases(1500, seed=1, settings=settings)])
    assert share == pytest.approx(rate, abs=0.02 if 0 < rate < 1 else 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_folder_has_nearly_the_requested_share_too(seed: int) -> None:
    assert np.mean([case.positive for case in cases(200, seed)]) == pytest.approx(0.22, abs=0.06)


def test_areas_follow_siim(many: list[Case]) -> None:
    areas = np.array([case.area for case in many if case.positive])
    # Quantiles of SIIM's 2,669 positives, from its label file: 0.00191, 0.00387, 0.00823, 0.01754, 0.03188.
    got = np.quantile(areas, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(got, [0.00191, 0.00387, 0.00823, 0.01754, 0.03188], rtol=0.25)
    assert all(case.area == 0 for case in many if not case.positive)


def test_size_scale_multiplies_the_areas() -> None:
    plain, large = (cases(200, settings=PhantomSettings(size_scale=scale)) for scale in (1.0, 3.0))
    for before, after in zip(plain, large, strict=True):
        if before.area:
            assert after.area == pytest.approx(min(3 * before.area, 0.154))


def patient_only_scores(some: list[Case], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A predictor that knows nothing of an image but its patient's other images, in five image-level folds."""
    truth = np.array([case.positive for case in some])
    patient = np.array([case.patient for case in some])
    fold = np.random.default_rng(seed).integers(0, 5, len(some))
    score = np.zeros(len(some))
    for held_out in range(5):
        training = fold != held_out
        rate = truth[training].mean()
        positives = np.bincount(patient[training], weights=truth[training], minlength=patient.max() + 1)
        count = np.bincount(patient[training], minlength=patient.max() + 1)
        score[~training] = ((positives + rate) / (count + 1))[patient[~training]]
    return truth, score


def test_an_image_level_split_leaks_as_siims_does(many: list[Case]) -> None:
    # On a winning team's image-level folds of SIIM, knowing only the patient scores 0.805 to 0.842.
    assert roc_auc_score(*patient_only_scores(many, seed=0)) == pytest.approx(0.81, abs=0.04)


def test_a_patient_level_split_does_not_leak(many: list[Case]) -> None:
    truth = np.array([case.positive for case in many])
    assert 0.5 < roc_auc_score(truth, np.bincount([c.patient for c in many])[[c.patient for c in many]]) < 0.8


def test_age_sex_and_view_say_nothing(many: list[Case]) -> None:
    truth = [case.positive for case in many]
    for values in ([c.age for c in many], [c.sex == "M" for c in many], [c.view == "AP" for c in many]):
        assert roc_auc_score(truth, values) == pytest.approx(0.5, abs=0.04)


def test_other_shares(many: list[Case]) -> None:
    positives = [case for case in many if case.positive]
    assert np.mean([case.monochrome1 for case in many]) == pytest.approx(0.04, abs=0.015)
    assert np.mean([case.tube for case in positives]) == pytest.approx(0.4, abs=0.06)
    drained = np.mean([case.tube for case in many if not case.positive])
    assert 0 < drained < 0.05
    assert np.mean([case.rows == 2 for case in positives]) == pytest.approx(0.23, abs=0.06)
    assert any(case.overlap for case in positives)
    assert not any(case.overlap or case.rows for case in many if not case.positive)


def test_a_patients_positives_do_not_depend_on_the_order_of_asking() -> None:
    later = make_patient(3, 40, 0.22)
    for patient in range(40):
        make_patient(3, patient, 0.22)
    assert make_patient(3, 40, 0.22) == later
