"""A sweep: trials of an experiment with other settings, chosen by Optuna, compared on the validation images.

In: an experiment, a prepared folder, and a space (:mod:`.space`). Out: a folder with a run folder for each trial,
``trials.csv``, Optuna's plots, and ``best.py``, the best trial as an experiment file.

Optuna (Akiba et al., arXiv 1907.10902) suggests the settings (TPE, after ten random ones) and ends trials whose
validation score is below the median of the earlier ones at the same epoch (after five trials, and from the second epoch
of the whole network on). All it knows is in ``sweep.db`` (SQLite), so a sweep that was interrupted or killed goes on
when it is started again, and the trial that was under way goes on from its checkpoint. The training is
:func:`keras_pneumo.training.trainer.train`, with the same images, order and seed for every trial. No trial predicts the
test images, so nothing can be chosen by them.
"""

from __future__ import annotations

import json
import pprint
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import matplotlib as mpl
import numpy as np
import pandas as pd

from keras_pneumo.config import CLASSIFIER, SEGMENTER, Experiment, Settings, read_experiment, with_settings
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import Diverged, PneumoError
from keras_pneumo.storage.files import folder_lock, settle, write_bytes, write_table
from keras_pneumo.storage.tables import counted, listed
from keras_pneumo.training import checkpoints
from keras_pneumo.training.log import EpochRow, save_figure
from keras_pneumo.training.run_folder import RUNS, is_trained, new_folder, progress_of
from keras_pneumo.training.trainer import TrainingOptions, train
from keras_pneumo.training.tuning.space import Space, text_of

if TYPE_CHECKING:
    import optuna

DATABASE, TABLE, BEST = "sweep.db", "trials.csv", "best.py"

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""What Optuna calls a trial that has ended, and what is printed."""


def require_optuna() -> None:
    """Refuse to sweep without Optuna.

    Raises:
        PneumoError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise PneumoError("A sweep needs Optuna, which is not installed. Run: pip install 'keras-pneumo[sweep]'")


@dataclass(frozen=True)
class Sweep:
    """The trials of an experiment, as far as they are trained."""

    experiment: Experiment
    """What all trials have in common."""
    prepared: PreparedFolder
    folder: Path
    study: optuna.Study
    """What Optuna knows: ``study.trials``, ``study.best_trial`` with ``.number``, ``.params`` and ``.value``."""

    @property
    def score_name(self) -> str:
        """What trials are compared by."""
        return "validation Dice" if self.experiment.task == "segmenter" else "validation AUROC"

    def run_folder(self, number: int) -> Path:
        """A trial's run folder."""
        return self.folder / f"trial_{number:03d}"

    def experiment_of(self, number: int, values: Mapping[str, Any]) -> Experiment:
        """A trial's experiment, named after the trial."""
        texts = [f"{name}={text_of(value)}" for name, value in values.items()]
        return with_settings(self.experiment, [*texts, f"name={self.experiment.name[:50]}-trial-{number:03d}"])

    def counts(self) -> dict[str, int]:
        """How many trials ended complete, pruned and failed."""
        names = [trial.state.name for trial in self.study.trials]
        return {state: names.count(name) for name, state in STATES.items()}

    def best(self) -> optuna.trial.FrozenTrial | None:
        """The complete trial with the highest score."""
        return self.study.best_trial if any(trial.state.name == "COMPLETE" for trial in self.study.trials) else None


def sweep(
    experiment: Experiment,
    prepared: PreparedFolder,
    space: Space,
    trials: int,
    out: Path | None = None,
    options: TrainingOptions | None = None,
    *,
    weights: Path | None = None,
    on_trial: Callable[[Sweep, optuna.trial.FrozenTrial], None] = lambda sweep, trial: None,
) -> Sweep:
    """Train trials until there are ``trials`` of them, counting those of earlier starts, and write down the best.

    Args:
        experiment: what all trials have in common.
        prepared: images, labels and split.
        space: from :func:`.space.read_space`.
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
        current = Sweep(experiment, prepared, folder, _open(folder, experiment))
        _check_same(current, space, weights)
        _write(current)  # a start before this one may have been killed before it wrote what it had told Optuna
        # A trial that a stopped or killed process left running goes on first.
        waiting = [trial for trial in current.study.trials if not trial.state.is_finished()]
        while waiting or len(current.study.trials) < trials:
            trial = waiting.pop(0) if waiting else current.study.ask(space)
            _run_trial(current, trial, options, weights)
            _write(current)
            on_trial(current, current.study.trials[trial.number])
    if current.best() is None:
        raise PneumoError(
            f"None of {counted(trials, 'trial')} in {folder} gave a finite {current.score_name}. Lower the learning "
            "rates of the space, and sweep into another folder."
        )
    return current


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


def _open(folder: Path, experiment: Experiment) -> optuna.Study:
    """Open what Optuna knows of earlier trials, or begin."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(f"sqlite:///{(folder / DATABASE).absolute()}"),
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=experiment.frozen_epochs + 2),
    )
    # With the same seed at each start, the first random settings would be drawn again.
    study.sampler = optuna.samplers.TPESampler(seed=experiment.seed + len(study.trials))
    return study


