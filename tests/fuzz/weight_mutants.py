"""Mutated weights: safetensors, PyTorch's ``.pth`` and Keras's HDF5, and the record of a run beside them.

A mutant is a function of one number. Known is: a file that was cut must be refused; a number that is not finite must
be; a changed number must be read as it was changed, and no other; and any change of a file whose hash is recorded.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from fuzz.outcomes import Mutant, Outcome, outcome_of

from keras_pneumo.models.torch_archive import load_torch_archive
from keras_pneumo.storage.files import sha256_bytes

TENSORS = {
    "conv1.weight": np.linspace(-1, 1, 8 * 3 * 3).reshape(8, 1, 3, 3).astype(np.float32),
    "bn1.weight": np.linspace(0.5, 1.5, 8).astype(np.float32),
    "bn1.bias": np.linspace(-0.1, 0.1, 8).astype(np.float32),
    "bn1.running_mean": np.linspace(-1, 2, 8).astype(np.float32),
    "bn1.running_var": np.linspace(0.5, 2, 8).astype(np.float32),
    "fc.weight": np.linspace(-1, 1, 8).reshape(1, 8).astype(np.float32),
    "fc.bias": np.float32([0.25]),
}
"""A network of our kind, as small as one can be."""


@functools.cache
def network() -> Any:
    """The network of :data:`TENSORS`."""
    import keras

    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, use_bias=False, name="conv1")(image)
    x = keras.layers.BatchNormalization(epsilon=1e-5, name="bn1")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(1, name="fc")(x), name="tiny")


# -- Files -------------------------------------------------------------------------------------------------------------


def _text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"


def _tensor(key: str, shape: tuple[int, ...], strides: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    """The opcodes of one tensor, as PyTorch 2 writes them."""
    identity = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu") + _number(count) + b"tQ"
    rest = _number(offset) + _tuple(shape) + _tuple(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + rest + b"tR"


def _program() -> list[bytes]:
    parts = [b"\x80\x02", b"}", b"("]
    for number, (name, array) in enumerate(TENSORS.items()):
        strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
        parts += [_text(name), _tensor(str(number), array.shape, strides, array.size)]
    return [*parts, b"u", b"."]


def _pth(program: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("any/data.pkl", program)
        file.writestr("any/byteorder", "little")
        for number, array in enumerate(TENSORS.values()):
            file.writestr(f"any/data/{number}", array.tobytes())
    return stream.getvalue()


@functools.cache
def _safetensors() -> bytes:
    return safetensors.numpy.save(TENSORS, metadata={"format": "pt"})


@functools.cache
def _hdf5() -> bytes:
    from keras_pneumo.models.weights import from_torch

    with tempfile.TemporaryDirectory() as folder:
        from_torch(network(), TENSORS)
        path = Path(folder) / "best.weights.h5"
        network().save_weights(path)
        return path.read_bytes()


# -- Changes -----------------------------------------------------------------------------------------------------------


def _damaged(rng: random.Random, data: bytes, most: int | None = None) -> tuple[bytes, str]:
    """Turned bits, holes, noise; the first ``most`` bytes only, where that is given."""
    content = bytearray(data)
    end = min(most or len(content), len(content))
    kind = rng.choice(["bits", "bits", "bytes", "number", "insert", "hole", "swap"])
    place = rng.randrange(end)
    if kind == "bits":
        for _ in range(rng.choice([1, 1, 2, 16])):
            content[rng.randrange(end)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.choice([1, 4, 64])):
            content[rng.randrange(end)] = rng.choice([0, 0xFF, 0x7F, rng.randrange(256)])
    elif kind == "number":
        size = rng.choice([2, 4, 8])
        content[place : place + size] = rng.choice([b"\0", b"\xff", b"\x7f"]) * size
    elif kind == "insert":
        content[place:place] = rng.randbytes(rng.choice([1, 8, 200]))
    elif kind == "hole":
        del content[place : place + rng.choice([1, 8, 200])]
    else:
        other = rng.randrange(end)
        content[place : place + 8], content[other : other + 8] = content[other : other + 8], content[place : place + 8]
    return bytes(content), kind


def _of_safetensors(rng: random.Random) -> tuple[str, Mutant]:
    data = _safetensors()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.choice(["cut", "value", "not finite", "header", "header", "length", "damage", "damage", "json"])
    if kind == "cut":
        return "w.safetensors", Mutant(data[: rng.randrange(len(data))], "cut", "refused")
    if kind in ("value", "not finite"):
        name = rng.choice(list(TENSORS))
        tensors = {key: value.copy() for key, value in TENSORS.items()}
        value = rng.choice([np.nan, np.inf, -np.inf]) if kind == "not finite" else rng.uniform(-2, 2)
        tensors[name].flat[rng.randrange(tensors[name].size)] = value
        changed = safetensors.numpy.save(tensors)
        if kind == "value":
            return "w.safetensors", Mutant(changed, f"{name} has {value}", "same", tensors)
        return "w.safetensors", Mutant(changed, f"{name} has {value}", "refused")
    if kind == "header":
        name = rng.choice(list(TENSORS))
        entry = header[name]
        change = rng.choice(["dtype", "shape", "offsets", "name", "drop", "more", "twice"])
        if change == "dtype":
            entry["dtype"] = rng.choice(["F64", "I32", "BF16", "F8_E4M3", "BOOL", "U64", "x", "", None, 3])
        elif change == "shape":
            entry["shape"] = rng.choice(
                [[], [0], [-1], [2**63], [2**32, 2**32], [1] * 200, ["x"], None, [8], [1, 8, 1]]
            )
        elif change == "offsets":
            entry["data_offsets"] = rng.choice(
                [[0, 0], [-1, 3], [4, 0], [0, 2**63], [0, len(body) + 4], [1, 33], None, [0], ["x", 1]]
            )
        elif change == "name":
            header[rng.choice(["", "x", "é", "fc.weight.extra"])] = header.pop(name)
        elif change == "drop":
            del header[name]
        elif change == "more":
            header["another"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        else:
            header["another"] = dict(entry)
        text = json.dumps(header).encode()
        return "w.safetensors", Mutant(
            struct.pack("<Q", len(text)) + text + body,
            f"{change} of {name}",
            "refused" if change in ("name", "drop") else "",
        )
    if kind == "length":
        length = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1, 100_000_001])
        return "w.safetensors", Mutant(struct.pack("<Q", length) + data[8:], f"header of {length} bytes", "refused")
    if kind == "json":
        text = rng.choice(
            [b"[" * 5000, b"{" * 5000, b'{"a":' * 20_000, b"null", b"[]", b"", b'"x"', b"{}", b"\xff" * 9]
        )
        return "w.safetensors", Mutant(struct.pack("<Q", len(text)) + text + body, "another header", "refused")
    changed, how = _damaged(rng, data, rng.choice([None, size + 8]))
    return "w.safetensors", Mutant(changed, how)


class _Runs:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/keras-pneumo-was-run",)


_OPCODES = [
    *(b"0", b"1", b"2", b"(", b")", b"]", b"}", b"a", b"e", b"l", b"d", b"t", b"R", b"b", b"o", b"s", b"u", b"Q", b"N"),
    *(
        b"\x85",
        b"\x86",
        b"\x87",
        b"\x88",
        b"\x89",
        b"h\0",
        b"h\x05",
        b"q\0",
        b"q\x01",
        b"K\xff",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
    ),
    *(
        b"J\0\0\0\x80",
        b"\x8a\x09" + b"\xff" * 9,
        b"\x8b\xff\xff\xff\x7f",
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"\x93",
        b"\x8c\x01x",
    ),
    *(
        b"ctorch\nFloatStorage\n",
        b"ctorch\nLongStorage\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ccollections\nOrderedDict\n",
    ),
    *(
        b"X\xff\xff\xff\x7f",
        b"X\0\0\0\0",
        b"F1e400\n",
        b"I" + b"9" * 5000 + b"\n",
        b"\x95" + b"\xff" * 8,
        b"\x82\x01",
        b"\x97",
        b".",
    ),
]


def _of_pth(rng: random.Random) -> tuple[str, Mutant]:
    kind = rng.choice(
        ["whole", "opcodes", "opcodes", "opcodes", "tensor", "tensor", "zip", "zip", "cut", "hostile", "nested"]
    )
    parts = _program()
    if kind == "whole":
        return "w.pth", Mutant(_pth(b"".join(parts), rng.choice([0, zipfile.ZIP_DEFLATED])), "nothing", "same", TENSORS)
    if kind == "opcodes":
        for _ in range(rng.choice([1, 1, 2, 6])):
            place, act = rng.randrange(len(parts)), rng.random()
            if act < 0.4:
                parts.insert(place, rng.choice(_OPCODES) * rng.choice([1, 1, 1, 2, 50]))
            elif act < 0.6:
                parts[place] = rng.choice(_OPCODES)
            elif act < 0.8:
                parts[place] = _damaged(rng, parts[place] or b"\0")[0]
            else:
                del parts[place]
        return "w.pth", Mutant(_pth(b"".join(parts)), "other opcodes")
    if kind == "tensor":
        place = rng.choice(range(4, len(parts) - 2, 2))
        sizes = [0, 1, 2, 8, 72, 1000, 2**31 - 1, -1]
        shape = tuple(rng.choice(sizes) for _ in range(rng.choice([0, 1, 2, 4, 70])))
        strides = tuple(rng.choice(sizes) for _ in range(rng.choice([len(shape), len(shape), 1])))
        parts[place] = _tensor(
            rng.choice("0123x"), shape, strides, rng.choice([8, 72, *sizes]), rng.choice([0, 0, 1, -1, 2**31 - 1])
        )
        return "w.pth", Mutant(_pth(b"".join(parts)), f"a tensor of {shape[:5]} by {strides[:5]}")
    if kind == "hostile":
        return "w.pth", Mutant(
            _pth(pickle.dumps({"weight": _Runs()}, protocol=rng.choice([0, 1, 2, 3, 4]))), "a command", "refused"
        )
    if kind == "nested":
        nest = _number(1) + b"q\0" + b"h\0\x86q\0" * rng.choice([10, 60, 5000])
        program = rng.choice([b"\x80\x02}" + nest + _number(1) + b"s.", b"\x80\x02}" + _text("a") + nest + b"s."])
        return "w.pth", Mutant(_pth(program), "tuples that share their parts", "refused")
    data = _pth(b"".join(parts), rng.choice([0, zipfile.ZIP_DEFLATED]))
    if kind == "cut":
        return "w.pth", Mutant(data[: rng.randrange(len(data))], "cut", "refused")
    changed, how = _damaged(rng, data)
    return "w.pth", Mutant(changed, f"zip: {how}")


def _of_hdf5(rng: random.Random) -> tuple[str, Mutant]:
    data, name = _hdf5(), rng.choice(["recorded.weights.h5", "old.weights.h5", "old.weights.h5", "old.weights.h5"])
    truth = "refused" if name.startswith("recorded") else ""
    if rng.random() < 0.15:
        return name, Mutant(data[: rng.randrange(len(data))], "cut", "refused")
    changed, how = _damaged(rng, data, rng.choice([None, None, 2048, 200]))
    if changed == data:
        truth = ""
    return name, Mutant(changed, how, truth)


def mutant(number: int) -> tuple[str, Mutant]:
    """The name of the file, and the mutant, of this number: always the same."""
    rng = random.Random(number)
    return rng.choice([_of_safetensors, _of_pth, _of_pth, _of_hdf5])(rng)


# -- What is done with one ---------------------------------------------------------------------------------------------


def try_number(job: tuple[int, str]) -> Outcome:
    """Read the mutant of a number from a file of the folder."""
    number, folder = job
    name, made = mutant(number)
    own = Path(folder) / f"w{number}"
    own.mkdir()
    try:
        (own / name).write_bytes(made.data)
        return try_file(own / name, made)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def try_file(path: Path, made: Mutant) -> Outcome:
    """Read one file as commands read weights: into a network of ours."""

    def read() -> dict[str, np.ndarray]:
        import keras

        from keras_pneumo.config import CLASSIFIER
        from keras_pneumo.inference.run import HASHES, RunFolder, load_weights
        from keras_pneumo.models.weights import from_torch, load_safetensors, safetensors_notes, to_torch

        if path.name.endswith(".pth"):
            state = load_torch_archive(path)
            from_torch(network(), state)
        elif path.name.endswith(".safetensors"):
            safetensors_notes(path)
            from_torch(network(), load_safetensors(path))
        elif path.name.startswith("recorded"):
            record = {HASHES: {path.name: sha256_bytes(_hdf5())}}
            RunFolder(path.parent, CLASSIFIER, record).load_weights(network(), path)
        else:
            load_weights(network(), path)
        if Path("/tmp/keras-pneumo-was-run").exists():
            raise AssertionError("a command of the file was run")
        assert all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in network().weights)
        return to_torch(network())

    def differs(state: dict[str, np.ndarray]) -> str:
        if made.wanted is None:
            return ""
        same = all(np.array_equal(state[name], array) for name, array in made.wanted.items())
        return "" if same else f"silently other weights: {made.change}"

    return outcome_of(made, read, differs)
