"""The pixels of a prepared folder as one array per size, mapped into memory by every process that trains on them.

In comes a prepared folder; beside its PNG files, which remain the truth, lie three files per size::

    images_512.npy    uint8 (N, 512, 512): the images, row by row in the order of cases.csv
    masks_512.npy     uint8 (P, 512, 64): the masks of those images that have one, in the same order; eight pixels a
                      byte, the first in the highest bit (numpy.packbits along the columns)
    arrays_512.json   what they were made from: the hashes of the PNG files, and of the arrays themselves

Any program can use them, with ``np.load(path, mmap_mode="r")``: the system's page cache holds the pixels once for all
processes of a host and gives them up when memory is short. They are a cache: when they are absent or do not fit the
manifest they are made again, decoding in all cores; where the folder cannot be written the caller decodes the files.

Before they are used, sizes and times of arrays and PNG files are compared with the record; where a time differs (the
folder was copied, or a file changed) everything is hashed again. Nothing is hashed at an ordinary start, so 100,000
radiographs are ready in seconds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import filelock
import numpy as np

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.prepared.rendering import image_name, intact_files, mask_name
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import LOCK_NAME, read_json, replacing, sha256_bytes, sha256_file, write_json
from keras_pneumo.storage.workers import available_cores

log = logging.getLogger(__name__)

FORMAT = 1

LONGEST_WAIT = 1800.0
"""Seconds that a process waits for another one that makes the same arrays, before it decodes the files itself."""

MOST_OF_THE_DISK = 0.9
"""Arrays are made when they take at most this share of what is free on the folder's disk."""


@dataclass(frozen=True)
class PixelArrays:
    """The arrays of one size and which row is whose."""

    images: np.ndarray
    """uint8 (N, S, S), mapped."""
    masks: np.ndarray
    """uint8 (P, S, ceil(S / 8)), mapped; see :func:`packed`."""
    image_rows: dict[str, int]
    mask_rows: dict[str, int]


def arrays_name(size: int) -> str:
    """The record of the arrays of one size, inside the prepared folder."""
    return f"arrays_{size}.json"


def packed(masks: np.ndarray) -> np.ndarray:
    """Masks (..., S, S), 0 outside, as bits: uint8 (..., S, ceil(S / 8)), a byte's first pixel in its highest bit."""
    return np.packbits(masks > 0, axis=-1)


def unpacked(bits: np.ndarray, size: int) -> np.ndarray:
    """The masks of :func:`packed`, uint8 0 or 255, ``size`` columns wide."""
    return np.unpackbits(bits, axis=-1, count=size) * np.uint8(255)


