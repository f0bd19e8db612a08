"""From attenuation to grey: exposure, scatter, noise, blur, the scanner's processing, collimation.

In: the sum of attenuation along each beam. Out: the 8-bit image as a MONOCHROME2 file shows it, bone white and air
black. Everything that sets the image as a whole (scatter, window) is computed from the patient without
pneumothorax, tube or markers, so the label cannot shift a single grey level away from the air itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keras_pneumo.phantoms.geometry import HALF, SIZE, blur, enlarge, texture, wide_blur


@dataclass(frozen=True)
class Exposure:
    """How one image is exposed and processed; greys are of 255."""

    scatter: float
    quanta: float
    sharpness: float
    lung_grey: float
    middle_grey: float
    edge_gain: float
    equalise: float


def make_exposure(random: np.random.Generator, view: str) -> Exposure:
    """Draw an exposure. PA: a grid, little scatter, strong contrast. AP in bed: no grid, much scatter, flat."""
    bed = view == "AP"
    return Exposure(
        scatter=float(random.uniform(0.5, 1.2) if bed else random.uniform(0.18, 0.42)),
        quanta=float(random.uniform(0.004, 0.009) if bed else random.uniform(0.0022, 0.005)),
        sharpness=float(random.uniform(0.85, 1.4) if bed else random.uniform(0.55, 0.85)),
        lung_grey=float(random.uniform(85, 135) if bed else random.uniform(36, 82)),
        middle_grey=float(random.uniform(180, 215) if bed else random.uniform(198, 228)),
        edge_gain=float(random.uniform(0.3, 0.75)),
        equalise=float(random.uniform(0.0, 0.25)),
    )


def develop(
    attenuation: np.ndarray,
    plain: np.ndarray,
    lung: np.ndarray,
    body: np.ndarray,
    exposure: Exposure,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the image's greys, float32 1024x1024 in [0, 255].

    Args:
        attenuation: summed along the beam, 1024x1024.
        plain: the same without pneumothorax and devices, at :data:`HALF` size: sets scatter and window.
        lung: the lungs' mask at :data:`HALF` size.
        body: the body's thickness in cm at :data:`HALF` size.
        exposure: how it was exposed.
        random: for the quanta.
    """
    through = cv2.exp(-plain)
    # Scatter comes from the whole irradiated body and spreads over several centimetres.
    source = through * np.minimum(body / 12, 1) * 0.5 + 0.02 * np.minimum(body / 20, 1)
    scattered = np.maximum(exposure.scatter * wide_blur(source, 42.0), 1e-4)
    reference = -cv2.log(through + scattered)
    low, high = _reference(reference, lung > 0.9, body)
    signal = blur(cv2.exp(-attenuation), exposure.sharpness)
    signal += enlarge(scattered)
    around = wide_blur(signal, 4.0)
    grain = blur(random.standard_normal((SIZE, SIZE), dtype=np.float32), 0.55)
    skin = np.minimum(body / 6, 1)
    gain = enlarge(exposure.edge_gain * skin)
    lift = enlarge(exposure.equalise * (0.5 * (low + high) - wide_blur(reference, 60.0)) * skin)
    steep = (_logit(exposure.middle_grey) - _logit(exposure.lung_grey)) / (high - low)
    grey = np.empty((SIZE, SIZE), np.float32)
    # In strips that stay in the processor's cache: half the time of whole images.
    for top in range(0, SIZE, 64):
        part = slice(top, top + 64)
        density = -cv2.log(signal[part])
        density += grain[part] * np.float32(1.9 * exposure.quanta) / np.sqrt(signal[part])
        density += gain[part] * (density + cv2.log(around[part])) + lift[part]
        curve = 255 / (1 + cv2.exp((low - density) * np.float32(steep) - np.float32(_logit(exposure.lung_grey))))
        # The foot of the characteristic curve: where the beam arrives unweakened, the image is black.
        grey[part] = curve * np.clip(density / 0.5 + 0.1, 0.1, 1)
    return grey


def _reference(density: np.ndarray, lung: np.ndarray, body: np.ndarray) -> tuple[float, float]:
    """Return the typical density of the lungs and of the thick parts between and below them."""
    thick = (body > 0.8 * body.max()) & ~lung
    low = float(np.median(density[lung])) if lung.any() else 1.5
    high = float(np.median(density[thick])) if thick.any() else 3.0
    return low, max(high, low + 0.3)


def _logit(grey: float) -> float:
    return float(np.log(grey / (255 - grey)))


def collimate(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw the borders of the irradiated field: left as they are, unexposed (white, soft) or blacked out (sharp)."""
    kind = random.choice(4, p=[0.42, 0.26, 0.20, 0.12])
    if kind == 0:
        return grey
    grey = grey.copy()
    tilt = random.normal(0, 0.008, 4)
    sides = random.random(4) < (0.55 if kind != 3 else 1.1)
    reach = random.uniform(4, 34, 4) if kind != 3 else random.uniform(1, 3, 4)
    soft, shade = (9.0, 245.0) if kind == 1 else (0.8, 2.0)
    deep = 64  # no border reaches further in
    along = np.arange(SIZE, dtype=np.float32) - SIZE / 2
    for number in np.flatnonzero(sides):
        # Views of the image on which each of the four borders is the upper one.
        view = (grey, grey[::-1], grey.T, grey.T[::-1])[number][:deep]
        gap = np.arange(deep, dtype=np.float32)[:, None] - reach[number] - tilt[number] * along * (kind != 3)
        share = np.clip(gap / soft + 0.5, 0, 1)
        view[:] = view * share + np.float32(shade) * (1 - share)
    return grey


def haze(random: np.random.Generator, lung: np.ndarray, view: str, per_cm: float) -> np.ndarray:
    """Return patches of denser lung (fluid, infection), in cm of tissue at :data:`HALF` size; more often in bed."""
    amount = random.gamma(1.1, 0.55) if view == "AP" else random.gamma(0.6, 0.25)
    patches = texture(random, HALF, 1.9 * per_cm) + 0.7 * texture(random, HALF, 0.6 * per_cm)
    return (np.clip(patches + 0.1, 0, 2.5) * 0.06 * min(amount, 2.2)).astype(np.float32) * lung


def dark_frame(grey: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Sometimes draw a dark line of one pixel round the image, as the resizing of some collections leaves it."""
    if random.random() < 0.3:
        grey = grey.copy()
        cv2.rectangle(grey, (0, 0), (SIZE - 1, SIZE - 1), 12.0, 1)
    return grey
