"""What is to be prepared, settled before any pixel is decoded, so that what cannot work is refused at once.

In come the files of a data folder, a label csv and perhaps a patient table; out comes a plan: the images
to prepare with labels and patients, all that is set aside, and hashes
that tell whether a folder was made from the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_pneumo.data.labels.cases import Labels, Rejected, read_labels
from keras_pneumo.data.labels.patients import Grouping, find_patient_table, group_images, read_patients
from keras_pneumo.data.labels.siim import find_label_csv
from keras_pneumo.data.prepared.cases_table import cases_table
from keras_pneumo.data.prepared.rendering import Rendered
from keras_pneumo.data.prepared.sources import (
    RadiographFile,
    choose,
    folder_sha256,
    named_by_labels,
    require_decoders,
    scan,
)
from keras_pneumo.data.prepared.split import make_split
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_file


@dataclass(frozen=True)
class PreparationPlan:
    """The images of one preparation and everything known of them before they are decoded."""

    sources: list[RadiographFile]
    labels: Labels
    grouping: Grouping
    set_aside: list[Rejected]
    notes: list[str]
    record: dict[str, Any]
    """What is prepared, by hashes: part of the manifest, and the journal's first line."""
    seed: int


def make_plan(
    data: Path,
    out: Path,
    paths: list[Path],
    notes: list[str],
    labels_path: Path | None,
    patients_path: Path | None,
    seed: int,
    workers: int | None,
) -> PreparationPlan:
    """Everything that can be settled before pixels are decoded, and refused if it will not do."""
    sources = scan(data, paths, workers)
    require_decoders(sources)
    if labels_path is None:
        labels_path = find_label_csv(data, {name for s in sources for name in (s.image_id, s.stem)}, skip=[out])
    labels = read_labels(labels_path)
    sources = named_by_labels(sources, {*labels.images, *labels.rejected_rows})
    chosen, set_aside, copies = choose(sources, labels)
    if not chosen:
        reasons = "; ".join(sorted({item.reason for item in set_aside})[:3])
        raise PneumoError(f"None of the {len(paths)} files in {data} can be prepared: {reasons}.")
    if patients_path is None and (patients_path := find_patient_table(data)) and patients_path.parent != data:
        notes = [*notes, f"Patients are taken from {patients_path}, which stands beside the data."]
    table = read_patients(patients_path) if patients_path else None
    grouping = group_images([s.image_id for s in chosen], table, {s.image_id: s.patient for s in chosen})
    record = {
        "images": len(sources),
        "images_sha256": folder_sha256(sources),
        "labels": {"file": labels_path.name, "sha256": sha256_file(labels_path)},
        "patients": {"file": patients_path.name, "sha256": sha256_file(patients_path)} if patients_path else None,
        "seed": seed,
    }
    plan = PreparationPlan(chosen, labels, grouping, set_aside, notes + copies, record, seed)
    # A split that cannot be made is said now, not after an hour of decoding.
    make_split(cases_table(chosen, labels, grouping, {s.image_id: Rendered(s.image_id) for s in chosen}), seed)
    return plan


def require_same(out: Path, earlier: Any, now: dict[str, Any]) -> None:
    """Refuse to go on in a folder that was begun from other data.

    Args:
        out: the folder.
        earlier: the :attr:`PreparationPlan.record` found in it.
        now: the one of this run.

    Raises:
        PneumoError: they differ; the message names in what.
    """
    if earlier == now:
        return
    said = {
        "images_sha256": "images",
        "images": "images",
        "labels": "labels",
        "patients": "patient table",
        "seed": "seed",
    }
    earlier = earlier if isinstance(earlier, dict) else {}
    differing = sorted({said[key] for key in now if earlier.get(key) != now[key]})
    raise PneumoError(
        f"{out} was prepared from other data: the {' and the '.join(differing)} differ. Name another folder "
        "(prepare's --out, train's --prepared), or delete this one."
    )
