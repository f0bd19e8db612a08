"""Writes a folder of synthetic chest radiographs in exactly the form of the SIIM-ACR folder.

In: settings and a seed. Out: a folder with DICOM files, the label csv with all its oddities, a patient table, and the
truth that only phantoms have (where the air, tubes, leads and writing are). So demo and tests run without real data.
The same settings give the same bytes, whatever the number of processes; more images leave the earlier ones unchanged.
Images are drawn in processes of their own, and written one file each; the tables follow at the end.

```
<out>/dicom-images-train/<study uid>/<series uid>/<sop uid>.dcm
<out>/train-rle.csv    "ImageId, EncodedPixels": one row per outline, "-1" for no pneumothorax
<out>/patients.csv     ImageId,patient_id
<out>/phantom.csv      the truth about each image, which no real folder has
<out>/devices.csv      where tubes, leads and writing are, in the form that a real folder may have too
<out>/phantom.json     the settings, and whether the folder is complete; marks the folder as synthetic
```
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.devices import FILE as DEVICES
from keras_pneumo.data.labels.devices import devices_csv
from keras_pneumo.data.prepared.plan import SYNTHETIC_MARK
from keras_pneumo.errors import PneumoError
from keras_pneumo.phantoms.cohort import PhantomSettings, list_images, make_case
from keras_pneumo.phantoms.devices import device_rows
from keras_pneumo.phantoms.dicom import encode_dicom
from keras_pneumo.phantoms.render import render
from keras_pneumo.storage.files import LOCK_NAME, folder_lock, remove_temporary, write_bytes
from keras_pneumo.storage.workers import available_cores, keep_memory, map_in_processes

FORMAT = 1
"""Increased whenever the same settings give other radiographs, labels, patients or truth than before."""

IMAGES, LABELS, PATIENTS, TRUTH, STATE = (
    "dicom-images-train",
    "train-rle.csv",
    "patients.csv",
    "phantom.csv",
    SYNTHETIC_MARK,
)
_LOCKS = (LOCK_NAME, ".phantom.lock")
"""Locks of this and of earlier versions: a folder that holds nothing else is empty."""

TRUTH_COLUMNS = (
    "image_id", "patient_id", "side", "area_fraction", "tube", "tube_pixels", "marker_x", "marker_y", "marker_width",
    "marker_height", "monochrome1", "view", "sex", "age",
)  # fmt: skip


@dataclass(frozen=True)
class PhantomSummary:
    """Counts of a folder. ``written`` is false when the folder was complete already and nothing was done."""

    folder: Path
    written: bool
    images: int
    positives: int
    patients: int
    label_rows: int
    monochrome1: int
    tubes: int


def write_phantoms(
    out: Path,
    settings: PhantomSettings,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PhantomSummary:
    """Write a folder of phantoms.

    Args:
        out: folder to write to: new, empty, or begun earlier with the same settings.
        settings: how many images, and of which kind.
        workers: number of processes; as many as there are cores if None, no other than this one if 1.
        progress: called with (images done, images in all) after each image.

    Returns:
        What the folder holds. If it was complete already, nothing is written.

    Raises:
        PneumoError: the folder holds something else or phantoms of other settings, another run is writing to it, or
            it cannot be written.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise PneumoError(f"workers is {workers}; it must be at least 1.")
    try:
        if _is_complete(out, settings):
            if not (out / DEVICES).is_file():  # a folder of an earlier version, which had no such table
                _write_devices_again(out, settings)
            return _summary(out, written=False)
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(out):
            remove_temporary(out)
            write_bytes(out / STATE, _state(settings, complete=False), durable=False)
            _write_all(out, settings, workers or available_cores(), progress)
            write_bytes(out / STATE, _state(settings, complete=True), durable=False)
    except OSError as error:
        raise PneumoError(
            f"Phantoms could not be written to {out}: {error.strerror or error}. "
            "Free some space, or choose another folder."
        ) from error
    return _summary(out, written=True)


