"""Which heat map to show: the method and stage that point best on validation positives.

In: a run's network and the prepared folder. Out: a table of all that were tried, the best first. Which stage points at
anything differs from network to network (a 3x3 grid of the last stage cannot point at a thin rim of air), so it is
chosen as every threshold is: on validation, and applied unchanged to what is reported.
"""

from __future__ import annotations

import keras
import pandas as pd

from keras_pneumo.data.prepared import Prepared, verify_files
from keras_pneumo.evaluation.saliency import score_map
from keras_pneumo.prediction.gradcam import BATCH, METHODS, STAGES, shown, slopes_of, weigh
from keras_pneumo.prediction.positives import masks_of, pixels_of, positives_of
from keras_pneumo.prediction.run import Run


def choose(
    model: keras.Model, run: Run, prepared: Prepared, method: str | None = None, stage: int | None = None
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
    verify_files(prepared, size, positives)
    images, masks = pixels_of(prepared, positives, size), masks_of(prepared, positives, size)
    rows = []
    for depth in stages:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
        for start in range(0, len(images), BATCH):
            slopes = slopes_of(model, images[start : start + BATCH], depth)
            for name in methods:
                heats = shown(weigh(slopes, name), size)
                found[name] += [score_map(*pair) for pair in zip(heats, masks[start : start + BATCH], strict=True)]
        for name in methods:
            mean = pd.DataFrame(found[name]).mean()
            rows.append({"method": name, "stage": depth, **mean, "chance": masks.mean(), "images": len(images)})
    table = pd.DataFrame(rows)
    return table.sort_values(["pointing", "auprc"], ascending=False, kind="stable", ignore_index=True)
