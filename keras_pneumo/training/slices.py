"""A training step in slices: the weights of the large batch from the memory of a small one.

In: a network and a number of slices. Out: a network with the same layers whose training step takes the batch slice by
slice, one after the other, adds up their gradients, each by its share of the images, and steps once. Every image weighs
the same, also where the batch does not divide evenly, and the optimizer (its schedule, clipping, moments and average)
never notices. Where no layer looks beyond its own image the result is that of the undivided batch. BatchNorm does look:
while it learns, its statistics are those of each slice, as in every gradient accumulation.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class SlicedModel(keras.Model):
    """A functional network whose training step works through its batch in slices."""

    slices = 1

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step of one batch of at least ``slices`` images."""
        images, target, _ = keras.utils.unpack_x_y_sample_weight(data)
        count = tf.shape(images)[0]
        variables = self.trainable_variables

        def work(number: tf.Tensor, total: tf.Tensor, gradients: list[tf.Tensor]) -> tuple[Any, ...]:
            start, end = count * number // self.slices, count * (number + 1) // self.slices
            share = tf.cast(end - start, tf.float32) / tf.cast(count, tf.float32)
            part = tf.nest.map_structure(lambda whole: whole[start:end], target)
            with tf.GradientTape() as tape:
                output = self(images[start:end], training=True)
                loss = tf.cast(self.compute_loss(images[start:end], part, output, training=True), tf.float32) * share
                scaled = self.optimizer.scale_loss(loss)
            found = tape.gradient(scaled, [variable.value for variable in variables])
            added = [before + tf.cast(now, before.dtype) for before, now in zip(gradients, found, strict=True)]
            return number + 1, total + loss, added

        zeros = [tf.zeros(variable.shape, tf.float32) for variable in variables]
        _, loss, gradients = tf.while_loop(
            lambda number, *_: number < self.slices,
            work,
            (tf.constant(0), tf.constant(0.0), zeros),
            parallel_iterations=1,  # one slice's activations at a time is the point
        )
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=count)
        return {"loss": self._loss_tracker.result()}


def sliced(model: keras.Model, slices: int) -> keras.Model:
    """The network itself for one slice, else a :class:`SlicedModel` that shares its layers and weights."""
    if slices == 1:
        return model
    found = SlicedModel(model.inputs, model.output, name=model.name)
    found.slices = slices
    return found
