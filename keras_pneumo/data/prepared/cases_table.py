"""The csv tables of a prepared folder, row by row, from what is known of its images.

In come chosen sources, their labels, patients and what rendering gave; out come the tables that ``cases.csv``,
``truth.csv`` and ``quarantine.csv`` hold (``split.csv`` is made by splits.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Labels, Rejected
from keras_pneumo.data.labels.patients import Grouping
from keras_pneumo.data.prepared.rendering import Rendered
from keras_pneumo.data.prepared.sources import RadiographFile


def cases_table(
    sources: Sequence[RadiographFile], labels: Labels, grouping: Grouping, rendered: Mapping[str, Rendered]
) -> pd.DataFrame:
    """``cases.csv``: a row per prepared image, sorted by image id; mask_pixels are counted on the 1024x1024 grid."""
    rows = []
    for source in sources:
        label, image = labels.images[source.image_id], rendered[source.image_id]
        rows.append(
            {
                "image_id": source.image_id,
                "patient_id": grouping.patient_of[source.image_id],
                "sex": image.sex,
                "age": image.age,
                "view": image.view,
                "pixel_spacing_mm": image.pixel_spacing_mm,
                "pneumothorax": int(label.positive),
                "mask_pixels": rle.area(label.runs),
                "label_rows": len(label.rows),
                "source_sha256": source.sha256,
            }
        )
    table = pd.DataFrame(rows)
    return table.astype({"age": "float64", "pixel_spacing_mm": "float64"})


def truth_table(cases: pd.DataFrame, split: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """``truth.csv``: all that a referee needs to score a submission, in the order of ``cases``."""
    pixels = [rle.encode_runs(labels.images[image_id].runs) for image_id in cases["image_id"]]
    merged = cases.merge(split[["image_id", "subset", "fold"]], on="image_id", validate="one_to_one")
    columns = ["image_id", "patient_id", "subset", "fold", "pneumothorax", "encoded_pixels"]
    return merged.assign(encoded_pixels=pixels)[[*columns, "sex", "age", "view", "pixel_spacing_mm"]]


def quarantine_table(set_aside: Sequence[Rejected]) -> pd.DataFrame:
    """``quarantine.csv``: everything set aside, sorted by file and row; row is blank where the whole file is meant."""
    ordered = sorted(set_aside, key=lambda item: (item.file, item.row or 0, item.reason))
    rows = [(item.file, item.row, item.reason) for item in ordered]
    return pd.DataFrame(rows, columns=["file", "row", "reason"]).astype({"row": "Int64"})
