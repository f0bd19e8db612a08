"""Curves, outlines and tubes: from centimetres on the patient to maps of path length in pixels.

In: curves in centimetres, x to the right of the image (the patient's left), y down, with the origin on the midline at
the height of the lung's apex. Out: float32 maps. So the anatomy is written in the units of an anatomy book, and every
edge is drawn by the same few functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 1024
"""Height and width of the radiograph, in pixels."""

HALF = 512
"""Size at which smooth anatomy is computed, before it is enlarged."""

_SHIFT = 4  # cv2 draws on a grid of 1/16 pixel


@dataclass(frozen=True)
class Pose:
    """Where the patient is in the image: ``scale`` in pixels (of 1024) per cm, origin ``x``, ``y``, radians."""

    scale: float
    x: float
    y: float
    angle: float

    def pixels(self, points: np.ndarray, size: int = SIZE) -> np.ndarray:
        """Return pixel coordinates (x, y), shape (n, 2), in an image of ``size``, of points in centimetres."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = points @ np.array([[cos, sin], [-sin, cos]]) * self.scale + (self.x, self.y)
        return (turned + 0.5) * (size / SIZE) - 0.5

    def per_cm(self, size: int = SIZE) -> float:
        """Return pixels per centimetre in an image of ``size``."""
        return self.scale * size / SIZE

    def grid(self, size: int = HALF) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y in centimetres of every pixel of an image of ``size``; two arrays (size, size)."""
        across = (np.arange(size, dtype=np.float32) + 0.5) * (SIZE / size) - 0.5
        column = (across - self.x) / self.scale
        row = (across - self.y) / self.scale
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return column[None, :] * cos + row[:, None] * sin, row[:, None] * cos - column[None, :] * sin


def smooth_curve(points: np.ndarray, closed: bool = False, steps: int = 12) -> np.ndarray:
    """Return a curve through the control points (Catmull-Rom), ``steps`` samples to each span; shape (n, 2)."""
    points = np.asarray(points, dtype=float)
    if closed:
        ring = np.concatenate([points[-1:], points, points[:2]])
    else:
        ring = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(steps) / steps)[None, :, None]
    before, start, end, after = (ring[k : len(ring) - 3 + k, None, :] for k in range(4))
    spans = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    curve = spans.reshape(-1, points.shape[1])
    return curve if closed else np.concatenate([curve, points[-1:]])


def ellipse(x: float, y: float, across: float, down: float, angle: float = 0.0, n: int = 48) -> np.ndarray:
    """Return an ellipse's outline from its centre, its two half-axes and its turn in radians; shape (n, 2)."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    a, b = across * np.cos(t), down * np.sin(t)
    return np.stack([x + a * np.cos(angle) - b * np.sin(angle), y + a * np.sin(angle) + b * np.cos(angle)], axis=1)


