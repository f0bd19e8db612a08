"""One synthetic radiograph from its numbers: (seed, patient, image) -> pixels, masks and facts.

Out goes the image with the truth that only a phantom has: where the air, tubes, leads and writing are. A pure function:
the same arguments give the same bytes, in any process and any order. Positives and negatives go through the same code;
only the air, the lung it displaces and a tube differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, lung_outline
from keras_pneumo.phantoms.bones import bones
from keras_pneumo.phantoms.cohort import Case, PhantomSettings, make_case, stream
from keras_pneumo.phantoms.devices import LEAD, Box, DeviceLocations, draw_devices, position_patient
from keras_pneumo.phantoms.exposure import collimate, dark_frame, develop, haze, make_exposure
from keras_pneumo.phantoms.geometry import HALF, SIZE, blur, enlarge, fill, stroke, texture
from keras_pneumo.phantoms.lungs import Crescent, crescent, edge_curve, vessels
from keras_pneumo.phantoms.soft_tissue import soft_tissue_maps

SOFT_TISSUE = 0.185
"""Attenuation per cm of water and flesh at a chest radiograph's mean energy (60 keV: NIST XCOM gives 0.20)."""

LUNG = 0.045
"""Attenuation per cm of aired lung: flesh at a quarter of its density."""

COMPACT_BONE = 0.42
"""Attenuation per cm of compact bone beyond the flesh it replaces (NIST XCOM at 60 keV: 0.6 in all)."""


@dataclass(frozen=True)
class PhantomImage:
    """A synthetic radiograph and its truth.

    ``image``: uint8, 1024x1024, bone white (MONOCHROME2). ``masks``: one bool mask per label row, none for a negative.
    ``locations``: where a chest tube, leads and writing are. ``lungs``: bool mask of both lung fields; every mask is
    inside it.
    """

    case: Case
    image: np.ndarray
    masks: tuple[np.ndarray, ...]
    locations: DeviceLocations
    lungs: np.ndarray

    @property
    def tube(self) -> np.ndarray:
        """The bool mask of the chest tube, 1024x1024, empty without one."""
        return self.locations.tube

    @property
    def marker_box(self) -> Box:
        """x, y, width, height in pixels of the side marker."""
        return self.locations.marker

    @property
    def air(self) -> np.ndarray:
        """The union of the label rows: bool, 1024x1024."""
        return np.logical_or.reduce(self.masks) if self.masks else np.zeros((SIZE, SIZE), bool)


def render(seed: int, patient: int, image: int, settings: PhantomSettings | None = None) -> PhantomImage:
    """Draw one radiograph from its numbers; a pure function of its arguments.

    Args:
        seed: of the folder; ``settings.seed`` is not used.
        patient: number of the patient, from 0.
        image: number of the patient's image, from 0.
        settings: the shares and the size; the default ones if None.

    Raises:
        IndexError: the patient has no image of that number.
    """
    return render_case(make_case(seed, patient, image, settings or PhantomSettings()))


def render_case(case: Case) -> PhantomImage:
    """Draw the radiograph of a case."""
    key = (case.seed, case.patient, case.image)
    build, position, pose = position_patient(case)
    soft = soft_tissue_maps(build, position, pose, stream(key[0], 6, *key[1:]))
    lung_mask = np.maximum(soft.lungs[RIGHT], soft.lungs[LEFT])
    patches = haze(stream(key[0], 7, *key[1:]), soft.lung, case.view, pose.per_cm(HALF))
    skeleton = bones(build, position, pose, stream(case.seed, 8, case.patient))
    plain = SOFT_TISSUE * soft.tissue + COMPACT_BONE * skeleton

    side = RIGHT if case.side == "right" else LEFT
    shape = None
    if case.positive:
        random = stream(key[0], 9, *key[1:])
        shape = crescent(build, position, pose, side, case.area, case.rows, case.overlap, random)

    air = blur(shape.air.astype(np.float32), 0.8) if shape is not None else np.zeros((SIZE, SIZE), np.float32)
    tissue = _lung_tissue(soft.lung, soft.lungs, shape, stream(key[0], 10, *key[1:]))
    blood = vessels(build, position, pose, shape)
    # Vessels fade towards the lung's rim, where the beam crosses little of it.
    blood *= enlarge(np.minimum(soft.lung / 8.0, 1) * np.float32(SOFT_TISSUE - LUNG))
    tissue += blood
    tissue += enlarge(SOFT_TISSUE * patches)
    tissue *= 1 - air
    attenuation = enlarge(plain)
    attenuation += tissue
    if shape is not None:
        attenuation += _lung_edge(shape, edge_curve(shape, build, pose))
    devices = draw_devices(case, build, position, pose)
    if devices.tube is not None:
        attenuation = attenuation + devices.tube.attenuation
    attenuation += devices.leads.attenuation
    writing = devices.writing
    lit = writing.lead > 0
    attenuation[lit] += writing.lead[lit] * np.float32(LEAD / 255)

    exposure = make_exposure(stream(key[0], 14, *key[1:]), case.view)
    grey = develop(
        attenuation,
        plain + LUNG * soft.lung + SOFT_TISSUE * patches,
        lung_mask,
        soft.body,
        exposure,
        stream(key[0], 15, *key[1:]),
    )
    borders = stream(key[0], 16, *key[1:])
    grey = dark_frame(collimate(grey, borders), borders)
    lit = writing.ink > 0
    grey[lit] += (250 - grey[lit]) * (writing.ink[lit] / np.float32(255))
    image = cv2.convertScaleAbs(grey)  # rounds and clips
    field = np.logical_or(*(fill(pose.pixels(lung_outline(build, position, half))) > 0.5 for half in (RIGHT, LEFT)))
    return PhantomImage(case, image, shape.rows if shape is not None else (), devices.locations, field)


def _lung_tissue(
    lung: np.ndarray, lungs: dict[int, np.ndarray], shape: Crescent | None, random: np.random.Generator
) -> np.ndarray:
    """Return the lung's attenuation without vessels: a fine network, denser where the lung has less room."""
    grain = 0.05 * texture(random, HALF, 1.2) + 0.06 * texture(random, HALF, 3.0)
    density = 1 + grain + 0.05 * texture(random, HALF, 8.0) + 0.06 * texture(random, HALF, 24.0)
    if shape is not None:
        own = lungs[shape.side]
        taken = float(shape.air.sum()) / max(4.0 * float((own > 0.5).sum()), 1.0)
        # The same tissue in less room; half of the loss is of air and blood that leave the lung.
        density = density * (1 + own * min(0.5, 0.5 * taken / (1 - min(taken, 0.8))))
    return enlarge((LUNG * lung * density).astype(np.float32))


def _lung_edge(shape: Crescent, curve: np.ndarray) -> np.ndarray:
    """Draw the visceral pleura seen edge-on: a thin bright line where there is air beside it."""
    line = np.zeros((SIZE, SIZE), np.uint8)
    gaps = np.flatnonzero(np.hypot(*np.diff(curve[:, :2], axis=0).T) > 12) + 1
    for part in np.split(curve, gaps):
        if len(part) > 1:
            stroke(line, part[:, :2], 255, 2)
    beside = np.minimum(1.0, blur(shape.air.astype(np.float32), 3.0) * 3)
    return blur(line, 0.8).astype(np.float32) * (0.085 / 255) * beside
