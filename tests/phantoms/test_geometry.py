"""Curves, slabs and tubes, by hand."""

import numpy as np
import pytest

from keras_pneumo.phantoms.geometry import Pose, rounded, smooth_curve, tubes


def test_grid_undoes_pixels() -> None:
    pose = Pose(26.0, 500.0, 120.0, 0.1)
    x, y = pose.grid(512)
    column, row = pose.pixels(np.array([[x[200, 300], y[200, 300]]]), 512)[0]
    assert (column, row) == (pytest.approx(300, abs=0.01), pytest.approx(200, abs=0.01))


def test_a_slab_with_a_round_rim() -> None:
    mask = np.zeros((64, 64), np.float32)
    mask[:, 32:] = 1
    share = rounded(mask, 10.0)[10]
    assert (share[:32] == 0).all()
    # A chord at depth d of a circle of radius 10 is sqrt(d (20 - d)) / 10 of the radius; pixel 32's middle is 0.5 in.
    np.testing.assert_allclose(share[36], np.sqrt(4.5 * 15.5) / 10, atol=0.08)
    assert (share[43:] == 1).all()


def test_a_smooth_curve_goes_through_its_points() -> None:
    points = np.array([(0.0, 0.0), (4.0, 1.0), (6.0, 5.0), (2.0, 8.0)])
    for closed in (False, True):
        curve = smooth_curve(points, closed, steps=5)
        assert all(np.linalg.norm(curve - point, axis=1).min() < 1e-9 for point in points)


@pytest.mark.parametrize("round_ends", [False, True])
def test_offsets_in_a_straight_tube(round_ends: bool) -> None:
    line = np.stack([np.arange(20.0, 40.0, 0.5), np.full(40, 30.0)], axis=1)
    at, offset, _ = tubes([line], [np.full(40, 5.0)], round_ends, size=64)
    offsets = dict(zip(zip(at % 64, at // 64, strict=True), offset, strict=True))
    assert offsets[(30, 30)] == 0
    assert offsets[(30, 33)] == pytest.approx(0.6)
    assert offsets[(30, 28)] == pytest.approx(-0.4)
    assert (30, 36) not in offsets
    assert ((43, 30) in offsets) == round_ends
    assert not any(column > 45 for column, _ in offsets)
