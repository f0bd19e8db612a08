"""Tests of the log of a training: its rows, the best weights, and the pictures and events made from them."""

import errno
import os

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from crash_lab import QUICK, tiny, train_tiny

from keras_pneumo.data.batches.images import ImageSet
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.history_report import FILE, read_history
from keras_pneumo.training.log import EpochMeasures, Log, draw_curves, save_best, save_weights
from keras_pneumo.training.validation import ValidationResult

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def curves_text(table, tmp_path, synthetic=False):
    """The curves as SVG, in which a test can read the text."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_curves(table, tmp_path / "curves.svg", synthetic)
    return (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(("dice", "label"), [(0.412, "best 0.412"), (None, "best 0.876")])
def test_the_best_epoch_is_labelled_with_the_score_of_its_curve(tmp_path, dice, label):
    """A segmenter's with its Dice, a classifier's with its AUROC."""
    table = pd.DataFrame(
        {
            "epoch": [1, 2],
            "loss": [0.9, 0.5],
            "validation_loss": [0.8, 0.6],
            "validation_auroc": [0.5, 0.876],
            "learning_rate": [1e-3, 1e-4],
            "best": [1, 1],
        }
    )
    if dice is not None:
        table["validation_dice"] = [0.1, dice]
    text = curves_text(table, tmp_path)
    assert label in text
    assert f"Validation {'AUROC' if dice is None else 'Dice'}" in text
    assert "phantoms" not in text
    assert "on synthetic phantoms" in curves_text(table, tmp_path, synthetic=True)


def test_a_full_disk_while_weights_are_saved_leaves_the_best_ones(monkeypatch, tmp_path, prepared):
    run_folder = tmp_path / "run"
    train_tiny(prepared, run_folder)
    before = (run_folder / "best.weights.h5").read_bytes()
    model = tiny(QUICK)

    def full(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(model, "save_weights", full)
    with pytest.raises(PneumoError, match=f"{run_folder}: No space left"):
        save_best(model, run_folder)
    assert (run_folder / "best.weights.h5").read_bytes() == before
    assert not list(run_folder.glob("writing*"))


def test_weights_are_flushed_before_they_are_renamed(monkeypatch, tmp_path):
    path, flush, flushed = tmp_path / "best.weights.h5", os.fsync, []

    def noted(handle):
        flushed.append((os.fstat(handle).st_ino, path.exists()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)
    save_weights(tiny(QUICK), path)
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_weights_that_cannot_be_flushed_are_not_renamed(monkeypatch, tmp_path):
    (tmp_path / "best.weights.h5").write_bytes(b"before")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PneumoError, match="No space left"):
        save_weights(tiny(QUICK), tmp_path / "best.weights.h5")
    assert (tmp_path / "best.weights.h5").read_bytes() == b"before"
    assert not list(tmp_path.glob("writing*"))


def test_events_hold_the_log(tmp_path, prepared):
    train_tiny(prepared, tmp_path / "run")
    log = pd.read_csv(tmp_path / "run/log.csv")
    assert (log["data_seconds"] >= 0).all()
    assert (log["gradient_norm"] > 0).all()
    assert (log["memory_gb"] > 0).all()
    (file,) = (tmp_path / "run/events").iterdir()
    points = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            points.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor).item()
    assert points["epoch/validation_auroc"] == pytest.approx(
        dict(zip(log["epoch"], log["validation_auroc"], strict=True))
    )
    assert {"step/loss", "step/gradient_norm", "step/images_per_second", "epoch/learning_rate"} <= set(points)


def images(*image_ids):
    count = len(image_ids)
    return ImageSet(tuple(image_ids), np.arange(count) % 2, 8, ("",) * count, ("",) * count)


def add(log, epoch, *predictions):
    result = ValidationResult(0.5, float("nan"), predictions=np.array(predictions))  # never the best: no weights
    log.add_epoch(object(), result, epoch, "whole network", 0.5, 0.0, EpochMeasures())


def test_the_predictions_of_each_epoch_are_kept_and_those_of_a_killed_start_go(tmp_path):
    log = Log(tmp_path, validation=images("001", "b"))
    for epoch in (1, 2, 3):
        add(log, epoch, 0.123456, epoch / 10)
    assert read_history(tmp_path).to_dict("list") == {
        **{"image_id": ["001", "b"], "pneumothorax": [0, 1]},
        **{f"epoch_{epoch}": [0.1235, epoch / 10] for epoch in (1, 2, 3)},
    }
    add(Log(tmp_path, validation=images("001", "b")), 2, 0.9, 0.8)  # it goes on after epoch 1
    table = read_history(tmp_path)
    assert table.columns.tolist() == ["image_id", "pneumothorax", "epoch_1", "epoch_2"]
    assert table["epoch_2"].tolist() == [0.9, 0.8]
    (tmp_path / FILE).write_text("damaged")
    add(log, 4, 0.1, 0.2)
    assert pd.read_csv(tmp_path / FILE)["epoch_4"].tolist() == [0.1, 0.2]


def test_one_of_several_workers_writes_the_predictions(tmp_path):
    add(Log(tmp_path, writes=False, validation=images("a")), 1, 0.5)
    assert not (tmp_path / FILE).exists()
