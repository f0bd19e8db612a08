"""The outlines of the lungs."""

from dataclasses import replace

import numpy as np
import pytest

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, lung_outline, make_build, make_position
from keras_pneumo.phantoms.cohort import stream


def test_lungs_mirror_each_other_and_the_right_dome_stands_higher() -> None:
    build = replace(make_build(stream(1), "F", 40), wobble=np.zeros((2, 40, 2)), curve=(0.0, 0.0), left_dome=0.04)
    position = make_position(stream(2), "PA")
    right, left = (lung_outline(build, position, side) for side in (RIGHT, LEFT))
    assert right[:, 0].min() == pytest.approx(-left[:, 0].max(), rel=0.02)
    inner = [outline[np.abs(np.abs(outline[:, 0]) - 0.5 * build.width) < 1, 1].max() for outline in (right, left)]
    assert inner[0] < inner[1]
