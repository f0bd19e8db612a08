"""The command line on several devices and workers: predictions shared and in order, a training to its report."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from warm_lab import warm
from worker_lab import end, environment_of, free_ports

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared

REPOSITORY = Path(__file__).parents[2]
SMALLEST = REPOSITORY / "experiments/smallest_classifier.py"


def begin(*arguments, cluster=None):
    environment = environment_of(cluster, COLUMNS="200", NO_COLOR="1")
    return subprocess.Popen(
        [*warm(), "-m", "keras_pneumo", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def two(*arguments):
    ports = free_ports(2)
    return [begin(*arguments, cluster=(ports, number)) for number in range(2)]


def alike(folder, other, task):
    """The same images in the same order with the same answers, to float32's rounding."""
    for file in ("predictions.csv", "validation.csv"):
        first, second = (pd.read_csv(path / file, dtype={"encoded_pixels": str}) for path in (folder, other))
        assert list(first["image_id"]) == list(second["image_id"])
        # A segmenter's is the level of a pixel, one of 256.
        apart = 1e-5 if task == "classifier" else 1 / 255 + 1e-6
        np.testing.assert_allclose(first["probability"], second["probability"], atol=apart)
        if task == "segmenter":
            masks = [[rle.decode(text) for text in table["encoded_pixels"].fillna("-1")] for table in (first, second)]
            assert any(mask.any() for mask in masks[0])
            assert np.mean([a != b for a, b in zip(*masks, strict=True)]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_two_devices_and_two_workers_predict_as_one(tmp_path, tiny_runs, prepared_folder, task):
    given = ("predict", tiny_runs / task, "--data", prepared_folder, "--out")
    end(begin(*given, tmp_path / "one", "--strategy", "one"))
    end(begin(*given, tmp_path / "two", "--strategy", "mirrored", "--replicas", "2"))
    end(*two(*given, tmp_path / "workers"))
    for name in ("two", "workers"):
        alike(tmp_path / name, tmp_path / "one", task)


@pytest.mark.slow
def test_workers_do_not_share_a_folder_of_radiographs(tmp_path, tiny_runs, phantoms):
    (error,) = end(begin("predict", tiny_runs / "classifier", "--data", phantoms, cluster=([1, 2], 0)), code=2)
    assert "--strategy one" in error
    assert "is no prepared folder" in error


@pytest.mark.slow
def test_two_workers_train_to_a_report_that_all_of_them_predicted(tmp_path, prepared_folder):
    end(*two("train", SMALLEST, "--data", prepared_folder, "--out", tmp_path / "run"), timeout=400)
    record = json.loads((tmp_path / "run/experiment.json").read_text())
    assert record["replicas"] == 2
    assert record["strategy"].startswith("2 workers")
    assert "<html" in (tmp_path / "run/report.html").read_text()
    end(begin("predict", tmp_path / "run", "--data", prepared_folder, "--out", tmp_path / "one", "--strategy", "one"))
    alike(tmp_path / "run/submission", tmp_path / "one", "classifier")
    assert len(pd.read_csv(tmp_path / "one/predictions.csv")) == len(load_prepared(prepared_folder).subset("test"))


@pytest.mark.slow
def test_a_training_of_all_folds_that_was_killed_goes_on_with_the_fold_it_was_in(tmp_path, prepared_folder):
    """Folds that were done stay as they are; the rest come to the weights of folds trained one by one."""
    folder = tmp_path / "folds"
    given = (
        "train",
        SMALLEST,
        "--data",
        prepared_folder,
        "--all-folds",
        "--out",
        folder,
        "--checkpoint-every",
        "1steps",
    )
    process = begin(*given)
    for line in process.stdout:
        if "fold_1" in line and line.startswith("Training"):
            break
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.kill()
    process.wait()
    assert not (folder / "fold_1/report.html").exists()
    assert not (folder / "fold_2").exists()
    done = (folder / "fold_0/report.html").stat().st_mtime_ns
    process = begin(*given, "--resume")
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "fold_1 is an unfinished run" in out
    assert "goes on from at_" in errors
    assert "fold_0: " not in out
    assert (folder / "fold_0/report.html").stat().st_mtime_ns == done
    assert all((folder / f"fold_{number}/report.html").is_file() for number in range(5))
    end(begin("train", SMALLEST, "--data", prepared_folder, "--fold", 1, "--out", tmp_path / "alone"))
    name = "best.safetensors"
    assert (folder / "fold_1" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    process = begin(*given, "--resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "holds no unfinished training of all folds" in errors
