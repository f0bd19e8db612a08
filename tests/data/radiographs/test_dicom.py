"""Reading one file: exact pixels for every way of storing them, and a clear reason for every file that will not do.

Golden values: pydicom's bundled test files (one MR slice stored in several transfer syntaxes), OpenCV's and Pillow's
own decoding, and pydicom's windowing functions.
"""

import contextlib
import importlib.util
import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hostile_lab import deflated_bomb, nested_sequences
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from small_siim import SIDE, dicom, radiograph, save, write_dicom, write_jpeg_dicom, write_png

from keras_pneumo.data.radiographs import decoders
from keras_pneumo.data.radiographs.decoders import decoder_report
from keras_pneumo.data.radiographs.dicom import read_dicom, read_header
from keras_pneumo.data.radiographs.radiograph import MAX_FILE_BYTES, MAX_PIXELS, UnreadableImage, stretch
from keras_pneumo.data.radiographs.reading import read_or_reason, read_radiograph

_FOUND = importlib.util.find_spec("data_store")
PYDICOM_DATA = list(_FOUND.submodule_search_locations or []) if _FOUND else []
"""Where the files of the package pydicom-data lie, if it is installed."""

DCMTK = [tool for tool in ("dcm2img", "dcm2pnm", "dcmj2pnm", "dcml2pnm") if shutil.which(tool)]
"""DCMTK's programs that draw DICOM files; from 3.6.9 on the first does what took the others before."""

PIXEL_ARRAY = "keras_pneumo.data.radiographs.dicom.pixel_array"
REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared")) / "siim_mini"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="no real radiographs beside the repository")


def refused(path, part):
    with pytest.raises(UnreadableImage) as error:
        read_radiograph(path)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def bundled(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom does not bring {name}")
    return Path(path)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_eight_bit_pixels_are_taken_as_stored(tmp_path):
    image = radiograph(1)
    assert (read_dicom(write_dicom(tmp_path / "a.dcm", image)).pixels == image).all()


def test_rows_and_columns_keep_their_places(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert read_dicom(write_dicom(tmp_path / "a.dcm", image)).pixels.tolist() == image.tolist()


def test_row_8_monochrome1_is_inverted(tmp_path):
    image = radiograph(1)
    read = read_dicom(write_dicom(tmp_path / "a.dcm", image, PhotometricInterpretation="MONOCHROME1"))
    assert (read.pixels == 255 - image).all()
    assert read.photometric == "MONOCHROME1"


def test_notes_say_what_is_odd_or_missing(tmp_path):
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", radiograph(1), PixelSpacing=[0.2, 0.2]))
    assert plain.notes == ()
    inverted = write_dicom(tmp_path / "b.dcm", radiograph(1)[:20], PhotometricInterpretation="MONOCHROME1")
    notes = " ".join(read_dicom(inverted).notes)
    assert "inverted" in notes
    assert "how large a pixel is" in notes
    assert "not square" in notes


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({"PatientOrientation": ["LF", "FL"]}, ""),
        ({"PatientOrientation": "L"}, ""),
        ({"PatientOrientation": ["X", "Y"]}, ""),
        ({"PatientOrientation": ["R", "F"]}, "mirrored (PatientOrientation R, F)"),
        ({"PatientOrientation": ["F", "R"]}, "turned"),
        ({"PatientOrientation": ["A", "F"]}, "seen from the side"),
        ({"PatientOrientation": ["L", "F"], "FieldOfViewHorizontalFlip": "YES"}, ""),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, ""),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, 0, -1]}, "mirrored"),
        ({"ImageOrientationPatient": [0, 0, -1, 0.9, 0.1, 0]}, "turned"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, ""),
        ({"ImageOrientationPatient": [1, 0]}, ""),
        ({"FieldOfViewRotation": "0", "FieldOfViewHorizontalFlip": "NO"}, ""),
        ({"FieldOfViewRotation": "90", "FieldOfViewHorizontalFlip": "YES"}, "turned by 90 degrees and mirrored"),
        ({"FieldOfViewRotation": "180.0"}, "turned by 180 degrees"),
    ],
)
def test_a_note_says_that_the_header_calls_the_image_turned(tmp_path, tags, words):
    image = radiograph(1)
    read = read_dicom(write_dicom(tmp_path / "a.dcm", image, PixelSpacing=[0.2, 0.2], **tags))
    assert (read.pixels == image).all(), "pixels stay as stored: masks refer to them"
    assert bool(read.notes) == bool(words)
    assert words in " ".join(read.notes)


def test_baseline_jpeg_equals_opencv_and_pillow(tmp_path):
    path = write_jpeg_dicom(tmp_path / "a.dcm", radiograph(2))
    frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    image = read_dicom(path).pixels
    assert (image == cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)).all()
    assert (image == np.asarray(Image.open(io.BytesIO(frame)))).all()


@needs_real
def test_real_files_equal_opencv_and_pillow():
    paths = sorted((REAL / "dicom").glob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        frame = next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
        read = read_dicom(path)
        assert read.image_id == path.stem
        assert (read.pixels == cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_GRAYSCALE)).all()
        assert (read.pixels == np.asarray(Image.open(io.BytesIO(frame)))).all()
        assert read.sex in "MF"
        assert read.view in ("PA", "AP")
        assert 0 < read.age < 120
        assert 0.1 < read.pixel_spacing_mm < 0.3


