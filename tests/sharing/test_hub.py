"""Tests of pushing and fetching, against a hub in this process that huggingface_hub itself talks to."""

import importlib.util

import pytest
from hub_lab import TOKEN, running_hub
from sharing_lab import write_detector, write_run

import keras_pneumo as kp
from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing.archive import write_zip
from keras_pneumo.sharing.hub import Address, fetch, is_address, push, read_address
from keras_pneumo.sharing.package import LIST
from keras_pneumo.sharing.packing import write_package
from keras_pneumo.storage.files import cache_folder, sha256_file

constants = pytest.importorskip("huggingface_hub.constants")
NAME = Address("somebody/shared")


@pytest.fixture
def hub(monkeypatch, own_cache, tmp_path):
    """The hub that HF_ENDPOINT names; the library's cache and tokens are the test's own."""
    with running_hub() as (hub, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield hub


@pytest.fixture
def package(tmp_path):
    return write_package(write_run(tmp_path / "runs/shared"), tmp_path / "package")


def test_what_is_pushed_is_fetched_and_named_by_its_commit(hub, package):
    pushed = push(package, NAME)
    ((sha, files),) = hub.repositories["somebody/shared"]
    assert pushed == Address("somebody/shared", sha)
    assert set(files) == {*package.files, LIST}
    assert files["best.weights.h5"] == b"weights for Keras"
    assert hub.private == {"somebody/shared": True}, "nobody else may read it until somebody says so"
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1, "all of it in one commit"
    fetched, address = fetch(NAME)
    assert address == pushed
    assert (fetched.files, fetched.sha256) == (package.files, package.sha256)
    assert fetched.folder.is_relative_to(cache_folder())


def test_a_commit_is_fetched_once(hub, package):
    pushed = push(package, NAME)
    first, _ = fetch(pushed)
    hub.answer_with = 503
    again, address = fetch(pushed)
    assert (again.folder, address) == (first.folder, pushed), "without the hub"


def test_an_older_commit_stays_what_it_was(hub, tmp_path, package):
    first = push(package, NAME)
    other = write_package(write_run(tmp_path / "runs/other", learned=False), tmp_path / "other")
    second = push(other, NAME)
    assert first.revision != second.revision
    assert fetch(first)[0].sha256 == package.sha256
    assert fetch(NAME)[0].sha256 == other.sha256
    assert "learned_images.csv" not in hub.files("somebody/shared")[1], "files of the earlier package are gone"


def test_a_public_repository_is_made_when_asked_for(hub, package):
    push(package, NAME, public=True)
    assert hub.private == {"somebody/shared": False}


def test_a_detector_is_pushed_too(hub, tmp_path):
    package = write_package(write_detector(tmp_path / "detector"), tmp_path / "package")
    push(package, Address("somebody/detector"))
    assert fetch(Address("somebody/detector"))[0].kind == "detector"


def test_a_run_loads_by_its_address_as_from_its_folder(hub, tmp_path, tiny_runs):
    package = write_package(tiny_runs / "classifier", tmp_path / "package")
    pushed = push(package, NAME)
    run = kp.load_run("hf://somebody/shared")
    assert run.address == str(pushed) == f"hf://somebody/shared@{pushed.revision}"
    original = kp.load_run(tiny_runs / "classifier").model.get_weights()
    assert all((ours == theirs).all() for ours, theirs in zip(run.model.get_weights(), original, strict=True))
    with pytest.raises(PneumoError, match="is not a detector"):
        kp.load_detector(str(pushed))


@pytest.mark.parametrize("name", ["log.csv", "best.weights.h5"])
def test_a_file_that_was_changed_on_the_way_is_refused(hub, package, name):
    """Of the same size, so that nothing else would tell."""
    push(package, NAME)
    data = hub.files("somebody/shared")[1][name]
    hub.changes[name] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(PneumoError, match=f"{name} is missing or changed"):
        fetch(NAME)
    assert not [path for path in (cache_folder() / "hub").rglob("*") if path.is_file()], "nothing is kept"


def test_only_listed_files_are_fetched(hub, package):
    files = dict.fromkeys(["pickle.bin", "checkpoints/epoch_001.weights.h5"], b"harm")
    push(package, NAME)
    _, there = hub.files("somebody/shared")
    hub.commit("somebody/shared", there | files)
    folder = fetch(NAME)[0].folder
    assert not any((folder / name).exists() for name in files)
    assert not [path for _, path in hub.requests if "pickle.bin" in path]


def test_a_repository_of_something_else_is_refused(hub):
    hub.commit("somebody/other", {"model.bin": b"x"})
    with pytest.raises(PneumoError, match=r"no package of keras-pneumo: it has no package\.json"):
        fetch(Address("somebody/other"))
    hub.commit("somebody/other", {LIST: b"["})
    with pytest.raises(PneumoError, match="cannot be read"):
        fetch(Address("somebody/other"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (Address("somebody/nothing"), "The hub has no hf://somebody/nothing"),
        (Address("somebody/shared", "v9"), "no revision v9"),
        (Address("somebody/shared", "f" * 40), "no revision f"),
    ],
)
def test_what_is_not_there_is_said(hub, package, name, words):
    push(package, NAME)
    with pytest.raises(PneumoError, match=words):
        fetch(name)


def test_who_may_not_write_is_told_to_log_in(hub, package, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PneumoError, match="does not let you"):
        push(package, NAME)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PneumoError, match="hf auth login"):
        push(package, NAME)
    assert hub.repositories == {}


def test_a_hub_that_does_not_answer_is_said(hub, package, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PneumoError, match="did not answer"):
        fetch(NAME)
    with pytest.raises(PneumoError, match="did not answer"):
        push(package, NAME)


def test_without_the_library_the_extra_is_named(package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("keras_pneumo.sharing.hub.find_spec", lambda name: None)
    for attempt in (lambda: push(package, NAME), lambda: fetch(NAME)):
        with pytest.raises(PneumoError, match=r"pip install 'keras-pneumo\[hub\]'"):
            attempt()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://a/b", Address("a/b")),
        ("hf:/a/b", Address("a/b")),
        ("hf://a-1/b.2_c@v1.0", Address("a-1/b.2_c", "v1.0")),
        (f"hf://a/b@{'0' * 40}", Address("a/b", "0" * 40)),
    ],
)
def test_addresses(text, address):
    assert is_address(text)
    assert read_address(text) == address
    assert read_address(str(address)) == address


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@../c", "a/b"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(PneumoError, match=r"Write hf://OWNER/NAME"):
        read_address(text)


def test_a_revision_cannot_be_pushed_to(package):
    with pytest.raises(PneumoError, match="is never changed"):
        push(package, Address("a/b", "v1"))


def test_a_zip_and_the_hub_hold_the_same_package(hub, tmp_path, package):
    write_zip(package, tmp_path / "shared.zip")
    push(package, NAME)
    folder = fetch(NAME)[0].folder
    assert {name: sha256_file(folder / name) for name in package.files} == package.files
