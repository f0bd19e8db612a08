"""Tests of the page's limits: half-open connections, slow clients, many uploads at once, and mutated files."""

import asyncio
import contextlib
import http.client
import io
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import psutil
import pydicom
import pytest
from command_lab import REPOSITORY
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

pytest.importorskip("uvicorn", reason="the page (extra view) is not installed")

from keras_pneumo.viewer import limits
from keras_pneumo.viewer.guard import cookie_name
from keras_pneumo.viewer.limits import AT_ONCE, BUSY, CONNECTIONS, WAITING, BusyError, Turns

MEMORY = 2 * 2**30


def connect(port, text=""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(text.encode())
    return connection


def ended(connection):
    """Whether the server has ended a connection (waits for it)."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(2**16):
            pass
    return True


def head(page, line, *more):
    """The head of a request that the page lets through."""
    cookie = f"Cookie: {cookie_name(page.port)}={page.keys.cookie}"
    return "\r\n".join([line, f"Host: 127.0.0.1:{page.port}", cookie, f"Origin: {page.address}", *more, "", ""])


def held(page):
    return len(page.server.server_state.connections)


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_row_48_the_oldest_of_too_many_half_open_connections_end(page):
    silent = [connect(page.port, "" if number % 2 else "GET / HTTP/1.1\r\nHost: ") for number in range(150)]
    until(lambda: held(page) <= CONNECTIONS)
    assert page.json("/api/about")[0] == 200
    assert all(ended(connection) for connection in silent[: 150 - CONNECTIONS])
    assert held(page) <= CONNECTIONS
    for connection in silent:
        connection.close()


def test_row_48_a_connection_with_a_request_is_not_among_those_that_end(page, radiographs, monkeypatch):
    let_go, answer = threading.Event(), page.page_detector.answer

    def slow(*given):
        assert let_go.wait(60)
        return answer(*given)

    monkeypatch.setattr(page.page_detector, "answer", slow)
    data = next(radiographs.iterdir()).read_bytes() + b"\0" * 4
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(page.json, "/api/drop?name=a.dcm", data)
        until(lambda: any(not each.is_idle for each in list(page.server.server_state.connections)))
        silent = [connect(page.port) for _ in range(2 * CONNECTIONS)]
        until(lambda: held(page) <= CONNECTIONS)
        let_go.set()
        assert request.result()[0] == 200
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("trickle", [False, True])
def test_row_48_a_slow_head_ends_by_time(page, monkeypatch, trickle):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    connection = connect(page.port, "GET / HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionError):
        for letter in "X-Slow: " + "x" * 1000 if trickle else "":
            connection.sendall(letter.encode())
            time.sleep(0.05)
        pytest.fail("it was never ended") if trickle else None
    assert ended(connection)


def test_row_48_a_connection_that_is_kept_after_a_response_ends_by_time_too(page, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    connection = connect(page.port, head(page, "GET /api/about HTTP/1.1") + "G")  # the second head never ends
    assert ended(connection)


def test_row_48_a_slow_body_is_answered_and_ends_by_time(page, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    for path in ("drop?name=slow.dcm", "reading"):
        connection = connect(page.port, head(page, f"POST /api/{path} HTTP/1.1", "Content-Length: 1000") + "x")
        text = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(2**16):
                text += piece
        assert text.startswith(b"HTTP/1.1 40")
        assert (b"slow.dcm did not arrive in time. Open it again." in text) is ("drop" in path)


def test_row_48_a_body_that_goes_on_after_its_refusal_ends_by_time(page, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.5)
    connection = connect(page.port, f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Length: 100000\r\n\r\n")
    assert connection.recv(2**16).startswith(b"HTTP/1.1 403")
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.05)
        pytest.fail("it was never ended")


def test_row_48_a_client_that_does_not_read_ends_by_time(page, monkeypatch):
    monkeypatch.setattr(limits, "SEND_SECONDS", 0.5)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", page.port))
    connection.sendall((head(page, "GET /api/folder/0 HTTP/1.1") * 40).encode())
    own = connection.getsockname()

    def is_held():
        return own in [each.client for each in list(page.server.server_state.connections)]

    until(is_held)
    until(lambda: not is_held())
    connection.close()


def test_row_48_so_many_uploads_wait_and_the_others_are_told_to_come_again(page, radiographs, monkeypatch):
    let_go, answer, extra = threading.Event(), page.page_detector.answer, 5

    def slow(*given):
        assert let_go.wait(60)
        return answer(*given)

    monkeypatch.setattr(page.page_detector, "answer", slow)
    data = next(radiographs.iterdir()).read_bytes()
    answers = []

    def upload(number):
        answers.append(page.ask("/api/drop?name=a.dcm", data + bytes([number, 0, 0, 1]) * 2))

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(AT_ONCE + WAITING + extra)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) == extra)
    assert [(status, json.loads(text)) for status, _, text in answers] == [(503, {"error": BUSY})] * extra
    assert all(int(headers["retry-after"]) > 0 for _, headers, _ in answers)
    let_go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(status for status, _, _ in answers) == [200] * (AT_ONCE + WAITING) + [503] * extra


def test_a_turn_comes_in_order_and_not_after_its_time(monkeypatch):
    async def run():
        turns, order = Turns(), []

        async def take(number):
            async with turns.turn():
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(take(number) for number in range(AT_ONCE + WAITING)))
        assert order == list(range(AT_ONCE + WAITING))
        monkeypatch.setattr(limits, "WAIT_SECONDS", 0.01)
        async with turns.turn(), turns.turn():
            with pytest.raises(BusyError):
                async with turns.turn():
                    pass
        assert turns.waiting == 0
        async with turns.turn(), turns.turn():  # nothing was lost
            order.append("end")
        assert order[-1] == "end"

    asyncio.run(run())


def seeds_of(radiographs):
    """Small valid files of each kind that the page reads."""
    dataset = pydicom.dcmread(next(radiographs.iterdir()))
    pixels = np.ascontiguousarray(cv2.resize(dataset.pixel_array, (64, 64)))
    files = []
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless):
        dataset = pydicom.dcmread(next(radiographs.iterdir()))
        dataset.Rows = dataset.Columns = 64
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OB"
        if syntax != ExplicitVRLittleEndian:
            with contextlib.suppress(Exception):  # where no encoder for it is installed
                dataset.compress(syntax)
        stream = io.BytesIO()
        dataset.save_as(stream)
        files.append(stream.getvalue())
    return files + [cv2.imencode(ending, pixels)[1].tobytes() for ending in (".png", ".jpg")]


def mutated(data, draw):
    """One file with one to eight changes; most lie in the first kilobytes, where headers are."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(min(len(changed), draw.choice([200, 1500, 10**9])) or 1)
        match draw.randrange(6):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place : place + draw.randint(1, 8)] = draw.randbytes(draw.randint(1, 8))
            case 2:
                del changed[place : place + draw.randint(1, 64)]
            case 3:
                changed[place:place] = changed[place : place + draw.randint(1, 64)]
            case 4:
                changed[place : place + 4] = draw.choice(
                    [b"\xff\xff\xff\xff", b"\0\0\0\0", b"UN\0\0", b"SQ\0\0", b"\\1\\2"]
                )
            case 5:
                del changed[max(place, 1) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_row_48_no_mutated_file_is_answered_with_500(page, radiographs, count):
    seeds, draw = seeds_of(radiographs), random.Random(48)
    kinds = dict.fromkeys((200, 422), 0)
    for number in range(count):
        status, body = page.json("/api/drop?name=x", mutated(seeds[number % len(seeds)], draw))
        assert status in kinds, (number, body)
        kinds[status] += 1
        if status == 422:
            assert re.fullmatch(r"x cannot be shown: .+\.", body["error"]), number
            assert "Traceback" not in body["error"]
    assert not page.faults
    assert min(kinds.values()) > count // 50, kinds


def memory_of(process):
    """Bytes of a process and its children: what each holds alone, and its share of the rest (PSS)."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += each.memory_full_info().pss
    return total


def large_dicom(path, target, side=5500):
    """A valid DICOM file of 60 MB: 16 bits, with a window."""
    dataset = pydicom.dcmread(path)
    small = dataset.pixel_array.astype(np.uint16) * 16
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows = dataset.Columns = side
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = cv2.resize(small, (side, side)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(target)


@pytest.mark.slow
def test_row_48_the_page_answers_under_900_half_open_connections_and_20_uploads_within_2_gib(
    tiny_detector, radiographs, tmp_path
):
    large_dicom(next(radiographs.iterdir()), tmp_path / "large.dcm")
    data = (tmp_path / "large.dcm").read_bytes()
    assert 60e6 < len(data) < 64 * 2**20
    command = [sys.executable, "-m", "keras_pneumo", "view", str(tiny_detector), str(radiographs), "--port", "0"]
    command += ["--no-browser", "--readings", str(tmp_path / "readings.csv")]
    with (tmp_path / "errors").open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY)
    silent, peak, over = [], [0], threading.Event()

    def watch():
        while not over.wait(0.05):
            peak[0] = max(peak[0], memory_of(psutil.Process(server.pid)))

    watcher = threading.Thread(target=watch)
    try:
        port, token = re.search(r":(\d+)/\?token=(\S+)", server.stdout.readline()).groups()
        watcher.start()
        asked = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
        asked.request("GET", f"/?token={token}")
        cookie = asked.getresponse().headers["set-cookie"].split(";")[0]

        def request(path, body=None):
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=300)
            headers = {"Cookie": cookie, "Origin": f"http://127.0.0.1:{port}"}
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        assert request("/api/folder/0")[0] == 200
        silent = [connect(int(port), "GET / HTTP/1.1\r\n" * (number % 2)) for number in range(900)]
        with ThreadPoolExecutor(20) as pool:
            uploads = [pool.submit(request, "/api/drop?name=x", data + bytes([number, 0])) for number in range(20)]
            about = [request("/api/about") for _ in range(20)]
            statuses = [upload.result()[0] for upload in uploads]
        assert [status for status, _ in about] == [200] * 20
        assert set(statuses) <= {200, 503}, statuses
        assert statuses.count(200) >= AT_ONCE + 1
        assert request("/api/folder/1")[0] == 200
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join()
        server.terminate()
        server.wait(30)
        for connection in silent:
            connection.close()
    print(f"peak {peak[0] / 2**20:.0f} MiB, answers {sorted(statuses)}")
    assert 2**20 < peak[0] < MEMORY, f"{peak[0] / 2**20:.0f} MiB"
    assert "Traceback" not in (tmp_path / "errors").read_text()
