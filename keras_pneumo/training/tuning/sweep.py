"""A sweep: trials of an experiment with other settings, chosen by Optuna, compared on the validation images.

In: an experiment, a prepared folder, and a space (a TOML file: which settings, and from where to where). Out: a folder
with a run folder for each trial, ``trials.csv``, Optuna's plots, and ``best.py``, the best trial as an experiment file.

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
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import matplotlib as mpl
import numpy as np
import pandas as pd

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
from keras_pneumo.storage.files import folder_lock, settle, write_bytes, write_table
from keras_pneumo.storage.tables import counted, listed
from keras_pneumo.training import checkpoints
from keras_pneumo.training.log import EpochRow, save_figure
from keras_pneumo.training.run_folder import RUNS, is_trained, new_folder, progress_of
from keras_pneumo.training.trainer import TrainingOptions, train

if TYPE_CHECKING:
    import optuna

DATABASE, TABLE, BEST = "sweep.db", "trials.csv", "best.py"

FIXED = ("name", "task", "seed", "fold")
"""Settings in which trials do not differ, since their scores could not be compared or would be luck."""

MOST_CORNERS = 4096
"""Combinations of ends and choices that are checked beforehand; of a larger space each value alone."""

State = Literal["complete", "pruned", "failed"]
STATES: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""What Optuna calls a trial that has ended, and what is printed."""

Space = dict[str, Any]
"""What each setting is drawn from, a distribution of Optuna; names as ``--set`` takes them."""


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
    run: Path
    """The best trial's run folder."""
    score: float
    """Its validation score."""
    score_name: str
    counts: dict[State, int]
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
    corners = [[f"{name}={_text(value)}" for value in _ends(drawn)] for name, drawn in space.items()]
    for text in itertools.chain(*corners):
        with_settings(experiment, [text], str(path))
    if math.prod(map(len, corners)) <= MOST_CORNERS:
        for texts in itertools.product(*corners):
            with_settings(experiment, texts, f"{path}, {' '.join(texts)},")
    return space


