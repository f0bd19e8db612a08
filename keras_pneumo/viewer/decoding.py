"""Bytes that someone dropped on the page, decoded where they can do no harm: in a process of their own.

In: bytes and a file name. Out: a :class:`Radiograph`, or :class:`UnreadableImage` with the reason. A file that makes a
decoder crash, or that keeps it busy too long, costs that process, and the next file gets a new one.
"""

from __future__ import annotations

from pathlib import PurePath

from keras_pneumo.data.radiographs.dicom import decode_dicom
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import decode_image
from keras_pneumo.storage.workers import IsolatedWorker, WorkerClosedError, WorkerCrashedError, WorkerTimeoutError

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
    """Decodes bytes in a process of its own, one file at a time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """Nothing is started yet; ``seconds`` is the longest that one file may take."""
        self.seconds = seconds
        self.worker = IsolatedWorker()

    def decode(self, data: bytes, name: str) -> Radiograph:
        """The radiograph in these bytes.

        Raises:
            UnreadableImage: there is none, the decoder crashed, or it did not finish in time.
        """
        try:
            result = self.worker.call(decode_bytes, data, name, seconds=self.seconds)
        except WorkerCrashedError:
            raise UnreadableImage("it made the decoder crash, so it is damaged or hostile") from None
        except WorkerTimeoutError:
            raise UnreadableImage(f"it was not decoded within {self.seconds:g} seconds") from None
        except WorkerClosedError:
            raise UnreadableImage("the program is ending") from None
        if isinstance(result, str):
            raise UnreadableImage(result)
        return result

    def close(self) -> None:
        """End the process, also while it works: the file that it decodes then counts as unreadable."""
        self.worker.close()
