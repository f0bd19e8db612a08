"""Tests of the difference hash: by hand, on copies of phantoms, and over all pairs at once."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.near_duplicates import BITS, NEAR, SIDE, difference_hash, difference_hashes, nearest
from keras_pneumo.errors import PneumoError

HASHES = st.lists(st.binary(min_size=BITS // 8, max_size=BITS // 8).map(bytes.hex), min_size=1, max_size=9)


def bits_of(text):
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).reshape(2, SIDE, SIDE)


def test_the_hash_says_where_the_right_and_the_lower_neighbour_is_darker():
    columns, rows = np.meshgrid(np.arange(SIDE + 1), np.arange(SIDE + 1))
    right, lower = bits_of(difference_hash((200 - 10 * columns + 0 * rows).astype(np.uint8)))
    assert right.all()
    assert not lower.any()
    right, lower = bits_of(difference_hash((200 - 10 * rows).astype(np.uint8)))
    assert not right.any()
    assert lower.all()
    assert not bits_of(difference_hash(np.full((64, 64), 7, np.uint8))).any()


@given(HASHES, HASHES)
def test_the_nearest_of_all_pairs_is_that_of_a_loop(hashes, others):
    index, distance = nearest(hashes, others)
    for row, text in enumerate(hashes):
        differing = [int((bits_of(text) != bits_of(other)).sum()) for other in others]
        assert (index[row], distance[row]) == (int(np.argmin(differing)), min(differing))


def test_no_hash_has_no_nearest():
    index, distance = nearest([], ["00" * (BITS // 8)])
    assert len(index) == len(distance) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0),
        lambda image: (255 * (image / 255) ** 0.7).astype(np.uint8),
        lambda image: image[1:-1, 1:-1],
    ],
    ids=["smaller", "jpeg", "gamma", "cut"],
)
def test_copies_are_near_and_other_images_are_not(prepared_folder, change):
    prepared = load_prepared(prepared_folder)
    ids = prepared.cases["image_id"].tolist()
    hashes = difference_hashes(prepared, ids)
    assert hashes[0] == difference_hash(cv2.imread(str(prepared.image_path(ids[0], 64)), cv2.IMREAD_GRAYSCALE))
    images = [cv2.imread(str(prepared.image_path(image_id, 128)), cv2.IMREAD_GRAYSCALE) for image_id in ids]
    index, distance = nearest([difference_hash(change(image)) for image in images], hashes)
    assert index.tolist() == list(range(len(ids)))
    assert np.mean(distance <= NEAR) > 0.9
    for row, text in enumerate(hashes):
        assert nearest([text], hashes[:row] + hashes[row + 1 :])[1][0] > NEAR


def test_a_missing_image_is_named(prepared_copy):
    prepared = load_prepared(prepared_copy)
    path = prepared.image_path(prepared.cases["image_id"].iloc[0], 64)
    path.unlink()
    with pytest.raises(PneumoError, match=f"{path.name} is missing or damaged"):
        difference_hashes(prepared, prepared.cases["image_id"].tolist())
