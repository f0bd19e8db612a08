"""Heat maps of where a network looks: Grad-CAM, Grad-CAM++ and HiResCAM of any stage of its encoder.

In: a classifier or a U-Net of ours (functional, with the nested model ``encoder``) and radiographs. Out: for each image
a map of how much each place speaks for a pneumothorax. The network is cut in two at the stage, so that an image costs
one pass through it and one back to the cut; no layer is copied, so changed weights count at once.

Sources: Grad-CAM, Selvaraju et al., arXiv 1610.02391; Grad-CAM++, Chattopadhyay et al., arXiv 1710.11063; HiResCAM,
Draelos and Carin, arXiv 2011.08891; for a network without an image-level answer the score is Seg-Grad-CAM's, the mask's
logits over its own pixels (Vinogradova et al., arXiv 2002.11434).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import keras
import numpy as np

from keras_pneumo.errors import PneumoError

METHODS = ("gradcam", "gradcam++", "hirescam")
STAGES = (1, 2, 3, 4, 5)
"""The encoder's feature maps, at strides 2, 4, 8, 16 and 32."""

BATCH = 16
"""Images whose maps are made at once."""


class RawMaps(NamedTuple):
    """Maps as the method gives them, on the stage's own grid, with their sign; and the score they explain."""

    maps: np.ndarray
    """float32 (B, h, w); values below 0 speak against a pneumothorax."""
    logits: np.ndarray
    """float32 (B,)."""


class FeatureGradients(NamedTuple):
    """A stage's features and the gradient of the score by them, float32 (B, h, w, channels), and the score, (B,)."""

    features: np.ndarray
    gradients: np.ndarray
    logits: np.ndarray


class _Parts(NamedTuple):
    """A network cut at a stage: up to it, from it to the encoder's end (None at the last), from there to the answer."""

    front: keras.Model
    tail: keras.Model | None
    head: keras.Model


_cut: WeakKeyDictionary[keras.Model, dict[int, _Parts]] = WeakKeyDictionary()


def heat_maps(model: keras.Model, images: Any, method: str = "gradcam", stage: int = 5) -> np.ndarray:
    """Heat maps, from 0 to 1 at the images' size.

    Args:
        model: a classifier or a U-Net of :mod:`keras_pneumo.models`; its weights are not changed.
        images: float32 (B, S, S, 1) in [0, 1].
        method: ``gradcam``, ``gradcam++`` or ``hirescam``.
        stage: 1 to 5, which of the encoder's feature maps; 5 is the deepest and coarsest.

    Returns:
        float32 (B, S, S), 0 to 1: what speaks for a pneumothorax, as a share of the image's highest; all 0 where
        nothing does.

    Raises:
        PneumoError: there is no such method or stage, or the network has no encoder.
    """
    return to_heat(raw_maps(model, images, method, stage).maps, np.shape(images)[1])


def raw_maps(model: keras.Model, images: Any, method: str = "gradcam", stage: int = 5) -> RawMaps:
    """Maps with their sign, on the stage's grid, and the logits; arguments as for :func:`heat_maps`."""
    _check(method, stage)
    if not len(images):
        return RawMaps(np.zeros((0, 1, 1), np.float32), np.zeros(0, np.float32))
    parts = []
    for start in range(0, len(images), BATCH):
        gradients = feature_gradients(model, images[start : start + BATCH], stage)
        parts.append((signed_map(gradients, method), gradients.logits))
    maps, logits = zip(*parts, strict=True)
    return RawMaps(np.concatenate(maps), np.concatenate(logits))


def feature_gradients(model: keras.Model, images: Any, stage: int) -> FeatureGradients:
    """One batch's features and gradients at a stage, from which every method's map follows (:func:`signed_map`).

    The score is the image-level logit; of a U-Net without one, the mean logit of the pixels that its own mask holds, or
    of all where it holds none.
    """
    parts = _parts(model, stage)
    # One tensor even where the network gives a list of one.
    features = keras.tree.flatten(parts.front(keras.ops.convert_to_tensor(images, "float32"), training=False))
    *earlier, last = [keras.ops.stop_gradient(feature) for feature in features]

    def score(feature: Any) -> Any:
        deeper = keras.tree.flatten(parts.tail(feature, training=False)) if parts.tail is not None else []
        return _score(parts.head([*earlier, feature, *deeper], training=False))

    logits, gradients = score_gradient(score, last)
    arrays = [np.asarray(keras.ops.convert_to_numpy(tensor), np.float32) for tensor in (last, gradients, logits)]
    return FeatureGradients(*arrays)


def stage_gradients(model: keras.Model, images: Any, stages: Sequence[int]) -> dict[int, FeatureGradients]:
    """One batch's features and gradients at several stages, the same as :func:`feature_gradients` gives for each.

    On TensorFlow one pass through the network and one back serve all of them.
    """
    if keras.backend.backend() != "tensorflow":
        return {stage: feature_gradients(model, images, stage) for stage in stages}
    import tensorflow as tf

    parts = _parts(model, min(stages))
    features = keras.tree.flatten(parts.front(tf.convert_to_tensor(images, tf.float32), training=False))
    *earlier, first = [tf.stop_gradient(feature) for feature in features]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(first)
        deeper = keras.tree.flatten(parts.tail(first, training=False)) if parts.tail is not None else []
        features = [*earlier, first, *deeper]
        logits = _score(parts.head(features, training=False))
    chosen = [features[stage - 1] for stage in stages]
    gradients = tape.gradient(logits, chosen, unconnected_gradients="zero")
    return {
        stage: FeatureGradients(*(tensor.numpy() for tensor in (feature, gradient, logits)))
        for stage, feature, gradient in zip(stages, chosen, gradients, strict=True)
    }


