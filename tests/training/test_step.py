"""Accumulated gradients give the weights of the large batch, and averaged weights get statistics of their own."""

import keras
import numpy as np
import pytest

from keras_pneumo.config import SEGMENTER
from keras_pneumo.inference.run import build
from keras_pneumo.training.averaging import WeightAverage, estimate_statistics
from keras_pneumo.training.losses import ClassificationLoss, SegmentationLoss, image_losses
from keras_pneumo.training.optimizers import make_optimizer, set_learning
from keras_pneumo.training.step import training_network

FROZEN = SEGMENTER.replace(
    name="x", encoder="resnet18", weights="random", image_size=32, frozen_batchnorm=True, dropout=0.0, clip_norm=1.0,
    schedule="constant", learning_rate=0.1, optimizer="sgd",
)  # fmt: skip


def batch(n=5, size=32):
    generator = np.random.default_rng(0)
    images = generator.random((n, size, size, 1)).astype("float32")
    mask = (generator.random((n, size, size, 1)) > 0.8).astype("float32")
    mask[0] = 0
    return images, {"mask": mask, "image": mask.max(axis=(1, 2))}


def trained(experiment, slices, steps=1):
    model = build(experiment)
    set_learning(model, experiment, True)
    optimizer = make_optimizer(experiment, model, experiment.learning_rate, 10, 5)
    network = training_network(model, image_losses(experiment), optimizer, slices)
    images, target = batch()
    target = target if experiment.image_head else target["mask"]
    losses = [float(network.train_on_batch(images, target, return_dict=True)["loss"]) for _ in range(steps)]
    return model.get_weights(), losses


@pytest.mark.parametrize("head", [True, False])
def test_slices_give_the_weights_of_the_whole_batch_when_batchnorm_is_frozen(head):
    """5 images in 2 slices, so the slices are unequal too. To 1e-6."""
    experiment = FROZEN.replace(image_head=head)
    start = build(experiment).get_weights()
    whole, loss = trained(experiment, 1)
    slices, sliced_loss = trained(experiment, 2)
    assert sliced_loss == pytest.approx(loss, rel=1e-5)
    moved = 0.0
    for before, one, other in zip(start, whole, slices, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)
        moved = max(moved, float(np.abs(one - before).max()))
    assert moved > 1e-3, "the step changed the weights"


@pytest.mark.parametrize("head", [True, False])
def test_the_step_is_that_of_keras(head):
    """Loss and weights of Keras's own training step with Keras's own sum of losses."""
    experiment = FROZEN.replace(image_head=head, clip_norm=None)
    ours, loss = trained(experiment, 1)
    model = build(experiment)
    set_learning(model, experiment, True)
    mask_loss = SegmentationLoss(experiment.loss)
    model.compile(
        make_optimizer(experiment, model, experiment.learning_rate, 10, 5),
        {"mask": mask_loss, "image": ClassificationLoss()} if head else mask_loss,
    )
    images, target = batch()
    target = target if head else target["mask"]
    theirs = model.train_on_batch(images, target, return_dict=True)["loss"]
    assert loss[0] == pytest.approx(float(theirs), rel=1e-5)
    for one, other in zip(ours, model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


def test_frozen_batchnorm_keeps_its_statistics_and_scale():
    model = build(FROZEN)
    names = [variable.path for variable in model.variables]
    for name, before, after in zip(names, model.get_weights(), trained(FROZEN, 2)[0], strict=True):
        if any(part in name for part in ("moving_", "gamma", "beta")):
            np.testing.assert_array_equal(before, after, err_msg=name)


@pytest.mark.slow
def test_learning_batchnorm_takes_the_statistics_of_the_slices():
    """What is stated of BatchNorm: it is the one place where slices are not the whole batch."""
    learning = FROZEN.replace(frozen_batchnorm=False)
    whole, slices = trained(learning, 1)[0], trained(learning, 5)[0]
    assert max(float(np.abs(one - other).max()) for one, other in zip(whole, slices, strict=True)) > 1e-4


def small():
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.9, name="bn")])
    return keras.Model(model.inputs, model.outputs)


def test_statistics_are_plain_means_over_the_batches():
    model = small()
    batches = [np.array([[0.0, 1.0], [2.0, 5.0]], "float32"), np.array([[4.0, 0.0], [8.0, 0.0]], "float32")]
    estimate_statistics(model, batches)
    layer = model.get_layer("bn")
    np.testing.assert_allclose(layer.moving_mean, [3.5, 1.5])
    np.testing.assert_allclose(layer.moving_variance, [2.5, 2.0])
    assert layer.momentum == 0.9


def test_statistics_of_a_layer_that_does_not_learn_stay():
    model = small()
    model.get_layer("bn").trainable = False
    estimate_statistics(model, [np.ones((3, 2), "float32")])
    np.testing.assert_array_equal(model.get_layer("bn").moving_mean, [0, 0])


def test_the_average_is_the_mean_of_the_last_epochs_weights():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    average = WeightAverage(first_epoch=1)
    average.set_model(model)
    for epoch, value in enumerate([100.0, 1.0, 4.0]):
        model.set_weights([np.array([[value]])])
        average.on_epoch_end(epoch)
    average.assign(model)
    assert model.get_weights()[0] == pytest.approx(2.5)
