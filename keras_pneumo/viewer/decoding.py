"""Decodes the bytes of a file for the page, in a separate process: the file may be damaged or hostile.

In: bytes and a file name. Out: a :class:`Radiograph`, or :class:`UnreadableImage` with the reason. A file that crashes
the decoder, or takes too long, costs that process, and the next file gets a new one. This module is separate
because that process imports it, and so it must not import TensorFlow.
"""

from __future__ import annotations

from pathlib import PurePath

from keras_pneumo.data.radiographs.dicom import decode_dicom
from keras_pneumo.data.radiographs.radiograph import Radiograph, UnreadableImage
from keras_pneumo.data.radiographs.raster import decode_image
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.workers import (
    FILE_SECONDS,
    IsolatedWorker,
    WorkerClosedError,
    WorkerCrashedError,
    WorkerTimeoutError,
)

PAGE_MEMORY = 2**30
"""Bytes that decoding one file may take: less than elsewhere, since the page's own process holds networks beside it.
One of 30 megapixels and 16 bits takes up to 0.4 GiB."""

_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"


def decode_bytes(data: bytes, name: str) -> Radiograph | str:
    """Decode PNG, JPEG or DICOM, recognised by the first bytes: the radiograph, or the reason why there is none."""
    stem = PurePath(name.replace("\\", "/")).stem[:100] or "image"
    try:
        if not data:
            raise UnreadableImage("the file is empty")
        return decode_image(data, stem) if data.startswith((_PNG, _JPEG)) else decode_dicom(data, stem)
    except PneumoError as error:
        return str(error)
    except Exception as error:  # a file can bring a library to raise anything
        return f"reading it failed ({type(error).__name__}), so it is damaged or hostile"


class Decoder:
    """Decodes bytes in a process of its own, one file at a time."""

    def __init__(self, seconds: float = FILE_SECONDS) -> None:
        """Start nothing yet; ``seconds`` is the time limit for one file."""
        self.seconds = seconds
        self.worker = IsolatedWorker(PAGE_MEMORY)

    def decode(self, data: bytes, name: str) -> Radiograph:
        """Decode these bytes.

        Raises:
            UnreadableImage: there is none, the decoder crashed, or it did not finish in time.
        """
        try:
            result = self.worker.call(decode_bytes, data, name, seconds=self.seconds)
        except WorkerCrashedError:
            raise UnreadableImage(
                "it made the decoder crash, or needed too much memory, so it is damaged or hostile"
            ) from None
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
