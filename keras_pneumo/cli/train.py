"""Experiments as commands: train, find-lr, sweep, the list of all. TensorFlow is imported when a network learns."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keras_pneumo.cli.console import ProgressBar, duration, say, warn
from keras_pneumo.cli.workers import ReplicasOption, StrategyOption, WaitOption, ended_together, run_folder
from keras_pneumo.config import Experiment, known_experiments, read_experiment, with_settings
from keras_pneumo.data.prepared.folder import PreparedFolder, is_prepared, load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow
from keras_pneumo.training.distributed.cluster import cluster_for
from keras_pneumo.training.run_folder import new_folder_lock

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from keras_pneumo.training.log import EpochRow
    from keras_pneumo.training.report import RunReport
    from keras_pneumo.training.trainer import TrainingResult
    from keras_pneumo.training.tuning.sweep import Sweep

DataArgument = Annotated[Path, typer.Option("--data", help="A prepared folder, or raw data to prepare first.")]
PreparedOption = Annotated[
    Path | None, typer.Option("--prepared", help="Where raw data is prepared; default: data/prepared/NAME.")
]
LabelsOption = Annotated[Path | None, typer.Option("--labels", help="Label csv of raw data that does not hold it.")]
PatientsOption = Annotated[Path | None, typer.Option("--patients", help="Patient table of raw data.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="ImageNet weights (file or folder), or any safetensors file."),
]


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting: learning_rate=3e-4; augmentation.flip=0."),
]


def train_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Its name, or a file.")],
    data: DataArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/EXPERIMENT.")] = None,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Validation fold; default: the experiment's.")] = None,
    all_folds: Annotated[bool, typer.Option("--all-folds", help="One run after the other, into OUT/fold_K.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the experiment's.")] = None,
    settings: SetOption = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--start-from", parser=run_folder, help="Run whose weights are the start: of another size or data."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run, and refuse to begin a new one.")
    ] = False,
    checkpoint_every: Annotated[
        str, typer.Option("--checkpoint-every", help="Time or steps between checkpoints: 300s, 5min, 200steps.")
    ] = "300s",
    skip_nan: Annotated[
        bool, typer.Option("--skip-nan", help="Leave out images whose batch gave no finite loss, and go on.")
    ] = False,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Find out first how many images fit into memory at once.")
    ] = False,
    strategy: StrategyOption = "auto",
    log_to: Annotated[
        str, typer.Option("--log-to", help="Also log to mlflow, wandb, or both with a comma; TensorBoard is always.")
    ] = "",
    log_radiographs: Annotated[
        bool, typer.Option("--log-radiographs", help="Send them some test radiographs with outlines, too.")
    ] = False,
    replicas: ReplicasOption = None,
    wait_for_workers: WaitOption = 120.0,
) -> None:
    """Train, predict the test patients, score them, and write report.html.

    An unfinished run of the same experiment and data goes on: in OUT, or else the last of runs/EXPERIMENT.
    SIGTERM, SIGUSR1 and Ctrl-C finish the step and save (exit codes 75, 75 and 130). With --all-folds, --start-from may
    be a folder of fold_K runs.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo train experiments/smallest_classifier.py --data data/phantom-try`
    """
    if all_folds and fold is not None:
        raise PneumoError("Give --fold or --all-folds, not both.")
    experiment = _resolved(experiment_file, settings, fold, seed)
    trackers = _trackers(log_to, log_radiographs)
    cluster = cluster_for(strategy, os.environ)  # refuses variables that do not fit together before anything is loaded
    if not is_prepared(data) and cluster is not None:
        raise PneumoError(
            f"{data} is no prepared folder. Several workers need one that all of them see: run keras-pneumo "
            "prepare first."
        )
    prepared = open_data(data, experiment, prepared_folder, labels, patients)
    import_tensorflow(for_command=True)
    from keras_pneumo.training.callbacks import CheckpointInterval
    from keras_pneumo.training.distributed.strategy import start_distribution
    from keras_pneumo.training.trainer import TrainingOptions, run_folds, run_training

    checkpoint_interval = CheckpointInterval.parse(checkpoint_every)
    distribution = start_distribution(strategy, replicas, wait_for_workers, warn)
    options = TrainingOptions(
        distribution,
        checkpoint_interval,
        skip_nan=skip_nan,
        auto_batch=auto_batch,
        command=shlex.join(["keras-pneumo", *sys.argv[1:]]),
        notify=warn,
        say=say,
        on_epoch=_say_epoch if distribution.chief else lambda row: None,
        on_trained=_say_trained,
        log_to=trackers,
        log_radiographs=log_radiographs,
        show_progress=_show_progress if distribution.chief else lambda title: contextlib.nullcontext(None),
    )
    with ended_together(distribution):
        common: dict[str, Any] = {"must_resume": resume, "weights": weights, "start_from": start_from}
        if all_folds:
            folders = run_folds(experiment, prepared, out_folder, options, on_report=_say_report, **common)
            if distribution.chief:
                runs = " ".join(map(str, folders))
                say(
                    f"All {len(folders)} folds are trained. Predict with all of them: keras-pneumo predict {runs} "
                    "--data DATA"
                )
        elif report := run_training(experiment, prepared, out_folder, options, **common):
            _say_report(report)


def _trackers(log_to: str, log_radiographs: bool) -> tuple[str, ...]:
    """The trackers that were asked for; refused before anything is prepared where one is not installed."""
    if not log_to:
        if log_radiographs:
            raise PneumoError("--log-radiographs says what --log-to sends. Give --log-to too, or leave it out.")
        return ()
    from keras_pneumo.training.logs.tracking import chosen_trackers

    return chosen_trackers(log_to)


@contextlib.contextmanager
def _show_progress(title: str) -> Iterator[Callable[..., None]]:
    with ProgressBar(title) as progress:
        yield progress.update


def _say_trained(result: TrainingResult) -> None:
    say(f"Trained in {duration(result.seconds)}; best epoch {result.best.epoch}.")


def _say_report(report: RunReport) -> None:
    for line in report.sentences:
        say(line)
    say(str(report.path))


def experiments_command() -> None:
    """List the experiments that come with the program: each one's question, what it needs, and its result.

    `train` and other commands take an experiment by its name, or a file of your own: copy one of these, and change it.

    Example: `keras-pneumo experiments`
    """
    for name, known in known_experiments().items():
        say(f"{name}: {known.question}\n    Needs: {known.needs}\n    Result: {known.result}\n    File: {known.file}")


def find_lr_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Its name, or a file.")],
    data: DataArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where to put plot and table.")] = None,
    steps: Annotated[int, typer.Option(min=20, help="How many rates to try.")] = 100,
    starts: Annotated[int, typer.Option(min=1, help="How often, each time from the next seed.")] = 3,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
) -> None:
    """Raise the learning rate step by step, draw the loss, and suggest a rate.

    The losses of several starts are averaged, since one start's are mostly noise. The suggestion lies two thirds down
    their fall or, where that is no more than noise, at the rate at which the loss begins to rise (Smith, 2017), or a
    third of it for trained weights. It is for the highest rate of a schedule.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo find-lr experiments/smallest_classifier.py --data data/phantom-try --steps 40 --starts 2`
    """
    experiment = _resolved(experiment_file, settings)
    prepared = open_data(data, experiment, prepared_folder, labels, patients)
    import_tensorflow(for_command=True)
    from keras_pneumo.training.tuning.lr_finder import search

    with new_folder_lock(out_folder, f"{experiment.name}-rates") as folder:
        with ProgressBar("rates") as progress:
            rates = search(
                experiment,
                prepared,
                weights,
                steps,
                progress.update,
                lambda parts: say(parts.sentence(str(weights))),
                starts,
            )
        rates.save(folder, prepared.synthetic)
    say(f"Suggested learning_rate: {rates.suggested:.2e} ({rates.rule})")
    rise = f", and rises clearly at {rates.edge:.1e}" if rates.edge is not None else ""
    say(f"The loss falls by {max(rates.fall, 0):.1%}, with a standard error of {rates.error:.1%}{rise}.")
    if rates.edge is None and not rates.clear:
        warn("The loss neither falls nor rises by more than noise. Give more --steps or --starts.")
    elif not rates.clear:
        say("To be sure, compare rates up to three times lower and higher by whole trainings: keras-pneumo sweep.")
    say(str(folder / "learning_rates.png"))


def sweep_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="Its name, or a file.")],
    data: DataArgument,
    space_file: Annotated[Path, typer.Option("--space", help="TOML file: which settings, and from where to where.")],
    trials: Annotated[int, typer.Option(min=1, help="How many trials in all, with those of earlier starts.")] = 30,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep; default: runs/EXPERIMENT-sweep.")
    ] = None,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
    settings: SetOption = None,
    strategy: StrategyOption = "auto",
    replicas: ReplicasOption = None,
) -> None:
    """Sweep settings: train trials, end the hopeless ones early, and write the best down as an experiment.

    The space is a file of lines such as `learning_rate = {low = 1e-4, high = 1e-2, log = true}` and
    `global_batch_size = [8, 16]`. Optuna (extra `sweep`) chooses; trials are compared on validation, and none predicts
    the test images. OUT has `trials.csv`, plots, `best.py` and a run folder for each trial. What was interrupted
    goes on when the same command is started again; more --trials may follow.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo sweep experiments/smallest_classifier.py --data data/phantom-try --space experiments/lr.toml
    --trials 2`
    """
    import_tensorflow(for_command=True)
    from keras_pneumo.training.distributed.strategy import start_distribution
    from keras_pneumo.training.trainer import TrainingOptions
    from keras_pneumo.training.tuning.space import read_space
    from keras_pneumo.training.tuning.sweep import BEST, STATES, require_optuna, sweep

    require_optuna()
    experiment = _resolved(experiment_file, settings)
    space = read_space(space_file, experiment)  # refuse before images are prepared
    if cluster_for(strategy, os.environ) is not None:
        raise PneumoError("A sweep runs in one process. Start it on one host, with --strategy one or mirrored.")
    prepared = open_data(data, experiment, prepared_folder, labels, patients)

    def say_trial(current: Sweep, trial: FrozenTrial) -> None:
        values = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.params.items()
        )
        best = current.best()
        score = f", {trial.value:.4f}" if trial.value is not None else ""
        mark = ", the best so far" if best is not None and best.number == trial.number else ""
        say(f"trial {trial.number} ({values}): {STATES[trial.state.name]}{score}{mark}")

    options = TrainingOptions(
        start_distribution(strategy, replicas, 120.0, warn),
        command=shlex.join(["keras-pneumo", *sys.argv[1:]]),
        notify=warn,
        show_progress=_show_progress,
    )
    result = sweep(experiment, prepared, space, trials, out_folder, options, weights=weights, on_trial=say_trial)
    best = result.study.best_trial
    counts = ", ".join(f"{count} {state}" for state, count in result.counts().items() if count)
    say(f"Trials: {counts}. The best has {result.score_name} {best.value:.4f}, by which it was chosen.")
    say(str(result.folder / "settings.png"))
    say(
        f"To predict and score the test patients with it: keras-pneumo train {result.folder / BEST} --data "
        f"{prepared.folder} --out {result.run_folder(best.number)}"
    )


def open_data(
    data: Path, experiment: Experiment, prepared_folder: Path | None, labels: Path | None, patients: Path | None
) -> PreparedFolder:
    """The prepared folder ``data``, or raw ``data`` prepared at the experiment's size; says what was set aside."""
    if is_prepared(data):
        given = {"--prepared": prepared_folder, "--labels": labels, "--patients": patients}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise PneumoError(
                f"{data} is prepared already, with its own labels and patients, so {' and '.join(unused)} cannot be "
                "used. Leave it out, or name the folder of radiographs with --data."
            )
        return load_prepared(data)
    if not data.is_dir():
        raise PneumoError(f"There is no folder {data}. Name a prepared folder, or one of radiographs with a label csv.")
    from keras_pneumo.cli.data import report_prepared  # with phantoms and download
    from keras_pneumo.data.prepared.prepare import prepare

    folder = prepared_folder or Path("data") / "prepared" / data.resolve().name
    with ProgressBar("prepare") as progress:
        summary = prepare(
            data, folder, [experiment.image_size], labels=labels, patients=patients, progress=progress.update
        )
    report_prepared(summary)
    return load_prepared(folder)


def _resolved(path: Path, settings: list[str] | None, fold: int | None = None, seed: int | None = None) -> Experiment:
    experiment = with_settings(read_experiment(path), settings or ())
    changes = {name: value for name, value in (("fold", fold), ("seed", seed)) if value is not None}
    return experiment.replace(**changes) if changes else experiment


def _say_epoch(row: EpochRow) -> None:
    best = ", best" if row.best else ""
    dice = (
        ""
        if math.isnan(row.validation_dice)
        else f"validation Dice {row.validation_dice:.3f} (positives {row.validation_dice_positives:.3f}), "
    )
    say(
        f"epoch {row.epoch:>3} ({row.phase}): loss {row.loss:.4f}, validation loss {row.validation_loss:.4f}, {dice}"
        f"validation AUROC {row.validation_auroc:.3f}, {row.images_per_second:.1f} images/s{best}"
    )
