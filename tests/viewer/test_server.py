"""The page's server: who may ask, what a bad file gets, what a reading leaves behind."""

import http.client
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

import numpy as np
import pandas as pd
import pytest
from known_detector import known_detector

from keras_pneumo.data.radiographs.radiograph import UnreadableImage
from keras_pneumo.errors import PneumoError
from keras_pneumo.viewer import decoding
from keras_pneumo.viewer.readings import Reading, Readings, agreement_of, open_readings

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")
from page_lab import Page
from starlette.datastructures import Headers

from keras_pneumo.detector.detector import open_detector
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.inference.files import pixels_at
from keras_pneumo.viewer.decoding import Decoder, decode_bytes
from keras_pneumo.viewer.guard import Guard, Keys, cookie_name
from keras_pneumo.viewer.page_answer import PageDetector, heat_map_method, heat_map_sentences, mean_heat
from keras_pneumo.viewer.server import MAX_DROP, listen, serve

NO_PART = "not from the classifier of this heat map"
ALONE = "The outline comes from the segmenter alone."


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory, phantoms):
    folder = tmp_path_factory.mktemp("radiographs")
    for path in sorted(phantoms.rglob("*.dcm"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def page(radiographs, tmp_path_factory):
    with Page(radiographs, tmp_path_factory.mktemp("readings") / "readings.csv") as found:
        yield found


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


def test_another_host_or_origin_is_refused(page):
    drop = "/api/drop?name=x"
    for path, data, headers in [
        ("/", None, {"Host": f"evil.example:{page.port}"}),
        ("/api/about", None, {"Host": "evil.example"}),
        ("/api/about", None, {"Sec_Fetch_Site": "cross-site"}),
        ("/api/about", None, {"Origin": "http://evil.example"}),
        (drop, b"x", {"Origin": "http://evil.example"}),
        (drop, b"x", {"Origin": "null"}),
        (drop, b"x", {"Origin": f"http://127.0.0.1:{page.port + 1}"}),
        (f"/?token={page.keys.printed}", None, {"Host": "evil.example"}),
    ]:
        status, told = page.json(path, data, **headers)
        assert status == 403, (path, headers)
        assert told["error"]
        assert "token" not in told["error"], "it is refused for where it comes from"
    cookie = {"Cookie": f"{cookie_name(page.port)}={page.keys.cookie}"}
    request = urllib.request.Request(page.address + drop, b"x", cookie)  # no origin at all
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=30)
    assert refusal.value.code == 403
    assert page.json("/api/about", Host=f"localhost:{page.port}")[0] == 200


def test_without_the_token_nothing_is_answered(page):
    for cookie in ("", f"{cookie_name(page.port)}=x", f"keras_pneumo_1={page.keys.cookie}", f"a={page.keys.printed}"):
        for path in ("/", "/page/app.js", "/api/about", "/api/folder/0", "/?token=x", "/?token=", "/?token=%FF"):
            status, told = page.json(path, Cookie=cookie)
            assert (status, "with its token" in told["error"]) == (403, True), path
        assert page.ask("/api/about?token=" + page.keys.printed, Cookie=cookie)[0] == 403
        assert page.ask("/api/drop?name=x", b"x", Cookie=cookie)[0] == 403


def test_a_token_is_exchanged_for_a_cookie(page):
    def opened(token):
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        try:
            with browser.open(f"{page.address}/?token={token}", timeout=30) as answer:
                assert answer.url == page.address + "/", "the token is no longer in the address"
            return json.load(browser.open(page.address + "/api/about", timeout=30))["name"] == "bright"
        except urllib.error.HTTPError as error:
            return error.code

    once = page.keys.once
    assert [opened(once), opened(once), opened("")] == [True, 403, 403]
    assert [opened(page.keys.printed), opened(page.keys.printed)] == [True, True]
    assert len({page.keys.printed, once, page.keys.cookie, Keys().printed}) == 4
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30)
    connection.request("GET", f"/?token={page.keys.printed}")
    cookie = connection.getresponse().headers["set-cookie"].lower()
    connection.close()
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}


