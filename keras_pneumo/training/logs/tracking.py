"""MLflow and Weights & Biases beside ``log.csv``, which stays the truth: they are sent its rows.

In: a run folder, after each epoch and at the end. Out: the same rows, the test scores and the curves, in the trackers
that were asked for. Each tracker is fed in a thread of its own, so that a server that does not answer keeps no step
waiting; one that fails is spoken of once, and the training goes on. Which of a tracker's runs is ours stands in
``tracking.json``, so that a training that is resumed goes on there, and rows that it has are not sent again: of an
epoch that was trained twice, since it came after the last checkpoint, the first row stays.

What leaves: settings, hashes of the split and of the images, versions, the device's name, scores, and pictures without
a radiograph. No image id, no patient, no path, no name of a user or a host. Radiographs only where somebody asked.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import folder_lock, read_json, write_json
from keras_pneumo.storage.tables import one_line
from keras_pneumo.training.logs.results import curves_of, radiographs_of, scores_of
from keras_pneumo.training.run_folder import REPORT

STATE = "tracking.json"
"""In a run folder: by tracker the id of its run, and what was sent."""

PACKAGES = {"tensorboard": "", "mlflow": "mlflow", "wandb": "wandb"}
"""The trackers, and what each needs. TensorBoard's events are written by TensorFlow, always; see :mod:`..log`."""

PROJECT = "keras_pneumo"
"""MLflow's experiment and W&B's project, where their own variables name no other."""

MOST_SECONDS, MOST_SECONDS_STOPPED = 120.0, 15.0
"""How long the end of a run, or of a stopped one, waits for a tracker that has not taken everything yet. A stopped one
has saved all by then; killed while MLflow makes a new store, it would leave half a one, and schedulers give 30 s."""

Row = dict[str, float]


