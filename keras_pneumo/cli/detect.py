"""Commands about the joined detector: join, detect, view. TensorFlow is imported when one of them runs, not before."""

from __future__ import annotations

import webbrowser
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from keras_pneumo.cli.console import Progress, say, warn
from keras_pneumo.data.prepared.folder import find_prepared, load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow
from keras_pneumo.training.run_folder import new_folder

FEW = 5
"""Files set aside that are named on the screen; all are in quarantine.csv."""


class EngineName(StrEnum):
    """The engines, for the command line."""

    KERAS = "keras"
    ONNX = "onnx"


def join_command(
    classifiers: Annotated[list[Path], typer.Argument(metavar="CLASSIFIER...", help="Runs that tell if there is any.")],
    segmenters: Annotated[list[Path], typer.Option("--segmenter", help="Run that outlines; may be given again.")],
    data: Annotated[
        Path, typer.Option("--data", help="The prepared folder they were trained on, or a folder that holds it.")
    ] = Path("data/prepared"),
    out_folder: Annotated[Path | None, typer.Option("--out", help="Detector folder; default: runs/detector.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="How often patients are resampled.")] = 10_000,
) -> None:
    """Join classifiers and segmenters into one detector: a folder that can be copied to another machine.

    The gate, the rule for masks, the calibration and the threshold are fitted on validation images; the test images
    then show the detector beside its parts.

    Example, after training both: `keras-pneumo join runs/smallest_classifier --segmenter runs/smallest_segmenter
    --data data/prepared/phantom-try --out runs/detector-try`
    """
    import_tensorflow()
    from keras_pneumo.detector.fitting import fit_detector
    from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
    from keras_pneumo.inference.run import read_run

    runs = [read_run(run) for run in classifiers]
    outliners = [read_run(run) for run in segmenters]
    sizes = [run.experiment.image_size for run in (*runs, *outliners)]
    prepared = load_prepared(find_prepared(data, str(runs[0].record.get("split_sha256")), sizes))
    folder = new_folder(out_folder, "detector")
    name = folder.name.removeprefix("detector-")
    with Progress("joining") as progress:
        fitted, board = fit_detector(runs, outliners, prepared, folder, name, progress.update, resamples)
    for sentence in fitted.sentences:
        say(sentence)
    table = board.table.set_index("team")
    say(f"On {board.extent} of the test set:")
    for entry in board.teams:
        row = table.loc[entry.team]
        parts = [
            f"{word} {row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"
            for name, word in (("dice", "Dice"), ("auroc", "AUROC"), ("brier", "Brier"))
            if row.get(name) == row.get(name) and row.get(name) is not None
        ]
        say(f"  {entry.team}: {', '.join(parts)}")
    saliency = read_saliency_report(folder / FOLDER)
    if saliency is not None:
        say(f"Where it looks ({saliency.title}): {saliency.sentences[0]}")
    say(str(folder / "board" / "report.html"))
    say(str(folder))


def detect_command(
    detector_folder: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder that join made.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILES|FOLDER", help="DICOM, PNG or JPEG radiographs.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the answers go.")],
    dicom: Annotated[bool, typer.Option("--dicom", help="Also DICOM: segmentation, overlay and report.")] = False,
    make_uids: Annotated[
        bool,
        typer.Option("--make-uids", help="With --dicom: make up identifiers that a file lacks, and keep a copy."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; default: by files and cores.")
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="What runs the networks: Keras, or ONNX Runtime (extra export).")
    ] = EngineName.KERAS,
) -> None:
    """Say for each radiograph whether there is a pneumothorax, and outline it: json, overlay PNG, and DICOM if asked.

    What cannot be read is listed in quarantine.csv; the command then ends with 1.

    Example, after join: `keras-pneumo detect runs/detector-try data/phantom-try --out runs/detect-try`
    """
    if make_uids and not dicom:
        raise PneumoError("--make-uids makes up identifiers for DICOM objects. Give --dicom too, or leave it out.")
    import_tensorflow()
    from keras_pneumo.detector.detect import detect
    from keras_pneumo.detector.detector import open_detector

    detector = open_detector(detector_folder, engine.value)
    with Progress("detection") as progress:
        done = detect(detector, files, out_folder, dicom, make_uids, progress.update, workers)
    for row in done.set_aside[:FEW]:
        warn(f"{row['file']}: {row['reason']}.".replace("..", "."))
    if len(done.set_aside) > FEW:
        warn(f"{len(done.set_aside) - FEW} more are listed in quarantine.csv.")
    say(str(done))
    if done.set_aside:
        raise typer.Exit(1)


def view_command(
    detector_folder: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder that join made.")],
    folder: Annotated[Path | None, typer.Argument(help="Radiographs to page through; others can be dropped.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 8765,
    readings_file: Annotated[
        Path, typer.Option("--readings", help="Csv of what the reader thinks; gone on with if it is there.")
    ] = Path("readings.csv"),
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Open a local page that shows each radiograph with its outline, heat maps, and what the answer means.

    It listens on this machine only, asks for the token in its address, and needs no network. Ctrl-C ends it.

    Example, after join: `keras-pneumo view runs/detector-try data/phantom-try`
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise PneumoError("The page needs starlette and uvicorn. Run: pip install 'keras-pneumo[view]'")
    import_tensorflow()
    from keras_pneumo.data.radiographs.reading import find_files
    from keras_pneumo.detector.detector import open_detector
    from keras_pneumo.viewer.decoding import Decoder
    from keras_pneumo.viewer.page_answer import PageDetector
    from keras_pneumo.viewer.readings import open_readings
    from keras_pneumo.viewer.server import listen, serve

    def started(shown: str, opened: str) -> None:
        say(f"The page: {shown} (Ctrl-C ends it). Research use only.")
        if browser:
            webbrowser.open(opened)

    files = find_files([folder]) if folder is not None else []
    page_detector = PageDetector(open_detector(detector_folder), Decoder())
    with open_readings(readings_file) as readings:
        serve(page_detector, files, readings, listen(port), started)
        say(readings.agreement(page_detector.detector.version)["sentence"])
