"""Fixtures for the tests of the detector."""

import pytest


@pytest.fixture(scope="module")
def few(tmp_path_factory, phantoms):
    """Three DICOM files of the phantoms."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(phantoms.rglob("*.dcm"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
