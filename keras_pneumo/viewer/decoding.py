"""Bytes that someone dropped on the page, decoded where they can do no harm: in a process of their own.

In: bytes and a file name. Out: a :class:`Radiograph`, or :class:`UnreadableImage` with the reason. A file that makes a
decoder crash, or that keeps it busy too long, costs that process, and the next file gets a new one.
"""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import PurePath

from keras_pneumo.data.radiographs.dicom import decode_dicom
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import decode_image
from keras_pneumo.storage.workers import kill_workers, start_worker

SECONDS = 60.0
"""Longest that one file may take; a radiograph of 16 megapixels takes about one second."""

_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"


def decode_bytes(data: bytes, name: str) -> Radiograph | str:
    """The radiograph in some bytes, told apart by how they begin, or why there is none."""
    stem = PurePath(name.replace("\\", "/")).stem[:100] or "image"
    try:
        if not data:
            raise UnreadableImage("the file is empty")
        return decode_image(data, stem) if data.startswith((_PNG, _JPEG)) else decode_dicom(data, stem)
    except UnreadableImage as error:
        return str(error)


class Decoder:
    """One worker process, started when first needed and again whenever a file has ended it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Nothing is started yet; ``seconds`` is the longest that one file may take."""
        self.seconds = seconds
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def decode(self, data: bytes, name: str) -> Radiograph:
        """The radiograph in these bytes.

        Raises:
            UnreadableImage: there is none; or the decoder crashed, or did not come to an end.
        """
        with self._lock:
            if self._closed:
                raise UnreadableImage("the program is ending")
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker)
            try:
                found = self._pool.submit(decode_bytes, data, name).result(self.seconds)
            except BrokenProcessPool:
                self._end()
                if self._closed:
                    raise UnreadableImage("the program is ending") from None
                raise UnreadableImage("it made the decoder crash, so it is damaged or hostile") from None
            except FutureTimeout:
                self._end()
                raise UnreadableImage(f"it was not decoded within {self.seconds:g} seconds") from None
        if isinstance(found, str):
            raise UnreadableImage(found)
        return found

    def close(self) -> None:
        """End the process, also under way: the file that it decodes is then answered as unreadable."""
        self._closed = True
        while not self._lock.acquire(timeout=0.1):
            if (pool := self._pool) is not None:
                kill_workers(pool)  # again, since it may only be starting
        self._end()
        self._lock.release()

    def _end(self) -> None:
        if self._pool is not None:
            kill_workers(self._pool)
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
