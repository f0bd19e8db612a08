"""Streams that were cut and closed again, at every place, and streams with holes; whole ones decode to the same pixels.

Radiographs are SIIM's real ones where they are, and phantoms. Golden values: the pixels before encoding.
"""

import io
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import jpeg_ls
import libjpeg
import numpy as np
import pydicom
import pytest
from hostile_lab import EOI, cut, framed, jpeg_2000, jpeg_lossless, with_hole
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import generate_frames
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)
from small_siim import radiograph, write_dicom

from keras_pneumo.data.radiographs.completeness import ends_early, guarded, scans_are_missing
from keras_pneumo.data.radiographs.radiograph import Radiograph, stretch
from keras_pneumo.data.radiographs.reading import read_or_reason, read_radiograph

PLACES = np.linspace(0.05, 0.97, 20)

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared")) / "siim_mini/dicom"

NOISY = np.random.default_rng(0).normal(128, 20, (64, 64)).clip(0, 255).astype(np.uint8)


def baseline(pixels):
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def near_lossless(pixels):
    return bytes(jpeg_ls.encode_array(pixels, lossy_error=2))


ENCODERS = {
    JPEGLSLossless: lambda pixels: bytes(jpeg_ls.encode_array(pixels)),
    JPEGLSNearLossless: near_lossless,
    JPEGLosslessSV1: jpeg_lossless,
    JPEGLossless: jpeg_lossless,
    JPEGBaseline8Bit: baseline,
    JPEG2000Lossless: jpeg_2000,
}


@pytest.fixture(scope="module", params=["real", "phantom"])
def picture(request):
    """A radiograph at a quarter of its side, uint8 (256, 256)."""
    if request.param == "real":
        if not REAL.exists():
            pytest.skip("no real radiographs beside the repository")
        path = min(REAL.glob("*.dcm"))
    else:
        path = min(request.getfixturevalue("phantoms").rglob("*.dcm"))
    return cv2.resize(read_radiograph(path).pixels, (256, 256), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda syntax: syntax.keyword)
def test_row_31_a_stream_cut_at_any_place_and_closed_again_is_refused(tmp_path, picture, syntax):
    frame = ENCODERS[syntax](picture).rstrip(b"\0")
    whole = read_radiograph(framed(tmp_path / "whole.dcm", frame, syntax, picture)).pixels
    if syntax not in (JPEGBaseline8Bit, JPEGLSNearLossless):
        np.testing.assert_array_equal(whole, picture)
    for share in PLACES:
        for closed in (cut(frame, share), cut(frame, share)[:-2]):
            reason = read_or_reason(framed(tmp_path / "cut.dcm", closed, syntax, picture))
            assert isinstance(reason, str), f"cut at {share:.2f}, it was read"


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLosslessSV1], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("width", [1, 40, 1000])
def test_row_31_a_hole_in_the_middle_is_refused(tmp_path, picture, syntax, width):
    """As far as it can be seen: after a hole the codes seldom fall into step again, and then the counts differ."""
    frame = ENCODERS[syntax](picture)
    for share in np.linspace(0.1, 0.9, 10):
        path = framed(tmp_path / "hole.dcm", with_hole(frame, share, width), syntax, picture)
        assert isinstance(read_or_reason(path), str), f"with a hole at {share:.2f}, it was read"


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGLosslessSV1], ids=lambda syntax: syntax.keyword)
def test_row_31_deep_pixels_too(tmp_path, picture, syntax):
    deep = picture.astype(np.uint16) * 16 + np.random.default_rng(0).integers(0, 16, picture.shape).astype(np.uint16)
    frame = ENCODERS[syntax](deep)
    assert (read_radiograph(framed(tmp_path / "whole.dcm", frame, syntax, deep)).pixels == stretch(deep)).all()
    for share in PLACES:
        assert isinstance(read_or_reason(framed(tmp_path / "cut.dcm", cut(frame, share), syntax, deep)), str)


