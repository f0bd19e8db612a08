"""One radiograph and its mask as PNG files: their pixels are what they have always been, whatever is written around."""

import hashlib
import zlib

import cv2
import numpy as np
import pytest
from small_siim import write_jpeg_dicom

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import read_labels
from keras_pneumo.data.prepared.rendering import Job, image_name, mask_name, render
from keras_pneumo.data.radiographs.reading import find_images
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms

SIZES = (96, 512, 1024)
GOLDEN = {
    "images": "bae72620719b4809986dd09bcb5a368d3531534cbc70fcf933d5d381c85515ad",
    "masks": "abe79950ef138c12e259fbf0d1a6822c7bf11ea0455944d109e87f75291df38b",
}
"""SHA-256 over the pixels of all images, and of all masks, as the first version of rendering.py made them."""


def pixels(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "p"
    write_phantoms(folder, PhantomSettings(images=4, seed=4, positive_rate=0.7), workers=1)
    return folder


def test_pixels_of_phantoms_of_1024_are_what_they_were(phantoms, tmp_path):
    labels = read_labels(phantoms / "train-rle.csv")
    hashes = {name: hashlib.sha256() for name in GOLDEN}
    for path in sorted(find_images(phantoms)[0], key=lambda path: path.stem):
        rendered = render(Job(path, path.stem, labels.images[path.stem].runs, SIZES, tmp_path))
        assert not rendered.error
        for name, digest in rendered.files.items():
            assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
            hashes[name.partition("_")[0]].update(pixels(tmp_path / name).tobytes())
    assert {name: digest.hexdigest() for name, digest in hashes.items()} == GOLDEN


def png_chunks(data, kind):
    """The contents of all chunks of one kind, joined (PNG specification, 5.3)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, found = 8, b""
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] == kind:
            found += data[position + 8 : position + 8 + length]
        position += 12 + length
    return found


def test_files_are_grey_lossless_pngs_whose_rows_are_differences(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1024, 1024)).astype(np.uint8)
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:300, 200:500] = 1
    path = write_jpeg_dicom(tmp_path / "a.dcm", image)
    render(Job(path, "a", rle.runs_of(rle.encode(mask)), (512,), tmp_path / "out"))
    for name in (image_name("a", 512), mask_name("a", 512)):
        data = (tmp_path / "out" / name).read_bytes()
        header = png_chunks(data, b"IHDR")
        assert header == (512).to_bytes(4) * 2 + bytes([8, 0, 0, 0, 0])  # 8 bits, grey, deflate, no interlacing
        rows = np.frombuffer(zlib.decompress(png_chunks(data, b"IDAT")), np.uint8).reshape(512, 513)
        assert set(rows[:, 0]) == {2}  # filter Up: each row is the difference to the one above
        written = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint64).astype(np.uint8)  # modulo 256
        assert (written == pixels(tmp_path / "out" / name)).all()
    assert (pixels(tmp_path / "out" / mask_name("a", 512)) == 255 * mask[::2, ::2]).all()


def test_files_are_no_larger_than_those_of_a_general_level(phantoms, tmp_path):
    path = find_images(phantoms)[0][0]
    mask = np.zeros((1024, 1024), np.uint8)
    cv2.ellipse(mask, (500, 400), (300, 80), 30, 0, 360, 1, -1)
    render(Job(path, "a", rle.runs_of(rle.encode(mask)), (512,), tmp_path))
    for name in (image_name("a", 512), mask_name("a", 512)):
        general = cv2.imencode(".png", pixels(tmp_path / name), [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
        assert (tmp_path / name).stat().st_size < general.size
