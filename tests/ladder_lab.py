"""Results of checks, and whole ladders, made by hand for tests."""

from keras_pneumo.parity.comparison import Difference
from keras_pneumo.parity.ladder import CheckResult, Ladder

EQUAL = Difference(0.0, 0.0, 0.0, compared=3)


def result(number=1, title="DICOM pixels", what="", keras=EQUAL, third=EQUAL, absent="", remark="All that remains."):
    """The result of one check; ``third`` is Keras's torch backend."""
    return CheckResult(number, title, what, "1e-4 of the range", 1e-4, keras, third, absent, remark)


def ladder(*results):
    """A ladder of these results."""
    versions = {"torch": {"torch": "2.14.1"}, "keras": {"keras": "3.15.1"}, "keras_on_torch": {"keras": "3.15.1"}}
    return Ladder(
        list(results), {"encoder": "resnet18", "size": 32, "data": "", "real_steps": None, "mixed": False}, versions
    )