def _check_same(current: Sweep, space: Space, weights: Path | None) -> None:
    """Write down what is swept, or compare it with what was written down by an earlier start.

    Raises:
        PneumoError: it is another sweep.
    """
    from optuna.distributions import distribution_to_json

    stated = {
        "experiment": current.experiment.model_dump(mode="json"),
        "space": {name: distribution_to_json(drawn) for name, drawn in space.items()},
        "split_sha256": current.prepared.manifest["split_sha256"],
        "prepared_sha256": current.prepared.manifest["prepared_sha256"],
        "weights": str(weights),
    }
    for name, value in stated.items():
        if not current.study.trials and name not in current.study.user_attrs:
            current.study.set_user_attr(name, value)
    known = current.study.user_attrs
    if differing := [name for name, value in stated.items() if known.get(name) != json.loads(json.dumps(value))]:
        raise PneumoError(
            f"{current.folder} holds a sweep that differs in {listed(differing)}. Choose another --out, or give "
            "the same again to go on with it."
        )


def _run_trial(
    current: Sweep, trial: optuna.Trial | optuna.trial.FrozenTrial, options: TrainingOptions, weights: Path | None
) -> None:
    """Train one trial, or go on with it, and tell Optuna; one that goes on (a frozen one) is not pruned."""
    import optuna

    folder, experiment = current.run_folder(trial.number), current.experiment_of(trial.number, trial.params)
    folder.mkdir(exist_ok=True)

    def on_epoch(row: EpochRow) -> None:
        options.on_epoch(row)
        if isinstance(trial, optuna.Trial) and np.isfinite(row.score):
            trial.report(row.score, row.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        if not is_trained(folder):
            keras.utils.clear_session()  # of the trial before
            resume = progress_of(folder, experiment, current.prepared) == "unfinished"
            chosen = replace(options, resume=resume, on_epoch=on_epoch)
            train(experiment, current.prepared, folder, chosen, weights=weights)
        log = pd.read_csv(folder / "log.csv")
        best = log[log["best"] == 1].iloc[-1]
        current.study.tell(
            trial.number, float(best["validation_dice" if "validation_dice" in log else "validation_auroc"])
        )
    except Diverged as fault:
        options.notify(f"Trial {trial.number}: {fault}")
        current.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    except optuna.TrialPruned:
        checkpoints.keep(folder, 0)  # nothing goes on from them
        current.study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)


# ---------------------------------------------------------------- what is written


def _write(current: Sweep) -> None:
    """Write the table, the figures and the best trial's experiment file as they are now."""
    rows = [
        {"trial": trial.number, "state": STATES[trial.state.name], "score": trial.value, **trial.params}
        | {"folder": current.run_folder(trial.number).name}
        for trial in current.study.trials
        if trial.state.is_finished()
    ]
    if not rows:
        return
    write_table(current.folder / TABLE, pd.DataFrame(rows))
    best = current.best()
    if best is None:
        return
    draw(current.study, current.folder, current.score_name, current.prepared.synthetic)
    experiment = current.experiment_of(best.number, best.params)
    kind = "synthetic phantoms" if current.prepared.synthetic else "validation images"
    text = experiment_text(
        experiment,
        f"Is the best of {counted(len(rows), 'trial')} of {current.experiment.name} good on other patients?\n\n"
        f"Needs: the data of the sweep, split {str(current.prepared.manifest['split_sha256'])[:12]}.\n"
        f"Result: {current.score_name} {best.value:.4f} ({kind}), by which it was chosen: on others expect less.\n",
    )
    write_bytes(current.folder / BEST, text.encode())
    if read_experiment(current.folder / BEST) != experiment:
        raise AssertionError(f"{current.folder / BEST} does not say what the trial was")


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
    from optuna.visualization import matplotlib as plots

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style
        warnings.simplefilter("ignore")  # that these plots are experimental, and that an axis has one value so far
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
