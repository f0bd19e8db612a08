"""Writing whole files or none, and one run per folder."""

import os

import pandas as pd
import pytest

from keras_pneumo.errors import PneumoError
from keras_pneumo.storage import files


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_written_file_and_its_hash(tmp_path):
    digest = files.write_bytes(tmp_path / "a" / "b.bin", b"hello")
    # From coreutils: printf hello | sha256sum
    assert digest == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert files.sha256_file(tmp_path / "a" / "b.bin") == files.sha256_bytes(b"hello") == digest
    assert names_in(tmp_path / "a") == ["b.bin"]
    assert (tmp_path / "a" / "b.bin").stat().st_mode & 0o777 == 0o644


def test_json_is_the_same_for_the_same_value(tmp_path):
    files.write_json(tmp_path / "1.json", {"b": 1, "a": [2, "č"]})
    files.write_json(tmp_path / "2.json", {"a": [2, "č"], "b": 1})
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert "č" in (tmp_path / "1.json").read_text(encoding="utf-8")


def test_table_has_blanks_for_missing_values(tmp_path):
    files.write_table(tmp_path / "t.csv", pd.DataFrame({"a": [1.5, None], "b": ["x", ""]}))
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\n1.5,x\n,\n"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (28, "Free some space"),
        (30, "read-only"),
        (13, "Give yourself the right"),
        (36, "shorter name"),
        (5, "mend the disk"),
    ],
)
@pytest.mark.parametrize("step", ["tempfile.mkstemp", "os.fsync", "pathlib.Path.replace"])
def test_disk_faults_leave_the_old_file(tmp_path, monkeypatch, number, remedy, step):
    files.write_bytes(tmp_path / "a.bin", b"old")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(step, fail)
    with pytest.raises(PneumoError, match=remedy) as error:
        files.write_bytes(tmp_path / "a.bin", b"new")
    assert "a.bin" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path / "a.bin", b"new")
    assert names_in(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (
        ".a.png.1q_9xyz0.part",
        "images_32/.b.png.abcdefgh.part",
        "images_32/c.png",
        "d.part.txt",
        "video.mkv.part",
        "dicom/1.2/1.3/.d.dcm.abcdefgh.part",
    ):
        files.write_bytes(tmp_path / name, b"")
    files.remove_temporary(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["d.part.txt", "images_32/c.png", "video.mkv.part"]


def test_lock_is_for_one(tmp_path):
    refusal = pytest.raises(PneumoError, match=f"Another run is working in {tmp_path}")
    with files.folder_lock(tmp_path), refusal, files.folder_lock(tmp_path):
        pass
    with files.folder_lock(tmp_path):
        pass


def test_lock_ends_with_an_error(tmp_path):
    with pytest.raises(RuntimeError), files.folder_lock(tmp_path):
        raise RuntimeError
    with files.folder_lock(tmp_path):
        pass


def test_one_cache_folder_for_everything(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_PNEUMO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == files.default_cache_folder() == tmp_path / "xdg" / "keras_pneumo"
    monkeypatch.setenv("KERAS_PNEUMO_CACHE", str(tmp_path / "own"))
    assert files.cache_folder() == tmp_path / "own"
    assert files.default_cache_folder() == tmp_path / "xdg" / "keras_pneumo"
    monkeypatch.delenv("KERAS_PNEUMO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "keras_pneumo"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ', "\udcff"])
def test_what_is_no_json_is_a_value_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"nested too deeply|Expecting value|decode"):
        files.read_json(tmp_path / "x.json")
