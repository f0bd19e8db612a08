"""BatchNorm over replicas against its formula in float64: on one device here, on two in ``step_lab.py``."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.models import synchronized
from keras_pneumo.models.synchronized import synchronized_batch_norm

EPSILON = 1e-5


def expected(images, of_output, gamma, beta):
    """Outputs, mean, unbiased variance, and gradients of images, gamma and beta, by the formulas and in float64."""
    images, of_output, gamma, beta = (np.asarray(array, np.float64) for array in (images, of_output, gamma, beta))
    axes, count = tuple(range(images.ndim - 1)), images[..., 0].size
    mean, variance = images.mean(axes), images.var(axes)
    deviation = np.sqrt(variance + EPSILON)
    normalised = (images - mean) / deviation
    of_gamma, of_beta = (of_output * normalised).sum(axes), of_output.sum(axes)
    of_images = gamma / deviation * (of_output - (of_beta + normalised * of_gamma) / count)
    unbiased = variance * count / max(count - 1, 1)
    return [normalised * gamma + beta, mean, unbiased, of_images, of_gamma, of_beta]


def results(images, of_output, gamma, beta):
    """The same by the code."""

    @tf.function
    def run(x, of_y, gamma, beta):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma, beta])
            y, mean, variance = synchronized_batch_norm(x, gamma, beta, EPSILON)
            product = tf.reduce_sum(y * of_y)
        return y, mean, variance, *tape.gradient(product, [x, gamma, beta])

    return [value.numpy() for value in run(*(tf.constant(array) for array in (images, of_output, gamma, beta)))]


def arrays(shape, kind, mean=0.0, seed=0):
    generator = np.random.default_rng(seed)
    channels = (shape[-1],)
    images, of_output = generator.normal(mean, 2.0, shape).astype(kind), generator.normal(size=shape).astype(kind)
    weights = np.float32 if kind == np.float16 else kind
    return images, of_output, *(generator.normal(size=channels).astype(weights) for _ in range(2))


def assert_close(found, wanted, tolerance):
    names = ("outputs", "mean", "variance", "of images", "of gamma", "of beta")
    for name, one, other in zip(names, found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1, np.abs(other).max()), err_msg=name)


@pytest.mark.parametrize(
    ("shape", "kind", "mean", "tolerance"),
    [
        ((5, 3, 4, 2), np.float32, 0.0, 3e-6),
        ((5, 3, 4, 2), np.float32, 300.0, 1e-4),
        ((5, 3, 4, 2), np.float16, 0.0, 5e-3),
        ((5, 3, 4, 2), np.float64, 300.0, 1e-9),
        ((9, 6), np.float32, 0.0, 3e-6),
        ((1, 1, 1, 3), np.float32, 0.0, 3e-6),
    ],
    ids=["images", "far from 0", "half precision", "float64", "vectors", "one value"],
)
def test_batch_norm_and_its_gradient_follow_the_formula(shape, kind, mean, tolerance):
    given_arrays = arrays(shape, kind, mean)
    assert_close(results(*given_arrays), expected(*given_arrays), tolerance)


def test_the_gradient_without_the_fused_operation_is_the_same(monkeypatch):
    """A GPU has no deterministic fused one; on a CPU the general one gives the same in the same precision."""
    monkeypatch.setattr(synchronized.tf.config, "list_logical_devices", lambda kind: [kind])
    given_arrays = arrays((5, 3, 4, 2), np.float32)
    assert_close(results(*given_arrays), expected(*given_arrays), 3e-6)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=12),
    first=st.integers(0, 12),
    shift=st.sampled_from([0.0, 1e4]),
)
def test_two_parts_have_the_statistics_of_the_whole(values, first, shift):
    """Also where a part has no image; the merged variance is as exact as float32 values far from 0 allow."""
    whole = (np.float32(values) + np.float32(shift)).reshape(-1, 1, 1, 1)
    parts = [whole[: min(first, len(whole))], whole[min(first, len(whole)) :]]
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synchronized, "sum_over_replicas", lambda message: sent.append(message) or message)
        for part in parts:
            synchronized._statistics_of_all_replicas(tf.constant(part), tf.float32)
        patch.setattr(synchronized, "sum_over_replicas", lambda _: sent[0] + sent[1])
        total, mean, variance = synchronized._statistics_of_all_replicas(tf.constant(parts[0]), tf.float32)
    assert float(total) == len(whole)
    exact = whole.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), exact.mean(keepdims=True).ravel(), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(variance.numpy(), exact.var(keepdims=True).ravel(), rtol=1e-4, atol=1e-4 + shift * 1e-5)


@pytest.mark.parametrize("part", [(4, 3), (7, 0), (1, 6)])
def test_two_devices_with_unequal_parts_give_what_one_gives(step_lab, part):
    """In float64 to rounding, so that the method is right and not the tolerance wide. One part is empty."""
    for kind, mean, tolerance in (("float32", 0.0, 3e-6), ("float32", 300.0, 1e-4), ("float64", 300.0, 1e-9)):
        found = [step_lab["arrays"][f"{kind} {mean} {part} {number}"] for number in range(10)]
        assert_close(found[:6], expected(*found[6:]), tolerance)


def test_the_merge_keeps_a_small_spread_far_from_zero():
    """A difference of float32 squares, as in Keras 3.15, gives 0 or worse here: 1e4 squared has steps of 8."""
    whole = (1e4 + np.float32([0.25, 0.5, 0.75, 1.0])).reshape(-1, 1, 1, 1).astype(np.float32)
    _, _, variance = synchronized._statistics_of_all_replicas(tf.constant(whole), tf.float32)
    np.testing.assert_allclose(variance.numpy(), [np.var([0.25, 0.5, 0.75, 1.0])], rtol=1e-5)
