"""Likeness: whether a radiograph is like the training images at all, by the layout of its edges.

In: the training and validation images of a prepared folder, and later any radiograph. Out: a distance to those images,
and a limit above which the detector gives no answer: a text page, a limb or a rotated radiograph has no probability of
pneumothorax that could be believed.

The features are histograms of oriented gradients: how strong edges are in each of 8 directions in each of 8x8 cells.
They do not depend on brightness or contrast, need no network, and are the same on every engine. The distance is the
cosine distance to the fifth nearest image. The limit is the conformal quantile of the images' own distances, each to
the images of other patients: of new images like these, at most the stated rate is refused by mistake.

Tried and worse on the same images (docs/detector.md): the pooled features of the classifier with the Mahalanobis
distance or nearest neighbours, and grey values of 16x16 and 32x32 pixels.

Sources: Dalal and Triggs 2005 (gradients); Sun et al. 2022 (nearest neighbours); Laxhammar and Falkman 2011 (conformal
limit for a distance of nearest neighbours).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.radiographs.geometry import Placement, resize_image
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.maps import image_shapes
from keras_pneumo.storage.files import write_bytes

FILE = "likeness.npy"
"""The features of the training images, in the detector's folder: float16 (n, FEATURES), each row of length 1."""

RATE = 0.01
"""Share of new images like the training images that are refused by mistake, at most, where there are 99 or more."""

NEIGHBOURS = 5
FEWEST = 20
"""Images of several patients that a limit needs: with fewer, more than one in twenty would be refused by mistake."""

MOST = 2000
"""Images that are kept at most: they take 2 MB, and a distance a millisecond."""

SIDE, CELLS, DIRECTIONS = 64, 8, 8
FEATURES = CELLS * CELLS * DIRECTIONS
_FLAT = 0.02
"""Mean gradient, in grey values of 1, below which a neighbourhood counts as flat: noise there has no direction."""


