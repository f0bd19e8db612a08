"""Commands for the detector: join, detect, view. TensorFlow is imported when one of them runs, not before."""

from __future__ import annotations

import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say, warn
from keras_pneumo.cli.failure import failure_sentences
from keras_pneumo.cli.workers import DataOption, EngineName, EngineOption, data_of, run_folder
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow
from keras_pneumo.storage.files import folder_lock
from keras_pneumo.storage.tables import set_aside_sentences

if TYPE_CHECKING:  # it brings TensorFlow
    from keras_pneumo.detector.detector import Detector

DetectorArgument = Annotated[
    Path, typer.Argument(metavar="DETECTOR", parser=run_folder, help="What join made: folder, zip, or hf://OWNER/NAME.")
]


def join_command(
    classifiers: Annotated[
        list[Path], typer.Argument(metavar="CLASSIFIER...", parser=run_folder, help="Classifier runs.")
    ],
    segmenters: Annotated[
        list[Path], typer.Option("--segmenter", parser=run_folder, help="Segmenter run; repeatable.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="Prepared folder of their training, or a folder that holds it.")
    ] = Path("data/prepared"),
    out_folder: Annotated[Path | None, typer.Option("--out", help="Detector folder; default: runs/detector.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of the patients, for intervals.")] = 10_000,
) -> None:
    """Join classifiers and segmenters into one detector: a folder that can be copied to another machine.

    The gate, the postprocessing of masks, the calibration and the threshold are fitted on validation images. Images
    that are not like the training images will get no answer. The test images then show the detector beside its members.

    Example, after training both: `keras-pneumo join runs/smallest_classifier --segmenter runs/smallest_segmenter
    --data data/prepared/phantom-try --out runs/detector-try`
    """
    from keras_pneumo.training.run_folder import new_folder_lock

    with new_folder_lock(out_folder, "detector") as folder:
        _join(classifiers, segmenters, data, folder, resamples)


def _join(classifiers: list[Path], segmenters: list[Path], data: Path, folder: Path, resamples: int) -> None:
    """Join the runs into a new folder, with its lock."""
    import_tensorflow(for_command=True)
    from keras_pneumo.data.prepared.folder import find_prepared, load_prepared
    from keras_pneumo.detector.fitting import fit_detector
    from keras_pneumo.evaluation.report.saliency_report import FOLDER, read_saliency_report
    from keras_pneumo.inference.run import read_run

    classifier_runs = [read_run(folder) for folder in classifiers]
    segmenter_runs = [read_run(folder) for folder in segmenters]
    sizes = [run.experiment.image_size for run in (*classifier_runs, *segmenter_runs)]
    prepared = load_prepared(find_prepared(data, str(classifier_runs[0].record.get("split_sha256")), sizes))
    name = folder.name.removeprefix("detector-")
    with ProgressBar("joining") as progress:
        fitted, board = fit_detector(
            classifier_runs, segmenter_runs, prepared, folder, name, progress.update, resamples
        )
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
    detector_folder: DetectorArgument,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the answers.")],
    named: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES|FOLDER", help="DICOM, PNG or JPEG radiographs.")
    ] = None,
    data: DataOption = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write DICOM: segmentation, overlay, report.")] = False,
    make_uids: Annotated[
        bool,
        typer.Option("--make-uids", help="With --dicom: make up missing identifiers, and keep a copy."),
    ] = False,
    any_view: Annotated[
        bool, typer.Option("--any-view", help="Also answer for lateral views, other body parts and modalities.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; default: by number of files and cores.")
    ] = None,
    engine: EngineOption = EngineName.KERAS,
) -> None:
    """Detect and outline pneumothorax on radiographs: a json and an overlay PNG each, and DICOM objects with --dicom.

    Files that cannot be read, and images that are not like the training images, are listed in quarantine.csv; the exit
    code is then 1.

    Example, after join: `keras-pneumo detect runs/detector-try --data data/phantom-try --out runs/detect-try`
    """
    files = data_of(named, data, "FILES|FOLDER")
    if make_uids and not dicom:
        raise PneumoError("--make-uids is for DICOM objects. Give --dicom too, or leave out --make-uids.")
    with folder_lock(out_folder):
        _detect(detector_folder, files, out_folder, dicom, make_uids, any_view, workers, engine)