@needs_real
def test_real_monochrome1_file_is_the_inverse_of_its_twin():
    first = read_dicom(REAL / "monochrome1_example.dcm").pixels
    second = read_dicom(REAL / "monochrome2_twin_of_example.dcm").pixels
    assert (first == 255 - second).all()


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"]
)
def test_lossless_syntaxes_give_the_pixels_of_the_uncompressed_file(name):
    assert (read_dicom(bundled(name)).pixels == read_dicom(bundled("MR_small.dcm")).pixels).all()


def test_twelve_bit_jpeg_out_of_order_is_refused():
    # Its code stream breaks T.81 (a sequential scan that does not end at 63); pydicom brings it as a hard case.
    refused(bundled("JPEG-lossy.dcm"), "cannot be decoded")


def by_dcmtk(path, folder, window):
    """The image as DCMTK shows it, uint8; None where none of its tools reads the file. Overlays are left out."""
    out = folder / "out.pgm"
    for tool in DCMTK:
        subprocess.run([tool, "-O", *window, "+ob", path, out], capture_output=True, check=False)
        if out.is_file():
            image = cv2.imread(str(out), cv2.IMREAD_GRAYSCALE)
            out.unlink()
            return image
    return None


def compared_with_dcmtk(files, folder):
    """The largest difference of each file that both read, by name; files that DCMTK does not read; reasons of ours."""
    compared, beyond_dcmtk, reasons = {}, [], []
    for path in files:
        read = read_or_reason(path)
        if isinstance(read, str):
            reasons.append(read)
            continue
        image = read.pixels
        header = pydicom.dcmread(path, stop_before_pixels=True)
        whole = [] if header.BitsStored == 8 else ["+Wm"]
        theirs = by_dcmtk(path, folder, ["+Wi", "1"] if "WindowCenter" in header else whole)
        if theirs is None:
            beyond_dcmtk.append(path)
            continue
        assert theirs.shape == image.shape
        compared[path.name] = int(np.abs(theirs.astype(int) - image).max())
    assert all(reasons)
    # Debian's DCMTK reads no JPEG 2000.
    syntaxes = {pydicom.dcmread(path).file_meta.TransferSyntaxUID.name for path in beyond_dcmtk}
    assert all(name.startswith("JPEG 2000") for name in syntaxes)
    return compared, beyond_dcmtk, reasons


@pytest.mark.skipif(not DCMTK, reason="dcm2img or dcm2pnm (Debian's dcmtk) is not installed")
def test_every_grey_file_of_pydicom_equals_dcmtks_image_or_is_set_aside_with_a_reason(tmp_path):
    compared, _, _ = compared_with_dcmtk(sorted(bundled("MR_small.dcm").parent.glob("*.dcm")), tmp_path)
    # It reads 32 bits in big endian order with their halves exchanged.
    big = bundled("rtdose_expb_1frame.dcm")
    assert (read_dicom(big).pixels == read_dicom(bundled("rtdose_1frame.dcm")).pixels).all()
    compared.pop(big.name)
    lossy = compared.pop("JPGExtended.dcm")
    assert lossy <= 2, "decoders of lossy JPEG round otherwise"
    assert len(compared) >= 12
    assert max(compared.values()) <= 1, compared


@pytest.mark.slow
@pytest.mark.skipif(not DCMTK, reason="dcm2img or dcm2pnm (Debian's dcmtk) is not installed")
@pytest.mark.skipif(not PYDICOM_DATA, reason="pydicom-data (34 MB, pip install pydicom-data) is not installed")
def test_every_grey_file_of_pydicom_data_equals_dcmtks_image_or_is_set_aside_with_a_reason(tmp_path):
    (folder,) = PYDICOM_DATA
    files = sorted(Path(folder).rglob("*.dcm"))
    compared, beyond_dcmtk, reasons = compared_with_dcmtk(files, tmp_path)
    assert (len(files), len(compared), len(beyond_dcmtk), len(reasons)) == (68, 15, 8, 45)
    assert max(compared.values()) <= 1, compared
    kinds = ("it is in colour", "frames; one radiograph per file", "PALETTE COLOR", "as RGB with 3", "holds no pixels")
    assert all(any(kind in reason for kind in kinds) for reason in reasons), reasons


def test_deflated_file_of_sensible_size_is_read(tmp_path):
    image = radiograph(3)
    path = write_dicom(tmp_path / "a.dcm", image, syntax=DeflatedExplicitVRLittleEndian)
    assert (read_dicom(path).pixels == image).all()


