"""Reads a prepared folder, which training, prediction and the referee share.

In comes a folder that :func:`~.prepare.prepare` made; out come its tables and the paths of its images and masks. That
they are what was prepared is checked: tables against the manifest when the folder is loaded, images before use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_pneumo.data.prepared.manifest import (
    CASES,
    KEY_FREE,
    MANIFEST_NAME,
    SPLIT,
    TABLES,
    TRUTH,
    positives_without_mask,
    prepared_sha256,
    read_manifest,
    read_prepared_table,
)
from keras_pneumo.data.prepared.rendering import expected_names, image_name, intact_files, mask_name
from keras_pneumo.data.prepared.split import check_split, split_sha256, subset_ids
from keras_pneumo.data.prepared.verified import fingerprint, remember_verified, was_verified
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_file

if TYPE_CHECKING:  # the commands of a network name this folder in their help, which is to come at once
    import pandas as pd


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared folder whose tables are as they were written."""

    folder: Path
    cases: pd.DataFrame
    split: pd.DataFrame
    truth: pd.DataFrame
    manifest: dict[str, Any]

    def image_path(self, image_id: str, size: int) -> Path:
        """The 8-bit grey PNG of an image, size x size pixels."""
        return self.folder / image_name(image_id, size)

    def mask_path(self, image_id: str, size: int) -> Path:
        """The mask PNG (0 or 255) of a positive image, size x size pixels; negatives have none."""
        return self.folder / mask_name(image_id, size)

    @property
    def synthetic(self) -> bool:
        """Whether all or some of the images are phantoms."""
        return self.manifest.get("synthetic") is True

    @property
    def lacks_masks(self) -> bool:
        """Whether there are positives without a mask, so that nothing about masks can be learnt or scored."""
        return positives_without_mask(self.cases) > 0

    def encoded_pixels(self) -> pd.Series:
        """The true mask of each image as run-length text, by image id.

        Raises:
            PneumoError: there are positives without a mask.
        """
        self.require_masks()
        return self.truth.set_index("image_id")["encoded_pixels"].astype(str)

    def require_masks(self) -> None:
        """Refuse a folder with positives that have no mask.

        Raises:
            PneumoError: it is one; the message counts them.
        """
        if bare := positives_without_mask(self.cases):
            positives = int((self.cases["pneumothorax"] == 1).sum())
            raise PneumoError(
                f"{bare} of the {positives} positives in {self.folder} have no mask, so a segmenter can be neither "
                "trained nor scored on it. Train a classifier, or prepare only data with masks."
            )

    def subset(self, name: str, fold: int | None = None) -> list[str]:
        """Image ids of ``train``, ``validation`` or ``test``, in the table's order; see :func:`subset_ids`."""
        return subset_ids(self.split, name, fold)


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared one, rather than one of radiographs; whether it is whole, loading it tells."""
    return (folder / MANIFEST_NAME).is_file()


def is_one_prepared(data: Sequence[Path], labels_given: bool) -> bool:
    """Whether ``data`` is one prepared folder, which has its own labels and patients.

    Raises:
        PneumoError: it is, and labels, patients or decisions about them are given besides.
    """
    if len(data) != 1 or not is_prepared(data[0]):
        return False
    if labels_given:
        raise PneumoError(f"{data[0]} is prepared: its labels and patients are in it. Leave out these options.")
    return True


def find_prepared(folder: Path, split: str, sizes: Iterable[int]) -> Path:
    """The prepared folder that has a split and image sizes: ``folder`` itself, or the one among those in it.

    Args:
        folder: a prepared folder (returned unread: loading it tells what is wrong with it), or one that holds some.
        split: ``split_sha256`` of the manifest that is looked for.
        sizes: sides in pixels that it must have.

    Raises:
        PneumoError: none fits.
    """
    if is_prepared(folder):
        return folder
    others = []
    for path in sorted(manifest.parent for manifest in folder.glob(f"*/{MANIFEST_NAME}")):
        try:
            manifest = read_manifest(path)
        except PneumoError:
            continue  # an unfinished one beside the one that is looked for harms nobody
        own = str(manifest.get("split_sha256"))
        if own == split and set(sizes) <= set(manifest.get("sizes", [])):
            return path
        others.append(f"{path.name} has the split {own[:12]}" if own != split else f"{path.name} lacks a size")
    seen = f" ({'; '.join(others)})" if others else ""
    raise PneumoError(
        f"{folder} is no prepared folder and holds none with the split {split[:12]} and images of "
        f"{', '.join(str(size) for size in sorted(set(sizes)))} pixels{seen}. Name the folder that the runs were "
        "trained on (--data; with make: PREPARED=)."
    )


def load_prepared(folder: Path) -> PreparedFolder:
    """Load a prepared folder; image files are not read (see :func:`verify_files`).

    Raises:
        PneumoError: the folder is unfinished or damaged, one of its tables was edited, or a patient stands in two
            subsets.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tables, pixels = manifest.get("tables"), manifest.get("pixels")
    again = (
        f"Run keras-pneumo prepare DATA --out {folder} again, with the labels and the patient table it was made from."
    )
    if not isinstance(tables, dict) or not isinstance(pixels, dict):
        raise PneumoError(f"{folder / MANIFEST_NAME} lacks the hashes of tables and images. {again}")
    sizes, vanished = manifest.get("sizes"), manifest.get("vanished")
    if not isinstance(sizes, list) or not sizes or not all(isinstance(size, int) for size in sizes):
        raise PneumoError(f"{folder / MANIFEST_NAME} lacks the sizes that were prepared. {again}")
    if not isinstance(vanished, dict) or not isinstance(manifest.get("files"), dict):
        raise PneumoError(f"{folder / MANIFEST_NAME} lacks what it says of images and masks. {again}")
    for name in TABLES:
        try:
            digest = sha256_file(folder / name)
        except OSError as error:
            raise PneumoError(f"{folder / name} cannot be read: {error.strerror}. {again}") from error
        if digest != tables.get(name):
            raise PneumoError(f"{folder / name} was changed after it was prepared. {again}")
    split = read_prepared_table(folder / SPLIT)
    named = (manifest.get("prepared_sha256"), manifest.get("split_sha256"))
    if named != (prepared_sha256(tables | (manifest.get(KEY_FREE) or {}), pixels), split_sha256(split)):
        raise PneumoError(f"{folder / MANIFEST_NAME} was changed: its hashes do not fit the tables. {again}")
    check_split(split)
    return PreparedFolder(
        folder, read_prepared_table(folder / CASES), split, read_prepared_table(folder / TRUTH), manifest
    )