def _is_complete(out: Path, settings: PhantomSettings) -> bool:
    """Return whether ``out`` already holds these phantoms; refuse a folder that holds anything else."""
    if out.exists() and not out.is_dir():
        raise PneumoError(f"{out} is a file. Give the name of a new folder.")
    if not out.exists() or not any(entry.name not in _LOCKS for entry in out.iterdir()):
        return False
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        recorded = {"format": state["format"], "settings": state["settings"]}
        complete = bool(state["complete"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise PneumoError(f"{out} is not empty and holds no phantoms. Choose a new or empty folder.") from None
    if recorded != {"format": FORMAT, "settings": asdict(settings)}:
        raise PneumoError(f"{out} holds phantoms made with other settings. Delete it, or choose another folder.")
    return complete and all((out / name).is_file() for name in (LABELS, PATIENTS, TRUTH))


def _write_all(out: Path, settings: PhantomSettings, workers: int, progress: Callable[[int, int], None] | None) -> None:
    pairs = list_images(settings.seed, settings.images, settings.positive_rate)
    facts: list[dict[str, Any]] = []
    for fact in write_radiographs(out, settings, pairs, min(workers, len(pairs))):
        facts.append(fact)
        if progress is not None:
            progress(len(facts), len(pairs))
    # SIIM's order has nothing to do with patients; neither has the order of the random image ids.
    facts.sort(key=lambda fact: fact["truth"]["image_id"])
    labels = [(fact["truth"]["image_id"], row) for fact in facts for row in fact["rows"]]
    patients = [(fact["truth"]["image_id"], fact["truth"]["patient_id"]) for fact in facts]
    truth = [[fact["truth"][column] for column in TRUTH_COLUMNS] for fact in facts]
    write_bytes(out / DEVICES, devices_csv(row for fact in facts for row in fact["devices"]), durable=False)
    write_bytes(out / TRUTH, _csv(TRUTH_COLUMNS, truth), durable=False)
    write_bytes(out / PATIENTS, _csv(("ImageId", "patient_id"), patients), durable=False)
    # The space before EncodedPixels stands in the real file's first line.
    write_bytes(out / LABELS, _csv(("ImageId", " EncodedPixels"), labels), durable=False)


def _write_devices_again(out: Path, settings: PhantomSettings) -> None:
    """Write the table of tubes, leads and writing of images that were drawn before."""
    pairs = list_images(settings.seed, settings.images, settings.positive_rate)
    cases = sorted((make_case(settings.seed, *pair, settings) for pair in pairs), key=lambda case: case.image_id)
    write_bytes(out / DEVICES, devices_csv(row for case in cases for row in device_rows(case)), durable=False)


def _truth(out: Path) -> list[dict[str, str]]:
    with (out / TRUTH).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _summary(out: Path, written: bool) -> PhantomSummary:
    truth = _truth(out)
    with (out / LABELS).open(newline="", encoding="utf-8") as file:
        label_rows = sum(1 for _ in csv.reader(file)) - 1
    return PhantomSummary(
        folder=out,
        written=written,
        images=len(truth),
        positives=sum(row["side"] != "" for row in truth),
        patients=len({row["patient_id"] for row in truth}),
        label_rows=label_rows,
        monochrome1=sum(row["monochrome1"] == "1" for row in truth),
        tubes=sum(row["tube"] == "1" for row in truth),
    )


def _state(settings: PhantomSettings, complete: bool) -> bytes:
    state = {"format": FORMAT, "settings": asdict(settings), "complete": complete}
    return (json.dumps(state, indent=2) + "\n").encode()


def _csv(header: tuple[str, ...], rows: list[Any]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def write_radiographs(
    out: Path, settings: PhantomSettings, pairs: list[tuple[int, int]], workers: int
) -> Iterator[dict[str, Any]]:
    """Draw and write every radiograph, in any order, and yield the facts of each.

    Raises:
        PneumoError: a process died.
    """
    threads = cv2.getNumThreads()
    jobs = [(out, settings, patient, image) for patient, image in pairs]
    try:
        for _, facts in map_in_processes(write_radiograph, jobs, workers, initializer=keep_memory):
            if facts is None:
                raise PneumoError(
                    f"A process that was making phantoms for {out} died, perhaps for want of memory. Run again with "
                    'one worker; a script of your own must call this below if __name__ == "__main__":, as each process '
                    "imports it."
                )
            yield facts
    finally:
        cv2.setNumThreads(threads)


def write_radiograph(job: tuple[Path, PhantomSettings, int, int]) -> dict[str, Any]:
    """Draw one radiograph (folder, settings, patient, image), write its file, and return its rows of the tables."""
    out, settings, patient, image = job
    cv2.setNumThreads(1)  # the images are made in parallel already
    phantom = render(settings.seed, patient, image, settings)
    case = phantom.case
    path = out / IMAGES / case.study_uid / case.series_uid / f"{case.image_id}.dcm"
    write_bytes(path, encode_dicom(phantom.image, case), durable=False)
    x, y, width, height = phantom.marker_box
    truth = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "side": case.side if case.positive else "",
        "area_fraction": f"{float(phantom.air.mean()):.8f}",
        "tube": int(case.tube),
        "tube_pixels": rle.encode(phantom.tube),
        "marker_x": x,
        "marker_y": y,
        "marker_width": width,
        "marker_height": height,
        "monochrome1": int(case.monochrome1),
        "view": case.view,
        "sex": case.sex,
        "age": case.age,
    }
    rows = [rle.encode(mask) for mask in phantom.masks] or [rle.EMPTY]
    return {"truth": truth, "rows": rows, "devices": phantom.locations.rows(case.image_id)}