def test_row_8_window_and_rescale_are_applied_by_the_standards_formula(tmp_path):
    # 12 bits stored; rescaled 2x - 100; linear window of centre 900 and width 1001: 399.5 to 1399.5
    # (PS3.3 C.11.2.1.2.1).
    stored = np.array([[0, 249, 250, 400], [500, 600, 749, 4095]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-100,
                       WindowCenter=900, WindowWidth=1001)  # fmt: skip
    expected = np.clip(((2.0 * stored - 100 - 899.5) / 1000 + 0.5) * 255, 0, 255)
    assert read_dicom(path).pixels.tolist() == np.rint(expected).astype(int).tolist()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("slope", [1.0, -1.5])
def test_windows_agree_with_pydicom(tmp_path, function, slope):
    stored = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, RescaleSlope=slope, RescaleIntercept=10,
                       WindowCenter=1000 * slope, WindowWidth=1800, VOILUTFunction=function)  # fmt: skip
    dataset = pydicom.dcmread(path)
    shown = apply_windowing(apply_rescale(stored, dataset), dataset)
    ends = sorted([0 * slope + 10, 4095 * slope + 10])
    share = (shown - ends[0]) / (ends[1] - ends[0])
    # pydicom's output falls with the values when the slope is negative; grey must rise with them.
    share = 1 - share if slope < 0 else share
    assert np.abs(read_dicom(path).pixels - share * 255).max() <= 0.51


def test_row_33_a_window_that_misses_the_values_gives_way_with_a_note(tmp_path):
    deep = radiograph(1).astype(np.uint16) * 100 + 32744
    whole = stretch(deep)
    missed = write_dicom(tmp_path / "a.dcm", deep, WindowCenter=2725, WindowWidth=5310)
    assert (read_dicom(missed).pixels == whole).all()
    assert "window misses its values, so their own range" in " ".join(read_dicom(missed).notes)
    low, high = float(deep.min()), float(deep.max())
    second = {"WindowCenter": [2725, (low + high) / 2], "WindowWidth": [5310, (high - low) / 2]}
    read = read_dicom(write_dicom(tmp_path / "b.dcm", deep, **second))
    alone = {name: values[1] for name, values in second.items()}
    assert (read.pixels == read_dicom(write_dicom(tmp_path / "c.dcm", deep, **alone)).pixels).all()
    assert "the next one was used" in " ".join(read.notes)
    for centre, width in (("nan", "10"), ("100", "0"), ("100", "inf"), ("100", "-5")):
        odd = write_dicom(tmp_path / "d.dcm", deep, WindowCenter=centre, WindowWidth=width)
        assert (read_dicom(odd).pixels == whole).all()
    flat = write_dicom(tmp_path / "e.dcm", np.full((64, 64), 100, np.uint16), WindowCenter=100, WindowWidth=50)
    assert not any("window" in note for note in read_dicom(flat).notes)


@pytest.mark.parametrize("block", [1, 100, 64 * 63])
@pytest.mark.parametrize(
    "tags", [{}, {"WindowCenter": 3000, "WindowWidth": 2500}, {"RescaleSlope": 2, "RescaleIntercept": 5}]
)
def test_grey_values_are_the_same_whatever_the_rows_that_are_computed_at_a_time(tmp_path, monkeypatch, tags, block):
    stored = np.random.default_rng(7).integers(0, 4096, (64, 64)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, **tags)
    whole = read_dicom(path).pixels
    monkeypatch.setattr("keras_pneumo.data.radiographs.radiograph.BLOCK", block)
    assert (read_dicom(path).pixels == whole).all()
    assert len(np.unique(whole)) > 200


@pytest.mark.parametrize("tags", [{"RescaleSlope": "0"}, {"RescaleSlope": "nan"}, {"RescaleIntercept": "1e308"}])
def test_row_33_a_rescale_that_leaves_no_values_is_refused(tmp_path, tags):
    tags = {"RescaleSlope": "1", "RescaleIntercept": "0", **tags}
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1).astype(np.uint16), **tags), "grey values are not known")


def test_a_modality_table_comes_before_the_window_and_a_rescale_beside_it_does_not_count(tmp_path):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = [value * 4 for value in range(256)]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    image = radiograph(1)
    tags = {"ModalityLUTSequence": Sequence([item]), "RescaleSlope": "1", "RescaleIntercept": "0"}
    read = read_dicom(write_dicom(tmp_path / "a.dcm", image, **tags, WindowCenter=512, WindowWidth=1024))
    expected = np.clip((image.astype(float) * 4 - 511.5) / 1023 + 0.5, 0, 1) * 255
    assert np.abs(read.pixels - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ],
)
def test_dense_is_white_whichever_tag_says_that_it_is_stored_black(tmp_path, photometric, shape, inverted):
    image = radiograph(1)
    tags = {"PresentationLUTShape": shape} if shape else {}
    read = read_dicom(write_dicom(tmp_path / "a.dcm", image, PhotometricInterpretation=photometric, **tags))
    assert (read.pixels == (255 - image if inverted else image)).all()
    assert any("inverted" in note for note in read.notes) == inverted


