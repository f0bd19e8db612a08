"""The training step: the loss of a batch, its gradients, and one step of the optimizer.

``keras-pneumo train``, ``find-lr`` and the check of twenty steps in ``keras-pneumo parity`` all learn by this step, so
what is checked is what runs. In: a network, the experiment's losses, an optimizer, a number of micro-batches and the
devices. Out: a :class:`TrainingNetwork` with the same layers.

The step takes its part of the batch in micro-batches, one after the other, adds up their gradients, then those of all
replicas, and updates the weights once. Every image weighs the same, also where the batch does not divide evenly, and
the optimizer (its schedule, clipping, moments and average) does not notice. Where no layer looks beyond its own image
the result is that of the undivided batch. BatchNorm does look: while it learns, its statistics are those of each
micro-batch (over all replicas), as in every gradient accumulation. In this way the weights of a large batch come out
of a small memory; Keras's own accumulation fails under a strategy.

The losses and :func:`loss_and_gradients` run on Keras's TensorFlow, PyTorch and JAX backends;
:class:`TrainingNetwork` is a TensorFlow graph, so TensorFlow is imported only where Keras runs on it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_pneumo.models.preprocessing import full_dtype
from keras_pneumo.training.losses import ImageLosses

if TYPE_CHECKING:
    from keras_pneumo.training.distributed.strategy import Distribution

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def loss_and_gradients(
    model: keras.Model,
    losses_of: ImageLosses,
    images: Any,
    target: Any,
    weight: Any,
    scale_loss: Callable[[Any], Any] = lambda loss: loss,
) -> tuple[Any, list[Any]]:
    """The weighted loss of some images in training mode, and its gradients: the one place where losses are composed.

    Args:
        model: whose trainable variables the gradients are for; BatchNorm's statistics move.
        losses_of: from :func:`keras_pneumo.training.losses.image_losses`.
        images: (B, S, S, 1).
        target: of these images.
        weight: of each image, shape (B,); one over the number of images of the whole batch.
        scale_loss: the optimizer's, which float16 needs; the gradients are those of the scaled loss.

    Returns:
        The loss, not scaled, and the gradient by each trainable variable.
    """

    def forward() -> tuple[Any, Any]:
        output = model(images, training=True)
        losses = keras.ops.cast(losses_of(target, output), full_dtype())
        loss = keras.ops.sum(keras.ops.cast(weight, full_dtype()) * losses)
        return scale_loss(loss), loss

    variables = model.trainable_variables
    if keras.backend.backend() == "tensorflow":
        with tf.GradientTape() as tape:
            scaled, loss = forward()
        return loss, tape.gradient(scaled, [variable.value for variable in variables])
    if keras.backend.backend() == "jax":
        return _differentiated_by_jax(forward, variables, model.non_trainable_variables)
    # Keras's PyTorch backend, by methods of the tensors only, since the package does not import torch.
    model.zero_grad()
    scaled, loss = forward()
    scaled.backward()
    return loss.detach(), [variable.value.grad for variable in variables]


def _differentiated_by_jax(
    forward: Callable[[], tuple[Any, Any]], variables: Sequence[Any], state: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """The loss and the gradients on Keras's JAX backend, where a function may read and set no variable.

    So the variables' values come in as an argument, what the pass would have set (BatchNorm's statistics, the states
    of random generators) goes out beside the loss, and is set afterwards.
    """
    import jax

    held = [variable.value for variable in state]

    def scaled_loss(values: list[Any]) -> tuple[Any, tuple[Any, list[Any]]]:
        given = [*zip(variables, values, strict=True), *zip(state, held, strict=True)]
        with keras.StatelessScope(state_mapping=given) as scope:
            scaled, loss = forward()
        return scaled, (loss, [scope.get_current_value(variable) for variable in state])

    gradients, (loss, moved) = jax.grad(scaled_loss, has_aux=True)([variable.value for variable in variables])
    for variable, value in zip(state, moved, strict=True):
        variable.assign(value)
    return loss, gradients


class TrainingNetwork(keras.Model):
    """A functional network with the training step; made by :func:`training_network`."""

    train_function: Callable[[Any], Any] | None
    graph: Any
    distribution: Distribution
    losses_of: ImageLosses
    micro_batches = 1
    stop_request = 0
    """Set to 1 when this worker wants to stop after the step; the step returns the sum over all replicas."""
    data_seconds = 0.0
    """Time spent waiting for batches since this was last set to 0."""

    @property
    def metrics(self) -> list[Any]:
        """None: a step returns its own loss, and whoever wants a mean takes it on the host."""
        return []

    def _maybe_symbolic_build(self, *arguments: Any, **named: Any) -> None:
        """Nothing: all is built already. Keras 3.15's own fails with several workers; see ``distributed.strategy``."""

    def make_train_function(self, force: bool = False) -> Callable[[Any], Any]:
        """The function that ``fit`` and ``train_on_batch`` call with their iterator, once a step."""
        if self.train_function is None or force:
            self.graph = None

            def function(iterator: Any) -> dict[str, Any]:
                if self.graph is None:
                    jit = self.distribution.compiles and self.micro_batches == 1 and bool(self.jit_compile)
                    self.graph = self.distribution.step_function(
                        self.learn, jit, getattr(iterator, "element_spec", None)
                    )
                started = time.perf_counter()
                data = next(iterator)
                self.data_seconds += time.perf_counter() - started
                return self.take_step(data)

            self.train_function = function
        return self.train_function

    def take_step(self, data: Any) -> dict[str, Any]:
        """One step of one batch (under a strategy, of one part for each replica), called on the host."""
        return self.graph(data, tf.constant(self.stop_request, tf.int32))

    def learn(self, data: Any, stop_request: Any) -> dict[str, Any]:
        """One step of one replica.

        Returns:
            ``loss`` and ``gradient_norm`` (before clipping) of the whole batch, and the sum of all ``stop_requests``.
        """
        images, target, weight = keras.utils.unpack_x_y_sample_weight(data)
        if weight is None:
            count = tf.shape(images)[0]
            weight = tf.fill([count], 1.0 / tf.cast(count, tf.float32))
        loss, gradients = self.gradients_of(images, target, weight)
        scale = tf.cast(self.optimizer.scale_loss(tf.constant(1.0)), tf.float32)
        # One type for all, since TensorFlow sends them as one.
        loss, requests, *gradients = self.distribution.sum_over_replicas(
            [loss, tf.cast(stop_request, loss.dtype), *gradients]
        )
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32) / scale
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "gradient_norm": norm, "stop_requests": requests}

    def gradients_of(self, images: Any, target: Any, weight: Any) -> tuple[Any, list[Any]]:
        """The weighted loss of these images and the gradients of its scaled value, one micro-batch after the other."""
        if self.micro_batches == 1:
            return self._micro_batch_gradients(images, target, weight)
        count = tf.shape(images)[0]
        ends = [count * number // self.micro_batches for number in range(self.micro_batches + 1)]
        variables = self.trainable_variables
        loss = tf.constant(0.0, full_dtype())
        gradients = [tf.zeros(variable.shape, full_dtype()) for variable in variables]

        def add(start: Any, end: Any, total: Any, before: list[Any]) -> tuple[Any, list[Any]]:
            part = tf.nest.map_structure(lambda whole: whole[start:end], (images, target, weight))
            part_loss, now = self._micro_batch_gradients(*part)
            return total + part_loss, [old + tf.cast(new, old.dtype) for old, new in zip(before, now, strict=True)]

        if self.distribution.strategy is not None:
            # No replica may talk to the others from within a loop; so the micro-batches are written out one by one.
            for start, end in itertools.pairwise(ends):
                with tf.control_dependencies(gradients):
                    loss, gradients = add(start, end, loss, gradients)
            return loss, gradients
        bounds = tf.stack(ends)
        _, loss, gradients = tf.while_loop(
            lambda number, *_: number < self.micro_batches,
            lambda number, total, before: (number + 1, *add(bounds[number], bounds[number + 1], total, before)),
            (tf.constant(0), loss, gradients),
            parallel_iterations=1,  # the activations of one micro-batch at a time are the point
        )
        return loss, gradients

    def _micro_batch_gradients(self, images: Any, target: Any, weight: Any) -> tuple[Any, list[Any]]:
        return loss_and_gradients(self, self.losses_of, images, target, weight, self.optimizer.scale_loss)

    def try_micro_batch(self, data: Any) -> None:
        """A forward and a backward pass of one micro-batch; no weight changes, but BatchNorm's statistics move."""

        def passes(data: Any, _stop_request: Any) -> dict[str, Any]:
            loss, gradients = self._micro_batch_gradients(*data)
            return {"sum": tf.add_n([tf.reduce_sum(gradient) for gradient in gradients]) + loss}

        result = self.distribution.step_function(passes, False)(data, tf.constant(0))
        float(result["sum"])  # wait for it

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch, which under a strategy all replicas share and every worker gets whole."""
        if self.distribution.strategy is None:
            return super().predict_on_batch(x)
        if not hasattr(self, "predictor"):
            self.predictor = self.distribution.predictor(self)
        return self.predictor(x)


def training_network(
    model: keras.Model,
    losses_of: ImageLosses,
    optimizer: keras.optimizers.Optimizer,
    micro_batches: int = 1,
    distribution: Distribution | None = None,
    kind: type[TrainingNetwork] = TrainingNetwork,
) -> TrainingNetwork:
    """A compiled :class:`TrainingNetwork` that shares the model's layers and weights.

    Args:
        model: functional, with the layers learning that are to learn.
        losses_of: from :func:`keras_pneumo.training.losses.image_losses`.
        optimizer: a new one.
        micro_batches: into how many parts a replica divides its part of a batch.
        distribution: the devices, within whose scope this is called; default: one device.
        kind: the class of the network; tests give one whose step fails in a certain way.
    """
    from keras_pneumo.training.distributed.strategy import ONE_DEVICE  # it imports TensorFlow

    network = kind(model.inputs, model.output, name=model.name)
    network.micro_batches = micro_batches
    network.distribution = distribution or ONE_DEVICE
    network.losses_of = losses_of
    network.compile(optimizer)
    if not network.optimizer.built:
        network.optimizer.build(network.trainable_variables)
    return network
