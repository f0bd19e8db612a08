"""Import TensorFlow without its notices.

TensorFlow 2.21 writes notices about oneDNN and missing GPUs straight to file descriptor 2 while it is imported and when
it first looks for devices, before its own ``TF_CPP_MIN_LOG_LEVEL`` is heeded. They would bury the first lines that a
person reads, so the descriptor is turned aside for that moment; what was written is shown if the import fails.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
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
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices()
            # Its Python side warns of retracing when a last batch is smaller, which is as it should be here.
            tf.get_logger().setLevel(logging.ERROR)
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
