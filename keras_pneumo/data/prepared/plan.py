"""Plans a preparation before any pixel is decoded, so that what cannot work is refused at once.

In come the files of one or more data folders with their labels and perhaps patient tables; out comes a plan: one file
per labelled image in the order of image ids, with its label, patient and source; everything set aside with its reason
(unreadable files, one id on two different images, images without a label, labels without an image); and hashes that
tell whether a folder was made from the same data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keras_pneumo.data.labels.cases import Label, Labels, Rejected
from keras_pneumo.data.labels.drawn import with_missing
from keras_pneumo.data.labels.finding import LabelSearch, find_labels, search_labels
from keras_pneumo.data.labels.known import LabelOptions
from keras_pneumo.data.labels.patients import Grouping, find_patient_table, group_images, read_patients, same_patient
from keras_pneumo.data.labels.pseudonyms import PseudonymKey
from keras_pneumo.data.prepared.scanning import RadiographFile, folder_sha256, require_decoders, scan
from keras_pneumo.data.radiographs.reading import FoundImages, not_searched, other_format_notes
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes, sha256_file
from keras_pneumo.storage.tables import counted, image_id_of, named_images, slug

SYNTHETIC_MARK = "phantom.json"
"""A file of this name beside radiographs says that they are synthetic: phantoms are written with one."""

_MAX_ID = 180
"""Bytes of an image id: file systems allow 255 for a name, and ours gets an ending and a temporary one."""

_MOST_PARTS = 6
"""Parts of a path that may make an image id, where a table names paths."""

_MOST_MISSING = 1000
"""Images of a label table without a file that are set aside one by one; more are counted in one line, as where a table
of 112,120 images comes with a folder of some hundred."""


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
    label_records: list[dict[str, Any]]
    """For each folder: which labels it has, and what was decided about them."""
    synthetic: bool = False
    """Whether some of the radiographs are phantoms; see :data:`SYNTHETIC_MARK`."""
    hashed: frozenset[str] = frozenset()
    """Patients of :attr:`grouping` that are hashes of PatientID: the tables have pseudonyms of them, by :attr:`key`."""
    key: PseudonymKey | None = None
    """None where no patient is a hash, and in a folder of an earlier version, whose hashes stay as they are."""

    @property
    def any_view(self) -> bool:
        """Whether files are taken that say that they are no frontal radiographs of the chest."""
        return self.record.get("any_view") is True

    @property
    def test_only(self) -> bool:
        """Whether all images are test images: an external test set, on which nothing is trained."""
        return self.record.get("test_only") is True


@dataclass(frozen=True)
class DataFolder:
    """A folder of radiographs, with the labels and patients that the user names for it."""

    path: Path
    labels: Path | None = None
    patients: Path | None = None


@dataclass(frozen=True)
class _Part:
    """What one data folder brings to a plan."""

    name: str
    sources: list[RadiographFile]
    labels: Labels
    patients: dict[str, str]
    """Image id -> patient, by tables."""
    set_aside: list[Rejected]
    notes: list[str]
    record: dict[str, Any]


def make_plan(
    folders: Sequence[DataFolder],
    out: Path,
    found: Sequence[FoundImages],
    options: LabelOptions,
    seed: int,
    workers: int | None,
    test_only: bool = False,
) -> PreparationPlan:
    """Identify the files, read the labels and the patients, and choose one file per labelled image.

    Args:
        folders: the folders of radiographs; their images are prepared together.
        out: the prepared folder, in which no labels are looked for.
        found: of each folder the files that may be radiographs.
        options: what the user decided about labels.
        seed: of the split.
        workers: processes that read the files' headers.
        test_only: whether all images are to be test images.

    Raises:
        PneumoError: a decoder is missing, there are no labels, or no file can be used.
    """
    searches = [  # of all folders, before the files of any are read
        search_labels(folder.path, images.paths, folder.labels, options, skip=[out])
        for folder, images in zip(folders, found, strict=True)
    ]
    names = _source_names(folders)
    parts = [
        _plan_folder(folder, name, images, search, workers)
        for folder, name, images, search in zip(folders, names, found, searches, strict=True)
    ]
    if options.mask_size is not None and not any("mask_size" in part.labels.record for part in parts):
        raise PneumoError(
            "--mask-size is for tables of run-length masks, and none was read: pictures, COCO files and DICOM "
            "Segmentations say their size themselves. Leave it out."
        )
    record: dict[str, Any] = {"seed": seed} | ({"any_view": True} if options.any_view else {})
    record |= {"test_only": True} if test_only else {}
    if len(parts) == 1:
        part, record = parts[0], parts[0].record | record
    else:
        part = _joined(parts)
        record["sources"] = [{"source": each.name, **each.record} for each in parts]
    by_id = {source.image_id: source for source in part.sources}
    table = {image_id: patient for image_id, patient in part.patients.items() if image_id in by_id}
    tags = {name: source.patient for name, source in by_id.items()}
    grouping = group_images(list(by_id), table or None, tags, {name: source.study for name, source in by_id.items()})
    if len(parts) > 1:  # the same file in two folders is of one patient, so that no split parts them
        files = {name: source.sha256 for name, source in by_id.items()}
        grouping = replace(grouping, patient_of=same_patient(grouping.patient_of, files))
    label_records = [
        {"source": each.name, "data_set": each.labels.data_set, "file": _file_name(each.labels), **each.labels.record}
        for each in parts
    ]
    synthetic = any(
        (place / SYNTHETIC_MARK).is_file()
        for folder, each in zip(folders, parts, strict=True)
        for place in (folder.path, folder.path.parent, each.labels.path.parent)
    )
    hashed = frozenset(grouping.patient_of.values()) & {source.patient for source in by_id.values() if source.patient}
    return PreparationPlan(
        part.sources, part.labels, grouping, part.set_aside, part.notes, record, seed, label_records, synthetic, hashed
    )


def _plan_folder(folder: DataFolder, name: str, found: FoundImages, search: LabelSearch, workers: int | None) -> _Part:
    """The labelled images of one folder, and what is set aside in it."""
    data, patients_path = folder.path, folder.patients
    masks = set(search.labels.files) if search.labels is not None else set()
    found = found._replace(paths=[path for path in found.paths if path not in masks])
    notes = [] if masks else [not_searched(folder) for folder in found.mask_folders]
    notes += other_format_notes(data, found)
    sources = scan(data, found, workers)
    require_decoders(sources)
    labels = find_labels(search, {name for source in sources for name in _names(source)})
    sources = named_by_labels(sources, {*labels.images, *labels.rejected_rows, *labels.left_out}, labels.parts)
    if masks:
        labels = with_missing(labels, {source.image_id for source in sources if not source.error}, search.options)
    chosen, set_aside, copies = choose(sources, labels)
    if not chosen:
        reasons = "; ".join(sorted({item.reason for item in set_aside})[:3])
        raise PneumoError(f"None of the {len(sources)} files in {data} can be prepared: {reasons}. Check these files.")
    if patients_path is None and (patients_path := find_patient_table(data)) and patients_path.parent != data:
        notes = [*notes, f"Patients are taken from {patients_path}, which lies beside the data."]
    patients = {name: label.facts.patient for name, label in labels.images.items() if label.facts.patient}
    if patients_path:
        table = read_patients(patients_path)
        if not any(source.image_id in table for source in chosen):
            raise PneumoError(
                f"The patient table {patients_path} names none of the images. Check that it belongs to these data."
            )
        patients |= table
    about = {"data_set": labels.data_set, **labels.record} if labels.record or not labels.has_masks else {}
    record = {
        "images": len(sources),
        "images_sha256": folder_sha256(sources),
        "labels": {"file": _file_name(labels), "sha256": _labels_sha256(labels), **about},
        "patients": {"file": patients_path.name, "sha256": sha256_file(patients_path)} if patients_path else None,
    }
    chosen = [
        replace(source, source=labels.images[source.image_id].facts.source or name or labels.data_set)
        for source in chosen
    ]
    return _Part(name or labels.data_set, chosen, labels, patients, set_aside, notes + copies, record)


def _source_names(folders: Sequence[DataFolder]) -> list[str]:
    """A name for each of several folders, different from the others'; blank for a single one."""
    if len(folders) == 1:
        return [""]
    names: list[str] = []
    for folder in folders:
        name = slug(folder.path.resolve().name)
        if sum(slug(other.path.resolve().name) == name for other in folders) > 1 and folder.labels is not None:
            name = slug(f"{name}-{image_id_of(folder.labels.name.partition('.')[0])}")
        names.append(slug(name, names))
    return names


