"""Commands for data: doctor, phantom, download, prepare, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, out, say, warn
from keras_pneumo.cli.workers import DataOption, data_of, one_of
from keras_pneumo.data.download import COMPETITION
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import require_free
from keras_pneumo.storage.workers import available_cores, start_server

if TYPE_CHECKING:  # each command imports what it needs when it runs: pandas, SciPy and OpenCV take most of a second
    from keras_pneumo.data.prepared.prepare import PrepareSummary

MARKS = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "fault": "[red]FAULT[/]"}

PRIVACY_MARKS = {True: "[yellow]look[/]", False: "note"}

DEFAULT_SIZES = (256, 512)

BlankOption = Annotated[str | None, typer.Option(help="Blank labels and images without a mask: negative or ignore.")]
ImageColumnOption = Annotated[str | None, typer.Option(help="Column of the image, in a table not known.")]
LabelColumnOption = Annotated[str | None, typer.Option(help="Column of the label, in a table not known.")]
AnyViewOption = Annotated[bool, typer.Option("--any-view", help="Let in images that the table calls lateral.")]
MaskSizeOption = Annotated[
    str | None, typer.Option(help="ROWSxCOLUMNS that run-length masks refer to, where it is not 1024x1024.")
]

PseudonymKeyOption = Annotated[
    Path | None, typer.Option(help="Key of another prepared folder, for the same pseudonyms of patients.")
]


def doctor_command(
    folder: Annotated[Path, typer.Option(help="Folder whose disk is meant to hold data and runs.")] = Path(),
    privacy: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to examine before it is handed on, of any kind.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="With --privacy: where to draw pictures that may have text.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --privacy: processes that read files.")] = None,
) -> None:
    """Print what this machine has and lacks, or what a folder tells of patients, with what to do.

    With `--privacy FOLDER` it lists identifying DICOM tags, names of files, columns of tables, pseudonyms without a
    key, and pictures that may have text in the border. No value is printed. Exit code 1: a person has to look.

    Example: `keras-pneumo doctor`
    """
    if privacy is not None:
        _examine_privacy(privacy, sheet, workers)
        return
    if sheet is not None or workers is not None:
        raise PneumoError("--sheet and --workers belong to --privacy FOLDER. Name the folder, or leave them out.")
    from keras_pneumo.cli.examine import examine

    findings = examine(folder.resolve())
    for finding in findings:
        out.print(f"{MARKS[finding.state]} {finding.subject:<9}", end=" ", highlight=False)
        say(f"{finding.text}. {finding.advice}" if finding.advice else finding.text)
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(2)


def _examine_privacy(folder: Path, sheet: Path | None, workers: int | None) -> None:
    """Print a line for each thing in a folder that may tell who a patient is; ends with 1 where one is to look at."""
    from keras_pneumo.data.privacy import draw_text_sheet, examine_privacy, shown_path
    from keras_pneumo.storage.tables import counted

    with ProgressBar("examine") as progress:
        report = examine_privacy(folder, workers, progress.update)
    for finding in report.findings:
        out.print(PRIVACY_MARKS[finding.look], end=" ", highlight=False)
        say(f"{finding.where}: {finding.what}: {counted(finding.files, 'file')}. {finding.advice}".rstrip())
    if sheet is not None and report.pictures:
        drawn = draw_text_sheet(report, sheet, workers)
        say(f"{sheet}: {drawn} of {counted(len(report.pictures), 'picture')}. Delete it when you have looked.")
        for number, (path, _) in enumerate(report.pictures[:drawn], start=1):
            say(f"{number}: {shown_path(path.relative_to(folder))}")
    rest = "What identifies in other ways is not found."
    if report.look:
        say(f"{folder}: {counted(report.files, 'file')}. Look at what is marked so before they are handed on. {rest}")
        raise typer.Exit(1)
    say(f"{folder}: {counted(report.files, 'file')}. Nothing to look at was found. {rest}")


def phantom_command(
    folder: Annotated[Path, typer.Argument(help="Where to write; a new or empty folder.")],
    images: Annotated[int, typer.Option(min=1, help="How many radiographs.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size_scale: Annotated[
        float, typer.Option(help="Multiplies the areas of the pneumothoraces; 1 is as in SIIM-ACR.")
    ] = 1.0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    """Write synthetic chest radiographs as a folder like SIIM-ACR's: DICOM files, label csv, patient table.

    Example: `keras-pneumo phantom data/phantom-try --images 60`
    """
    from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

    settings = PhantomSettings(images=images, seed=seed, size_scale=size_scale)
    with ProgressBar("phantoms") as progress:
        summary = write_phantoms(folder, settings, workers, progress.update)
    if not summary.written:
        say(f"{folder} holds these phantoms already; nothing was done.")
    say(
        f"{folder}: {summary.images} phantoms of {summary.patients} patients, {summary.positives} with pneumothorax, "
        f"{summary.tubes} with a chest tube, {summary.monochrome1} stored inverted."
    )


def download_command(
    folder: Annotated[Path, typer.Argument(help="Where to put the data; prepare reads this folder.")],
    source: Annotated[str, typer.Option(help="A Kaggle competition, or a data set as OWNER/NAME.")] = COMPETITION,
) -> None:
    """Fetch the SIIM-ACR images and labels from Kaggle, with your own account and after you accepted their rules.

    Example: `keras-pneumo download data/siim`
    """
    from keras_pneumo.data.download import download

    summary = download(folder, source)
    if not summary.fetched:
        say(f"{folder} holds {source} already; nothing was fetched.")
    say(f"{summary.folder}: {summary.images} images, labels in {summary.labels or 'no file'}.")
    for note in summary.notes:
        warn(note)
    if summary.labels is None:
        raise typer.Exit(1)


def prepare_command(
    out_folder: Annotated[Path, typer.Option("--out", help="The prepared folder.")],
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATA ...", help="Folder of DICOM, PNG or JPEG files with labels; or several."),
    ] = None,
    data: DataOption = None,
    size: Annotated[list[int] | None, typer.Option(help="Side in pixels; may be given several times.")] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Label csv, COCO json or folder of masks, where DATA does not hold it; one for each DATA."),
    ] = None,
    patients: Annotated[
        list[Path] | None, typer.Option(help="Table of ImageId and patient, or NIH's; one for each DATA.")
    ] = None,
    uncertain: Annotated[
        str, typer.Option(help="Uncertain labels: ignore (left out), positive or negative.")
    ] = "ignore",
    blank: BlankOption = None,
    readers: Annotated[int, typer.Option(min=1, help="Readers who must agree, where several read each image.")] = 2,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    any_view: AnyViewOption = False,
    mask_size: MaskSizeOption = None,
    pseudonym_key: PseudonymKeyOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
) -> None:
    """Turn radiographs into checked PNGs at one or more sizes, with a patient-level split and a manifest.

    After an interruption, run it again: it continues where it stopped.

    Example: `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo prepare --data data/phantom-try --out data/prepared-try --size 128`
    """
    raw = data_of(folders, data, "DATA")
    from keras_pneumo.data.labels.known import options_of

    options = options_of(uncertain, blank, readers, image_column, label_column, any_view, mask_size)
    require_free(out_folder)
    if (workers or available_cores()) > 1:
        start_server("keras_pneumo.data.prepared.rendering", "keras_pneumo.data.prepared.scanning")
    import pandas  # noqa: F401 - needed later, and imported now, while the server of the workers starts

    from keras_pneumo.data.prepared.prepare import prepare

    with ProgressBar("prepare") as progress:
        summary = prepare(
            raw,
            out_folder,
            size or DEFAULT_SIZES,
            labels=labels,
            patients=patients,
            seed=seed,
            workers=workers,
            progress=progress.update,
            options=options,
            pseudonym_key=pseudonym_key,
        )
    report_prepared(summary)
    if summary.set_aside:
        raise typer.Exit(1)


def report_prepared(summary: PrepareSummary) -> None:
    """Print what was prepared, and warn of what the user must know about it."""
    done = f"{summary.rendered} decoded now" if summary.rendered else "nothing was left to do"
    subsets = ", ".join(f"{count} {name}" for name, count in summary.subsets.items())
    say(
        f"{summary.folder}: {summary.images} radiographs of {summary.patients} patients, {summary.positive} positive "
        f"({subsets}); {done}."
    )
    say(f"Labels: {', '.join(summary.labels)}.")
    say(f"Split {summary.split_sha256[:12]}, prepared data {summary.prepared_sha256[:12]}.")
    for note in summary.notes:
        warn(note)
    if summary.set_aside:
        warn(f"{summary.set_aside} set aside, with reasons: {summary.folder / 'quarantine.csv'}")


def inspect_command(
    folder: Annotated[Path | None, typer.Argument(metavar="PREPARED", help="A prepared folder.")] = None,
    data: DataOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The picture; default: contact_sheet.png in the prepared folder.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Which prepared size; default: the smallest from 256 on, else the largest.")
    ] = None,
    per_group: Annotated[int, typer.Option(min=1, help="Images of each subset and label.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Which images are drawn.")] = 0,
) -> None:
    """Draw a sheet of images with their masks outlined, by subset and label.

    Example: `keras-pneumo phantom data/phantom-try --images 60 &&
    keras-pneumo prepare --data data/phantom-try --out data/prepared-try --size 128 &&
    keras-pneumo inspect --data data/prepared-try`
    """
    prepared = one_of(data_of(folder, data, "PREPARED"))
    from keras_pneumo.data.prepared.contact_sheet import draw_contact_sheet
    from keras_pneumo.data.prepared.folder import load_prepared
    from keras_pneumo.data.prepared.prepare import CONTACT_SHEET

    path = out_file or prepared / CONTACT_SHEET
    say(str(draw_contact_sheet(load_prepared(prepared), path, size, per_group, seed)))
