"""Tests of the page's server: every answer, bad files, readings, and its address."""

import io
import json
import os
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import pandas as pd
import pydicom
import pytest
from detector_lab import checked_detector, drawn_hand, known_detector

from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.errors import PneumoError
from keras_pneumo.viewer.readings import Readings

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")

from page_lab import Page

from keras_pneumo.viewer.decoding import Decoder
from keras_pneumo.viewer.page_answer import PageDetector
from keras_pneumo.viewer.server import MAX_DROP, listen, serve


def test_the_page_asks_nothing_of_the_network(page):
    status, headers, text = page.ask("/")
    assert status == 200
    assert "esearch use only" in text
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    for name in ("page.css", "app.js", "radiograph.js", "panel.js"):
        status, _, part = page.ask(f"/page/{name}")
        assert status == 200
        assert "http:" not in part
        assert "https:" not in part
    assert page.ask("/page/../server.py")[0] == 404
    assert page.listener.getsockname()[0] == "127.0.0.1"


def test_an_answer_has_all_that_the_page_shows(page):
    status, answer = page.json("/api/folder/0")
    assert status == 200
    assert answer["probability"] == pytest.approx(0.8)
    assert answer["pneumothorax"] is True
    assert answer["outline"].startswith("M")
    assert answer["pixels"].startswith("data:image/png;base64,")
    assert set(answer["maps"]) == {"classifier", "segmenter"}
    assert "10 of 40" in answer["evidence"]
    assert (answer["probability_source"], answer["gate"], answer["gate_source"]) == ("classifier", 0.0, "")
    assert answer["probability_from"] == "the classifier"
    about = page.json("/api/about")[1]
    assert (about["sensitivity"], about["specificity"]) == (pytest.approx(30 / 38), pytest.approx(152 / 162))
    assert about["files"] == [name for _, name in page.files]


def test_what_was_trained_on_phantoms_gives_no_error_rate_and_other_views_get_a_sentence(page, radiographs, tmp_path):
    page_detector, real = page.page_detector, page.page_detector.detector
    dataset = pydicom.dcmread(min(radiographs.iterdir()))
    dataset.ViewPosition = "LL"
    dataset.save_as(tmp_path / "lateral.dcm")
    synthetic = PageDetector(replace(real, record={"synthetic": True}), page_detector.decoder, any_view=True)
    lateral = (tmp_path / "lateral.dcm").read_bytes()
    answer = synthetic.answer(lateral, "lateral.dcm")
    assert "not shown" in answer["evidence"]
    assert "10 of 40" not in answer["evidence"] + answer["meaning"]
    assert any("LL" in note for note in answer["notes"])
    with pytest.raises(UnreadableImage, match="view LL, which is not frontal; start the page with --any-view"):
        page_detector.answer(lateral, "lateral.dcm")
    assert page.json("/api/about")[1]["synthetic"] == ""


def test_a_bad_file_gets_a_sentence_and_the_page_goes_on(page, radiographs):
    header = struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 0, 0, 0, 0)
    bad = {
        "empty.dcm": b"",
        "text.dcm": b"not a radiograph",
        "cut.dcm": next(radiographs.iterdir()).read_bytes()[:3000],
        "bomb.png": b"\x89PNG\r\n\x1a\n" + header + b"\0" * 4,
        "<img src=x>.dcm": b"\0" * 128 + b"DICM" + os.urandom(200),
    }
    for name, data in bad.items():
        status, body = page.json(f"/api/drop?name={urllib.request.quote(name)}", data)
        assert status == 422, name
        assert body["error"].startswith(name)
        assert body["error"].endswith(".")
        assert "Traceback" not in body["error"]
    large = "/api/drop?name=large.dcm"
    status, body = page.json(large, b"x", Content_Length=str(MAX_DROP + 1))
    assert status == 413
    assert "64 MiB" in body["error"]
    status, answer = page.json("/api/drop?name=good.dcm", next(radiographs.iterdir()).read_bytes())
    assert status == 200
    assert answer["name"] == "good.dcm"
    assert page.json("/api/folder/7")[0] == 404


