"""Tests that a training feeds the trackers and TensorBoard, with a network of some hundred weights."""

from typing import ClassVar

import pandas as pd
import pytest
import tensorflow as tf
from crash_lab import QUICK, tiny
from sharing_lab import BOARD

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import Stopped
from keras_pneumo.training import trainer
from keras_pneumo.training.logs import tracking
from keras_pneumo.training.report import RunReport
from keras_pneumo.training.trainer import TrainingOptions, run_training

pytestmark = pytest.mark.usefixtures("own_cache")


class Recorder:
    """A tracker that keeps the epochs that it is sent, over all its openings."""

    sent: ClassVar[list] = []
    ended: ClassVar[list] = []

    def __init__(self, folder):
        pass

    def send(self, rows):
        self.sent.append([int(row["epoch"]) for row in rows])

    def end(self, scores, pictures):
        self.ended.append((scores["test_auroc"], sorted(pictures)))

    def close(self):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """The tracker; the report is written in a moment, without a prediction."""
    Recorder.sent, Recorder.ended = [], []
    monkeypatch.setitem(tracking.OPEN, "mlflow", Recorder)

    def report(run, *_, **__):
        BOARD.to_csv(run.folder / "board.csv", index=False)
        (run.folder / "report.html").touch()
        return RunReport(run.folder / "report.html", [])

    monkeypatch.setattr(trainer, "report_run", report)
    return Recorder


def points_of(folder):
    """Names and steps of all points and pictures in the folder's events, and the bytes of the pictures."""
    points, pictures = {}, {}
    for file in sorted((folder / "events").iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                if value.metadata.plugin_data.plugin_name == "images":
                    pictures[value.tag] = array.tolist()
                else:
                    points[value.tag, event.step] = array.item()
    return points, pictures


def test_a_training_sends_its_rows_scores_and_curves(tmp_path, prepared_folder, recorder):
    out = tmp_path / "run"
    options = TrainingOptions(build=tiny, log_to=("mlflow",))
    run_training(QUICK, load_prepared(prepared_folder), out, options)
    log = pd.read_csv(out / "log.csv")
    assert recorder.sent[-1] == log["epoch"].tolist() == [1, 2, 3]
    assert len(recorder.sent) == len(log) + 1, "after each epoch, and at the end"
    assert recorder.ended == [(0.94, ["curves.png"])]
    points, pictures = points_of(out)
    best = int(log.loc[log["best"] == 1, "epoch"].iloc[-1])
    assert points["test/auroc", best] == pytest.approx(0.94)
    assert points["test/auroc_low", best] == pytest.approx(0.85)
    width, height, data = pictures["test/curves"]
    assert data == (out / "curves.png").read_bytes()
    assert (int(height), int(width)) == tf.io.decode_png(data).shape[:2]


def test_a_stopped_training_that_goes_on_sends_all_rows(tmp_path, prepared_folder, recorder):
    """The first start has no tracker; the second sends what the first has learnt, too."""
    prepared, out = load_prepared(prepared_folder), tmp_path / "run"

    def stop(row):
        if row.epoch == 2:
            raise Stopped("here")

    with pytest.raises(Stopped):
        run_training(QUICK, prepared, out, TrainingOptions(build=tiny, on_epoch=stop))
    assert recorder.sent == []
    run_training(QUICK, prepared, out, TrainingOptions(build=tiny, log_to=("mlflow",)))
    assert recorder.sent[-1] == [1, 2, 3]


def test_a_tracker_that_fails_changes_nothing_that_is_learnt(tmp_path, prepared_folder, recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "send", lambda self, rows: 1 / 0)
    prepared, messages = load_prepared(prepared_folder), []
    for name, log_to in (("with", ("mlflow",)), ("without", ())):
        options = TrainingOptions(build=tiny, log_to=log_to, notify=messages.append)
        run_training(QUICK, prepared, tmp_path / name, options)
    assert [message for message in messages if "given up" in message] == messages
    assert len(messages) == 1
    logs = [pd.read_csv(tmp_path / name / "log.csv")["validation_loss"] for name in ("with", "without")]
    assert logs[0].equals(logs[1])