@pytest.mark.parametrize("kind", ["plain", "jpeg"])
def test_grey_stored_as_colour_is_read_and_real_colour_is_refused(tmp_path, kind):
    image = radiograph(1)

    def write(path, pixels):
        dataset = dicom(image, syntax=JPEGBaseline8Bit if kind == "jpeg" else ExplicitVRLittleEndian)
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.PhotometricInterpretation = "YBR_FULL_422" if kind == "jpeg" else "RGB"
        if kind == "jpeg":
            dataset.PixelData = encapsulate([cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()])
        else:
            dataset.PixelData = pixels.tobytes()
        return save(dataset, path)

    grey = np.repeat(image[..., None], 3, axis=2)
    read = read_dicom(write(tmp_path / "grey.dcm", grey))
    assert read.pixels.shape == image.shape
    assert np.abs(read.pixels.astype(int) - image).max() <= (8 if kind == "jpeg" else 0)
    coloured = grey.copy()
    coloured[:20, :, 0] //= 2
    refused(write(tmp_path / "colour.dcm", coloured), "it is in colour")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Modality": "CR", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}, ""),
        ({"Modality": "DX", "BodyPartExamined": "", "ViewPosition": "LLD"}, ""),
        ({"BodyPartExamined": "CHEST TO ABDOMEN"}, ""),
        ({"BodyPartExamined": "THORAX", "ViewPosition": "AP_SUPINE"}, ""),
        ({"Modality": "MR"}, "modality MR"),
        ({"Modality": "MG"}, "modality MG"),
        ({"BodyPartExamined": "Lower Leg"}, "body part LEG"),
        ({"BodyPartExamined": "HAND"}, "body part HAND"),
        ({"ViewPosition": "LL"}, "view LL, which is not frontal"),
        ({"ViewPosition": "LATERAL"}, "not frontal"),
        ({"ViewCodeSequence": "left lateral"}, "lateral or oblique"),
        ({"ViewCodeSequence": "postero-anterior oblique"}, ""),
        ({"ViewCodeSequence": "lateral decubitus"}, ""),
    ],
)
def test_what_the_header_calls_something_else_is_named(tmp_path, tags, words):
    if "ViewCodeSequence" in tags:
        code = Dataset()
        code.CodeMeaning = tags["ViewCodeSequence"]
        tags = {"ViewCodeSequence": Sequence([code])}
    read = read_dicom(write_dicom(tmp_path / "a.dcm", radiograph(1), PixelSpacing=[0.2, 0.2], **tags))
    assert words in read.other_view
    assert bool(read.other_view) == bool(words) == bool(read.notes)


def test_first_of_several_windows_is_used(tmp_path):
    stored = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    tags = {"BitsStored": 12, "HighBit": 11}
    windowed = write_dicom(tmp_path / "a.dcm", stored, **tags, WindowCenter=2000, WindowWidth=1000)
    two = write_dicom(tmp_path / "b.dcm", stored, **tags, WindowCenter=[2000, 50], WindowWidth=[1000, 5])
    assert (read_dicom(windowed).pixels == read_dicom(two).pixels).all()


def test_voi_table_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.LUTData = [0, 10, 200, 255]
    dataset = dicom(np.array([[0, 1], [2, 3]], np.uint16), BitsStored=12, HighBit=11)
    dataset.VOILUTSequence = Sequence([table])
    dataset.VOILUTSequence[0]["LUTDescriptor"].VR = dataset.VOILUTSequence[0]["LUTData"].VR = "US"
    assert read_dicom(save(dataset, tmp_path / "a.dcm")).pixels.tolist() == [[0, 10], [200, 255]]


def test_deep_image_without_window_spans_its_own_range(tmp_path):
    stored = np.array([[100, 300], [200, 1124]], np.uint16)
    assert read_dicom(write_dicom(tmp_path / "a.dcm", stored)).pixels.tolist() == [[0, 50], [25, 255]]


def test_signed_values_span_their_own_range(tmp_path):
    stored = np.array([[-100, 0], [100, 155]], np.int16)
    assert read_dicom(write_dicom(tmp_path / "a.dcm", stored)).pixels.tolist() == [[0, 100], [200, 255]]


def test_flat_image_is_black():
    assert stretch(np.full((2, 2), 7, np.uint16)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("written", "years"),
    [
        ("062Y", 62),
        ("62", 62),
        ("018M", 1.5),
        ("026W", 0.5),
        ("073D", 0.2),
        ("413", None),
        ("", None),
        ("about 60", None),
    ],
)
def test_ages(tmp_path, written, years):
    read = read_dicom(write_dicom(tmp_path / "a.dcm", radiograph(1), PatientAge=written))
    assert read.age == (None if years is None else pytest.approx(years, abs=0.01))


def test_tags(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(1), uid="1.9", PatientSex="f", ViewPosition="LL",
                       PixelSpacing=[0.139, 0.139], PatientID="secret")  # fmt: skip
    read = read_dicom(path)
    assert (read.image_id, read.sex, read.view, read.pixel_spacing_mm) == ("1.9", "F", "", 0.139)
    assert read.patient_id_tag == "secret"
    assert "secret" not in repr(read)
    assert "Nemo" not in repr(read)


def test_pixels_that_are_not_square_have_no_spacing(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(1), PixelSpacing=[0.1, 0.2])
    assert read_dicom(path).pixel_spacing_mm is None


