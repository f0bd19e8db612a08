"""Worker: training steps of this project's networks on Keras's JAX backend, where TensorFlow cannot be brought.

The networks, the losses, the gradients (``keras_pneumo.training.step.loss_and_gradients``), the optimizer and the input
are those of ``keras-pneumo train``; only the engine differs, so the figures say what the code costs rather than what
TensorFlow does. One compiled function takes a step. Of one batch that stays the same, or with ``--data`` of the batches
that ``train`` would draw from a prepared folder, put together by the same threads; then the answer also has
``data_seconds``, the time that the network waited for them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from worker import UnmeasurableError, serve, step_parser


def main() -> None:
    """Read the command line and serve."""
    given = step_parser().parse_args()
    serve(lambda: set_up(given))


def set_up(given: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """The network, its optimizer and its batches, ready; gives the function that takes steps."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # the other side waits on the same GPU
    import jax
    import keras

    if given.gpu and jax.default_backend() != "gpu":
        raise UnmeasurableError("JAX has no GPU here")
    from our_step import experiment_of

    from keras_pneumo.models.classifier import build_classifier
    from keras_pneumo.models.unet import build_unet
    from keras_pneumo.training.losses import image_losses
    from keras_pneumo.training.optimizers import make_optimizer, set_learning
    from keras_pneumo.training.step import loss_and_gradients

    experiment = experiment_of(given)
    keras.config.set_dtype_policy(experiment.precision)
    build = build_classifier if given.task == "classifier" else build_unet
    model = build(experiment.encoder)
    set_learning(model, experiment, True)
    optimizer = make_optimizer(experiment, model, experiment.learning_rate, 10_000)
    if given.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    losses_of = image_losses(experiment)
    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)

    def step(values: tuple[list[Any], ...], images: Any, target: Any) -> tuple[Any, tuple[list[Any], ...]]:
        """One step as a function of all variables' values, which gives their next values."""
        learned, state, of_optimizer = values
        given_values = [pair for both in zip(variables, values, strict=True) for pair in zip(*both, strict=True)]
        weight = keras.ops.full((images.shape[0],), 1 / images.shape[0])
        with keras.StatelessScope(state_mapping=given_values) as scope:
            scale = optimizer.scale_loss(1.0)
            loss, gradients = loss_and_gradients(model, losses_of, images, target, weight, lambda loss: loss * scale)
            state = [scope.get_current_value(variable) for variable in model.non_trainable_variables]
        learned, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, learned)
        return loss, (learned, state, of_optimizer)

    compiled = jax.jit(step, donate_argnums=0)
    held = tuple([variable.value for variable in part] for part in variables)
    batches = real_batches(experiment, given) if given.data else one_batch(given)

    def run(count: int) -> dict[str, float]:
        nonlocal held
        waited = 0.0
        for _ in range(count):
            began = time.perf_counter()
            images, target = next(batches)
            waited += time.perf_counter() - began
            loss, held = compiled(held, images, target)
        float(loss)  # wait for the device
        return {"work": count * given.batch, "data_seconds": waited}

    return run


def one_batch(given: argparse.Namespace) -> Iterator[Any]:
    """The fixed batch, again and again; it stays on the device."""
    import jax
    from our_step import fixed_batch

    return itertools.repeat(jax.device_put(fixed_batch(given)))


def real_batches(experiment: Any, given: argparse.Namespace) -> Iterator[Any]:
    """The batches of a training on a prepared folder, augmented; two lie on the device before they are asked for."""
    import jax
    from our_step import training_images

    from keras_pneumo.data.batches.assembly import training_assembly
    from keras_pneumo.data.batches.order import TrainingPlan

    plan = TrainingPlan(
        seed=0, batch_size=given.batch, first_epoch=0, last_epoch=1000, positive_rate=experiment.positive_rate,
        augmentation=experiment.augmentation, with_masks=experiment.task == "segmenter",
    )  # fmt: skip
    assembly, steps = training_assembly(training_images(experiment, given.data), plan)
    waiting = [jax.device_put(assembly.take(number)) for number in range(2)]
    for number in range(2, steps):
        yield waiting.pop(0)
        waiting.append(jax.device_put(assembly.take(number)))


if __name__ == "__main__":
    main()
