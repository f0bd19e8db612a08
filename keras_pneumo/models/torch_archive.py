"""Reads the tensors of a PyTorch ``.pth`` file without PyTorch and without unpickling.

In: a file that ``torch.save`` wrote from a state dict (the zip form, PyTorch 1.6 and later). Out: numpy arrays by name.
It exists because torchvision publishes its weights in this form only. A pickle is a program; here its opcodes are only
read (``pickletools.genops`` parses and runs nothing) and the few that a state dict consists of are understood:
names, numbers, tuples, dictionaries, and tensors made of a named block of bytes, a shape and strides. Anything else is
refused.

Source of the format: ``torch/serialization.py`` of PyTorch 2.14: ``<name>/data.pkl``, raw blocks ``<name>/data/<key>``.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.tables import one_line

STORAGES: dict[str, np.dtype[Any]] = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
}
"""The kinds of block that are read, and the type of their numbers."""

MAX_BYTES = 2**30
"""Largest archive that is read, unpacked, and most that all its tensors may take: ten times a ResNet50."""

MAX_PROGRAM = 4 * 2**20
"""Largest list of tensors in bytes; a ResNet50's has 40,000."""

_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICTIONARY = "collections OrderedDict"
_GLOBALS = {*STORAGES, _TENSOR, _PARAMETER, _DICTIONARY}
_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}
_STORE = {"BINPUT", "LONG_BINPUT"}
_FETCH = {"BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Global(NamedTuple):
    """A name that the pickle would import; here only a name."""

    name: str


class _Block(NamedTuple):
    """A block of numbers in the archive."""

    dtype: np.dtype[Any]
    key: str
    length: int


def load_torch_archive(path: Path | str) -> dict[str, np.ndarray]:
    """Read the tensors of a state dict that ``torch.save`` wrote, by name.

    Raises:
        PneumoError: the file cannot be read, is no zip archive of PyTorch's, is damaged, or holds anything but a plain
            state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, str(path))
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise PneumoError(
            f"{path} cannot be read as PyTorch's zip archive of weights ({one_line(str(error))}). If PyTorch older "
            "than 1.6 wrote it, save it as safetensors where PyTorch is installed."
        ) from error


def _read(archive: zipfile.ZipFile, path: str) -> dict[str, np.ndarray]:
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_BYTES:
        raise PneumoError(
            f"{path} unpacks to {unpacked:,} bytes; weights of more than {MAX_BYTES:,} are not read. "
            "Check that it is the right file."
        )
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise PneumoError(
            f"{path} holds {len(programs)} lists of tensors (data.pkl) where one is expected. "
            "Save it as safetensors where PyTorch is installed."
        )
    if archive.getinfo(programs[0]).file_size > MAX_PROGRAM:
        raise PneumoError(
            f"{path} has a list of tensors of more than {MAX_PROGRAM:,} bytes, which is not read. "
            "Check that it is the right file."
        )
    root = programs[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise PneumoError(
            f"{path} was written on a big-endian machine, which is not read here. "
            "Save it as safetensors where PyTorch is installed."
        )
    try:
        tensors = _interpret(archive.read(programs[0]), lambda block: _numbers(archive, root, block))
    except PneumoError as error:
        raise PneumoError(
            f"{path} is refused: {error} Save the weights as safetensors where PyTorch is installed."
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        # Opcodes in an order that no state dict has: an empty stack, a wrong kind of value, a missing block.
        raise PneumoError(
            f"{path} is refused: its list of tensors is malformed ({one_line(str(error))}). "
            "Fetch the file again, or save it as safetensors where PyTorch is installed."
        ) from error
    return tensors


def _numbers(archive: zipfile.ZipFile, root: str, block: _Block) -> np.ndarray:
    """Read the numbers of one block; their count must be the stated one."""
    name = f"{root}data/{block.key}"
    if archive.getinfo(name).file_size != block.length * block.dtype.itemsize:
        raise PneumoError(f"block {block.key} is not of the stated length.")
    return np.frombuffer(archive.read(name), block.dtype)


def _interpret(program: bytes, numbers: Any) -> dict[str, np.ndarray]:
    """Follow the opcodes of a pickled state dict on a stack of our own values."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    taken = 0

    def since_mark() -> list[Any]:
        for position in range(len(stack) - 1, -1, -1):
            if stack[position] is _MARK:
                items = stack[position + 1 :]
                del stack[position:]
                return items
        raise PneumoError("a group of values has no beginning.")

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name == "PROTO":
            continue
        if name == "STOP":
            break
        if name == "MARK":
            stack.append(_MARK)
        elif name == "BINUNICODE" or name in _INTEGERS:
            stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE"):
            stack.append(name == "NEWTRUE")
        elif name == "NONE":
            stack.append(None)
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _STORE:
            memo[argument] = stack[-1]
        elif name in _FETCH:
            stack.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in _GLOBALS:
                raise PneumoError(f"it names {argument!r}, which no state dict needs and which could run code.")
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack.append(_block(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_build(function, arguments, numbers))
            taken += stack[-1].nbytes if isinstance(stack[-1], np.ndarray) else 0
            if taken > MAX_BYTES:  # many tensors of one block
                raise PneumoError(f"its tensors take more than {MAX_BYTES:,} bytes.")
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][_name(key)] = value
        elif name == "SETITEMS":
            items = since_mark()
            stack[-1].update(zip(map(_name, items[0::2]), items[1::2], strict=True))
        elif name == "BUILD":
            stack.pop()  # the attributes of the OrderedDict: versions of PyTorch's modules
        else:
            raise PneumoError(f"its list of tensors has the opcode {name}, which no state dict needs.")
    state = stack.pop()
    if not isinstance(state, dict) or stack:
        raise PneumoError("it does not hold one dictionary of tensors.")
    for key, value in state.items():
        if not isinstance(value, np.ndarray):
            raise PneumoError(f"its entry {key[:100]!r} is no tensor.")
    return state


def _name(key: Any) -> str:
    """The key of a dictionary, which must be a text: to hash a tuple of tuples that share parts could take for ever."""
    if not isinstance(key, str):
        raise PneumoError("a tensor in it has no name.")
    return key


def _block(identity: Any) -> _Block:
    """Make a block from its description: ("storage", kind, key, device, count)."""
    word, kind, key, _device, count = identity
    if word != "storage" or not isinstance(kind, _Global) or kind.name not in STORAGES or not isinstance(key, str):
        raise PneumoError("it describes a block of numbers in an unknown way.")
    return _Block(STORAGES[kind.name], key, count)


def _build(function: Any, arguments: Any, numbers: Any) -> Any:
    """Return the result of a pickle's call, for the three calls that a state dict is made of."""
    if function == _Global(_DICTIONARY) and arguments == ():
        return {}
    if function == _Global(_PARAMETER) and isinstance(arguments[0], np.ndarray):
        return arguments[0]
    if function == _Global(_TENSOR) and isinstance(arguments[0], _Block):
        block, offset, shape, strides = arguments[:4]
        flat = numbers(block)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(flat)):
            raise PneumoError(f"a tensor reaches past the end of block {block.key}.")
        if math.prod(shape) > len(flat):  # with a stride of 0 a few bytes would fill the memory
            raise PneumoError(f"a tensor has more numbers than block {block.key}.")
        steps = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()
    raise PneumoError("it calls something that no state dict of tensors calls.")