def fill(outline: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Fill an outline in pixels, with smooth edges: float32 (size, size) in [0, 1]."""
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [_fixed(outline)], 255, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def stroke(canvas: np.ndarray, curve: np.ndarray, value: int, width: int = 1, closed: bool = False) -> None:
    """Draw a curve in pixels onto a uint8 canvas, with smooth edges."""
    cv2.polylines(canvas, [_fixed(curve)], closed, int(value), max(1, int(width)), cv2.LINE_AA, _SHIFT)


def stroke_all(canvas: np.ndarray, curves: np.ndarray, value: int, width: int) -> None:
    """Draw many curves, shape (n, points, 2) in pixels, onto a uint8 canvas, with smooth edges."""
    cv2.polylines(canvas, list(_fixed(curves)), False, int(value), max(1, int(width)), cv2.LINE_AA, _SHIFT)


def rounded(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return the thickness of a slab with a round rim, as a share of the greatest: 0 at the edge, 1 ``radius`` inside.

    ``mask`` is float32 in [0, 1]; ``radius`` is in pixels. A beam through the rim of a round body crosses a chord, so
    the share rises as the square root of the distance to the edge.
    """
    distance = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    # The smooth edge of the mask says where within the last pixel the outline runs.
    depth = np.clip((distance - 0.5 + np.where(distance < 1.5, mask - 0.5, 0)) / radius, 0, 1)
    return np.sqrt(np.maximum(0, depth * (2 - depth)))


def slab(outline: np.ndarray, radius: float, size: int = HALF) -> np.ndarray:
    """Return :func:`rounded` of an outline in pixels, float32 (size, size); only its surroundings are computed."""
    low = np.clip(np.floor(outline.min(axis=0)).astype(int) - 2, 0, size - 1)
    high = np.clip(np.ceil(outline.max(axis=0)).astype(int) + 3, 1, size)
    canvas = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillPoly(canvas, [_fixed(outline - low)], 255, cv2.LINE_AA, _SHIFT)
    total = np.zeros((size, size), np.float32)
    total[low[1] : high[1], low[0] : high[0]] = rounded(canvas.astype(np.float32) / 255, radius)
    return total


def tubes(
    curves: list[np.ndarray], radii: list[np.ndarray], round_ends: bool, size: int = HALF
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where each pixel is in a family of tubes that do not cross each other.

    Args:
        curves: centre lines in pixels of an image of ``size``, each (n, 2), neighbours less than a pixel apart.
        radii: the tube's radius in pixels at each point of its centre line.
        round_ends: whether the tubes end in a half ball, or are cut straight across.
        size: height and width of the image.

    Returns:
        Flat index of every pixel within a tube; its signed offset from the centre line as a share of the radius, in
        [-1, 1]; and the nearest point's number, counted through all curves.
    """
    points = np.concatenate(curves)
    radius = np.concatenate(radii)
    tangent = np.concatenate([np.gradient(curve, axis=0) for curve in curves])
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    cell = np.rint(points).astype(int)
    kept = np.flatnonzero(((cell >= 0) & (cell < size)).all(axis=1))
    if not len(kept):
        empty = np.zeros(0, int)
        return empty, np.zeros(0, np.float32), empty
    # Only the part of the image that the tubes reach is computed.
    reach = int(np.ceil(radius.max())) + 2
    left, top = np.maximum(cell[kept].min(axis=0) - reach, 0)
    right, bottom = np.minimum(cell[kept].max(axis=0) + reach + 1, size)
    canvas = np.ones((bottom - top, right - left), np.uint8)
    column, row = cell[kept, 0] - left, cell[kept, 1] - top
    canvas[row, column] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        canvas, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    point_of_label = np.zeros(labels.max() + 1, int)
    point_of_label[labels[row, column]] = kept
    near = np.flatnonzero(distance.ravel() < reach)
    point = point_of_label[labels.ravel()[near]]
    row, column = np.divmod(near, right - left)
    row, column = row + top, column + left
    x, y, tx, ty = np.concatenate([points, tangent], axis=1).astype(np.float32).T.copy()
    dx, dy = column.astype(np.float32) - x[point], row.astype(np.float32) - y[point]
    tx, ty = tx[point], ty[point]
    offset = dy * tx - dx * ty
    first = np.cumsum([0, *(len(curve) for curve in curves)])
    is_end = np.zeros(len(points), bool)
    is_end[first[:-1]] = is_end[first[1:] - 1] = True
    along = dx * tx + dy * ty
    beyond = is_end[point] & (np.abs(along) > 1.0)
    offset[beyond] = np.hypot(offset[beyond], along[beyond]) if round_ends else np.inf
    offset /= radius.astype(np.float32)[point]
    inside = np.abs(offset) < 1
    flat = row[inside] * size + column[inside]
    return flat, offset[inside], point[inside]


def resampled(curve: np.ndarray, spacing: float) -> np.ndarray:
    """Return the curve with points at equal distances of about ``spacing``, whatever the spacing of its own points."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve[:, :2], axis=0), axis=1))])
    count = max(2, int(np.ceil(length[-1] / spacing)) + 1)
    at = np.linspace(0, length[-1], count)
    return np.stack([np.interp(at, length, column) for column in curve.T], axis=1)


def hollow(offset: np.ndarray, depth: float, wall: float) -> np.ndarray:
    """Return the length of bone that a beam crosses at ``offset`` (share of the radius) in a tube ``depth`` cm deep.

    ``wall`` is the share of the radius that is cortex; the marrow counts a seventh of cortex.
    """
    inner = 1 - wall
    outer_chord = np.sqrt(np.maximum(0, 1 - offset**2))
    inner_chord = inner * np.sqrt(np.maximum(0, 1 - (offset / inner) ** 2))
    return (depth * (outer_chord - inner_chord * (6 / 7))).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian with ``sigma`` in pixels; the border is reflected."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def wide_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian with a large ``sigma``, on a reduced image: same size out, a few per cent of the time."""
    step = max(1, int(2 ** np.floor(np.log2(max(1.0, sigma / 3)))))
    small = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    return enlarge(blur(small, sigma / step), image.shape[0])


def enlarge(image: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Resize by linear interpolation (twice as fast as cubic, and enough for smooth maps)."""
    return image if image.shape[0] == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def texture(random: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Return smooth noise, float32 (size, size): mean 0, standard deviation 1, structures of about ``sigma`` pixels."""
    step = max(1.0, sigma / 1.5)
    small = random.standard_normal((int(size / step) + 8,) * 2, dtype=np.float32)
    small = blur(small, sigma / step)
    small /= max(float(small.std()), 1e-6)
    return enlarge(small[4:-4, 4:-4], size)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(points, -4000, 8000) * 2**_SHIFT).astype(np.int32)
