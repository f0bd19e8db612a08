"""A sweep: trials of an experiment with other settings, chosen by Optuna, compared on the validation images.

In: an experiment, a prepared folder, and a space (a TOML file: which settings, and from where to where). Out: a folder
with a run folder for each trial, ``trials.csv``, ``sweep.png`` and ``best.py``, the best trial as an experiment file.

Optuna (Akiba et al., arXiv 1907.10902) suggests the settings (TPE, after ten random ones) and ends trials whose
validation score is below the median of the earlier ones at the same epoch (after five trials, and from the second epoch
of the whole network on). All it knows is in
``sweep.db`` (SQLite), so a sweep that was interrupted or killed goes on when it is started again, and the trial that
was under way goes on from its checkpoint. The training is :func:`keras_pneumo.training.trainer.train`, with the same
images, order and seed for every trial. No trial predicts the test images, so nothing can be chosen by them.
"""

from __future__ import annotations

import itertools
import json
import math
import pprint
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from keras_pneumo.config import (
    CLASSIFIER,
    SEGMENTER,
    Experiment,
    Settings,
    number_kind,
    read_experiment,
    setting_field,
    setting_names,
    with_settings,
)
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import Diverged, PneumoError
from keras_pneumo.storage.files import folder_lock, read_json, settle, write_bytes, write_json, write_table
from keras_pneumo.storage.tables import counted, listed
from keras_pneumo.training import checkpoints
from keras_pneumo.training.log import BEST_COLOR, TRAINING_COLOR, VALIDATION_COLOR, EpochRow, save_figure
from keras_pneumo.training.run_folder import RUNS, is_trained, new_folder, progress_of
from keras_pneumo.training.trainer import TrainingOptions, train

if TYPE_CHECKING:
    import optuna

RECORD, DATABASE, TABLE, FIGURE, BEST = "sweep.json", "sweep.db", "trials.csv", "sweep.png", "best.py"

FIXED = ("name", "task", "seed", "fold")
"""Settings in which trials do not differ, since their scores could not be compared or would be luck."""

MOST_CORNERS = 4096
"""Combinations of ends and choices that are checked beforehand; of a larger space each value alone."""

State = Literal["complete", "pruned", "failed"]


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, both included: all of them, or those a ``step`` apart."""

    low: float
    high: float
    log: bool = False
    """Whether the logarithm is drawn from uniformly, so that 1e-4 to 1e-3 is as likely as 1e-3 to 1e-2."""
    step: float | None = None
    whole: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The least and the largest value, and the one next to the least."""
        ends = [self.low, self.high, *([self.low + self.step] if self.step else [])]
        return tuple(int(end) if self.whole else float(end) for end in ends)


class Choice(NamedTuple):
    """Some values of any kind."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values


Space = dict[str, Range | Choice]
"""What each setting is drawn from; names as ``--set`` takes them."""


class Trial(NamedTuple):
    """A trial that has ended."""

    number: int
    settings: dict[str, Any]
    state: State
    score: float | None
    """The best epoch's validation score; of a pruned trial the last epoch's; None of a failed one."""
    best: bool
    """Whether it is the best so far."""


@dataclass(frozen=True)
class SweepResult:
    """A sweep that has ended."""

    folder: Path
    experiment: Experiment
    """The best trial's, as ``best.py`` declares it."""
    run: Path
    """The best trial's run folder."""
    score: float
    """Its validation score."""
    score_name: str
    counts: dict[str, int]
    """How many trials ended complete, pruned and failed."""


def require_optuna() -> None:
    """Refuse to sweep without Optuna.

    Raises:
        PneumoError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise PneumoError("A sweep needs Optuna, which is not installed. Run: pip install 'keras-pneumo[sweep]'")


# ---------------------------------------------------------------- the space


def read_space(path: Path, experiment: Experiment) -> Space:
    """Read a space, a TOML file, and check that each of its values is one that the experiment may have.

    A line is ``learning_rate = {low = 1e-4, high = 1e-2, log = true}`` or ``global_batch_size = [8, 16]``; settings of
    a group are written ``augmentation.rotate``.

    Raises:
        PneumoError: the file cannot be read, or names a setting or a value that cannot be; it names which.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PneumoError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PneumoError(
            f"{path} is no TOML file: {error}. Write a line for each setting, such as "
            "learning_rate = {low = 1e-4, high = 1e-2, log = true}."
        ) from None
    space = {name: _drawn_from(name, value, path) for name, value in _flat(content)}
    if not space:
        raise PneumoError(f"{path} names no setting. Write a line for each, such as global_batch_size = [8, 16].")
    for name, drawn in space.items():
        for value in drawn.ends:
            with_settings(experiment, [f"{name}={_text(value)}"], str(path))
    corners = [[f"{name}={_text(value)}" for value in drawn.ends] for name, drawn in space.items()]
    if math.prod(map(len, corners)) <= MOST_CORNERS:
        for texts in itertools.product(*corners):
            with_settings(experiment, texts, f"{path}, {' '.join(texts)},")
    return space