def test_file_without_uid_goes_by_its_name(tmp_path):
    path = save(dicom(radiograph(1), SOPInstanceUID=None), tmp_path / "my image.dcm")
    assert read_dicom(path).image_id == "my image"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_row_1_an_empty_file(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    refused(tmp_path / "a.dcm", "empty")


def test_row_1_a_file_without_preamble_is_read_when_it_begins_as_dicom_and_never_otherwise(tmp_path):
    image = radiograph(1)
    explicit = write_dicom(tmp_path / "a.dcm", image).read_bytes()
    implicit = write_dicom(tmp_path / "i.dcm", image, syntax=ImplicitVRLittleEndian).read_bytes()
    jpeg = write_jpeg_dicom(tmp_path / "j.dcm", image).read_bytes()
    for number, data in enumerate((explicit, implicit, jpeg)):
        (tmp_path / "b.dcm").write_bytes(data[132:])  # with its meta group
        expected = read_dicom(tmp_path / ("a.dcm", "i.dcm", "j.dcm")[number])
        assert (read_dicom(tmp_path / "b.dcm").pixels == expected.pixels).all()
        assert read_header(data[132:], "b").image_id == expected.image_id
    for data in (explicit, implicit):
        alone = data[data.index(b"\x08\0\x16\0") :]  # the data set alone
        (tmp_path / "b.dcm").write_bytes(alone)
        assert (read_dicom(tmp_path / "b.dcm").pixels == image).all()
        (tmp_path / "b.dcm").write_bytes(alone[: len(alone) // 2])
        with pytest.raises(UnreadableImage):
            read_radiograph(tmp_path / "b.dcm")
    for text in (b"ImageId,EncodedPixels\n", b"\x08\0" + b"text of any kind, and more of it", explicit[700:]):
        (tmp_path / "c.dcm").write_bytes(text)
        refused(tmp_path / "c.dcm", "no DICOM file")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("write", [write_dicom, write_jpeg_dicom])
def test_row_2_a_truncated_file(tmp_path, write, share):
    data = write(tmp_path / "a.dcm", radiograph(1)).read_bytes()
    (tmp_path / "b.dcm").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImage):
        read_dicom(tmp_path / "b.dcm")


def test_row_2_a_jpeg_cut_short_inside_an_intact_file(tmp_path):
    jpeg = cv2.imencode(".jpg", radiograph(1))[1].tobytes()
    dataset = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg[: len(jpeg) * 2 // 3]])
    refused(save(dataset, tmp_path / "a.dcm"), "cut short")


def test_row_30_a_tag_with_two_values_where_one_belongs(tmp_path):
    data = write_dicom(tmp_path / "a.dcm", radiograph(1)).read_bytes()
    place = data.index(b"\x02\0\x10\0UI") + 10
    path = tmp_path / "b.dcm"
    path.write_bytes(data[:place] + b"\\" + data[place + 1 :])
    refused(path, "several ways")
    with pytest.raises(UnreadableImage, match="several ways"):
        read_header(path.read_bytes(), "b")


@pytest.mark.parametrize("kind", [b"DS", b"IS", b"AT", b"US", b"SQ", b"OB", b"PN"])
@pytest.mark.parametrize("tag", [b"\x08\0\x18\0UI", b"\x10\0\x20\0LO"])
def test_row_30_a_flipped_value_representation_is_read_or_refused(tmp_path, kind, tag):
    data = write_dicom(tmp_path / "a.dcm", radiograph(1), PatientID="a\\b").read_bytes()
    place = data.index(tag) + 4
    path = tmp_path / "b.dcm"
    path.write_bytes(data[:place] + kind + data[place + 2 :])
    assert read_or_reason(path)
    with contextlib.suppress(UnreadableImage):
        assert read_header(path.read_bytes(), "b").image_id


@pytest.mark.parametrize(
    "spacing", [["1e308", "1e308"], ["0.2"], ["nan", "nan"], ["0", "0"], ["-1", "-1"], ["1e-9"] * 2]
)
def test_row_32_an_impossible_spacing_counts_as_none(tmp_path, spacing):
    path = write_dicom(tmp_path / "a.dcm", radiograph(1))
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        dataset.add_new("PixelSpacing", "DS", "\\".join(spacing))
        dataset.save_as(path)
    read = read_dicom(path)
    assert read.pixel_spacing_mm is None
    assert "how large a pixel is" in " ".join(read.notes)


@pytest.mark.parametrize("kind", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit])
def test_row_46_a_long_id_is_cut_and_cleaned(tmp_path, kind):
    odd = "1.2\x1b[31m" + "9" * (10**7 if kind == ImplicitVRLittleEndian else 10**4)
    dataset = dicom(radiograph(1), "1.2.3", kind)
    dataset.SOPInstanceUID = odd
    if kind == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([cv2.imencode(".jpg", radiograph(1))[1].tobytes()])
    read = read_radiograph(save(dataset, tmp_path / "a.dcm"))
    assert len(read.image_id) <= 180
    assert read.image_id.isprintable()
    assert read.image_id.startswith("1.2")


def test_row_45_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "regular files")


def test_row_39_a_reason_quotes_nothing_of_the_file(tmp_path, monkeypatch):
    def speak(*_given, **_named):
        raise ValueError("the value 'Smith^John' of (0010,0010) is odd: b'4711'\x1b[31m\n" + "x" * 500)

    monkeypatch.setattr(PIXEL_ARRAY, speak)
    reason = read_or_reason(write_dicom(tmp_path / "a.dcm", radiograph(1), PatientID="4711"))
    assert "is odd" in reason
    assert not any(part in reason for part in ("Smith", "4711", "\x1b", "\n"))
    assert len(reason) < 300


def test_damaged_jpeg_header(tmp_path):
    dataset = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([b"\xff\xd8" + b"\0" * 500])
    refused(save(dataset, tmp_path / "a.dcm"), "cannot be decoded")


def test_row_3_thousands_of_nested_sequences(tmp_path):
    refused(nested_sequences(tmp_path / "b.dcm", 5000), "nested too deeply")


def test_row_4_a_deflated_bomb_is_refused_in_bounded_memory(tmp_path):
    path = deflated_bomb(tmp_path / "a.dcm", 600 * 2**20)
    assert path.stat().st_size < 2**20
    code = (
        "import sys; from pathlib import Path; from keras_pneumo.data.radiographs.dicom import read_dicom\n"
        "from keras_pneumo.data.radiographs.radiograph import UnreadableImage\n"
        "import resource; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_dicom(Path(sys.argv[1]))\nexcept UnreadableImage as error:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    grown, _, reason = done.stdout.partition(" ")
    assert "deflated data unpack" in reason
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 100 * 2**20


def test_row_5_a_size_in_the_header_is_refused_before_decoding(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", radiograph(1), Rows=65535, Columns=65535)
    refused(path, f"more than the {MAX_PIXELS} pixels")


def test_row_5_a_compressed_image_larger_than_the_header_says(tmp_path):
    jpeg = cv2.imencode(".jpg", np.zeros((5000, 4000), np.uint8))[1].tobytes()
    dataset = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg])
    refused(save(dataset, tmp_path / "a.dcm"), "its compressed image is of 5000x4000 pixels")


def jpeg_segments(frame):
    """A JPEG's start, the segments before its scan, and the rest; each segment with its marker."""
    position, segments = 2, []
    while frame[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(frame[position + 2 : position + 4])
        segments.append(frame[position:end])
        position = end
    return segments, frame[position:]


def jpeg_of(*segments, rest):
    return b"\xff\xd8" + b"".join(segments) + rest


def write_frame(path, frame, syntax=JPEGBaseline8Bit, pixels=None):
    dataset = dicom(radiograph(1) if pixels is None else pixels, syntax=syntax)
    dataset.PixelData = encapsulate([frame])
    return save(dataset, path)


def test_fill_bytes_before_a_marker_are_read(tmp_path):
    jpeg = cv2.imencode(".jpg", radiograph(1))[1].tobytes()
    segments, rest = jpeg_segments(jpeg)
    filled = jpeg_of(*(b"\xff" * 3 + segment for segment in segments), rest=b"\xff" + rest)
    plain = read_dicom(write_frame(tmp_path / "a.dcm", jpeg)).pixels
    assert (read_dicom(write_frame(tmp_path / "b.dcm", filled)).pixels == plain).all()


def a_stray_byte(segments):
    return [b"\0", *segments]


def a_marker_that_has_no_segment(segments):
    # libjpeg passes over a restart marker; read as a segment, its length would hide the frame that follows.
    return [b"\xff\xd0", *segments, b"\0" * 70000]


def two_frames(segments):
    (frame,) = (segment for segment in segments if segment[1] == 0xC0)
    return [*segments, frame]


def a_hierarchy_of_frames(segments):
    (frame,) = (segment for segment in segments if segment[1] == 0xC0)
    return [b"\xff\xde" + frame[2:5] + struct.pack(">2H", 5000, 5000) + frame[9:], *segments]


def no_frame(segments):
    return [segment for segment in segments if segment[1] != 0xC0]


@pytest.mark.parametrize(
    "spoil", [a_stray_byte, a_marker_that_has_no_segment, two_frames, a_hierarchy_of_frames, no_frame]
)
def test_jpeg_whose_size_could_be_read_in_two_ways_is_not_decoded(tmp_path, spoil, monkeypatch):
    monkeypatch.setattr(
        "keras_pneumo.data.radiographs.dicom.pixel_array", lambda *_, **__: pytest.fail("a decoder was called")
    )
    segments, rest = jpeg_segments(cv2.imencode(".jpg", radiograph(1))[1].tobytes())
    path = write_frame(tmp_path / "a.dcm", jpeg_of(*spoil(segments), rest=rest))
    refused(path, "its compressed image does not begin as")


def test_jpeg_2000_in_a_file_of_its_own_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "keras_pneumo.data.radiographs.dicom.pixel_array", lambda *_, **__: pytest.fail("a decoder was called")
    )
    stream = io.BytesIO()
    Image.fromarray(np.zeros((6000, 6000), np.uint8)).save(stream, "JPEG2000")
    refused(write_frame(tmp_path / "a.dcm", stream.getvalue(), JPEG2000Lossless), "wrapped in a JP2 file")


def test_compressed_colour_in_a_grey_file_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "keras_pneumo.data.radiographs.dicom.pixel_array", lambda *_, **__: pytest.fail("a decoder was called")
    )
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    refused(write_frame(tmp_path / "a.dcm", cv2.imencode(".jpg", colour)[1].tobytes()), "has 3 components")
    stream = io.BytesIO()
    Image.fromarray(colour).save(stream, "JPEG2000", no_jp2=True)
    refused(write_frame(tmp_path / "b.dcm", stream.getvalue(), JPEG2000Lossless), "has 3 components")


