"""Plain DICOM files read without pydicom: the very radiographs that pydicom's way gives, and no answer for the rest.

The independent values are those of :func:`read_dicom`, which is tested against Pillow, OpenCV and pydicom's own files.
"""

import dataclasses
import os
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit
from small_siim import dicom, radiograph, save, write_dicom

from keras_pneumo.data.radiographs import decoders
from keras_pneumo.data.radiographs.dicom import decode_dicom, read_header
from keras_pneumo.data.radiographs.plain import decode_plain, open_plain
from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))


def plain_dicom(path, **tags):
    """A file as SIIM's are; returns its bytes."""
    dataset = dicom(radiograph(1), uid="1.2.3", syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([cv2.imencode(".jpg", radiograph(1))[1].tobytes()])
    for name, value in {"PatientID": "p1", "PatientSex": "F", "PatientAge": "38", "ViewPosition": "PA",
                        "StudyInstanceUID": "1.2.8.1",
                        "PixelSpacing": [0.168, 0.168], **tags}.items():  # fmt: skip
        if value is None:
            dataset.pop(name, None)
        else:
            setattr(dataset, name, value)
    return save(dataset, path).read_bytes()


def same(first, second):
    names = [field.name for field in dataclasses.fields(first) if field.name != "pixels"]
    assert {name: getattr(first, name) for name in names} == {name: getattr(second, name) for name in names}
    assert np.array_equal(first.pixels, second.pixels)
    assert (first.pixels.dtype, first.pixels.flags.writeable) == (second.pixels.dtype, True)


def agree(data):
    """Whether the file is plain; if so both ways read the same of it, the header alone included."""
    read = decode_plain(data, "stem")
    if read is None:
        return False
    same(read, decode_dicom(data, "stem"))
    plain, header = open_plain(data, "stem"), read_header(data, "stem")
    read = (plain.image_id, plain.transfer_syntax, plain.patient_id_tag, plain.study_uid_tag, plain.maker)
    assert read == dataclasses.astuple(header)
    assert "p1" not in repr(plain)
    return True


def test_a_plain_file_is_read(tmp_path):
    data = plain_dicom(tmp_path / "a.dcm")
    read = decode_plain(data, "stem")
    assert (read.image_id, read.sex, read.age, read.view, read.pixel_spacing_mm) == ("1.2.3", "F", 38.0, "PA", 0.168)
    assert (read.patient_id_tag, read.photometric) == ("p1", "MONOCHROME2")
    assert agree(data)


@pytest.mark.parametrize(
    "tags",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PatientSex": "m ", "PatientAge": "018M", "ViewPosition": " ap"},
        {"PatientSex": None, "PatientAge": None, "ViewPosition": None, "PatientID": None, "PixelSpacing": None},
        {"PatientSex": "", "PatientAge": "", "ViewPosition": "", "PatientID": "", "PixelSpacing": ""},
        {"PixelSpacing": [0.1, 0.2], "ImagerPixelSpacing": [0.15, 0.15]},
        {"PixelSpacing": ["0", "0"]},
        {"PixelSpacing": ["0.19431099999999998", "0.19431099999999998"]},
        {"PatientAge": "999Y"},
        {"PatientName": "Ünal^Jürgen", "SpecificCharacterSet": "ISO_IR 192"},
        {"SOPInstanceUID": ""},
        {"PatientOrientation": ""},
        {"Modality": "CR", "BodyPartExamined": "CHEST"},
        {"Modality": "MR"},
        {"BodyPartExamined": "Hand"},
        {"ViewPosition": "LL"},
        {"Manufacturer": " Acme Imaging "},
    ],
)
def test_both_ways_agree_on_every_field(tmp_path, tags):
    assert agree(plain_dicom(tmp_path / "a.dcm", **tags))


def sequence():
    item = Dataset()
    item.PatientID = "another"
    return Sequence([item])


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientID": "Müller", "SpecificCharacterSet": "ISO_IR 100"},
        {"PatientID": "a\\b"},
        {"PixelSpacing": "1e-1\\1e-1"},
        {"PixelSpacing": ["0.1", "0.1", "0.1"]},
        {"WindowCenter": 100, "WindowWidth": 50},
        {"RescaleSlope": 2, "RescaleIntercept": 1},
        {"NumberOfFrames": 1},
        {"BitsStored": 7},
        {"PixelRepresentation": 1},
        {"Rows": 32},
        {"Rows": None},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "RGB"},
        {"PatientOrientation": ["R", "F"]},
        {"PatientOrientation": "L"},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        {"FieldOfViewRotation": 90},
        {"PresentationLUTShape": "INVERSE"},
        {"ViewCodeSequence": Sequence([Dataset()])},
        {"FieldOfViewHorizontalFlip": "YES"},
    ],
)
def test_an_unusual_file_is_left_to_pydicom(tmp_path, tags):
    assert open_plain(plain_dicom(tmp_path / "a.dcm", **tags), "stem") is None


def test_a_sequence_is_passed_over_and_its_values_are_not_taken(tmp_path):
    data = plain_dicom(tmp_path / "a.dcm", ReferencedPatientSequence=sequence())
    assert agree(data)
    assert open_plain(data, "stem").patient_id_tag == "p1"


