"""The harness of the benchmarks, with toy sides: pairs, ratios, resuming, what is missing, the page and the table."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "experiments/benchmarks"


@pytest.fixture
def harness(monkeypatch):
    """The modules of the harness, as ``make bench`` imports them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    names = ("bench", "bench_page", "lab", "measuring", "worker")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import bench

    yield bench
    for name in names:
        sys.modules.pop(name, None)


WORKER = """
    import sys
    sys.path.insert(0, {folder!r})
    from worker import UnmeasurableError, serve

    def set_up():
        print("a library's greeting")
        {set_up}
        def run(count):
            print("and its chatter")
            return {{"work": count, "seconds": count * {seconds}, "extra": 7}}
        return run

    serve(set_up)
"""


def toy_worker(path, seconds=0.1, set_up="pass"):
    path.write_text(textwrap.dedent(WORKER.format(folder=str(BENCHMARKS), seconds=seconds, set_up=set_up)))
    return [sys.executable, path]


def toy_lab(harness, folder, **settings):
    return harness.open_lab(folder, quiet=True, **settings)


def toy_rows(folder, ratio=2.0, name="toy"):
    """A file whose one row has exactly that ratio, since its workers report made-up seconds."""
    ours, theirs = (
        toy_worker(folder / f"{name}_{side}_worker.py", seconds)
        for side, seconds in (("ours", 0.1), ("theirs", 0.1 * ratio))
    )
    (folder / f"{name}.py").write_text(
        textwrap.dedent(f"""
        from measuring import Row, Worker
        def rows(lab):
            ours, theirs = Worker({[str(part) for part in ours]}), Worker({[str(part) for part in theirs]})
            yield Row("{name} row", "steps/s", 1.5, ours, theirs)
        """)
    )
    return folder / f"{name}.py"


def test_workers_run_in_alternating_pairs_and_the_ratio_is_the_median(harness, tmp_path):
    import measuring

    log = tmp_path / "log"
    sides = []
    for name, seconds in (("a", "[9, 1, 2, 1, 1, 1]"), ("b", "[9, 3, 3, 3, 3, 3]")):
        note = f"log = open({str(log)!r}, 'a'); seconds = iter({seconds})"
        path = tmp_path / f"{name}.py"
        toy_worker(path, set_up=note)
        text = path.read_text().replace(
            'return {"work": count, "seconds": count * 0.1, "extra": 7}',
            f'log.write("{name}"); log.flush(); return {{"work": 4, "seconds": next(seconds)}}',
        )
        path.write_text(text)
        sides.append(measuring.Worker([sys.executable, path]))
    row = measuring.measure_row(measuring.Row("r", "images/s", 1.0, *sides, note="n"))
    assert log.read_text() == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"
    assert row["pairs"] == [3.0, 1.5, 3.0, 3.0, 3.0]
    assert (row["ratio"], row["low"], row["high"], row["goal"], row["note"]) == (3.0, 1.5, 3.0, 1.0, "n")
    assert row["ours"]["speed"] == 4.0
    assert row["theirs"]["speed"] == pytest.approx(4 / 3)
    assert row["ours"]["memory_mb"] > 0


def test_a_worker_is_stopped_while_the_other_side_runs(harness, tmp_path):
    import psutil
    from measuring import Worker, opened

    with opened(Worker(toy_worker(tmp_path / "w.py"), runs=3)) as run:
        answer = run(False)
        child = psutil.Process().children()[-1]
        for _ in range(100):  # on a busy machine the signal takes effect a little later
            if child.status() == psutil.STATUS_STOPPED:
                break
            time.sleep(0.05)
        assert child.status() == psutil.STATUS_STOPPED
        assert answer["work"] == 3
        assert answer["seconds"] == pytest.approx(0.3)
        assert answer["extra"] == 7
    assert not child.is_running()


