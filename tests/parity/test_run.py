"""The ladder's answer as JSON."""

import json

import numpy as np
from ladder_lab import ladder, result

from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.run import as_json


def test_the_answer_as_json_keeps_what_is_infinite():
    endless = Difference(np.inf, np.inf, np.inf, "conv1", "conv1", 1)
    answer = as_json(ladder(result(keras=endless, third=None, absent="no Keras")))
    again = json.loads(json.dumps(answer, allow_nan=False))
    assert again["passed"] is False
    assert again["rungs"][0]["keras"]["relative"] == "infinite"
    assert again["rungs"][0]["keras_on_torch"] is None
