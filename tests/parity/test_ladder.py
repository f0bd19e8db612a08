"""The ladder's verdict. (The whole ladder in three processes: tests/parity/pytorch.)"""

import numpy as np
from ladder_lab import EQUAL, ladder, result

from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.ladder import shown


def test_the_verdict_names_the_first_broken_check():
    broken = Difference(1.0, 0.2, 0.2, first="layer1.0.conv1", worst="fc", compared=9)
    broken_ladder = ladder(
        result(), result(6, "Forward", "classifier", broken), result(8, "Gradients", "", EQUAL, broken)
    )
    assert [check.number for check in broken_ladder.broken] == [6, 8]
    assert "check 6, Forward, classifier" in broken_ladder.verdict
    assert "on TensorFlow first exceeds the bound (1e-4 of the range) at layer1.0.conv1" in broken_ladder.verdict
    assert broken_ladder.verdict.startswith("Not yet")
    assert ladder(result()).verdict.startswith("Yes")
    on_torch = ladder(result(8, "Gradients", "", EQUAL, broken))
    assert "Keras's torch backend first exceeds" in on_torch.verdict
    assert not ladder(result(third=None, absent="no Keras")).broken


def test_shown():
    assert [shown(0.0), shown(1.234e-5), shown(np.inf)] == ["0", "1.2e-05", "infinite"]
