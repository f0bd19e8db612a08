"""Tests of the losses: on 3x3 masks by hand, against definitions in numpy, and against finite differences."""

import itertools
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_pneumo.errors import PneumoError
from keras_pneumo.training.losses import (
    TERMS,
    ClassificationLoss,
    SegmentationLoss,
    bce,
    focal,
    lovasz_hinge,
    parse_recipe,
    soft_dice,
)

SURE = 40.0
"""A logit whose probability is 1 in float32."""

EMPTY = np.zeros((3, 3))
CORNER = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]])
COLUMN = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]])
FULL = np.ones((3, 3))


def batch(mask):
    return np.float32(mask)[None, ..., None]


def sure(mask):
    """Logits of a prediction that is sure of this mask."""
    return batch(np.where(mask, SURE, -SURE))


def value(loss, truth, logits, **options):
    out = np.array(loss(truth, logits, **options))
    assert out.dtype == np.float32
    assert out.shape == (len(truth),)
    return out[0]


@pytest.mark.parametrize(
    ("truth", "prediction", "overlap", "total"),
    [
        (CORNER, CORNER, 2, 4),
        (CORNER, COLUMN, 1, 5),
        (CORNER, EMPTY, 0, 2),
        (EMPTY, EMPTY, 0, 0),
        (EMPTY, CORNER, 0, 2),
        (EMPTY, FULL, 0, 9),
        (FULL, FULL, 9, 18),
        (CORNER, FULL, 2, 11),
    ],
)
@pytest.mark.parametrize("smoothing", [1, 3])
def test_soft_dice_of_sure_masks(truth, prediction, overlap, total, smoothing):
    expected = 1 - Fraction(2 * overlap + smoothing, total + smoothing)
    result = value(soft_dice, batch(truth), sure(prediction), smoothing=smoothing)
    assert result == pytest.approx(float(expected), abs=1e-6)


def test_soft_dice_of_an_undecided_prediction():
    # p = 1/2 on nine pixels, two true ones: overlap 1, total 4.5 + 2.
    assert value(soft_dice, batch(CORNER), batch(EMPTY)) == pytest.approx(1 - (2 + 1) / (6.5 + 1))


def test_bce_by_hand():
    assert value(bce, batch(CORNER), batch(EMPTY)) == pytest.approx(np.log(2))
    # Two true pixels at p = 3/4, seven false ones at 1/2.
    logits = batch(CORNER * np.log(3))
    assert value(bce, batch(CORNER), logits) == pytest.approx((2 * np.log(4 / 3) + 7 * np.log(2)) / 9)
    assert value(bce, batch(CORNER), sure(EMPTY)) == pytest.approx(2 * SURE / 9)
    assert value(bce, batch(CORNER), sure(CORNER)) == pytest.approx(0, abs=1e-12)


def test_focal_by_hand():
    # (1 - 1/2)^2 log 2 on every pixel.
    assert value(focal, batch(CORNER), batch(EMPTY)) == pytest.approx(np.log(2) / 4)
    logits = batch(CORNER * np.log(3))
    expected = (2 * (1 / 4) ** 2 * np.log(4 / 3) + 7 * np.log(2) / 4) / 9
    assert value(focal, batch(CORNER), logits) == pytest.approx(expected)
    assert value(focal, batch(CORNER), logits, focus=0.0) == pytest.approx(value(bce, batch(CORNER), logits))


def jaccard_loss(truth, wrong):
    """One minus the Jaccard index when exactly the pixels in ``wrong`` are predicted wrongly."""
    right = {p for p in np.flatnonzero(truth) if p not in wrong}
    union = set(np.flatnonzero(truth)) | set(wrong)
    return Fraction(len(union) - len(right), len(union)) if union else Fraction(0)


def lovasz_by_definition(truth, logits):
    """The Lovasz extension of the Jaccard loss at the hinge errors, by its definition (arXiv 1705.08790)."""
    errors = 1 - (2 * truth.ravel() - 1) * logits.ravel()
    order = np.argsort(-errors, kind="stable")
    losses = [jaccard_loss(truth.ravel(), set(order[:n].tolist())) for n in range(len(order) + 1)]
    growth = [float(after - before) for before, after in itertools.pairwise(losses)]
    return float(np.dot(np.maximum(errors[order], 0), growth))


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (3, 3), elements=st.sampled_from([0.0, 1.0])),
    arrays(np.float64, (3, 3), elements=st.floats(-3, 3, width=16)),
)
def test_lovasz_is_its_definition_on_any_3x3_mask(truth, logits):
    assert value(lovasz_hinge, batch(truth), batch(logits)) == pytest.approx(
        lovasz_by_definition(truth, logits), abs=1e-4
    )


