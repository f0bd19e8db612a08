"""What a finished run shows in a tracker besides its rows: its test scores, its curves, and some radiographs.

In: the run folder, with its report written, and the prepared folder. Out: numbers by name, and PNG pictures by name. No
name holds an image id. Radiographs stay in the run folder, in TensorBoard's events, unless somebody asked for more.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.detector.overlay import draw_outline, encode_png
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.findings import own_row, read_board
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.evaluation.report.pictures import image_loader
from keras_pneumo.evaluation.report.saliency_report import FOLDER, PICTURES
from keras_pneumo.explain.pictures import OUTLINE as TRUE_OUTLINE

CURVES = "curves.png"
MOST_RADIOGRAPHS = 8
OWN_OUTLINE = (64, 156, 255)
"""Red, green, blue. The true outline has the colour that it has beside a heat map."""


def scores_of(folder: Path) -> dict[str, float]:
    """The scores of a run on its test patients, each with the ends of its interval; none where it was not scored."""
    row = own_row(read_board(folder / "board.csv"))
    if row is None:
        return {}
    names = [str(name) for name in row.index if f"{name}_low" in row.index]
    values = {f"test_{each}": row[each] for name in names for each in (name, f"{name}_low", f"{name}_high")}
    return {name: float(value) for name, value in values.items() if pd.notna(value)}


def curves_of(folder: Path) -> dict[str, bytes]:
    """The picture of the curves, where there is one."""
    path = folder / CURVES
    return {CURVES: path.read_bytes()} if path.is_file() else {}


def radiographs_of(folder: Path, prepared: PreparedFolder | None) -> dict[str, bytes]:
    """A few positive test radiographs: with their heat maps where these were drawn, else with the outlines.

    Args:
        folder: the run folder.
        prepared: the images; None where they are not at hand: then there are none without heat maps.
    """
    drawn = sorted((folder / FOLDER / PICTURES).glob("*.png"))[:MOST_RADIOGRAPHS]
    if drawn:
        return {f"radiograph_{number}.png": path.read_bytes() for number, path in enumerate(drawn, start=1)}
    try:
        return {} if prepared is None else _outlined(folder, prepared)
    except PneumoError:  # the scores do not depend on a picture
        return {}


def _outlined(folder: Path, prepared: PreparedFolder) -> dict[str, bytes]:
    """Positives with the true outline and the run's own."""
    truth, load = read_truth(prepared.folder), image_loader(prepared.folder)
    answers = read_submission(folder / "submission").predictions
    if truth.runs is None or load is None or "encoded_pixels" not in answers:
        return {}
    own = answers.drop_duplicates("image_id").set_index("image_id")["encoded_pixels"]
    chosen = [row for row in np.flatnonzero(truth.pneumothorax) if truth.cases.image_id[row] in own.index]
    pictures = {}
    for number, row in enumerate(chosen[:MOST_RADIOGRAPHS], start=1):
        image_id = truth.cases.image_id[row]
        picture = np.repeat(load(image_id)[..., None], 3, axis=2)
        for runs, colour in ((truth.runs[row], TRUE_OUTLINE), (rle.runs_of(str(own[image_id])), OWN_OUTLINE)):
            mask = cv2.resize(rle.draw(runs), picture.shape[1::-1], interpolation=cv2.INTER_AREA)
            draw_outline(picture, mask, colour)
        pictures[f"radiograph_{number}.png"] = encode_png(picture)
    return pictures
