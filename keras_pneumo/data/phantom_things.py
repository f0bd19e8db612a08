"""All that is on a phantom beside the patient: drawn for the film, and listed in ``devices.csv``.

In comes a film's case; out go a chest tube, leads and writing, each from a stream of its own, and the table's rows of
them. None of it needs the rest of the film, so the table of a folder can be written again without drawing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.data import rle
from keras_pneumo.data.devices import LEADS, MARKER, TUBE, WORDS, box_pixels
from keras_pneumo.data.phantom_anatomy import LEFT, RIGHT, Build, Stance, build_of, pose_of, stance_of
from keras_pneumo.data.phantom_cohort import Case, patient_of, stream
from keras_pneumo.data.phantom_devices import Leads, Tube, chest_tube, leads
from keras_pneumo.data.phantom_geometry import SIZE, Pose
from keras_pneumo.data.phantom_writing import Box, Writing, writing


@dataclass(frozen=True)
class Things:
    """What is drawn over the patient."""

    tube: Tube | None
    leads: Leads
    writing: Writing

    @property
    def places(self) -> Places:
        """Where all of it lies."""
        tube = self.tube.mask if self.tube is not None else np.zeros((SIZE, SIZE), bool)
        return Places(tube, self.leads.mask, self.writing.box, self.writing.words)


@dataclass(frozen=True)
class Places:
    """Where things lie on a film: masks are bool 1024x1024 and empty without the thing, boxes x, y, width, height."""

    tube: np.ndarray
    leads: np.ndarray
    marker: Box
    words: tuple[Box, ...]

    def rows(self, image_id: str) -> list[tuple[str, str, str]]:
        """Rows of ``devices.csv``: image id, kind and EncodedPixels."""
        found = [(TUBE, rle.encode(self.tube))] if self.tube.any() else []
        found += [(MARKER, box_pixels(*self.marker)), *((WORDS, box_pixels(*box)) for box in self.words)]
        found += [(LEADS, rle.encode(self.leads))] if self.leads.any() else []
        return [(image_id, kind, pixels) for kind, pixels in found]


def posed(case: Case) -> tuple[Build, Stance, Pose]:
    """The patient's build, how the patient stands, and where that puts the patient on the film."""
    key = (case.patient, case.image)
    who = patient_of(case.seed, case.patient, 0.0)
    build = build_of(stream(case.seed, 3, case.patient), who.sex, who.age)
    stance = stance_of(stream(case.seed, 4, *key), case.view)
    return build, stance, pose_of(stream(case.seed, 5, *key), case.view, build)


def things_of(case: Case, build: Build, stance: Stance, pose: Pose) -> Things:
    """Draw what is on one film beside the patient."""
    key = (case.patient, case.image)
    side = RIGHT if case.side == "right" else LEFT
    tube = chest_tube(build, pose, side, stream(case.seed, 11, *key)) if case.tube else None
    lines = leads(build, stance, pose, stream(case.seed, 12, *key))
    return Things(tube, lines, writing(stance, stream(case.seed, 13, *key)))


def device_rows(case: Case) -> list[tuple[str, str, str]]:
    """A film's rows of ``devices.csv``, without drawing the film."""
    return things_of(case, *posed(case)).places.rows(case.image_id)
