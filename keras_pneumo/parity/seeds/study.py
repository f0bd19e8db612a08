"""Trains both teams with several seeds, from the same starting weights each, and compares their scores.

In: an experiment, a prepared folder, the number of seeds and the margin. Out: a folder with everything, and a
:class:`FrameworkComparison`. For each seed the starting weights are exported once; ``keras-pneumo train`` draws the
same ones from the seed, and the PyTorch team's program reads them. Order, crops and augmentations are functions of the
seed on both sides. Each training is a process of its own, as a user would start it, one after the other.

::

    study.json                     experiment, data, seeds and margin, declared before the first training
    seed_0/experiment.json         the experiment with its seed
    seed_0/start.safetensors       the starting weights
    seed_0/keras/ torch/           run folder of ours; the PyTorch team's folder
    seed_0/torch_last_bit/         a control: PyTorch again, its start changed in the last bit
    seed_0/*.log                   what each training printed
    compare_frameworks.json .html  the answer

A comparison that was killed goes on when it is started again: finished trainings stay, ours go on from their last
checkpoint, and one of PyTorch's that was cut off begins anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from keras_pneumo.config import Experiment
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import AGAIN, REFUSED, ChildFailed, PneumoError, Stopped
from keras_pneumo.evaluation.board.entries import entry_sums, team_entry
from keras_pneumo.evaluation.compare import align_all
from keras_pneumo.evaluation.inputs.submission import INFO_FILE, examine_submission
from keras_pneumo.evaluation.inputs.truth import Truth, read_truth
from keras_pneumo.evaluation.scoring.scores import COMMON_SENSITIVITY, point_scores, replicate_scores
from keras_pneumo.evaluation.scoring.statistics import leave_one_out
from keras_pneumo.parity.backends import KEEP_MEMORY, in_checkout, last_line, torch_python
from keras_pneumo.parity.seeds.equivalence import (
    MARGIN,
    SeededDifference,
    Verdict,
    equivalence_verdict,
    seeded_difference,
)
from keras_pneumo.storage.files import folder_lock, read_json, require_writable, write_json
from keras_pneumo.storage.interruption import INTERRUPTED, Interruption
from keras_pneumo.training.run_folder import REPORT

Team = Literal["keras", "torch", "torch_last_bit"]

DECLARED, LOCK = "study.json", "training.lock"
TEAM_SCRIPTS = Path("experiments/torch_team")

TORCH_VARIABLES = {**KEEP_MEMORY, "OMP_WAIT_POLICY": "PASSIVE"}
"""How PyTorch's process is tuned: waiting threads would else keep shared cores busy."""

CONTROLS = 2
"""Default number of seeds whose PyTorch training is repeated from a start that differs in the last bit."""

COMPARED = {"classifier": ("auroc",), "segmenter": ("dice", "auroc")}
"""The scores that get a verdict, the headline's first."""


@dataclass(frozen=True)
class Training:
    """One training of the comparison."""

    seed: int
    team: Team
    folder: Path
    """Its run folder, or the PyTorch team's output folder."""

    @property
    def submission(self) -> Path:
        """Where its predictions are."""
        return self.folder / "submission"


@dataclass(frozen=True)
class Progress:
    """Where the comparison stands."""

    training: Training
    done: int
    total: int
    line: str
    """The last line that the training printed."""
    seconds_left: float | None
    """Of all trainings, as long as those that ended took; None before the first of each team has ended."""