@dataclass(frozen=True)
class Likeness:
    """Measures how far radiographs are from the training images."""

    features: np.ndarray
    """Of the training images, float16 (n, FEATURES)."""
    image_size: int
    """Side to which an image is reduced first, as the prepared images were."""
    limit: float
    """The largest distance of an image that gets an answer."""

    def distances(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Distances of uint8 radiographs (H, W) of any size, float64 (n,): 0 the same, 1 nothing alike, 2 opposite."""
        reduced = [resize_image(image, self.image_size) for image in images]
        return self.distances_of([_cut(each, *image.shape) for each, image in zip(reduced, images, strict=True)])

    def distances_of_batch(self, batch: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Distances of a network's images, float32 (n, S, S, 1) in [0, 1], S the image size; float64 (n,).

        Args:
            batch: images that were padded to squares and reduced.
            shapes: rows and columns of the file of each, which say where its padding is.
        """
        squares = np.rint(batch[..., 0] * 255).astype(np.uint8)
        return self.distances_of([_cut(square, *shape) for square, shape in zip(squares, shapes, strict=True)])

    def distances_of(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Distances of images, uint8 (h, w), that were reduced already and have no padding; float64 (n,)."""
        similarity = edge_features(images) @ self.features.astype(np.float32).T
        nearest = min(NEIGHBOURS, len(self.features))
        return np.asarray(1 - np.sort(similarity, axis=1)[:, -nearest], float)


@dataclass(frozen=True)
class LikenessFit:
    """A fitted :class:`Likeness`, and how it does on the images of the prepared folder."""

    likeness: Likeness
    rate: float
    """Share of new images like these that is refused by mistake, at most."""
    patients: int
    held_out: np.ndarray
    """Distance of each training and validation image to the images of other patients, (n,)."""
    test: np.ndarray
    """Distance of each test image, (m,)."""
    positive: np.ndarray
    """Whether each test image shows a pneumothorax, bool (m,)."""

    @property
    def refused(self) -> np.ndarray:
        """Which test images are refused, all of them by mistake: bool (m,)."""
        return np.asarray(self.test > self.likeness.limit)

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``detector.json``; :func:`read_likeness` reads them."""
        return {
            "image_size": self.likeness.image_size,
            "limit": self.likeness.limit,
            "rate": self.rate,
            "images": len(self.held_out),
            "patients": self.patients,
            "test": {
                "images": len(self.test),
                "refused": int(self.refused.sum()),
                "positives_refused": int((self.refused & self.positive).sum()),
            },
        }

    @property
    def sentence(self) -> str:
        """The limit and the false alarms, for a person."""
        return (
            f"Not like the training images from a distance of {self.likeness.limit:.3f} on: "
            f"{int(self.refused.sum())} of {len(self.test)} test images."
        )


def fit_likeness(prepared: PreparedFolder, image_size: int, fold: int = 0, rate: float = RATE) -> LikenessFit | None:
    """Fit the features and the limit on all images that are not test images.

    No network learns here, so training images serve as well as validation images: each is measured by the images of
    other patients. The distance of a new image is to a few more images, so it is rather smaller, and the rate holds.

    Args:
        prepared: what the detector's runs were trained on.
        image_size: one of its sizes, in pixels.
        fold: of the runs.
        rate: share of new images that may be refused by mistake; 1 / (n + 1) where n images cannot show less.

    Returns:
        The fit, or None where there are fewer than FEWEST images, or all are of one patient.
    """
    image_ids = [*prepared.subset("train", fold), *prepared.subset("validation", fold)]
    if len(image_ids) > MOST:
        kept = np.random.default_rng(0).choice(len(image_ids), MOST, replace=False)
        image_ids = [image_ids[index] for index in sorted(kept)]
    cases = prepared.cases.set_index("image_id")
    patients = cases["patient_id"].loc[image_ids].to_numpy(str)
    if len(image_ids) < FEWEST or len(set(patients)) < 2:
        return None
    features = edge_features(_prepared_images(prepared, image_ids, image_size)).astype(np.float16)
    held_out = distances_to_others(features, patients)
    limit, stated = limit_of(held_out, rate)
    likeness = Likeness(features, image_size, limit)
    test_ids = prepared.subset("test", fold)
    test = likeness.distances_of(_prepared_images(prepared, test_ids, image_size)) if test_ids else np.empty(0)
    positive = cases["pneumothorax"].loc[test_ids].to_numpy(bool)
    return LikenessFit(likeness, stated, len(set(patients)), held_out, test, positive)


def distances_to_others(features: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The distance of each image to the images of other patients, float64 (n,).

    Args:
        features: rows of length 1, (n, FEATURES).
        patients: the patient of each image, (n,); there are at least two.
    """
    wide = features.astype(np.float32)
    similarity = wide @ wide.T
    similarity[patients[:, None] == patients[None]] = -np.inf
    ordered = np.sort(similarity, axis=1)[:, ::-1][:, :NEIGHBOURS]
    others = np.minimum(np.isfinite(ordered).sum(axis=1), NEIGHBOURS)
    return np.asarray(1 - ordered[np.arange(len(ordered)), others - 1], float)


def limit_of(held_out: np.ndarray, rate: float) -> tuple[float, float]:
    """The limit that refuses at most ``rate`` of new images like these, and the rate that it holds.

    It is the conformal quantile, the k-th smallest distance with k = (n + 1) (1 - rate) rounded up. With too few
    images for the rate it is the largest distance, and the rate 1 / (n + 1).
    """
    position = min(math.ceil((len(held_out) + 1) * (1 - rate)), len(held_out))
    # Rounded up, so that an image on the limit gets its answer whatever the order of a sum is.
    limit = math.ceil(float(np.sort(held_out)[position - 1]) * 1e5) / 1e5
    return limit, max(rate, 1 / (len(held_out) + 1))


def edge_features(images: Sequence[np.ndarray]) -> np.ndarray:
    """Histograms of the directions of edges, float32 (n, FEATURES), each row of length 1, or 0 for a blank image.

    Args:
        images: uint8 (h, w) of any size; each is brought to 64x64, whatever its proportions, so that all chests lie
            alike.
    """
    return np.stack([_edge_features(image) for image in images])


def _edge_features(image: np.ndarray) -> np.ndarray:
    way = cv2.INTER_AREA if min(image.shape) >= SIDE else cv2.INTER_LINEAR
    small = cv2.resize(image, (SIDE, SIDE), interpolation=way).astype(np.float32) / 255
    down, right = np.gradient(cv2.GaussianBlur(small, (0, 0), 1))
    strength = np.hypot(right, down)
    # The whole turn and not half of it: from dark to light is not from light to dark, so a negative is found out.
    direction = np.arctan2(down, right) % (2 * np.pi) * (DIRECTIONS / (2 * np.pi))
    lower = np.floor(direction).astype(int)
    share = direction - lower
    histogram = np.zeros((SIDE, SIDE, DIRECTIONS), np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    histogram[rows, columns, lower % DIRECTIONS] += strength * (1 - share)
    histogram[rows, columns, (lower + 1) % DIRECTIONS] += strength * share
    cell = SIDE // CELLS
    cells = histogram.reshape(CELLS, cell, CELLS, cell, DIRECTIONS).sum(axis=(1, 3))
    # Relative to the edges around: a lung behind a dark exposure then has the same outline.
    around = cv2.blur(np.linalg.norm(cells, axis=-1), (3, 3), borderType=cv2.BORDER_REPLICATE)
    # Without their mean: noise, which has every direction alike, would else be half as like anything as it can be.
    directed = cells - cells.mean(axis=-1, keepdims=True)
    flat = (directed / (around + _FLAT * cell)[..., None]).ravel()
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-9), np.float32)


def _prepared_images(prepared: PreparedFolder, image_ids: Sequence[str], size: int) -> list[np.ndarray]:
    """Prepared images without their padding, uint8 (h, w)."""
    source = open_source(prepared, image_ids, size)
    shapes = image_shapes(prepared, image_ids) or [(size, size)] * len(image_ids)
    return [_cut(source.image(index), *shape) for index, shape in enumerate(shapes)]


def _cut(square: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The part of a square image that is not padding; ``rows`` and ``columns`` are of the file."""
    top, bottom, left, right = Placement(rows, columns).box(len(square))
    return square[top:bottom, left:right]


def write_likeness(likeness: Likeness, folder: Path) -> Path:
    """Write the features into a detector's folder, and return their file."""
    stream = io.BytesIO()
    np.save(stream, likeness.features, allow_pickle=False)
    write_bytes(folder / FILE, stream.getvalue())
    return folder / FILE


def read_likeness(folder: Path, record: dict[str, Any]) -> Likeness | None:
    """Read the check from a detector's folder, whose hashes were compared; None for a detector that has none.

    Args:
        folder: the detector's.
        record: all of its ``detector.json``.

    Raises:
        PneumoError: it is incomplete or damaged.
    """
    values = record.get("likeness")
    if values is None:
        return None
    try:
        if FILE not in record["files"]:
            raise ValueError("not listed")
        features = np.load(folder / FILE, allow_pickle=False)
        likeness = Likeness(features, int(values["image_size"]), float(values["limit"]))
        whole = features.dtype == np.float16 and features.ndim == 2 and features.shape[1] == FEATURES and len(features)
        if whole and np.isfinite(features).all() and likeness.image_size > 0 and 0 <= likeness.limit <= 2:
            return likeness
    except (KeyError, TypeError, ValueError, OSError, EOFError):
        pass
    raise PneumoError(
        f"{folder}: the check whether a radiograph is like the training images ({FILE}) is incomplete or damaged. Copy "
        "the detector again, or join its runs again."
    )
