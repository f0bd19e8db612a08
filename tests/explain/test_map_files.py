"""Raw maps as a file: there and back, in the order asked for, and refused when they are of something else."""

import numpy as np
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.gradcam import RawMaps
from keras_pneumo.explain.map_files import read_twin_maps, write_maps

RAW = RawMaps(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32), np.arange(3, dtype=np.float32))


@pytest.fixture
def path(tmp_path):
    write_maps(tmp_path / "maps.npz", ["a", "b", "c"], RAW, "hirescam", 3)
    return tmp_path / "maps.npz"


def test_there_and_back_in_the_order_asked_for(path):
    maps = read_twin_maps(path, ["c", "a"], "hirescam", 3, (4, 5))
    np.testing.assert_array_equal(maps.maps, RAW.maps[[2, 0]])
    np.testing.assert_array_equal(maps.logits, RAW.logits[[2, 0]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda maps: maps | {"method": "gradcam"}, "Give --method gradcam --stage 3"),
        (lambda maps: maps | {"stage": 4}, "--stage 4"),
        (lambda maps: maps | {"image_ids": maps["image_ids"][:1], "maps": maps["maps"][:1]}, "no map of 2 of the 3"),
        (lambda maps: maps | {"maps": maps["maps"][:, :2]}, "have the shape"),
        (lambda maps: maps | {"logits": maps["logits"][:2]}, "have the shape"),
        (lambda maps: maps | {"maps": maps["maps"] * np.float32("nan")}, "not finite"),
        (lambda maps: {"maps": maps["maps"]}, "holds no maps"),
        (lambda maps: maps | {"image_ids": np.array([{}], dtype=object)}, "holds no maps"),  # would need pickle
    ],
)
def test_maps_of_something_else_are_refused(path, spoil, message):
    np.savez(path, **spoil(dict(np.load(path, allow_pickle=False))))
    with pytest.raises(PneumoError, match=message):
        read_twin_maps(path, ["a", "b", "c"], "hirescam", 3, (4, 5))


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_a_file_that_is_none(path, content):
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PneumoError, match="holds no maps"):
        read_twin_maps(path, ["a"], "hirescam", 3, (4, 5))