def test_jpeg_2000_larger_than_the_header_says(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((300, 200), np.uint8)).save(stream, "JPEG2000", no_jp2=True)
    dataset = dicom(radiograph(1), syntax=JPEG2000Lossless)
    dataset.PixelData = encapsulate([stream.getvalue()])
    refused(save(dataset, tmp_path / "a.dcm"), "its compressed image is of 300x200 pixels")


def test_compressed_frame_far_larger_than_its_image(tmp_path):
    dataset = dicom(radiograph(1), syntax=RLELossless)
    dataset.PixelData = encapsulate([bytes(200_000)])
    refused(save(dataset, tmp_path / "a.dcm"), "far more than")


def test_run_lengths_that_unpack_to_far_more(tmp_path):
    dataset = dicom(radiograph(1), syntax=RLELossless)
    dataset.PixelData = encapsulate([struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 4000])
    refused(save(dataset, tmp_path / "a.dcm"), "unpack to far more than the 4096 bytes")


def test_run_lengths_are_read(tmp_path):
    for number, image in enumerate([radiograph(1), radiograph(1).astype(np.uint16) * 16]):
        dataset = dicom(image)
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        expected = image if image.dtype == np.uint8 else stretch(image)
        assert (read_dicom(save(dataset, tmp_path / f"{number}.dcm")).pixels == expected).all()


