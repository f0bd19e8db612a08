"""Keras weights and PyTorch state dicts, by name, both ways; files are safetensors.

In: one of our networks, and a state dict: numpy arrays by the names that torchvision or timm (ResNet), smp (U-Net) or
fastai (its learner) give them. Out: the same, the other way round. Which weight has which name is the business of
:mod:`keras_pneumo.models.torch_names`; here convolutions (h, w, in, out) <-> (out, in, h, w) and dense layers are
transposed. Values are copied, never computed, so a round trip is bit-equal. Every tensor is accounted for: what is
missing, left over or misshapen is listed and refused. No pickle is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import safetensors
import safetensors.numpy

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.torch_names import COUNTER, HEADS, named_variables
from keras_pneumo.storage.files import write_bytes

State = dict[str, np.ndarray]
"""A PyTorch state dict: numpy arrays by PyTorch's names."""


def to_torch(model: keras.Model) -> State:
    """The state dict that ``load_state_dict(strict=True)`` of the PyTorch twin accepts.

    Args:
        model: an encoder (torchvision's ResNet less ``fc``), a classifier (torchvision's or timm's ResNet with as many
            classes), a U-Net (``smp.Unet``) or a classifier with fastai's head (the model of ``vision_learner``).
    """
    state: State = {}
    for name, variable, axes in named_variables(model):
        # A copy in PyTorch's memory order: safetensors writes the bytes as they lie.
        state[name] = np.array(keras.ops.convert_to_numpy(variable).transpose(axes), order="C")
        if name.endswith(".running_var"):
            state[name.removesuffix(".running_var") + COUNTER] = np.zeros((), np.int64)
    return state


def from_torch(
    model: keras.Model, state: Mapping[str, np.ndarray], head: Literal["require", "skip"] = "require"
) -> None:
    """Set the model's weights from a state dict; nothing is set unless every tensor fits.

    Args:
        model: one of our networks, as for :func:`to_torch`.
        state: arrays by PyTorch's names.
        head: ``require`` takes the heads' tensors as all others; ``skip`` leaves the model's heads as they are and
            passes over the state's (their number of classes may be another).

    Raises:
        PneumoError: tensors are missing, left over, of another shape, not floating point, or not finite. All of them
            are named (the first ten of each kind).
    """
    if head not in ("require", "skip"):
        raise ValueError(f"head is 'require' or 'skip', not {head!r}")
    targets = {target.name: target for target in named_variables(model)}
    counters = {name.removesuffix(".running_var") + COUNTER for name in targets if name.endswith(".running_var")}
    if head == "skip":
        targets = {name: target for name, target in targets.items() if not name.startswith(HEADS)}
        state = {name: array for name, array in state.items() if not name.startswith(HEADS)}
    faults: dict[str, list[str]] = {"missing": [], "not of this network": [], "of another shape": [], "unusable": []}
    faults["missing"] = [name for name in targets if name not in state]
    faults["not of this network"] = [name for name in state if name not in targets and name not in counters]
    values = {}
    for name, (_, variable, axes) in targets.items():
        if name not in state:
            continue
        array = np.asarray(state[name])
        wanted = tuple(variable.shape[axis] for axis in axes)
        if array.shape != wanted:
            faults["of another shape"].append(f"{name} {array.shape} instead of {wanted}")
        elif not np.issubdtype(array.dtype, np.floating):
            faults["unusable"].append(f"{name} of type {array.dtype}")
        elif not np.isfinite(array).all():
            faults["unusable"].append(f"{name} with values that are not finite")
        else:
            values[name] = array.transpose(np.argsort(axes))
    found = [f"{len(names)} {kind}: {_first(names)}" for kind, names in faults.items() if names]
    if found:
        raise PneumoError(
            f"The weights do not fit the network {model.name!r}. Tensors {'; tensors '.join(found)}. "
            "Use weights made for this network and encoder."
        )
    for name, target in targets.items():
        target.variable.assign(values[name])


def save_safetensors(model: keras.Model, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write :func:`to_torch` of the model to a safetensors file, whole or not at all.

    Args:
        model: one of our networks.
        path: file to write; its folder must exist.
        metadata: texts kept in the file's header, such as the split's hash.

    Raises:
        PneumoError: the file cannot be written; an older file of that name is then untouched.
    """
    content = safetensors.numpy.save(to_torch(model), metadata={"format": "pt", **(metadata or {})})
    write_bytes(Path(path), content)


def load_safetensors(path: Path | str) -> State:
    """The tensors of a safetensors file, by name.

    Raises:
        PneumoError: the file cannot be read, or it is no whole safetensors file.
    """
    try:
        return safetensors.numpy.load(Path(path).read_bytes())
    except OSError as error:
        raise PneumoError(f"The weights in {path} cannot be read: {error.strerror or error}.") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PneumoError(
            f"{path} is no whole safetensors file ({error}). Only safetensors are read here, since pickled files "
            "(.pth, .pt, .bin) can run code; convert those where PyTorch is installed."
        ) from error


def _first(names: list[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
