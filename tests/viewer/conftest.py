"""Fixtures for the tests of the page."""

import pytest


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory, phantoms):
    """A folder of two DICOM files. Read only."""
    folder = tmp_path_factory.mktemp("radiographs")
    for path in sorted(phantoms.rglob("*.dcm"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def page(radiographs, tmp_path_factory):
    """The page of two radiographs, served."""
    from page_lab import Page

    with Page(radiographs, tmp_path_factory.mktemp("readings") / "readings.csv") as served:
        yield served
