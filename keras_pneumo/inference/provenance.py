"""The images that a run's weights have learned from, through all runs that it was started from.

In: run folders and prepared folders. Out: tables with a row per image, by which other images are compared with those
that a network has seen: by image id, by patient, by the hash of the file and by that of its pixels. A training writes
its own table, ``learned_images.csv``, beside ``experiment.json``, which has the table's hash; so nothing but the run
folder is needed later. Runs of earlier versions have none; theirs is made from their prepared folder, where that is
still to be found. No TensorFlow here.

Columns: ``image_id``; ``patient_id``; ``source_sha256`` of the file; ``pixels_sha256`` of its decoded pixels;
``difference_hash``, by which near duplicates are found (:mod:`keras_pneumo.data.prepared.near_duplicates`);
``subset``, ``train`` (weights were fitted to it) or ``validation`` (an epoch or a threshold was chosen by it);
``synthetic``, 1 for phantoms; ``earlier``, 0 where the run itself used the image, 1 where the run did that it was
started from, and so on. What an older folder does not know is blank.

Ids of phantoms are made up, in the forms of SIIM and NIH, so image ids are compared among phantoms and among
radiographs only. Every folder of phantoms has patients of its own, under the same numbers, so these are not compared at
all; the same phantom has the same image id. Hashes are compared always. Pseudonyms of patients are compared with those
of the same key only (:mod:`keras_pneumo.data.labels.pseudonyms`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_pneumo.data.labels.known import NIH_IMAGES
from keras_pneumo.data.labels.pseudonyms import incomparable, key_of
from keras_pneumo.data.prepared.folder import PreparedFolder, load_prepared
from keras_pneumo.data.prepared.manifest import read_manifest
from keras_pneumo.data.prepared.near_duplicates import difference_hashes
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes
from keras_pneumo.storage.tables import column_name, counted, image_id_of, listed, one_line, shown_id

if TYPE_CHECKING:
    import pandas as pd

    from keras_pneumo.inference.run import RunFolder

LEARNED = "learned_images.csv"
LEARNED_SHA256 = "learned_images_sha256"
"""In ``experiment.json``: the hash of the table."""

_KEYS = ("image_id", "patient_id", "source_sha256", "pixels_sha256")
COLUMNS = (*_KEYS, "difference_hash", "subset", "synthetic", "earlier")
_TEXTS = (*_KEYS, "difference_hash", "subset")

SAME = ("same_file", "same_pixels", "same_image", "same_patient")
"""Columns of :func:`compare_images`, from the strictest to the widest."""

_KIN = (
    NIH_IMAGES,
    *((name,) for name in ("padchest", "vindr", "chexpert", "mimic", "candid")),
)
"""Names of data sets, those together that share images."""

_NIH_NAME = re.compile(r"(\d{8})_\d{3}")
_HASHED = "sha256:"


def image_keys(prepared: PreparedFolder, image_ids: Iterable[str] | None = None) -> pd.DataFrame:
    """What identifies images of a prepared folder.

    Args:
        prepared: the folder.
        image_ids: only these, in their order; None for all.

    Returns:
        The columns ``image_id``, ``patient_id``, ``source_sha256``, ``pixels_sha256`` (all str) and ``synthetic`` (0 or
        1). Of a folder that joins phantoms with radiographs all count as radiographs.
    """
    table = prepared.cases.set_index("image_id", drop=False)
    if image_ids is not None:
        table = table.loc[list(image_ids)]
    manifest = prepared.manifest
    synthetic = prepared.synthetic and len(manifest.get("sources", {})) <= 1
    keys = table.reindex(columns=["image_id", "patient_id", "source_sha256"]).fillna("").reset_index(drop=True)
    pixels = keys["image_id"].map(manifest["pixels"]).fillna("").astype(str)
    return keys.assign(pixels_sha256=pixels, synthetic=int(synthetic))


def used_images(prepared: PreparedFolder, fold: int | None) -> pd.DataFrame:
    """The table of the images that one training uses, train and validation; see the module's docstring."""
    import pandas as pd

    parts = [
        image_keys(prepared, prepared.subset(subset, fold=fold)).assign(subset=subset)
        for subset in ("train", "validation")
    ]
    used = pd.concat(parts, ignore_index=True).assign(earlier=0)
    return used.assign(difference_hash=difference_hashes(prepared, used["image_id"].tolist()))[list(COLUMNS)]