def test_a_hand_has_no_answer_and_gets_no_verdict(page, radiographs, monkeypatch):
    checked = checked_detector([pydicom.dcmread(path).pixel_array for path in radiographs.iterdir()], limit=0.6)
    known = page.page_detector.detector
    monkeypatch.setattr(page.page_detector, "detector", replace(known, likeness=checked.likeness))
    png = cv2.imencode(".png", drawn_hand())[1].tobytes()
    status, answer = page.json("/api/drop?name=hand.png", png)
    assert status == 200
    assert (answer["probability"], answer["pneumothorax"], answer["meaning"]) == (None, None, None)
    assert (answer["outline"], answer["evidence"], answer["maps"]) == ("", "", {})
    assert answer["reason"].startswith("Not like the training images: its distance to them is ")
    assert answer["pixels"].startswith("data:image/png;base64,")
    body = json.dumps({"key": answer["key"], "name": "hand.png", "verdict": "agree"}).encode()
    status, refusal = page.json("/api/reading", body)
    assert status == 400
    assert "gave no answer" in refusal["error"]
    assert len(page.readings.verdicts(known.version)) == 0
    status, chest = page.json("/api/drop?name=chest.dcm", min(radiographs.iterdir()).read_bytes())
    assert (status, chest["probability"], chest["reason"]) == (200, pytest.approx(0.8), None)


def test_a_reading_is_saved_and_counted(page):
    answers = [page.json(f"/api/folder/{number}")[1] for number in (0, 1)]
    for answer, verdict in zip(answers, ("agree", "disagree"), strict=True):
        body = json.dumps({"key": answer["key"], "name": answer["name"], "verdict": verdict}).encode()
        status, agreement = page.json("/api/reading", body)
        assert status == 200
    assert (agreement["agree"], agreement["disagree"]) == (1, 1)
    table = pd.read_csv(page.readings.path)
    assert table["verdict"].tolist() == ["agree", "disagree"]
    assert (table["answer"] == "yes").all()
    assert page.json("/api/folder/1")[1]["verdict"] == "disagree"
    for body in (b"{}", b"[", b"x" * 20_000, json.dumps({"key": answers[0]["key"], "verdict": "maybe"}).encode()):
        assert page.json("/api/reading", body)[0] == 400
    assert page.json("/api/reading", json.dumps({"key": "0", "verdict": "agree"}).encode())[0] == 404


def test_simultaneous_requests_for_a_radiograph_read_it_once(page, radiographs, monkeypatch):
    data = next(radiographs.iterdir()).read_bytes() + b"\0\0"  # bytes that nobody has read yet
    let_go, read, names = threading.Event(), page.page_detector.answer, []

    def slow(*given):
        names.append(given[1])
        assert let_go.wait(60)
        return read(*given)

    monkeypatch.setattr(page.page_detector, "answer", slow)
    with ThreadPoolExecutor(3) as pool:
        requests = [pool.submit(page.json, f"/api/drop?name={name}.dcm", data) for name in "abc"]
        time.sleep(1)
        let_go.set()
    answers = [request.result() for request in requests]
    assert [(status, answer["name"]) for status, answer in answers] == [(200, "a.dcm"), (200, "b.dcm"), (200, "c.dcm")]
    assert len(names) == 1
    for _ in range(2):  # a failure is not kept
        names.clear()
        assert page.json("/api/drop?name=bad.dcm", b"no radiograph at all")[0] == 422
        assert len(names) == 1