@dataclass(frozen=True)
class Study:
    """What is compared, declared before the first training."""

    experiment: Experiment
    prepared: PreparedFolder
    out: Path
    seeds: int = 5
    """Trainings of each team; seeds follow the experiment's."""
    margin: float = MARGIN
    controls: int = CONTROLS

    @property
    def trainings(self) -> list[Training]:
        """All trainings in their order: seed by seed, so that a part of them can be compared."""
        listed: list[Training] = []
        for number, seed in enumerate(self.seed_numbers):
            teams: list[Team] = ["keras", "torch", *(["torch_last_bit"] if number < self.controls else [])]  # type: ignore[list-item]
            listed += [Training(seed, team, self.out / f"seed_{seed}" / team) for team in teams]
        return listed

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds."""
        return [self.experiment.seed + number for number in range(self.seeds)]


@dataclass(frozen=True)
class FrameworkComparison:
    """The scores of all trainings, and what follows from them."""

    study: Study
    truth: Truth
    scores: pd.DataFrame
    """A row per training: ``seed``, ``team``, ``training_hours``, ``wall_seconds``, and each score."""
    differences: dict[str, SeededDifference]
    """Of each score that both teams have: Keras minus PyTorch."""
    verdicts: dict[str, Verdict]
    """Of the scores of :data:`COMPARED`."""
    declared: dict[str, Any]
    """The content of study.json."""
    versions: dict[str, str] = field(default_factory=dict)
    """Framework of each team, as its submission declares it."""

    @property
    def headline(self) -> str:
        """The score that the verdict is about first."""
        return next(iter(self.verdicts))

    def controls(self, score: str) -> pd.DataFrame:
        """How far trainings differ: ``pairs``, and the mean and largest absolute difference, a row for each reason."""
        by_team = {
            team: self.scores[self.scores["team"] == team].set_index("seed")[score]
            for team in ("keras", "torch", "torch_last_bit")
        }
        again = by_team["torch_last_bit"]
        rows = {
            "Keras and PyTorch, same seed": (by_team["keras"] - by_team["torch"]).abs().to_numpy(),
            "Keras and Keras, other seed": _all_pairs(by_team["keras"].to_numpy()),
            "PyTorch and PyTorch, other seed": _all_pairs(by_team["torch"].to_numpy()),
            "PyTorch and PyTorch, same seed, start changed in the last bit": (
                (by_team["torch"].loc[again.index] - again).abs().to_numpy()
            ),
        }
        return pd.DataFrame(
            [
                {"what": what, "pairs": len(gaps), "mean": float(gaps.mean()), "largest": float(gaps.max())}
                for what, gaps in rows.items()
                if len(gaps)
            ],
            columns=["what", "pairs", "mean", "largest"],
        )


def _all_pairs(values: np.ndarray) -> np.ndarray:
    """The absolute difference of any two values."""
    first, second = np.triu_indices(len(values), 1)
    return np.abs(values[first] - values[second])


def compare_frameworks(
    study: Study,
    python: Path | None = None,
    script: Path | None = None,
    keras_command: Sequence[str] | None = None,
    weights: Path | None = None,
    progress: Callable[[Progress], None] = lambda now: None,
) -> FrameworkComparison:
    """Train what is not trained yet, and compare.

    Args:
        study: what to compare.
        python: see :func:`keras_pneumo.parity.backends.torch_python`.
        script: the PyTorch team's program; default: that of ``experiments/torch_team`` for the task.
        keras_command: how our side is started, before ``train``; default: this Python with this package.
        weights: where ImageNet's weights are, or a safetensors file that both teams start from.
        progress: called about once a second while a training runs.

    Raises:
        PneumoError: there is no PyTorch environment, the folder holds another comparison, or a training failed.
        Stopped: a signal came; the training was ended, and the same command goes on.
    """
    if study.seeds < 1:
        raise PneumoError(f"The number of seeds is {study.seeds}, but it must be at least 1, better 5.")
    if not 0 < study.margin < 1:
        raise PneumoError(f"The margin is {study.margin}, but it must be between 0 and 1, such as {MARGIN}.")
    interpreter = torch_python(python)
    script = script or _team_script(study.experiment.task)
    command = list(keras_command or [sys.executable, "-m", "keras_pneumo"])
    require_writable(study.out)
    with folder_lock(study.out):
        declared = declare(study)
        _carry_out(study, _Commands(command, interpreter, script, weights), progress)
        return evaluate(study, declared)


def declare(study: Study) -> dict[str, Any]:
    """Write what is compared and the margin before the first training, or check them against what stands there.

    More seeds may follow later, which is recorded; everything else must stay.

    Raises:
        PneumoError: the folder holds a comparison of something else, or with another margin.
    """
    path = study.out / DECLARED
    own: dict[str, Any] = {
        "experiment": study.experiment.model_dump(mode="json"),
        "split_sha256": study.prepared.manifest["split_sha256"],
        "margin": study.margin,
    }
    seeds = {"seeds": study.seeds, "controls": study.controls, "declared": _now()}
    if not path.exists():
        if any(child.name.startswith("seed_") for child in study.out.iterdir()):
            raise PneumoError(f"{study.out} holds trainings, but no {DECLARED}. Give another --out.")
        record = {**own, "rounds": [seeds]}
        write_json(path, record)
        return record
    try:
        record = read_json(path)
        rounds = list(record["rounds"])
        last = int(rounds[-1]["seeds"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise PneumoError(f"{path} could not be read ({error}). Give another --out.") from None
    names = {"experiment": "another experiment", "split_sha256": "other data"}
    other = [text for name, text in names.items() if record.get(name) != own[name]]
    if other:
        raise PneumoError(f"{study.out} holds a comparison of {' and '.join(other)}. Give another --out.")
    if record["margin"] != study.margin:
        raise PneumoError(
            f"The margin {record['margin']:g} was declared before the first training and cannot be changed to "
            f"{study.margin:g} now. Leave --margin {record['margin']:g}, or give another --out."
        )
    if study.seeds < last:
        raise PneumoError(f"{study.out} was declared with {last} seeds, and now there are {study.seeds}. Give {last}.")
    if study.seeds > last:
        record["rounds"] = [*rounds, seeds]
        write_json(path, record)
    return dict(record)


@dataclass(frozen=True)
class _Commands:
    """How the trainings are started."""

    keras: list[str]
    python: Path
    script: Path
    weights: Path | None

    @property
    def given_weights(self) -> list[str]:
        return ["--weights", str(self.weights)] if self.weights else []


def _carry_out(study: Study, commands: _Commands, progress: Callable[[Progress], None]) -> None:
    """All trainings that have not ended, one after the other."""
    trainings = study.trainings
    done = {training for training in trainings if is_done(training)}
    seconds = _wall_seconds(study)
    interruption = Interruption()
    with interruption.listening():
        for training in trainings:
            if training in done:
                continue

            def show(line: str, began: float, training: Training = training) -> None:
                left = seconds_left(seconds, [t for t in trainings if t not in done], time.monotonic() - began)
                progress(Progress(training, len(done), len(trainings), line, left))

            taken = _train(training, study, commands, show, interruption)
            earlier = seconds.get((training.seed, training.team), 0.0)  # of a training that was cut off and went on
            seconds[training.seed, training.team] = earlier + taken
            write_json(_wall_file(training), {"seconds": earlier + taken})
            done.add(training)


def seconds_left(seconds: dict[tuple[int, str], float], waiting: list[Training], passed: float) -> float | None:
    """The time that the trainings still take, if each takes as long as its team's did; the first of them runs now.

    Args:
        seconds: of each training that ended, by seed and team.
        waiting: those that have not ended, the first one running.
        passed: seconds since that one began.

    Returns:
        None where a team of them has no training that ended. A control counts as PyTorch's.
    """
    means: dict[str, float] = {}
    for kind in ("keras", "torch"):
        own = [value for (_, team), value in seconds.items() if team.startswith(kind)]
        if own:
            means[kind] = float(np.mean(own))
    kinds = [training.team.split("_")[0] for training in waiting]
    if any(kind not in means for kind in kinds):
        return None
    return sum(means[kind] for kind in kinds) - min(passed, means[kinds[0]] if kinds else 0.0)


def is_done(training: Training) -> bool:
    """Whether a training has ended and left its submission."""
    last = training.folder / REPORT if training.team == "keras" else training.submission / INFO_FILE
    return last.is_file()  # the last file that the team writes


def _train(
    training: Training,
    study: Study,
    commands: _Commands,
    show: Callable[[str, float], None],
    interruption: Interruption,
) -> float:
    """Carry out one training; the seconds that it took."""
    folder = study.out / f"seed_{training.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    experiment = folder / "experiment.json"
    write_json(experiment, study.experiment.replace(seed=training.seed).model_dump(mode="json"))
    data = str(study.prepared.folder.resolve())
    if training.team == "keras":
        argv: list[str | Path] = [
            *commands.keras,
            "train",
            experiment,
            "--data",
            data,
            "--out",
            training.folder,
            *commands.given_weights,
        ]
        return _run(argv, training, study, {}, show, interruption)
    start = folder / "start.safetensors"
    if not start.exists():
        unfinished = start.with_suffix(".part.safetensors")
        unfinished.unlink(missing_ok=True)
        export: list[str | Path] = [*commands.keras, "export", experiment, "--out", unfinished]
        _run([*export, *commands.given_weights], training, study, {}, show, interruption)
        unfinished.rename(start)
    if training.team == "torch_last_bit":
        changed = folder / "start_last_bit.safetensors"
        change_last_bit(start, changed)
        start = changed
    shutil.rmtree(training.folder, ignore_errors=True)  # what a training that was cut off left
    masks = shlex.join([*commands.keras, "masks"])
    argv = [commands.python, commands.script, "--experiment", experiment, "--init", start, "--data", data]
    argv += ["--out", training.folder, *(["--masks", masks] if study.experiment.task == "segmenter" else [])]
    return _run(argv, training, study, TORCH_VARIABLES, show, interruption)


def change_last_bit(start: Path, changed: Path) -> None:
    """Write starting weights whose first convolution differs in the last bit of every number."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(start, "numpy") as file:
        notes = file.metadata()
    weights = load_file(start)
    name = next(name for name, value in sorted(weights.items()) if name.endswith("conv1.weight"))
    weights[name] = np.nextafter(weights[name], np.float32(np.inf))
    save_file(weights, changed, notes)


