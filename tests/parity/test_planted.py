"""The table of planted faults: its lines still stand in the code, and a planted line is what runs.

What the ladder finds of them is seen in tests/parity/pytorch.
"""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import planted
import pytest
from planted_faults import FAULTS, KERAS_FAULTS, PYTORCH_FAULTS, UNPLANTED

from keras_pneumo.parity.ladder import list_checks

BY_NAME = {fault.name: fault for fault in FAULTS}


def run(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_line_stands_once_in_its_file_and_the_fault_is_python(fault):
    text = planted.text_with(fault)
    before = (planted.REPOSITORY / fault.file).read_text(encoding="utf-8")
    assert text != before
    assert text.count("\n") == before.count("\n")
    compile(text, fault.file, "exec")
    re.compile(fault.first)


def test_a_line_that_is_gone_is_an_error():
    with pytest.raises(ValueError, match="0 times, not once"):
        planted.text_with(replace(BY_NAME["momentum"], line="MOMENTUM = 0.9"))


def test_every_row_of_the_list_is_planted_or_explained():
    assert {fault.row for fault in KERAS_FAULTS} | {row.row for row in UNPLANTED} == set(range(1, 41))
    assert {fault.row for fault in KERAS_FAULTS}.isdisjoint(row.row for row in UNPLANTED)
    assert all(bool(fault.check) != bool(fault.reason) for fault in FAULTS)
    assert len(PYTORCH_FAULTS) >= 10
    assert not [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1]


def test_the_checks_and_tests_that_are_named_exist():
    task = {"drawn": ["classifier"], "mixed": False, "real_steps": None, **planted.PLANS["classifier"]}
    titles = {check.title for check in list_checks(task)}
    assert {fault.check for fault in FAULTS if fault.check} <= titles
    for fault in FAULTS:
        if fault.test:
            path, _, name = fault.test.partition("::")
            assert f"def {name}(" in (planted.REPOSITORY / path).read_text(encoding="utf-8")


def test_the_planted_line_runs_wherever_python_is_started(tmp_path):
    checkout = planted.plant(tmp_path, BY_NAME["resizing"])
    code = (
        "import numpy as np, keras_pneumo.data.radiographs.geometry as geometry;"
        "print(geometry.resize_image(np.arange(64, dtype=np.uint8).reshape(8, 8) % 8 // 7 * 255, 2).max())"
    )
    results = [
        int(run("-c", code, env=variables, cwd=planted.REPOSITORY).stdout)
        for variables in (planted.environment(checkout), None)
    ]
    # The last of four columns is white: a quarter of the area, and nothing between the middle two columns.
    assert results == [0, 64]
    assert (checkout / "experiments/torch_team/ladder.py").exists()


def test_a_command_runs_with_one_fault():
    done = run(planted.__file__, "momentum", "--", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "planted: BatchNorm's momentum is Keras's 0.99" in done.stderr
    assert "EXPERIMENT" in done.stdout
    refused = run(planted.__file__, "no_such_fault", "--", "train")
    assert refused.returncode == 2
    assert "Name one fault before the --: stride, bias" in refused.stderr


def test_an_answer_is_right_where_check_and_name_are_the_expected_ones():
    fault = BY_NAME["momentum"]
    found = {"check": "BatchNorm statistics", "first": "bn1.running_mean"}
    assert planted.is_right(fault, found)
    assert not planted.is_right(fault, {**found, "check": "Forward"})
    assert not planted.is_right(fault, {**found, "first": "bn1.running_means"})
    assert not planted.is_right(fault, None)
    unseen = replace(fault, check="", reason="too small")
    assert planted.is_right(unseen, None)
    assert not planted.is_right(unseen, found)
    by_a_test = replace(unseen, test="tests/test_x.py::test_y")
    assert planted.is_right(by_a_test, {"check": "tests/test_x.py::test_y", "first": ""})


def test_the_table_says_what_was_found_where_and_what_was_not():
    fault = BY_NAME["momentum"]
    found = {"check": "BatchNorm statistics", "first": "bn1.running_mean"}
    answers = [
        planted.answer_of(fault, found, 1.0, ""),
        planted.answer_of(BY_NAME["torch_focal"], {"check": "Forward", "first": "conv1"}, 1.0, ""),
    ]
    text = planted.markdown(answers)
    assert (
        "| 4 | BatchNorm's momentum is Keras's 0.99 | BatchNorm statistics | the same | `bn1.running_mean` | yes |"
        in text
    )
    assert "|  | PyTorch: the focal loss's exponent is 1 | Loss | Forward | `conv1` | NO |" in text
    assert "| 38 | TF32 | not planted | | | |" in text
    assert planted.summary(answers).startswith("1 of the 40 rows are caught")
    assert "0 of the 1 faults on PyTorch's side" in planted.summary(answers)
