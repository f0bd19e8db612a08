"""Tests of the run folder: which folder a training uses, and when it goes on with the training in it."""

import json

import pytest
from crash_lab import QUICK, poisoned, train_tiny

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import folder_lock, replacing_contents
from keras_pneumo.training.run_folder import find_folds_folder, find_run_folder, new_folder_lock, progress_of

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def prepared(prepared_folder):
    return load_prepared(prepared_folder)


def test_a_folder_is_gone_on_with_only_where_it_is_unfinished_and_the_same(tmp_path, monkeypatch, prepared):
    monkeypatch.chdir(tmp_path)
    assert find_run_folder(None, QUICK, prepared, False).folder.name == "short"
    with pytest.raises(PneumoError):
        train_tiny(prepared, tmp_path / "runs/short", network_class=poisoned(lambda step: step == 5))
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "unfinished"
    location = find_run_folder(None, QUICK, prepared, False)
    assert (location.folder.name, location.resume) == ("short", True)
    assert find_run_folder(tmp_path / "runs/short", QUICK, prepared, True).resume
    other = QUICK.replace(seed=5)
    assert find_run_folder(None, other, prepared, False).folder.name == "short-2"
    with pytest.raises(PneumoError, match=r"not empty.*another experiment"):
        find_run_folder(tmp_path / "runs/short", other, prepared, False)
    with folder_lock(tmp_path / "runs/short"):
        assert find_run_folder(None, QUICK, prepared, False).folder.name != "short"
    record = json.loads((tmp_path / "runs/short/experiment.json").read_text())
    (tmp_path / "runs/short/experiment.json").write_text(json.dumps(record | {"best_epoch": 1}))
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "unfinished", "its report is missing"
    (tmp_path / "runs/short/report.html").touch()
    assert progress_of(tmp_path / "runs/short", QUICK, prepared) == "finished"
    with pytest.raises(PneumoError, match=r"finished training.*nothing to go on with"):
        find_run_folder(tmp_path / "runs/short", QUICK, prepared, True)


def test_folds_killed_before_the_first_record_are_begun_again(tmp_path, prepared):
    out, folds = tmp_path / "folds", [0, 1]
    assert find_folds_folder(out, QUICK, prepared, folds, False) == out
    (out / "fold_0").mkdir()
    (out / "fold_0/.lock").touch()
    (out / "fold_0/.experiment.json.abc.part").write_text("{")
    assert find_folds_folder(out, QUICK, prepared, folds, False) == out
    with pytest.raises(PneumoError, match="no unfinished training of all folds"):
        find_folds_folder(out, QUICK, prepared, folds, True)
    (out / "notes.txt").touch()
    with pytest.raises(PneumoError, match="is not empty"):
        find_folds_folder(out, QUICK, prepared, folds, False)


def test_an_unfinished_run_of_an_earlier_version_is_gone_on_with(tmp_path, prepared):
    """Its record has no setting ``deterministic``; it did what the default says."""
    record = {"experiment": QUICK.model_dump(mode="json")}
    del record["experiment"]["deterministic"]
    for name in ("split_sha256", "prepared_sha256"):
        record[name] = prepared.manifest[name]
    (tmp_path / "experiment.json").write_text(json.dumps(record))
    assert progress_of(tmp_path, QUICK, prepared) == "unfinished"
    assert progress_of(tmp_path, QUICK.replace(deterministic=False), prepared) == "other"


def test_row_42_killed_as_a_complete_result_came_into_place_the_same_call_begins_anew(tmp_path, monkeypatch):
    out = tmp_path / "out"

    class Killed(BaseException):
        """The end of a process that runs none of its own clean-up."""

    def make(text):
        with (
            new_folder_lock(out, "detector") as folder,
            replacing_contents(folder, ("parts", "detector.json")) as new,
        ):
            (new / "parts").mkdir()
            (new / "detector.json").write_text(text)

    def fail_in_place(folder):
        if folder == out:
            raise Killed

    with monkeypatch.context() as patch:  # after the whole result is there, before its last trace is gone
        patch.setattr("keras_pneumo.storage.files.flush_folder", fail_in_place)
        patch.setattr("shutil.rmtree", lambda *arguments, **options: None)
        with pytest.raises(Killed):
            make("first")
    assert (out / "detector.json").read_text() == "first"
    make("second")
    assert (out / "detector.json").read_text() == "second"
    assert {path.name for path in out.iterdir()} - {".lock"} == {"detector.json", "parts"}
    with pytest.raises(PneumoError, match="is not empty"):
        make("third")
