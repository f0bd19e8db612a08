"""The distance of losses that the check of real radiographs compares, by hand."""

import numpy as np
import pytest

from keras_pneumo.parity import real_steps
from keras_pneumo.parity.backends import KERAS, TORCH, write_arrays


def test_the_distance_is_beside_that_of_the_furthest_control(tmp_path):
    losses = np.array([1.0, 2.0])
    controls = {"control 1": np.array([1.3, 2.4]), "control 2": np.array([1.0, 2.1])}
    write_arrays(tmp_path / TORCH / "real_steps.npz", {"losses": losses, **controls})
    assert real_steps.distances(tmp_path, KERAS) == {}, "no answer yet"
    write_arrays(tmp_path / KERAS / "real_steps.npz", {"losses": losses - 0.2})
    assert real_steps.distances(tmp_path, TORCH)[real_steps.DISTANCE] == pytest.approx(np.sqrt((0.09 + 0.16) / 2))
    assert real_steps.distances(tmp_path, KERAS)[real_steps.DISTANCE] == pytest.approx(0.2)


def test_few_radiographs_are_not_enough(tmp_path):
    images = [np.zeros((32, 32), np.uint8)] * (real_steps.FEWEST - 1)
    assert not real_steps.write_real_inputs(tmp_path, images, "resnet18", 32, {})
    assert list(tmp_path.iterdir()) == []
    assert real_steps.write_real_inputs(tmp_path, [*images, images[0]], "resnet18", 32, {"a": np.zeros(1)})
    assert len(list((tmp_path / "real/images_32").iterdir())) == real_steps.FEWEST
