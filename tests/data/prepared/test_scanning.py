"""Files identified before any pixel is decoded; what becomes of them is tested with prepare."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jpeg_ls
import pytest
from hostile_lab import behind_the_pixels, framed
from pydicom.uid import JPEGLSLossless
from small_siim import block, radiograph, write_dicom, write_jpeg_dicom, write_labels, write_png

from keras_pneumo.data.labels.pseudonyms import patient_hash
from keras_pneumo.data.prepared.scanning import folder_sha256, require_decoders, scan
from keras_pneumo.data.radiographs import decoders
from keras_pneumo.data.radiographs.reading import find_images, read_radiograph
from keras_pneumo.errors import PneumoError


@pytest.fixture
def folder(tmp_path):
    write_jpeg_dicom(tmp_path / "sub" / "plain.dcm", radiograph(1), uid="1.2.1", PatientID="p")
    write_dicom(tmp_path / "raw.dcm", radiograph(2), uid="1.2.2")
    write_png(tmp_path / "picture.PNG", radiograph(3))
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


def identified(folder, workers):
    return scan(folder, find_images(folder), workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_file_is_identified_in_the_order_of_the_paths(folder, workers):
    sources = identified(folder, workers)
    assert [source.relative for source in sources] == [
        "broken.dcm", "empty.png", "picture.PNG", "raw.dcm", "sub/plain.dcm",
    ]  # fmt: skip
    assert [source.image_id for source in sources] == ["broken", "empty", "picture", "1.2.2", "1.2.1"]
    assert [source.transfer_syntax for source in sources] == [
        "", "", "", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50",
    ]  # fmt: skip
    assert [bool(source.error) for source in sources] == [True, True, False, False, False]
    assert sources[4].patient == patient_hash("p")
    for source in sources:
        if not source.path.stat().st_size:
            continue
        assert source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()


def test_the_hash_of_a_folder_tells_its_names_and_its_bytes(folder):
    sources = identified(folder, 1)
    digest = folder_sha256(sources)
    assert digest == folder_sha256(sources[::-1])
    renamed = dataclasses.replace(sources[0], relative="other.dcm")
    changed = dataclasses.replace(sources[0], sha256="0" * 64)
    assert len({digest, folder_sha256([renamed, *sources[1:]]), folder_sha256([changed, *sources[1:]])}) == 3


def test_row_9_only_decoders_that_are_needed_are_asked_for(folder, monkeypatch):
    sources = identified(folder, 1)
    monkeypatch.setitem(decoders.DECODERS, "1.2.840.10008.1.2.4.90", ("gdcm", "python-gdcm"))
    require_decoders(sources)
    monkeypatch.setitem(decoders.DECODERS, "1.2.840.10008.1.2.4.50", ("gdcm", "python-gdcm"))
    with pytest.raises(PneumoError, match=r"Of 5 files 1 are stored as JPEG Baseline.*pip install python-gdcm"):
        require_decoders(sources)


def test_row_9_a_decoder_that_cannot_be_imported_is_named_with_its_package(tmp_path):
    """In truth: the package is there, but its import fails, in this process and in those that read."""
    (tmp_path / "broken/jpeg_ls").mkdir(parents=True)
    (tmp_path / "broken/jpeg_ls/__init__.py").write_text("raise ImportError('built for another system')")
    rows = []
    for number in range(12):
        path = tmp_path / f"data/{number}.dcm"
        write_dicom(path, radiograph(number))
        rows.append((path.stem, block(number) if number % 2 else "-1"))
    framed(tmp_path / "data/0.dcm", bytes(jpeg_ls.encode_array(radiograph(0))), JPEGLSLossless)
    write_labels(tmp_path / "data/train-rle.csv", rows)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'broken'}{os.pathsep}{Path(__file__).parents[3]}"}
    command = [sys.executable, "-m", "keras_pneumo", "prepare", tmp_path / "data", "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--size", "64"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert "Of 12 files 1 are stored as JPEG-LS" in " ".join(done.stderr.split())
    assert done.stderr.count("pip install pyjpegls") == 1
    assert not (tmp_path / "out/cases.csv").exists()


def test_an_identity_behind_the_pixels_is_the_one_that_reading_them_gives(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(1), SOPInstanceUID="", PatientID="")
    behind_the_pixels(path, 0x00080018, b"UI", b"1.2.3.99")
    behind_the_pixels(path, 0x00100020, b"LO", b"MRN 4711")
    (source,) = identified(tmp_path, 1)
    assert (source.image_id, source.patient) == ("1.2.3.99", patient_hash("MRN 4711"))
    assert read_radiograph(path).image_id == "1.2.3.99"
