"""Random transforms of images and their masks, with OpenCV and NumPy: a thread can change one image at a time.

Drawing and applying are apart, so that the same parameters can be given to another framework: :func:`draw_parameters`
is a pure function of (seed, epoch, image, how often it was drawn), and :func:`augment` of images and parameters. The
result for an image depends neither on the other images of its batch nor on threads.

Pixels are moved as 16-bit numbers (a rounding of 8e-6 of the range, where 8 bits would round by 2e-3), and contrast,
brightness and gamma are one table of all 65,536 values. ``experiments/benchmarks/notes.md`` has what else was measured.
"""

from __future__ import annotations

import cv2
import numpy as np

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


def augment(settings: Augmentation, images: np.ndarray, parameters: np.ndarray, noise_seeds: np.ndarray) -> np.ndarray:
    """Images changed by their parameters: CLAHE, then geometry, then contrast, brightness, gamma and noise.

    Args:
        settings: says which changes can occur at all, so that the others cost nothing.
        images: uint8 (B, H, W, 1).
        parameters: float32 (B, 10), see :data:`PARAMETERS`.
        noise_seeds: int32 (B, 2).

    Returns:
        float32 (B, H, W, 1) in [0, 1].
    """
    result = np.empty(images.shape, np.float32)
    for image, row, seeds, out in zip(images, parameters, noise_seeds, result, strict=True):
        augment_image(settings, image[:, :, 0], row, seeds, out[:, :, 0])
    return result


def augment_image(
    settings: Augmentation, image: np.ndarray, parameters: np.ndarray, noise_seeds: np.ndarray, out: np.ndarray
) -> None:
    """One image of :func:`augment`: uint8 (H, W) into ``out``, float32 (H, W), whose rows lie one after the other."""
    if settings.clahe and parameters[9] > 0.5:
        image = cv2.createCLAHE(_CLAHE_CLIP, (_CLAHE_TILES, _CLAHE_TILES)).apply(image)
    levels = image
    if moves(settings):
        levels = warp(np.multiply(image, np.uint16(257), dtype=np.uint16), parameters)
    changed = settings.contrast or settings.brightness or settings.gamma
    if levels.dtype == np.uint8 and not changed:
        np.divide(levels, np.float32(255), out=out)
    else:
        table = _GREY[levels.dtype.itemsize]
        if changed:
            table = changed_grey(settings, table, cv2.mean(levels)[0] / np.iinfo(levels.dtype).max, parameters)
        cv2.LUT(levels, table, dst=out)
    if settings.noise:
        out += _noise(noise_seeds, out.shape) * parameters[8]
        np.clip(out, 0, 1, out=out)


