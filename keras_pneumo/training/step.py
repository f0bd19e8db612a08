"""The network while it learns: a training step in slices, on any number of replicas, with the same result.

In: a network, the loss of each image, a number of slices and an engine. Out: a network with the same layers whose
training step takes its part of the batch slice by slice, one after the other, adds up their gradients, then those of
all replicas, and steps once. Every image weighs the same, also where the batch does not divide evenly, and the
optimizer (its schedule, clipping, moments and average) never notices. Where no layer looks beyond its own image the
result is that of the undivided batch. BatchNorm does look: while it learns, its statistics are those of each slice
(over all replicas), as in every gradient accumulation. That is how the weights of a large batch come out of a small
memory; Keras's own accumulation fails under a strategy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_pneumo.models.preprocessing import full_dtype
from keras_pneumo.training.distributed.strategy import ONE, Engine

ImageLosses = Callable[[Any, Any], Any]
"""From target and output to the loss of each image, shape (batch,)."""


class Network(keras.Model):
    """A functional network with a training step of its own; made by :func:`learner`."""

    train_function: Callable[[Any], Any] | None
    graph: Any
    engine: Engine
    image_losses: ImageLosses
    slices = 1
    wish = 0
    """Set to 1 when this worker wishes to stop after the step; the step's ``wish`` is the sum over all replicas."""
    data_seconds = 0.0
    """Time spent waiting for batches since this was last set to 0."""

    @property
    def metrics(self) -> list[Any]:
        """None: a step returns its own loss, and whoever wants a mean takes it on the host."""
        return []

    def _maybe_symbolic_build(self, *arguments: Any, **named: Any) -> None:
        """Nothing: all is built already. Keras 3.15's own fails with several workers; see ``distribution``."""

    def make_train_function(self, force: bool = False) -> Callable[[Any], Any]:
        """What ``fit`` calls with its iterator, once a step."""
        if self.train_function is None or force:
            self.graph = None

            def function(iterator: Any) -> dict[str, Any]:
                if self.graph is None:
                    jit = self.slices == 1 and self.engine.strategy is None and bool(self.jit_compile)
                    self.graph = self.engine.step_function(self.learn, jit, getattr(iterator, "element_spec", None))
                started = time.perf_counter()
                data = next(iterator)
                self.data_seconds += time.perf_counter() - started
                return self.take_step(data)

            self.train_function = function
        return self.train_function

    def take_step(self, data: Any) -> dict[str, Any]:
        """One step of one batch (under a strategy, of one part for each replica), from the host."""
        return self.graph(data, tf.constant(self.wish, tf.int32))

    def try_part(self, data: Any) -> None:
        """A forward and a backward pass of one slice; nothing is learnt, but BatchNorm's statistics move."""

        def work(data: Any, wish: Any) -> dict[str, Any]:
            loss, gradients = self._slice_gradients(*data)
            return {"sum": tf.add_n([tf.reduce_sum(one) for one in gradients]) + loss}

        found = self.engine.step_function(work, False)(data, tf.constant(0))
        float(found["sum"])  # wait for it

    def learn(self, data: Any, wish: Any) -> dict[str, Any]:
        """One step of one replica: loss and norm of the gradient of the whole batch, and the wishes to stop."""
        images, target, weight = keras.utils.unpack_x_y_sample_weight(data)
        if weight is None:
            count = tf.shape(images)[0]
            weight = tf.fill([count], 1.0 / tf.cast(count, tf.float32))
        loss, gradients = self.gradients_of(images, target, weight)
        scale = tf.cast(self.optimizer.scale_loss(tf.constant(1.0)), tf.float32)
        # One type for all, since TensorFlow sends them as one.
        loss, wishes, *gradients = self.engine.add_up([loss, tf.cast(wish, loss.dtype), *gradients])
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32) / scale
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "gradient_norm": norm, "wish": wishes}

    def gradients_of(self, images: Any, target: Any, weight: Any) -> tuple[Any, list[Any]]:
        """The weighted loss of these images and the gradients of its scaled value, slice by slice."""
        if self.slices == 1:
            return self._slice_gradients(images, target, weight)
        count = tf.shape(images)[0]
        ends = [count * number // self.slices for number in range(self.slices + 1)]
        variables = self.trainable_variables
        loss = tf.constant(0.0, full_dtype())
        gradients = [tf.zeros(variable.shape, full_dtype()) for variable in variables]

        def work(start: Any, end: Any, total: Any, before: list[Any]) -> tuple[Any, list[Any]]:
            part = tf.nest.map_structure(lambda whole: whole[start:end], (images, target, weight))
            found, now = self._slice_gradients(*part)
            return total + found, [old + tf.cast(new, old.dtype) for old, new in zip(before, now, strict=True)]

        if self.engine.strategy is not None:
            # No replica may talk to the others from within a loop; so the slices are written out, each after the last.
            for start, end in itertools.pairwise(ends):
                with tf.control_dependencies(gradients):
                    loss, gradients = work(start, end, loss, gradients)
            return loss, gradients
        bounds = tf.stack(ends)
        _, loss, gradients = tf.while_loop(
            lambda number, *_: number < self.slices,
            lambda number, total, before: (number + 1, *work(bounds[number], bounds[number + 1], total, before)),
            (tf.constant(0), loss, gradients),
            parallel_iterations=1,  # one slice's activations at a time is the point
        )
        return loss, gradients

    def _slice_gradients(self, images: Any, target: Any, weight: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            output = self(images, training=True)
            losses = tf.cast(self.image_losses(target, output), full_dtype())
            loss = tf.reduce_sum(tf.cast(weight, full_dtype()) * losses)
            scaled = self.optimizer.scale_loss(loss)
        return loss, tape.gradient(scaled, [variable.value for variable in self.trainable_variables])

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for a batch, which under a strategy all replicas share and every worker gets whole."""
        if self.engine.strategy is None:
            return super().predict_on_batch(x)
        if not hasattr(self, "predictor"):
            self.predictor = self.engine.predictor(self)
        return self.predictor(x)


def learner(
    model: keras.Model,
    image_losses: ImageLosses,
    optimizer: keras.optimizers.Optimizer,
    slices: int = 1,
    engine: Engine = ONE,
) -> Network:
    """A compiled :class:`Network` that shares the model's layers and weights; made within the engine's scope."""
    network = Network(model.inputs, model.output, name=model.name)
    network.slices = slices
    network.engine = engine
    network.image_losses = image_losses
    network.compile(optimizer)
    if not network.optimizer.built:
        network.optimizer.build(network.trainable_variables)
    return network
