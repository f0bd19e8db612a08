"""The command evaluate: an external test set. TensorFlow is imported when it runs, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say, warn
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow


def evaluate_command(
    model: Annotated[Path, typer.Argument(metavar="RUN|DETECTOR", help="A run folder, or a detector's.")],
    data: Annotated[
        list[Path], typer.Option("--data", help="Labelled radiographs; several are sources. Or a prepared folder.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Where report.html, the tables and the images go.")],
    labels: Annotated[
        list[Path] | None, typer.Option(help="Label file or folder of masks, where --data does not hold it.")
    ] = None,
    patients: Annotated[
        list[Path] | None, typer.Option(help="Table of ImageId and patient, or NIH's; one for each --data.")
    ] = None,
    keep_contaminated: Annotated[
        bool, typer.Option("--keep-contaminated", help="Also score images that were learned from; the page says so.")
    ] = False,
    uncertain: Annotated[str | None, typer.Option(help="Uncertain labels: ignore, positive or negative.")] = None,
    blank: Annotated[
        str | None, typer.Option(help="Blank labels and images without a mask: negative or ignore.")
    ] = None,
    readers: Annotated[int | None, typer.Option(min=1, help="Readers who must agree, where several read.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the image, in a table not known.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label, in a table not known.")] = None,
    any_view: Annotated[bool, typer.Option("--any-view", help="Let in images that the table calls lateral.")] = False,
    mask_size: Annotated[
        str | None, typer.Option(help="ROWSxCOLUMNS of run-length masks, where it is not 1024x1024.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that decode.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resampling.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Number of resamples of the patients.")] = 10_000,
) -> None:
    """Evaluate a run or a detector on data from elsewhere: prepare, predict, score by source and subgroup, report.

    All images are predicted as they are: nothing is fitted. Images that were learned from are found and left out.

    Example, after training: `keras-pneumo phantom data/phantom-other --images 40 --seed 7 &&
    keras-pneumo evaluate runs/smallest_classifier --data data/phantom-other --out runs/evaluate-try`
    """
    from keras_pneumo.data.labels.known import options_of
    from keras_pneumo.data.prepared.folder import is_prepared

    wished = (uncertain, blank, readers, image_column, label_column, any_view or None, mask_size)
    options = None
    if any(wish is not None for wish in wished):
        options = options_of(
            uncertain or "ignore", blank, readers or 2, image_column, label_column, any_view, mask_size
        )
    if missing := [folder for folder in data if not folder.is_dir()]:
        raise PneumoError(f"There is no folder {missing[0]}.")
    if len(data) == 1 and is_prepared(data[0]) and (labels or patients or options):
        raise PneumoError(f"{data[0]} is prepared: its labels and patients are in it. Leave out these options.")
    import_tensorflow()
    from keras_pneumo.detector.external import evaluate

    with ProgressBar("evaluation") as progress:
        result = evaluate(
            model,
            data,
            out_folder,
            labels=labels,
            patients=patients,
            options=options,
            keep_contaminated=keep_contaminated,
            seed=seed,
            resamples=resamples,
            workers=workers,
            progress=progress.update,
        )
    for caution in result.cautions:
        warn(caution)
    for sentence in result.sentences:
        say(sentence)
    say(str(result.report))
    if result.prepared is not None and result.prepared.set_aside:
        warn(f"{result.prepared.set_aside} set aside, with reasons: {result.prepared.folder / 'quarantine.csv'}")
        raise typer.Exit(1)
