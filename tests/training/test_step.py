"""Tests of the training step: accumulated gradients give the weights of the large batch."""

import numpy as np
import pytest

from keras_pneumo.config import SEGMENTER
from keras_pneumo.inference.run import build
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


def trained(experiment, micro_batches, steps=1):
    model = build(experiment)
    set_learning(model, experiment, True)
    optimizer = make_optimizer(experiment, model, experiment.learning_rate, 10, 5)
    network = training_network(model, image_losses(experiment), optimizer, micro_batches)
    images, target = batch()
    target = target if experiment.image_head else target["mask"]
    losses = [float(network.train_on_batch(images, target, return_dict=True)["loss"]) for _ in range(steps)]
    return model.get_weights(), losses


@pytest.mark.parametrize("head", [True, False])
def test_micro_batches_give_the_weights_of_the_whole_batch_when_batchnorm_is_frozen(head):
    """5 images in 2 micro-batches, so these are unequal too. To 1e-6."""
    experiment = FROZEN.replace(image_head=head)
    start = build(experiment).get_weights()
    whole, loss = trained(experiment, 1)
    divided, divided_loss = trained(experiment, 2)
    assert divided_loss == pytest.approx(loss, rel=1e-5)
    moved = 0.0
    for before, first, second in zip(start, whole, divided, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6, rtol=0)
        moved = max(moved, float(np.abs(first - before).max()))
    assert moved > 1e-3, "the step changed the weights"


@pytest.mark.parametrize("head", [True, False])
def test_the_step_is_that_of_keras(head):
    """Loss and weights of Keras's own training step with Keras's own sum of losses."""
    experiment = FROZEN.replace(image_head=head, clip_norm=None)
    weights, loss = trained(experiment, 1)
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
    for first, second in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6, rtol=0)


def test_frozen_batchnorm_keeps_its_statistics_and_scale():
    model = build(FROZEN)
    names = [variable.path for variable in model.variables]
    for name, before, after in zip(names, model.get_weights(), trained(FROZEN, 2)[0], strict=True):
        if any(part in name for part in ("moving_", "gamma", "beta")):
            np.testing.assert_array_equal(before, after, err_msg=name)


@pytest.mark.slow
def test_learning_batchnorm_takes_the_statistics_of_each_micro_batch():
    """A learning BatchNorm is the only difference between micro-batches and the whole batch."""
    learning = FROZEN.replace(frozen_batchnorm=False)
    whole, divided = trained(learning, 1)[0], trained(learning, 5)[0]
    assert max(float(np.abs(first - second).max()) for first, second in zip(whole, divided, strict=True)) > 1e-4
