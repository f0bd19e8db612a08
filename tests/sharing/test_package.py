"""Tests of packages: what goes into one, what does not, and what is refused when one is received."""

import json
import shutil

import pandas as pd
import pytest
from sharing_lab import HOSPITAL_NUMBER, KEYED, write_detector, write_run

from keras_pneumo.config import CLASSIFIER
from keras_pneumo.detector.record import check_files, read_detector_record
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.provenance import hashed
from keras_pneumo.inference.run import read_run
from keras_pneumo.sharing.package import LIST, read_package
from keras_pneumo.sharing.packing import without_plain_names, write_package
from keras_pneumo.storage.files import read_json, sha256_file, with_content_hash, write_json


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs/shared")


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_runs_package_has_what_loading_needs_and_no_more(tmp_path, run):
    package = write_package(run, tmp_path / "out")
    assert names_in(tmp_path / "out") == {*package.files, LIST}
    assert set(package.files) == {
        "README.md", "best.safetensors", "best.weights.h5", "board.csv", "curves.png", "experiment.json",
        "learned_images.csv", "log.csv",
    }  # fmt: skip
    assert (package.kind, package.name, package.synthetic) == ("run", "shared", False)
    opened = read_run(package.folder)
    assert (
        opened.record
        == read_run(run).record
        | {
            "learned_images_sha256": sha256_file(package.folder / "learned_images.csv"),
            "sha256": opened.record["sha256"],
        }
        | {"command": None}
        or "command" not in opened.record
    )
    assert opened.threshold == 0.4


def test_neither_paths_nor_names_of_patients_go_with_it(tmp_path, run):
    package = write_package(run, tmp_path / "out")
    everything = b"".join((package.folder / name).read_bytes() for name in package.files)
    for word in (HOSPITAL_NUMBER, "1.2.3.0", "/home/somebody", "name-of-host"):
        assert word.encode() not in everything
    learned = pd.read_csv(package.folder / "learned_images.csv", keep_default_na=False)
    assert learned["patient_id"].tolist() == ["", KEYED]
    assert learned["image_id"].tolist() == [hashed("1.2.3.0"), hashed("1.2.3.1")]
    assert learned["pixels_sha256"].tolist() == ["b" * 64] * 2


def test_hashes_of_patients_without_a_key_are_left_out():
    table = pd.DataFrame({"patient_id": [KEYED, "sha256:" + "1" * 32, "patient-9f86d081884c7d65", "7", ""]})
    assert without_plain_names(table)["patient_id"].tolist() == [KEYED, "", "", "", ""]


def test_predictions_go_with_it_when_they_were_asked_for(tmp_path, run):
    files = write_package(run, tmp_path / "out", with_predictions=True).files
    assert {"submission/predictions.csv", "submission/submission.json"} <= set(files)
    shutil.rmtree(run / "submission")
    with pytest.raises(PneumoError, match="no predictions in submission"):
        write_package(run, tmp_path / "other", with_predictions=True)
    assert not (tmp_path / "other").exists()


def test_a_run_of_several_best_epochs_goes_with_all_of_them(tmp_path):
    experiment = CLASSIFIER.replace(name="shared", encoder="resnet18", weights="random", image_size=64, top_k=2)
    run = write_run(tmp_path / "run", experiment=experiment)
    for epoch in (1, 2):
        (run / f"checkpoints/epoch_{epoch:03d}.weights.h5").write_bytes(b"x")
    files = write_package(run, tmp_path / "out").files
    assert {"checkpoints/epoch_001.weights.h5", "checkpoints/epoch_002.weights.h5"} <= set(files)


def test_a_detectors_package_opens_with_its_new_hashes(tmp_path):
    """Hashes of patients without a key are taken out of its table, so the hashes above the table change."""
    source = write_detector(tmp_path / "detector")
    package = write_package(source, tmp_path / "out")
    record = read_detector_record(package.folder)
    check_files(package.folder, record)
    before = read_detector_record(source)
    assert record["files"].keys() == before["files"].keys()
    changed = {name for name, digest in record["files"].items() if digest != before["files"][name]}
    assert changed == {"classifier_0/experiment.json", "classifier_0/learned_images.csv"}
    table = package.folder / "classifier_0/learned_images.csv"
    assert pd.read_csv(table)["patient_id"].isna().all()
    assert read_json(package.folder / "classifier_0/experiment.json")["learned_images_sha256"] == sha256_file(table)
    assert (package.kind, package.name) == ("detector", "joined")
    assert "board/board.csv" in package.files


