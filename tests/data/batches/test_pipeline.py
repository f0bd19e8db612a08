import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.config import NO_AUGMENTATION, Augmentation
from keras_pneumo.data.batches import ahead
from keras_pneumo.data.batches.images import ImageSet, images_of, masks_of
from keras_pneumo.data.batches.order import Share, TrainingPlan
from keras_pneumo.data.batches.pipeline import evaluation_batches, labelled_batches, training_batches
from keras_pneumo.data.prepared.arrays import packed


@pytest.fixture
def folder(tmp_path):
    """Ten images; every pixel of image i is 20 i + 5; odd ones are positive, their mask is row i."""
    for number in range(10):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((32, 32), 20 * number + 5, np.uint8))
        if number % 2:
            mask = np.zeros((32, 32), np.uint8)
            mask[number] = 255
            cv2.imwrite(str(tmp_path / f"mask{number}.png"), mask)
    return tmp_path


def source(folder, held=True):
    paths = tuple(str(folder / f"{number}.png") for number in range(10))
    mask_paths = tuple(str(folder / f"mask{number}.png") if number % 2 else "" for number in range(10))
    ids = tuple(map(str, range(10)))
    read = ImageSet(ids, np.arange(10) % 2, 32, paths, mask_paths)
    if not held:
        return read
    return held_set(read.labels, images_of(read, range(10)), masks_of(read, range(10)))


def held_set(labels, images, masks=None):
    """Images and masks, uint8 (n, S, S, 1), that are held in memory."""
    none = ("",) * len(labels)
    rows = bits = None
    if masks is not None:
        present = masks.any(axis=(1, 2, 3))
        rows, bits = np.where(present, np.cumsum(present) - 1, -1), packed(masks[present, :, :, 0])
    ids = tuple(map(str, range(len(labels))))
    return ImageSet(ids, np.asarray(labels), images.shape[1], none, none, images, bits, None, rows)


def plan(**changes):
    settings = {
        "seed": 3,
        "batch_size": 4,
        "first_epoch": 0,
        "last_epoch": 1,
        "positive_rate": (),
        "augmentation": NO_AUGMENTATION,
    }
    return TrainingPlan(**{**settings, **changes})


def numbers(images):
    """Which image each of the batch's is."""
    return ((np.asarray(images)[:, 0, 0, 0] * 255 - 5) / 20).round().astype(int).tolist()


@pytest.mark.parametrize("held", [True, False])
def test_training_gives_every_image_once_an_epoch_with_its_own_label(folder, held):
    batches = list(training_batches(source(folder, held), plan(last_epoch=2)))
    assert [len(images) for images, _ in batches] == [4, 3, 3, 4, 3, 3]
    for epoch in (batches[:3], batches[3:]):
        seen = [number for images, _ in epoch for number in numbers(images)]
        assert sorted(seen) == list(range(10))
        labels = np.concatenate([np.asarray(label)[:, 0] for _, label in epoch])
        np.testing.assert_array_equal(labels, np.array(seen) % 2)


@pytest.mark.parametrize("held", [True, False])
def test_masks_come_with_their_images(folder, held):
    for images, masks in training_batches(source(folder, held), plan(with_masks=True)):
        for number, mask in zip(numbers(images), np.asarray(masks), strict=True):
            expected = np.zeros((32, 32, 1))
            if number % 2:
                expected[number] = 1
            np.testing.assert_array_equal(mask, expected)