def augment_masks(settings: Augmentation, masks: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Masks moved exactly as their images.

    Args:
        settings: as for :func:`augment`.
        masks: uint8 (B, H, W, 1), zero outside the mask.
        parameters: float32 (B, 10).

    Returns:
        float32 (B, H, W, 1), 0 or 1: a pixel is in the mask if at least half of it is.
    """
    result = np.empty(masks.shape, np.float32)
    for mask, row, out in zip(masks, parameters, result, strict=True):
        augment_mask(settings, mask[:, :, 0], row, out[:, :, 0])
    return result


def augment_mask(settings: Augmentation, mask: np.ndarray, parameters: np.ndarray, out: np.ndarray) -> None:
    """One mask of :func:`augment_masks`: uint8 (H, W) into ``out``, float32 (H, W)."""
    drawn = np.multiply(mask > 0, np.uint8(255), dtype=np.uint8)
    if moves(settings):
        drawn = warp(drawn, parameters)
    cv2.LUT(drawn, _AT_LEAST_HALF, dst=out)


def moves(settings: Augmentation) -> bool:
    """Whether any change moves pixels."""
    return bool(settings.flip or settings.shift or settings.scale or settings.rotate)


def changed_grey(settings: Augmentation, grey: np.ndarray, mean: float, parameters: np.ndarray) -> np.ndarray:
    """Grey values after contrast, brightness and gamma.

    Args:
        settings: says which of them can occur.
        grey: float32 (1, n) in [0, 1].
        mean: of the image, which contrast leaves as it is.
        parameters: float32 (10,).

    Returns:
        float32 (1, n) in [0, 1].
    """
    contrast = parameters[6] if settings.contrast else np.float32(1)
    brightness = parameters[5] if settings.brightness else np.float32(0)
    changed = grey * contrast
    changed += np.float32(mean * (1.0 - float(contrast)) + float(brightness))
    np.clip(changed, 0, 1, out=changed)
    return cv2.pow(changed, float(parameters[7])) if settings.gamma else changed


def crop_corner(noise_seeds: np.ndarray, shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Row and column of a square's first pixel: uniform, by the two noise seeds, int32, 0 to 2**31 - 1, of an image.

    Args:
        noise_seeds: int32 (2,).
        shape: rows and columns of the image.
        side: of the square, at most both.
    """
    room = np.array(shape[:2]) - side + 1
    row, column = (noise_seeds / 2.0**31 * room).astype(int)
    return int(row), int(column)


def crop(pixels: np.ndarray, noise_seeds: np.ndarray, side: int) -> np.ndarray:
    """A square cut out of each image; the same seeds cut the same square out of image and mask.

    The position comes from the noise seeds, which are drawn for (seed, epoch, image, repeat).

    Args:
        pixels: (B, H, W, 1) of any type.
        noise_seeds: int32 (B, 2).
        side: of the square, in pixels, at most H and W.

    Returns:
        (B, side, side, 1).
    """
    corners = [crop_corner(seeds, pixels.shape[1:3], side) for seeds in noise_seeds]
    squares = [
        image[row : row + side, column : column + side] for image, (row, column) in zip(pixels, corners, strict=True)
    ]
    return np.stack(squares)


def warp(pixels: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Mirror, then rotate and scale about the centre, then shift; bilinear, black outside.

    Args:
        pixels: (H, W), uint8, uint16 or float32; whole numbers are rounded, half to even.
        parameters: float32 (10,).

    Returns:
        (H, W) of the same type.
    """
    height, width = pixels.shape
    return cv2.warpAffine(
        pixels,
        output_to_input(parameters, height, width),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


def output_to_input(parameters: np.ndarray, height: int, width: int) -> np.ndarray:
    """The affine map from a pixel of the result to the pixel it is taken from, pixel centres at whole numbers.

    Args:
        parameters: float32 (10,).
        height: rows of the image.
        width: columns of the image.

    Returns:
        float64 (2, 3): x_in = a0 x + a1 y + a2 in the first row, y_in = b0 x + b1 y + b2 in the second.
    """
    flip, shift_x, shift_y, scale, degrees = (float(value) for value in parameters[:5])
    mirror = 1.0 - 2.0 * flip
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    to_x, to_y = centre_x + shift_x * width, centre_y + shift_y * height  # where the centre lands
    a0, a1 = mirror * cos, -mirror * sin
    return np.array([[a0, a1, centre_x - a0 * to_x - a1 * to_y], [sin, cos, centre_y - sin * to_x - cos * to_y]])


def _noise(seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of an image, float32 (H, W): NumPy's, so that any other program can draw them.

    Each image has a Philox generator of its own, whose key is the image's two seeds.
    """
    return np.random.Generator(np.random.Philox(key=seeds.astype(np.uint64))).standard_normal(shape, np.float32)


_GREY = {size: (np.arange(256**size, dtype=np.float32) / np.float32(256**size - 1))[None] for size in (1, 2)}
"""Bytes of a grey value -> all values in [0, 1], float32 (1, 256 or 65536)."""

_AT_LEAST_HALF = (np.arange(256)[None] >= 128).astype(np.float32)
"""Of a mask that was moved as 0 and 255: rounding half to even makes 127.5, which is one half, 128."""
