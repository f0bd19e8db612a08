"""The rungs of training: loss, one step of an optimizer, the schedule, and twenty steps in a row.

In: the ladder's folder. Out: losses, how far each tensor moved, rates and momenta. Keras only, whatever its backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_pneumo.models.weights import State, from_torch, to_torch
from keras_pneumo.parity.networks import EXPERIMENTS, RECIPE, is_trained, target_of, to_numpy
from keras_pneumo.training.losses import TERMS, ClassificationLoss, SegmentationLoss, image_losses
from keras_pneumo.training.optimizers import SGD, AdamW
from keras_pneumo.training.schedules import Tabulated, one_cycle
from keras_pneumo.training.step import loss_and_gradients, training_network

OPTIMIZERS = ("sgd", "adamw")


def loss_values(logits: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Each term and the recipe's sum for each image, and the image-level loss, float32 (n,).

    Args:
        logits: float32 (n, h, w, 1).
        masks: 0 or 1, of the same shape.
        labels: 0 or 1, (n, 1); their logits are those of the first pixel.
    """
    values = {name: TERMS[name](masks, logits) for name in ("bce", "dice", "focal")}
    values["sum"] = SegmentationLoss(RECIPE).call(masks, logits)
    values["image"] = ClassificationLoss().call(labels, logits[:, 0, 0])
    return {name: to_numpy(value) for name, value in values.items()}


def optimizer_of(kind: str, rates: Any, decay: float) -> keras.optimizers.Optimizer:
    """The project's optimizer, as an experiment makes it."""
    if kind == "sgd":
        return SGD(learning_rate=rates, momentum=0.9, weight_decay=decay)
    return AdamW(learning_rate=rates, weight_decay=decay)


def keras_own(model: keras.Model, kind: str, rates: Any, decay: float) -> keras.optimizers.Optimizer:
    """What Keras itself offers under that name, to show what the project's optimizers are there for."""
    if kind == "sgd":
        return keras.optimizers.SGD(learning_rate=rates, momentum=0.9)
    optimizer = keras.optimizers.AdamW(learning_rate=rates, weight_decay=decay)
    optimizer.exclude_from_weight_decay([one for one in model.trainable_variables if len(one.shape) <= 1])
    return optimizer


def movement(
    model: keras.Model,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    optimizer: keras.optimizers.Optimizer,
    shares: list[float],
) -> State:
    """How far each trained tensor is from its start after one step with each share of the gradients."""
    from_torch(model, gradients)  # the gradients in the weights' places, to be renamed and transposed as they are
    variables = model.trainable_variables
    values = [to_numpy(variable).copy() for variable in variables]
    from_torch(model, weights)
    for share in shares:
        steps = [keras.ops.convert_to_tensor(np.float32(share) * value) for value in values]
        optimizer.apply(steps, variables)
    after = to_torch(model)
    return {name: array - weights[name] for name, array in after.items() if is_trained(name)}


def schedules(plans: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rate and momentum at each step of each one-cycle plan, float64, and the rate as the graph reads it, float32."""
    found = {}
    for number, plan in enumerate(plans):
        cycle = one_cycle(
            np.arange(plan["steps"]),
            plan["steps"],
            plan["peak"],
            rise=plan["rise"],
            div_factor=plan["div_factor"],
            final_div_factor=plan["final_div_factor"],
            momentum=(plan["momentum"][0], plan["momentum"][1]),
        )
        found[f"plan {number + 1}: rate"] = cycle.rate
        found[f"plan {number + 1}: momentum"] = cycle.momentum
    return found


def tabulated(rates: np.ndarray) -> np.ndarray:
    """The rates as the graph reads them at each step."""
    table = Tabulated(rates)
    return np.array([float(to_numpy(table(step))) for step in range(len(rates))])


def training_losses(
    model: keras.Model, network: str, images: np.ndarray, truths: Mapping[str, np.ndarray], plan: dict[str, Any]
) -> np.ndarray:
    """The loss of each step of SGD with momentum under a one-cycle schedule, by the step of ``keras-pneumo train``.

    On Keras's PyTorch backend, where there is no TensorFlow graph, the loss and the gradients are those of the same
    :func:`keras_pneumo.training.step.loss_and_gradients`, and the optimizer is the same.

    Args:
        model: from where it starts.
        network: which of the two.
        images: float32 (steps, batch, h, w, 1).
        truths: for each output, (steps, batch, ...).
        plan: of the schedule.
    """
    cycle = one_cycle(np.arange(plan["steps"]), plan["steps"], plan["peak"], momentum=tuple(plan["momentum"]))
    optimizer = SGD(learning_rate=Tabulated(cycle.rate), momentum=Tabulated(cycle.momentum))
    losses_of = image_losses(EXPERIMENTS[network])
    if keras.backend.backend() == "tensorflow":
        learning = training_network(model, losses_of, optimizer)

        def take_step(batch: np.ndarray, target: Any) -> Any:
            return learning.train_on_batch(batch, target, return_dict=True)["loss"]
    else:

        def take_step(batch: np.ndarray, target: Any) -> Any:
            weight = np.full(len(batch), 1 / len(batch), np.float32)
            loss, gradients = loss_and_gradients(model, losses_of, batch, target, weight)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

    losses = []
    for step in range(plan["steps"]):
        target = target_of(network, {head: values[step] for head, values in truths.items()})
        losses.append(float(to_numpy(take_step(images[step], target))))
    return np.array(losses)
