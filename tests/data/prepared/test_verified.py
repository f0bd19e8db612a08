"""Tests that verified files are known again, and that any change makes them unknown."""

import json
import os
import shutil
import time

import pytest

from keras_pneumo.data.prepared import folder as folder_module
from keras_pneumo.data.prepared import verified
from keras_pneumo.data.prepared.folder import load_prepared, verify_files
from keras_pneumo.data.prepared.verified import fingerprint, remember_verified, was_verified
from keras_pneumo.errors import PneumoError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once."""
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def files(tmp_path):
    """A folder with two files, and their wanted hashes."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder, {"a.png": "1", "b.png": "2"}


@pytest.mark.usefixtures("settled")
def test_the_same_files_are_known_again(files):
    folder, wanted = files
    mark = fingerprint(folder, wanted)
    assert not was_verified(mark)
    remember_verified(mark)
    assert was_verified(fingerprint(folder, dict(wanted)))
    assert not was_verified(fingerprint(folder, {**wanted, "a.png": "3"})), "another hash is wanted"
    assert not was_verified(fingerprint(folder, {"a.png": "1"})), "fewer files"


def rewritten(path):
    """The same length; the time of the content is set back, which the other time tells."""
    before = path.stat()
    time.sleep(0.01)
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path):
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def lengthened(path):
    with path.open("ab") as stream:
        stream.write(b"x")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [rewritten, replaced, lengthened])
def test_a_changed_file_is_not_known(files, change):
    folder, wanted = files
    remember_verified(fingerprint(folder, wanted))
    change(folder / "b.png")
    assert not was_verified(fingerprint(folder, wanted))


@pytest.mark.usefixtures("settled")
def test_a_copied_folder_is_not_known_and_a_missing_file_has_no_fingerprint(files, tmp_path):
    folder, wanted = files
    remember_verified(fingerprint(folder, wanted))
    shutil.copytree(folder, tmp_path / "copy")
    assert not was_verified(fingerprint(tmp_path / "copy", wanted))
    (folder / "a.png").unlink()
    assert fingerprint(folder, wanted) is None


def test_a_file_changed_just_now_has_no_fingerprint(files):
    folder, wanted = files
    assert fingerprint(folder, wanted) is None
    for name in wanted:
        os.utime(folder / name, ns=(0, 0))
    assert fingerprint(folder, wanted) is None, "the other time tells"


@pytest.mark.usefixtures("settled")
def test_the_memory_is_bounded_and_may_be_damaged_or_closed(files, own_cache, monkeypatch):
    folder, _ = files
    for number in range(verified.KEPT + 5):
        remember_verified(str(number))
    path = verified.cache_folder() / verified.FILE
    assert json.loads(path.read_text()) == [str(number) for number in range(5, verified.KEPT + 5)]
    for content in ("{", "{}", '"text"'):
        path.write_text(content)
        assert not was_verified("5")
    path.unlink()
    (folder / "file").write_text("")
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(folder / "file"))
    remember_verified("5")
    assert not was_verified("5")


@pytest.mark.usefixtures("settled")
def test_verified_images_are_read_once_and_again_after_a_change(tmp_path, prepared_folder, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(prepared_folder, copy)
    prepared = load_prepared(copy)
    calls, original = [], folder_module.intact_files
    monkeypatch.setattr(folder_module, "intact_files", lambda *given: calls.append(1) or original(*given))
    for _ in range(3):
        verify_files(prepared, 64)
    assert len(calls) == 1
    victim = next((copy / "images_64").glob("*.png"))
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    time.sleep(0.01)
    victim.write_bytes(content)
    for _ in range(2):
        with pytest.raises(PneumoError, match=r"1 of .* are missing or damaged"):
            verify_files(prepared, 64)
    assert len(calls) == 3, "what is damaged is never taken for verified"
