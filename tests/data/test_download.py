"""Downloading, against a stand-in on this machine: what arrives, and what is said when something is missing.

Every case runs with a small module in kagglehub's place, whose errors carry the names and the HTTP status of kagglehub
1.0; where kagglehub itself is installed, the main ones run with it too, against a web server on this machine.
"""

import io
import json
import os
import sys
import threading
import types
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_siim import write_siim

from keras_pneumo.data.download import COMPETITION, download
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_file

needs_kagglehub = pytest.mark.skipif(find_spec("kagglehub") is None, reason="kagglehub is not installed")


class KaggleApiHTTPError(OSError):
    """As kagglehub's: an HTTP error with its response."""

    def __init__(self, status):
        super().__init__(f"{status} Client Error.")
        self.response = types.SimpleNamespace(status_code=status)


class UnauthenticatedError(Exception):
    pass


class DataCorruptionError(Exception):
    pass


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A module in kagglehub's place that serves ``tmp_path/served``, or raises ``failure``."""
    write_siim(tmp_path / "served" / "siim")
    stand_in = types.ModuleType("kagglehub")
    stand_in.failure = None
    stand_in.calls = []

    def fetch(kind, handle):
        stand_in.calls.append((kind, handle))
        target = Path(os.environ["KAGGLEHUB_CACHE"]) / kind / handle
        target.mkdir(parents=True, exist_ok=True)
        if stand_in.failure is not None:
            (target / "half.archive").write_bytes(b"...")
            raise stand_in.failure
        for path in (tmp_path / "served").rglob("*"):
            if path.is_file():
                copy = target / path.relative_to(tmp_path / "served")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        (target / "half.archive").unlink(missing_ok=True)
        return str(target)

    stand_in.competition_download = lambda handle: fetch("competitions", handle)
    stand_in.dataset_download = lambda handle: fetch("datasets", handle)
    monkeypatch.setitem(sys.modules, "kagglehub", stand_in)
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "cache"))
    return stand_in


def test_what_arrives_can_be_prepared(kaggle, tmp_path):
    summary = download(tmp_path / "data")
    assert kaggle.calls == [("competitions", COMPETITION)]
    assert (summary.folder, summary.images, summary.fetched, summary.notes) == (tmp_path / "data", 12, True, [])
    assert summary.labels.name == "train-rle.csv"
    assert "KAGGLEHUB_CACHE" not in os.environ
    assert not (tmp_path / "data" / ".kagglehub").exists()
    assert prepare(tmp_path / "data", tmp_path / "prepared", [32]).images == 12


def test_the_first_download_is_recorded_and_later_ones_compared(kaggle, tmp_path):
    download(tmp_path / "data")
    recorded = json.loads((tmp_path / "data" / ".download.json").read_text())["sha256"]
    assert recorded["siim/train-rle.csv"] == sha256_file(tmp_path / "data/siim/train-rle.csv")
    assert download(tmp_path / "again").fetched
    with (tmp_path / "served/siim/train-rle.csv").open("a") as stream:
        stream.write("a,-1\n")
    with pytest.raises(PneumoError, match=r"1 file differ, for example siim/train-rle\.csv.*delete .*downloads\.json"):
        download(tmp_path / "third")
    (Path(os.environ["KERAS_PNEUMO_CACHE"]) / "downloads.json").unlink()
    assert download(tmp_path / "third").fetched


def test_second_call_fetches_nothing(kaggle, tmp_path):
    download(tmp_path / "data")
    summary = download(tmp_path / "data")
    assert len(kaggle.calls) == 1
    assert (summary.images, summary.fetched) == (12, False)


def test_another_source_needs_another_folder(kaggle, tmp_path):
    download(tmp_path / "data", "owner/mirror")
    assert kaggle.calls == [("datasets", "owner/mirror")]
    with pytest.raises(PneumoError, match="already holds owner/mirror"):
        download(tmp_path / "data")


def test_images_without_labels_are_noted(kaggle, tmp_path):
    for path in (tmp_path / "served").rglob("*.csv"):
        path.unlink()
    summary = download(tmp_path / "data")
    assert summary.labels is None
    assert "cannot be prepared as it is" in summary.notes[0]


