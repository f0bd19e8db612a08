"""The command predict: predictions by finished runs. TensorFlow is imported when it runs, not before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say, warn
from keras_pneumo.cli.workers import (
    EngineName,
    EngineOption,
    ReplicasOption,
    StrategyOption,
    WaitOption,
    ended_together,
    require_out,
    run_folder,
)
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow
from keras_pneumo.storage.files import folder_lock, require_writable

if TYPE_CHECKING:
    from keras_pneumo.inference.contamination import Contamination


def predict_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN ...]", parser=run_folder, help="Runs; the mean of several is predicted."),
    ],
    data: Annotated[Path, typer.Option("--data", help="A prepared folder, or a folder of radiographs.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where to write; default: in the run.")] = None,
    subset: Annotated[str, typer.Option(help="Subset of a prepared folder, or all.")] = "test",
    gate: Annotated[
        list[Path] | None,
        typer.Option("--gate", parser=run_folder, help="Classifier run that a segmenter's masks must pass."),
    ] = None,
    parameters_file: Annotated[
        Path | None,
        typer.Option("--postprocess", help="postprocess.json for several segmenters' masks on radiographs."),
    ] = None,
    any_view: Annotated[
        bool, typer.Option("--any-view", help="Predict radiographs too whose header says lateral, or no chest.")
    ] = False,
    strategy: StrategyOption = "auto",
    replicas: ReplicasOption = None,
    wait_for_workers: WaitOption = 120.0,
    engine: EngineOption = EngineName.KERAS,
) -> None:
    """Predict a prepared subset, or any folder of radiographs: the probability, and by segmenters the mask.

    A prepared folder gives a submission. Of another one than the runs were trained on nothing is fitted, and it is
    said which of its images the runs have learned from. Other radiographs give predictions.csv, and those that cannot
    be read are listed in quarantine.csv. Several runs (folds, seeds, sizes) are averaged. All devices share each batch.
    A run is its folder, a zip of export, or hf://OWNER/NAME; the last two are written nowhere else than --out.

    Example, after training: `keras-pneumo predict runs/smallest_classifier --data data/phantom-try --out runs/try`
    """
    from keras_pneumo.data.prepared.folder import is_prepared
    from keras_pneumo.training.distributed.cluster import cluster_for

    from_prepared = is_prepared(data)
    cluster = cluster_for(strategy, os.environ)
    if not from_prepared and cluster is not None:
        raise PneumoError(
            f"{data} is no prepared folder, and several workers can only predict a prepared folder together. Start one "
            "process (--strategy one or mirrored), or run keras-pneumo prepare first."
        )
    if len(runs) > 1 and out_folder is None:
        raise PneumoError("Predictions of several runs together need a folder: name it with --out.")
    if out_folder is None:
        require_out(runs[0])
    written = out_folder or runs[0]
    writes = (out_folder is not None or written.is_dir()) and (cluster is None or cluster.index == 0)
    with folder_lock(written) if writes else contextlib.nullcontext():
        _predict(
            runs,
            data,
            from_prepared,
            out_folder,
            subset,
            gate,
            parameters_file,
            any_view,
            strategy,
            replicas,
            wait_for_workers,
            engine,
        )


def _predict(
    runs: list[Path],
    data: Path,
    from_prepared: bool,
    out_folder: Path | None,
    subset: str,
    gate: list[Path] | None,
    parameters_file: Path | None,
    any_view: bool,
    strategy: str,
    replicas: int | None,
    wait_for_workers: float,
    engine: EngineName,
) -> None:
    """Predict, with the lock of the folder that is written into."""
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.data.radiographs.reading import find_images

    import_tensorflow(for_command=True)
    from keras_pneumo.evaluation.inputs.submission import require_replaceable
    from keras_pneumo.inference.engine import Engine, predictors_on
    from keras_pneumo.inference.ensemble import ALL, has_split_of
    from keras_pneumo.inference.files import predict_folder
    from keras_pneumo.inference.postprocess import read_postprocessing
    from keras_pneumo.inference.run import read_run
    from keras_pneumo.inference.submission import predict_subset, predict_with_fitted, write_predictions
    from keras_pneumo.training.distributed.strategy import lost_workers, start_distribution

    name: Engine = engine.value
    opened = [read_run(run) for run in runs]
    gates = [read_run(run) for run in gate or []]
    prepared = load_prepared(data) if from_prepared else None
    at_home = prepared is not None and subset != ALL and has_split_of(opened, prepared)
    if prepared is not None and not at_home and out_folder is None:
        raise PneumoError(
            f"{data} has another split than the run, or all of its images were asked for: its predictions would "
            "replace the run's own submission. Name a folder with --out."
        )
    if at_home and parameters_file is not None:
        raise PneumoError(
            f"{data} is prepared: the postprocessing of masks is fitted on its validation images, and --postprocess is "
            "not used. Leave it out."
        )
    folder = out_folder or runs[0] / ("submission" if from_prepared else "predictions")
    require_writable(require_replaceable(folder) if from_prepared else folder)
    distribution = start_distribution(strategy, replicas, wait_for_workers, warn)
    if engine != EngineName.KERAS and distribution.strategy is not None:
        raise PneumoError(f"--engine {name} predicts on one device. Give --strategy one too, or leave out --engine.")
    distributed = distribution.distributed_predictor()
    if engine != EngineName.KERAS:

        def images() -> int:
            if prepared is None:
                return len(find_images(data).paths)
            if not at_home:
                return len(prepared.cases if subset == ALL else prepared.subset(subset))
            return len(prepared.subset(subset)) + len(prepared.subset("validation"))

        distributed = predictors_on(name, images, warn)
    with ended_together(distribution), ProgressBar("prediction") as progress:
        if prepared:
            update = progress.update if distribution.chief else None
            if not at_home:
                parameters = read_postprocessing(parameters_file) if parameters_file else None
                with lost_workers(distribution):
                    other = predict_with_fitted(opened, prepared, subset, update, gates, distributed, parameters)
                if distribution.chief:
                    other.write(folder)
                    if other.info.synthetic and not prepared.synthetic:
                        warn("Trained on synthetic phantoms: what it answers about real radiographs is an experiment.")
                    report_contamination(other.contamination)
                    say(f"{folder}: nothing was fitted to these images; contamination.csv has a row for each.")
                return
            with lost_workers(distribution):
                predicted = predict_subset(opened, prepared, subset, update, gates, distributed)
            if distribution.chief:
                write_predictions(predicted, folder)
                say(str(folder))
            return
        summary = predict_folder(opened, data, folder, progress.update, parameters_file, gates, distributed, any_view)
    for remark in summary.remarks():
        warn(remark)
    say(str(summary))
    if summary.set_aside:
        raise typer.Exit(1)


def report_contamination(contamination: Contamination) -> None:
    """Print which of the predicted images were learned from; a warning where some were, or where it is not known."""
    doubtful = bool(contamination.unknown or contamination.by_name) or bool(contamination.shared.any())
    for sentence in contamination.sentences:
        (warn if doubtful else say)(sentence)
