"""Writes the tables and the manifest of a prepared folder, and reads them again.

In come a plan and the rendered images; out come ``cases.csv``, ``split.csv``, ``truth.csv``, ``quarantine.csv`` and,
last of all, ``manifest.json``: what the folder was made from, what is in it, and the hashes that prove it. There is no
date and no path of this machine in them, so the same data give the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from keras_pneumo import __version__
from keras_pneumo.config import Entries, validated
from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Labels, Rejected
from keras_pneumo.data.labels.patients import Grouping
from keras_pneumo.data.labels.pseudonyms import key_free_names
from keras_pneumo.data.prepared.plan import PreparationPlan
from keras_pneumo.data.prepared.rendering import Rendered, expected_names
from keras_pneumo.data.prepared.scanning import RadiographFile
from keras_pneumo.data.prepared.split import SUBSETS, make_split, split_sha256, test_only_split
from keras_pneumo.data.radiographs.decoders import DECODERS
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import read_json, sha256_bytes, sha256_file, table_bytes, write_json, write_table
from keras_pneumo.storage.tables import counted, listed, visible

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MANIFEST_NAME = "manifest.json"
CASES, SPLIT, TRUTH, QUARANTINE = "cases.csv", "split.csv", "truth.csv", "quarantine.csv"
TABLES = (CASES, SPLIT, TRUTH, QUARANTINE)

PSEUDONYM_KEY = "pseudonym_key"
"""In the manifest and in a run's record: the fingerprint of the key of the patients' pseudonyms; None where there are
none. Folders of earlier versions have no such entry, and hashes without a key."""

KEY_FREE = "tables_without_key"
"""In the manifest, where there are pseudonyms: hashes of the tables as they were with key-free names of patients."""

BOXES = "boxes.csv"
"""``image_id, x, y, width, height``: boxes around pneumothoraces, in the file's own pixels, where the labels have some.
No score and no training depends on them, so they are no part of the manifest."""

MAKERS = "makers.csv"
"""``image_id, maker``: the maker of the machine as the DICOM file names it, where it does. It serves to score each
maker's images apart; no training depends on it, and it is no part of the manifest."""

_PACKAGES = ("numpy", "opencv-python-headless", "pandas", "pillow", "pycocotools", "pydicom")
_TEXT = ("image_id", "patient_id", "sex", "view", "subset", "encoded_pixels", "file", "reason")
_SOURCE_TEXT = ("source", "source_sha256")
_NUMBERS = ("age", "rows", "columns", "pixel_spacing_mm", "row")


def write_folder(
    out: Path, plan: PreparationPlan, sizes: Sequence[int], rendered: Mapping[str, Rendered]
) -> dict[str, Any]:
    """Write the tables of a prepared folder whose images are there, then its manifest, and return the latter.

    Raises:
        PneumoError: no image could be rendered, or a file cannot be written.
    """
    usable = [source for source in plan.sources if not rendered[source.image_id].error]
    failed = [
        Rejected(s.relative, None, rendered[s.image_id].error) for s in plan.sources if rendered[s.image_id].error
    ]
    if not usable:
        reasons = "; ".join(sorted({item.reason for item in failed})[:3])
        raise PneumoError(
            f"None of the {len(plan.sources)} labelled images can be prepared: {reasons}. Check these files."
        )
    set_aside = [*plan.set_aside, *failed]
    cases = cases_table(usable, plan.labels, plan.grouping, rendered)
    if _lacks_sources(out):
        cases = cases.drop(columns="source")
    split = test_only_split(cases) if plan.test_only else make_split(cases, plan.seed)
    split_notes = split.attrs.get("notes", [])
    key_free: dict[str, str] = {}
    if plan.key is not None:
        pseudonyms = {name: plan.key.pseudonym(name) for name in plan.hashed}
        cases, split = (_renamed(table, pseudonyms) for table in (cases, split))
        key_free = _key_free_hashes(cases, split, plan.labels)
    tables = {
        CASES: write_table(out / CASES, cases),
        SPLIT: write_table(out / SPLIT, split),
        TRUTH: write_table(out / TRUTH, truth_table(cases, split, plan.labels)),
        QUARANTINE: write_table(out / QUARANTINE, quarantine_table(set_aside)),
    }
    pixels = {source.image_id: rendered[source.image_id].pixels_sha256 for source in usable}
    vanished = {str(size): [s.image_id for s in usable if size in rendered[s.image_id].vanished] for size in sizes}
    source_notes = _source_notes(cases, pixels)
    manifest = {
        "format": FORMAT,
        "source": plan.record,
        "synthetic": plan.synthetic,
        "versions": _versions(),
        "decoder": _decoders(usable),
        "counts": _counts(cases, split, len(set_aside)),
        "sizes": list(sizes),
        "split_sha256": split_sha256(split),
        "prepared_sha256": prepared_sha256(tables | key_free, pixels),
        **({} if plan.hashed and plan.key is None else {PSEUDONYM_KEY: plan.key.fingerprint if plan.key else None}),
        **({KEY_FREE: key_free} if key_free else {}),
        "patients": plan.grouping.source,
        "patients_note": plan.grouping.note,
        "labels": plan.label_records,
        "sources": _source_counts(cases),
        "source_notes": source_notes,
        "notes": [
            *plan.notes,
            *split_notes,
            *source_notes,
            *_label_notes(plan, cases),
            *_shape_notes(cases, sizes),
            *_vanished_notes(vanished),
        ],
        "vanished_masks": {size: len(image_ids) for size, image_ids in vanished.items()},
        "vanished": vanished,
        "tables": tables,
        "pixels": pixels,
        "unreadable": {image_id: image.error for image_id, image in sorted(rendered.items()) if image.error},
        "files": {
            name: rendered[source.image_id].files[name]
            for source in usable
            for size in sizes
            for name in expected_names(source.image_id, size, plan.labels.images[source.image_id].has_mask)
        },
    }
    _write_boxes(out, usable, plan.labels)
    _write_makers(out, usable)
    write_json(out / MANIFEST_NAME, manifest)
    return manifest