@pytest.mark.skipif(not shutil.which("dcmcjpls"), reason="dcmcjpls (Debian's dcmtk) is not installed")
@pytest.mark.parametrize("encoder", ["dcmcjpls", "dcmcjpeg"])
def test_row_31_streams_of_another_encoder(tmp_path, encoder):
    """DCMTK's codes take no more bits than needed, so that nearly every bit string is some image."""
    whole = tmp_path / "whole.dcm"
    subprocess.run([encoder, write_dicom(tmp_path / "plain.dcm", NOISY), whole], check=True)
    np.testing.assert_array_equal(read_radiograph(whole).pixels, NOISY)
    dataset = pydicom.dcmread(whole)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    syntax = dataset.file_meta.TransferSyntaxUID
    for share in PLACES:
        assert isinstance(read_or_reason(framed(tmp_path / "cut.dcm", cut(frame, share), syntax, NOISY)), str)


def progressive(pixels, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, progressive=True, **options)
    return stream.getvalue()


def scan_ends(jpeg):
    """Where each scan of a JPEG begins, but the first."""
    return [at for at in range(len(jpeg) - 1) if jpeg[at : at + 2] == b"\xff\xda"][1:]


def test_row_31_a_progressive_jpeg_cut_at_any_place_or_between_two_scans_is_refused(tmp_path, picture):
    for pixels in (picture, np.repeat(picture[..., None], 3, axis=2)):
        frame = progressive(pixels)
        places = [*(int(len(frame) * share) for share in PLACES), *scan_ends(frame)]
        assert len(places) >= 25
        (tmp_path / "whole.jpg").write_bytes(frame)
        assert np.abs(read_radiograph(tmp_path / "whole.jpg").pixels.astype(int) - picture).mean() < 3
        for place in places:
            (tmp_path / "cut.jpg").write_bytes(frame[:place].removesuffix(b"\xff") + EOI)
            assert isinstance(read_or_reason(tmp_path / "cut.jpg"), str), f"cut at {place} of {len(frame)}, it was read"


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": "4:2:0"}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_whole_progressive_jpeg_is_read_whatever_its_last_block_is(options, grey):
    for pixels in (np.full((20, 30), grey, np.uint8), NOISY):
        frame = progressive(pixels, **options)
        assert scans_are_missing(frame) is False
        assert not ends_early(frame, np.array(Image.open(io.BytesIO(frame)).convert("L")))
    assert scans_are_missing(baseline(NOISY)) is None


@given(st.integers(1, 33), st.integers(1, 33), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_guarded_stream_decodes_to_the_same_pixels_and_a_shorter_one_does_not(rows, columns, seed, deep):
    kind = np.uint16 if deep else np.uint8
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(kind).max + 1, (rows, columns)).astype(kind)
    frame = jpeg_lossless(pixels)
    np.testing.assert_array_equal(libjpeg.decode(guarded(frame)).reshape(pixels.shape), pixels)
    at = len(frame) - 2 - 5  # so that more than the last code of at most 21 bits is missing
    if at > frame.index(b"\xff\xda") + 12:
        with pytest.raises(RuntimeError):
            libjpeg.decode(guarded(frame[:at].removesuffix(b"\xff") + EOI))


def test_a_jpeg_whose_last_block_is_grey_by_itself_is_read(tmp_path):
    for image in (np.full((64, 64), 128, np.uint8), np.pad(radiograph(1)[:40, :40], (0, 24), constant_values=128)):
        frame = baseline(image)
        pixels = np.asarray(Image.open(io.BytesIO(frame)))
        assert (pixels[-8:, -8:] == 128).all()
        assert not ends_early(frame, pixels)
        (tmp_path / "a.jpg").write_bytes(frame)
        assert isinstance(read_or_reason(tmp_path / "a.jpg"), Radiograph)
        assert isinstance(read_or_reason(framed(tmp_path / "a.dcm", frame, JPEGBaseline8Bit)), Radiograph)


def test_a_jpeg_file_that_was_cut_and_closed_again_is_refused(tmp_path, picture):
    frame = baseline(picture)
    for share in PLACES:
        (tmp_path / "a.jpg").write_bytes(cut(frame, share))
        assert isinstance(read_or_reason(tmp_path / "a.jpg"), str)


@pytest.mark.parametrize("shape", [(64, 64), (61, 50), (8, 70)])
def test_a_jpeg_of_sides_that_no_block_fits(shape):
    image = NOISY[: shape[0], : min(shape[1], 64)]
    frame = baseline(np.ascontiguousarray(image))
    assert not ends_early(frame, np.asarray(Image.open(io.BytesIO(frame))))
    short = cut(frame, 0.8)
    assert ends_early(short, np.asarray(Image.open(io.BytesIO(short))))