def _detect(
    detector_folder: Path,
    files: list[Path],
    out_folder: Path,
    dicom: bool,
    make_uids: bool,
    any_view: bool,
    workers: int | None,
    engine: EngineName,
) -> None:
    """Answer for the radiographs, with the lock of the folder for the answers."""
    import_tensorflow(for_command=True)
    from keras_pneumo.data.radiographs.reading import find_files
    from keras_pneumo.detector.detect import detect
    from keras_pneumo.detector.detector import open_detector
    from keras_pneumo.inference.engine import predictors_on

    distributed = predictors_on(engine.value, lambda: len(find_files(files, out_folder).files), warn)
    detector = open_detector(detector_folder, distributed)
    _say_what_is_not_checked(detector)
    with ProgressBar("detection") as progress:
        result = detect(detector, files, out_folder, dicom, make_uids, progress.update, workers, any_view=any_view)
    for sentence in set_aside_sentences(result.set_aside):
        warn(sentence)
    say(str(result))
    if result.set_aside:
        raise typer.Exit(1)


def view_command(
    detector_folder: DetectorArgument,
    folder: Annotated[Path | None, typer.Argument(help="Radiographs to show; others can be dropped.")] = None,
    data: DataOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 8765,
    readings_file: Annotated[
        Path, typer.Option("--readings", help="Csv of the reader's verdicts; continued if it exists.")
    ] = Path("readings.csv"),
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    any_view: Annotated[
        bool, typer.Option("--any-view", help="Also answer for lateral views, other body parts and modalities.")
    ] = False,
) -> None:
    """Open a local page that shows each radiograph with its outline, heat maps, and how often such an answer is wrong.

    It listens on this machine only, needs the token in its address, and uses no network. Ctrl-C ends it.

    Example, after join: `keras-pneumo view runs/detector-try --data data/phantom-try`
    """
    shown = data_of(folder, data, "FOLDER") if folder is not None or data else []
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise PneumoError("The page needs starlette and uvicorn. Run: pip install 'keras-pneumo[view]'")
    import_tensorflow(for_command=True)
    from keras_pneumo.data.radiographs.reading import FoundFiles, find_files
    from keras_pneumo.detector.detector import open_detector
    from keras_pneumo.viewer.decoding import Decoder
    from keras_pneumo.viewer.page_answer import PageDetector
    from keras_pneumo.viewer.readings import open_readings
    from keras_pneumo.viewer.server import listen, serve

    def started(printed: str, once: str) -> None:
        say(f"The page: {printed} (Ctrl-C ends it). Research use only.")
        if browser:
            webbrowser.open(once)

    def failed(error: BaseException) -> str:
        sentences = failure_sentences(error)
        warn(f"The page goes on, but one answer failed. {sentences}")
        return sentences

    found = find_files(shown) if shown else FoundFiles([], [])
    for sentence in set_aside_sentences(found.refused):
        warn(sentence)
    detector = open_detector(detector_folder, heat_maps=True)
    _say_what_is_not_checked(detector)
    page_detector = PageDetector(detector, Decoder(), any_view)
    with open_readings(readings_file) as readings:
        serve(page_detector, found.files, readings, listen(port), started, failed)
        say(readings.agreement(page_detector.detector.version)["sentence"])


def _say_what_is_not_checked(detector: Detector) -> None:
    if detector.likeness is None:
        warn(
            "This detector does not check whether a radiograph is like its training images: it was joined by an "
            "earlier version, or from too few images. It answers for any image."
        )