def test_a_worker_ends_with_the_benchmark_even_when_that_is_killed(harness, tmp_path):
    import psutil

    worker = toy_worker(tmp_path / "w.py")
    code = f"""
import sys, os
sys.path.insert(0, {str(BENCHMARKS)!r})
from measuring import Worker, opened
import psutil
with opened(Worker({[str(part) for part in worker]})) as run:
    run(False)
    print(psutil.Process().children()[0].pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


def test_a_command_counts_its_wall_time_its_childrens_memory_and_their_cpu(harness, tmp_path):
    from measuring import Command, run_command

    child = "import time; held = b'x' * 300_000_000\nwhile time.process_time() < 0.8: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    emptied = []
    figures = run_command(
        Command([sys.executable, "-c", code], 5, before=lambda: emptied.append(1), after=lambda: {"more": 2})
    )
    assert emptied == [1]
    assert figures["work"] == 5
    assert figures["more"] == 2
    assert figures["seconds"] >= figures["cpu_seconds"] * 0.5 > 0.1
    # The memory is looked at now and then, so on a slow machine the last look may miss the last pages.
    assert 200 < figures["memory_mb"] < 500


def test_workers_that_a_server_forked_count_though_nobody_waits_for_them(harness):
    from measuring import Command, run_command

    work = "import time\nwhile time.process_time() < 1.2: pass"
    server = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    # The command ends without waiting for its server, as one with a pool of forked workers does.
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {server!r}]); time.sleep(1.8)"
    assert run_command(Command([sys.executable, "-c", code], 1))["cpu_seconds"] > 0.6


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([sys.executable, "-m", "json.tool", "/nowhere"], "json.tool /nowhere ended with exit code"),
        ([sys.executable, "-c", "raise SystemExit('no such data')"], "ended with exit code 1: no such data"),
        (["/nowhere/python"], "could not be started"),
    ],
)
def test_a_command_that_fails_gives_a_reason(harness, argv, reason):
    from measuring import Command, MeasurementError, run_command

    with pytest.raises(MeasurementError, match=reason):
        run_command(Command(argv, 1))


@pytest.mark.parametrize(
    ("set_up", "reason"),
    [
        ("import no_such_package", "Not measured: No module named 'no_such_package'"),
        ("raise UnmeasurableError('there is no GPU')", "Not measured: there is no GPU"),
        ("raise ValueError('torn')", "Not measured: w.py ended: ValueError: torn"),
    ],
)
def test_a_worker_that_lacks_something_leaves_a_row_without_ratio_and_the_reason(harness, tmp_path, set_up, reason):
    from measuring import Row, Worker, measure_row

    good, bad = Worker(toy_worker(tmp_path / "good.py")), Worker(toy_worker(tmp_path / "w.py", set_up=set_up))
    row = measure_row(Row("r", "images/s", 1.0, good, bad, note="A note."))
    assert (row["ratio"], row["low"], row["high"]) == (None, None, None)
    assert row["note"] == f"A note. {reason}"


def test_rows_that_cannot_be_measured_here_start_nothing(harness):
    from measuring import Command, OwnRow, Row, measure_row

    side = Command(["/nowhere"], 1)
    row = measure_row(Row("r", "images/s", 1.0, side, side, unmeasurable="no GPU"))
    assert (row["ratio"], row["note"]) == (None, "Not measured: no GPU")
    own = measure_row(OwnRow("o", "MB", 0.8, lambda: {"ratio": 0.9, "note": "flat", "growth": []}))
    assert (own["ratio"], own["low"], own["note"], own["growth"]) == (0.9, None, "flat", [])


def test_missing_packages_are_named(harness, tmp_path):
    lab = toy_lab(harness, tmp_path)
    assert lab.missing(lab.python, "numpy") == ""
    assert "no_such_package not installed" in lab.missing(lab.python, "numpy", "no_such_package")
    assert lab.missing(None, "monai") == "no environment with monai (make setup-torch)"


def test_bench_json_grows_row_by_row_and_keeps_what_was_measured_on_this_machine(harness, tmp_path):
    rows, out, said = tmp_path / "rows", tmp_path / "out", []
    rows.mkdir()
    files = [toy_rows(rows, 2.0, "first"), toy_rows(rows, 1.25, "second")]
    lab = toy_lab(harness, tmp_path / "scratch")
    assert harness.row_files(rows) == files  # the workers' files define no rows
    assert harness.measure_all(lab, files, out, only="first", say=said.append) == 0
    record = json.loads((out / "bench.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["first row"]
    assert record["rows"][0]["ratio"] == pytest.approx(2.0)
    assert {"cpu", "cores", "memory_gb", "gpu", "os", "python", "versions"} <= set(record["machine"])
    assert harness.measure_all(lab, files, out, only="second row", say=said.append) == 0
    record = json.loads((out / "bench.json").read_text())
    assert [(row["name"], row["goal"]) for row in record["rows"]] == [("first row", 1.5), ("second row", 1.5)]
    assert harness.measure_all(lab, files, out, only="third", say=said.append) == 2
    record["machine"]["cores"] += 1
    (out / "bench.json").write_text(json.dumps(record))
    assert harness.measure_all(lab, files, out, only="second", say=said.append) == 0
    assert [row["name"] for row in json.loads((out / "bench.json").read_text())["rows"]] == ["second row"]
    assert "bench.json is of another machine or other versions; its rows are left out." in said


def test_resuming_leaves_out_what_was_measured_with_this_code(harness, tmp_path, monkeypatch):
    rows, out, said = tmp_path / "rows", tmp_path / "out", []
    rows.mkdir()
    file = toy_rows(rows)
    lab = toy_lab(harness, tmp_path / "scratch")
    for commit, measured in (("aaa", True), ("aaa", False), ("bbb", True), ("", True)):
        monkeypatch.setattr(harness, "commit_of", lambda repository, commit=commit: commit)
        said.clear()
        harness.measure_all(lab, [file], out, resume=True, say=said.append)
        assert ("toy row: measured already" not in said) == measured


def test_a_file_that_fails_does_not_hide_the_others(harness, tmp_path):
    rows, said = tmp_path / "rows", []
    rows.mkdir()
    (rows / "broken.py").write_text("def rows(lab):\n    raise KeyError('torn')\n    yield\n")
    files = [rows / "broken.py", toy_rows(rows)]
    assert harness.measure_all(toy_lab(harness, tmp_path), files, tmp_path / "out", say=said.append) == 1
    assert any("broken.py" in text and "torn" in text for text in said)
    assert len(json.loads((tmp_path / "out/bench.json").read_text())["rows"]) == 1


def test_naming_the_rows_makes_nothing_and_no_name_comes_twice(harness, tmp_path):
    lab = toy_lab(harness, tmp_path / "scratch")
    files = harness.row_files(BENCHMARKS)
    assert {"growth", "gpu", "scoring", "training_step"} <= {file.stem for file in files}
    rows = [row for file in files for row in harness.load(file).rows(lab)]
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.goal is None or row.goal > 0 for row in rows)
    assert list(lab.folder.iterdir()) == []


def test_without_a_gpu_or_pytorch_their_rows_say_so(harness, tmp_path):
    lab = toy_lab(harness, tmp_path / "scratch")
    lab.gpu, lab.torch_python = "", None
    rows = {name: list(harness.load(BENCHMARKS / f"{name}.py").rows(lab)) for name in ("gpu", "training_step")}
    assert {row.unmeasurable for row in rows["gpu"]} == {"this machine has no GPU"}
    assert all("make setup-torch" in row.unmeasurable for row in rows["training_step"])


def test_shares_of_waiting_and_of_the_peak(harness):
    gpu = harness.load(BENCHMARKS / "gpu.py")
    result = {
        "note": "n",
        "ours": {"speed": 1000.0, "seconds": 2.0, "data_seconds": 0.5},
        "theirs": {"speed": 500.0, "seconds": 4.0, "data_seconds": 0.0, "flops": 98.9e9},
    }
    note = gpu.shares(result, "NVIDIA H100 80GB HBM3")["note"]
    assert "ours waited for data 25% of the time and reached 10% of the peak" in note
    assert "PyTorch waited for data 0% of the time and reached 5% of the peak" in note
    assert "peak" not in gpu.shares(result, "another")["note"]


def test_growth_compares_the_memory_of_the_least_and_the_most(harness, tmp_path, monkeypatch):
    growth = harness.load(BENCHMARKS / "growth.py")
    lab = toy_lab(harness, tmp_path / "scratch", growth=(10, 1), say=lambda text: None)
    monkeypatch.setattr(growth, "make_inputs", lambda *given, **named: None)
    memory = {30: 100.0, 300: 125.0}
    monkeypatch.setattr(
        growth, "run_command", lambda side: {"seconds": 3.0, "work": side.work, "memory_mb": memory[side.work]}
    )
    result = growth.grow(lab, "prepare")
    assert result["ratio"] == 0.8
    assert [step["images"] for step in result["growth"]] == [30, 300]
    assert "1x: 100 ms, 100 MB; 10x: 10 ms, 125 MB" in result["note"]


@pytest.mark.slow
def test_growth_writes_radiographs_that_are_all_different_and_prepares_them(harness, tmp_path):
    growth = harness.load(BENCHMARKS / "growth.py")
    lab = toy_lab(harness, tmp_path / "scratch", growth=(1, 2), say=lambda text: None)
    result = growth.grow(lab, "prepare")
    folder = lab.folder / "growth-2"
    assert len({path.read_bytes() for path in (folder / "radiographs").glob("*.png")}) == 60
    assert json.loads((folder / "prepare/manifest.json").read_text())["patients"]
    assert len((folder / "prepare/cases.csv").read_text().splitlines()) == 61
    assert [step["work"] for step in result["growth"]] == [30, 60]
    assert 0.5 < result["ratio"] < 2


def shortened(row):
    """The row with one pair of one step."""
    ours, theirs = (dataclasses.replace(side, runs=1, warm_up=1) for side in (row.ours, row.theirs))
    return dataclasses.replace(row, ours=ours, theirs=theirs, pairs=1)


@pytest.mark.slow
def test_a_training_step_is_measured_beside_pytorch(harness, tmp_path):
    """The smallest network: what the row measures is real, on both sides."""
    from measuring import measure_row

    lab = toy_lab(harness, tmp_path / "scratch")
    if lab.torch_python is None:
        pytest.skip("PyTorch's environment is not here (make setup-torch)")
    steps = harness.load(BENCHMARKS / "training_step.py")
    for task in ("classifier", "segmenter"):
        row = measure_row(shortened(steps.row(lab, task, 64, False, "resnet18")))
        assert row["ratio"] is not None, row["note"]
        assert row["ours"]["work"] == row["theirs"]["work"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["keras_step.py", "jax_step.py"])
def test_the_rows_of_a_gpu_run_small_on_a_cpu(harness, tmp_path, monkeypatch, script):
    from measuring import measure_row

    lab = toy_lab(harness, tmp_path / "scratch")
    if lab.torch_python is None:
        pytest.skip("PyTorch's environment is not here (make setup-torch)")
    gpu = harness.load(BENCHMARKS / "gpu.py")
    monkeypatch.setattr(gpu, "IMAGES", 60)
    monkeypatch.setattr(gpu, "SIZES", (32, 64))
    row = shortened(gpu.row(lab, "segmenter", "U-Net", 32, 4, "resnet18", False, script))
    if script == "jax_step.py":
        if not os.environ.get("KERAS_PNEUMO_JAX_PYTHON"):
            pytest.skip("KERAS_PNEUMO_JAX_PYTHON names no Python with JAX")
        jax_side = dataclasses.replace(row.ours, argv=[os.environ["KERAS_PNEUMO_JAX_PYTHON"], *row.ours.argv[1:]])
        row = dataclasses.replace(row, ours=jax_side, unmeasurable="")
    row = measure_row(row)
    assert row["ratio"] is not None, row["note"]
    assert "waited for data" in row["note"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Truth and two teams' answers for 40 images."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import score_sides
    finally:
        sys.path.remove(str(BENCHMARKS))
    folder = tmp_path_factory.mktemp("scoring")
    score_sides.write_inputs(folder, 40)
    return score_sides, folder


def test_all_ways_to_score_give_the_same_dice(scored):
    sides, folder = scored
    ours = np.asarray(sides.dice_ours(folder)())
    assert set(np.round(ours, 3)) > {0.0, 1.0}
    assert len(set(ours)) > 3
    for other in (sides.dice_numpy, sides.dice_on_read_truth):
        np.testing.assert_array_equal(np.asarray(other(folder)()), ours)


@pytest.mark.slow
def test_monais_dice_is_the_same(scored):
    sides, folder = scored
    python = Path(os.environ.get("KERAS_PNEUMO_TORCH_PYTHON", BENCHMARKS.parents[1] / ".venv-torch/bin/python"))
    if not python.exists():
        pytest.skip("PyTorch's environment is not here (make setup-torch)")
    code = "import sys, score_sides, pathlib; print(*score_sides.dice_monai(pathlib.Path(sys.argv[1]))().tolist())"
    done = subprocess.run([python, "-c", code, folder], capture_output=True, text=True, cwd=BENCHMARKS, check=False)
    if "No module named" in done.stderr:
        pytest.skip("MONAI is not in PyTorch's environment")
    values = [float(word) for word in done.stdout.split()]
    np.testing.assert_allclose(values, np.asarray(sides.dice_ours(folder)()), atol=1e-6)


def test_both_bootstraps_give_the_same_differences(scored):
    sides, folder = scored
    ours, loop = (make(folder, 30)() for make in (sides.bootstrap_ours, sides.bootstrap_sklearn))
    assert np.ptp(ours) > 0.01
    np.testing.assert_allclose(ours, loop, atol=1e-12)


RECORD = {
    "machine": {
        "cpu": "A CPU", "cores": 2, "instructions": ["avx2"], "memory_gb": 8, "gpu": "", "os": "Linux",
        "python": "3.11", "versions": {"keras": "3.15.1"}, "torch_versions": {"torch": "2.14.1"},
    },
    "rows": [
        {
            "name": "step <fast>", "unit": "images/s", "goal": 1.0, "ratio": 1.25, "low": 1.1, "high": 1.5, "note": "",
            "ours": {"speed": 10.0, "memory_mb": 900.0}, "theirs": {"speed": 8.0, "memory_mb": 700.0}, "quiet": False,
        },
        {
            "name": "slow", "unit": "runs/s", "goal": 2.0, "ratio": 0.5, "low": 0.4, "high": 0.6, "note": "why",
            "ours": {"speed": 1.0, "memory_mb": 1.0}, "theirs": {"speed": 2.0, "memory_mb": 1.0},
        },
        {
            "name": "memory of prepare", "unit": "", "goal": 0.83, "ratio": 0.97, "low": None, "high": None, "note": "",
            "growth": [
                {"times": 1, "images": 30, "seconds": 3.0, "memory_mb": 400.0},
                {"times": 10, "images": 300, "seconds": 9.0, "memory_mb": 410.0},
            ],
        },
        {
            "name": "GPU", "unit": "images/s", "goal": 1.0, "ratio": None, "low": None, "high": None,
            "note": "Not measured: no GPU",
        },
    ],
}  # fmt: skip


def test_the_page_shows_ratios_goals_growth_and_what_could_not_be_measured(harness):
    import bench_page

    page = bench_page.page(RECORD)
    assert "2 of 3 rows with a goal reach it" in page
    assert "Below their goal: slow (0.50 of 2.00)." in page
    assert "1 of 4 rows could not be measured" in page
    assert "Other programs ran on the machine just before: step &lt;fast&gt;." in page
    assert page.count("<svg") == 4, "ratios for a wide place and for a narrow one; time and memory"
    assert page.count('class="goal"') == 2 * 3
    assert "Research use only" in page
    assert "<fast>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_speeds_below_one_a_second_are_written_as_seconds(harness):
    import bench_page

    assert bench_page.side({"speed": 0.025}, "commands/s") == "40.0 s per command"
    assert bench_page.side({"speed": 1.5}, "images/s") == "1.50 images/s"
    assert bench_page.side(None, "images/s") == "–"
    assert [bench_page.number(value) for value in (117.4, 23.44, 0.987, None)] == ["117", "23.4", "0.99", "–"]


def test_an_empty_record_still_makes_a_page(harness):
    import bench_page

    assert "0 of 0 rows" in bench_page.page({**RECORD, "rows": []})


def test_the_table_is_written_between_the_marks_of_the_docs(harness, tmp_path):
    import bench_page

    from keras_pneumo.errors import PneumoError

    file, out = tmp_path / "page.md", tmp_path / "out"
    file.write_text(f"before\n{bench_page.BEGIN}\nold\n{bench_page.END}\nafter\n")
    out.mkdir()
    assert harness.main(["--out", str(out), "--table", str(file)]) == 2
    (out / "bench.json").write_text(json.dumps(RECORD))
    assert harness.main(["--out", str(out), "--table", str(file)]) == 0
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| slow | 1.00 runs/s | 2.00 runs/s | 0.50 (below) | 0.40 to 0.60 | 2.00 |" in text
    assert "| GPU | – | – | – | – | 1.00 |" in text
    assert "- **slow**: why" in text
    assert "A CPU, 2 cores (avx2); 8 GB; no GPU; Linux; Python 3.11; keras 3.15.1, torch 2.14.1." in text
    with pytest.raises(PneumoError, match="does not have the lines"):
        bench_page.replace_table(Path(__file__), RECORD)
