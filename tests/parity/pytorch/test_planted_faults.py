"""A sample of the planted faults, each found at its check; ``make planted-faults`` runs the whole table."""

import planted
import pytest
from planted_faults import FAULTS

pytestmark = pytest.mark.slow

SAMPLE = ("decoder", "buffer", "caffe", "same_padding", "momentum", "batch_dice", "clipping", "torch_rows_first")
"""Eight that cover different checks, one of them on PyTorch's side."""


@pytest.fixture(scope="module")
def runner(torch_python, tmp_path_factory):
    return planted.Runner(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("name", SAMPLE)
def test_the_fault_is_found_at_its_check(runner, name):
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    answer = runner.run(fault)
    assert answer["right"], f"expected {fault.check} at {fault.first}, found {answer['found']}"