def decode_grey(data: bytes | np.ndarray, path: Path | str, size: int) -> np.ndarray:
    """The pixels of a grey PNG, uint8 (size, size).

    Raises:
        PneumoError: the bytes are none, or of another size.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if len(data) else None
    if pixels is None or pixels.shape != (size, size):
        raise PneumoError(f"{path} is missing or is no grey PNG of {size}x{size}. Run prepare on this folder again.")
    return pixels


def open_arrays(prepared: PreparedFolder, size: int, make: bool = False) -> PixelArrays | None:
    """The arrays of one size, whose pixels are those that the manifest records.

    Args:
        prepared: the folder.
        size: one of its sizes, in pixels.
        make: whether to make them where they are absent or stale.

    Returns:
        None when they are absent or stale and are not to be made or cannot be: a file is damaged, the folder cannot be
        written, or its disk is too full.
    """
    sources = _Sources.of(prepared, size)
    if sources is None:
        return None
    record = _read_record(prepared.folder, size)
    if _is_current(prepared.folder, sources, record):
        return _mapped(prepared.folder, sources)
    if not make and record is None:
        return None
    try:
        with _locked(prepared.folder):
            return _mended(prepared.folder, sources, make)
    except (OSError, PneumoError) as error:
        log.info("%s has no array of its images of %d pixels: %s", prepared.folder, size, error)
    # Nothing can be written there, but what lies there may still be whole, on a disk that is mounted for reading.
    return _mapped(prepared.folder, sources) if _is_whole(prepared.folder, sources, record) else None


@dataclass(frozen=True)
class _Sources:
    """The PNG files of one size, in the order of the arrays' rows, with their hashes by the manifest."""

    size: int
    images: dict[str, str]
    """Image id -> SHA-256."""
    masks: dict[str, str]
    """The same for images that have a mask."""

    @staticmethod
    def of(prepared: PreparedFolder, size: int) -> _Sources | None:
        """None when the manifest lacks a file's hash, which :func:`~.folder.verify_files` refuses with a sentence."""
        files, ids = prepared.manifest.get("files", {}), [str(name) for name in prepared.cases["image_id"]]
        images = {image_id: str(files.get(image_name(image_id, size), "")) for image_id in ids}
        masks = {image_id: str(files[name]) for image_id in ids if (name := mask_name(image_id, size)) in files}
        return _Sources(size, images, masks) if ids and all(images.values()) else None

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """Path inside the prepared folder -> SHA-256; images, then masks."""
        return {image_name(name, self.size): digest for name, digest in self.images.items()} | {
            mask_name(name, self.size): digest for name, digest in self.masks.items()
        }

    @functools.cached_property
    def digest(self) -> str:
        """What identifies the contents of the arrays: the SHA-256 over the hexadecimal ones of all files in order."""
        return sha256_bytes("".join(self.files.values()).encode())

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Array file -> its shape."""
        return {
            f"images_{self.size}.npy": (len(self.images), self.size, self.size),
            f"masks_{self.size}.npy": (len(self.masks), self.size, -(-self.size // 8)),
        }


def _read_record(folder: Path, size: int) -> dict[str, Any] | None:
    try:
        record = read_json(folder / arrays_name(size))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _is_current(folder: Path, sources: _Sources, record: dict[str, Any] | None) -> bool:
    """Whether arrays and PNG files have the sizes and times that the record has, and it is about this manifest."""
    if record is None or record.get("files_sha256") != sources.digest:
        return False
    try:
        arrays = record["arrays"]
        for name in sources.shapes():
            status = (folder / name).stat()
            if [status.st_size, status.st_mtime_ns] != [arrays[name]["bytes"], arrays[name]["mtime_ns"]]:
                return False
        return _status_of(folder, sources) == record["files_status"]
    except (OSError, KeyError, TypeError):
        return False


def _status_of(folder: Path, sources: _Sources) -> str:
    """A hash over name, size and time of change of each PNG file."""
    digest = hashlib.sha256()
    for name in sources.files:
        status = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a Path for each of 100,000 files takes longer than all else
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_whole(folder: Path, sources: _Sources, record: dict[str, Any] | None) -> bool:
    """Whether arrays and PNG files are what they were, byte for byte."""
    if record is None or record.get("files_sha256") != sources.digest:
        return False
    try:
        for name in sources.shapes():
            if sha256_file(folder / name) != record["arrays"][name]["sha256"]:
                return False
    except (OSError, KeyError, TypeError):
        return False
    return intact_files(folder, sources.files) == set(sources.files)


def _mended(folder: Path, sources: _Sources, make: bool) -> PixelArrays | None:
    """The arrays: those that are there, when they prove to be whole, or new ones; called under the folder's lock.

    Raises:
        PneumoError: an image is damaged, or the disk is too full.
        OSError: the disk refuses.
    """
    record = _read_record(folder, sources.size)
    if not _is_current(folder, sources, record):  # else another process was faster
        if record is not None and _is_whole(folder, sources, record):
            digests = {name: str(record["arrays"][name]["sha256"]) for name in sources.shapes()}
        elif make:
            digests = _write_arrays(folder, sources)
        else:
            return None
        _write_record(folder, sources, digests)
    return _mapped(folder, sources)


def _write_record(folder: Path, sources: _Sources, digests: dict[str, str]) -> None:
    arrays = {}
    for name, shape in sources.shapes().items():
        status = (folder / name).stat()
        arrays[name] = {
            "sha256": digests[name],
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "rows": shape[0],
        }
    write_json(
        folder / arrays_name(sources.size),
        {
            "format": FORMAT,
            "size": sources.size,
            "files_sha256": sources.digest,
            "files_status": _status_of(folder, sources),
            "arrays": arrays,
        },
    )


def _write_arrays(folder: Path, sources: _Sources) -> dict[str, str]:
    """Decode every PNG file, checking its hash, into the arrays; returns the hash of each array file."""
    needed = sum(int(np.prod(shape)) for shape in sources.shapes().values())
    if needed > shutil.disk_usage(folder).free * MOST_OF_THE_DISK:
        raise PneumoError(f"they take {needed / 1e9:.1f} GB, for which its disk is too full")
    (folder / arrays_name(sources.size)).unlink(missing_ok=True)  # from now on the arrays are not what it says
    size = sources.size

    def pixels(name: str, digest: str) -> np.ndarray:
        path = folder / name
        data = path.read_bytes()
        if sha256_bytes(data) != digest:
            raise PneumoError(f"{path} is damaged. Run prepare on this folder again.")
        return decode_grey(data, path, size)

    def image(name: str) -> bytes:
        return pixels(image_name(name, size), sources.images[name]).tobytes()

    def mask(name: str) -> bytes:
        return packed(pixels(mask_name(name, size), sources.masks[name])).tobytes()

    digests = {}
    works = ((sources.images, image), (sources.masks, mask))
    try:
        for (name, shape), (ids, row_of) in zip(sources.shapes().items(), works, strict=True):
            with replacing(folder / name) as stream:
                digests[name] = _write_rows(stream, shape, list(ids), row_of)
    except BaseException:
        for name in sources.shapes():  # nobody would ever use one without the other
            (folder / name).unlink(missing_ok=True)
        raise
    return digests


def _write_rows(
    stream: BinaryIO, shape: tuple[int, int, int], ids: Sequence[str], row_of: Callable[[str], bytes]
) -> str:
    """Write an array in NumPy's file format row by row, the rows made by threads; returns the file's SHA-256."""
    digest = hashlib.sha256()

    class Hashed:
        def write(self, data: bytes) -> None:
            digest.update(data)
            stream.write(data)

    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(Hashed(), header)
    for row in _in_order(row_of, ids):
        Hashed().write(row)
    return digest.hexdigest()


def _in_order(function: Callable[[str], bytes], items: Iterable[str]) -> Iterator[bytes]:
    """Results in the order of the items, with only a few held: reading, hashing and decoding leave Python's lock."""
    cores = available_cores()
    waiting: deque[Future[bytes]] = deque()
    threads = ThreadPoolExecutor(cores)
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > 4 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _mapped(folder: Path, sources: _Sources) -> PixelArrays | None:
    """The arrays, mapped for reading; None when they cannot be, or have other shapes."""
    arrays = []
    for name, shape in sources.shapes().items():
        try:
            array = np.load(folder / name, mmap_mode="r") if shape[0] else np.zeros(shape, np.uint8)
        except (OSError, ValueError):
            return None
        if array.shape != shape or array.dtype != np.uint8:
            return None
        arrays.append(np.asarray(array))  # a plain view: each row would be an object of np.memmap else, which is slow
    image_rows = {name: row for row, name in enumerate(sources.images)}
    return PixelArrays(arrays[0], arrays[1], image_rows, {name: row for row, name in enumerate(sources.masks)})


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for who has it: several trainings of one folder often start together.

    Raises:
        PneumoError: it is held for too long.
        OSError: the disk knows no locks, or the folder cannot be written.
    """
    try:
        with filelock.FileLock(folder / LOCK_NAME, timeout=LONGEST_WAIT):
            yield
    except filelock.Timeout:
        raise PneumoError("another process holds the folder") from None
