"""Which image comes when: every one, as often as asked for, decided by seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.config import NO_AUGMENTATION
from keras_pneumo.data.batches.order import (
    Share,
    TrainingPlan,
    epoch_order,
    rate_at,
    repeats_of,
    replaced,
    steps_per_epoch,
)
from keras_pneumo.errors import PneumoError


@given(n=st.integers(1, 60), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_full_permutation_that_seed_and_epoch_decide(n, seed, epoch):
    labels = np.zeros(n, int)
    order = epoch_order(labels, seed, epoch)
    assert sorted(order) == list(range(n))
    np.testing.assert_array_equal(order, epoch_order(labels, seed, epoch))
    if n > 20:
        assert not np.array_equal(order, epoch_order(labels, seed, epoch + 1))
        assert not np.array_equal(order, epoch_order(labels, seed + 1, epoch))


def test_any_image_can_come_first():
    """A shuffle within a buffer would keep late images late."""
    labels = np.zeros(50, int)
    firsts = {int(epoch_order(labels, 0, epoch)[0]) for epoch in range(400)}
    assert len(firsts) == 50


@given(positives=st.integers(1, 20), negatives=st.integers(1, 60), rate=st.floats(0, 1), epoch=st.integers(0, 50))
def test_positives_come_at_the_rate_and_evenly(positives, negatives, rate, epoch):
    labels = np.array([1] * positives + [0] * negatives)
    order = epoch_order(labels, 7, epoch, rate)
    assert len(order) == len(labels)
    assert labels[order].sum() == round(len(labels) * rate)
    for members in (np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)):
        counts = np.bincount(order, minlength=len(labels))[members]
        assert counts.max() - counts.min() <= 1, "an image is drawn again only when its whole class has been"


def test_a_rate_without_that_class_is_refused():
    with pytest.raises(PneumoError, match="positive"):
        epoch_order(np.zeros(5, int), 0, 0, 0.5)
    with pytest.raises(PneumoError, match="negative"):
        epoch_order(np.ones(5, int), 0, 0, 0.5)


def test_the_rate_may_change_by_epoch():
    steps = ((0, 0.8), (10, 0.6), (20, 0.4))
    assert [rate_at(steps, epoch) for epoch in (0, 9, 10, 19, 20, 99)] == [0.8, 0.8, 0.6, 0.6, 0.4, 0.4]
    assert rate_at((), 5) is None


def test_repeats_count_earlier_draws():
    assert repeats_of(np.array([4, 1, 4, 4, 1])).tolist() == [0, 0, 1, 2, 1]


@given(n=st.integers(1, 300), batch=st.integers(1, 40))
def test_batches_are_as_equal_as_can_be(n, batch):
    plan = TrainingPlan(3, batch, 0, 1, (), NO_AUGMENTATION)
    sizes = [len(rows) for rows in plan.rows(n)]
    assert sum(sizes) == n
    assert len(sizes) == steps_per_epoch(n, batch)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1


@given(images=st.integers(1, 40), workers=st.integers(1, 4), local=st.integers(1, 4))
def test_all_replicas_parts_together_are_every_row_once_and_as_equal_as_can_be(images, workers, local):
    count = workers * local
    parts = [part for first in range(0, count, local) for part in Share(first, local, count).parts(images)]
    assert np.concatenate(parts).tolist() == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_skipped_image_gives_its_place_to_another_of_its_class():
    labels = np.array([0, 0, 1, 1, 1])
    order = replaced(np.array([4, 0, 2, 1, 3]), labels, (0, 3, 4))
    assert order.tolist() == [2, 1, 2, 1, 2]
    with pytest.raises(PneumoError, match="All negative training images"):
        replaced(np.array([4, 0, 2, 1, 3]), labels, (0, 1))
