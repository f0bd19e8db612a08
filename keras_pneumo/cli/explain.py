"""The command explain: heat maps of where a network looks, and the check of what they are worth."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say, warn
from keras_pneumo.cli.workers import DataOption, data_of, require_out, run_folder
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow
from keras_pneumo.storage.files import folder_lock
from keras_pneumo.storage.tables import set_aside_sentences

if TYPE_CHECKING:
    from keras_pneumo.inference.run import RunFolder


def explain_command(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", parser=run_folder, help="A classifier's or a segmenter's run.")
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATA ...", help="A prepared folder; or radiographs and folders of them."),
    ] = None,
    named: DataOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default: RUN/explain, for radiographs RUN/explained.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="gradcam, gradcam++, hirescam, or auto: the best on validation.")
    ] = "auto",
    stage: Annotated[str, typer.Option(help="Encoder stage, 1 (fine) to 5 (coarse), or auto.")] = "auto",
    subset: Annotated[
        str | None, typer.Option(help="Subset of a prepared folder whose positives are explained; default: test.")
    ] = None,
    segmenter: Annotated[
        Path | None,
        typer.Option(parser=run_folder, help="Segmenter run whose maps are scored beside the heat maps."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="maps.npz of the PyTorch twin (experiments/torch_team/gradcam.py).")
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(help="Table of tubes, leads and writing; default: the prepared folder's devices.csv.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Label csv of radiographs, to outline the truth.")] = None,
    any_view: Annotated[
        bool, typer.Option("--any-view", help="Explain radiographs too whose header says lateral, or no chest.")
    ] = False,
) -> None:
    """Draw heat maps of where a network looks; on a prepared folder also check what they are worth.

    The check, on a subset's positives: pointing game, AUPRC and heat inside the outline beside chance, random weights,
    and shortcuts. It becomes the section "Where it looks" of the run's report.

    Example, after training: `keras-pneumo explain runs/smallest_classifier --data data/prepared/phantom-try
    --out runs/explain-try`
    """
    from keras_pneumo.data.prepared.folder import is_prepared

    data = data_of(files, named, "DATA")
    checked = len(data) == 1 and is_prepared(data[0])
    if checked and labels is not None:
        raise PneumoError("A prepared folder has its own labels; leave --labels out.")
    if not checked and any(option is not None for option in (subset, segmenter, compare, devices)):
        raise PneumoError(
            "--subset, --segmenter, --compare and --devices are for the check, which needs a prepared folder."
        )
    if labels is not None:  # refused before TensorFlow and the network are loaded, which takes longer
        from keras_pneumo.data.labels.cases import read_labels

        read_labels(labels)
    if out_folder is None:
        require_out(source)
    # The check in the run itself also writes its report.
    written = out_folder or (source if checked else source / "explained")
    with folder_lock(written) if out_folder or source.is_dir() else contextlib.nullcontext():
        _explain(
            source, data, out_folder, method, stage, subset, segmenter, compare, devices, labels, any_view, checked
        )


def _explain(
    source: Path,
    data: list[Path],
    out_folder: Path | None,
    method: str,
    stage: str,
    subset: str | None,
    segmenter: Path | None,
    compare: Path | None,
    devices: Path | None,
    labels: Path | None,
    any_view: bool,
    checked: bool,
) -> None:
    """Explain, with the lock of the folder that is written into."""
    import_tensorflow(for_command=True)
    from keras_pneumo.inference.run import read_run

    run = read_run(source)
    chosen = _method(method), _stage(stage)
    if checked:
        segmenters = [read_run(segmenter)] if segmenter is not None else []
        _explain_prepared(run, data[0], out_folder, chosen, subset or "test", segmenters, compare, devices)
        return
    from keras_pneumo.evaluation.report.saliency_report import METHODS, source_sentence
    from keras_pneumo.explain.files import explain_files
    from keras_pneumo.inference.run import SYNTHETIC, checkpoints_of

    with ProgressBar("heat maps") as progress:
        done = explain_files(
            run, data, out_folder or run.folder / "explained", *chosen, labels, progress.update, any_view
        )
    if run.synthetic:
        warn(f"{SYNTHETIC}. These maps say nothing of real radiographs.")
    shown = f"{METHODS[done.method]} of stage {done.stage}"
    if not done.selected:
        warn(
            f"{shown} was not selected on validation for this run, so these maps may point at nothing. To select a "
            f"method, run keras-pneumo explain {source} PREPARED first."
        )
    say(f"{done.explained} radiographs explained by {shown}: {done.folder / 'explained.csv'}")
    if whose := source_sentence({"checkpoints": len(checkpoints_of(run))}):
        say(whose)
    if done.set_aside:
        for sentence in set_aside_sentences(done.set_aside):
            warn(sentence)
        warn(f"{len(done.set_aside)} set aside, with reasons: {done.folder / 'quarantine.csv'}")
        raise typer.Exit(1)


def _explain_prepared(
    run: RunFolder,
    data: Path,
    out_folder: Path | None,
    chosen: tuple[str | None, int | None],
    subset: str,
    segmenters: list[RunFolder],
    compare: Path | None,
    devices: Path | None,
) -> None:
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
    from keras_pneumo.explain.saliency_check import CheckOptions, explain_prepared
    from keras_pneumo.training.report import rewrite_report

    prepared = load_prepared(data)
    folder = out_folder or run.folder / FOLDER
    options = CheckOptions(subset, *chosen, segmenters=segmenters, twin_maps=compare, devices=devices)
    with ProgressBar("heat maps") as progress:
        explain_prepared(run, prepared, folder, options, progress=progress.update)
    report = read_saliency_report(folder)
    if report is None:
        raise PneumoError(f"{folder} lacks its record. Run the command again.")
    say(f"{report.title}. {report.source}".rstrip())
    for sentence in report.sentences:
        say(sentence)
    for row in report.shortcuts:
        say(f"{row['region']}: {row['heat']} of the heat on {row['area']} of the image ({row['images']} images).")
    say(str(folder))
    if folder == run.folder / FOLDER and run.experiment.task == "classifier" and subset == "test":
        try:
            say(str(rewrite_report(run, prepared)))
        except PneumoError as error:  # the maps are there all the same
            warn(f"The run's report could not be written again. {error}")


def _method(text: str) -> str | None:
    from keras_pneumo.explain.gradcam import METHODS

    if text != "auto" and text not in METHODS:
        raise PneumoError(f"There is no heat map method {text!r}. Choose auto, {', '.join(METHODS)}.")
    return None if text == "auto" else text


def _stage(text: str) -> int | None:
    from keras_pneumo.explain.gradcam import STAGES

    if text != "auto" and text not in map(str, STAGES):
        raise PneumoError(f"There is no encoder stage {text!r}. Choose auto, or 1 (fine) to 5 (coarse).")
    return None if text == "auto" else int(text)
