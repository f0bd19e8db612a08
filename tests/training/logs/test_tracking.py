"""Tests of the trackers: the rows of log.csv, once each, in real stores on this disk; and faults that stop nothing.

MLflow writes into a sqlite file, W&B into its offline folder, which its own reader reads here.
"""

import getpass
import json
import re
import socket
import struct
import threading
import time

import pytest
from sharing_lab import BOARD, LOG, write_run

from keras_pneumo.errors import PneumoError
from keras_pneumo.training.logs import tracking
from keras_pneumo.training.logs.tracking import chosen_trackers, log_rows, settings_of, track_run, tracked

NUMBERS = [name for name in LOG.columns if name not in ("epoch", "phase")]


@pytest.fixture
def run(tmp_path):
    """A run whose training has done one epoch."""
    folder = write_run(tmp_path / "runs/shared", command="keras-pneumo train --data /home/smithers")
    (folder / "report.html").unlink()
    write_log(folder, 1)
    return folder


def write_log(folder, epochs):
    LOG.head(epochs).to_csv(folder / "log.csv", index=False)


class Recorder:
    """A tracker that writes down what it is given."""

    def __init__(self, folder):
        self.opened_in = threading.current_thread()
        made.append(self)
        self.calls = []

    def send(self, rows):
        self.calls.append(("send", [int(row["epoch"]) for row in rows]))

    def end(self, scores, pictures):
        self.calls.append(("end", sorted(scores), sorted(pictures)))

    def close(self):
        self.calls.append(("close",))


made: list = []


@pytest.fixture
def recorder(monkeypatch):
    made.clear()
    monkeypatch.setitem(tracking.OPEN, "mlflow", Recorder)
    return made


def test_a_tracker_gets_the_rows_as_they_are_and_runs_beside_the_training(run, recorder):
    messages = []
    with tracked(run, ("tensorboard", "mlflow"), messages.append) as tracking_run:
        tracking_run.epoch()
        write_log(run, 3)
        tracking_run.epoch()
        tracking_run.end({"test_auroc": 0.9}, {"curves.png": b""})
    (tracker,) = recorder
    rows = [("send", [1]), ("send", [1, 2, 3]), ("send", [1, 2, 3])]
    assert tracker.calls == [*rows, ("end", ["test_auroc"], ["curves.png"]), ("close",)]
    assert tracker.opened_in is not threading.current_thread()
    assert messages == []


def test_without_trackers_nothing_is_read(run, monkeypatch):
    monkeypatch.setattr(tracking, "log_rows", lambda folder: pytest.fail("nobody asked"))
    with tracked(run, (), print) as tracking_run:
        tracking_run.epoch()


def test_a_tracker_that_fails_is_spoken_of_once_and_stops_nothing(run, recorder, monkeypatch):
    failed = threading.Event()

    def fails(self, rows):
        failed.set()
        raise RuntimeError("the store is full\nand more lines")

    monkeypatch.setattr(Recorder, "send", fails)
    messages = []
    with tracked(run, ("mlflow",), messages.append) as tracking_run:
        tracking_run.epoch()
        assert failed.wait(30)
        for _ in range(200):
            tracking_run.epoch()
            time.sleep(0.005)
    assert messages == [
        f"mlflow was given up: the store is full. log.csv has every row. Send them later with keras-pneumo track {run} "
        "--log-to mlflow"
    ]


def test_a_tracker_that_cannot_be_opened_or_ends_the_program_stops_nothing(run, monkeypatch):
    def leaves(folder):
        raise SystemExit(3)

    monkeypatch.setitem(tracking.OPEN, "wandb", leaves)
    messages = []
    with tracked(run, ("wandb",), messages.append) as tracking_run:
        tracking_run.epoch()
    assert [message.split(".")[0] for message in messages] == ["wandb was given up: 3"]


def test_a_tracker_that_does_not_answer_keeps_nobody_waiting(run, recorder, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(Recorder, "send", lambda self, rows: never.wait())
    monkeypatch.setattr(tracking, "MOST_SECONDS", 0.2)
    messages = []
    with tracked(run, ("mlflow",), messages.append) as tracking_run:
        for _ in range(3):
            tracking_run.epoch()
    never.set()
    assert len(messages) == 1
    assert "it has not taken everything within 0 s" in messages[0]


def test_what_a_stopped_training_has_not_sent_is_left_to_the_next_start(run, recorder, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(Recorder, "send", lambda self, rows: never.wait())
    monkeypatch.setattr(tracking, "MOST_SECONDS_STOPPED", 0.1)
    messages = []
    with pytest.raises(KeyboardInterrupt), tracked(run, ("mlflow",), messages.append) as tracking_run:  # noqa: PT012
        tracking_run.epoch()
        raise KeyboardInterrupt
    never.set()
    assert messages == []


def test_rows_are_those_of_the_log_without_what_is_missing(run):
    write_log(run, 2)
    first, second = log_rows(run)
    assert first == {"epoch": 1.0} | {name: float(LOG[name][0]) for name in NUMBERS}
    assert "gradient_norm" not in second
    (run / "log.csv").unlink()
    assert log_rows(run) == []


def test_what_is_told_of_a_run_names_nobody(run):
    name, settings, facts = settings_of(run)
    assert name == "shared"
    assert settings["learning_rate"] == 0.001
    assert settings["augmentation.flip"] == 0.5
    assert facts["split_sha256"] == "5" * 64
    assert facts["version.keras"] == "3.15.1"
    text = json.dumps([settings, facts])
    assert "smithers" not in text
    assert "SIIM" not in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("mlflow", ("mlflow",)),
        (" MLflow, wandb,mlflow", ("mlflow", "wandb")),
        (["tensorboard"], ("tensorboard",)),
    ],
)
def test_names_of_trackers(text, names):
    assert chosen_trackers(text) == names


