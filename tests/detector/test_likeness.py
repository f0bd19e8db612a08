"""Tests of likeness: exact features and limits; phantoms get an answer, and what is no chest radiograph gets none."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from detector_lab import drawn_hand
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.radiographs.geometry import pad_to_square
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.detector.detector import open_detector
from keras_pneumo.detector.likeness import (
    CELLS,
    DIRECTIONS,
    FEATURES,
    FILE,
    Likeness,
    distances_to_others,
    edge_features,
    fit_likeness,
    limit_of,
    read_likeness,
    write_likeness,
)
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import content_hash, sha256_file


@pytest.fixture(scope="module")
def fitted(prepared_folder):
    """The check of the phantoms, fitted at 64 pixels."""
    return fit_likeness(load_prepared(prepared_folder), 64)


@pytest.fixture(scope="module")
def test_phantoms(prepared_folder, phantoms):
    """Pixels of the test phantoms as decoded from their files, in the order of the table."""
    paths = {path.stem: path for path in phantoms.rglob("*.dcm")}
    return [read_radiograph(paths[image_id]).pixels for image_id in load_prepared(prepared_folder).subset("test")]


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eighth", [0, 1, 3, 6, 0.25, 7.75])
def test_a_ramp_has_one_direction_everywhere(eighth):
    turn = eighth * np.pi / 4
    rows, columns = np.mgrid[:64, :64].astype(float)
    ramp = (rows - 31.5) * np.sin(turn) + (columns - 31.5) * np.cos(turn)
    image = np.rint(127 + 2 * ramp).clip(0, 255).astype(np.uint8)
    inner = edge_features([image]).reshape(CELLS, CELLS, DIRECTIONS)[1:-1, 1:-1]
    lower = int(np.floor(eighth))
    expected = np.zeros(DIRECTIONS)
    expected[lower % 8] += 1 - (eighth - lower)
    expected[(lower + 1) % 8] += eighth - lower
    expected -= expected.mean()
    directions = inner / np.linalg.norm(inner, axis=-1, keepdims=True)
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(directions, np.broadcast_to(expected, inner.shape), atol=0.1)


def test_a_negative_has_the_opposite_directions_and_a_blank_image_has_none():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8), (0, 0), 4)
    plain, negative, blank = edge_features([image, 255 - image, np.full((100, 80), 77, np.uint8)])
    opposite = np.roll(negative.reshape(-1, DIRECTIONS), 4, axis=1).ravel()
    np.testing.assert_allclose(plain, opposite, atol=1e-5)
    assert np.linalg.norm(plain) == pytest.approx(1, abs=1e-5)
    assert not blank.any()


def test_exposure_hardly_matters_and_proportions_are_evened_out(test_phantoms):
    image = test_phantoms[0]
    darker = np.rint(image * 0.6 + 30).astype(np.uint8)
    wider = cv2.resize(image, (image.shape[1] * 5 // 4, image.shape[0]), interpolation=cv2.INTER_LINEAR)
    features = edge_features([image, darker, wider])
    assert features[0] @ features[1] > 0.97
    assert features[0] @ features[2] > 0.97


# -- distances and limit -----------------------------------------------------------------------------------------------


def test_the_distance_is_to_the_fifth_nearest_and_never_to_the_same_patient():
    turns = np.array([0, 1, 2, 3, 4, 5, 30]) * np.pi / 180
    features = np.zeros((7, FEATURES), np.float32)
    features[:, 0], features[:, 1] = np.cos(turns), np.sin(turns)
    alone = distances_to_others(features, np.array(list("abcdefg")))
    assert alone[0] == pytest.approx(1 - np.cos(5 * np.pi / 180), abs=1e-6)
    assert alone[3] == pytest.approx(1 - np.cos(3 * np.pi / 180), abs=1e-6)
    assert alone[6] == pytest.approx(1 - np.cos(29 * np.pi / 180), abs=1e-6)
    pairs = distances_to_others(features, np.array(list("aaaaaab")))
    assert pairs[0] == pytest.approx(1 - np.cos(30 * np.pi / 180), abs=1e-6)  # one other image: that one
    assert pairs[6] == pytest.approx(alone[6])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.floats(0.005, 0.5))
def test_the_limit_is_the_conformal_quantile(distances, rate):
    limit, stated = limit_of(np.array(distances), rate)
    n, above = len(distances), int((np.array(distances) > limit).sum())
    assert above <= rate * n + 1e-9
    assert stated == max(rate, 1 / (n + 1))
    if stated > rate:
        assert above == 0
    else:  # and it refuses all that it may: one step lower would break the rate
        at_or_above = int((np.array(distances) >= limit - 1.1e-5).sum())
        assert (at_or_above + 1) / (n + 1) > rate - 1e-9


def test_new_patients_of_the_same_kind_are_refused_at_the_stated_rate_at_most():
    rng, refused = np.random.default_rng(0), []
    for _ in range(300):
        patients = np.repeat(np.arange(30), 2)
        people = rng.normal(size=(31, 6))[np.r_[patients, 30]]
        vectors = np.abs(people + 0.3 * rng.normal(size=people.shape)) + 0.2
        features = np.zeros((61, FEATURES), np.float32)
        features[:, :6] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        limit, stated = limit_of(distances_to_others(features[:60], patients), 0.1)
        assert stated == 0.1
        refused.append(1 - np.sort(features[:60] @ features[60])[-5] > limit)
    assert 0.03 < np.mean(refused) < 0.14  # 0.1 at most, and the mean of 300 has a standard error of 0.017


# -- what is like the phantoms, and what is not ------------------------------------------------------------------------


def test_a_file_has_the_distance_of_its_prepared_image(fitted, test_phantoms):
    np.testing.assert_allclose(fitted.likeness.distances(test_phantoms), fitted.test, atol=1e-6)
    assert len(fitted.held_out) == 32
    assert fitted.rate == pytest.approx(1 / 33)
    assert fitted.likeness.limit == pytest.approx(fitted.held_out.max(), abs=1e-4)
    record = fitted.as_json()
    assert record["test"] == {"images": 8, "refused": int(fitted.refused.sum()), "positives_refused": 0}


def test_phantoms_are_answered_also_cut_padded_tilted_or_exposed_otherwise(fitted, test_phantoms):
    limit = fitted.likeness.limit
    side = len(test_phantoms[0])
    changed = {
        "as they are": test_phantoms,
        "rim cut off": [image[side // 30 :, side // 30 : -side // 40] for image in test_phantoms],
        "brighter": [np.rint(255 * (image / 255) ** 0.7).astype(np.uint8) for image in test_phantoms],
        "tilted": [
            cv2.warpAffine(image, cv2.getRotationMatrix2D((side / 2, side / 2), 2, 1), (side, side))
            for image in test_phantoms
        ],
    }
    for what, images in changed.items():
        assert (fitted.likeness.distances(images) > limit).sum() <= 1, what


def test_a_file_that_is_not_square_is_measured_without_its_padding(fitted, test_phantoms):
    eighth = len(test_phantoms[0]) // 8
    cut = test_phantoms[0][:, eighth:-eighth]
    (distance,) = fitted.likeness.distances([cut])
    (expected,) = fitted.likeness.distances_of([cv2.resize(cut, (48, 64), interpolation=cv2.INTER_AREA)])
    assert distance == pytest.approx(expected, abs=1e-3)
    (padded,) = fitted.likeness.distances([pad_to_square(cut)])
    assert abs(padded - expected) > 0.01


def text_page(white):
    """A page of words, black on white or white on black."""
    image = np.full((700, 500), 255 if white else 0, np.uint8)
    for row in range(40, 690, 30):
        words = "Lorem ipsum dolor sit amet"[: 14 + row % 12]
        cv2.putText(image, words, (30, row), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 0 if white else 255, 2, cv2.LINE_AA)
    return image


RNG = np.random.default_rng(3)
UNLIKE = {
    "blank": np.full((256, 256), 120, np.uint8),
    "black": np.zeros((64, 64), np.uint8),
    "noise": RNG.integers(0, 256, (256, 256)).astype(np.uint8),
    "soft noise": np.rint(cv2.GaussianBlur(RNG.normal(size=(256, 256)), (0, 0), 9) * 1500 + 128)
    .clip(0, 255)
    .astype("u1"),
    "page": text_page(white=True),
    "dark page": text_page(white=False),
    "checkerboard": np.kron(np.indices((16, 16)).sum(axis=0) % 2 * 255, np.ones((16, 16))).astype(np.uint8),
    "stripes": np.tile(np.repeat([40, 200], 16), (256, 8)).astype(np.uint8),
    "disk": cv2.circle(np.zeros((256, 256), np.uint8), (128, 128), 80, 200, -1),
    "ramp": np.tile(np.arange(256, dtype=np.uint8), (256, 1)),
    "hand": drawn_hand(),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_is_no_radiograph_of_a_chest_is_refused(fitted, kind):
    (distance,) = fitted.likeness.distances([UNLIKE[kind]])
    assert distance > fitted.likeness.limit


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm",
                                  "JPEG2000.dcm", "examples_overlay.dcm", "image_dfl.dcm"])  # fmt: skip
def test_other_modalities_are_refused(fitted, name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not bring {name}")
    (distance,) = fitted.likeness.distances([read_radiograph(Path(path)).pixels])
    assert distance > fitted.likeness.limit


def test_inverted_rotated_and_cropped_radiographs_are_refused(fitted, test_phantoms):
    half = len(test_phantoms[0]) // 2
    changed = {
        "inverted": [255 - image for image in test_phantoms],
        "rotated by 90": [np.rot90(image) for image in test_phantoms],
        "rotated by 180": [np.rot90(image, 2) for image in test_phantoms],
        "rotated by 270": [np.rot90(image, 3) for image in test_phantoms],
        "upper left quarter": [image[:half, :half] for image in test_phantoms],
        "lower right quarter": [image[half:, half:] for image in test_phantoms],
    }
    for what, images in changed.items():
        assert (fitted.likeness.distances(images) > fitted.likeness.limit).all(), what


def test_real_radiographs_are_told_from_inverted_and_rotated_ones_and_from_a_hand():
    folder = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", "../shared")) / "siim_mini" / "png"
    if not folder.is_dir():
        pytest.skip(f"no real radiographs in {folder}")
    images = [cv2.resize(cv2.imread(str(path), 0), (64, 64), interpolation=cv2.INTER_AREA)
              for path in sorted(folder.glob("*.png"))]  # fmt: skip
    features = edge_features(images[:60]).astype(np.float16)
    limit, _ = limit_of(distances_to_others(features, np.arange(60)), 0.01)
    likeness = Likeness(features, 64, limit)
    held_out = images[60:]
    assert (likeness.distances(held_out) > limit).sum() <= 1
    assert (likeness.distances([255 - image for image in held_out]) > limit).all()
    assert (likeness.distances([np.rot90(image, 2) for image in held_out]) > limit).mean() > 0.9
    assert (likeness.distances([drawn_hand(), UNLIKE["page"], UNLIKE["blank"], UNLIKE["noise"]]) > limit).all()


# -- fitting and files -------------------------------------------------------------------------------------------------


def test_too_few_images_or_one_patient_have_no_check(prepared_folder):
    prepared = load_prepared(prepared_folder)
    one = replace(prepared, cases=prepared.cases.assign(patient_id="same"))
    assert fit_likeness(one, 64) is None
    few = pd.concat([part.head(19) for _, part in prepared.split.groupby(prepared.split["subset"] == "test")])
    assert fit_likeness(replace(prepared, split=few), 64) is None


def test_padding_of_prepared_images_is_left_out(prepared_folder, fitted):
    prepared = load_prepared(prepared_folder)
    cases = prepared.cases.assign(rows=prepared.cases["rows"], columns=prepared.cases["columns"] // 2)
    narrow = fit_likeness(replace(prepared, cases=cases), 64)
    images = [cv2.imread(str(prepared.image_path(name, 64)), 0) for name in prepared.subset("test")]
    expected = narrow.likeness.distances_of([image[:, 16:48] for image in images])
    np.testing.assert_allclose(narrow.test, expected, atol=1e-6)
    assert not np.allclose(narrow.test, fitted.test)


def test_the_check_is_read_as_written(fitted, tmp_path):
    write_likeness(fitted.likeness, tmp_path)
    record = json.loads(json.dumps({"likeness": fitted.as_json(), "files": {FILE: ""}}))
    read = read_likeness(tmp_path, record)
    np.testing.assert_array_equal(read.features, fitted.likeness.features)
    assert (read.image_size, read.limit) == (64, fitted.likeness.limit)
    assert read_likeness(tmp_path, {"files": {}}) is None
    bad = [
        record | {"files": {}},
        record | {"likeness": {"limit": 0.5}},
        record | {"likeness": record["likeness"] | {"limit": 2.5}},
        record | {"likeness": record["likeness"] | {"limit": float("nan")}},
        record | {"likeness": record["likeness"] | {"image_size": 0}},
    ]
    for other in bad:
        with pytest.raises(PneumoError, match="incomplete or damaged"):
            read_likeness(tmp_path, other)
    for features in (np.zeros((3, 5), np.float16), np.zeros((0, FEATURES), np.float16),
                     np.full((3, FEATURES), np.nan, np.float16), np.zeros((3, FEATURES), np.float64)):  # fmt: skip
        np.save(tmp_path / FILE, features)
        with pytest.raises(PneumoError, match="incomplete or damaged"):
            read_likeness(tmp_path, record)
    (tmp_path / FILE).write_bytes(b"no array")
    with pytest.raises(PneumoError, match="incomplete or damaged"):
        read_likeness(tmp_path, record)


def test_the_detector_holds_the_check_and_refuses_it_changed(tiny_detector, fitted, tmp_path):
    detector = open_detector(tiny_detector)
    np.testing.assert_array_equal(detector.likeness.features, fitted.likeness.features)
    assert detector.likeness.limit == fitted.likeness.limit
    record = json.loads((tiny_detector / "detector.json").read_text())
    assert record["files"][FILE] == sha256_file(tiny_detector / FILE)
    assert record["likeness"] == fitted.as_json()
    copy = Path(shutil.copytree(tiny_detector, tmp_path / "copy"))
    data = bytearray((copy / FILE).read_bytes())
    data[-1] ^= 1
    (copy / FILE).write_bytes(data)
    with pytest.raises(PneumoError, match=f"{FILE} is missing or changed"):
        open_detector(copy)


def older(detector, tmp_path):
    """A copy of a detector as an earlier version wrote it, without the check."""
    copy = Path(shutil.copytree(detector, tmp_path / "older"))
    record = json.loads((copy / "detector.json").read_text())
    del record["likeness"], record["files"][FILE], record["sha256"]
    (copy / FILE).unlink()
    (copy / "detector.json").write_text(json.dumps(record | {"sha256": content_hash(record)}))
    return copy


def test_an_older_detector_answers_for_anything(tiny_detector, tmp_path):
    (answer,) = open_detector(older(tiny_detector, tmp_path)).answer([drawn_hand()])
    assert (answer.distance, answer.unlike) == (None, False)
    (refused,) = open_detector(tiny_detector).answer([drawn_hand()])
    assert refused.unlike
    assert refused.probability == pytest.approx(answer.probability)