def _flat(table: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a TOML file with what is said of it; those of groups as ``group.name``."""
    for name, value in table.items():
        if isinstance(value, dict) and not group and name not in setting_names(Experiment) and not _is_range(value):
            yield from _flat(value, f"{name}.")
        else:
            yield group + name.replace("-", "_"), value


def _is_range(value: Mapping[str, Any]) -> bool:
    return bool({"low", "high"} & value.keys())


def _drawn_from(name: str, value: Any, path: Path) -> Range | Choice:
    """What one setting is drawn from.

    Raises:
        PneumoError: it does not exist, is not to be swept, or what is said of it has no such form.
    """
    where = f"{path}, {name}"
    if name not in setting_names(Experiment):
        with_settings(CLASSIFIER, [f"{name}=0"], str(path))  # refuses it, and suggests the right one
    if name in FIXED:
        raise PneumoError(
            f"{where}: it is the same in all trials, or their scores could not be compared. Leave it out, or give it "
            "with --set."
        )
    if isinstance(value, list):
        if len(value) < 2 or any(value.count(each) > 1 for each in value):
            raise PneumoError(f"{where}: a list of two or more different values is needed, or low and high.")
        return Choice(tuple(each if isinstance(each, str | int | float | bool) else json.dumps(each) for each in value))
    if not isinstance(value, dict):
        raise PneumoError(f"{where} is one value. Give it with --set {name}={_text(value)}, or write a list here.")
    if unknown := sorted(value.keys() - {"low", "high", "log", "step"}):
        raise PneumoError(f"{where}: there is no {unknown[0]}. Write low, high and, where they help, log and step.")
    kind = number_kind(name)
    if kind is None:
        raise PneumoError(f"{where} is no number. Write the values as a list.")
    low, high, log, step = value.get("low"), value.get("high"), value.get("log", False), value.get("step")
    numbers = [low, high, *([step] if step is not None else [])]
    if any(isinstance(each, bool) or not isinstance(each, kind if kind is int else int | float) for each in numbers):
        raise PneumoError(f"{where}: low and high, and step if given, must be {'whole ' * (kind is int)}numbers.")
    assert low is not None
    assert high is not None
    if not isinstance(log, bool):
        raise PneumoError(f"{where}: log is true or false. Write one of these.")
    if not low < high or (log and low <= 0):
        raise PneumoError(f"{where}: low must be less than high{', and above 0 for log' if log else ''}.")
    if kind is int and step is None and not log:
        step = _multiple_of(name)
    if step is not None and (step <= 0 or log or (high - low) / step != round((high - low) / step)):
        raise PneumoError(f"{where}: high must be low and some steps, and log needs no step. Change one of them.")
    return Range(low, high, log, step, kind is int)


def _multiple_of(name: str) -> int:
    """The least step of a whole number: 32 of an image size."""
    steps = [getattr(limit, "multiple_of", None) for limit in setting_field(name).metadata]
    return next((step for step in steps if step), 1)


def _text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """The space as Optuna takes it."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {}
    for name, drawn in space.items():
        if isinstance(drawn, Choice):
            result[name] = CategoricalDistribution(drawn.values)
        elif drawn.whole:
            low, high = int(drawn.low), int(drawn.high)
            result[name] = IntDistribution(low, high, log=drawn.log, step=int(drawn.step or 1))
        else:
            result[name] = FloatDistribution(drawn.low, drawn.high, log=drawn.log, step=drawn.step)
    return result


# ---------------------------------------------------------------- the sweep


def sweep(
    experiment: Experiment,
    prepared: PreparedFolder,
    space: Space,
    trials: int,
    out: Path | None = None,
    options: TrainingOptions | None = None,
    *,
    weights: Path | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> SweepResult:
    """Train trials until there are ``trials`` of them, counting those of earlier starts, and write down the best.

    Args:
        experiment: what all trials have in common.
        prepared: images, labels and split.
        space: from :func:`read_space`.
        trials: how many in all.
        out: the sweep's folder, a new one or that of an unfinished sweep; default: ``runs/NAME-sweep``.
        options: devices, messages; its ``resume`` is set by what a trial's folder holds.
        weights: as in :func:`keras_pneumo.training.trainer.train`.
        on_trial: called with each trial that has ended.

    Raises:
        PneumoError: Optuna is missing, ``out`` holds something else or a sweep of another space, no trial gave a
            score, or as :func:`keras_pneumo.training.trainer.train`.
        Stopped: a signal came; the same call again goes on.
    """
    require_optuna()
    _check_sizes(experiment, prepared, space)
    folder = out or RUNS / f"{experiment.name}-sweep"
    options = options or TrainingOptions()
    with folder_lock(folder):
        _begin(folder, experiment, prepared, space, weights)
        return _Sweep(experiment, prepared, space, folder, options, weights, on_trial).run(trials)


def _begin(folder: Path, experiment: Experiment, prepared: PreparedFolder, space: Space, weights: Path | None) -> None:
    """Write down in an empty folder what is swept, or compare it with what the folder says; the caller has the lock.

    Raises:
        PneumoError: it holds something else.
    """
    own = {
        "experiment": experiment.model_dump(mode="json"),
        "space": {name: list(drawn) for name, drawn in space.items()},
        "split_sha256": prepared.manifest["split_sha256"],
        "prepared_sha256": prepared.manifest["prepared_sha256"],
        "weights": str(weights) if weights is not None else None,
    }
    if not (folder / RECORD).is_file():
        settle(folder)
        new_folder(folder, experiment.name)
        write_json(folder / RECORD, {"format": 1, "synthetic": prepared.synthetic, **own})
    try:
        record = read_json(folder / RECORD)
        differing = [name for name, value in json.loads(json.dumps(own)).items() if record.get(name) != value]
    except (OSError, ValueError, AttributeError):
        differing = [RECORD]
    if differing:
        raise PneumoError(
            f"{folder} holds a sweep that differs in {listed(differing)}. Choose another --out, or give the same "
            "again to go on with it."
        )


def _check_sizes(experiment: Experiment, prepared: PreparedFolder, space: Space) -> None:
    """Refuse image sizes that are not prepared, before anything is trained."""
    drawn = space.get("image_size")
    sizes: set[int] = {experiment.image_size}
    if isinstance(drawn, Choice):
        sizes = {int(value) for value in drawn.values}
    elif drawn is not None:
        sizes = set(range(int(drawn.low), int(drawn.high) + 1, int(drawn.step or 1)))
    missing = sorted(sizes - {int(text) for text in prepared.manifest["sizes"]})
    if missing:
        raise PneumoError(
            f"{prepared.folder} does not hold the image size {listed(missing)}. Run prepare on the same data and "
            f"folder with {' '.join(f'--size {size}' for size in missing[:5])}."
        )


class _Sweep:
    """One sweep while it runs."""

    def __init__(
        self,
        experiment: Experiment,
        prepared: PreparedFolder,
        space: Space,
        folder: Path,
        options: TrainingOptions,
        weights: Path | None,
        on_trial: Callable[[Trial], None],
    ) -> None:
        """Open what Optuna knows of earlier trials, or begin."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.experiment, self.prepared, self.space = experiment, prepared, space
        self.folder, self.options, self.weights, self.on_trial = folder, options, weights, on_trial
        self.score_name = "validation Dice" if experiment.task == "segmenter" else "validation AUROC"
        storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).absolute()}")
        self.study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=experiment.frozen_epochs + 2),
        )
        # A sampler that starts again would draw the first random settings again.
        drawn = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=experiment.seed + drawn)

    def run(self, trials: int) -> SweepResult:
        """Train what is left of ``trials`` trials; see :func:`sweep`."""
        from optuna.trial import TrialState

        for left in self.study.get_trials(states=(TrialState.RUNNING,)):  # a process was stopped or killed in it
            self.run_trial(left.number, left.params, None)
        while len(self.study.get_trials(deepcopy=False)) < trials:
            trial = self.study.ask(_distributions(self.space))
            self.run_trial(trial.number, trial.params, trial)
        self.write()
        best = self.best()
        if best is None:
            raise PneumoError(
                f"None of {counted(trials, 'trial')} in {self.folder} gave a finite {self.score_name}. Lower the "
                "learning rates of the space, and sweep into another folder."
            )
        names = [trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False)]
        counts = {state: names.count(name) for state, name in (("complete",) * 2, ("pruned",) * 2, ("failed", "fail"))}
        value = best.value
        assert value is not None
        chosen = self.experiment_of(best.number, best.params)
        return SweepResult(self.folder, chosen, self.run_folder(best.number), value, self.score_name, counts)

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The complete trial with the highest score; of two equal ones the first."""
        from optuna.trial import TrialState

        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    def run_folder(self, number: int) -> Path:
        """A trial's run folder."""
        return self.folder / f"trial_{number:03d}"

    def experiment_of(self, number: int, values: Mapping[str, Any]) -> Experiment:
        """A trial's experiment, named after the trial."""
        texts = [f"{name}={_text(value)}" for name, value in values.items()]
        return with_settings(self.experiment, [*texts, f"name={self.experiment.name[:50]}-trial-{number:03d}"])

    def run_trial(self, number: int, values: Mapping[str, Any], trial: optuna.trial.Trial | None) -> None:
        """Train one trial and tell Optuna; without ``trial`` it goes on after a stop, and is not pruned."""
        import optuna
        from optuna.trial import TrialState

        folder, experiment = self.run_folder(number), self.experiment_of(number, values)
        folder.mkdir(exist_ok=True)
        resume = progress_of(folder, experiment, self.prepared) == "unfinished"
        state: State = "complete"

        def on_epoch(row: EpochRow) -> None:
            self.options.on_epoch(row)
            if trial is not None and np.isfinite(row.score):
                trial.report(row.score, row.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            if not is_trained(folder):
                self.train(experiment, folder, resume, on_epoch)
            log = pd.read_csv(folder / "log.csv")
            best = log[log["best"] == 1].iloc[-1]
            score = float(best["validation_dice"] if "validation_dice" in log else best["validation_auroc"])
            self.study.tell(number, score)
        except Diverged as fault:
            self.options.notify(f"Trial {number}: {fault}")
            state = "failed"
            self.study.tell(number, state=TrialState.FAIL)
        except optuna.TrialPruned:
            state = "pruned"
            checkpoints.keep(folder, 0)  # nothing goes on from them
            self.study.tell(number, state=TrialState.PRUNED)
        self.write()
        told, best_one = self.study.get_trials()[number], self.best()
        is_best = best_one is not None and best_one.number == number
        self.on_trial(Trial(number, dict(values), state, told.value, is_best))

    def train(self, experiment: Experiment, folder: Path, resume: bool, on_epoch: Callable[[EpochRow], None]) -> None:
        """The training of one trial, as ``train`` does it."""
        keras.utils.clear_session()  # of the trial before
        options = replace(self.options, resume=resume, on_epoch=on_epoch)
        train(experiment, self.prepared, folder, options, weights=self.weights)

    # ------------------------------------------------------------ what is written

    def write(self) -> None:
        """Write the table, the figure and the best trial's experiment file as they are now."""
        trials = [trial for trial in self.study.get_trials() if trial.state.is_finished()]
        rows = [
            {
                "trial": trial.number,
                "state": {"fail": "failed"}.get(trial.state.name.lower(), trial.state.name.lower()),
                "score": trial.value,
                **trial.params,
                "folder": self.run_folder(trial.number).name,
            }
            for trial in trials
        ]
        write_table(self.folder / TABLE, pd.DataFrame(rows))
        curves = [_scores_by_epoch(self.run_folder(trial.number)) for trial in trials]
        figure = draw_sweep(pd.DataFrame(rows), curves, self.space, self.score_name, self.prepared.synthetic)
        save_figure(figure, self.folder / FIGURE)
        best = self.best()
        if best is not None:
            self.write_best(best, len(trials))

    def write_best(self, best: optuna.trial.FrozenTrial, trials: int) -> None:
        """Write the best trial as an experiment file."""
        experiment = self.experiment_of(best.number, best.params)
        kind = "synthetic phantoms" if self.prepared.synthetic else "validation images"
        text = experiment_text(
            experiment,
            f"Is the best of {counted(trials, 'trial')} of {self.experiment.name} good on other patients?\n\n"
            f"Needs: the data of the sweep, split {str(self.prepared.manifest['split_sha256'])[:12]}.\n"
            f"Result: {self.score_name} {best.value:.4f} ({kind}), by which it was chosen: on others expect less.\n",
        )
        path = self.folder / BEST
        write_bytes(path, text.encode())
        if read_experiment(path) != experiment:
            raise AssertionError(f"{path} does not say what the trial was")


def _scores_by_epoch(folder: Path) -> dict[int, float]:
    """The validation scores in a run folder's log; of a trial that went on after a stop, those before it too."""
    if not (folder / "log.csv").is_file():
        return {}
    log = pd.read_csv(folder / "log.csv")
    scores = log["validation_dice" if "validation_dice" in log else "validation_auroc"]
    return dict(zip(log["epoch"].astype(int).tolist(), scores.tolist(), strict=True))


def experiment_text(experiment: Experiment, docstring: str) -> str:
    """An experiment as a Python file: what differs from its task's base, under a docstring."""
    base_name = "SEGMENTER" if experiment.task == "segmenter" else "CLASSIFIER"
    base = SEGMENTER if experiment.task == "segmenter" else CLASSIFIER
    lines = []
    for name in type(experiment).model_fields:
        value, default = getattr(experiment, name), getattr(base, name)
        if value == default:
            continue
        if isinstance(value, Settings):
            inner = {key: each for key, each in value.model_dump().items() if each != getattr(default, key)}
            text = f"base.{name}.replace({', '.join(f'{key}={each!r}' for key, each in inner.items())})"
        else:
            text = pprint.pformat(value, width=100)
        lines.append(f"    {name}={text},\n")
    return (
        f'"""{docstring}"""\n\nfrom keras_pneumo.config import {base_name} as base\n\n'
        f"EXPERIMENT = base.replace(\n{''.join(lines)})\n"
    )


def draw_sweep(
    trials: pd.DataFrame, curves: list[dict[int, float]], space: Space, score_name: str, synthetic: bool
) -> Figure:
    """The scores of all trials by their order, by epoch, and by each setting.

    Args:
        trials: as in ``trials.csv``.
        curves: of each trial the validation score by epoch.
        space: which settings, and whether their axis is logarithmic.
        score_name: the score's name.
        synthetic: whether the images are phantoms, for the title.
    """
    columns = min(3, 2 + len(space))
    rows = -(-(2 + len(space)) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    complete, pruned = (trials[trials["state"] == state] for state in ("complete", "pruned"))
    best = complete.loc[[complete["score"].idxmax()]] if len(complete) else complete

    def scatter(axis: Axes, at: pd.Series) -> None:
        """Each trial's score at its place."""
        axis.plot(at[pruned.index], pruned["score"], "x", color=TRAINING_COLOR, label="pruned")
        axis.plot(at[complete.index], complete["score"], "o", color=VALIDATION_COLOR, label="complete")
        axis.plot(at[best.index], best["score"], "o", color=BEST_COLOR, markersize=10, fillstyle="none", label="best")

    scatter(axes[0], trials["trial"])
    axes[0].plot(complete["trial"], complete["score"].cummax(), color=BEST_COLOR, linewidth=1, drawstyle="steps-post")
    axes[0].set_xlabel("trial")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(frameon=False, fontsize=8)
    for number, curve in zip(trials["trial"], curves, strict=True):
        is_best = len(best) and number == best["trial"].iloc[0]
        color = BEST_COLOR if is_best else TRAINING_COLOR
        epochs = sorted(curve)
        width = 1.8 if is_best else 0.8
        axes[1].plot(epochs, [curve[epoch] for epoch in epochs], color=color, linewidth=width, marker="o", markersize=3)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, (name, drawn) in zip(axes[2:], space.items(), strict=False):
        if isinstance(drawn, Choice):
            places = {value: place for place, value in enumerate(map(str, drawn.values))}
            scatter(axis, trials[name].astype(str).map(places))
            axis.set_xticks(list(places.values()), list(places))
            axis.set_xlim(-0.5, len(places) - 0.5)
        else:
            scatter(axis, trials[name])
            if drawn.log:
                axis.set_xscale("log")
                axis.xaxis.set_minor_formatter(NullFormatter())  # they would run into each other
                axis.set_xlim(drawn.low / 1.2, drawn.high * 1.2)
        axis.set_xlabel(name)
    for axis in axes[2 + len(space) :]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel(score_name)
    figure.suptitle(f"{counted(len(trials), 'trial')}" + (" on synthetic phantoms" if synthetic else ""))
    return figure
