"""Which heat map to show: the method and stage that point best on validation positives.

In: a run's network and the prepared folder. Out: a table of all that were tried, the best first. Which stage points at
anything differs from network to network (a 3x3 grid of the last stage cannot point at a thin rim of air), so it is
chosen as every threshold is: on validation, and applied unchanged to what is reported.
"""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.evaluation.scoring.saliency import score_map
from keras_pneumo.explain.gradcam import METHODS, STAGES, shown, slopes_of, weigh
from keras_pneumo.explain.positives import batches_of, masks_of, pixels_of, positives_of
from keras_pneumo.inference.run import RunFolder

MOST_IMAGES = 100
"""Validation positives that are asked, drawn by lot where there are more: each is worked through at every stage."""


def choose(
    model: keras.Model, run: RunFolder, prepared: PreparedFolder, method: str | None = None, stage: int | None = None
) -> pd.DataFrame:
    """Methods and stages by how well they point on the validation positives, the best first; the area under the
    precision-recall curve decides between equals.

    Args:
        model: the run's network.
        run: whose validation fold is asked.
        prepared: the folder it was trained on.
        method: where it is settled, else None.
        stage: where it is settled, else None.

    Returns:
        ``method, stage, pointing, auprc, energy, chance, images``; a single row, without figures, where nothing is left
        to choose.
    """
    methods = [method] if method else list(METHODS)
    stages = [stage] if stage else list(STAGES)
    size = run.experiment.image_size
    if len(methods) * len(stages) == 1:
        return pd.DataFrame([{"method": methods[0], "stage": stages[0], "images": 0}])
    positives = positives_of(run, prepared, "validation")
    drawn = np.random.default_rng(run.experiment.seed).permutation(len(positives))[:MOST_IMAGES]
    positives = [positives[number] for number in sorted(drawn)]
    verify_files(prepared, size, positives)
    rows = []
    for depth in stages:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
        chance: list[float] = []
        for some in batches_of(positives):
            slopes = slopes_of(model, pixels_of(prepared, some, size), depth)
            masks = masks_of(prepared, some, size)
            chance += masks.mean(axis=(1, 2)).tolist()
            for name in methods:
                heats = shown(weigh(slopes, name), size)
                found[name] += [score_map(*pair) for pair in zip(heats, masks, strict=True)]
        for name in methods:
            mean = pd.DataFrame(found[name]).mean()
            rows.append({"method": name, "stage": depth, **mean, "chance": np.mean(chance), "images": len(positives)})
    table = pd.DataFrame(rows)
    return table.sort_values(["pointing", "auprc"], ascending=False, kind="stable", ignore_index=True)