def _run(
    argv: Sequence[str | Path],
    training: Training,
    study: Study,
    variables: dict[str, str],
    show: Callable[[str, float], None],
    interruption: Interruption,
) -> float:
    """Run a command to its end; its output goes to the log beside the training's folder."""
    log = training.folder.with_name(f"{training.team}.log")
    began = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"} | variables
    with _training_lock(study.out) as lock, log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(lock,),
        )
        asked = False
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                    break
                show(last_line(log), began)
                if interruption.number is not None and not asked:
                    process.send_signal(interruption.number)  # ours finishes its step and saves
                    asked = True
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if interruption.wanted:
        raise Stopped(f"{interruption.name} came. Start the same command again to go on.", interruption.exit_code)
    if process.returncode in (AGAIN, INTERRUPTED):
        raise Stopped(
            f"The training of {team_name(training.team)} with seed {training.seed} was stopped: {last_line(log)} Start "
            "the same command again to go on.",
            process.returncode,
        )
    if process.returncode:
        # A refusal is of what the user gave; anything else is a fault of the program that trains.
        kind = PneumoError if process.returncode == REFUSED else ChildFailed
        raise kind(
            f"The training of {team_name(training.team)} with seed {training.seed} failed: {last_line(log)} Its "
            f"output is in {log}. What has ended is kept: mend the cause and start the same command again."
        )
    return time.monotonic() - began