def test_an_answer_has_all_that_the_page_shows(page):
    status, found = page.json("/api/folder/0")
    assert status == 200
    assert found["probability"] == pytest.approx(0.8)
    assert found["pneumothorax"] is True
    assert found["outline"].startswith("M")
    assert found["pixels"].startswith("data:image/png;base64,")
    assert set(found["maps"]) == {"classifier", "segmenter"}
    assert "10 of 40" in found["evidence"]
    assert (found["probability_source"], found["gate"], found["gate_source"]) == ("classifier", 0.0, "")
    assert found["probability_from"] == "the classifier"
    about = page.json("/api/about")[1]
    assert (about["sensitivity"], about["specificity"]) == (pytest.approx(30 / 38), pytest.approx(152 / 162))
    assert about["files"] == [name for _, name in page.files]


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
        status, told = page.json(f"/api/drop?name={urllib.request.quote(name)}", data)
        assert status == 422, name
        assert told["error"].startswith(name)
        assert told["error"].endswith(".")
        assert "Traceback" not in told["error"]
    large = "/api/drop?name=large.dcm"
    status, told = page.json(large, b"x", Content_Length=str(MAX_DROP + 1))
    assert status == 413
    assert "64 MiB" in told["error"]
    status, found = page.json("/api/drop?name=good.dcm", next(radiographs.iterdir()).read_bytes())
    assert status == 200
    assert found["name"] == "good.dcm"
    assert page.json("/api/folder/7")[0] == 404


def test_a_reading_is_kept_and_counted(page):
    found = [page.json(f"/api/folder/{number}")[1] for number in (0, 1)]
    for one, verdict in zip(found, ("agree", "disagree"), strict=True):
        body = json.dumps({"key": one["key"], "name": one["name"], "verdict": verdict}).encode()
        status, agreement = page.json("/api/reading", body)
        assert status == 200
    assert (agreement["agree"], agreement["disagree"]) == (1, 1)
    table = pd.read_csv(page.readings.path)
    assert table["verdict"].tolist() == ["agree", "disagree"]
    assert (table["answer"] == "yes").all()
    assert page.json("/api/folder/1")[1]["verdict"] == "disagree"
    for body in (b"{}", b"[", b"x" * 20_000, json.dumps({"key": found[0]["key"], "verdict": "maybe"}).encode()):
        assert page.json("/api/reading", body)[0] == 400
    assert page.json("/api/reading", json.dumps({"key": "0", "verdict": "agree"}).encode())[0] == 404


def test_a_radiograph_asked_for_twice_at_once_is_read_once(page, radiographs, monkeypatch):
    data = next(radiographs.iterdir()).read_bytes() + b"\0\0"  # bytes that nobody has read yet
    let_go, read, names = threading.Event(), page.page_detector.answer, []

    def slow(*given):
        names.append(given[1])
        assert let_go.wait(60)
        return read(*given)

    monkeypatch.setattr(page.page_detector, "answer", slow)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(page.json, f"/api/drop?name={name}.dcm", data) for name in "abc"]
        time.sleep(1)
        let_go.set()
    answers = [one.result() for one in asked]
    assert [(status, found["name"]) for status, found in answers] == [(200, "a.dcm"), (200, "b.dcm"), (200, "c.dcm")]
    assert len(names) == 1
    for _ in range(2):  # a failure is not kept
        names.clear()
        assert page.json("/api/drop?name=bad.dcm", b"no radiograph at all")[0] == 422
        assert len(names) == 1