def _joined(parts: Sequence[_Part]) -> _Part:
    """Several folders as one; an image id that more than one has gets its folder's name in front."""
    times = Counter(source.image_id for part in parts for source in part.sources)
    sources: list[RadiographFile] = []
    images: dict[str, Label] = {}
    patients: dict[str, str] = {}
    set_aside: list[Rejected] = []
    for part in parts:
        for source in part.sources:
            own = source.image_id
            image_id = f"{part.name}-{own}" if times[own] > 1 else own
            sources.append(replace(source, image_id=image_id, relative=f"{part.name}/{source.relative}"))
            images[image_id] = part.labels.images[own]
            if own in part.patients:
                patients[image_id] = part.patients[own]
            elif not part.patients and source.patient and any(other.patients for other in parts):
                patients[image_id] = source.patient  # by the file, where only other folders have tables
        set_aside += [replace(item, file=f"{part.name}/{item.file}") for item in part.set_aside]
    sources.sort(key=lambda source: source.image_id)
    labels = replace(
        parts[0].labels, images=images, rejected=[], has_masks=all(part.labels.has_masks for part in parts)
    )
    notes = [f"{part.name}: {note}" for part in parts for note in part.notes]
    return _Part("", sources, labels, patients, set_aside, notes, {})


def _file_name(labels: Labels) -> str:
    return labels.path.name if labels.path.is_file() else labels.data_set