@contextlib.contextmanager
def _training_lock(folder: Path) -> Iterator[int]:
    """A lock that the training's process inherits, so that it holds even after this process was killed.

    Raises:
        PneumoError: a training of an earlier start still runs.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PneumoError(
                f"A training that an earlier start of this comparison began still runs in {folder}. Wait until it has "
                "ended, or end it, and start the same command again."
            ) from None
        yield handle
    finally:
        os.close(handle)


def _wall_file(training: Training) -> Path:
    return training.folder.with_name(f"{training.team}.time.json")


def _wall_seconds(study: Study) -> dict[tuple[int, str], float]:
    """Seconds of the trainings that ended, from start to end of their processes."""
    seconds: dict[tuple[int, str], float] = {}
    for training in study.trainings:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = read_json(_wall_file(training))
            seconds[training.seed, training.team] = float(record["seconds"])
    return seconds


def evaluate(study: Study, declared: dict[str, Any]) -> FrameworkComparison:
    """Score all trainings on the test patients and compare the two teams, by the referee's own code.

    Raises:
        PneumoError: a submission is refused.
    """
    truth = read_truth(study.prepared.folder)
    trainings = study.trainings
    aligned = align_all([examine_submission(training.submission) for training in trainings], truth)
    entries = [team_entry(t.team, t.team, one, truth) for t, one in zip(trainings, aligned, strict=True)]
    sums = [entry_sums(entry, truth, COMMON_SENSITIVITY) for entry in entries]
    points = [point_scores(table) for table in sums]
    left_out = replicate_scores(sums, leave_one_out(truth.n_patients))
    seconds = _wall_seconds(study)
    rows: list[dict[str, Any]] = [
        {
            "seed": training.seed,
            "team": training.team,
            "training_hours": one.info.training_hours,
            "wall_seconds": seconds.get((training.seed, training.team), float("nan")),
            **point,
        }
        for training, one, point in zip(trainings, aligned, points, strict=True)
    ]
    of_team = {
        team: [number for number, training in enumerate(trainings) if training.team == team]
        for team in ("keras", "torch")
    }
    differences = paired_differences(points, left_out, of_team["keras"], of_team["torch"], truth)
    verdicts = {
        name: equivalence_verdict(differences[name], study.margin)
        for name in COMPARED[study.experiment.task]
        if name in differences
    }
    if not verdicts:
        raise PneumoError(
            f"No score can be compared: the test images of {study.prepared.folder} do not define "
            f"{' or '.join(COMPARED[study.experiment.task])} for both teams, or not without some patient. "
            "Prepare more test patients."
        )
    versions: dict[str, str] = {t.team: one.info.framework for t, one in zip(trainings, aligned, strict=True)}
    return FrameworkComparison(study, truth, pd.DataFrame(rows), differences, verdicts, declared, versions)


def paired_differences(
    points: Sequence[Mapping[str, float]],
    left_out: Sequence[Mapping[str, np.ndarray]],
    first: Sequence[int],
    second: Sequence[int],
    truth: Truth,
) -> dict[str, SeededDifference]:
    """The mean difference of each score between two groups of trainings, seed by seed and patient by patient.

    Args:
        points: of each training, its scores.
        left_out: of each training, its scores with each patient left out: (patients,).
        first: which trainings are the first group, in the order of their seeds.
        second: those of the second group, of the same seeds.
        truth: the scored images.

    Returns:
        First minus second; scores that one of them does not have, or not without some patient, are left out.
    """
    with_positives = np.zeros(truth.n_patients, bool)
    with_positives[truth.patient_codes[truth.pneumothorax]] = True
    differences = {}
    for name in points[0]:
        one, other = (np.array([points[number].get(name, np.nan) for number in group]) for group in (first, second))
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            continue
        apart = np.stack([left_out[a][name] - left_out[b][name] for a, b in zip(first, second, strict=True)])
        if np.isfinite(apart).all():
            differences[name] = seeded_difference(one - other, apart, with_positives)
    return differences


def team_name(team: str) -> str:
    """A team as a person reads it."""
    return {"keras": "Keras", "torch": "PyTorch", "torch_last_bit": "PyTorch, last bit changed"}[team]


def _team_script(task: str) -> Path:
    name = TEAM_SCRIPTS / f"{task}.py"
    if path := in_checkout(name):
        return path
    raise PneumoError(f"The PyTorch team's program {name} was not found. Run this in a checkout of the project.")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