class Tracker(Protocol):
    """One run in a tracker."""

    def send(self, rows: Sequence[Row]) -> None:
        """Send those of the log's rows that it does not have yet; each has ``epoch``."""

    def end(self, scores: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
        """Send the test scores and pictures (PNG), and mark the run as finished."""

    def close(self) -> None:
        """Let go of it; a run that did not end is marked as stopped."""


def chosen_trackers(text: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers of a list such as ``mlflow,wandb``, each once.

    Raises:
        PneumoError: there is no such tracker, or it is not installed.
    """
    named = text.split(",") if isinstance(text, str) else list(text)
    names = tuple(dict.fromkeys(name.strip().lower() for name in named if name.strip()))
    for name in names:
        if name not in PACKAGES:
            raise PneumoError(f"There is no tracker {name!r}. Choose from {', '.join(PACKAGES)}.")
        if PACKAGES[name] and find_spec(PACKAGES[name]) is None:
            raise PneumoError(f"{name} is not installed. Run: pip install 'keras-pneumo[tracking]'")
    return names


# ---------------------------------------------------------------- a run that is being tracked


class Feed:
    """A tracker and the thread that feeds it."""

    def __init__(self, name: str, folder: Path) -> None:
        """Start the thread; the tracker is opened there, with the first thing that is sent."""
        self.name = name
        self.folder = folder
        self.fault = ""
        """Why it was given up; blank while it works."""
        self.tasks: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            while (task := self.tasks.get()) is not None:
                tracker = tracker or OPEN[self.name](self.folder)
                task(tracker)
            if tracker is not None:
                tracker.close()
        except PneumoError as error:
            self.fault = str(error)
        except BaseException as error:  # of any library below it; a training must not end by it
            self.fault = one_line(str(error).split("\n")[0], 200) or type(error).__name__


@dataclass
class TrackedRun:
    """The trackers that a run is sent to."""

    folder: Path
    notify: Callable[[str], None]
    feeds: list[Feed] = field(default_factory=list)

    def epoch(self) -> None:
        """Send the rows of ``log.csv``."""
        if not self.feeds:
            return
        rows = log_rows(self.folder)
        self._put(lambda tracker: tracker.send(rows))

    def end(self, scores: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
        """Send the rows, the test scores and the pictures."""
        self.epoch()
        self._put(lambda tracker: tracker.end(scores, pictures))

    def close(self, seconds: float, stopped: bool = False) -> None:
        """Wait until everything was taken, at most so long.

        Args:
            seconds: how long.
            stopped: whether the training is to go on later: what was not taken is then sent by the next start.
        """
        for feed in self.feeds:
            feed.tasks.put(None)
        until = time.monotonic() + seconds
        for feed in self.feeds:
            feed.thread.join(max(until - time.monotonic(), 0))
            if feed.thread.is_alive() and not feed.fault and not stopped:
                feed.fault = f"it has not taken everything within {seconds:.0f} s"
        self._drop_failed()

    def _put(self, task: Callable[[Tracker], None]) -> None:
        self._drop_failed()
        for feed in self.feeds:
            feed.tasks.put(task)

    def _drop_failed(self) -> None:
        """Say of each tracker that has failed that it has, once."""
        for feed in [feed for feed in self.feeds if feed.fault]:
            self.feeds.remove(feed)
            self.notify(
                f"{feed.name} was given up: {feed.fault.rstrip('.')}. log.csv has every row. Send them later with "
                f"keras-pneumo track {self.folder} --log-to {feed.name}"
            )


@contextlib.contextmanager
def tracked(folder: Path, trackers: Sequence[str], notify: Callable[[str], None]) -> Iterator[TrackedRun]:
    """Send a run to trackers within this context.

    Args:
        folder: the run folder.
        trackers: from :func:`chosen_trackers`.
        notify: called with a sentence for each tracker that fails.
    """
    run = TrackedRun(folder, notify, [Feed(name, folder) for name in trackers if name in OPEN])
    try:
        yield run
    except BaseException:
        run.close(MOST_SECONDS_STOPPED, stopped=True)
        raise
    run.close(MOST_SECONDS)


def track_run(folder: Path, trackers: Sequence[str], radiographs: bool = False) -> None:
    """Send a run that was trained before: its rows, its test scores and its pictures.

    Args:
        folder: the run folder; one whose training goes on elsewhere is sent as far as it is.
        trackers: from :func:`chosen_trackers`.
        radiographs: whether its heat maps, where it has any, are sent too.

    Raises:
        PneumoError: it is no run folder, or a tracker does not take it.
    """
    rows = log_rows(folder)
    if not (folder / "experiment.json").is_file() or not rows:
        raise PneumoError(f"{folder} has no log of a training. Name the folder that train printed.")
    faults: list[str] = []
    with folder_lock(folder), tracked(folder, trackers, faults.append) as run:
        if (folder / REPORT).is_file():
            pictures = curves_of(folder) | (radiographs_of(folder, None) if radiographs else {})
            run.end(scores_of(folder), pictures)
        else:
            run.epoch()
    if faults:
        raise PneumoError(" ".join(faults))


def log_rows(folder: Path) -> list[Row]:
    """The rows of a run's log as numbers, without those that are missing; none where there is no log yet."""
    try:
        table = pd.read_csv(folder / "log.csv")
    except (OSError, ValueError):
        return []
    numbers = table.select_dtypes("number")
    return [
        {str(name): float(value) for name, value in row.items() if math.isfinite(value)}
        for row in numbers.to_dict("records")
    ]


def settings_of(folder: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """A run's name, the settings of its experiment, and facts about it; nothing that names a person or a path."""
    record = read_json(folder / "experiment.json")
    settings: dict[str, Any] = {}
    for name, value in record["experiment"].items():
        group = value if isinstance(value, dict) else {"": value}
        settings |= {f"{name}.{inner}" if inner else name: each for inner, each in group.items()}
    recorded = ("split_sha256", "prepared_sha256", "synthetic", "training_images", "validation_images", "parameters")
    facts = {name: str(record[name]) for name in (*recorded, "hardware", "strategy", "precision") if name in record}
    versions = {f"version.{name}": str(version) for name, version in record.get("versions", {}).items()}
    return folder.resolve().name, settings, facts | versions


def _state(folder: Path, tracker: str) -> dict[str, Any]:
    """What is known of a tracker's run; nothing where it is the first time."""
    try:
        known = read_json(folder / STATE)[tracker]
        return dict(known)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


_WRITING = threading.Lock()


def _keep(folder: Path, tracker: str, **values: Any) -> None:
    """Write what is known of a tracker's run."""
    with _WRITING:
        try:
            known = read_json(folder / STATE)
        except (OSError, ValueError):
            known = {}
        write_json(folder / STATE, known | {tracker: values})


# ---------------------------------------------------------------- the trackers


class _Mlflow:
    """A run in an MLflow store: the one that ``MLFLOW_TRACKING_URI`` names, or MLflow's own default."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = importlib.import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        self.entities = importlib.import_module("mlflow.entities")
        uri = str(mlflow.get_tracking_uri())
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        self.ended = False
        known = _state(folder, "mlflow")
        if known.get("uri") == uri and self._is_there(str(known.get("run_id"))):
            self.run_id = str(known["run_id"])
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self._new_run(folder)
            _keep(folder, "mlflow", uri=uri, run_id=self.run_id)
        # The store itself knows what it has; every row has its seconds.
        self.sent = {metric.step for metric in self.client.get_metric_history(self.run_id, "seconds")}

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:  # removed by somebody
            return False

    def _new_run(self, folder: Path) -> str:
        name, settings, facts = settings_of(folder)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(project)
        run_id = str(self.client.create_run(number, run_name=name, tags=facts).info.run_id)
        params = [self.entities.Param(key, str(value)[:500]) for key, value in settings.items()]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self.client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if (step := int(row["epoch"])) not in self.sent:
                self._log({name: value for name, value in row.items() if name != "epoch"}, step)
                self.sent.add(step)

    def end(self, scores: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
        there = self.client.get_run(self.run_id).data.metrics
        self._log({name: value for name, value in scores.items() if there.get(name) != value}, 0)
        for name, data in pictures.items():
            self.client.log_image(self.run_id, _as_array(data), artifact_file=name)
        self.client.set_terminated(self.run_id, "FINISHED")
        self.ended = True

    def close(self) -> None:
        if not self.ended:
            self.client.set_terminated(self.run_id, "KILLED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        if metrics:
            self.client.log_batch(self.run_id, metrics=metrics)


class _Wandb:
    """A run in Weights & Biases; with ``WANDB_MODE=offline`` a folder in the run folder, to be synced later."""

    def __init__(self, folder: Path) -> None:
        self.wandb = importlib.import_module("wandb")
        self.folder = folder
        known = _state(folder, "wandb")
        self.run_id, self.sent = str(known.get("id") or secrets.token_hex(8)), int(known.get("epoch", -1))
        self.ended = bool(known.get("ended"))
        self._keep()  # before anything else: a process that is killed meanwhile has a run of this id
        name, settings, facts = settings_of(folder)
        place = os.environ.get("WANDB_DIR", str(folder))
        # It names its folder by the second, and two of a run within one would be written over each other.
        while list(Path(place, "wandb").glob(f"*{time.strftime('%Y%m%d_%H%M%S')}-{self.run_id}")):
            time.sleep(0.1)
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            name=name,
            resume="allow",
            dir=place,
            config=settings | facts,
            settings=self.wandb.Settings(**_NO_NAMES),
        )

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if (epoch := int(row["epoch"])) > self.sent:
                self.run.log({name: value for name, value in row.items() if name != "epoch"}, step=epoch)
                self.sent = epoch
                self._keep()

    def end(self, scores: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
        self.run.summary.update(dict(scores))
        if pictures and not self.ended:
            self.run.log({Path(name).stem: self.wandb.Image(_as_array(data)) for name, data in pictures.items()})
        self.ended = True
        self._keep()

    def close(self) -> None:
        self.run.finish()

    def _keep(self) -> None:
        _keep(self.folder, "wandb", id=self.run_id, epoch=self.sent, ended=self.ended)


_NO_NAMES: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "host": "none",
    "username": "none",
    "email": "none",
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}
"""W&B would send the program's output, the user's, the host's and the repository's names, and the machine's load."""


def _as_array(png: bytes) -> Any:
    """A PNG as uint8 (H, W, 3): red, green, blue."""
    import cv2
    import numpy as np

    picture = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR))
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


OPEN: dict[str, Callable[[Path], Tracker]] = {"mlflow": _Mlflow, "wandb": _Wandb}
"""Opens a tracker's run of a run folder, the one that it has or a new one."""
