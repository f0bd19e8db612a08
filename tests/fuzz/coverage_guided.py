"""Lets atheris look for new paths through the readers that are written in Python; see README.md.

Any exception but the program's own ends it, with the input written beside.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["keras_pneumo", "pydicom"]):
    from keras_pneumo.data.labels import rle
    from keras_pneumo.data.labels.known import LabelOptions
    from keras_pneumo.data.labels.tables import read_table_labels
    from keras_pneumo.errors import PneumoError
    from keras_pneumo.models.torch_archive import load_torch_archive
    from keras_pneumo.viewer.decoding import decode_bytes

FOLDER = Path(tempfile.mkdtemp())


def _file(data, name):
    (FOLDER / name).write_bytes(data)
    return FOLDER / name


TARGETS = {
    "dicom": lambda data: decode_bytes(data, "a.dcm"),
    "pth": lambda data: load_torch_archive(_file(data, "a.pth")),
    "rle": lambda data: rle.counts_of(data.decode("utf-8", "replace")),
    "table": lambda data: read_table_labels(_file(data, "a.csv"), LabelOptions()),
}


def _attempt(data):
    try:
        TARGETS[NAME](data)
    except PneumoError:
        return


if __name__ == "__main__":
    NAME = sys.argv.pop(1)
    atheris.Setup(sys.argv, _attempt)
    atheris.Fuzz()