def _renamed(table: pd.DataFrame, pseudonyms: Mapping[str, str]) -> pd.DataFrame:
    """A table with pseudonyms in place of hashes of PatientID."""
    return table.assign(patient_id=[pseudonyms.get(name, name) for name in table["patient_id"]])


def _key_free_hashes(cases: pd.DataFrame, split: pd.DataFrame, labels: Labels) -> dict[str, str]:
    """Hashes of the tables that name patients, as they were if :func:`key_free_names` stood in them."""
    cases, split = (
        table.assign(patient_id=key_free_names(table["image_id"], table["patient_id"])) for table in (cases, split)
    )
    tables = {CASES: cases, SPLIT: split, TRUTH: truth_table(cases, split, labels)}
    return {name: sha256_bytes(table_bytes(table)) for name, table in tables.items()}


def _lacks_sources(out: Path) -> bool:
    """Whether a folder was prepared before sources were recorded: its tables stay as they are, and so its hashes."""
    try:
        return "sources" not in read_manifest(out)
    except PneumoError:  # a new folder, or a damaged one
        return False


def require_split(plan: PreparationPlan) -> None:
    """Refuse a plan whose images cannot be split, before any of them is decoded.

    Raises:
        PneumoError: there are too few patients with or without a pneumothorax.
    """
    if plan.test_only:
        return
    undecoded = {source.image_id: Rendered(source.image_id) for source in plan.sources}
    make_split(cases_table(plan.sources, plan.labels, plan.grouping, undecoded), plan.seed)


def cases_table(
    sources: Sequence[RadiographFile], labels: Labels, grouping: Grouping, rendered: Mapping[str, Rendered]
) -> pd.DataFrame:
    """``cases.csv``: a row per prepared image, sorted by image id; mask_pixels are counted on the 1024x1024 grid.

    Rows, columns and pixel spacing are the file's. Rows and columns are left out where those of an image are not known,
    because it was prepared by an older version: then the table stays as that version wrote it.
    """
    import pandas as pd

    rows = []
    for source in sources:
        label, image = labels.images[source.image_id], rendered[source.image_id]
        rows.append(
            {
                "image_id": source.image_id,
                "patient_id": grouping.patient_of[source.image_id],
                "sex": image.sex or label.facts.sex,
                "age": label.facts.age if image.age is None else image.age,
                "view": image.view or label.facts.view,
                "rows": image.rows,
                "columns": image.columns,
                "pixel_spacing_mm": image.pixel_spacing_mm,
                "pneumothorax": int(label.positive),
                "mask_pixels": rle.area(label.runs),
                "label_rows": len(label.rows),
                "source": source.source,
                "source_sha256": source.sha256,
            }
        )
    table = pd.DataFrame(rows)
    table = table.astype({"age": "float64", "pixel_spacing_mm": "float64"})
    if table[["rows", "columns"]].isna().any(axis=None):
        return table.drop(columns=["rows", "columns"])
    return table.astype({"rows": "int64", "columns": "int64"})