@pytest.mark.parametrize("frames", [2, 5000])
def test_row_6_several_frames(tmp_path, frames):
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1), NumberOfFrames=frames), f"{frames} frames")


def test_row_6_several_frames_that_the_header_does_not_mention(tmp_path):
    twice = np.concatenate([radiograph(1), radiograph(2)])
    path = write_dicom(tmp_path / "a.dcm", twice, Rows=SIDE)
    refused(path, f"holds {2 * SIDE * SIDE} bytes of pixels where {SIDE * SIDE} are expected")
    jpeg = cv2.imencode(".jpg", radiograph(1))[1].tobytes()
    dataset = dicom(radiograph(1), syntax=JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([jpeg, jpeg])
    refused(save(dataset, tmp_path / "b.dcm"), "more than one frame")


@pytest.mark.parametrize("extra", [2, 100])
def test_row_6_excess_bytes(tmp_path, extra):
    dataset = dicom(radiograph(1))
    dataset.PixelData += bytes(extra)
    refused(save(dataset, tmp_path / "a.dcm"), "are expected")


def test_odd_image_with_its_padding_byte_is_read(tmp_path):
    image = radiograph(1)[:3, :3].copy()
    assert (read_dicom(write_dicom(tmp_path / "a.dcm", image)).pixels == image).all()


@pytest.mark.parametrize("tags", [{"Rows": 0}, {"Columns": 0}, {"Rows": None}])
def test_row_7_no_rows(tmp_path, tags):
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1), **tags), "holds no image")


def test_row_7_no_pixels(tmp_path):
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1), PixelData=None), "holds no pixels")


def test_row_8_colour_is_refused(tmp_path):
    path = bundled("SC_rgb_small_odd.dcm")
    refused(path, "it is in colour")
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1), PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR")


def test_one_bit_per_pixel_is_refused(tmp_path):
    refused(write_dicom(tmp_path / "a.dcm", radiograph(1), BitsAllocated=1), "allocates 1 bits")


def test_video_is_refused(tmp_path):
    dataset = dicom(radiograph(1), syntax=MPEG2MPML)
    dataset.PixelData = encapsulate([b"\0\0"])
    refused(save(dataset, tmp_path / "a.dcm"), "MPEG2")


def test_no_transfer_syntax(tmp_path):
    data = write_dicom(tmp_path / "a.dcm", radiograph(1)).read_bytes()
    at = data.index(b"\x02\x00\x10\x00")
    (tmp_path / "b.dcm").write_bytes(data[:at] + b"\x02\x00\x11\x00" + data[at + 4 :])
    refused(tmp_path / "b.dcm", "does not say how its pixels are stored")


def test_oversized_file_is_not_opened(tmp_path):
    with (tmp_path / "a.dcm").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    refused(tmp_path / "a.dcm", f"more than the {MAX_FILE_BYTES}")


def test_folder_and_missing_file(tmp_path):
    (tmp_path / "a.dcm").mkdir()
    with pytest.raises(UnreadableImage):
        read_dicom(tmp_path / "a.dcm")
    refused(tmp_path / "b.dcm", "cannot be read")


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_never_escape_as_another_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    data = bytearray((write_jpeg_dicom if seed % 2 else write_dicom)(tmp_path / "a.dcm", radiograph(1)).read_bytes())
    for position in rng.integers(0, min(len(data), 1200), 4):
        data[position] = rng.integers(0, 256)
    (tmp_path / "b.dcm").write_bytes(data)
    try:
        image = read_dicom(tmp_path / "b.dcm").pixels
    except UnreadableImage:
        return
    assert image.ndim == 2
    assert image.dtype == np.uint8


