"""Keras weights and PyTorch state dicts, by name, both ways; files are safetensors.

In: one of our networks, and a state dict: numpy arrays under the names that torchvision or timm (ResNet), smp (U-Net)
or fastai (its learner) give them. Out: the same, the other way round. Values are copied, never computed, so a round
trip is bit-equal. Every tensor is accounted for: what is missing, left over or of another shape is listed and refused.
No pickle is read or written.

Names. Our layers carry PyTorch's module names with ``-`` for ``.``: ``layer1.0.conv1`` is the layer ``layer1-0-conv1``.
The same holds for a layer's own variables. Keras's torch backend allows no dot there, and PyTorch has no ``-`` in a
name, so the way back, :func:`module_name`, is exact. So one rule for each kind of layer is enough. fastai cuts
torchvision's ResNet into a Sequential, whose modules are numbered instead of named.

Axes. Convolutions (h, w, in, out) <-> (out, in, h, w); dense layers are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import safetensors
import safetensors.numpy

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.resnet import leaf_layers
from keras_pneumo.storage.files import write_bytes
from keras_pneumo.storage.tables import one_line, visible

StateDict = dict[str, np.ndarray]
"""A PyTorch state dict: numpy arrays by PyTorch's names."""

HEADS = ("fc.", "segmentation_head.", "classification_head.", "1.")
"""Beginnings of the names of tensors that belong to a task rather than to the features; ``1.`` is fastai's head."""

COUNTER = ".num_batches_tracked"
"""PyTorch counts BatchNorm's batches, Keras does not: written as 0, accepted and not used when read."""

STATISTICS = (".running_mean", ".running_var")
"""Endings of the tensors that training keeps but no optimizer learns."""

_KERNELS = {"kernel": "weight", "bias": "bias"}
_VECTORS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
"""How a convolution's, a dense layer's and a vector's axes are transposed into PyTorch's order."""

_FASTAI_STEM = {"conv1": "0.0", "bn1": "0.1"}
"""The ResNet's first modules in fastai's Sequential; 0.2 and 0.3 are the ReLU and the pool, 0.4 to 0.7 the stages."""


def to_torch(model: keras.Model) -> StateDict:
    """Return the state dict that ``load_state_dict(strict=True)`` of the PyTorch twin accepts.

    Args:
        model: an encoder (torchvision's ResNet less ``fc``), a classifier (torchvision's or timm's ResNet with as many
            classes), a U-Net (``smp.Unet``) or a classifier with fastai's head (the model of ``vision_learner``).
    """
    state: StateDict = {}
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
    if head == "skip":
        targets = {name: target for name, target in targets.items() if not name.startswith(HEADS)}
        state = {name: array for name, array in state.items() if not name.startswith(HEADS)}
    values, problems = _fitted(targets, state)
    if problems:
        raise PneumoError(_misfit(model, problems))
    for name, target in targets.items():
        target.variable.assign(values[name])


class LoadedParts(NamedTuple):
    """Which parts of a network took their weights from a file: ``encoder``, ``decoder``, and heads by their names."""

    loaded: list[str]
    random: dict[str, str]
    """The parts that stay as they were, each with the reason."""
    unused: list[str]
    """Parts of the file that the network does not have."""

    def sentence(self, name: str) -> str:
        """What was loaded and what was not, in words; ``name`` is the file's."""
        text = f"{name}: {', '.join(self.loaded)} loaded"
        text += "".join(f"; {part} starts at random, since {why}" for part, why in self.random.items())
        return f"{text}; not used: {', '.join(self.unused)}." if self.unused else f"{text}."


def from_torch_by_parts(model: keras.Model, state: Mapping[str, np.ndarray]) -> LoadedParts:
    """Set the weights of each part of a network that a state dict holds whole; nothing is set unless the encoder fits.

    So an encoder's file, a classifier's and a U-Net's can start each other, and a head of another number of classes
    stays random. A part is taken whole or not at all.

    Args:
        model: a classifier or a U-Net.
        state: arrays by torchvision's names (``conv1.weight``, ``fc.weight``) or smp's (``encoder.conv1.weight``).

    Raises:
        PneumoError: the encoder's tensors are missing, left over, of another shape, not floating point, or not finite.
    """
    targets: dict[str, dict[str, NamedVariable]] = {}
    for target in named_variables(model):
        name = target.name.removeprefix("encoder.")
        targets.setdefault(_part_of(name), {})[name] = target
    held: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        name = name.removeprefix("encoder.")
        held.setdefault(_part_of(name), {})[name] = array
    values, random = {}, {}
    for part, wanted in targets.items():
        fitting, problems = _fitted(wanted, held.get(part, {}))
        if not problems:
            values[part] = fitting
        elif part == "encoder":
            raise PneumoError(_misfit(model, problems))
        elif part not in held:
            random[part] = "it is not in the file"
        else:
            random[part] = f"the file's has tensors {'; tensors '.join(problems)}"
    for part, fitting in values.items():
        for name, value in fitting.items():
            targets[part][name].variable.assign(value)
    return LoadedParts(list(values), random, [part for part in held if part not in targets])


def _part_of(name: str) -> str:
    """The part of a network that a tensor belongs to, by its name less ``encoder.``."""
    begins = (*(head for head in HEADS if head != "1."), "decoder.")
    return next((begin.rstrip(".") for begin in begins if name.startswith(begin)), "encoder")


def _misfit(model: keras.Model, problems: list[str]) -> str:
    return (
        f"The weights do not fit the network {model.name!r}. Tensors {'; tensors '.join(problems)}. "
        "Use weights made for this network and encoder."
    )