def truth_table(cases: pd.DataFrame, split: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """``truth.csv``: all that a referee needs to score a submission, in the order of ``cases``.

    Masks and pixel spacing are those of the 1024x1024 grid.
    """
    pixels = [rle.encode_runs(labels.images[image_id].runs) for image_id in cases["image_id"]]
    merged = cases.merge(split[["image_id", "subset", "fold"]], on="image_id", validate="one_to_one")
    if "rows" in merged:
        side = merged[["rows", "columns"]].max(axis=1)
        merged["pixel_spacing_mm"] = (merged["pixel_spacing_mm"] * (side / rle.MASK_SIZE)).round(6)
    columns = ["image_id", "patient_id", "subset", "fold", "pneumothorax", "encoded_pixels"]
    if positives_without_mask(cases):
        columns.remove("encoded_pixels")
    further = ["source"] if "source" in cases and cases["source"].nunique() > 1 else []
    return merged.assign(encoded_pixels=pixels)[[*columns, "sex", "age", "view", "pixel_spacing_mm", *further]]


def positives_without_mask(cases: pd.DataFrame) -> int:
    """How many cases have a pneumothorax but no mask of it; see :func:`cases_table`."""
    return int(((cases["pneumothorax"] == 1) & (cases["mask_pixels"] == 0)).sum())


def _write_boxes(out: Path, sources: Sequence[RadiographFile], labels: Labels) -> None:
    """Write the boxes of the prepared images, or remove those of an earlier call."""
    import pandas as pd

    rows = [(source.image_id, *box) for source in sources for box in labels.images[source.image_id].boxes]
    if rows:
        write_table(out / BOXES, pd.DataFrame(rows, columns=["image_id", "x", "y", "width", "height"]).round(3))
    else:
        (out / BOXES).unlink(missing_ok=True)


def _write_makers(out: Path, sources: Sequence[RadiographFile]) -> None:
    """Write the makers of the prepared images, or remove those of an earlier call."""
    import pandas as pd

    rows = [(source.image_id, source.maker) for source in sources if source.maker]
    if rows:
        write_table(out / MAKERS, pd.DataFrame(rows, columns=["image_id", "maker"]))
    else:
        (out / MAKERS).unlink(missing_ok=True)


def _source_counts(cases: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Images and positives of each source; of an older folder nothing, since it has none."""
    if "source" not in cases:
        return {}
    return {
        str(name): {"images": len(rows), "positive": int(rows["pneumothorax"].sum())}
        for name, rows in cases.groupby("source", sort=True)
    }


_TOGETHER = 0.3
"""Cramer's V from which source and label are said to go together: 30% beside 58% positives of equally many images."""

_ENOUGH = 20
"""Images below which nothing is said of it: of few, some always lie so by chance."""


def _source_warning(cases: pd.DataFrame) -> str | None:
    """A sentence where label and source go together; None where they do not.

    By Cramer's V of their table, 0 (independent) to 1 (the source is the label). A network then learns the source,
    which shows in every corner of a radiograph, instead of the disease.

    Args:
        cases: columns ``source`` and ``pneumothorax`` (0 or 1).
    """
    import pandas as pd

    if len(cases) < _ENOUGH:
        return None
    counts = pd.crosstab(cases["source"], cases["pneumothorax"]).to_numpy(float)
    if min(counts.shape) < 2:
        return None
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    association = float(np.sqrt(((counts - expected) ** 2 / expected).sum() / counts.sum()))
    if association < _TOGETHER:
        return None
    shares = cases.groupby("source")["pneumothorax"].agg(["mean", "size"])
    shown = ", ".join(f"{name} {row['mean']:.0%} of {int(row['size']):,}" for name, row in shares.iterrows())
    return (
        f"Label and source go together (Cramer's V {association:.2f}; positive: {shown}): a network can learn the "
        "source instead of the pneumothorax. Scores within each source show less of that than scores over all."
    )


def _source_notes(cases: pd.DataFrame, pixels: Mapping[str, str]) -> list[str]:
    """Whether sources and labels go together, and whether sources share radiographs and disagree on them."""
    counts = _source_counts(cases)
    if len(counts) < 2:
        return []
    notes = []
    if (text := _source_warning(cases)) is not None:
        notes.append(text)
    table = cases.assign(pixels=cases["image_id"].map(pixels))
    same = table[table["pixels"].duplicated(keep=False)].groupby("pixels", sort=False)
    shared = [rows for _, rows in same if rows["source"].nunique() > 1]
    if shared:
        differing = [rows for rows in shared if rows["pneumothorax"].nunique() > 1]
        text = f"{counted(len(shared), 'radiograph')} {'is' if len(shared) == 1 else 'are'} in more than one source. "
        shown = listed(
            (
                " and ".join(f"{row.image_id} ({row.source}: {row.pneumothorax})" for row in rows.itertuples())
                for rows in differing
            ),
            3,
        )
        text += f"Their labels differ for {len(differing)}: {shown}." if differing else "Their labels agree."
        notes.append(text)
    return notes


def _label_notes(plan: PreparationPlan, cases: pd.DataFrame) -> list[str]:
    """What was decided about uncertain and blank labels, and what cannot be done without masks."""
    notes = []
    for record in plan.label_records:
        name = f"{record['file']} ({record['data_set']})"
        if record.get("uncertain_images"):
            notes.append(f"{name}: {counted(record['uncertain_images'], 'uncertain label')}: {record['uncertain']}.")
        if record.get("blank_rows"):
            notes.append(f"{name}: {counted(record['blank_rows'], 'blank label')}: {record['blank']}.")
        if record.get("not_frontal"):
            notes.append(f"{name}: {counted(record['not_frontal'], 'image')} not frontal: left out.")
    if bare := positives_without_mask(cases):
        notes.append(
            f"{bare} of {int(cases['pneumothorax'].sum())} positives have no mask: a classifier can be trained, no "
            "segmenter."
        )
    return notes


def quarantine_table(set_aside: Sequence[Rejected]) -> pd.DataFrame:
    """``quarantine.csv``: everything set aside, sorted by file and row; row is blank where the whole file is meant."""
    import pandas as pd

    ordered = sorted(set_aside, key=lambda item: (item.file, item.row or 0, item.reason))
    rows = [(visible(item.file), item.row, visible(item.reason)) for item in ordered]
    return pd.DataFrame(rows, columns=["file", "row", "reason"]).astype({"row": "Int64"})


def prepared_sha256(tables: Mapping[str, str], pixels: Mapping[str, str]) -> str:
    """The hash that identifies the folder: over the hashes of its tables and of each image's decoded pixels.

    The sizes written are not part of it, so that adding one leaves earlier runs on the same data. Nor is the key of
    pseudonyms: of tables that have such, ``tables`` has the hashes under :data:`KEY_FREE`.
    """
    parts = {"tables": dict(tables), "pixels": dict(pixels)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _no_way_out(name: str) -> str:
    if name.startswith(("/", "\\")) or "\0" in name or ".." in name.split("/"):
        raise ValueError("a file is named that lies outside of the folder")
    return name


_Inside = Annotated[str, AfterValidator(_no_way_out)]


class _Manifest(Entries):
    """Those entries of a manifest that others build on, where it has them."""

    synthetic: bool = False
    sizes: list[Annotated[int, Field(ge=1, le=2**15)]] | None = None
    split_sha256: str | None = None
    prepared_sha256: str | None = None
    patients: str | None = None
    patients_note: str | None = None
    notes: list[str] | None = None
    source_notes: list[str] | None = None
    tables: dict[str, str] | None = None
    pixels: dict[str, str] | None = None
    files: dict[_Inside, str] | None = None
    vanished: dict[str, list[str]] | None = None
    unreadable: dict[str, str] | None = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a prepared folder.

    Raises:
        PneumoError: there is none, or it is damaged or of another format, or one of its values is impossible.
    """
    path = folder / MANIFEST_NAME
    again = f"Run keras-pneumo prepare DATA --out {folder}"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise PneumoError(f"{folder} is not a finished prepared folder: it has no {MANIFEST_NAME}. {again}.") from None
    except OSError as error:
        raise PneumoError(
            f"{path} cannot be read: {error.strerror}. Check the path, and that you may read it."
        ) from error
    except ValueError:
        raise PneumoError(f"{path} is damaged: it is not JSON. {again} to mend it.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PneumoError(f"{path} is not of format {FORMAT}. Prepare the data again into another folder.")
    try:
        validated(_Manifest, manifest, str(path))
    except PneumoError as error:
        raise PneumoError(f"{error} {again} to mend it.") from None
    return manifest


def read_prepared_table(path: Path) -> pd.DataFrame:
    """One table of a prepared folder: ids and texts as str (blank, never missing), age and spacing as float."""
    import pandas as pd

    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype={name: str for name in (*_TEXT, *_SOURCE_TEXT) if name in columns},
        keep_default_na=False,
        na_values={name: [""] for name in _NUMBERS if name in columns},
    )


def rendered_images(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Rendered]:
    """The rendered images of a finished folder, as its journal had them; empty when its table of cases was changed."""
    try:
        if sha256_file(folder / CASES) != manifest["tables"][CASES]:
            return {}
        rows = read_prepared_table(folder / CASES).to_dict("records")
        failed = {name: Rendered(name, error=reason) for name, reason in manifest["unreadable"].items()}
        return failed | {str(row["image_id"]): _rendered(row, manifest) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _rendered(row: Mapping[Any, Any], manifest: Mapping[str, Any]) -> Rendered:
    image_id, sizes = row["image_id"], manifest["sizes"]
    names = [name for size in sizes for name in expected_names(image_id, size, bool(row["mask_pixels"]))]
    return Rendered(
        image_id,
        pixels_sha256=manifest["pixels"][image_id],
        sex=row["sex"],
        age=None if math.isnan(row["age"]) else float(row["age"]),
        view=row["view"],
        rows=int(row["rows"]) if "rows" in row else None,
        columns=int(row["columns"]) if "columns" in row else None,
        pixel_spacing_mm=None if math.isnan(row["pixel_spacing_mm"]) else float(row["pixel_spacing_mm"]),
        files={name: manifest["files"][name] for name in names},
        vanished=[size for size in sizes if image_id in manifest["vanished"][str(size)]],
    )


def _versions() -> dict[str, str]:
    """Versions of the packages that decide about the bytes of a prepared folder."""
    versions = {"keras-pneumo": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # OpenCV comes under several names
            versions[name] = "unknown"
    return versions


def _decoders(sources: Sequence[RadiographFile]) -> dict[str, str]:
    """Transfer syntax -> decoding plugin, for the compressed DICOM files among ``sources``."""
    syntaxes = sorted({source.transfer_syntax for source in sources})
    return {syntax: DECODERS[syntax][0] for syntax in syntaxes if syntax in DECODERS}


def _counts(cases: pd.DataFrame, split: pd.DataFrame, set_aside: int) -> dict[str, int]:
    positive = int(cases["pneumothorax"].sum())
    return {
        "images": len(cases),
        "positive": positive,
        "negative": len(cases) - positive,
        "patients": int(cases["patient_id"].nunique()),
        "label_rows": int(cases["label_rows"].sum()),
        "set_aside": set_aside,
        **{name: int((split["subset"] == name).sum()) for name in SUBSETS},
    }


def _shape_notes(cases: pd.DataFrame, sizes: Sequence[int]) -> list[str]:
    """What was done to images that are not square, and to those that are smaller than a size that was prepared."""
    if "rows" not in cases:
        return []
    notes = []
    padded = int((cases["rows"] != cases["columns"]).sum())
    if padded:
        images = "1 image is" if padded == 1 else f"{padded} images are"
        notes.append(f"{images} not square; black was added on both sides to make a square.")
    side = cases[["rows", "columns"]].max(axis=1)
    for size in sizes:
        enlarged = int((side < size).sum())
        if enlarged:
            images = "1 image is" if enlarged == 1 else f"{enlarged} images are"
            notes.append(f"{images} smaller than {size} pixels and {'was' if enlarged == 1 else 'were'} enlarged.")
    return notes


def _vanished_notes(vanished: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"At {size} pixels the masks of {len(image_ids)} positives vanish; they stay positive by their label."
        if len(image_ids) > 1
        else f"At {size} pixels the mask of 1 positive vanishes; it stays positive by its label."
        for size, image_ids in vanished.items()
        if image_ids
    ]