def test_lovasz_by_hand():
    # Corner predicted as column, sure by 1: one missed pixel and two false ones, each with error 2; the rest 0.
    # Jaccard loss of these three wrong pixels: right 1, union 4.
    logits = batch(np.where(COLUMN, 1.0, -1.0))
    assert value(lovasz_hinge, batch(CORNER), logits) == pytest.approx(2 * 3 / 4)
    # An empty truth costs its highest logit alone: hinge 1 + z.
    scores = np.array([[-3, -2, 0.5], [-4, -1, -6], [-7, -8, -9.0]])
    assert value(lovasz_hinge, batch(EMPTY), batch(scores)) == pytest.approx(1.5)
    assert value(lovasz_hinge, batch(EMPTY), sure(EMPTY)) == 0
    assert value(lovasz_hinge, batch(CORNER), sure(CORNER)) == 0


def gradient(loss, truth, logits):
    import tensorflow as tf

    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(loss(truth, logits))
    return tape.gradient(total, logits).numpy()


@pytest.mark.parametrize("word", TERMS)
@pytest.mark.parametrize("truth", [CORNER, EMPTY, FULL], ids=["corner", "empty", "full"])
def test_gradients_are_those_of_finite_differences(word, truth):
    loss = TERMS[word]
    logits = np.random.default_rng(3).normal(0, 2, (1, 3, 3, 1))  # float64, so that the difference has digits
    truth, step = batch(truth), 1e-6
    expected = np.zeros_like(logits)
    for position in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[position] += step
        down[position] -= step
        expected[position] = float((loss(truth, up) - loss(truth, down))[0]) / (2 * step)
    np.testing.assert_allclose(gradient(loss, truth, logits), expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradient(loss, truth, np.float32(logits)), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("word", TERMS)
def test_any_logit_gives_a_finite_loss_and_gradient(word):
    for size in (0.0, 1e-30, 20.0, 90.0, 1e4, 1e30):
        for truth in (CORNER, EMPTY, FULL):
            for sign in (1, -1):
                logits = np.full((1, 3, 3, 1), sign * size, np.float32)
                logits[0, 0, 0, 0] *= -1
                assert np.isfinite(np.array(TERMS[word](batch(truth), logits))).all()
                assert np.isfinite(gradient(TERMS[word], batch(truth), logits)).all()


@pytest.mark.parametrize("word", TERMS)
def test_the_gradient_reduces_a_false_mask_on_an_empty_truth(word):
    logits = batch(np.where(CORNER, 2.0, -2.0))
    logits[0, 0, 1, 0] = 3.0
    slopes = gradient(TERMS[word], batch(EMPTY), logits)
    assert (slopes >= 0).all()
    assert slopes.max() == slopes[0, 0, 1, 0] > 1e-3 or word == "dice"
    assert slopes[0, 0, :2, 0].max() > 1e-3


def test_a_confident_error_keeps_its_gradient():
    # The probability is 1 in float32 here; a loss through the clipped probability would have no gradient.
    for word, expected in (("bce", 1 / 9), ("focal", 1 / 9)):
        assert gradient(TERMS[word], batch(EMPTY), sure(CORNER))[0, 0, 0, 0] == pytest.approx(expected)


@pytest.mark.parametrize("word", TERMS)
def test_half_precision_logits_and_byte_masks_are_summed_in_float32(word):
    rng = np.random.default_rng(4)
    mask = (rng.random((2, 512, 512, 1)) < 0.3).astype(np.uint8)
    mask[1] = 0
    logits = keras.ops.convert_to_tensor(rng.normal(0, 3, mask.shape).astype(np.float16))
    loss = np.array(TERMS[word](mask, logits))
    assert loss.dtype == np.float32
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(loss, np.array(TERMS[word](mask, keras.ops.cast(logits, "float64"))), rtol=1e-4)


def test_lovasz_keeps_its_digits_on_a_million_pixels():
    rng = np.random.default_rng(5)
    mask = np.zeros((1, 1024, 1024, 1), np.float32)
    mask[0, 100:190, 100:190] = 1
    logits = rng.normal(-2, 1, mask.shape).astype(np.float32)
    exact = np.array(lovasz_hinge(mask, logits.astype(np.float64)))
    np.testing.assert_allclose(np.array(lovasz_hinge(mask, logits)), exact, rtol=1e-5)
    np.testing.assert_allclose(
        gradient(lovasz_hinge, mask, logits).sum(), gradient(lovasz_hinge, mask, np.float64(logits)).sum(), rtol=1e-4
    )


def test_each_image_counts_for_itself():
    truth = np.concatenate([batch(CORNER), batch(EMPTY), batch(FULL)])
    logits = np.random.default_rng(6).normal(size=truth.shape).astype(np.float32)
    for loss in TERMS.values():
        singly = [np.array(loss(truth[i : i + 1], logits[i : i + 1]))[0] for i in range(3)]
        np.testing.assert_allclose(np.array(loss(truth, logits)), singly, rtol=1e-5)


def test_recipes_are_read_as_they_are_written():
    assert parse_recipe("3 BCE + 1 Dice + 4 focal") == [(3.0, "bce"), (1.0, "dice"), (4.0, "focal")]
    assert parse_recipe("2.7*bce+.9 dice") == [(2.7, "bce"), (0.9, "dice")]
    assert parse_recipe("lovasz") == [(1.0, "lovasz")]


@pytest.mark.parametrize("recipe", ["", "3", "bce +", "-1 bce", "0 bce", "bce + bce", "3 jaccard", "3 bce 1 dice"])
def test_other_recipes_are_refused(recipe):
    with pytest.raises(PneumoError, match="loss"):
        parse_recipe(recipe)


def test_weighted_sum_over_a_batch():
    truth = np.concatenate([batch(CORNER), batch(EMPTY)])
    logits = np.concatenate([batch(CORNER * np.log(3)), batch(EMPTY)])
    loss = SegmentationLoss("3 BCE + 1 Dice + 4 focal")
    parts = [np.array(f(truth, logits)) for f in (bce, soft_dice, focal)]
    assert float(loss(truth, logits)) == pytest.approx(np.mean(3 * parts[0] + parts[1] + 4 * parts[2]))
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.terms == loss.terms
    weighted = float(loss(truth, logits, sample_weight=np.array([1.0, 0.0], np.float32)))
    assert weighted == pytest.approx((3 * parts[0] + parts[1] + 4 * parts[2])[0] / 2)


def test_classification_loss_by_hand():
    truth, logits = np.float32([[1], [0]]), np.float32([[np.log(3)], [np.log(3)]])
    hit, miss = np.log(4 / 3), np.log(4)
    assert float(ClassificationLoss()(truth, logits)) == pytest.approx((hit + miss) / 2)
    assert float(ClassificationLoss(positive_weight=3.0)(truth, logits)) == pytest.approx((3 * hit + miss) / 2)
    smoothed = ClassificationLoss(label_smoothing=0.2)
    expected = (0.9 * hit + 0.1 * miss + 0.9 * miss + 0.1 * hit) / 2
    assert float(smoothed(truth, logits)) == pytest.approx(expected)
    both = ClassificationLoss(label_smoothing=0.2, positive_weight=2.0)
    assert float(both(truth, logits)) == pytest.approx((2 * (0.9 * hit + 0.1 * miss) + 0.9 * miss + 0.1 * hit) / 2)
    copy = keras.losses.deserialize(keras.losses.serialize(both))
    assert (copy.label_smoothing, copy.positive_weight) == (0.2, 2.0)
    # Labels of shape (batch,), as a table gives them, mean the same.
    assert float(smoothed(truth[:, 0], logits)) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"positive_weight": 0.0}])
def test_classification_settings_are_checked(options):
    with pytest.raises(PneumoError):
        ClassificationLoss(**options)


def test_a_batch_of_empty_masks_trains():
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    model.compile(keras.optimizers.SGD(0.5), loss=SegmentationLoss("3 bce + 1 dice + 4 focal"))
    image = np.random.default_rng(8).random((4, 8, 8, 1)).astype(np.float32)
    history = model.fit(image, np.zeros_like(image), epochs=20, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < 0.5 * history[0]
