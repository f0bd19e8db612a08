"""Opened images: held or read as they are used, and refused where they are not what they should be."""

import re

import cv2
import numpy as np
import pytest

from keras_pneumo.data.batches.images import free_memory, images_of, masks_of, open_source
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError


def test_what_does_not_fit_is_read_when_used_and_is_the_same(prepared_folder):
    prepared = load_prepared(prepared_folder)
    ids = prepared.subset("train")
    needed = 64 * 64 * len(ids) + 64 * 8 * int(prepared.cases.set_index("image_id")["pneumothorax"].loc[ids].sum())
    held = open_source(prepared, ids, 64, True, memory_bytes=needed)
    read = open_source(prepared, ids, 64, True, memory_bytes=needed - 1)
    assert read.images is None
    assert held.images.shape == (len(ids), 64, 64)
    assert held.masks.shape == (held.labels.sum(), 64, 8), "eight pixels a byte, and no rows for negatives"
    assert held.paths == read.paths
    rows = np.arange(len(ids))
    np.testing.assert_array_equal(images_of(read, rows), images_of(held, rows))
    np.testing.assert_array_equal(masks_of(read, rows), masks_of(held, rows))
    assert (masks_of(held, rows).any(axis=(1, 2, 3)) == held.labels.astype(bool)).all()


def test_an_image_of_another_size_or_none_is_named(prepared_copy):
    prepared = load_prepared(prepared_copy)
    ids = prepared.subset("train")[:3]
    path = prepared.image_path(ids[1], 64)
    cv2.imwrite(str(path), np.zeros((32, 32), np.uint8))
    with pytest.raises(PneumoError, match=re.escape(str(path))):
        open_source(prepared, ids, 64, verify=False)
    path.unlink()
    with pytest.raises(PneumoError, match="missing or is no grey PNG of 64x64"):
        open_source(prepared, ids, 64, verify=False)


def replace_by_another(prepared, image_id, other):
    """Puts the image of another patient in the place of this one's: a valid PNG."""
    prepared.image_path(image_id, 64).write_bytes(prepared.image_path(other, 64).read_bytes())


def test_row_38_an_image_that_was_replaced_is_refused_before_use(prepared_copy):
    prepared = load_prepared(prepared_copy)
    ids = prepared.subset("test")
    open_source(prepared, ids, 64)
    replace_by_another(prepared, ids[0], ids[1])
    with pytest.raises(PneumoError, match=rf"1 of \d+ files .* missing or damaged \(images_64/{re.escape(ids[0])}.png"):
        open_source(prepared, ids, 64)


def test_row_38_an_image_that_is_replaced_while_images_are_read_as_they_are_used(prepared_copy):
    prepared = load_prepared(prepared_copy)
    ids = prepared.subset("train")
    positive = int(np.flatnonzero(prepared.cases.set_index("image_id")["mask_pixels"].loc[ids] > 0)[0])
    source = open_source(prepared, ids, 64, True, memory_bytes=0)
    assert source.images is None
    source.image(positive)
    replace_by_another(prepared, ids[positive], ids[positive - 1])
    with pytest.raises(PneumoError, match=rf"{re.escape(ids[positive])}.png was changed after it was prepared"):
        source.image(positive)
    mask = prepared.mask_path(ids[positive], 64)
    mask.write_bytes(prepared.image_path(ids[positive], 64).read_bytes())
    with pytest.raises(PneumoError, match="was changed after it was prepared"):
        source.mask(positive)


def test_the_folders_array_gives_the_same_pixels_as_its_files(prepared_copy):
    prepared = load_prepared(prepared_copy)
    ids = prepared.subset("validation")[::-1]
    mapped = open_source(prepared, ids, 64, True, make_array=True)
    read = open_source(prepared, ids, 64, True, memory_bytes=0)
    assert not mapped.images.flags.owndata, "the pixels are not copied"
    assert len(mapped.images) == len(prepared.cases)
    rows = np.arange(len(ids))
    np.testing.assert_array_equal(images_of(mapped, rows), images_of(read, rows))
    np.testing.assert_array_equal(masks_of(mapped, rows), masks_of(read, rows))
    assert masks_of(mapped, rows).any()
    assert (mapped.paths, mapped.mask_paths) == (read.paths, read.mask_paths)


def test_where_there_can_be_no_array_the_wanted_files_are_verified(prepared_copy):
    """A damaged image is refused where it is wanted, and only there."""
    for name in ("images_64.npy", "masks_64.npy", "arrays_64.json"):
        (prepared_copy / name).unlink(missing_ok=True)
    prepared = load_prepared(prepared_copy)
    train, test = prepared.subset("train"), prepared.subset("test")
    path = prepared.image_path(test[0], 64)
    cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    assert len(open_source(prepared, train, 64, make_array=True).images) == len(train)
    with pytest.raises(PneumoError, match=rf"1 of \d+ files .* are missing or damaged \(images_64/{test[0]}\.png\)"):
        open_source(prepared, test, 64, make_array=True)
    with pytest.raises(PneumoError, match="has no images of 32 pixels"):
        open_source(prepared, train, 32, make_array=True)
    assert not (prepared_copy / "images_64.npy").exists()


def test_free_memory_is_a_size():
    assert 10**7 < free_memory() < 10**14
