"""Writing whole files or none, and one run per folder."""

import os
from pathlib import Path

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
def test_row_18_disk_faults_leave_the_old_file(tmp_path, monkeypatch, number, remedy, step):
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


BOARD = ("table.csv", "pictures", "extra.csv", "report.html")


def write_result(folder, text, extra):
    """Writes a result of several files; only some results have ``extra.csv``."""
    with files.replacing_contents(folder, BOARD) as new:
        (new / "pictures").mkdir()
        for name in ("table.csv", "pictures/a.png", "report.html", *(["extra.csv"] if extra else [])):
            (new / name).write_text(text)


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(paths)}


def whole(text, extra):
    names = ("table.csv", "pictures/a.png", "report.html", *(["extra.csv"] if extra else []))
    return {"mine.txt": "mine"} | dict.fromkeys(names, text)


class Killed(BaseException):
    """The end of a process that runs none of its own clean-up."""


@pytest.fixture
def killed_at(monkeypatch):
    """Runs a function that is killed at its n-th call of one that changes the disk; whether it came to that."""

    def run(number, function, change=("rename", "mkdir", "rmdir")):
        count = 0

        def counting(real):
            def call(self, *args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    raise Killed
                return real(self, *args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in change:
                patch.setattr(f"pathlib.Path.{name}", counting(getattr(Path, name)))
            patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
            patch.setattr("os.unlink", lambda *args, **kwargs: None)
            try:
                function()
            except Killed:
                return True
        return False

    return run


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_row_42_a_result_killed_at_any_moment_is_never_a_mixture_and_the_next_call_settles_it(
    tmp_path, killed_at, before, after
):
    for number in range(1, 40):
        folder = tmp_path / str(number)
        write_result(folder, "old", before)
        (folder / "mine.txt").write_text("mine")
        if not killed_at(number, lambda folder=folder: write_result(folder, "new", after)):
            break
        seen = {name: text for name, text in contents(folder).items() if not name.startswith(".")}
        assert "report.html" not in seen or seen in (whole("old", before), whole("new", after))
        files.settle(folder)
        settled = contents(folder)
        assert settled in (whole("old", before), whole("new", after)), "settled, and nothing is left over"
        assert seen == whole("old", before) or settled == whole("new", after), "what was complete comes into place"
        write_result(folder, "newest", after)
        assert contents(folder) == whole("newest", after)
    assert 8 < number < 39, "it was killed at every place, and then it ended"
    files.settle(folder)  # the test's own rmtree removed nothing
    assert contents(folder) == whole("new", after)


def test_row_42_killed_while_a_first_result_comes_into_place_the_folder_counts_as_empty(tmp_path, killed_at):
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        if not killed_at(number, lambda folder=folder: write_result(folder, "new", False)):
            break
        files.discard_unannounced(folder)
        assert all(files.is_leftover(path.name) for path in folder.iterdir())
    assert 4 < number < 39, "it was killed at every place, and then it ended"
    files.discard_unannounced(tmp_path)
    assert (tmp_path / "1").is_dir()


def test_row_42_an_older_result_is_not_discarded(tmp_path, killed_at):
    for number in range(1, 40):
        folder = tmp_path / str(number)
        write_result(folder, "old", False)
        if not killed_at(number, lambda folder=folder: write_result(folder, "new", False)):
            break
        files.discard_unannounced(folder)
        assert contents(folder) in (
            {n: t for n, t in whole(w, False).items() if n != "mine.txt"} for w in ("old", "new")
        )
    assert 4 < number < 39


def test_row_42_a_result_that_ends_with_an_error_leaves_the_older_one(tmp_path):
    write_result(tmp_path / "out", "old", True)
    (tmp_path / "out/mine.txt").write_text("mine")

    def fail():
        with files.replacing_contents(tmp_path / "out", BOARD) as new:
            (new / "table.csv").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert contents(tmp_path / "out") == whole("old", True)
    with pytest.raises(RuntimeError), files.replacing_contents(tmp_path / "a/b", BOARD):
        raise RuntimeError
    assert names_in(tmp_path) == ["out"], "no empty folder is left behind"


@pytest.mark.parametrize("number", range(1, 8))
def test_row_18_a_disk_that_refuses_while_a_result_comes_into_place_leaves_the_older_one(tmp_path, monkeypatch, number):
    write_result(tmp_path / "out", "old", False)
    (tmp_path / "out/mine.txt").write_text("mine")
    rename, count = Path.rename, 0

    def refuse_once(self, target):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_once)
    with pytest.raises(PneumoError, match=rf"Cannot write report.html in {tmp_path}/out: No space left.*Free some"):
        write_result(tmp_path / "out", "new", True)
    assert contents(tmp_path / "out") == whole("old", False)


def test_row_41_lock_is_for_one(tmp_path):
    refusal = pytest.raises(PneumoError, match=f"Another run is working in {tmp_path}")
    with files.folder_lock(tmp_path), refusal, files.folder_lock(tmp_path):
        pass
    with files.folder_lock(tmp_path):
        pass


def test_row_41_the_name_of_a_new_file_is_for_one(tmp_path):
    target = tmp_path / "new/weights.onnx"
    with files.file_lock(target):
        refusal = pytest.raises(PneumoError, match=f"Another run is working in {target}")
        with refusal, files.file_lock(target):
            pass
        with files.file_lock(target.with_name("other.onnx")):
            pass
    assert names_in(tmp_path) == []


def test_row_42_what_a_killed_process_was_making_goes_and_nothing_else(tmp_path):
    for name in (".a.onnx.abcd_123", ".a.onnx.mine", ".ab.onnx.abcd_123", "a.onnx.abcd_123"):
        (tmp_path / name).mkdir()
    with files.file_lock(tmp_path / "a.onnx"):
        pass
    assert sorted(names_in(tmp_path)) == [".a.onnx.mine", ".ab.onnx.abcd_123", "a.onnx.abcd_123"]


def test_a_lock_makes_no_folder_where_nothing_is_written(tmp_path):
    with pytest.raises(RuntimeError), files.folder_lock(tmp_path / "a/b"):
        raise RuntimeError
    assert names_in(tmp_path) == []
    with files.folder_lock(tmp_path / "a/b"):
        (tmp_path / "a/b/answer.json").write_text("{}")
    assert sorted(names_in(tmp_path / "a/b")) == [".lock", "answer.json"]
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(PneumoError, match="is a file, but a folder"), files.folder_lock(tmp_path / path):
            pass


def test_a_folder_is_asked_for_without_being_made(tmp_path):
    files.require_free(tmp_path / "none")
    assert names_in(tmp_path) == []
    with files.folder_lock(tmp_path), pytest.raises(PneumoError, match="Another run"):
        files.require_free(tmp_path)
    files.require_free(tmp_path)


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


def test_row_42_killed_while_it_tries_to_write_it_leaves_what_the_next_command_removes(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            files.require_writable(tmp_path)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    assert files.is_leftover(left[0])
    files.settle(tmp_path)
    assert not list(tmp_path.iterdir())
