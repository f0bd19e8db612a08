"""Where on a radiograph heat should be none: its border, and the things that a table of devices knows of.

In: a prepared folder, perhaps with such a table. Out: regions by name, and how answers differ with a chest tube.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_pneumo.data.labels.devices import FILE as DEVICES
from keras_pneumo.data.labels.devices import TUBE, Devices, kinds_of, read_devices
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.evaluation.scoring.saliency import coverage_at
from keras_pneumo.evaluation.scoring.shortcuts import BORDER_REGION, accuracy_by_tube, border, region_shares
from keras_pneumo.explain.positives import patients_of

NO_SHARES = (float("nan"), float("nan"))
"""Of a region that is not on an image."""


def known_devices(prepared: PreparedFolder, named: Path | None) -> Devices | None:
    """Where tubes, leads and writing lie, by the table that was named, else by the folder's; None without any."""
    own = prepared.folder / DEVICES
    path = named or (own if own.is_file() else None)
    return read_devices(path) if path else None


def regions_of(devices: Devices | None) -> list[str]:
    """Names of all regions that are known: the border, and every kind in the table."""
    return [BORDER_REGION, *kinds_of(devices or {})]


def shares_in(
    region: str, devices: Devices | None, image_id: str, heat: np.ndarray, mask: np.ndarray
) -> tuple[float, float]:
    """A region's share of an image's heat and of the image, the true mask left out; NaN where there is no such thing.

    Args:
        region: its name.
        devices: as :func:`known_devices` found them.
        image_id: of the image.
        heat: float (S, S).
        mask: bool (S, S).
    """
    if region == BORDER_REGION:
        return region_shares(heat, mask, border(len(heat)).astype(np.float32))
    found = (devices or {}).get(image_id, {}).get(region)
    return NO_SHARES if found is None else region_shares(heat, mask, coverage_at(found, len(heat)))


def by_tube(
    prepared: PreparedFolder, probability: pd.Series, threshold: float, devices: Devices, resamples: int, seed: int
) -> pd.DataFrame:
    """How often the answers are right with a chest tube and without; see :func:`shortcuts.accuracy_by_tube`."""
    image_ids = [str(image_id) for image_id in probability.index]
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids].to_numpy() == 1
    tube = np.array([TUBE in devices.get(image_id, {}) for image_id in image_ids])
    decision = probability.to_numpy(float) >= threshold
    return accuracy_by_tube(positive, decision, tube, patients_of(prepared, image_ids), resamples, seed)