def signed_map(feature_gradients: FeatureGradients, method: str) -> np.ndarray:
    """The map of a method with its sign, float32 (B, h, w).

    ``gradcam``: features weighted by the mean gradient of their channel. ``hirescam``: by the gradient at each place.
    ``gradcam++``: by the sum of the channel's positive gradients, each weighted by the curvature of exp(score), whose
    factor, one for the whole image, is left out.
    """
    features, gradients, _ = feature_gradients
    if method == "hirescam":
        return np.einsum("bhwc,bhwc->bhw", features, gradients)
    if method == "gradcam":
        weights = gradients.mean(axis=(1, 2))
    else:
        # In units of the image's largest gradient, so that no third power leaves float32's range.
        largest = np.abs(gradients).max(axis=(1, 2, 3), keepdims=True)
        unit = gradients / np.where(largest > 0, largest, 1)
        below = 2 * unit**2 + features.sum(axis=(1, 2), keepdims=True) * largest * unit**3
        share = np.divide(unit**2, below, out=np.zeros_like(unit), where=below != 0)
        weights = (share * np.maximum(gradients, 0)).sum(axis=(1, 2))
    return np.einsum("bhwc,bc->bhw", features, weights)


def to_heat(maps: np.ndarray, side: int) -> np.ndarray:
    """Signed maps as heat: negative values set to 0, enlarged linearly between centres, the highest value 1.

    Args:
        maps: float32 (B, h, w).
        side: of the images.

    Returns:
        float32 (B, side, side).
    """
    heat = np.maximum(maps, 0)[..., None]
    resized = keras.ops.image.resize(heat, (side, side), "bilinear", data_format="channels_last")
    heat = np.asarray(keras.ops.convert_to_numpy(resized), np.float32)[..., 0]
    highest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(highest > 0, highest, 1)


def score_gradient(score: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """A score and its gradient, on any Keras backend that has gradients.

    Args:
        score: from a tensor to one score for each image, shape (B,), image by image: none depends on another's.
        x: the tensor, its first axis the images.

    Returns:
        The scores, shape (B,), and the gradient of each image's score by that image's part of ``x``, shape of ``x``.

    Raises:
        PneumoError: Keras runs on a backend without gradients.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            scores = score(x)
        return scores, tape.gradient(scores, x, unconnected_gradients="zero")
    if backend == "torch":
        # Only by methods of the tensor, since the package does not import torch.
        x = x.detach().requires_grad_(True)
        scores = score(x)
        scores.sum().backward(inputs=[x])
        return scores.detach(), x.grad
    if backend == "jax":
        import jax

        def summed(value: Any) -> tuple[Any, Any]:
            scores = score(value)
            return scores.sum(), scores

        (_, scores), gradient = jax.value_and_grad(summed, has_aux=True)(x)
        return scores, gradient
    raise PneumoError(f"Heat maps need gradients, which Keras's backend {backend!r} does not have. Use tensorflow.")


def _check(method: str, stage: int) -> None:
    if method not in METHODS:
        raise PneumoError(f"There is no heat map method {method!r}. Choose one of {', '.join(METHODS)}.")
    if stage not in STAGES:
        raise PneumoError(f"There is no encoder stage {stage!r}. Choose 1 (fine, shallow) to 5 (coarse, deep).")


def _score(outputs: Any) -> Any:
    """One logit for each image, shape (B,), of a classifier's or a U-Net's outputs."""
    if isinstance(outputs, dict):
        outputs = outputs["image"]
    if len(outputs.shape) == 2:
        return outputs[:, 0]
    inside = keras.ops.cast(outputs > 0, outputs.dtype)
    none = keras.ops.cast(keras.ops.sum(inside, axis=(1, 2, 3), keepdims=True) == 0, outputs.dtype)
    inside = keras.ops.stop_gradient(inside + none)
    return keras.ops.sum(outputs * inside, axis=(1, 2, 3)) / keras.ops.sum(inside, axis=(1, 2, 3))


def _parts(model: keras.Model, stage: int) -> _Parts:
    """The network cut at a stage; each cut is made once."""
    cuts = _cut.setdefault(model, {})
    if stage not in cuts:
        cuts[stage] = _cut_at(model, stage)
    return cuts[stage]


def _cut_at(model: keras.Model, stage: int) -> _Parts:
    try:
        encoder = model.get_layer("encoder")
    except ValueError:
        raise PneumoError(
            f"The network {model.name!r} has no encoder, so it has no stages. Use a classifier or a segmenter."
        ) from None
    features: list[Any] = []

    def call(layer: Any, *arguments: Any, **options: Any) -> Any:
        outputs = layer(*arguments, **options)
        if layer is encoder:
            features.extend(outputs)
        return outputs

    # The same layers are called once more, which gives the encoder's outputs within the outer network.
    # (A new model of the same tensors first: cloning a compiled one would copy its optimizer.)
    plain = keras.Model(model.input, model.output)
    again = keras.models.clone_model(plain, clone_function=lambda layer: layer, call_function=call)
    front = keras.Model(again.inputs[0], features[:stage])
    tail = keras.Model(encoder.outputs[stage - 1], encoder.outputs[stage:]) if stage < len(encoder.outputs) else None
    return _Parts(front, tail, keras.Model(features, again.output))
