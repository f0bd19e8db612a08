"""The arrays of a prepared folder: the pixels of its PNG files, never anything else, or none."""

import json
import logging
import shutil
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.data.prepared import arrays as module
from keras_pneumo.data.prepared.arrays import open_arrays, packed, unpacked
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.storage.files import folder_lock

FILES = ("images_64.npy", "masks_64.npy", "arrays_64.json")


@pytest.fixture
def prepared(prepared_copy):
    for name in FILES:  # another test may have trained on the folder that this is a copy of
        (prepared_copy / name).unlink(missing_ok=True)
    return load_prepared(prepared_copy)


@pytest.fixture
def writings(monkeypatch):
    """A list with an entry for each time that arrays are written."""
    done, write = [], module._write_arrays
    monkeypatch.setattr(module, "_write_arrays", lambda *given: done.append(given) or write(*given))
    return done


def assert_pixels_of_the_png_files(prepared, arrays):
    for image_id in prepared.cases["image_id"]:
        expected = cv2.imread(str(prepared.image_path(image_id, 64)), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(arrays.images[arrays.image_rows[image_id]], expected)
        mask = cv2.imread(str(prepared.mask_path(image_id, 64)), cv2.IMREAD_GRAYSCALE)
        assert (mask is not None) == (image_id in arrays.mask_rows)
        if mask is not None:
            np.testing.assert_array_equal(unpacked(arrays.masks[arrays.mask_rows[image_id]], 64), mask)


def test_arrays_hold_the_pixels_of_the_png_files_and_are_made_once(prepared, writings):
    assert open_arrays(prepared, 64) is None, "they are made only where they are asked for"
    assert not (prepared.folder / FILES[0]).exists()
    assert_pixels_of_the_png_files(prepared, open_arrays(prepared, 64, make=True))
    assert_pixels_of_the_png_files(prepared, open_arrays(prepared, 64))
    assert len(writings) == 1
    assert not list(prepared.folder.glob(".*.part"))


def test_any_program_can_read_them_with_numpy_alone(prepared):
    open_arrays(prepared, 64, make=True)
    images = np.load(prepared.folder / "images_64.npy", mmap_mode="r")
    masks = np.load(prepared.folder / "masks_64.npy", mmap_mode="r")
    ids = prepared.cases["image_id"].tolist()
    positives = prepared.cases.loc[prepared.cases["pneumothorax"] == 1, "image_id"].tolist()
    assert images.shape == (len(ids), 64, 64)
    np.testing.assert_array_equal(images[5], cv2.imread(str(prepared.image_path(ids[5], 64)), 0))
    mask = np.unpackbits(masks[2], axis=-1, count=64) * 255
    np.testing.assert_array_equal(mask, cv2.imread(str(prepared.mask_path(positives[2], 64)), 0))


def test_an_ordinary_start_hashes_no_image_and_no_array(prepared, monkeypatch):
    open_arrays(prepared, 64, make=True)
    monkeypatch.setattr(module, "sha256_file", lambda path: pytest.fail("an array was hashed"))
    monkeypatch.setattr(module, "intact_files", lambda *given: pytest.fail("images were hashed"))
    assert open_arrays(prepared, 64, make=True) is not None


def test_arrays_of_a_copied_folder_are_checked_and_kept(prepared, tmp_path, writings):
    open_arrays(prepared, 64, make=True)
    copy = shutil.copytree(prepared.folder, tmp_path / "copy", copy_function=shutil.copyfile)  # new times
    assert_pixels_of_the_png_files(load_prepared(copy), open_arrays(load_prepared(copy), 64))
    assert len(writings) == 1
    record = json.loads((copy / "arrays_64.json").read_text())
    assert record["arrays"]["images_64.npy"]["mtime_ns"] == (copy / "images_64.npy").stat().st_mtime_ns


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)


