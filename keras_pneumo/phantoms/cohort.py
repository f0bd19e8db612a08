"""The synthetic patients: settings of a folder, who the patients are, and everything about an image but its pixels.

In: :class:`PhantomSettings` and (patient, image). Out: a :class:`Case`. This is apart from the drawing because the leak
between image-level training and validation sets is made here: patients differ widely in how likely they are to have a
pneumothorax, and patients with more images have one more often, as in SIIM-ACR (where the number of a patient's images
alone scores AUROC 0.84). Age, sex and view do not depend on that tendency.

Patients are spread evenly rather than drawn at random (multiples of square roots of primes, modulo one: Richtmyer's
sequence, 1951). So even a small folder has close to the requested share of positives, and a larger folder begins with
the patients of a smaller one.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import expit, ndtri

from keras_pneumo.errors import PneumoError

MAX_IMAGES = 6
"""Largest number of images of one patient."""

IMAGES_SHARE = (0.56, 0.16, 0.10, 0.07, 0.06, 0.05)
"""Share of patients with 1, 2, ... images. SIIM: 0.68, 0.15, 0.06, 0.03, 0.02, and 0.06 with six or more."""

TENDENCY_SPREAD = 3.5
"""Standard deviation, in logits, of the patients' tendency. With the slope below it sets how far an image-level split
leaks; both were chosen so that knowing only the patient scores AUROC 0.8 there (tests/phantoms/test_cohort.py)."""

TENDENCY_PER_IMAGE = 1.2
"""Logits added to the tendency for each image after the first."""

MEDIAN_AREA = 0.0082
"""Median share of the image that a pneumothorax covers; SIIM's 2,669 positives: 0.00823."""

AREA_SPREAD = 1.09
"""Standard deviation of the logarithm of that share; SIIM's 2,669 positives: 1.086."""

SMALLEST_AREA, LARGEST_AREA = 0.00006, 0.154
"""SIIM's smallest (55 pixels) and largest share."""

PIXEL_SPACINGS = ("0.168", "0.139", "0.14300000000000002", "0.19431099999999998")
"""Pixel Spacing exactly as SIIM's files write it (two of the four are longer than DICOM allows)."""

_UID_ROOT = "1.2.276.0.7230010.3.1"
_HOST = "8323329"


