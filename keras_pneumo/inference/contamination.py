"""Which images of a prepared folder a run or a detector has learned from, and which are near duplicates of such.

In: what was learned from (:mod:`~.provenance`), and a prepared folder. Out: a row per image with what it shares, and
sentences. A score on images that a network has learned from says nothing about new ones, so an external test set is
compared image by image before it is scored. No TensorFlow here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.prepared.near_duplicates import NEAR, difference_hashes, nearest
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.provenance import (
    SAME,
    caution_by_name,
    compare_images,
    image_keys,
    learned_images,
    other_key_count,
    other_key_sentence,
)
from keras_pneumo.storage.files import write_table
from keras_pneumo.storage.tables import counted, safe_columns

if TYPE_CHECKING:
    from keras_pneumo.inference.run import RunFolder

FILE = "contamination.csv"
"""``image_id, same_file, same_pixels, same_image, same_patient, near_duplicate, nearest_bits``, a row per image."""

_WORDS = {
    "same_file": "the same file",
    "same_pixels": "the same pixels",
    "same_image": "the same image id or NIH name",
    "near_duplicate": f"a near duplicate (at most {NEAR} of 512 bits of the difference hash differ)",
    "same_patient": "another image of the same patient",
}
"""What an image may share, from the strictest to the widest."""


@dataclass(frozen=True, eq=False)
class Contamination:
    """What the images of a prepared folder share with those that were learned from."""

    table: pd.DataFrame
    """A row per image: the columns of :data:`FILE`. Where nothing is known of what was learned from, all is False."""
    learned: int
    """How many images were learned from."""
    unknown: str = ""
    """Why it is not known what was learned from; blank where it is."""
    without_hash: int = 0
    """Learned images whose difference hash is not known, so that no near duplicate of them can be found."""
    other_key: int = 0
    """Images whose patients cannot be compared, since their pseudonyms are of another key."""
    by_name: str = ""
    """A sentence where data sets were learned from of which only the names are known, and images here are of them."""

    @property
    def shared(self) -> np.ndarray:
        """Whether each image shares anything: bool (images,)."""
        return np.asarray(self.table[list(_WORDS)].to_numpy(bool).any(axis=1))

    @property
    def sentences(self) -> list[str]:
        """What was compared and found, for a person."""
        named = [self.by_name] if self.by_name else []
        if self.unknown:
            return [f"It cannot be checked whether images here were learned from. {self.unknown}", *named]
        total, shared = len(self.table), int(self.shared.sum())
        if not shared:
            found = [f"None of the {counted(total, 'image')} is among the {self.learned:,} that were learned from."]
        else:
            counts, rest = [], np.ones(total, bool)
            for name, words in _WORDS.items():  # each image once, by the strictest
                own = self.table[name].to_numpy(bool) & rest
                rest &= ~own
                counts += [f"{words}: {int(own.sum()):,}"] if own.any() else []
            found = [
                f"{shared:,} of {counted(total, 'image')} {'is' if shared == 1 else 'are'} or may be among the "
                f"{self.learned:,} that were learned from ({'; '.join(counts)})."
            ]
        if self.without_hash:
            found.append(
                f"Near duplicates of {self.without_hash:,} of the images that were learned from were not looked for, "
                "since the run is of a version that kept no difference hash of them."
            )
        if self.other_key:
            found.append(other_key_sentence(self.other_key, total))
        return found + named

    def write(self, folder: Path) -> Path:
        """Write the table into a folder, as :data:`FILE`."""
        write_table(folder / FILE, safe_columns(self.table.astype(dict.fromkeys(_WORDS, int)), "image_id"))
        return folder / FILE


def contamination_by(
    runs: Sequence[RunFolder], prepared: PreparedFolder, image_ids: Sequence[str] | None = None
) -> Contamination:
    """Compare images with what some runs have learned from, through all their earlier starts.

    Args:
        runs: run folders, or the members of a detector (which keeps hashes of names).
        prepared: the folder of the images.
        image_ids: only these; None for all.
    """
    ids = prepared.cases["image_id"].tolist() if image_ids is None else list(image_ids)
    unlisted = dict.fromkeys(run.unlisted_images for run in runs)
    by_name = caution_by_name(", ".join(filter(None, unlisted)), prepared)
    try:
        learned = pd.concat([learned_images(run, [prepared]) for run in runs], ignore_index=True)
    except PneumoError as error:
        return Contamination(_nothing(ids), 0, str(error), by_name=by_name)
    return replace(compare_with(learned, prepared, ids), by_name=by_name)


def compare_with(learned: pd.DataFrame, prepared: PreparedFolder, image_ids: Sequence[str]) -> Contamination:
    """Compare images of a prepared folder with a table of learned ones; see :func:`.provenance.learned_images`."""
    ids = list(image_ids)
    keys = image_keys(prepared, ids)
    table = compare_images(learned, keys)[["image_id", *SAME]].reset_index(drop=True)
    hashes = learned.loc[learned["difference_hash"] != "", "difference_hash"].drop_duplicates().tolist()
    without = learned.loc[learned["difference_hash"] == "", "image_id"].nunique()
    bits = np.full(len(ids), -1)
    if hashes and ids:
        bits = nearest(difference_hashes(prepared, ids), hashes)[1]
    table["near_duplicate"] = (bits >= 0) & (bits <= NEAR)
    table["nearest_bits"] = pd.Series(bits, dtype="Int64").where(bits >= 0)
    return Contamination(
        table,
        int(learned["image_id"].nunique()),
        without_hash=int(without),
        other_key=other_key_count(learned, keys),
    )


def _nothing(image_ids: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame({"image_id": list(image_ids)}).assign(**dict.fromkeys(SAME, False), near_duplicate=False)
    return table.assign(nearest_bits=pd.Series(pd.NA, index=table.index, dtype="Int64"))