def _fitted(
    targets: Mapping[str, NamedVariable], state: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The values for these targets, with their axes in Keras's order; and what does not fit, listed by kind."""
    counters = {name.removesuffix(".running_var") + COUNTER for name in targets if name.endswith(".running_var")}
    problems: dict[str, list[str]] = {"missing": [], "not of this network": [], "of another shape": [], "unusable": []}
    problems["missing"] = [name for name in targets if name not in state]
    strange = [name for name in state if name not in targets and name not in counters]
    problems["not of this network"] = [visible(name[:80]) for name in strange]
    values = {}
    for name, (_, variable, axes) in targets.items():
        if name not in state:
            continue
        array = np.asarray(state[name])
        wanted = tuple(variable.shape[axis] for axis in axes)
        if array.shape != wanted:
            problems["of another shape"].append(f"{name} {array.shape} instead of {wanted}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems["unusable"].append(f"{name} of type {array.dtype}")
        elif not np.isfinite(array).all():
            problems["unusable"].append(f"{name} with values that are not finite")
        else:
            values[name] = array.transpose(np.argsort(axes))
    return values, [f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names]


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


def load_safetensors(path: Path | str) -> StateDict:
    """Read the tensors of a safetensors file, by name.

    Raises:
        PneumoError: the file cannot be read, or it is not a whole safetensors file.
    """
    try:
        return safetensors.numpy.load(Path(path).read_bytes())
    except OSError as error:
        raise PneumoError(
            f"The weights in {path} cannot be read: {error.strerror or error}. Check the path, or copy the file again."
        ) from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise PneumoError(
            f"{path} is not a whole safetensors file ({one_line(str(error))}). Only safetensors files are read here: "
            "pickled files (.pth, .pt, .bin) can run code. Convert those where PyTorch is installed."
        ) from error


def safetensors_notes(path: Path | str) -> dict[str, str]:
    """The texts in the header of a safetensors file; see :func:`save_safetensors`.

    Raises:
        PneumoError: as :func:`load_safetensors`.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        load_safetensors(path)  # says what is wrong
        raise


class NamedVariable(NamedTuple):
    """A weight, its PyTorch name, and how its axes are transposed into PyTorch's order."""

    name: str
    variable: keras.Variable
    axes: tuple[int, ...]


def named_variables(model: keras.Model) -> Iterator[NamedVariable]:
    """Yield each weight of the model with its PyTorch name, in the model's order."""
    layers = list(leaf_layers(model))
    modules = [module_name(layer.name) for layer in layers]
    is_unet = any(module.startswith("decoder.") for module in modules)
    is_fastai = any(module.startswith("1.") for module in modules)
    for layer, module in zip(layers, modules, strict=True):
        if isinstance(layer, UnusedTensors):
            for variable in layer.weights:
                axes = tuple(range(len(variable.shape)))
                yield NamedVariable(f"{module}.{module_name(variable.name)}", variable, axes)
            continue
        if is_fastai:
            module = fastai_name(module)
        elif is_unet and not module.startswith(("decoder.", *HEADS)):
            module = f"encoder.{module}"  # smp holds the ResNet in a module of that name; elsewhere it is the model
        names = _VECTORS if isinstance(layer, keras.layers.BatchNormalization) else _KERNELS
        for variable in layer.weights:
            yield NamedVariable(f"{module}.{names[variable.name]}", variable, _AXES[len(variable.shape)])


def module_name(layer_name: str) -> str:
    """Return PyTorch's name of a layer: ``layer1-0-conv1`` is ``layer1.0.conv1``; see the module's docstring."""
    return layer_name.replace("-", ".")


def fastai_name(module: str) -> str:
    """Turn torchvision's module name into fastai's: ``layer1.0.conv1`` is ``0.4.0.conv1``; the head's names stay."""
    if module in _FASTAI_STEM:
        return _FASTAI_STEM[module]
    return re.sub(r"^layer([1-4])\.", lambda match: f"0.{int(match.group(1)) + 3}.", module)


@keras.saving.register_keras_serializable(package="keras_pneumo", name="Carried")
class UnusedTensors(keras.layers.Layer):
    """Tensors that the PyTorch module has and never uses; the input passes through unchanged.

    smp makes an attention for the skip of every decoder block, also of the last, which has no skip. A strict exchange
    of weights must include them. They are not trained here; in PyTorch they get no gradient.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], **kwargs: Any) -> None:
        """Take the shapes by the tensors' names after this layer's own, in PyTorch's order of axes."""
        super().__init__(**kwargs)
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def build(self, _input_shape: Any) -> None:
        """Make the tensors, each started as smp starts it."""
        for name, shape in self.shapes.items():
            bound = (6 / shape[1]) ** 0.5 if len(shape) > 1 else 0.0
            start = keras.initializers.RandomUniform(-bound, bound) if bound else "zeros"
            # The rule for names in the module's docstring holds for variables, too.
            self.add_weight(shape=shape, initializer=start, trainable=False, name=name.replace(".", "-"))

    def call(self, x: Any) -> Any:
        """Return the input."""
        return x

    def get_config(self) -> dict[str, Any]:
        """Return the layer's settings with the shapes."""
        return {**super().get_config(), "shapes": self.shapes}


# Keras names a layer's group in a weight file after its class, and files of earlier runs call this group "carried".
UnusedTensors.__name__ = "Carried"


def _first(names: list[str], count: int = 10) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