def _labels_sha256(labels: Labels) -> str:
    """One hash of the files that labels were read from; of folders named by the label, the images' hash has it all."""
    files = [*([labels.path] if labels.path.is_file() else []), *labels.other_files, *labels.files]
    if len(files) == 1:
        return sha256_file(files[0])
    return sha256_bytes("".join(sha256_file(path) for path in files).encode())


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
        "sources": "folders",
        "any_view": "choice of views (--any-view)",
        "test_only": "choice whether all images are test images (keras-pneumo evaluate)",
    }
    earlier = earlier if isinstance(earlier, dict) else {}
    keys = {*now, *(set(earlier) & set(names))}
    differing = sorted({names[key] for key in keys if earlier.get(key) != now.get(key)})
    raise PneumoError(
        f"{out} was prepared from other data: the {' and the '.join(differing)} differ. Name another folder "
        "(prepare's --out, train's --prepared), or delete this one."
    )


def named_by_labels(
    sources: Sequence[RadiographFile], label_ids: Collection[str], parts: int = 1
) -> list[RadiographFile]:
    """Choose each file's image id: the SOPInstanceUID when the labels have it, else the file's name when they do.

    The competition's second-stage files are named ``ID_...`` and labelled by that name. Where names are not unique, the
    last ``parts`` parts of the path are the name.
    """
    labelled = set(label_ids)

    def named(source: RadiographFile) -> RadiographFile:
        if source.image_id in labelled:
            return source
        fitting = (name for name in _names(source, max(parts, 1)) if name in labelled)
        return replace(source, image_id=next(fitting, source.image_id))

    return [named(source) for source in sources]


def _names(source: RadiographFile, parts: int = _MOST_PARTS) -> Iterator[str]:
    """The names by which labels may call a file: its id, its name, and its name with folders in front."""
    yield source.image_id
    yield source.stem
    folders = source.path.parent.parts
    for count in range(1, min(parts, len(folders) + 1)):
        yield "-".join((*folders[len(folders) - count :], source.stem))


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
        if labels.has_masks and image_id in labels.images and labels.images[image_id].lacks_mask:
            reason = f"{labels.path.name} says that there is a pneumothorax, but has no mask of it"
            set_aside.append(Rejected(group[0].relative, None, reason))
        elif image_id in labels.images:
            chosen.append(group[0])
        elif image_id in labels.rejected_rows:
            rows = ", ".join(map(str, labels.rejected_rows[image_id]))
            set_aside.append(
                Rejected(group[0].relative, None, f"its label in {labels.path.name} (row {rows}) cannot be used")
            )
        elif image_id in labels.left_out:
            set_aside.append(Rejected(group[0].relative, None, labels.left_out[image_id]))
        else:
            set_aside.append(Rejected(group[0].relative, None, f"no row of {labels.path.name} names it"))
    present = {source.image_id for source in sources}
    missing = [(name, label) for name, label in labels.images.items() if name not in present]
    if len(missing) > _MOST_MISSING:
        reason = f"there is no file for {counted(len(missing), 'image')}: {named_images(name for name, _ in missing)}"
        set_aside.append(Rejected(labels.path.name, None, reason))
    else:
        set_aside += [
            Rejected(labels.path.name, label.rows[0] if label.rows else None, f"there is no file for image {name}")
            for name, label in missing
        ]
    return chosen, set_aside + labels.rejected, notes


def _bad_id(image_id: str) -> str:
    """Why an image id cannot be the name of a file; blank when it can. A stranger's file gives it."""
    odd = not image_id.isprintable() or set(image_id) & set('/\\:*?"<>|')
    if not image_id or image_id.startswith((".", "-")) or odd:
        return f"its image id {image_id[:60]!r} cannot be the name of a file"
    if len(image_id.encode()) > _MAX_ID:
        return f"its image id has {len(image_id.encode())} bytes, more than the {_MAX_ID} that are taken"
    return ""
