"""Imports TensorFlow without its notices.

TensorFlow 2.21 writes notices about oneDNN and missing GPUs straight to file descriptor 2 while it is imported and when
it first looks for devices. At that time it does not heed its own ``TF_CPP_MIN_LOG_LEVEL`` yet. The notices would bury
the first lines that a person reads, and a notebook would show them in red. So the descriptor is redirected to a file
for that moment. What was written is shown after all when the import fails.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.collection import without_collection


def import_tensorflow(for_command: bool = False) -> None:
    """Import TensorFlow and Keras and let them find their devices, quietly.

    Args:
        for_command: whether this process runs one command and ends. What was imported then stays to its end, and the
            garbage collector never looks at it again: start and end together take a third less time.

    Raises:
        PneumoError: one of the two is not installed.
    """
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return  # its notices, if any, were shown when it was imported
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        raise PneumoError(
            "This needs TensorFlow and Keras, which are not installed. Run: pip install 'keras-pneumo[train]'"
        )
    with hushed(), without_collection():  # of a million objects: 1.2 of 4.7 s
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()
        if for_command:
            gc.freeze()
    # Its Python side warns of retracing when the last batch is smaller. That is as it should be here.
    tf.get_logger().setLevel(logging.ERROR)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing reaches file descriptor 2 within this context; after an unforeseen error it is shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except PneumoError:
            raise
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
