"""The pneumothorax: its size, and that it stays inside the lung."""

import pytest

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, lung_outline, make_build, make_position
from keras_pneumo.phantoms.cohort import stream
from keras_pneumo.phantoms.geometry import SIZE, Pose, fill
from keras_pneumo.phantoms.lungs import crescent, edge_curve


@pytest.mark.parametrize("area", [0.00006, 0.001, 0.0082, 0.03, 0.154])
@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_crescents_of_every_size(area: float, side: int) -> None:
    build = make_build(stream(1), "M", 50)
    position = make_position(stream(2), "PA")
    pose = Pose(26.0, 511.5, 110.0, 0.02)
    lung = fill(pose.pixels(lung_outline(build, position, side))) > 0.5
    for seed, rows, overlap in ((0, 1, False), (1, 1, False), (2, 2, False), (3, 2, True)):
        shape = crescent(build, position, pose, side, area, rows, overlap, stream(seed))
        wanted = min(area * SIZE * SIZE, 0.72 * lung.sum())
        assert shape.air.sum() == pytest.approx(wanted, rel=0.05, abs=2)
        assert not (shape.air & ~lung).any()
        assert (shape.edge <= shape.wall).all()
        assert len(edge_curve(shape, build, pose)) > 0
