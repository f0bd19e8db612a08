"""The space of a sweep: which settings its trials are to have, and from where to where.

In: a TOML file and the experiment. Out: for each setting the distribution that Optuna draws its values from. Every end
and every choice is tried out on the experiment, so that a trial is never refused hours later.
"""

from __future__ import annotations

import itertools
import json
import math
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_pneumo.config import CLASSIFIER, Experiment, number_kind, setting_field, setting_names, with_settings
from keras_pneumo.errors import PneumoError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FIXED = ("name", "task", "seed", "fold")
"""Settings in which trials do not differ, since their scores could not be compared or would be luck."""

MOST_CORNERS = 4096
"""Combinations of ends and choices that are checked beforehand; of a larger space each value alone."""

Space = dict[str, Any]
"""What each setting is drawn from, a distribution of Optuna; names as ``--set`` takes them."""


def read_space(path: Path, experiment: Experiment) -> Space:
    """Read a space, a TOML file, and check that each of its values is one that the experiment may have.

    A line is ``learning_rate = {low = 1e-4, high = 1e-2, log = true}`` or ``global_batch_size = [8, 16]``; settings of
    a group are written ``augmentation.rotate``.

    Raises:
        PneumoError: the file cannot be read, or names a setting or a value that cannot be; it names which.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PneumoError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PneumoError(
            f"{path} is no TOML file: {error}. Write a line for each setting, such as "
            "learning_rate = {low = 1e-4, high = 1e-2, log = true}."
        ) from None
    space = {name: _drawn_from(name, value, path) for name, value in _flat(content)}
    if not space:
        raise PneumoError(f"{path} names no setting. Write a line for each, such as global_batch_size = [8, 16].")
    corners = [[f"{name}={text_of(value)}" for value in _ends(drawn)] for name, drawn in space.items()]
    for text in itertools.chain(*corners):
        with_settings(experiment, [text], str(path))
    if math.prod(map(len, corners)) <= MOST_CORNERS:
        for texts in itertools.product(*corners):
            with_settings(experiment, texts, f"{path}, {' '.join(texts)},")
    return space


def _flat(table: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a TOML file with what is said of it; those of groups as ``group.name``."""
    for name, value in table.items():
        a_group = isinstance(value, dict) and not group and name not in setting_names(Experiment)
        if a_group and not {"low", "high"} & value.keys():
            yield from _flat(value, f"{name}.")
        else:
            yield group + name.replace("-", "_"), value


def _drawn_from(name: str, value: Any, path: Path) -> BaseDistribution:
    """What one setting is drawn from.

    Raises:
        PneumoError: it does not exist, is not to be swept, or what is said of it has no such form.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    where = f"{path}, {name}"
    if name not in setting_names(Experiment):
        with_settings(CLASSIFIER, [f"{name}=0"], str(path))  # refuses it, and suggests the right one
    if name in FIXED:
        raise PneumoError(
            f"{where}: it is the same in all trials, or their scores could not be compared. Leave it out, or give it "
            "with --set."
        )
    if isinstance(value, list) and len(value) > 1 and all(value.count(each) == 1 for each in value):
        return CategoricalDistribution(
            [each if isinstance(each, str | int | float) else text_of(each) for each in value]
        )
    kind = number_kind(name)
    if not isinstance(value, dict) or kind is None or not {"low", "high"} <= value.keys() <= {*_NUMBERS, "log"}:
        raise PneumoError(
            f"{where}: write a list of two or more different values, or of a number {{low = ..., high = ...}}, with "
            f"log = true or a step where they help. One value is given with --set {name}=VALUE."
        )
    if not all(type(value[key]) in (int, kind) for key in _NUMBERS & value.keys()):
        raise PneumoError(f"{where}: low, high and step must be {'whole ' * (kind is int)}numbers. Change them.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that does not lead from low to high
            if kind is float:
                return FloatDistribution(**value)
            return IntDistribution(**{"step": 1 if value.get("log") else _multiple_of(name), **value})
    except (ValueError, UserWarning) as error:
        reason = str(error).rstrip(".")
        raise PneumoError(f"{where} cannot be used ({reason}). Write other numbers.") from None


_NUMBERS = {"low", "high", "step"}


def _ends(drawn: Any) -> list[Any]:
    """The values that are checked beforehand: all choices; of numbers the least, the next, and the largest."""
    return list(drawn.choices) if hasattr(drawn, "choices") else [drawn.low, drawn.low + (drawn.step or 0), drawn.high]


def _multiple_of(name: str) -> int:
    """The least step of a whole number: 32 of an image size."""
    return next((step for limit in setting_field(name).metadata if (step := getattr(limit, "multiple_of", None))), 1)


def text_of(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