def with_earlier(own: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """A run's own images and those of the run that it is started from; what both used in the same way stands once."""
    import pandas as pd

    both = pd.concat([own, earlier.assign(earlier=earlier["earlier"] + 1)], ignore_index=True)
    return both.drop_duplicates([name for name in COLUMNS if name != "earlier"], ignore_index=True)


def learned_images(run: RunFolder, known: Sequence[PreparedFolder] = ()) -> pd.DataFrame:
    """All images that a run's weights have learned from, or were chosen by, through all its earlier starts.

    Args:
        run: a finished run.
        known: prepared folders at hand, one of which may be the run's own. They are used for runs of earlier versions
            only, which have no table.

    Returns:
        The columns of the module's docstring.

    Raises:
        PneumoError: it cannot be known; the message says why, and what to do.
    """
    path, digest = run.folder / LEARNED, run.record.get(LEARNED_SHA256)
    if digest is not None:
        return read_learned(path, str(digest))
    # Earlier versions started only from runs of the same split and fold, so their starts used the same images.
    prepared = _own_prepared(run, known)
    return used_images(prepared, run.experiment.fold)


def read_learned(path: Path, digest: str) -> pd.DataFrame:
    """Read a table of learned images whose hash is known.

    Raises:
        PneumoError: it is missing, or not the one that was written.
    """
    import io

    import pandas as pd

    try:
        content = path.read_bytes()
    except OSError as error:
        raise PneumoError(
            f"{path} cannot be read ({error.strerror}): it says which images the weights have learned from. Copy the "
            "whole folder again."
        ) from None
    if sha256_bytes(content) != digest:
        raise PneumoError(
            f"{path} was changed after the training, so what the weights have learned from is not known. Copy the "
            "whole folder again."
        )
    table = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
    if "difference_hash" not in table:  # the first runs with such a table
        table["difference_hash"] = ""
    return table[list(COLUMNS)]


def compare_images(learned: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Which images share something with those that were learned from.

    Two names of NIH's patients are one where they differ in leading zeros only (NIH's own table writes ``2563``, the
    table of SIIM's images ``00002563``), and an NIH image's name (``00002563_001``) names its patient.

    Args:
        learned: from :func:`learned_images`.
        images: from :func:`image_keys`.

    Returns:
        A row per image of ``images``, in their order: ``image_id``, ``patient_id`` and, as bool, ``same_file``,
        ``same_pixels``, ``same_image`` and ``same_patient``.
    """
    result = images[["image_id", "patient_id"]].reset_index(drop=True)
    for column, key in zip(SAME, ("source_sha256", "pixels_sha256"), strict=False):
        seen = set(learned[key]) - {""}
        result[column] = images[key].isin(seen).to_numpy()
    kinds = images["synthetic"].tolist()
    names = {kind: {image_id_of(name) for name in rows["image_id"]} for kind, rows in learned.groupby("synthetic")}
    patients = {0: _patients_of(learned)}
    for column, seen_by_kind, names_of in (("same_image", names, _names), ("same_patient", patients, _patients)):
        result[column] = [
            any(name in seen_by_kind.get(kind, ()) or hashed(name) in seen_by_kind.get(kind, ()) for name in some)
            for kind, some in zip(kinds, map(names_of, images["image_id"], images["patient_id"]), strict=True)
        ]
    return result


def hashed(name: str) -> str:
    """A name as it stands in a table that leaves the run folder, of which nobody can read it."""
    return _HASHED + sha256_bytes(name.encode())[:32]


def without_names(learned: pd.DataFrame) -> pd.DataFrame:
    """The table with its ids :func:`hashed`, for a detector, which travels; :func:`compare_images` knows them.

    Pseudonyms stay as they are, since they show of which key they are.
    """
    pairs = zip(learned["image_id"], learned["patient_id"], strict=True)
    patients = [min(_patients(image_id, patient_id), default="") for image_id, patient_id in pairs]
    return learned.assign(
        image_id=[hashed(image_id_of(name)) for name in learned["image_id"]],
        patient_id=[hashed(name) if name and not key_of(name) else name for name in patients],
    )


class HeldOutComparison(NamedTuple):
    """How the images that a start has learned from were compared with those that are held out, for the record."""

    learned: int
    """Images that were learned from."""
    held_out: int
    """Images of validation and test, none of which is among them."""
    compared: dict[str, int]
    """By ``file``, ``pixels``, ``image`` and ``patient``: how many different ones of these had been learned from and
    were known, so that they could be looked for."""
    other_key: int = 0
    """Images held out whose patients could not be compared, since their pseudonyms are of another key."""

    @property
    def caution(self) -> str:
        """A sentence where patients could not be compared; else blank."""
        return other_key_sentence(self.other_key, self.held_out) if self.other_key else ""


def check_held_out(run: RunFolder, learned: pd.DataFrame, prepared: PreparedFolder, fold: int) -> HeldOutComparison:
    """Refuse to start from a run that has learned from what is held out now.

    No image may be held out, for validation or test, that an earlier training was fitted to or chosen by, and none of
    the same patient. Of the same split and fold validation is the same for both, and choosing by it twice is allowed.

    Args:
        run: the run to start from, for the message.
        learned: what it has learned from, by :func:`learned_images`.
        prepared: what is to be learned from now.
        fold: the validation fold now.

    Raises:
        PneumoError: something is shared; the message names the first few, and what to do.
    """
    import pandas as pd

    validation, test = (image_keys(prepared, prepared.subset(name, fold=fold)) for name in ("validation", "test"))
    same_split = run.record.get("split_sha256") == prepared.manifest["split_sha256"] and run.experiment.fold == fold
    chosen_by_same = same_split & (learned["subset"] == "validation") & learned["image_id"].isin(validation["image_id"])
    found = [compare_images(learned[~chosen_by_same], validation), compare_images(learned, test)]
    shared = pd.concat(found, ignore_index=True)
    shared = shared[shared[list(SAME)].any(axis=1)]
    held_out = len(validation) + len(test)
    if len(shared):
        raise PneumoError(_refusal(run, shared, prepared, held_out))
    images = int(learned["image_id"].nunique())
    compared = {
        "file": int(learned.loc[learned["source_sha256"] != "", "source_sha256"].nunique()),
        "pixels": int(learned.loc[learned["pixels_sha256"] != "", "pixels_sha256"].nunique()),
        "image": images,
        "patient": len(_patients_of(learned)),
    }
    other_key = other_key_count(learned, pd.concat([validation, test], ignore_index=True))
    return HeldOutComparison(images, held_out, compared, other_key)


def describe_images(prepared: PreparedFolder, images: int) -> str:
    """What a prepared folder's images are, for a declaration: ``SIIM-ACR (200 images)``."""
    sources = list(prepared.manifest.get("sources", {}))
    if prepared.synthetic:
        name = "synthetic phantoms" if len(sources) <= 1 else f"{listed(sources)}, synthetic phantoms among them"
    else:
        name = listed(sources) or "images of an earlier version's prepared folder"
    return f"{name} ({counted(images, 'image')})"


def describe_learned(record: Mapping[str, Any], learned: pd.DataFrame) -> str:
    """What a run itself was trained on, as :func:`describe_images` says it; of a run of an earlier version, roughly."""
    if "trained_on" in record:
        return one_line(str(record["trained_on"]), 120)
    kind = "synthetic phantoms" if record.get("synthetic") is True else f"split {str(record.get('split_sha256'))[:12]}"
    return f"{kind} ({counted(int((learned['earlier'] == 0).sum()), 'image')})"


def sources_named(seen: str, prepared: PreparedFolder) -> list[str]:
    """The sources of a prepared folder whose images may be in data sets that are known by name only.

    SIIM-ACR, RSNA's and Google's radiographs are NIH's, so each of these names stands for the others; phantoms are in
    no data set.

    Args:
        seen: names of data sets, such as a declaration's.
        prepared: the folder.
    """
    sources = list(prepared.manifest.get("sources", {}))
    if prepared.synthetic and len(sources) <= 1:
        return []
    names = column_name(seen)
    return [source for source in sources if any(_shares_images(names, column_name(source), kin) for kin in _KIN)]


def _shares_images(names: str, source: str, kin: Sequence[str]) -> bool:
    return any(name in names for name in kin) and any(name in source for name in kin)


def caution_by_name(seen: str, prepared: PreparedFolder) -> str:
    """A sentence where images of a prepared folder may be among those that are known by name only; else blank."""
    sources = sources_named(seen, prepared)
    if not sources:
        return ""
    return (
        f"The training started from weights that have learned from {one_line(seen, 120)}; from which images is not "
        f"known. Images here ({listed(sources)}) may be among them, so scores on them, held out or not, may be too "
        "high. Evaluate on other data too."
    )


def _refusal(run: RunFolder, shared: pd.DataFrame, prepared: PreparedFolder, held_out: int) -> str:
    itself = shared[shared[["same_file", "same_pixels", "same_image"]].any(axis=1)]
    others = shared.drop(itself.index)
    parts = []
    if len(itself):
        parts.append(f"learned from {counted(len(itself), 'image')} of them ({_shown(itself['image_id'])})")
    if len(others):
        patients = others["patient_id"].drop_duplicates()
        parts.append(
            f"learned from other images of {counted(len(patients), 'patient')} of "
            f"{'the rest' if parts else 'them'} ({_shown(patients)}; {counted(len(others), 'image')} held out)"
        )
    advice = "Start from a run that has not seen them, or take their patients out of the data and prepare again."
    if len(others):
        advice += (
            " If these patients only have the same number in two hospitals, write the hospital before it in the "
            "patient table (--patients), and prepare again."
        )
    return (
        f"{run.folder} cannot be started from: {prepared.folder} holds out {counted(held_out, 'image')} for validation "
        f"and test, and it, or a run that it was started from, {' and '.join(parts)}. {advice}"
    )


def _own_prepared(run: RunFolder, known: Sequence[PreparedFolder]) -> PreparedFolder:
    """The prepared folder that a run of an earlier version was trained on.

    Raises:
        PneumoError: it is not to be found.
    """
    split = str(run.record.get("split_sha256"))
    for prepared in known:
        if prepared.manifest["split_sha256"] == split:
            return prepared
    looked = _named_in(str(run.record.get("command", "")))
    for folder in looked:
        try:
            if read_manifest(folder).get("split_sha256") == split:
                return load_prepared(folder)
        except PneumoError:
            continue
    where = f" It is no more in {listed(looked)}." if looked else ""
    raise PneumoError(
        f"It is not known which images {run.folder} has learned from: it was trained by an earlier version, which "
        f"wrote no {LEARNED}, so its prepared folder (split {split[:12]}) is needed.{where} Put that folder back where "
        "it was, or train the run again."
    )


def _named_in(command: str) -> list[Path]:
    """Prepared folders that a recorded command line of ``train`` may mean."""
    try:
        words = shlex.split(command)
    except ValueError:
        return []
    given: dict[str, str] = {}
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in ("--data", "--prepared"):
            given[name] = value if equals else following
    folders = [Path(given[name]) for name in ("--prepared", "--data") if given.get(name)]
    if given.get("--data"):
        folders.append(Path("data") / "prepared" / Path(given["--data"]).resolve().name)
    return folders


def _names(image_id: str, _patient_id: str) -> set[str]:
    return {image_id_of(image_id)}


def _patients(image_id: str, patient_id: str) -> set[str]:
    """The names of an image's patient: the table's, and the number in an NIH image's name; none where it has none."""
    names = set() if patient_id in ("", f"image-{image_id}") else {patient_id}
    if match := _NIH_NAME.fullmatch(image_id_of(image_id)):
        names.add(match.group(1))
    return {name.lstrip("0") or name if name.isdigit() else name for name in names}


def other_key_count(learned: pd.DataFrame, images: pd.DataFrame) -> int:
    """How many images have a patient that cannot be compared, since its pseudonym is of another key.

    Args:
        learned: from :func:`learned_images`.
        images: from :func:`image_keys`.
    """
    names = learned.loc[learned["synthetic"] == 0, "patient_id"]
    return sum(incomparable(names, images.loc[images["synthetic"] == 0, "patient_id"]))


def other_key_sentence(number: int, total: int) -> str:
    """What was compared, and what was not, where patients have pseudonyms of different keys."""
    return (
        f"Patients of {number:,} of {counted(total, 'image')} could not be compared with those that were learned from, "
        "since their pseudonyms are of different keys. All else was compared. To compare patients too, prepare both "
        "folders with one key (prepare --pseudonym-key)."
    )


def _patients_of(learned: pd.DataFrame) -> set[str]:
    """The patients of all radiographs in a table; those of phantoms are no one's."""
    rows = learned[learned["synthetic"] == 0]
    return {name for names in map(_patients, rows["image_id"], rows["patient_id"]) for name in names}


def _shown(names: Iterable[Any]) -> str:
    return listed((shown_id(str(name)) for name in names), 3)
