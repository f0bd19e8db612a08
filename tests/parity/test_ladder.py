"""The ladder without PyTorch: how differences are measured and judged, what is said of them, and how it is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console

from keras_pneumo.cli import parity as command
from keras_pneumo.errors import PneumoError
from keras_pneumo.parity import comparison as comparing
from keras_pneumo.parity import processes as exchange
from keras_pneumo.parity.comparison import Difference, compare
from keras_pneumo.parity.ladder import Ladder, Result, shown
from keras_pneumo.parity.page import write_page
from keras_pneumo.parity.run import as_json

REPOSITORY = Path(__file__).parents[2]
EQUAL = Difference(0.0, 0.0, 0.0, compared=3)


def result(number=1, title="DICOM pixels", what="", keras=EQUAL, third=EQUAL, absent="", remark="All that remains."):
    return Result(number, title, what, "1e-4 of the range", 1e-4, keras, third, absent, remark)


def ladder(*results):
    versions = {"torch": {"torch": "2.14.1"}, "keras": {"keras": "3.15.1"}, "keras_on_torch": {"keras": "3.15.1"}}
    return Ladder(list(results), {"encoder": "resnet18", "size": 32, "data": ""}, versions)


def test_the_first_layer_beyond_the_bound_is_found_in_pytorchs_order():
    theirs = {"conv1": np.arange(5.0), "bn1": np.arange(5.0), "relu": np.arange(5.0)}
    ours = {"relu": theirs["relu"] + 4, "bn1": theirs["bn1"] + 0.4, "conv1": theirs["conv1"] + 4e-6}
    found = compare(theirs, ours, comparing.of_range, 1e-4)
    assert (found.first, found.worst, found.within) == ("bn1", "relu", False)
    assert found.absolute == 4
    assert found.relative == 1
    assert compare(theirs, ours, comparing.of_range, 2).within
    tighter = compare(theirs, ours, comparing.of_range, 2, {"conv1": 1e-7})
    assert tighter.first == "conv1", "an array may have a bound of its own"


@pytest.mark.parametrize(
    "ours",
    [
        {},
        {"a": np.ones(3)},
        {"a": np.ones(2), "b": np.ones(2)},
        {"a": np.array([1.0, np.nan])},
        {"a": np.array([1.0, np.inf])},
    ],
    ids=["missing", "misshapen", "left over", "nan", "inf"],
)
def test_what_is_not_there_is_infinitely_far_off(ours):
    found = compare({"a": np.ones(2)}, ours, comparing.of_range, 1e9)
    assert not found.within
    assert found.measured == np.inf


def test_equal_to_the_last_bit():
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    assert comparing.exact(pixels, pixels.copy()).measured == 0
    gap = comparing.exact(pixels, pixels + np.array([[0, 0], [0, 1]], np.uint8))
    assert (gap.absolute, gap.measured) == (1, 1)
    assert comparing.exact(pixels, pixels.astype(np.float32)).measured == np.inf
    texts = np.array(["1 2", "-1"])
    assert comparing.exact(texts, texts.copy()).measured == 0
    assert comparing.exact(texts, np.array(["1 2", "3 4"])).measured == 1
    just_over = np.nextafter(np.float32(1), np.float32(2))
    assert comparing.exact(np.float32([1]), np.array([just_over])).measured == 1


def test_measures_relate_to_range_norm_and_value():
    theirs, ours = np.array([0.0, 3.0, 4.0]), np.array([0.0, 3.0, 4.5])
    assert comparing.of_range(theirs, ours).relative == pytest.approx(0.125)
    assert comparing.of_norm(theirs, ours).relative == pytest.approx(0.1)
    assert comparing.of_value(theirs, ours).relative == pytest.approx(0.125)
    assert comparing.of_value(np.zeros(1), np.zeros(1)).relative == 0
    assert comparing.of_value(np.zeros(1), np.ones(1)).relative > 1e30
    assert comparing.of_norm(np.zeros(2), np.array([0, 1e-30])).measured == np.inf
    assert comparing.of_range(np.full(2, 7.0), np.full(2, 7.0)).measured == 0


def test_draws_of_one_distribution_pass_and_of_others_do_not():
    rng = np.random.default_rng(0)
    summary = comparing.summary_of
    normal = summary(rng.normal(0, 0.05, 5000))
    assert comparing.of_spread(normal, summary(rng.normal(0, 0.05, 5000))).measured < 5
    assert comparing.of_spread(normal, summary(rng.normal(0, 0.06, 5000))).measured > 5
    assert comparing.of_spread(normal, summary(rng.normal(0.02, 0.05, 5000))).measured > 5
    uniform = summary(rng.uniform(-(3**0.5) * 0.05, 3**0.5 * 0.05, 5000))
    assert comparing.of_spread(normal, uniform).measured > 5, "the same spread in another shape"
    ones, zeros = summary(np.ones(64)), summary(np.zeros(64))
    assert comparing.of_spread(ones, ones).measured == 0
    assert comparing.of_spread(ones, zeros).measured == np.inf
    assert comparing.of_spread(summary(rng.normal(size=1)), summary(rng.normal(size=1))).measured == 0


def test_a_broken_rung_is_where_they_part():
    broken = Difference(1.0, 0.2, 0.2, first="layer1.0.conv1", worst="fc", compared=9)
    found = ladder(result(), result(6, "Forward", "classifier", broken), result(8, "Gradients", "", EQUAL, broken))
    assert [one.number for one in found.broken] == [6, 8]
    assert "rung 6, Forward, classifier" in found.verdict
    assert "on TensorFlow first leaves the bound (1e-4 of the range) at layer1.0.conv1" in found.verdict
    assert found.verdict.startswith("Not yet")
    assert ladder(result()).verdict.startswith("Yes")
    by_the_third = ladder(result(8, "Gradients", "", EQUAL, broken))
    assert "Keras's torch backend first leaves" in by_the_third.verdict
    assert not ladder(result(third=None, absent="no Keras")).broken


def test_the_answer_as_json_keeps_what_is_infinite():
    endless = Difference(np.inf, np.inf, np.inf, "conv1", "conv1", 1)
    answer = as_json(ladder(result(keras=endless, third=None, absent="no Keras")))
    again = json.loads(json.dumps(answer, allow_nan=False))
    assert again["passed"] is False
    assert again["rungs"][0]["keras"]["relative"] == "infinite"
    assert again["rungs"][0]["keras_on_torch"] is None


def test_the_table_is_plain_when_piped_and_says_all(monkeypatch, capsys):
    from keras_pneumo.cli import console

    piped = Console(width=40)
    monkeypatch.setattr(command, "out", piped)
    monkeypatch.setattr(console, "out", piped)
    broken = Difference(1.0, 0.2, 0.2, first="[bold]conv1", worst="[bold]conv1", compared=9)
    command.show_ladder(ladder(result(), result(6, "Forward", "in training mode", broken, None, "no such package")))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    line = next(line for line in said.splitlines() if "6. Forward" in line)
    for word in ("in training mode", "1.0e+00", "2.0e-01", "–", "[bold]conv1", "BROKEN"):
        assert word in line, "a row is one line however narrow the pipe"
    assert "6. All that remains. Keras on torch: no such package." in said
    assert said.strip().splitlines()[-1].startswith("Not yet")


def test_the_page_is_offline_and_escapes(tmp_path):
    broken = Difference(1.0, 0.2, 0.2, first="<script>", worst="<script>", compared=9)
    page = write_page(tmp_path / "parity.html", ladder(result(), result(6, "Forward", "a", broken, None, "none")))
    text = page.read_text()
    assert "Can these two be compared?" in text
    assert "<script>" not in text
    assert "BROKEN" in text
    assert "http://" not in text
    assert "Research use only" in text


def test_shown():
    assert [shown(0.0), shown(1.234e-5), shown(np.inf)] == ["0", "1.2e-05", "infinite"]


def test_without_an_environment_of_pytorchs_it_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv(exchange.ENVIRONMENT, raising=False)
    monkeypatch.setattr(exchange, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PneumoError, match="make setup-torch"):
        exchange.torch_python()
    with pytest.raises(PneumoError, match=r"experiments/torch_team/ladder\.py"):
        exchange.torch_script()
    monkeypatch.setenv(exchange.ENVIRONMENT, str(tmp_path / "absent"))
    with pytest.raises(PneumoError, match="There is no Python"):
        exchange.torch_python()
    monkeypatch.setenv(exchange.ENVIRONMENT, sys.executable)
    assert exchange.torch_python() == Path(sys.executable)
    assert exchange.torch_python(Path(sys.executable).parent) == Path(sys.executable).parent, "an option goes first"


def test_the_command_refuses_before_anything_is_loaded(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "keras_pneumo", "parity", "--torch-python", "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert "There is no Python nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_fails_is_quoted(tmp_path):
    script = tmp_path / "half.py"
    script.write_text("raise SystemExit('torch is not installed')")
    process = exchange.start_torch(Path(sys.executable), script, tmp_path)
    assert exchange.wait_for(process, tmp_path, exchange.TORCH) == "torch is not installed"
    script.write_text("")
    process = exchange.start_torch(Path(sys.executable), script, tmp_path)
    assert exchange.wait_for(process, tmp_path, exchange.TORCH) == ""


def test_arrays_keep_their_order_on_the_way(tmp_path):
    names = ["b/c", "a", "layer1.0.conv1", "file 0 (dcm) at 128"]
    exchange.write_arrays(tmp_path / "x" / "y.npz", {name: np.ones(2) for name in names})
    assert list(exchange.read_arrays(tmp_path / "x" / "y.npz")) == names


@pytest.mark.parametrize(("found", "code"), [(result(), 0), (result(keras=Difference(1, 1, 1, "a", "a", 1)), 1)])
def test_the_exit_code_tells_whether_a_rung_is_broken(monkeypatch, found, code):
    from keras_pneumo.parity import run

    monkeypatch.setenv(exchange.ENVIRONMENT, sys.executable)
    monkeypatch.setattr(run, "run_ladder", lambda *_, **__: ladder(found))
    if code == 0:
        command.parity_command(out_folder=Path("x"))
        return
    with pytest.raises(typer.Exit) as end:
        command.parity_command(out_folder=Path("x"))
    assert end.value.exit_code == code