def test_row_49_an_error_that_nobody_foresaw_gets_a_sentence_and_the_page_goes_on(page, monkeypatch, capfd):
    def broken(*_):
        raise KeyError("Smith^John")

    for owner, name, path in (
        (page.readings, "agreement", "/api/about"),
        (page.readings, "verdicts", "/api/folder/0"),
        (page.page_detector, "answer", "/api/folder/1"),
    ):
        page.faults.clear()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            if name == "answer":  # its cached answer would hide it
                with Page([page.files[1][0]], page.readings.path.with_name("other.csv"), page.page_detector) as other:
                    status, headers, text = other.ask("/api/folder/0")
                    page.faults += other.faults
            else:
                status, headers, text = page.ask(path)
        assert (status, json.loads(text)) == (500, {"error": "The program has a fault."}), name
        assert "default-src 'none'" in headers["content-security-policy"]
        assert [type(fault) for fault in page.faults] == [KeyError]
    page.faults.clear()
    assert page.json("/api/about")[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_rows_24_and_46_names_are_shown_on_one_line_without_what_a_browser_or_terminal_obeys(
    page, tmp_path, radiographs
):
    data = next(radiographs.iterdir()).read_bytes()
    for name in (
        b"-rf.dcm",
        b"=1+1.dcm",
        b"a\x1b]0;b\x07\n.dcm",
        b"<script>.dcm",
        b"\xff.dcm",
        "\u202egnp.dcm".encode(),
    ):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(data)
    (tmp_path / ("x" * 240 + ".dcm")).write_bytes(data)
    with Page([tmp_path], tmp_path / "readings.csv", page.page_detector) as page:
        status, about = page.json("/api/about")
        assert (status, len(about["files"])) == (200, 7)
        assert all(name.isprintable() and len(name) <= 120 for name in about["files"])
        assert {"-rf.dcm", "<script>.dcm"} <= set(about["files"])
        for number in range(7):
            assert page.json(f"/api/folder/{number}")[0] in (200, 422)
        dropped = "/api/drop?name=%1B]0%3Bb%07%0A%E2%80%AE%FFx.dcm"
        status, body = page.json(dropped, b"no radiograph")
        assert status == 422
        assert body["error"].isprintable()
        assert body["error"].startswith("]0;b")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the hostile values
def test_row_39_a_reason_on_the_page_quotes_no_name_and_is_short(page, radiographs):
    dataset = pydicom.dcmread(next(radiographs.iterdir()))
    dataset.PatientName = "Smith^John"
    dataset.PatientID, dataset.AccessionNumber = "P123456", "A987654"
    dataset.PhotometricInterpretation = "Smith^John\x1b[2J"[:16]
    dataset.SOPInstanceUID = "1.2." + "3" * 5000
    stream = io.BytesIO()
    dataset.save_as(stream)
    data = stream.getvalue()
    for name, piece in (("whole", data), ("cut", data[: len(data) // 2]), ("header", data[:9000])):
        status, body = page.json(f"/api/drop?name={name}.dcm", piece)
        assert status == 422
        assert len(body["error"]) < 400
        assert body["error"].isprintable()
        assert not any(value in body["error"] for value in ("P123456", "A987654"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_row_46_an_image_id_of_a_hostile_file_is_short_and_printable(page, radiographs):
    dataset = pydicom.dcmread(next(radiographs.iterdir()))
    dataset.SOPInstanceUID = "-rf\x1b[2J" + "9" * 10_000
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    stream = io.BytesIO()
    dataset.save_as(stream)
    status, body = page.json("/api/drop?name=x.dcm", stream.getvalue())
    assert status in (200, 422)
    shown = body.get("image_id", body.get("error"))
    assert shown.isprintable()
    assert len(shown) < 400


def test_the_address_is_given_when_it_can_be_opened():
    class EnoughError(Exception):
        pass

    def started(shown, opened):
        assert shown.startswith(f"http://127.0.0.1:{listener.getsockname()[1]}/?token=")
        assert opened.startswith(f"http://127.0.0.1:{listener.getsockname()[1]}/?token=")
        assert shown != opened
        socket.create_connection(listener.getsockname(), timeout=10).close()
        raise EnoughError

    with listen(0) as listener, pytest.raises(EnoughError):
        serve(
            PageDetector(known_detector(), Decoder()), [], Readings(Path("never written.csv")), listener, started, str
        )


def test_a_taken_port_is_refused_in_a_sentence():
    first = listen(0)
    first.listen()
    with pytest.raises(PneumoError, match="--port"):
        listen(first.getsockname()[1])
    first.close()
