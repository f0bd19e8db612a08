"""The losses of training: of logits, one value for each image.

In: truth, 0 or 1 (any type), and logits, both of shape (batch, ...). Out: one loss per image, shape (batch,), which
Keras averages over the batch, so every image weighs the same whatever its batch. All of it is computed in float32
(float16 sums over 512x512 pixels overflow), and is finite, with finite gradients, for every finite logit.

An image without pneumothorax is not skipped: its cross-entropy and focal loss are the usual ones, its soft Dice is
``1 - s / (sum of probabilities + s)`` with the smoothing ``s``, and its Lovasz hinge is that of its highest logit. Each
is 0 or goes to 0 when nothing is predicted, and pushes every false mask down; ``keras.losses.Dice``, taken over the
whole batch, gives no gradient there.

Sources: focal loss, arXiv 1708.02002; Lovasz hinge, arXiv 1705.08790; soft Dice, arXiv 1606.04797. Recipes: the
competition's first place, 3 BCE + 1 Dice + 4 focal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras

from keras_pneumo.config import Experiment
from keras_pneumo.errors import PneumoError

SMOOTHING = 1.0
"""Pixels added to both sides of the soft Dice's fraction."""

FOCUS = 2.0
"""The focal loss's exponent (gamma)."""

Loss = Callable[[Any, Any], Any]


def bce(truth: Any, logits: Any) -> Any:
    """Binary cross-entropy, mean over each image's pixels, shape (batch,)."""
    truth, logits = _flat(truth, logits)
    return keras.ops.mean(_cross_entropy(truth, logits), axis=1)


def soft_dice(truth: Any, logits: Any, smoothing: float = SMOOTHING) -> Any:
    """One less the soft Dice coefficient of each image, shape (batch,), 0 to 1.

    ``1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s)`` with probabilities p, truth t and smoothing s in pixels: an empty
    truth met by an empty prediction costs 0, met by a false mask of n sure pixels ``n / (n + s)``.
    """
    truth, logits = _flat(truth, logits)
    probability = keras.ops.sigmoid(logits)
    overlap = keras.ops.sum(probability * truth, axis=1)
    total = keras.ops.sum(probability, axis=1) + keras.ops.sum(truth, axis=1)
    return 1.0 - (2.0 * overlap + smoothing) / (total + smoothing)


def focal(truth: Any, logits: Any, focus: float = FOCUS) -> Any:
    """Focal loss, mean over each image's pixels, shape (batch,): ``-(1 - p)**focus log(p)``, p of the true class."""
    truth, logits = _flat(truth, logits)
    # (1 - p) ** focus through the logarithm of 1 - p, which neither rounds to 0 nor has an infinite slope there.
    doubt = keras.ops.exp(focus * keras.ops.log_sigmoid((1.0 - 2.0 * truth) * logits))
    return keras.ops.mean(doubt * _cross_entropy(truth, logits), axis=1)


def lovasz_hinge(truth: Any, logits: Any) -> Any:
    """Lovasz hinge of each image, shape (batch,): the convex bound on one less the Jaccard index.

    The hinge errors ``1 - (2 t - 1) z``, largest first, are weighted by how much the Jaccard loss grows when their
    pixel joins the wrong ones. On an empty truth the first pixel alone has weight: that of the highest logit.
    """
    ops = keras.ops
    truth, logits = _flat(truth, logits)
    errors = 1.0 - (2.0 * truth - 1.0) * logits
    order = ops.argsort(-errors, axis=1)
    errors = ops.take_along_axis(errors, order, axis=1)
    sorted_truth = ops.take_along_axis(truth, order, axis=1)
    positives = ops.sum(truth, axis=1, keepdims=True)
    correct = positives - ops.cumsum(sorted_truth, axis=1)  # true pixels that are still right
    union = positives + ops.cumsum(1.0 - sorted_truth, axis=1)
    # The growth in closed form, since differences of neighbouring Jaccard values cancel: a missed pixel adds 1 / union,
    # a false one correct / (union (union - 1)); the first false one of an empty truth takes the loss from 0 to 1.
    by_false = ops.where(union > 1.0, correct / ops.maximum(union * (union - 1.0), 1.0), 1.0)
    growth = sorted_truth / ops.maximum(union, 1.0) + (1.0 - sorted_truth) * by_false
    return ops.sum(ops.relu(errors) * ops.stop_gradient(growth), axis=1)


TERMS: dict[str, Loss] = {"bce": bce, "dice": soft_dice, "focal": focal, "lovasz": lovasz_hinge}
"""The terms of a recipe, by their names."""