@dataclass(frozen=True)
class PhantomSettings:
    """What a folder of phantoms holds: how many images, from which seed, with which shares.

    Args:
        images: number of images.
        seed: any whole number from 0; another seed gives other patients.
        positive_rate: share of images with a pneumothorax (SIIM: 0.22).
        size_scale: multiplies the drawn areas; 1 gives SIIM's sizes, whose median is 0.8% of the image.
        monochrome1_rate: share of files stored inverted.
        tube_rate: share of positives with a chest tube; some negatives of the same patients have one too.
        several_rows_rate: share of positives outlined in two rows, a third of which overlap (SIIM: 0.23).

    Raises:
        PneumoError: a value out of its range.
    """

    images: int = 400
    seed: int = 0
    positive_rate: float = 0.22
    size_scale: float = 1.0
    monochrome1_rate: float = 0.04
    tube_rate: float = 0.4
    several_rows_rate: float = 0.23

    def __post_init__(self) -> None:
        """Refuse numbers outside their range, by name."""
        for name, low, high in (("images", 1, 100_000), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise PneumoError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.")
        for name in ("positive_rate", "monochrome1_rate", "tube_rate", "several_rows_rate"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= 1:
                raise PneumoError(f"{name} is {value!r}; it is a share, so it must be from 0 to 1.")
        if not _is_number(self.size_scale) or not 0 < self.size_scale <= 20:
            raise PneumoError(f"size_scale is {self.size_scale!r}; it must be above 0 and at most 20.")


@dataclass(frozen=True)
class Case:
    """Everything about one image but its pixels.

    ``area`` is the share of the image that a pneumothorax covers (0 for a negative), ``rows`` the number of its label
    rows (0 for a negative); ``overlap`` says whether two rows should overlap. ``sex`` is M or F, ``age`` in years,
    ``view`` PA or AP, ``side`` right or left.
    """

    seed: int
    patient: int
    image: int
    patient_id: str
    image_id: str
    study_uid: str
    series_uid: str
    file_uuid: str
    sex: str
    age: int
    view: str
    pixel_spacing: str
    monochrome1: bool
    positive: bool
    side: str
    area: float
    rows: int
    overlap: bool
    tube: bool


@dataclass(frozen=True)
class Patient:
    """What all images of one patient share; ``positives`` says for each image whether it shows a pneumothorax."""

    number: int
    patient_id: str
    positives: tuple[bool, ...]
    sex: str
    age: int
    portable: float
    side: str


def list_images(seed: int, images: int, positive_rate: float) -> list[tuple[int, int]]:
    """List the first ``images`` (patient, image) pairs, patient after patient; the last patient may be cut short."""
    pairs: list[tuple[int, int]] = []
    patient = 0
    while len(pairs) < images:
        count = len(make_patient(seed, patient, positive_rate).positives)
        pairs.extend((patient, image) for image in range(count))
        patient += 1
    return pairs[:images]


def make_patient(seed: int, patient: int, positive_rate: float) -> Patient:
    """Make the patient with that number (0, 1, ...); a pure function of its arguments."""
    count_at, tendency_at, rounding, portable_at, sex_at, age_at = _spread(seed, patient)
    count = 1 + int(np.searchsorted(np.cumsum(IMAGES_SHARE)[:-1], count_at, side="right"))
    logit = TENDENCY_SPREAD * ndtri(np.clip(tendency_at, 1e-6, 1 - 1e-6)) + TENDENCY_PER_IMAGE * (count - 1)
    probability = _probability(logit, positive_rate)
    # The expected number of positives, rounded up or down by an evenly spread third coordinate: keeps the share of
    # positives close to the requested one in small folders.
    positives = int(np.floor(probability * count + rounding))
    random = stream(seed, 1, patient)
    chosen = set(random.permutation(count)[:positives].tolist())
    return Patient(
        number=patient,
        patient_id=f"{patient:08d}",
        positives=tuple(image in chosen for image in range(count)),
        sex="M" if sex_at < 0.56 else "F",
        age=int(np.clip(47 + 17 * ndtri(np.clip(age_at, 1e-6, 1 - 1e-6)), 6, 92)),
        # Most people are always examined standing (PA) or always in bed (AP).
        portable=0.06 if portable_at < 0.5 else 0.5 if portable_at < 0.7 else 0.95,
        side="right" if random.random() < 0.55 else "left",
    )


def make_case(seed: int, patient: int, image: int, settings: PhantomSettings) -> Case:
    """Make image ``image`` (0, 1, ...) of a patient; a pure function of its arguments (``settings.seed`` is not used).

    Raises:
        IndexError: the patient has no image of that number.
    """
    person = make_patient(seed, patient, settings.positive_rate)
    if not 0 <= image < len(person.positives):
        raise IndexError(f"patient {patient} has {len(person.positives)} images, not {image + 1}")
    positive = person.positives[image]
    random = stream(seed, 2, patient, image)
    study, series, instance = _uids(seed, patient, image, random)
    area = MEDIAN_AREA * float(np.exp(AREA_SPREAD * random.standard_normal()))
    several = random.random() < settings.several_rows_rate
    overlap = bool(several and random.random() < 0.35)
    other_side = random.random() < 0.12
    tube_draw = random.random()
    # A tube stays in for a while after the air has gone: some images of a patient with a pneumothorax, few of others.
    tube_chance = settings.tube_rate if positive else settings.tube_rate * (0.2 if any(person.positives) else 0.01)
    side = person.side if not other_side else ("left" if person.side == "right" else "right")
    return Case(
        seed=seed,
        patient=patient,
        image=image,
        patient_id=person.patient_id,
        image_id=instance,
        study_uid=study,
        series_uid=series,
        file_uuid=str(uuid.UUID(bytes=random.bytes(16), version=4)),
        sex=person.sex,
        age=person.age + int(random.integers(0, 2)),
        view="AP" if random.random() < person.portable else "PA",
        pixel_spacing=PIXEL_SPACINGS[random.choice(4, p=[0.3, 0.25, 0.35, 0.1])],
        monochrome1=bool(random.random() < settings.monochrome1_rate),
        positive=positive,
        side=side,
        area=float(np.clip(area * settings.size_scale, SMALLEST_AREA, LARGEST_AREA)) if positive else 0.0,
        rows=2 if several and positive else int(positive),
        overlap=overlap and positive,
        tube=bool(tube_draw < tube_chance),
    )


def stream(seed: int, *path: int) -> np.random.Generator:
    """Return a random generator that depends on nothing but its arguments."""
    return np.random.default_rng([seed, *path])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spread(seed: int, patient: int) -> np.ndarray:
    """Return six evenly spread coordinates in [0, 1) of a patient."""
    steps = np.sqrt([2, 3, 5, 7, 19, 13])
    return (stream(seed, 0).random(6) + steps * patient) % 1.0


def _probability(logit: float, positive_rate: float) -> float:
    if positive_rate in (0.0, 1.0):
        return positive_rate
    return float(expit(logit + _shift(positive_rate)))


@lru_cache(maxsize=16)
def _shift(positive_rate: float) -> float:
    """Return the shift of every patient's logit that makes the expected share of positive images ``positive_rate``."""
    quantiles = TENDENCY_SPREAD * ndtri((np.arange(512) + 0.5) / 512)
    counts = np.arange(1, MAX_IMAGES + 1)
    weights = np.array(IMAGES_SHARE) * counts
    logits = quantiles[None, :] + TENDENCY_PER_IMAGE * (counts[:, None] - 1)
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        rate = float((expit(logits + middle).mean(axis=1) * weights).sum() / weights.sum())
        low, high = (middle, high) if rate < positive_rate else (low, middle)
    return (low + high) / 2


def _uids(seed: int, patient: int, image: int, random: np.random.Generator) -> tuple[str, str, str]:
    """Return study, series and instance UID in the form of dcmtk's img2dcm, which wrote SIIM's files.

    The last part is a bijection of the image's number, so no two images of a folder share a UID.
    """
    process, second = int(random.integers(1, 32768)), int(random.integers(160, 252))
    number = patient * MAX_IMAGES + image
    micros = 3 * ((number * 104729 + seed * 7919) % 333331) + 2
    tails = [f"{_HOST}.{process}.1517875{second}.{micros - back}" for back in (1, 2, 0)]
    return f"{_UID_ROOT}.2.{tails[0]}", f"{_UID_ROOT}.3.{tails[1]}", f"{_UID_ROOT}.4.{tails[2]}"
