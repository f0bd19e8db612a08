"""Tests of the one zip: that it is what was packed, and what is refused of one that may come from anywhere."""

import io
import json
import stat
import zipfile

import pytest
from sharing_lab import write_run

import keras_pneumo as kp
from keras_pneumo.errors import PneumoError
from keras_pneumo.sharing import archive
from keras_pneumo.sharing.archive import unpack_zip, unpacked, write_zip
from keras_pneumo.sharing.package import LIST
from keras_pneumo.sharing.packing import write_package
from keras_pneumo.storage.files import sha256_bytes, sha256_file, with_content_hash


@pytest.fixture
def package(tmp_path):
    return write_package(write_run(tmp_path / "runs/shared"), tmp_path / "package")


@pytest.fixture
def zipped(tmp_path, package):
    write_zip(package, tmp_path / "shared.zip")
    return tmp_path / "shared.zip"


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(path, files, **entries):
    """Writes a zip anew, of these contents, with further entries as they stand."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for entry, data in entries.values():
            archive.writestr(entry, data)


def listing(files):
    """A list with the right hashes of these files, as somebody would write it who wants to do harm."""
    listed = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in files.items()}
    record = {"format": 1, "kind": "run", "name": "x", "synthetic": False, "files": listed}
    return json.dumps(with_content_hash(record)).encode()


def refused(path, out, words):
    with pytest.raises(PneumoError, match=words):
        unpack_zip(path, out)
    assert not out.exists() or not any(item.is_file() for item in out.rglob("*")), "nothing is left"


def test_what_was_packed_comes_out(tmp_path, package, zipped):
    out = unpack_zip(zipped, tmp_path / "out")
    assert (out.files, out.sha256, out.name) == (package.files, package.sha256, "shared")
    assert not list((tmp_path / "out").glob(".*[!k]"))  # but the lock
    with pytest.raises(PneumoError, match="not empty"):
        unpack_zip(zipped, tmp_path / "out")


def test_the_same_package_gives_the_same_zip(tmp_path, package, zipped):
    digest = write_zip(package, tmp_path / "again.zip")
    assert digest == sha256_file(zipped) == sha256_file(tmp_path / "again.zip")
    with pytest.raises(PneumoError, match="exists already"):
        write_zip(package, zipped)


def test_a_zip_in_the_cache_is_unpacked_once(tmp_path, zipped, own_cache, monkeypatch):
    folder = unpacked(zipped)
    assert folder.is_relative_to(tmp_path / "cache")
    monkeypatch.setattr(archive, "unpack_zip", lambda *_: pytest.fail("it is there"))
    assert unpacked(zipped) == folder
    (folder / "log.csv").write_text("changed")
    with pytest.raises(PneumoError, match="missing or changed"):
        unpacked(zipped)


def test_a_zip_loads_as_its_run_does(tmp_path, tiny_runs, own_cache):
    write_zip(write_package(tiny_runs / "classifier", tmp_path / "package"), tmp_path / "tiny.zip")
    run, original = kp.load_run(tmp_path / "tiny.zip"), kp.load_run(tiny_runs / "classifier")
    assert run.experiment == original.experiment
    weights = zip(run.model.get_weights(), original.model.get_weights(), strict=True)
    assert all((ours == theirs).all() for ours, theirs in weights)


def test_a_changed_byte_is_refused_wherever_it_is(tmp_path, zipped):
    """Of a stored file, of a packed one, of the list, or of the zip's own directory."""
    whole, refusals = zipped.read_bytes(), 0
    for place in range(0, len(whole), 97):
        data = bytearray(whole)
        data[place] ^= 0x10
        zipped.write_bytes(data)
        out = tmp_path / f"out_{place}"
        try:
            unpack_zip(zipped, out)
        except PneumoError:
            refusals += 1
        else:  # bytes that say nothing, such as the date of a file, may be others
            assert contents_of_folder(out) == contents_of_folder(tmp_path / "package")
    assert refusals > 20


def contents_of_folder(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_changed_content_under_its_old_hash_is_refused(tmp_path, zipped):
    files = contents(zipped)
    rezip(zipped, files | {"log.csv": files["log.csv"].replace(b"0.5", b"0.9")})
    refused(zipped, tmp_path / "out", r"log\.csv is missing or changed")


@pytest.mark.parametrize(
    "name", ["../outside.csv", "/outside.csv", "a/../../outside.csv", "C:\\outside.csv", ".hidden"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    files = {name: b"x"}
    path = tmp_path / "evil.zip"
    rezip(path, {LIST: listing(files), **files})
    refused(path, tmp_path / "inner/out", r"cannot be used\. files")
    rezip(path, {LIST: listing({"log.csv": b"y"}), "log.csv": b"y", **files})
    refused(path, tmp_path / "inner/out", "is not what its list says")
    assert not (tmp_path / "outside.csv").exists()
    assert not (tmp_path / "inner/outside.csv").exists()


def test_a_link_is_refused(tmp_path, zipped):
    entry = zipfile.ZipInfo("log.csv")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    files = contents(zipped)
    del files["log.csv"]
    rezip(zipped, files, link=(entry, "/etc/passwd"))
    refused(zipped, tmp_path / "out", "is not what its list says")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path, zipped):
    rezip(zipped, contents(zipped), again=(zipfile.ZipInfo("log.csv"), b"another"))
    refused(zipped, tmp_path / "out", "there twice")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    """A file that says it is small, and one that says how large it is."""
    path, zeros = tmp_path / "bomb.zip", bytes(8 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(LIST, listing({"log.csv": zeros[:100]}))
        bomb.writestr("log.csv", zeros)
    assert path.stat().st_size < 50_000
    refused(path, tmp_path / "out", "is not what its list says")
    monkeypatch.setattr("keras_pneumo.sharing.package.MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(LIST, listing({"log.csv": zeros}))
        bomb.writestr("log.csv", zeros)
    refused(path, tmp_path / "out", "made to fill the disk")


def test_a_list_without_end_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr(LIST, bytes(4 << 20))
    refused(path, tmp_path / "out", "larger than any list")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"log.csv": b"x"}, "it has no package.json"),
        ({LIST: b"["}, "cannot be read"),
        ({LIST: b"[]"}, "not of format 1"),
        ({LIST: listing({"log.csv": b"x"})}, r"is not what its list says: 'log\.csv'"),
    ],
)
def test_a_zip_of_something_else_is_refused(tmp_path, files, words):
    path = tmp_path / "other.zip"
    rezip(path, files)
    refused(path, tmp_path / "out", words)


def test_what_is_no_zip_is_refused(tmp_path, zipped):
    (tmp_path / "text.zip").write_text("no zip")
    refused(tmp_path / "text.zip", tmp_path / "out", "no whole zip")
    zipped.write_bytes(zipped.read_bytes()[:-40])
    refused(zipped, tmp_path / "out", "no whole zip")
    refused(tmp_path / "nowhere.zip", tmp_path / "out", "There is no file")
    with pytest.raises(PneumoError, match="There is no file"):
        unpacked(tmp_path / "nowhere.zip")


def test_an_encrypted_file_is_refused(tmp_path, zipped):
    """The flag alone: Python writes no encrypted zips."""
    data = bytearray(zipped.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    zipped.write_bytes(data)
    assert any(entry.flag_bits & 1 for entry in zipfile.ZipFile(io.BytesIO(data)).infolist())
    refused(zipped, tmp_path / "out", "encrypted")
