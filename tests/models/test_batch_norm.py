"""BatchNorm: PyTorch's rule by hand in float64, the fused and the general way, and files of Keras's own layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pneumo.models.batch_norm import BatchNormalization, batch_norm

MOMENTUM, EPSILON = 0.9, 1e-5


def layer_of(channels=3, rank=4, seed=0, **options):
    """A layer with random weights and statistics, and these by name, float64."""
    rng = np.random.default_rng(seed)
    layer = BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, **options)
    layer.build((None,) * (rank - 1) + (channels,))
    values = {
        "gamma": rng.uniform(0.5, 1.5, channels),
        "beta": rng.normal(0, 1, channels),
        "moving_mean": rng.normal(0, 1, channels),
        "moving_variance": rng.uniform(0.5, 2, channels),
    }
    for name, value in values.items():
        getattr(layer, name).assign(value)
    return layer, {name: np.asarray(getattr(layer, name), np.float64) for name in values}


def by_hand(x, values, training):
    """Outputs and new running statistics by PyTorch's rule, in float64."""
    x = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    count = x[..., 0].size
    mean, variance = values["moving_mean"], values["moving_variance"]
    running = mean, variance
    if training:
        mean, variance = x.mean(axes), x.var(axes)
        unbiased = variance * count / max(count - 1, 1)
        running = tuple(
            MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(running, (mean, unbiased), strict=True)
        )
    return (x - mean) / np.sqrt(variance + EPSILON) * values["gamma"] + values["beta"], running


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 5, 6, 3), "float32"), ((4, 5, 6, 3), "float64"), ((16, 3), "float32")]
)
def test_outputs_and_running_statistics_are_pytorchs(shape, dtype, training):
    x = np.random.default_rng(1).normal(3, 2, shape).astype(dtype)
    layer, values = layer_of(rank=len(shape), dtype=dtype)
    outputs = layer(x, training=training)
    expected, running = by_hand(x, values, training)
    np.testing.assert_allclose(outputs, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(layer.moving_mean, running[0], rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, running[1], rtol=1e-5)


def operations(dtype, training=True, **options):
    """The types of a layer's operations in a graph."""
    layer, _ = layer_of(dtype=dtype, **options)
    signature = tf.TensorSpec((None, 4, 4, 3), dtype)
    graph = tf.function(lambda x: layer(x, training=training)).get_concrete_function(signature).graph
    return [operation.type for operation in graph.get_operations()]


def test_images_in_single_precision_are_one_operation_and_double_precision_is_not():
    assert operations("float32").count("FusedBatchNormV3") == 1
    assert "FusedBatchNormV3" not in operations("float64")
    # One for a replica's own statistics, one that normalises with those of all.
    assert operations("float32", synchronized=True).count("FusedBatchNormV3") == 2


def test_running_statistics_on_a_gpu_go_the_general_way(monkeypatch):
    """TensorFlow 2.21 has no deterministic gradient of the fused operation there, and a training would end."""
    assert "FusedBatchNormV3" in operations("float32", training=False)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert "FusedBatchNormV3" not in operations("float32", training=False)
    assert "FusedBatchNormV3" in operations("float32", training=True)


def test_over_replicas_the_running_statistics_are_the_same():
    """Without a strategy the replica is all there is: PyTorch's rule again, in both precisions."""
    x = np.random.default_rng(5).normal(3, 2, (5, 4, 4, 3))
    for dtype in ("float32", "float64"):
        layer, values = layer_of(dtype=dtype, synchronized=True)
        outputs, running = by_hand(x.astype(dtype), values, True)
        np.testing.assert_allclose(layer(x.astype(dtype), training=True), outputs, atol=1e-5)
        np.testing.assert_allclose(layer.moving_mean, running[0], atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, running[1], rtol=1e-5)


def test_gradients_of_both_ways_agree():
    x = np.random.default_rng(2).normal(1, 2, (4, 6, 6, 3))
    upstream = np.random.default_rng(3).normal(0, 1, x.shape)

    def gradients(dtype):
        layer, _ = layer_of(dtype=dtype)
        images = tf.constant(x, dtype)
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(layer(images, training=True) * tf.constant(upstream, dtype))
        return tape.gradient(total, [images, layer.gamma.value, layer.beta.value])

    for fused, general in zip(gradients("float32"), gradients("float64"), strict=True):
        np.testing.assert_allclose(fused, general, rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_its_statistics_in_single_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer, values = layer_of()
        x = np.random.default_rng(4).normal(0, 1, (4, 8, 8, 3)).astype(np.float16)
        outputs = layer(x, training=True)
    finally:
        keras.config.set_dtype_policy("float32")
    expected, running = by_hand(x, values, training=True)
    assert outputs.dtype == tf.float16
    assert layer.moving_variance.dtype == "float32"
    np.testing.assert_allclose(outputs, expected, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(layer.moving_variance, running[1], rtol=1e-3)


def test_a_layer_that_does_not_learn_keeps_and_uses_its_statistics():
    layer, values = layer_of()
    layer.trainable = False
    x = np.random.default_rng(5).normal(0, 1, (4, 5, 6, 3)).astype(np.float32)
    outputs = layer(x, training=True)
    np.testing.assert_allclose(outputs, by_hand(x, values, training=False)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, values["moving_mean"])


def test_without_momentum_the_statistics_are_the_last_batchs():
    layer, _ = layer_of()
    layer.momentum = 0.0
    x = np.random.default_rng(6).normal(2, 3, (4, 5, 6, 3)).astype(np.float32)
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, x.reshape(-1, 3).var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3)])
def test_a_single_value_gives_no_infinite_variance(shape):
    layer, _ = layer_of(rank=len(shape))
    layer(np.ones(shape, np.float32), training=True)
    assert np.isfinite(layer.moving_variance).all()


def test_files_of_keras_own_layer_are_read(tmp_path):
    """A run of before this layer was ours: its best.weights.h5 finds its layers by the names of their classes."""

    def network(norm):
        image = keras.Input((None, None, 1))
        x = keras.layers.Conv2D(2, 3, name="conv1")(image)
        x = norm(x, "bn1")
        x = keras.layers.Conv2D(2, 3, name="conv2")(x)
        return keras.Model(image, norm(x, "bn2"))

    keras.utils.set_random_seed(7)
    old = network(lambda x, name: keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x))
    for variable in old.variables:
        variable.assign(np.random.default_rng(8).uniform(0.5, 1.5, variable.shape))
    old.save_weights(tmp_path / "best.weights.h5")
    new = network(batch_norm)
    new.load_weights(tmp_path / "best.weights.h5")
    for ours, theirs in zip(new.variables, old.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x = np.random.default_rng(9).random((2, 9, 9, 1), np.float32)
    np.testing.assert_allclose(new(x), old(x), rtol=1e-5, atol=1e-5)


def test_a_copy_by_its_configuration_is_of_the_same_kind():
    layer, _ = layer_of()
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is BatchNormalization
    assert (copy.momentum, copy.epsilon) == (MOMENTUM, EPSILON)