def verify_files(prepared: PreparedFolder, size: int, image_ids: Iterable[str] | None = None) -> None:
    """Check images and masks of one size against the manifest, byte for byte.

    Files that were checked on this machine before and are untouched since are not read again; see :mod:`.verified`.

    Args:
        prepared: the folder.
        size: side in pixels.
        image_ids: only these; None for all.

    Raises:
        PneumoError: the size was not prepared, an image is not in the folder's table, or files are missing or damaged.
    """
    sizes = prepared.manifest.get("sizes", [])
    mend = f"Run keras-pneumo prepare DATA --out {prepared.folder} --size {size}"
    if size not in sizes:
        raise PneumoError(
            f"{prepared.folder} has no images of {size} pixels, only {', '.join(map(str, sizes))}. {mend}."
        )
    has_mask = dict(zip(prepared.cases["image_id"], prepared.cases["mask_pixels"] > 0, strict=True))
    recorded = prepared.manifest.get("files", {})
    names: list[str] = []
    for image_id in has_mask if image_ids is None else image_ids:
        if image_id not in has_mask:
            raise PneumoError(f"{prepared.folder} has no image {image_id}. Choose one of its cases.csv.")
        names += expected_names(image_id, size, bool(has_mask[image_id]))
    wanted = {name: recorded.get(name, "") for name in names}
    mark = fingerprint(prepared.folder, wanted)
    if mark is not None and was_verified(mark):
        return
    intact = intact_files(prepared.folder, wanted)
    bad = [name for name in names if name not in intact]
    if bad:
        shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise PneumoError(
            f"{len(bad)} of {len(names)} files in {prepared.folder} are missing or damaged ({shown}). {mend} to make "
            "them again."
        )
    if mark is not None:
        remember_verified(mark)