def parse_recipe(recipe: str) -> list[tuple[float, str]]:
    """``3 BCE + 1 Dice + 4 focal`` as ``[(3.0, "bce"), (1.0, "dice"), (4.0, "focal")]``.

    Raises:
        PneumoError: a part is not a positive number (or none, for 1) before a known word, or a word comes twice.
    """
    terms = []
    for part in recipe.split("+"):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)?\s*\*?\s*([A-Za-z]+)\s*", part)
        weight = float(match.group(1) or 1.0) if match else 0.0
        if match is None or match.group(2).lower() not in TERMS or weight == 0:
            raise PneumoError(
                f"The loss {recipe!r} cannot be read at {part.strip()!r}. Write a sum of {', '.join(TERMS)}, such as "
                "'3 bce + 1 dice + 4 focal'."
            )
        terms.append((weight, match.group(2).lower()))
    if len({word for _, word in terms}) < len(terms):
        raise PneumoError(f"The loss {recipe!r} has a term twice. Write each term once.")
    return terms


def _flat(truth: Any, logits: Any) -> tuple[Any, Any]:
    """Both as (batch, pixels) in float32, or in float64 if the logits are."""
    logits = keras.ops.convert_to_tensor(logits)
    dtype = "float64" if keras.backend.standardize_dtype(logits.dtype) == "float64" else "float32"
    batch = keras.ops.shape(logits)[0]
    truth = keras.ops.cast(truth, dtype)
    return keras.ops.reshape(truth, (batch, -1)), keras.ops.reshape(keras.ops.cast(logits, dtype), (batch, -1))


def _cross_entropy(truth: Any, logits: Any) -> Any:
    """Per element; through log-sigmoids, since softplus(z) - t z cancels where the prediction is sure and right."""
    return -truth * keras.ops.log_sigmoid(logits) - (1.0 - truth) * keras.ops.log_sigmoid(-logits)


@keras.saving.register_keras_serializable(package="keras_pneumo")
class SegmentationLoss(keras.losses.Loss):
    """A weighted sum of mask losses, written as a recipe; the weights are not normalised."""

    def __init__(self, recipe: str = "3 bce + 1 dice + 4 focal", name: str = "loss", **kwargs: Any) -> None:
        """``recipe`` is the sum as text; see :func:`parse_recipe`."""
        super().__init__(name=name, **kwargs)
        self.recipe = recipe
        self.terms = parse_recipe(recipe)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One value per image."""
        return sum(weight * TERMS[word](y_true, y_pred) for weight, word in self.terms)

    def get_config(self) -> dict[str, Any]:
        """The recipe."""
        return {**super().get_config(), "recipe": self.recipe}


@keras.saving.register_keras_serializable(package="keras_pneumo")
class ClassificationLoss(keras.losses.Loss):
    """Binary cross-entropy on one logit per image, with label smoothing and a weight for the positives."""

    def __init__(
        self, label_smoothing: float = 0.0, positive_weight: float = 1.0, name: str = "loss", **kwargs: Any
    ) -> None:
        """Settings of the loss.

        Args:
            label_smoothing: s makes the labels s/2 and 1 - s/2; 0 to below 1.
            positive_weight: the weight of a positive image where a negative one has 1 (PyTorch's ``pos_weight``); it
                depends on the true label, not on the smoothed one.
            name: the loss's name.
            **kwargs: the base class's.

        Raises:
            PneumoError: a setting is out of its range.
        """
        super().__init__(name=name, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise PneumoError(f"Label smoothing is a number from 0 to below 1, not {label_smoothing}.")
        if not 0 < positive_weight < float("inf"):
            raise PneumoError(f"The weight of positive images is a positive number, not {positive_weight}.")
        self.label_smoothing = label_smoothing
        self.positive_weight = positive_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One value per image."""
        truth, logits = _flat(y_true, y_pred)
        weight = 1.0 + truth * (self.positive_weight - 1.0)
        smoothed = truth * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return keras.ops.mean(weight * _cross_entropy(smoothed, logits), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Smoothing and weight."""
        own = {"label_smoothing": self.label_smoothing, "positive_weight": self.positive_weight}
        return {**super().get_config(), **own}


ImageLosses = Callable[[Any, Any], Any]
"""A function from target and output to the loss of each image, shape (batch,)."""


def image_losses(experiment: Experiment) -> ImageLosses:
    """The experiment's loss: from target and output to one value for each image, shape (batch,), before any mean."""
    if experiment.task == "classifier":
        return ClassificationLoss(experiment.label_smoothing, experiment.positive_weight).call
    mask = SegmentationLoss(experiment.loss).call
    if not experiment.image_head:
        return mask
    image = ClassificationLoss().call

    def both(target: Any, output: Any) -> Any:
        return mask(target["mask"], output["mask"]) + experiment.image_loss_weight * image(
            target["image"], output["image"]
        )

    return both
