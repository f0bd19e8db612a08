"""The benchmarks' rows of preparing and start-up: both sides do the same work, and a command's time is found."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_siim import radiograph, write_jpeg_dicom, write_labels

BENCHMARKS = Path(__file__).parents[2] / "experiments/benchmarks"


@pytest.fixture
def rows_of(monkeypatch):
    """Imports a file of the benchmarks by its name, as ``make bench`` does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench

    yield lambda name: bench.load(BENCHMARKS / f"{name}.py")
    for name in ("bench", "bench_page", "lab", "measuring"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("script", ["OPENCV", "PYDICOM"])
def test_the_other_side_writes_the_very_pixels_that_prepare_writes(rows_of, tmp_path, script):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1024, 1024)).astype(np.uint8), (0, 0), 3)
    write_jpeg_dicom(tmp_path / "data" / "a.dcm", image)
    code = getattr(rows_of("prepare"), script)
    subprocess.run([sys.executable, "-c", code, tmp_path / "data", tmp_path / "out"], check=True)
    from keras_pneumo.data.radiographs.reading import read_radiograph

    written = cv2.imread(str(tmp_path / "out/a.png"), cv2.IMREAD_UNCHANGED)
    expected = cv2.resize(read_radiograph(tmp_path / "data/a.dcm").pixels, (512, 512), interpolation=cv2.INTER_AREA)
    difference = np.abs(written.astype(int) - expected)
    assert difference.max() <= (0 if script == "OPENCV" else 3)  # pydicom may take another decoder


def test_files_under_new_ids_keep_their_labels_and_two_of_nine_are_positive(rows_of, tmp_path):
    names = [f"1.2.{number}.000001" for number in range(4)]
    patient = "17d405a3-a0d2-4901-b33a-63906aa48d9f"
    files = [
        write_jpeg_dicom(tmp_path / "dicom" / f"{name}.dcm", radiograph(1), uid=name, PatientID=patient)
        for name in names
    ]
    write_labels(tmp_path / "train-rle.csv", [(names[0], "1 2"), *((name, "-1") for name in names[1:])])
    rows_of("prepare").copy_under_new_ids(files, tmp_path / "out", 18)
    with (tmp_path / "out/train-rle.csv").open() as stream:
        labels = dict(list(csv.reader(stream))[1:])
    assert len(labels) == 18
    assert sorted(labels.values()) == ["-1"] * 14 + ["1 2"] * 4
    from keras_pneumo.data.radiographs.reading import read_radiograph

    read = [read_radiograph(path) for path in (tmp_path / "out").glob("*.dcm")]
    assert {radiograph.image_id for radiograph in read} == set(labels)
    assert len({radiograph.patient_id_tag for radiograph in read}) == 18


def test_the_slowest_command_gives_the_ratio_and_a_failing_one_is_said(rows_of, tmp_path):
    startup = rows_of("startup")
    commands = {"quick": [sys.executable, "-c", ""], "slow": [sys.executable, "-c", "import time; time.sleep(0.5)"]}
    result = startup.measured(commands, 0.4, {}, tmp_path, runs=1)
    assert result["seconds"]["slow"] > result["seconds"]["quick"]
    assert result["ratio"] == pytest.approx(0.4 / result["seconds"]["slow"], rel=0.01)
    with pytest.raises(Exception, match="odd ended with exit code 3"):
        startup.measured({"odd": [sys.executable, "-c", "raise SystemExit(3)"]}, 1.0, {}, tmp_path, runs=1)


def test_each_command_is_followed_to_its_own_work(rows_of, tmp_path):
    startup = rows_of("startup")
    for module, function, line in startup.WORK.values():
        code = startup.UNTIL_WORK.replace("os._exit(0)", "os._exit(7)")  # a command that never got there ends otherwise
        done = subprocess.run([sys.executable, "-c", code, module, function, *line.split()], cwd=tmp_path, check=False)
        assert done.returncode == 7