def test_other_ways_of_storing_pixels_are_left_to_pydicom(tmp_path):
    assert open_plain(write_dicom(tmp_path / "a.dcm", radiograph(1)).read_bytes(), "a") is None
    data = plain_dicom(tmp_path / "b.dcm")
    for wrong in (b"", data[:100], data[:200], data[132:], data[:-8], data + b"\0\0", data.replace(b"DICM", b"DICX")):
        assert open_plain(wrong, "b") is None
    two = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    frame = cv2.imencode(".jpg", radiograph(1))[1].tobytes()
    two.PixelData = encapsulate([frame, frame])
    assert open_plain(save(two, tmp_path / "c.dcm").read_bytes(), "c") is None


def element(group, number, kind, value):
    """A short element, explicit little endian."""
    return b"".join(
        [group.to_bytes(2, "little"), number.to_bytes(2, "little"), kind, len(value).to_bytes(2, "little"), value]
    )


def test_elements_out_of_order_are_left_to_pydicom(tmp_path):
    data = plain_dicom(tmp_path / "a.dcm")
    sex = data.index(element(0x0010, 0x0040, b"CS", b"F "))
    for late in (element(0x0010, 0x0020, b"LO", b"p2"), element(0x0010, 0x0040, b"CS", b"M ")):
        assert open_plain(data[: sex + 10] + late + data[sex + 10 :], "a") is None
    early = element(0x0010, 0x0030, b"DA", b"")
    assert agree(data[:sex] + early + data[sex:])


def test_an_offset_table_of_anything_but_one_frame_is_left_to_pydicom(tmp_path):
    data = plain_dicom(tmp_path / "a.dcm")
    item = b"\xfe\xff\x00\xe0"
    start = data.index(item)
    one_frame = item + b"\4\0\0\0" + bytes(4)
    assert data[start:].startswith(one_frame)
    rest = data[start + len(one_frame) :]
    assert agree(data[:start] + item + bytes(4) + rest)
    for table in (b"\x08\0\0\0" + bytes(8), b"\4\0\0\0" + b"\2\0\0\0"):
        assert open_plain(data[:start] + item + table + rest, "a") is None


def test_damaged_pixels_are_left_to_pydicom_which_names_the_damage(tmp_path):
    frame = cv2.imencode(".jpg", radiograph(1))[1].tobytes()
    table = frame.index(b"\xff\xc4") + 5  # how many Huffman codes there are of each length
    damaged = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    damaged.PixelData = encapsulate([frame[:table] + b"\xff" * 16 + frame[table + 16 :]])
    data = save(damaged, tmp_path / "a.dcm").read_bytes()
    assert open_plain(data, "a") is not None
    assert decode_plain(data, "a") is None
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        decode_dicom(data, "a")


def test_a_decoder_of_another_name_is_used(tmp_path, monkeypatch):
    data = plain_dicom(tmp_path / "a.dcm")
    monkeypatch.setitem(decoders.DECODERS, str(JPEGBaseline8Bit), ("gdcm", "python-gdcm"))
    assert open_plain(data, "a") is None


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The bytes of two phantoms, one of each photometric interpretation where there are both."""
    folder = tmp_path_factory.mktemp("phantoms") / "p"
    write_phantoms(folder, PhantomSettings(images=6, seed=3), workers=1)
    return [path.read_bytes() for path in sorted(folder.rglob("*.dcm"))]


def test_phantoms_are_plain(phantom):
    assert all(agree(data) for data in phantom)


@pytest.mark.skipif(not (REAL / "siim_mini").exists(), reason="no real radiographs beside the repository")
def test_real_files_are_plain_and_equal_opencv():
    paths = sorted((REAL / "siim_mini").rglob("*.dcm"))
    assert len(paths) == 12
    for path in paths:
        data = path.read_bytes()
        assert agree(data)
        stored = cv2.imdecode(np.frombuffer(open_plain(data, "a").frame, np.uint8), cv2.IMREAD_GRAYSCALE)
        read = decode_plain(data, "a")
        assert np.array_equal(read.pixels, 255 - stored if read.photometric == "MONOCHROME1" else stored)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return plain_dicom(tmp_path_factory.mktemp("plain") / "a.dcm", ReferencedPatientSequence=sequence())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_changed_in_a_file_both_ways_agree_or_pydicom_decides(small, data):
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        # Most changes in the header; some in the JPEG.
        last = data.draw(st.sampled_from([len(small), small.index(b"\xff\xd8\xff"), small.index(b"\xff\xd8\xff")]))
        place = data.draw(st.integers(0, last - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
        byte = data.draw(st.integers(0, 255))
        if kind == "set":
            changed[place % len(changed)] = byte
        elif kind == "insert":
            changed.insert(place, byte)
        else:
            del changed[place % len(changed)]
    agree(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(tag=st.sampled_from(["PatientID", "PatientSex", "PatientAge", "ViewPosition"]), value=st.binary(max_size=12))
def test_whatever_text_a_header_holds_both_ways_agree_or_pydicom_decides(small, tag, value):
    """Raw bytes put in place of a value, with the length that belongs to them."""
    number = pydicom.datadict.tag_for_keyword(tag)
    head = (number >> 16).to_bytes(2, "little") + (number & 0xFFFF).to_bytes(2, "little")
    start = small.index(head)
    length = int.from_bytes(small[start + 6 : start + 8], "little")
    new = small[: start + 6] + len(value).to_bytes(2, "little") + value + small[start + 8 + length :]
    agree(new)
