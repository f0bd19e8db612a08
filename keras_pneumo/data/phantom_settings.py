"""What a folder of phantoms should be: how many films, from which seed, with what shares of everything.

In come numbers from a person; out comes a checked, frozen :class:`PhantomSettings`, or a sentence that says which
number cannot be used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras_pneumo.errors import PneumoError


@dataclass(frozen=True)
class PhantomSettings:
    """What to make.

    Args:
        images: number of films.
        seed: any whole number from 0; another seed is another hospital.
        positive_rate: share of films with a pneumothorax (SIIM: 0.22).
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