def test_folder_with_other_files_is_left_alone(kaggle, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("...")
    with pytest.raises(PneumoError, match=r"holds other files, for example thesis.txt"):
        download(tmp_path / "data")
    assert kaggle.calls == []


def test_kagglehub_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(PneumoError, match=r"pip install keras-pneumo\[kaggle\]"):
        download(tmp_path / "data")


class ConnectionError_(OSError):  # noqa: N801, N818 - stands for requests' class of nearly this name
    pass


ConnectionError_.__name__ = "ConnectionError"


@pytest.mark.parametrize(
    ("failure", "source", "parts"),
    [
        (UnauthenticatedError("x"), COMPETITION, ["no valid token", "KAGGLE_API_TOKEN", "kaggle.com/settings"]),
        (KaggleApiHTTPError(401), COMPETITION, ["no valid token", "KAGGLE_API_TOKEN"]),
        (KaggleApiHTTPError(403), COMPETITION, ["not accepted the rules", f"competitions/{COMPETITION}/rules"]),
        (KaggleApiHTTPError(403), "owner/mirror", ["ask for access", "datasets/owner/mirror"]),
        (KaggleApiHTTPError(404), "owner/mirror", ["has no owner/mirror", "another source"]),
        (KaggleApiHTTPError(429), COMPETITION, ["error 429", "Wait"]),
        (KaggleApiHTTPError(503), COMPETITION, ["error 503", "Wait"]),
        (ConnectionError_("x"), COMPETITION, ["network", "Check the connection"]),
        (ConnectionResetError(104, "reset"), COMPETITION, ["network"]),
        (TimeoutError("x"), COMPETITION, ["network"]),
        (DataCorruptionError("x"), COMPETITION, ["damaged on the way", "again"]),
        (OSError(28, "No space left on device"), COMPETITION, ["No space left", "Free some space"]),
        (ValueError("odd\nthing"), COMPETITION, ["could not fetch", "odd thing"]),
    ],
)
def test_what_is_missing_is_said_and_what_to_do(kaggle, tmp_path, failure, source, parts):
    kaggle.failure = failure
    with pytest.raises(PneumoError) as error:
        download(tmp_path / "data", source)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    # What had come is kept, and the next call goes on.
    assert list((tmp_path / "data").rglob("half.archive"))
    kaggle.failure = None
    assert download(tmp_path / "data", source).images == 12


def test_data_of_a_kaggle_notebook_stay_where_they_are(kaggle, tmp_path):
    kaggle.competition_download = lambda handle: str(tmp_path / "served")
    summary = download(tmp_path / "data")
    assert summary.folder == tmp_path / "served"
    assert summary.images == 12
    assert list((tmp_path / "served").rglob("*.dcm"))


# -- kagglehub itself against a server on this machine -----------------------------------------------------------------


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A web server that answers as Kaggle does; ``status`` is what it answers with, ``tokens`` what it was shown."""
    write_siim(tmp_path / "served")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as pack:
        for path in sorted((tmp_path / "served").rglob("*")):
            if path.is_file():
                pack.write(path, path.relative_to(tmp_path / "served").as_posix())

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.server.tokens.append(self.headers.get("Authorization"))
            body = archive.getvalue() if self.server.status == 200 else json.dumps({"message": "no"}).encode()
            self.send_response(self.server.status)
            self.send_header("Content-Type", "application/zip" if self.server.status == 200 else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    web.status, web.tokens = 200, []
    threading.Thread(target=web.serve_forever, daemon=True).start()
    from kagglesdk import kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, f"http://127.0.0.1:{web.server_port}")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield web
    web.shutdown()
    web.server_close()


@needs_kagglehub
def test_kagglehub_fetches_and_prepare_reads(server, tmp_path):
    summary = download(tmp_path / "data")
    assert (summary.images, summary.fetched) == (12, True)
    assert server.tokens == ["Bearer secret"]
    assert prepare(tmp_path / "data", tmp_path / "prepared", [32]).images == 12


@needs_kagglehub
@pytest.mark.parametrize(
    ("status", "part"),
    [(401, "no valid token"), (403, "not accepted the rules"), (404, "has no siim"), (500, "error 500")],
)
def test_kagglehubs_own_refusals(server, tmp_path, status, part):
    server.status = status
    with pytest.raises(PneumoError, match=part):
        download(tmp_path / "data")


@needs_kagglehub
def test_kagglehub_without_a_token(server, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    with pytest.raises(PneumoError, match="no valid token"):
        download(tmp_path / "data")
    assert server.tokens == []


@needs_kagglehub
def test_kagglehub_without_a_network(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(PneumoError, match="cannot be reached over the network"):
        download(tmp_path / "data")
