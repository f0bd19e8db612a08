"""The command masks: any team's probability maps become masks. It needs neither TensorFlow nor Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_pneumo.cli.console import ProgressBar, say


def masks_command(
    maps: Annotated[Path, typer.Argument(help="Folder with the maps: validation/ and test/, a file for each image.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Where the submission goes.")],
    truth: Annotated[
        Path | None, typer.Option(help="True masks of the validation images: prepared folder, truth.csv or label csv.")
    ] = None,
    parameters_file: Annotated[
        Path | None, typer.Option("--postprocess", help="A postprocess.json to apply; nothing is then fitted.")
    ] = None,
    components: Annotated[
        bool, typer.Option(help="Also try sizes of connected components, which takes several times as long.")
    ] = True,
    team: Annotated[str | None, typer.Option(help="The team's name, where MAPS has no submission.json.")] = None,
) -> None:
    """Make masks from any team's probability maps: the postprocessing is fitted on validation and applied to test.

    MAPS holds `validation/IMAGE_ID.png` and `test/IMAGE_ID.png` (8 bits; 255 is a probability of 1; also .npy and .npz,
    then floats from 0 to 1 too). `validation.csv` and `test.csv` (image_id, probability) may hold image-level
    probabilities, and `submission.json` what the team declares. Without `test/` only postprocess.json is written.

    Example, after make torch-segmenter: `keras-pneumo masks runs/torch_segmenter/maps --truth data/prepared/phantom
    --out runs/torch_segmenter/submission`
    """
    from keras_pneumo.inference.team_maps import make_masks
    from keras_pneumo.storage.files import folder_lock

    with folder_lock(out_folder), ProgressBar("maps") as progress:
        result = make_masks(maps, out_folder, truth, parameters_file, components, team, progress.update)
    fitted = result.parameters
    if result.search is not None:
        say(f"Dice on {result.search.images} validation images: {result.search.dice:.4f}")
    gate = f"; image-level probability at least {fitted.gate:.4g}" if fitted.gate else ""
    say(
        f"A mask where {fitted.area} pixels reach {fitted.top:g}; cut at {fitted.bottom:g}; components from "
        f"{fitted.component} pixels on{gate}"
    )
    say(str(out_folder))
