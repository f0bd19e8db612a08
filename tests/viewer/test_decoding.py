"""Tests of decoding bytes: a file that crashes or blocks its decoder costs only itself."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.viewer import decoding

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")
from page_lab import Page

from keras_pneumo.viewer.decoding import Decoder, decode_bytes


def crash(data, name):
    os._exit(9)


def hang(data, name):
    time.sleep(300)


@pytest.mark.slow
def test_a_file_that_crashes_or_blocks_the_decoder_costs_only_itself(monkeypatch, radiographs):
    data = next(radiographs.iterdir()).read_bytes()
    decoder = Decoder(seconds=30)
    try:
        monkeypatch.setattr(decoding, "decode_bytes", crash)
        with pytest.raises(UnreadableImage, match="crash"):
            decoder.decode(data, "x")
        decoder.seconds = 3
        monkeypatch.setattr(decoding, "decode_bytes", hang)
        with pytest.raises(UnreadableImage, match="within 3 seconds"):
            decoder.decode(data, "x")
        monkeypatch.undo()
        decoder.seconds = 60
        assert decoder.decode(data, "x").pixels.shape == (1024, 1024)
    finally:
        decoder.close()


@pytest.mark.slow
def test_the_page_ends_while_a_file_blocks_the_decoder(monkeypatch, radiographs, tmp_path):
    monkeypatch.setattr(decoding, "decode_bytes", hang)
    with ThreadPoolExecutor(1) as pool:
        with Page(radiographs, tmp_path / "readings.csv") as page:
            page.page_detector.decoder.seconds = 300
            request = pool.submit(page.json, "/api/folder/0")
            while not page.page_detector.decoder.worker.is_running:
                time.sleep(0.05)
        assert not page.thread.is_alive()
        status, body = request.result(60)
    assert (status, "the program is ending" in body["error"]) == (422, True)


def test_the_format_is_recognised_by_the_first_bytes(radiographs):
    assert decode_bytes(next(radiographs.iterdir()).read_bytes(), "any.png").pixels.shape == (1024, 1024)
    assert "empty" in decode_bytes(b"", "x")
    assert "no DICOM file" in decode_bytes(b"GIF89a" + b"\0" * 300, "x.png")