# -- decoders ----------------------------------------------------------------------------------------------------------


def test_every_decoder_is_there_and_named():
    report = decoder_report()
    assert all(status.available for status in report)
    baseline = next(status for status in report if status.transfer_syntax == str(JPEGBaseline8Bit))
    assert (baseline.plugin, baseline.package) == ("pillow", "pillow")


def test_row_9_a_missing_decoder_is_reported(monkeypatch):
    monkeypatch.setitem(decoders.DECODERS, str(JPEGBaseline8Bit), ("gdcm", "python-gdcm"))
    report = {status.transfer_syntax: status for status in decoder_report()}
    assert not report[str(JPEGBaseline8Bit)].available
    assert report[str(JPEGBaseline8Bit)].package == "python-gdcm"


def test_the_named_plugin_is_the_one_used(tmp_path, monkeypatch):
    path = write_jpeg_dicom(tmp_path / "a.dcm", radiograph(1))
    monkeypatch.setitem(decoders.DECODERS, str(JPEGBaseline8Bit), ("gdcm", "python-gdcm"))
    refused(path, "gdcm")


def test_header_tells_identity_without_pixels(tmp_path):
    path = write_jpeg_dicom(tmp_path / "a.dcm", radiograph(1), uid="1.7", PatientID="p")
    header = read_header(path.read_bytes(), "a")
    assert (header.image_id, header.transfer_syntax, header.patient_id_tag) == ("1.7", str(JPEGBaseline8Bit), "p")
    assert "'p'" not in repr(header)


# -- PNG and JPEG ------------------------------------------------------------------------------------------------------


def test_grey_png(tmp_path):
    image = radiograph(1)
    read = read_radiograph(write_png(tmp_path / "1.2.3.4.png", image))
    assert (read.pixels == image).all()
    assert read.image_id == "1.2.3.4"


def test_names_with_spaces_and_other_letters(tmp_path):
    read = read_radiograph(write_png(tmp_path / "plicní snímek č. 1.png", radiograph(1)))
    assert read.image_id == "plicní snímek č. 1"


def test_grey_jpeg_equals_opencv(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), radiograph(1))
    assert (
        read_radiograph(tmp_path / "a.jpg").pixels == cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_GRAYSCALE)
    ).all()


def test_sixteen_bit_png_spans_its_own_range(tmp_path):
    path = write_png(tmp_path / "a.png", np.array([[100, 300], [200, 1124]], np.uint16))
    assert read_radiograph(path).pixels.tolist() == [[0, 50], [25, 255]]


def test_one_bit_png(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read_radiograph(tmp_path / "a.png").pixels.tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_picture_in_colour_form(tmp_path, mode):
    Image.fromarray(radiograph(1)).convert(mode).save(tmp_path / "a.png")
    assert (read_radiograph(tmp_path / "a.png").pixels == radiograph(1)).all()


def test_real_colour_is_refused(tmp_path):
    colour = np.stack([radiograph(1), radiograph(2), radiograph(3)], axis=-1)
    refused(write_png(tmp_path / "a.png", colour), "in colour")


def test_transparency_is_refused(tmp_path):
    pixels = np.dstack([radiograph(1)] * 3 + [np.full((SIDE, SIDE), 128, np.uint8)])
    refused(write_png(tmp_path / "a.png", pixels), "transparent")


def test_orientation_tag_is_ignored(tmp_path):
    image = radiograph(1)[:, :32]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    assert (read_radiograph(tmp_path / "a.png").pixels == image).all()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_truncated_picture(tmp_path, ending, share):
    data = cv2.imencode(ending, radiograph(1, 256))[1].tobytes()
    (tmp_path / f"a{ending}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImage):
        read_radiograph(tmp_path / f"a{ending}")


def test_png_bombs(tmp_path):
    # 20000 x 20000 pixels of one bit: 50 MB unpacked, 400 MB as grey.
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    refused(tmp_path / "a.png", "more than")
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.fromarray(radiograph(1)).save(tmp_path / "b.png", pnginfo=info)
    refused(tmp_path / "b.png", "cannot be decoded")


def test_other_kinds_of_pictures(tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "a.png", "GIF")
    refused(tmp_path / "a.png", "neither a PNG nor a JPEG")
    (tmp_path / "b.png").write_bytes(b"not a picture at all")
    refused(tmp_path / "b.png", "neither a PNG nor a JPEG")
    frames = [Image.fromarray(radiograph(seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "c.png", save_all=True, append_images=frames[1:])
    refused(tmp_path / "c.png", "several frames")


def test_a_bad_file_among_good_ones(tmp_path):
    paths = [
        write_png(tmp_path / "a.png", radiograph(1)),
        tmp_path / "b.dcm",
        write_dicom(tmp_path / "c.dcm", radiograph(2)),
    ]
    paths[1].write_bytes(b"rubbish")
    read = {path: read_or_reason(path) for path in paths}
    assert (read[paths[0]].pixels == radiograph(1)).all()
    assert isinstance(read[paths[1]], str)
    assert (read[paths[2]].pixels == radiograph(2)).all()