def test_another_or_a_missing_tracker_is_refused(monkeypatch):
    with pytest.raises(PneumoError, match=r"no tracker 'comet'\. Choose from tensorboard, mlflow, wandb"):
        chosen_trackers("mlflow,comet")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    assert chosen_trackers("tensorboard") == ("tensorboard",)
    with pytest.raises(PneumoError, match=r"pip install 'keras-pneumo\[tracking\]'"):
        chosen_trackers("wandb")


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(PneumoError, match="no log of a training"):
        track_run(tmp_path, ("mlflow",))
    (run / "log.csv").unlink()
    with pytest.raises(PneumoError, match="no log of a training"):
        track_run(run, ("mlflow",))


def test_a_fault_is_a_refusal_where_tracking_is_all_that_was_asked(run, recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "send", lambda self, rows: 1 / 0)
    with pytest.raises(PneumoError, match="mlflow was given up: division by zero"):
        track_run(run, ("mlflow",))


# ---------------------------------------------------------------- a real MLflow store


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An MLflow store in a sqlite file; gives a client that reads it."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    return mlflow.MlflowClient(tracking_uri=uri)


def runs_of(client):
    experiment = client.get_experiment_by_name("keras_pneumo")
    return client.search_runs([experiment.experiment_id])


def history(client, run, name):
    return {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)}


def test_mlflow_has_the_rows_the_scores_and_the_curves_and_a_resumed_run_goes_on(run, store):
    """One store for all of it, since to make one takes seconds."""
    messages = []
    with pytest.raises(KeyboardInterrupt), tracked(run, ("mlflow",), messages.append) as tracking_run:  # noqa: PT012
        tracking_run.epoch()
        raise KeyboardInterrupt
    (stopped,) = runs_of(store)
    assert stopped.info.status == "KILLED"
    assert history(store, stopped, "loss") == {(1, 0.7)}

    write_log(run, 3)  # in another process, after a resume
    with tracked(run, ("mlflow",), messages.append) as tracking_run:
        tracking_run.epoch()
        tracking_run.epoch()
    (run / "report.html").touch()
    track_run(run, ("mlflow",))
    track_run(run, ("mlflow",))

    assert messages == []
    (finished,) = runs_of(store)
    assert finished.info.run_id == stopped.info.run_id
    assert finished.info.status == "FINISHED"
    assert finished.info.run_name == "shared"
    for name in NUMBERS:
        rows = LOG[["epoch", name]].dropna()
        points = store.get_metric_history(finished.info.run_id, name)
        assert sorted((point.step, point.value) for point in points) == [
            (int(epoch), float(value)) for epoch, value in rows.itertuples(index=False)
        ], f"{name}: each row once"
    assert history(store, finished, "test_auroc") == {(0, 0.94)}
    assert history(store, finished, "test_auroc_low") == {(0, 0.85)}
    assert finished.data.params["learning_rate"] == "0.001"
    assert finished.data.tags["split_sha256"] == "5" * 64
    assert "curves.png" in {file.path for file in store.list_artifacts(finished.info.run_id)}
    text = str(finished.to_dictionary()["data"])
    assert "smithers" not in text
    store.delete_run(finished.info.run_id)
    track_run(run, ("mlflow",))
    assert len(runs_of(store)) == 1, "where somebody removed it, a new one is made"


# ---------------------------------------------------------------- a real W&B folder


def records_in(path):
    """The messages of a W&B file: LevelDB's log format behind a head of seven bytes, in blocks of 32 KiB."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = -place % 32768 or 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a message, or the last part of one
            yield whole
            whole = b""


def read_offline(folder):
    """What W&B would upload, by kind."""
    from wandb.proto import wandb_internal_pb2

    records = {"history": [], "run": [], "summary": [], "files": [], "text": ""}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records_in(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            records["text"] += str(record)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                records["history"].append(items_of(record.history.item))
            elif kind == "run":
                records["run"].append(record.run)
            elif kind == "summary":
                records["summary"] += items_of(record.summary.update).items()
            elif kind == "files":
                records["files"] += [file.path for file in record.files.files]
    return records


def items_of(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_has_the_rows_offline_and_a_resumed_run_is_the_same_one(run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    messages = []
    with tracked(run, ("wandb",), messages.append) as tracking_run:
        tracking_run.epoch()
    write_log(run, 3)
    (run / "report.html").touch()
    track_run(run, ("wandb",))
    track_run(run, ("wandb",))
    assert messages == []
    records = read_offline(run)
    assert len({each.run_id for each in records["run"]}) == 1
    assert {each.project for each in records["run"]} == {"keras_pneumo"}
    rows = [row for row in records["history"] if "loss" in row]
    assert [(row["_step"], row["loss"]) for row in rows] == [(1, 0.7), (2, 0.5), (3, 0.4)]
    assert [row.get("gradient_norm") for row in rows] == [1.0, None, 2.0]
    assert ("test_auroc", float(BOARD["auroc"][0])) in records["summary"]
    assert len([name for name in records["files"] if "curves" in name]) == 1, "sent once"
    # The host as a word of its own: it may be called "vm", and W&B draws names of twelve letters.
    host = rf"(?<!\w){re.escape(socket.gethostname())}(?!\w)"
    for name in ("smithers", host, f'"{getpass.getuser()}"', "SIIM"):
        assert not re.search(name, records["text"]), f"W&B is told {name}"
