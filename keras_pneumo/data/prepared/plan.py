"""Plans a preparation before any pixel is decoded, so that what cannot work is refused at once.

In come the files of a data folder, a label csv and perhaps a patient table; out comes a plan: one file per labelled
image in the order of image ids, with its label and patient; everything set aside with its reason (unreadable files, one
id on two different images, images without a label, labels without an image); and hashes that tell whether a folder was
made from the same data.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import Label, Labels, Rejected, read_labels
from keras_pneumo.data.labels.patients import Grouping, find_patient_table, group_images, read_patients
from keras_pneumo.data.labels.siim import find_label_csv
from keras_pneumo.data.prepared.scanning import RadiographFile, folder_sha256, require_decoders, scan
from keras_pneumo.data.radiographs.geometry import resize_mask
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_file

SYNTHETIC_MARK = "phantom.json"
"""A file of this name beside radiographs says that they are synthetic: phantoms are written with one."""

_MAX_ID = 180
"""Bytes of an image id: file systems allow 255 for a name, and ours gets an ending and a temporary one."""


@dataclass(frozen=True)
class PreparationPlan:
    """The images of one preparation and what is known of them before they are decoded."""

    sources: list[RadiographFile]
    labels: Labels
    grouping: Grouping
    set_aside: list[Rejected]
    notes: list[str]
    record: dict[str, Any]
    """What is prepared, by hashes: part of the manifest, and the journal's first line."""
    seed: int
    synthetic: bool = False
    """Whether the radiographs are phantoms; see :data:`SYNTHETIC_MARK`."""
    mask_shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image id -> rows and columns of its mask, where that was drawn on another grid than 1024x1024."""


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
    """Identify the files, read the labels and the patients, and choose one file per labelled image.

    Args:
        data: the folder of radiographs.
        out: the prepared folder, in which no labels are looked for.
        paths: the files that may be radiographs.
        notes: what finding them gave to say.
        labels_path: label csv; None: it is looked for in ``data``.
        patients_path: patient table; None: it is looked for in ``data`` and beside it.
        seed: of the split.
        workers: processes that read the files' headers.

    Raises:
        PneumoError: a decoder is missing, there are no labels, or no file can be used.
    """
    sources = scan(data, paths, workers)
    require_decoders(sources)
    if labels_path is None:
        labels_path = find_label_csv(data, {name for s in sources for name in (s.image_id, s.stem)}, skip=[out])
    labels, mask_shapes = in_canonical_frame(read_labels(labels_path))
    sources = named_by_labels(sources, {*labels.images, *labels.rejected_rows})
    chosen, set_aside, copies = choose(sources, labels)
    if not chosen:
        reasons = "; ".join(sorted({item.reason for item in set_aside})[:3])
        raise PneumoError(f"None of the {len(paths)} files in {data} can be prepared: {reasons}.")
    if patients_path is None and (patients_path := find_patient_table(data)) and patients_path.parent != data:
        notes = [*notes, f"Patients are taken from {patients_path}, which lies beside the data."]
    table = read_patients(patients_path) if patients_path else None
    grouping = group_images([s.image_id for s in chosen], table, {s.image_id: s.patient for s in chosen})
    record = {
        "images": len(sources),
        "images_sha256": folder_sha256(sources),
        "labels": {"file": labels_path.name, "sha256": sha256_file(labels_path)},
        "patients": {"file": patients_path.name, "sha256": sha256_file(patients_path)} if patients_path else None,
        "seed": seed,
    }
    synthetic = any((place / SYNTHETIC_MARK).is_file() for place in {data, data.parent, labels_path.parent})
    return PreparationPlan(chosen, labels, grouping, set_aside, notes + copies, record, seed, synthetic, mask_shapes)


def in_canonical_frame(labels: Labels) -> tuple[Labels, dict[str, tuple[int, int]]]:
    """Labels whose masks are all in the canonical frame, and rows and columns of those that were on another grid.

    A mask on another grid lies on its image as the file stores it, so it is padded and resized as the image is.
    """
    canonical = (rle.MASK_SIZE, rle.MASK_SIZE)
    shapes: dict[str, tuple[int, int]] = {}
    images: dict[str, Label] = {}
    for image_id, label in labels.images.items():
        rows, columns = label.runs["size"]
        if (rows, columns) != canonical:
            shapes[image_id] = int(rows), int(columns)
            mask = resize_mask(rle.draw(label.runs), rle.MASK_SIZE)
            images[image_id] = replace(label, runs=rle.runs_of(rle.encode(mask)))
    return (replace(labels, images={**labels.images, **images}) if images else labels), shapes


def require_same(out: Path, earlier: Any, now: dict[str, Any]) -> None:
    """Check that a folder was begun from the same data.

    Args:
        out: the folder.
        earlier: the :attr:`PreparationPlan.record` found in it.
        now: the one of this run.

    Raises:
        PneumoError: they differ; the message names in what.
    """
    if earlier == now:
        return
    names = {
        "images_sha256": "images",
        "images": "images",
        "labels": "labels",
        "patients": "patient table",
        "seed": "seed",
    }
    earlier = earlier if isinstance(earlier, dict) else {}
    differing = sorted({names[key] for key in now if earlier.get(key) != now[key]})
    raise PneumoError(
        f"{out} was prepared from other data: the {' and the '.join(differing)} differ. Name another folder "
        "(prepare's --out, train's --prepared), or delete this one."
    )


def named_by_labels(sources: Sequence[RadiographFile], label_ids: Collection[str]) -> list[RadiographFile]:
    """Choose each file's image id: the SOPInstanceUID when the labels have it, else the file's name when they do.

    The competition's second-stage files are named ``ID_...`` and labelled by that name.
    """
    labelled = set(label_ids)
    return [
        replace(source, image_id=source.stem) if source.image_id not in labelled and source.stem in labelled else source
        for source in sources
    ]


def choose(sources: Sequence[RadiographFile], labels: Labels) -> tuple[list[RadiographFile], list[Rejected], list[str]]:
    """Pick one usable source per labelled image.

    Returns:
        The sources sorted by image id, what is set aside (files, and rows of the label file), and notes on copies.
    """
    set_aside = [Rejected(source.relative, None, source.error) for source in sources if source.error]
    notes: list[str] = []
    groups: dict[str, list[RadiographFile]] = {}
    for source in sources:
        if source.error:
            continue
        reason = _bad_id(source.image_id)
        if reason:
            set_aside.append(Rejected(source.relative, None, reason))
        else:
            groups.setdefault(source.image_id, []).append(source)
    chosen: list[RadiographFile] = []
    for image_id, group in sorted(groups.items()):
        if len({source.sha256 for source in group}) > 1:
            names = ", ".join(source.relative for source in group)
            reason = f"different files have the image id {image_id} ({names}), so none of them is used"
            set_aside += [Rejected(source.relative, None, reason) for source in group]
            continue
        notes += [f"{source.relative} is a copy of {group[0].relative} and was left out." for source in group[1:]]
        if image_id in labels.images and labels.images[image_id].lacks_mask:
            reason = f"{labels.path.name} says that there is a pneumothorax, but has no mask of it"
            set_aside.append(Rejected(group[0].relative, None, reason))
        elif image_id in labels.images:
            chosen.append(group[0])
        elif image_id in labels.rejected_rows:
            rows = ", ".join(map(str, labels.rejected_rows[image_id]))
            set_aside.append(
                Rejected(group[0].relative, None, f"its label in {labels.path.name} (row {rows}) cannot be used")
            )
        else:
            set_aside.append(Rejected(group[0].relative, None, f"no row of {labels.path.name} names it"))
    present = {source.image_id for source in sources}
    set_aside += [
        Rejected(labels.path.name, label.rows[0], f"there is no file for image {image_id}")
        for image_id, label in labels.images.items()
        if image_id not in present
    ]
    return chosen, set_aside + labels.rejected, notes


def _bad_id(image_id: str) -> str:
    """Why an image id cannot be the name of a file; blank when it can. A stranger's file gives it."""
    if not image_id or image_id.startswith(".") or not image_id.isprintable() or set(image_id) & set('/\\:*?"<>|'):
        return f"its image id {image_id[:60]!r} cannot be the name of a file"
    if len(image_id.encode()) > _MAX_ID:
        return f"its image id has {len(image_id.encode())} bytes, more than the {_MAX_ID} that are taken"
    return ""