def test_agreement_is_exact():
    def rows(yes_agree, yes_disagree, no_agree, no_disagree, unsure):
        kinds = [("yes", "agree")] * yes_agree + [("yes", "disagree")] * yes_disagree
        kinds += [("no", "agree")] * no_agree + [("no", "disagree")] * no_disagree + [("yes", "unsure")] * unsure
        return [Reading("", "", str(n), "d", 0.5, answer, verdict) for n, (answer, verdict) in enumerate(kinds)]

    found = agreement_of(rows(20, 5, 15, 10, 3))
    assert found["share"] == pytest.approx(0.7)
    assert found["kappa"] == pytest.approx(0.4)  # the textbook's table: 20, 5, 10, 15
    assert "35 of 50" in found["sentence"]
    assert "3 unsure" in found["sentence"]
    assert agreement_of([])["share"] is None
    assert agreement_of(rows(4, 0, 0, 0, 0))["kappa"] is None


def test_readings_are_gone_on_with_and_other_files_refused(tmp_path):
    first = Readings(tmp_path / "r.csv")
    first.add('=cmd|"x".dcm', "k1", "d", 0.25, False, "unsure")
    first.add("b.dcm", "k2", "d", 0.75, True, "agree")
    again = Readings(tmp_path / "r.csv")
    again.add("b.dcm", "k2", "d", 0.75, True, "disagree")
    assert again.verdicts("d") == {"k1": "unsure", "k2": "disagree"}
    table = pd.read_csv(tmp_path / "r.csv")
    assert len(table) == 2
    assert not table["file"].str.startswith("=").any()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PneumoError, match="not a csv of readings"):
        Readings(tmp_path / "other.csv")


def test_a_csv_of_readings_is_held_by_one_page(tmp_path):
    csv = tmp_path / "new" / "r.csv"
    with open_readings(csv) as readings:
        (tmp_path / "link").symlink_to(tmp_path / "new")
        for name in (csv, tmp_path / "link" / "r.csv"):
            with pytest.raises(PneumoError, match=r"Another keras-pneumo view .* with --readings"), open_readings(name):
                pass
        with open_readings(csv.with_name("other.csv")) as other:
            other.add("b.dcm", "k2", "d", 0.75, True, "agree")
        readings.add("a.dcm", "k1", "d", 0.25, False, "agree")
    with open_readings(csv) as again:
        assert again.verdicts("d") == {"k1": "agree"}
    csv.write_text("a,b\n1,2\n")
    for _ in range(2):  # a refusal holds nothing
        with pytest.raises(PneumoError, match="not a csv of readings"), open_readings(csv):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(PneumoError, match=r"cannot be saved in .* --readings"), open_readings(tmp_path / "file/r.csv"):
        pass


def crash(data, name):
    os._exit(9)


def hang(data, name):
    time.sleep(300)


@pytest.mark.slow
def test_a_file_that_ends_or_holds_the_decoder_costs_only_itself(monkeypatch, radiographs):
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
def test_the_page_ends_while_a_file_holds_the_decoder(monkeypatch, radiographs, tmp_path):
    monkeypatch.setattr(decoding, "decode_bytes", hang)
    with ThreadPoolExecutor(1) as pool:
        with Page(radiographs, tmp_path / "readings.csv") as page:
            page.page_detector.decoder.seconds = 300
            asked = pool.submit(page.json, "/api/folder/0")
            while not page.page_detector.decoder.worker.is_running:
                time.sleep(0.05)
        assert not page.thread.is_alive()
        status, told = asked.result(60)
    assert (status, "the program is ending" in told["error"]) == (422, True)


def test_bytes_are_told_apart_by_how_they_begin(radiographs):
    assert decode_bytes(next(radiographs.iterdir()).read_bytes(), "any.png").pixels.shape == (1024, 1024)
    assert "empty" in decode_bytes(b"", "x")
    assert "no DICOM file" in decode_bytes(b"GIF89a" + b"\0" * 300, "x.png")