def _flat(table: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a TOML file with what is said of it; those of groups as ``group.name``."""
    for name, value in table.items():
        a_group = isinstance(value, dict) and not group and name not in setting_names(Experiment)
        if a_group and not {"low", "high"} & value.keys():
            yield from _flat(value, f"{name}.")
        else:
            yield group + name.replace("-", "_"), value


def _drawn_from(name: str, value: Any, path: Path) -> optuna.distributions.BaseDistribution:
    """What one setting is drawn from.

    Raises:
        PneumoError: it does not exist, is not to be swept, or what is said of it has no such form.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    where = f"{path}, {name}"
    if name not in setting_names(Experiment):
        with_settings(CLASSIFIER, [f"{name}=0"], str(path))  # refuses it, and suggests the right one
    if name in FIXED:
        raise PneumoError(
            f"{where}: it is the same in all trials, or their scores could not be compared. Leave it out, or give it "
            "with --set."
        )
    if isinstance(value, list) and len(value) > 1 and all(value.count(each) == 1 for each in value):
        return CategoricalDistribution([each if isinstance(each, str | int | float) else _text(each) for each in value])
    kind = number_kind(name)
    if not isinstance(value, dict) or kind is None or not {"low", "high"} <= value.keys() <= {*_NUMBERS, "log"}:
        raise PneumoError(
            f"{where}: write a list of two or more different values, or of a number {{low = ..., high = ...}}, with "
            f"log = true or a step where they help. One value is given with --set {name}=VALUE."
        )
    if not all(type(value[key]) in (int, kind) for key in _NUMBERS & value.keys()):
        raise PneumoError(f"{where}: low, high and step must be {'whole ' * (kind is int)}numbers. Change them.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that does not lead from low to high
            if kind is float:
                return FloatDistribution(**value)
            return IntDistribution(**{"step": 1 if value.get("log") else _multiple_of(name), **value})
    except (ValueError, UserWarning) as error:
        reason = str(error).rstrip(".")
        raise PneumoError(f"{where} cannot be used ({reason}). Write other numbers.") from None


_NUMBERS = {"low", "high", "step"}


def _ends(drawn: Any) -> list[Any]:
    """The values that are checked beforehand: all choices; of numbers the least, the next, and the largest."""
    return list(drawn.choices) if hasattr(drawn, "choices") else [drawn.low, drawn.low + (drawn.step or 0), drawn.high]


def _multiple_of(name: str) -> int:
    """The least step of a whole number: 32 of an image size."""
    return next((step for limit in setting_field(name).metadata if (step := getattr(limit, "multiple_of", None))), 1)


def _text(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


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
        if not (folder / DATABASE).is_file():
            settle(folder)
            new_folder(folder, experiment.name)
        return _Sweep(experiment, prepared, space, folder, options, weights, on_trial).run(trials)


def _check_sizes(experiment: Experiment, prepared: PreparedFolder, space: Space) -> None:
    """Refuse image sizes that are not prepared, before anything is trained."""
    drawn = space.get("image_size")
    sizes = {experiment.image_size}
    if drawn is not None:
        sizes = set(drawn.choices if hasattr(drawn, "choices") else range(drawn.low, drawn.high + 1, drawn.step))
    missing = sorted(sizes - {int(text) for text in prepared.manifest["sizes"]})
    if missing:
        raise PneumoError(
            f"{prepared.folder} does not hold the image size {listed(missing)}. Run prepare on the same data and "
            f"folder with {' '.join(f'--size {size}' for size in missing[:5])}."
        )


@dataclass
class _Sweep:
    """One sweep while it runs."""

    experiment: Experiment
    prepared: PreparedFolder
    space: Space
    folder: Path
    options: TrainingOptions
    weights: Path | None
    on_trial: Callable[[Trial], None]

    def __post_init__(self) -> None:
        """Open what Optuna knows of earlier trials, or begin."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        experiment = self.experiment
        self.score_name = "validation Dice" if experiment.task == "segmenter" else "validation AUROC"
        storage = optuna.storages.RDBStorage(f"sqlite:///{(self.folder / DATABASE).absolute()}")
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

    def check(self) -> None:
        """Write down what is swept, or compare it with what was written down by an earlier start.

        Raises:
            PneumoError: it is another sweep.
        """
        from optuna.distributions import distribution_to_json

        own = {
            "experiment": self.experiment.model_dump(mode="json"),
            "space": {name: distribution_to_json(drawn) for name, drawn in self.space.items()},
            "split_sha256": self.prepared.manifest["split_sha256"],
            "prepared_sha256": self.prepared.manifest["prepared_sha256"],
            "weights": str(self.weights),
        }
        for name, value in own.items():
            if not self.study.trials and name not in self.study.user_attrs:
                self.study.set_user_attr(name, value)
        known = self.study.user_attrs
        if differing := [name for name, value in own.items() if known.get(name) != json.loads(json.dumps(value))]:
            raise PneumoError(
                f"{self.folder} holds a sweep that differs in {listed(differing)}. Choose another --out, or give the "
                "same again to go on with it."
            )

    def run(self, trials: int) -> SweepResult:
        """Train what is left of ``trials`` trials; see :func:`sweep`."""
        from optuna.trial import TrialState

        self.check()
        for left in self.study.get_trials(states=(TrialState.RUNNING,)):  # a process was stopped or killed in it
            self.run_trial(left.number, left.params, None)
        while len(self.study.get_trials(deepcopy=False)) < trials:
            trial = self.study.ask(self.space)
            self.run_trial(trial.number, trial.params, trial)
        self.write()
        best = self.best()
        if best is None or best.value is None:
            raise PneumoError(
                f"None of {counted(trials, 'trial')} in {self.folder} gave a finite {self.score_name}. Lower the "
                "learning rates of the space, and sweep into another folder."
            )
        ended = [STATES[trial.state.name] for trial in self.study.get_trials(deepcopy=False)]
        counts = {state: ended.count(state) for state in STATES.values()}
        return SweepResult(self.folder, self.run_folder(best.number), best.value, self.score_name, counts)

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The complete trial with the highest score."""
        from optuna.trial import TrialState

        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return self.study.best_trial if complete else None

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
        options = replace(self.options, resume=progress_of(folder, experiment, self.prepared) == "unfinished")

        def on_epoch(row: EpochRow) -> None:
            self.options.on_epoch(row)
            if trial is not None and np.isfinite(row.score):
                trial.report(row.score, row.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            if not is_trained(folder):
                keras.utils.clear_session()  # of the trial before
                train(experiment, self.prepared, folder, replace(options, on_epoch=on_epoch), weights=self.weights)
            log = pd.read_csv(folder / "log.csv")
            best = log[log["best"] == 1].iloc[-1]
            self.study.tell(number, float(best["validation_dice" if "validation_dice" in log else "validation_auroc"]))
        except Diverged as fault:
            self.options.notify(f"Trial {number}: {fault}")
            self.study.tell(number, state=TrialState.FAIL)
        except optuna.TrialPruned:
            checkpoints.keep(folder, 0)  # nothing goes on from them
            self.study.tell(number, state=TrialState.PRUNED)
        self.write()
        told, first = self.study.get_trials(deepcopy=False)[number], self.best()
        is_best = first is not None and first.number == number
        self.on_trial(Trial(number, dict(values), STATES[told.state.name], told.value, is_best))

    # ------------------------------------------------------------ what is written

    def write(self) -> None:
        """Write the table, the figures and the best trial's experiment file as they are now."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        rows = [
            {"trial": trial.number, "state": STATES[trial.state.name], "score": trial.value, **trial.params}
            | {"folder": self.run_folder(trial.number).name}
            for trial in trials
        ]
        write_table(self.folder / TABLE, pd.DataFrame(rows))
        best = self.best()
        if best is not None:
            draw(self.study, self.folder, self.score_name, self.prepared.synthetic)
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


def draw(study: optuna.Study, folder: Path, score_name: str, synthetic: bool) -> None:
    """Draw Optuna's plots: the scores by trial (``trials.png``), by epoch and by each setting; whether on phantoms."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization import matplotlib as plots

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style
        warnings.simplefilter("ignore", ExperimentalWarning)
        epochs = plots.plot_intermediate_values(study)
        epochs.set(title="", xlabel="epoch", ylabel=score_name)  # Optuna has no words of its user's here
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        trials = plots.plot_optimization_history(study, target_name=score_name)
        trials.set(title="", xlabel="trial")
        for name, plot in (
            ("trials.png", trials),
            ("epochs.png", epochs),
            ("settings.png", plots.plot_slice(study, target_name=score_name)),
        ):
            figure = np.atleast_1d(plot)[0].get_figure()  # type: ignore[arg-type] # one axis, or an array of them
            figure.suptitle(counted(len(study.trials), "trial") + (" on synthetic phantoms" if synthetic else ""))
            save_figure(figure, folder / name)
            plt.close(figure)
