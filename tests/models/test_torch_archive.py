"""PyTorch's zip archives without PyTorch: archives assembled here opcode by opcode, and hostile ones.

Files that torch.save itself wrote are read in tests/parity/test_parity_archive.py.
"""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.models import torch_archive
from keras_pneumo.models.torch_archive import load_torch_archive


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(values):
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(key, kind, shape, strides, count, offset=0):
    """The opcodes of one tensor, as PyTorch 2 writes them."""
    identity = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"
    rest = number(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + rest + b"tR"


def archive(path, program, blocks):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data.pkl", b"\x80\x02" + program + b".")
        file.writestr("any/byteorder", "little")
        for key, array in blocks.items():
            file.writestr(f"any/data/{key}", array.tobytes())
    return path


def two_tensors(tmp_path):
    floats, count = np.arange(6, dtype=np.float32), np.array([3], np.int64)
    program = b"}(" + text("weight") + tensor("0", "FloatStorage", (2, 3), (3, 1), 6)
    program += text("count") + tensor("1", "LongStorage", (), (), 1) + b"u"
    return program, {"0": floats, "1": count}


def test_tensors_by_name(tmp_path):
    state = load_torch_archive(archive(tmp_path / "a.pth", *two_tensors(tmp_path)))
    np.testing.assert_array_equal(state["weight"], [[0, 1, 2], [3, 4, 5]])
    assert state["weight"].dtype == np.float32
    assert state["count"].shape == ()
    assert state["count"] == 3


def test_strides_and_offset(tmp_path):
    program = b"}" + text("part") + tensor("0", "FloatStorage", (2, 2), (1, 3), 8, offset=1) + b"s"
    state = load_torch_archive(archive(tmp_path / "a.pth", program, {"0": np.arange(8, dtype=np.float32)}))
    np.testing.assert_array_equal(state["part"], [[1, 4], [2, 5]])


@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((2, 5), (5, 1), 0), ((2,), (1,), 7), ((2,), (-1,), 3), ((2**31 - 1,), (1,), 0)]
)
def test_a_tensor_past_its_block_is_refused(tmp_path, shape, strides, offset):
    program = b"}" + text("part") + tensor("0", "FloatStorage", shape, strides, 8, offset=offset) + b"s"
    with pytest.raises(PneumoError, match="past the end"):
        load_torch_archive(archive(tmp_path / "a.pth", program, {"0": np.arange(8, dtype=np.float32)}))


def test_row_44_sixteen_bytes_do_not_become_gigabytes(tmp_path):
    program = b"}" + text("part") + tensor("0", "FloatStorage", (30_000, 30_000), (0, 0), 4) + b"s"
    with pytest.raises(PneumoError, match="more numbers than block 0"):
        load_torch_archive(archive(tmp_path / "a.pth", program, {"0": np.arange(4, dtype=np.float32)}))


def test_row_44_many_tensors_of_one_block_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "MAX_BYTES", 5000)
    block = {"0": np.arange(256, dtype=np.float32)}
    parts = [text(str(each)) + tensor("0", "FloatStorage", (256,), (1,), 256) for each in range(8)]
    assert len(load_torch_archive(archive(tmp_path / "a.pth", b"}(" + b"".join(parts[:2]) + b"u", block))) == 2
    with pytest.raises(PneumoError, match="take more than 5,000 bytes"):
        load_torch_archive(archive(tmp_path / "b.pth", b"}(" + b"".join(parts) + b"u", block))
    with pytest.raises(PneumoError, match="unpacks to"):
        load_torch_archive(archive(tmp_path / "c.pth", b"}.", {"0": np.zeros(2000, np.float32)}))


def test_row_44_tuples_that_share_their_parts_are_no_names(tmp_path):
    """Each has the one before twice, so to hash or to print the last would take 2**60 steps."""
    nested = number(1) + b"q\x00"
    for _ in range(60):
        nested += b"h\x00\x86q\x00"
    for program in (b"}" + nested + number(1) + b"s", b"}(" + nested + number(1) + b"u"):
        with pytest.raises(PneumoError, match="no name"):
            load_torch_archive(archive(tmp_path / "a.pth", program, {}))


def test_a_block_of_another_length_is_refused(tmp_path):
    program, blocks = two_tensors(tmp_path)
    blocks["0"] = blocks["0"][:-1]
    with pytest.raises(PneumoError, match="stated length"):
        load_torch_archive(archive(tmp_path / "a.pth", program, blocks))


class Runs:
    """Unpickling this would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_row_22_a_hostile_pickle_is_refused_and_not_run(tmp_path, protocol):
    path = tmp_path / "evil.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("evil/data.pkl", pickle.dumps({"weight": Runs(tmp_path / "made")}, protocol=protocol))
    with pytest.raises(PneumoError, match=r"which could run code|opcode"):
        load_torch_archive(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"ctorch\nFloatStorage\n)R", "calls something"),  # an allowed name, called
        (b"ccollections\nOrderedDict\n(" + number(1) + b"tR", "calls something"),
        (b"}" + text("a") + number(1) + b"s", "no tensor"),
        (b"}" + number(1) + number(1) + b"s", "no name"),
        (number(1), "one dictionary"),
        (b"R", "malformed"),
        (b"u", "no beginning"),
        (b"(t" + text("x") + b"Q", "malformed|unknown way"),
        (b"h\x05", "malformed"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, program, words):
    with pytest.raises(PneumoError, match=words):
        load_torch_archive(archive(tmp_path / "a.pth", program, {}))


def test_files_that_are_no_archive(tmp_path):
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PneumoError, match=r"cannot be read as PyTorch's zip archive"):
        load_torch_archive(tmp_path / "legacy.pth")
    with pytest.raises(PneumoError, match="cannot be read"):
        load_torch_archive(tmp_path / "absent.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(PneumoError, match="0 lists"):
        load_torch_archive(tmp_path / "other.zip")


def test_big_endian_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}.")
        file.writestr("a/byteorder", "big")
    with pytest.raises(PneumoError, match="big-endian"):
        load_torch_archive(path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_damage_is_refused_or_harmless(tmp_path_factory, noise, position):
    folder = tmp_path_factory.mktemp("damage")
    program, blocks = two_tensors(folder)
    damaged = program[:position] + noise + program[position + len(noise) :]
    try:
        state = load_torch_archive(archive(folder / "a.pth", damaged, blocks))
    except PneumoError:
        return
    assert all(isinstance(value, np.ndarray) for value in state.values())


@pytest.mark.parametrize("place", range(30, 400, 10))
def test_row_44_damage_to_what_is_compressed_is_a_sentence(tmp_path, place):
    program, blocks = two_tensors(tmp_path)
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("any/data.pkl", b"\x80\x02" + program + b".")
        for key, array in blocks.items():
            file.writestr(f"any/data/{key}", array.tobytes())
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    try:
        state = load_torch_archive(path)
    except PneumoError:
        return
    np.testing.assert_array_equal(state["weight"], [[0, 1, 2], [3, 4, 5]])