def test_what_identifies_a_patient_is_refused(tmp_path, run, monkeypatch):
    """A board with a column of names: whoever made it so, it does not leave."""
    board = pd.read_csv(run / "board.csv").assign(patient_name="Unmistakable")
    board.to_csv(run / "board.csv", index=False)
    with pytest.raises(PneumoError, match="may tell who a patient is: table column patient_name") as refusal:
        write_package(run, tmp_path / "out")
    assert "Unmistakable" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["best.weights.h5", "best.safetensors"])
def test_a_run_whose_weights_changed_is_refused(tmp_path, run, name):
    (run / name).write_bytes(b"other weights")
    with pytest.raises(PneumoError, match=f"{name} was changed after the training"):
        write_package(run, tmp_path / "out")


def test_a_folder_that_is_neither_is_refused(tmp_path, run):
    with pytest.raises(PneumoError, match="neither a run nor a detector"):
        write_package(tmp_path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(PneumoError, match="not empty"):
        write_package(run, tmp_path / "full")


@pytest.fixture
def package(tmp_path, run):
    return write_package(run, tmp_path / "out").folder


def relist(folder, **changes):
    """Changes the list and hashes it anew, as somebody would who wants to do harm."""
    record = read_json(folder / LIST)
    for name, value in changes.items():
        record[name] = value(record[name]) if callable(value) else value
    write_json(folder / LIST, with_content_hash(record))


def test_a_changed_byte_is_refused(package):
    path = package / "log.csv"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.9"))
    with pytest.raises(PneumoError, match=r"log\.csv is missing or changed"):
        read_package(package)


def test_a_missing_and_an_unlisted_file_are_refused(package):
    (package / "checkpoints").mkdir()
    (package / "checkpoints/epoch_001.weights.h5").touch()
    with pytest.raises(PneumoError, match="does not list"):
        read_package(package)
    (package / "log.csv").unlink()
    with pytest.raises(PneumoError, match=r"log\.csv is missing or changed"):
        read_package(package)


def test_a_changed_list_is_refused(package):
    (package / LIST).write_text((package / LIST).read_text().replace('"shared"', '"another"'))
    with pytest.raises(PneumoError, match="its hash does not match"):
        read_package(package)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "not of format 1"),
        ({"kind": "program"}, r"cannot be used\. kind"),
        ({"files": {}}, r"cannot be used\. files"),
        ({"files": lambda files: dict.fromkeys([*files, "../outside"], files["log.csv"])}, r"cannot be used\. files"),
        ({"files": lambda files: dict.fromkeys([*files, "/etc/passwd"], files["log.csv"])}, r"cannot be used\. files"),
        ({"files": lambda files: dict.fromkeys([*files, "a\\b"], files["log.csv"])}, r"cannot be used\. files"),
        ({"files": lambda files: dict.fromkeys([*files, LIST], files["log.csv"])}, "missing or changed"),
        ({"files": lambda files: dict.fromkeys(map(str, range(501)), files["log.csv"])}, r"cannot be used\. files"),
        ({"files": lambda files: dict.fromkeys([*files, ".hidden"], files["log.csv"])}, r"cannot be used\. files"),
        ({"files": lambda files: {**files, "log.csv": {"sha256": "x", "bytes": 1}}}, r"files\.log\.csv\.sha256"),
        ({"files": lambda files: {**files, "log.csv": {**files["log.csv"], "bytes": 2**60}}}, "GiB; at most 8"),
    ],
)
def test_a_list_that_may_do_harm_is_refused(package, changes, words):
    relist(package, **changes)
    with pytest.raises(PneumoError, match=words):
        read_package(package)


def test_a_link_out_of_the_package_is_refused(tmp_path, package):
    content = (package / "log.csv").read_bytes()
    (package / "log.csv").unlink()
    (tmp_path / "elsewhere.csv").write_bytes(content)
    (package / "log.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(PneumoError, match=r"log\.csv is missing or changed"):
        read_package(package)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is no package"), ("[", "cannot be read"), ("[]", "not of format")]
)
def test_without_a_list_it_is_no_package(package, content, words):
    (package / LIST).unlink()
    if content is not None:
        (package / LIST).write_text(content)
    with pytest.raises(PneumoError, match=words):
        read_package(package)


def test_two_packages_of_a_run_are_the_same(tmp_path, run, package):
    again = write_package(run, tmp_path / "again")
    assert again.sha256 == read_package(package).sha256
    assert json.loads((again.folder / LIST).read_text()) == json.loads((package / LIST).read_text())