DAMAGES = {
    "another byte": flip_a_byte,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_arrays_are_made_again(prepared, writings, name, damage):
    open_arrays(prepared, 64, make=True)
    DAMAGES[damage](prepared.folder / name)
    assert open_arrays(prepared, 64) is None
    assert_pixels_of_the_png_files(prepared, open_arrays(prepared, 64, make=True))
    assert len(writings) == 2


def test_arrays_of_other_images_are_made_again(prepared, writings):
    """The folder was prepared anew: same names and sizes, other pixels."""
    open_arrays(prepared, 64, make=True)
    path = prepared.folder / "arrays_64.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"files_sha256": "0" * 64}))
    assert open_arrays(prepared, 64) is None
    assert_pixels_of_the_png_files(prepared, open_arrays(prepared, 64, make=True))
    assert len(writings) == 2


def test_a_damaged_image_file_is_in_no_array(prepared, caplog):
    path = prepared.image_path(prepared.cases["image_id"].iloc[3], 64)
    cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    with caplog.at_level(logging.INFO):
        assert open_arrays(prepared, 64, make=True) is None
    assert f"{path} is damaged" in caplog.text
    assert not any((prepared.folder / name).exists() for name in FILES)


def test_a_damaged_mask_leaves_no_array_of_the_images(prepared):
    image_id = prepared.cases.loc[prepared.cases["pneumothorax"] == 1, "image_id"].iloc[-1]
    prepared.mask_path(image_id, 64).unlink()
    assert open_arrays(prepared, 64, make=True) is None
    assert not any((prepared.folder / name).exists() for name in FILES)


def test_an_image_file_that_is_damaged_later_is_seen(prepared):
    open_arrays(prepared, 64, make=True)
    cv2.imwrite(str(prepared.image_path(prepared.cases["image_id"].iloc[3], 64)), np.zeros((64, 64), np.uint8))
    assert open_arrays(prepared, 64, make=True) is None


def test_where_nothing_can_be_written_whole_arrays_are_used_and_none_are_made(prepared, tmp_path, monkeypatch):
    def no_lock(*given, **options):
        raise OSError("Read-only file system")

    open_arrays(prepared, 64, make=True)
    copy = load_prepared(shutil.copytree(prepared.folder, tmp_path / "copy", copy_function=shutil.copyfile))
    monkeypatch.setattr(module.filelock, "FileLock", no_lock)
    assert_pixels_of_the_png_files(copy, open_arrays(copy, 64, make=True))
    flip_a_byte(copy.folder / "images_64.npy")
    assert open_arrays(copy, 64, make=True) is None


def test_a_full_disk_is_left_as_it_is(prepared, monkeypatch, caplog):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**4))
    with caplog.at_level(logging.INFO):
        assert open_arrays(prepared, 64, make=True) is None
    assert "its disk is too full" in caplog.text
    assert not (prepared.folder / FILES[0]).exists()


def test_a_second_process_waits_for_the_first_ones_arrays(prepared, writings):
    opened = []
    with folder_lock(prepared.folder):
        waiting = threading.Thread(target=lambda: opened.append(open_arrays(prepared, 64, make=True)))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert not writings
    waiting.join()
    assert_pixels_of_the_png_files(prepared, opened[0])


def test_who_waits_too_long_gets_none(prepared, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    with folder_lock(prepared.folder):
        assert open_arrays(prepared, 64, make=True) is None


def test_a_size_that_was_not_prepared_has_no_arrays(prepared):
    assert open_arrays(prepared, 32, make=True) is None


@given(size=st.integers(1, 70), seed=st.integers(0, 99))
def test_masks_come_back_from_their_bits(size, seed):
    masks = np.random.default_rng(seed).integers(0, 2, (2, size, size), np.uint8) * np.uint8(255)
    bits = packed(masks)
    assert bits.shape == (2, size, -(-size // 8))
    np.testing.assert_array_equal(unpacked(bits, size), masks)
