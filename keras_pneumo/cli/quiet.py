"""Import TensorFlow, and let it convert a network, without its notices.

TensorFlow 2.21 writes notices about oneDNN and missing GPUs straight to file descriptor 2 while it is imported and when
it first looks for devices, before its own ``TF_CPP_MIN_LOG_LEVEL`` is heeded. They would bury the first lines that a
person reads, so the descriptor is turned aside for that moment; what was written is shown if what was tried fails.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

from keras_pneumo.errors import PneumoError


def import_tensorflow() -> None:
    """Import TensorFlow and Keras and let them find their devices, quietly.

    Raises:
        PneumoError: one of the two is not installed.
    """
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        raise PneumoError(
            "This needs TensorFlow and Keras, which are not installed. Run: pip install 'keras-pneumo[train]'"
        )
    with hushed():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Within this context nothing reaches file descriptor 2; it is shown after all when an unforeseen error comes."""
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
