"""The SIIM-ACR data set: how its label file is found in a folder.

12,047 radiographs of 6,171 patients, 22.2% with pneumothorax, taken from NIH ChestX-ray14 and outlined anew for the
Kaggle competition "SIIM-ACR Pneumothorax Segmentation" (2019). The label file has a row per mask, so that an image may
have up to ten rows, 183 times overlapping: they are united. Older copies have no header, a byte-order mark, a space
before ``EncodedPixels`` or before ``-1``. PatientID is different in every file: only ``nih_id.csv`` names the patients
(see :mod:`~.patients`). Another data set gets a file of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from keras_pneumo.data.labels.cases import read_label_rows
from keras_pneumo.errors import PneumoError

LABEL_FILE_WORDS = ("rle", "train")
"""The label file has one of these words in its name: ``train-rle.csv``, ``stage_2_train.csv``, ``train-rle.csv.gz``."""


def find_label_csv(folder: Path, image_ids: Collection[str] = (), skip: Collection[Path] = ()) -> Path:
    """The label file in ``folder``: the csv named like ``*rle*`` or ``*train*`` that labels most of ``image_ids``.

    Raises:
        PneumoError: there is none, or several label equally many of the images.
    """
    skipped = {path.resolve() for path in skip}
    wanted = set(image_ids)
    candidates = sorted(
        path
        for path in (*folder.rglob("*.csv"), *folder.rglob("*.csv.gz"))
        if any(word in path.name.lower() for word in LABEL_FILE_WORDS)
        and not any(parent.resolve() in skipped for parent in path.parents)
        and not (path.parent / "manifest.json").exists()
    )
    named: dict[Path, int] = {}
    """How many of the images each label file names."""
    unusable: list[str] = []
    for path in candidates:
        try:
            named[path] = len(wanted & set(read_label_rows(path)[0]["image_id"]))
        except PneumoError as error:
            unusable.append(str(error).rstrip("."))
    usable = {path: count for path, count in named.items() if count > 0 or not wanted}
    if not usable:
        others = [f"{', '.join(path.name for path in named)} name none of its images"] if named else []
        tried = f" ({'; '.join([*others, *unusable])})" if candidates else ""
        raise PneumoError(f"No label csv for the images in {folder} was found{tried}. Give it with --labels FILE.")
    most = max(usable.values())
    best = [path for path, count in usable.items() if count == most]
    full = [path for path in best if "sample" not in path.name.lower()]
    best = full or best
    if len(best) > 1 and len({path.read_bytes() for path in best}) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in best)
        raise PneumoError(f"Several label files fit the images in {folder}: {names}. Choose one with --labels FILE.")
    return best[0]
