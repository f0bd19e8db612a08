"""How many micro-batches fit into memory."""

import pytest

from keras_pneumo.training import memory


@pytest.mark.parametrize(("need", "most"), [(1, 8), (2, 8), (3, 8), (5, 6), (8, 8)])
def test_the_fewest_micro_batches_that_fit(need, most):
    assert memory.fewest(lambda count: count >= need, most) == need
