"""Random transforms of images and their masks: drawn on the host, applied in the graph.

Drawing and applying are apart, so that the same parameters can be given to another framework: :func:`draw_parameters`
is a pure function of (seed, epoch, image, how often it was drawn), and :func:`augment` of images and parameters.
"""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf

from keras_pneumo.config import Augmentation

PARAMETERS = (
    "flip",        # 1 mirrors left and right, 0 leaves
    "shift_x",     # fraction of the width, to the right
    "shift_y",     # fraction of the height, downwards
    "scale",       # factor; above 1 enlarges
    "rotate",      # degrees, counter-clockwise
    "brightness",  # added
    "contrast",    # factor on the distance from the mean
    "gamma",       # exponent
    "noise",       # standard deviation
    "clahe",       # 1 equalises, 0 leaves
)  # fmt: skip
"""Columns of a row of parameters."""

IDENTITY = np.array([0, 0, 0, 1, 0, 0, 1, 1, 0, 0], np.float32)
"""The row that changes nothing."""

_CLAHE_CLIP, _CLAHE_TILES = 2.0, 8


def draw_parameters(
    settings: Augmentation, seed: int, epoch: int, images: np.ndarray, repeats: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters for each draw of an epoch.

    A counter-based generator (Philox, Salmon et al. 2011) is keyed by the seed and started at (epoch, image, repeat),
    so a draw depends on nothing that came before it.

    Args:
        settings: ranges to draw from.
        seed: the experiment's seed.
        epoch: counted from 0 over the whole run.
        images: (n,) index of each drawn image in the prepared table.
        repeats: (n,) how often this image was drawn before in this epoch.

    Returns:
        Parameters, float32 (n, 10) in the order of :data:`PARAMETERS`, and a noise seed for each draw, int32 (n, 2).
    """
    drawn = np.empty((len(images), len(PARAMETERS) + 2))
    for row, (image, repeat) in enumerate(zip(images, repeats, strict=True)):
        counter = np.array([0, epoch, image, repeat], np.uint64)
        drawn[row] = np.random.Generator(np.random.Philox(counter=counter, key=seed)).random(drawn.shape[1])
    signed = 2 * drawn - 1
    parameters = np.stack(
        [
            drawn[:, 0] < settings.flip,
            signed[:, 1] * settings.shift,
            signed[:, 2] * settings.shift,
            1 + signed[:, 3] * settings.scale,
            signed[:, 4] * settings.rotate,
            signed[:, 5] * settings.brightness,
            1 + signed[:, 6] * settings.contrast,
            np.exp(signed[:, 7] * settings.gamma),
            drawn[:, 8] * settings.noise,
            drawn[:, 9] < settings.clahe,
        ],
        axis=1,
    ).astype(np.float32)
    noise_seeds = (drawn[:, 10:] * (2**31 - 1)).astype(np.int32)
    return parameters, noise_seeds


def augment(settings: Augmentation, images: tf.Tensor, parameters: tf.Tensor, noise_seeds: tf.Tensor) -> tf.Tensor:
    """Images changed by their parameters: CLAHE, then geometry, then contrast, brightness, gamma and noise.

    Args:
        settings: says which changes can occur at all, so that the others cost nothing.
        images: uint8 (B, H, W, 1).
        parameters: float32 (B, 10), see :data:`PARAMETERS`.
        noise_seeds: int32 (B, 2).

    Returns:
        float32 (B, H, W, 1) in [0, 1].
    """
    if settings.clahe:
        shape = images.shape
        images = tf.numpy_function(_clahe, [images, parameters[:, 9]], tf.uint8)
        images.set_shape(shape)
    pixels = tf.cast(images, tf.float32) / 255.0
    if settings.flip or settings.shift or settings.scale or settings.rotate:
        pixels = warp(pixels, parameters)
    per_image = parameters[:, :, None, None, None]
    if settings.contrast:
        mean = tf.reduce_mean(pixels, axis=(1, 2, 3), keepdims=True)
        pixels = (pixels - mean) * per_image[:, 6] + mean
    if settings.brightness:
        pixels += per_image[:, 5]
    pixels = tf.clip_by_value(pixels, 0.0, 1.0)
    if settings.gamma:
        pixels = tf.pow(pixels, per_image[:, 7])
    if settings.noise:
        shape = pixels.shape
        fields = tf.numpy_function(_noise, [noise_seeds, tf.shape(pixels)[1:]], tf.float32, stateful=False)
        pixels = tf.ensure_shape(tf.clip_by_value(pixels + fields * per_image[:, 8], 0.0, 1.0), shape)
    return pixels


def augment_masks(settings: Augmentation, masks: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Masks moved exactly as their images.

    Args:
        settings: as for :func:`augment`.
        masks: uint8 (B, H, W, 1), zero outside the mask.
        parameters: float32 (B, 10).

    Returns:
        float32 (B, H, W, 1), 0 or 1: a pixel is in the mask if at least half of it is.
    """
    drawn = tf.cast(masks > 0, tf.float32)
    if settings.flip or settings.shift or settings.scale or settings.rotate:
        drawn = tf.cast(warp(drawn, parameters) >= 0.5, tf.float32)
    return drawn


def crop(pixels: tf.Tensor, noise_seeds: tf.Tensor, side: int) -> tf.Tensor:
    """A square cut out of each image; the same seeds cut the same square out of image and mask.

    The position comes from the noise seeds, uniform over their range and drawn for (seed, epoch, image, repeat).

    Args:
        pixels: (B, H, W, 1) of any type.
        noise_seeds: int32 (B, 2), 0 to 2**31 - 1.
        side: of the square, in pixels, at most H and W.

    Returns:
        (B, side, side, 1).
    """
    shape = tf.shape(pixels)
    room = tf.cast(shape[1:3] - side + 1, tf.float64)
    corners = tf.cast(tf.cast(noise_seeds, tf.float64) / 2.0**31 * room, tf.int32)
    steps = tf.range(side)
    rows = corners[:, 0, None, None] + steps[None, :, None]
    columns = corners[:, 1, None, None] + steps[None, None, :]
    batch = tf.broadcast_to(tf.range(shape[0])[:, None, None], [shape[0], side, side])
    indices = tf.stack([batch, *(tf.broadcast_to(index, tf.shape(batch)) for index in (rows, columns))], axis=-1)
    return tf.ensure_shape(tf.gather_nd(pixels, indices), [None, side, side, 1])


def warp(pixels: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
    """Mirror, then rotate and scale about the centre, then shift; bilinear, black outside.

    Args:
        pixels: float32 (B, H, W, 1).
        parameters: float32 (B, 10).

    Returns:
        float32 (B, H, W, 1).
    """
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=output_to_input(parameters, tf.shape(pixels)[1], tf.shape(pixels)[2]),
        output_shape=tf.shape(pixels)[1:3],
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )


def output_to_input(parameters: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The affine map from a pixel of the result to the pixel it is taken from, pixel centres at whole numbers.

    Args:
        parameters: float32 (B, 10).
        height: rows of the image.
        width: columns of the image.

    Returns:
        float32 (B, 8): a0 a1 a2 b0 b1 b2 0 0 with x_in = a0 x + a1 y + a2 and y_in = b0 x + b1 y + b2.
    """
    columns = tf.unstack(parameters, axis=1)
    mirror = 1.0 - 2.0 * columns[0]
    angle = columns[4] * (np.pi / 180.0)
    cos, sin = tf.cos(angle) / columns[3], tf.sin(angle) / columns[3]
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    to_x, to_y = centre_x + columns[1] * width, centre_y + columns[2] * height  # where the centre lands
    a0, a1 = mirror * cos, -mirror * sin
    b0, b1 = sin, cos
    zero = tf.zeros_like(cos)
    return tf.stack(
        [a0, a1, centre_x - a0 * to_x - a1 * to_y, b0, b1, centre_y - b0 * to_x - b1 * to_y, zero, zero], axis=1
    )


def _noise(seeds: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Standard normal numbers for each image, float32 (B, H, W, 1): NumPy's, so that any other program can draw them.

    Each image has a Philox generator of its own, whose key is the image's two seeds.
    """
    fields = np.empty((len(seeds), *shape), np.float32)
    for field, seed in zip(fields, seeds, strict=True):
        np.random.Generator(np.random.Philox(key=seed.astype(np.uint64))).standard_normal(out=field, dtype=np.float32)
    return fields


def _clahe(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    equalise = cv2.createCLAHE(_CLAHE_CLIP, (_CLAHE_TILES, _CLAHE_TILES))
    result = images.copy()
    for row in np.flatnonzero(chosen > 0.5):
        result[row, :, :, 0] = equalise.apply(images[row, :, :, 0])
    return result
