"""Commands that need TensorFlow: train, find-lr, predict. It is imported when one of them runs, not before."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import Progress, duration, say, warn
from keras_pneumo.cli.data import report_prepared
from keras_pneumo.cli.quiet import import_tensorflow
from keras_pneumo.config import Experiment, read_experiment
from keras_pneumo.data.prepared import Prepared, load_prepared, prepare
from keras_pneumo.errors import PneumoError

if TYPE_CHECKING:
    from keras_pneumo.training.callbacks import EpochRow

DataArgument = Annotated[Path, typer.Option("--data", help="A prepared folder, or raw data to prepare first.")]
PreparedOption = Annotated[
    Path | None, typer.Option("--prepared", help="Where raw data is prepared; default: data/prepared/<its name>.")
]
LabelsOption = Annotated[Path | None, typer.Option("--labels", help="Label csv of raw data that does not hold it.")]
PatientsOption = Annotated[Path | None, typer.Option("--patients", help="Patient table of raw data.")]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="File or folder with ImageNet weights as safetensors.")
]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command("train")(train_command)
    app.command("find-lr")(find_lr_command)
    app.command("predict")(predict_command)


def train_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="A file of experiments/.")],
    data: DataArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Run folder; default: runs/<experiment>.")] = None,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Validation fold; default: the experiment's.")] = None,
    all_folds: Annotated[bool, typer.Option("--all-folds", help="One run after the other, into OUT/fold_K.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the experiment's.")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--start-from", help="Run whose weights are the start, such as a smaller size's.")
    ] = None,
) -> None:
    """Train, predict the test patients, score them, and write report.html.

    With --all-folds, --start-from may be a folder of fold_K runs.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo train experiments/smallest_classifier.py --data data/phantom-try`
    """
    if all_folds and fold is not None:
        raise PneumoError("Give --fold or --all-folds, not both.")
    experiment = _resolved(experiment_file, fold, seed)
    prepared = open_data(data, experiment, prepared_folder, labels, patients)
    import_tensorflow()
    if not all_folds:
        _train_one(experiment, prepared, run_folder(out_folder, experiment.name), weights, start_from)
        return
    folder = run_folder(out_folder, f"{experiment.name}-folds")
    folds = sorted({int(number) for number in prepared.split["fold"] if int(number) >= 0})
    for number in folds:
        origin = start_from / f"fold_{number}" if start_from is not None else None
        run = run_folder(folder / f"fold_{number}", "")
        _train_one(experiment.replace(fold=number), prepared, run, weights, origin)
    runs = " ".join(str(folder / f"fold_{number}") for number in folds)
    say(f"All {len(folds)} folds are trained. Predict with all of them: keras-pneumo predict {runs} --data DATA")


def _train_one(
    experiment: Experiment, prepared: Prepared, folder: Path, weights: Path | None, start_from: Path | None
) -> None:
    """One training into an empty folder, to its report."""
    import keras

    from keras_pneumo.prediction.run import read_run
    from keras_pneumo.training.finish import finish
    from keras_pneumo.training.fit import train

    keras.utils.clear_session()  # of one fold, before the next is trained in the same process
    say(f"Training {experiment.name}: {experiment.encoder} at {experiment.image_size}, into {folder}")
    with Progress("training") as progress:
        outcome = train(
            experiment,
            prepared,
            folder,
            weights=weights,
            command=shlex.join(["keras-pneumo", *sys.argv[1:]]),
            on_epoch=_say_epoch,
            progress=progress.update,
            start_from=read_run(start_from) if start_from is not None else None,
        )
    say(f"Trained in {duration(outcome.seconds)}; best epoch {outcome.best.epoch}.")
    with Progress("prediction") as progress:
        finished = finish(read_run(folder), prepared, progress.update)
    for line in finished.lines:
        say(line)
    say(str(finished.report))


def find_lr_command(
    experiment_file: Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="A file of experiments/.")],
    data: DataArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where to put plot and table.")] = None,
    steps: Annotated[int, typer.Option(min=20, help="How many rates to try.")] = 100,
    prepared_folder: PreparedOption = None,
    labels: LabelsOption = None,
    patients: PatientsOption = None,
    weights: WeightsOption = None,
) -> None:
    """Raise the learning rate step by step, draw the loss, and suggest a rate.

    Example (in a checkout of the project): `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo find-lr experiments/smallest_classifier.py --data data/phantom-try --steps 40`
    """
    experiment = _resolved(experiment_file, None, None)
    prepared = open_data(data, experiment, prepared_folder, labels, patients)
    import_tensorflow()
    from keras_pneumo.training.lr_finder import CLEAR_FALL, search

    folder = run_folder(out_folder, f"{experiment.name}-rates")
    with Progress("rates") as progress:
        found = search(experiment, prepared, weights, steps, progress.update)
    found.save(folder)
    say(f"Suggested learning_rate: {found.suggested:.2e}")
    if found.fall < CLEAR_FALL:
        warn(
            f"The loss fell by {max(found.fall, 0):.1%} only, so this is mostly noise, as is usual from a random "
            "start. Look at the plot, try more --steps, and stay ten times under the rate at which the loss rises."
        )
    say(str(folder / "learning_rates.png"))


def predict_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run folders that answer as one.")],
    data: Annotated[Path, typer.Option("--data", help="A prepared folder, or a folder of radiographs.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where to write; default: in the run.")] = None,
    subset: Annotated[str, typer.Option(help="Which patients of a prepared folder.")] = "test",
    gate: Annotated[
        list[Path] | None, typer.Option("--gate", help="Classifier run that a segmenter's masks must pass.")
    ] = None,
    rule_file: Annotated[
        Path | None, typer.Option("--postprocess", help="Rule for several segmenters' masks on radiographs.")
    ] = None,
) -> None:
    """Predict a prepared subset, or any folder of radiographs: the probability, and by segmenters the outline.

    A prepared folder gives a submission; other radiographs give predictions.csv, and those that cannot be read are
    listed in quarantine.csv. Several runs (folds, seeds, sizes) are averaged.

    Example, after training: `keras-pneumo predict runs/smallest_classifier --data data/phantom-try --out runs/try`
    """
    import_tensorflow()
    from keras_pneumo.prediction.run import read_run
    from keras_pneumo.prediction.submit import predict_folder, write_run_submission

    if len(runs) > 1 and out_folder is None:
        raise PneumoError("Several runs answer as one, which belongs to none of them: name a folder with --out.")
    found = [read_run(run) for run in runs]
    gates = [read_run(run) for run in gate or []]
    with Progress("prediction") as progress:
        if (data / "manifest.json").is_file():
            folder = out_folder or runs[0] / "submission"
            write_run_submission(found, load_prepared(data), folder, subset, progress.update, gates)
            say(str(folder))
            return
        folder = out_folder or runs[0] / "predictions"
        summary = predict_folder(found, data, folder, progress.update, rule_file, gates)
    say(str(summary))
    if summary.set_aside:
        raise typer.Exit(1)


def open_data(
    data: Path, experiment: Experiment, prepared_folder: Path | None, labels: Path | None, patients: Path | None
) -> Prepared:
    """The prepared folder ``data``, or raw ``data`` prepared at the experiment's size; says what was set aside."""
    if (data / "manifest.json").is_file():
        return load_prepared(data)
    if not data.is_dir():
        raise PneumoError(f"There is no folder {data}. Name a prepared folder, or one of radiographs with a label csv.")
    folder = prepared_folder or Path("data") / "prepared" / data.resolve().name
    with Progress("prepare") as progress:
        summary = prepare(
            data, folder, [experiment.image_size], labels=labels, patients=patients, progress=progress.update
        )
    report_prepared(summary)
    return load_prepared(folder)


def run_folder(wanted: Path | None, name: str) -> Path:
    """A new, empty folder: ``wanted``, or the first free of runs/NAME, runs/NAME-2, ...

    Raises:
        PneumoError: ``wanted`` holds something already.
    """
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise PneumoError(f"{wanted} is not empty. Choose another --out, or remove it; nothing was changed.")
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _resolved(path: Path, fold: int | None, seed: int | None) -> Experiment:
    experiment = read_experiment(path)
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