def test_held_and_read_give_the_same_batches(folder):
    settings = plan(last_epoch=2, augmentation=Augmentation(noise=0.1), positive_rate=((0, 0.5),))
    for first, second in zip(
        training_batches(source(folder, True), settings), training_batches(source(folder, False), settings), strict=True
    ):
        for left, right in zip(first, second, strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_later_start_repeats_the_unbroken_run(folder):
    """A resumed run sees what the unbroken one would have seen."""
    augmentation = Augmentation(noise=0.1)
    whole = list(training_batches(source(folder), plan(last_epoch=3, augmentation=augmentation)))
    rest = list(training_batches(source(folder), plan(first_epoch=2, last_epoch=3, augmentation=augmentation)))
    assert len(rest) == 3
    for (left, *_), (right, *_) in zip(whole[6:], rest, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluation_drops_and_reorders_nothing(folder, held, batch_size):
    batches = list(evaluation_batches(source(folder, held), batch_size))
    assert [number for images in batches for number in numbers(images)] == list(range(10))
    assert batches[0].dtype == "float32"


@settings(max_examples=5, deadline=None)
@given(epoch=st.integers(0, 5))
def test_augmented_pixels_stay_in_range(tmp_path_factory, epoch):
    pixels = np.random.default_rng(epoch).integers(0, 256, (6, 32, 32, 1), np.uint8)
    data = held_set([0, 1] * 3, pixels)
    strong = Augmentation(brightness=0.5, contrast=0.9, gamma=0.9, noise=0.5, clahe=0.5)
    for images, *_ in training_batches(data, plan(first_epoch=epoch, last_epoch=epoch + 1, augmentation=strong)):
        assert float(np.min(images)) >= 0
        assert float(np.max(images)) <= 1
        assert np.isfinite(images).all()


@pytest.mark.parametrize("held", [True, False])
def test_a_mask_may_come_with_the_images_own_label(folder, held):
    for images, target in training_batches(source(folder, held), plan(with_masks=True, with_labels=True)):
        numbers = (np.rint(images[:, 0, 0, 0] * 255).astype(int) - 5) // 20
        np.testing.assert_array_equal(target["image"][:, 0], numbers % 2)
        np.testing.assert_array_equal(np.max(target["mask"], axis=(1, 2, 3)), numbers % 2)


def test_a_crop_is_cut_from_image_and_mask_alike_and_labelled_by_what_it_holds(tmp_path):
    """The image is its mask times 200, so a crop shows whether both were cut at the same place."""
    generator = np.random.default_rng(0)
    masks = np.zeros((6, 64, 64, 1), np.uint8)
    for mask in masks[:4]:
        row, column = generator.integers(0, 56, 2)
        mask[row : row + 8, column : column + 8] = 255
    labels = np.array([1, 1, 1, 1, 0, 0])
    made = held_set(labels, (masks > 0) * np.uint8(200), masks)
    places, labels = set(), []
    crops = plan(with_masks=True, with_labels=True, crop=32, last_epoch=8)
    for images, target in training_batches(made, crops):
        assert images.shape[1:] == target["mask"].shape[1:] == (32, 32, 1)
        np.testing.assert_allclose(images, np.asarray(target["mask"]) * 200 / 255, rtol=1e-6)
        np.testing.assert_array_equal(target["image"][:, 0], np.max(target["mask"], axis=(1, 2, 3)))
        labels += target["image"][:, 0].numpy().tolist()
        places |= {tuple(np.argwhere(mask)[0]) for mask in np.asarray(target["mask"])[..., 0] if mask.any()}
    assert len(places) > 5, "crops are cut at many places"
    assert 0 < np.mean(labels) < 4 / 6, "some crops of positives hold nothing"


@pytest.mark.parametrize("held", [True, False])
def test_masks_of_some_images(folder, held):
    masks = masks_of(source(folder, held), np.array([3, 0]))
    assert masks.shape == (2, 32, 32, 1)
    assert masks[0, 3].all()
    assert masks[0].sum() == 32 * 255
    assert not masks[1].any()


def test_a_second_pass_over_the_training_batches_is_the_first_again(folder):
    augmentation = Augmentation(noise=0.1)
    batches = training_batches(source(folder), plan(last_epoch=2, augmentation=augmentation))
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == batches.cardinality() == 6
    for earlier, later in zip(first, second, strict=True):
        for expected, values in zip(earlier, later, strict=True):
            np.testing.assert_array_equal(values, expected)


def test_a_worker_is_fed_its_part_of_every_batch_and_then_the_last_parts_again(folder):
    batches = training_batches(source(folder), plan(last_epoch=2), Share(1, 2, 3))
    whole = [numbers(images) for images, _ in training_batches(source(folder), plan(last_epoch=2))]
    parts = [[numbers(images), weights.numpy().tolist()] for images, _, weights in batches.take(16)]
    for step, images in enumerate(whole):
        expected = [part.tolist() for part in np.array_split(images, 3)[1:]]
        assert [part for part, _ in parts[2 * step : 2 * step + 2]] == expected
        weight = np.float32(1 / len(images))
        assert all(weights == [weight] * len(part) for part, weights in parts[2 * step : 2 * step + 2])
    assert parts[12:] == [*parts[10:12], *parts[10:12]]


@pytest.mark.parametrize("held", [True, False])
def test_labelled_batches_keep_the_order_of_the_images(folder, held):
    batches = labelled_batches(source(folder, held), 4)
    assert batches.cardinality() == 3
    for _ in range(3):
        seen = [(numbers(images), np.asarray(label)[:, 0].tolist()) for images, label in batches]
        assert [image for images, _ in seen for image in images] == list(range(10))
        assert [len(images) for images, _ in seen] == [4, 4, 2]
        assert all(labels == [image % 2 for image in images] for images, labels in seen)


def test_each_pass_of_shuffled_labelled_batches_is_the_next_epoch_of_a_training(folder):
    augmentation = Augmentation(noise=0.1)
    batches = labelled_batches(source(folder), 4, True, augmentation, seed=3, shuffle=True)
    passes = [*batches, *batches]
    epochs = list(training_batches(source(folder), plan(last_epoch=2, augmentation=augmentation, with_masks=True)))
    assert len(passes) == 2 * batches.cardinality() == len(epochs)
    for batch, expected in zip(passes, epochs, strict=True):
        np.testing.assert_array_equal(batch[0], expected[0])
        np.testing.assert_array_equal(batch[1], expected[1])


EVERYTHING = Augmentation(noise=0.1, clahe=0.5)


def equal(left, right):
    """Whether two batches are the same, bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(tf.nest.flatten(left), tf.nest.flatten(right), strict=True))


@settings(max_examples=10, deadline=None)
@given(first=st.integers(0, 8), steps=st.integers(1, 8))
def test_a_run_goes_on_at_any_step_as_if_unbroken(tmp_path_factory, first, steps):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 1), np.uint8)
    images = held_set(np.arange(10) % 2, pixels, pixels // 200)
    settings = plan(last_epoch=3, augmentation=EVERYTHING, with_masks=True, positive_rate=((0, 0.4),))
    epoch, step = divmod(first, 3)
    whole = list(training_batches(images, settings))[first:][:steps]
    rest = list(training_batches(images, replace(settings, first_epoch=epoch, first_step=step)).take(steps))
    assert len(whole) == len(rest)
    assert all(equal(*pair) for pair in zip(whole, rest, strict=True))


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("cores", [1, 3])
def test_the_number_of_threads_changes_nothing(folder, monkeypatch, held, cores):
    settings = plan(last_epoch=3, augmentation=EVERYTHING, with_masks=True)
    expected = list(training_batches(source(folder, held), settings))
    with ThreadPoolExecutor(cores) as pool:
        monkeypatch.setattr(ahead, "threads", lambda: pool)
        monkeypatch.setattr(ahead, "available_cores", lambda: cores)
        batches = list(training_batches(source(folder, held), settings))
    assert all(equal(*pair) for pair in zip(batches, expected, strict=True))


def test_two_iterators_over_one_dataset_do_not_disturb_each_other(folder):
    batches = training_batches(source(folder), plan(last_epoch=4, augmentation=EVERYTHING))
    expected = list(batches)
    given_up = iter(batches)
    for _ in range(3):
        next(given_up)
    slow, fast = iter(batches), iter(batches)
    for number, batch in enumerate(expected):
        assert equal(next(fast), batch)
        if number % 2:
            assert equal(next(slow), expected[number // 2])
    assert equal(next(given_up), expected[3])


def test_each_iterator_over_labelled_batches_is_a_pass_of_its_own(folder):
    batches = labelled_batches(source(folder), 4, True, EVERYTHING, seed=3, shuffle=True)
    epochs = list(training_batches(source(folder), plan(last_epoch=2, augmentation=EVERYTHING, with_masks=True)))
    first, second = iter(batches), iter(batches)
    taken = [(next(first), next(second)) for _ in range(3)]
    starts = [next(number for number in (0, 3) if equal(taken[0][which], epochs[number])) for which in (0, 1)]
    assert sorted(starts) == [0, 3]
    for step, both in enumerate(taken):
        assert all(equal(batch, epochs[start + step]) for batch, start in zip(both, starts, strict=True))


def test_a_file_that_is_gone_ends_the_iteration_with_its_name(folder):
    images = source(folder, held=False)
    (folder / "7.png").unlink()
    with pytest.raises(tf.errors.OpError, match=r"7\.png is missing or is no grey PNG of 32x32"):
        list(training_batches(images, plan()))
    with pytest.raises(tf.errors.OpError, match=r"7\.png is missing"):
        list(evaluation_batches(images, 4))


def test_pixels_of_a_large_folder_are_never_held(tmp_path):
    """A hundred thousand radiographs, of a sparse file: only the batches take memory."""
    count, size = 100_000, 64
    path = tmp_path / "images.npy"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
        )
        stream.truncate(stream.tell() + count * size * size)
    mapped = np.asarray(np.load(path, mmap_mode="r"))
    none = ("",) * count
    images = ImageSet(none, np.arange(count) % 2, size, none, none, mapped)
    batches = iter(training_batches(images, plan(batch_size=16, augmentation=Augmentation())))
    next(batches)
    gc.collect()
    before = anonymous_memory()
    for _ in range(100):
        next(batches)
    # Not tracemalloc: when it stops while threads allocate, Python before 3.12.9 crashes (python/cpython#128679).
    assert anonymous_memory() - before < 0.25 * count * size * size, "a few batches, and no copy of the pixels"


def anonymous_memory():
    """Bytes of this process's memory that are of no file."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux says how much of the memory is of files")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024
