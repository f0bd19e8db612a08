"""The films of a phantom folder, made side by side and written one file each.

In come settings and a list of (patient, image); out come DICOM files and, for each, the facts that the folder's
tables are written from. It is apart from the rest because it runs in processes of its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2

from keras_pneumo.data import rle
from keras_pneumo.data.phantom_cohort import case_of
from keras_pneumo.data.phantom_dicom import dicom_of
from keras_pneumo.data.phantom_render import render_case
from keras_pneumo.data.phantom_settings import PhantomSettings
from keras_pneumo.errors import PneumoError

IMAGES = "dicom-images-train"
"""The folder of the DICOM files, named as in the competition."""


def made_films(
    out: Path, settings: PhantomSettings, pairs: list[tuple[int, int]], workers: int
) -> Iterator[dict[str, Any]]:
    """Make every film, in any order, and give what is known of each.

    Raises:
        PneumoError: a process died.
    """
    if workers == 1:
        threads = cv2.getNumThreads()
        try:
            for pair in pairs:
                yield make_film(out, settings, *pair)
        finally:
            cv2.setNumThreads(threads)
        return
    # Spawned, not forked: the caller may hold threads (TensorFlow's, above all) that a fork would break.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_keep_memory)
    try:
        waiting = list(reversed(pairs))
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while waiting and len(running) < 4 * workers:
                running.add(pool.submit(make_film, out, settings, *waiting.pop()))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise PneumoError(
            f"A process that was making phantoms for {out} died, perhaps for want of memory. Run again with one "
            'worker; a script of your own must call this below if __name__ == "__main__":, as each process imports it.'
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def make_film(out: Path, settings: PhantomSettings, patient: int, image: int) -> dict[str, Any]:
    """Draw one film, write its file, and say what is known of it."""
    cv2.setNumThreads(1)  # the films are made side by side already
    film = render_case(case_of(settings.seed, patient, image, settings))
    case = film.case
    path = out / IMAGES / case.study_uid / case.series_uid / f"{case.image_id}.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dicom_of(film.image, case))
    x, y, width, height = film.marker_box
    truth = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "side": case.side if case.positive else "",
        "area_fraction": f"{float(film.air.mean()):.8f}",
        "tube": int(case.tube),
        "tube_pixels": rle.encode(film.tube),
        "marker_x": x,
        "marker_y": y,
        "marker_width": width,
        "marker_height": height,
        "monochrome1": int(case.monochrome1),
        "view": case.view,
        "sex": case.sex,
        "age": case.age,
    }
    rows = [rle.encode(mask) for mask in film.masks] or [rle.EMPTY]
    return {"truth": truth, "rows": rows, "devices": film.places.rows(case.image_id)}


def _keep_memory() -> None:
    """Let a worker keep the memory that it frees: a film takes a hundred arrays of 4 MB, and glibc would hand each back
    to the system and fault it in again, a sixth of the time. Nothing happens where the C library is another one."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, size in ((-1, 2**29), (-3, 2**24)):  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, size)


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path`` and rename: whatever happens, no half file bears the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