def test_heat_maps_are_those_that_validation_chose(tiny_detector):
    detector = open_detector(tiny_detector)
    method, stage = heat_map_method(detector)
    chosen = detector.record["heat"]
    assert (chosen["method"], chosen["stage"]) == (method, stage)
    image = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    (_, (model,)) = detector.classifiers[0]
    expected = heat_maps(model, pixels_at([image], 64), method, stage)
    assert mean_heat(detector, [image]).mean() == pytest.approx(expected.mean(), abs=5e-3)
    assert heat_map_method(known_detector()) == ("gradcam", 5)


def test_whose_heat_map_was_checked_is_said():
    detector = known_detector()
    heat = {"method": "hirescam", "stage": 1, "pointing": 0.5, "chance": 0.06, "images": 30}
    detector = replace(detector, record={"heat": heat})
    assert heat_map_sentences(detector) == (
        "Heat map of the classifier: HiResCAM of stage 1. Its hottest point lies in the pneumothorax in 50% of 30 "
        "validation positives (6% by chance). The probability comes from the classifier. The outline comes from the "
        "segmenter alone."
    )
    ((run, models),) = detector.classifiers
    both = heat_map_sentences(replace(detector, classifiers=[(run, models * 2)]))
    assert "HiResCAM of stage 1, mean of 2 networks. The first network's hottest point lies in" in both


@pytest.mark.parametrize(
    ("source", "gate", "gate_source", "said"),
    [
        ("classifier", 0, "", f"The probability comes from the classifier. {ALONE}"),
        ("outline", 0, "", f"The probability comes from the segmenter, {NO_PART}. {ALONE}"),
        ("own head", 0.4, "own head", f"from the segmenter, {NO_PART}. {ALONE}"),
        ("outline", 0, "classifier", f"from the segmenter, {NO_PART}. {ALONE}"),
        (
            "outline",
            0.4,
            "classifier",
            "the segmenter, where the probability of the classifier is at least 0.400.",
        ),
        ("classifier and outline", 0, "", "The probability comes from the classifier and the segmenter. The outline"),
        (
            "classifier, own head and outline",
            0.4,
            "classifier and own head",
            "The probability comes from the classifier and the segmenter. The outline comes from the segmenter, where "
            "the probability of the classifier and the segmenter is at least 0.400.",
        ),
    ],
)
def test_what_part_the_classifier_has_is_said(source, gate, gate_source, said):
    detector = known_detector()
    parameters = replace(detector.postprocessing, gate=gate, gate_source=gate_source)
    sentence = heat_map_sentences(replace(detector, probability_source=source, postprocessing=parameters))
    assert said in sentence
    assert (NO_PART in sentence) == ("classifier" not in source)


def test_the_address_is_told_when_it_can_be_opened():
    class EnoughError(Exception):
        pass

    def started(shown, opened):
        assert shown.startswith(f"http://127.0.0.1:{listener.getsockname()[1]}/?token=")
        assert opened.startswith(f"http://127.0.0.1:{listener.getsockname()[1]}/?token=")
        assert shown != opened
        socket.create_connection(listener.getsockname(), timeout=10).close()
        raise EnoughError

    with listen(0) as listener, pytest.raises(EnoughError):
        serve(PageDetector(known_detector(), Decoder()), [], Readings(Path("never written.csv")), listener, started)


def test_at_http_s_own_port_browsers_leave_it_out():
    guard = Guard(None, 80, Keys())
    for host in ("127.0.0.1", "127.0.0.1:80", "localhost"):
        assert guard.refusal(Headers({"host": host, "origin": f"http://{host}"}), "POST") == ""
    assert guard.refusal(Headers({"host": "evil.example"}), "GET")
    assert Guard(None, 8080, Keys()).refusal(Headers({"host": "127.0.0.1"}), "GET")


def test_a_taken_port_is_refused_in_a_sentence():
    first = listen(0)
    first.listen()
    with pytest.raises(PneumoError, match="--port"):
        listen(first.getsockname()[1])
    first.close()
