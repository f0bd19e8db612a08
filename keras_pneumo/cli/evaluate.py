"""The command evaluate: an external test set. TensorFlow is imported when it runs, not before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say, warn
from keras_pneumo.cli.data import (
    AnyViewOption,
    BlankOption,
    ImageColumnOption,
    LabelColumnOption,
    MaskSizeOption,
    PseudonymKeyOption,
)
from keras_pneumo.cli.workers import run_folder
from keras_pneumo.errors import PneumoError
from keras_pneumo.quiet import import_tensorflow


def evaluate_command(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|DETECTOR", parser=run_folder, help="Its folder, zip, or hf://OWNER/NAME.")
    ],
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
    pseudonym_key: PseudonymKeyOption = None,
    keep_contaminated: Annotated[
        bool, typer.Option("--keep-contaminated", help="Also score images that were learned from; the page says so.")
    ] = False,
    uncertain: Annotated[str | None, typer.Option(help="Uncertain labels: ignore, positive or negative.")] = None,
    blank: BlankOption = None,
    readers: Annotated[int | None, typer.Option(min=1, help="Readers who must agree, where several read.")] = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    any_view: AnyViewOption = False,
    mask_size: MaskSizeOption = None,
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
    from keras_pneumo.data.prepared.folder import is_one_prepared
    from keras_pneumo.storage.files import require_free

    wished = (uncertain, blank, readers, image_column, label_column, any_view or None, mask_size)
    options = None
    if any(wish is not None for wish in wished):
        options = options_of(
            uncertain or "ignore", blank, readers or 2, image_column, label_column, any_view, mask_size
        )
    if missing := [folder for folder in data if not folder.is_dir()]:
        raise PneumoError(f"There is no folder {missing[0]}. Check the path.")
    is_one_prepared(data, bool(labels or patients or options or pseudonym_key))  # refuses before TensorFlow is imported
    require_free(out_folder)
    import_tensorflow(for_command=True)
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
            pseudonym_key=pseudonym_key,
        )
    for caution in result.cautions:
        warn(caution)
    for sentence in result.sentences:
        say(sentence)
    say(str(result.report))
    if result.prepared is not None and result.prepared.set_aside:
        warn(f"{result.prepared.set_aside} set aside, with reasons: {result.prepared.folder / 'quarantine.csv'}")
        raise typer.Exit(1)
