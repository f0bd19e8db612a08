import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from keras_pneumo.data.labels import rle
from keras_pneumo.errors import PneumoError
from keras_pneumo.phantoms.folder import IMAGES, STATE, PhantomSettings, write_phantoms
from keras_pneumo.phantoms.render import render

SETTINGS = PhantomSettings(images=24, seed=5, positive_rate=0.5, several_rows_rate=0.6, monochrome1_rate=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "a folder with spaces é"
    write_phantoms(out, SETTINGS, workers=1)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hashes(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


def test_files_lie_as_in_the_competition(folder: Path) -> None:
    files = sorted((folder / "dicom-images-train").glob("*/*/*.dcm"))
    assert len(files) == 24
    for path in files:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert path.parts[-3:] == (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, f"{dataset.SOPInstanceUID}.dcm")
    assert not list(folder.rglob("*.part"))


def test_the_label_file_has_every_oddity_of_the_real_one(folder: Path) -> None:
    text = (folder / "train-rle.csv").read_text()
    assert text.startswith("ImageId, EncodedPixels\n")
    assert "\r" not in text
    by_image: dict[str, list[str]] = {}
    for row in rows(folder / "train-rle.csv"):
        by_image.setdefault(row["ImageId"], []).append(row[" EncodedPixels"])
    assert len(by_image) == 24
    negatives = [texts for texts in by_image.values() if texts == ["-1"]]
    several = [texts for texts in by_image.values() if len(texts) > 1]
    assert 6 <= len(negatives) <= 18
    assert several
    overlapping = [
        texts for texts in several if rle.area(rle.unite(texts)) < sum(rle.area(rle.runs_of(text)) for text in texts)
    ]
    assert overlapping
    assert not any("-1" in texts for texts in several)


def test_truth_agrees_with_labels_files_and_render(folder: Path) -> None:
    labels: dict[str, list[str]] = {}
    for row in rows(folder / "train-rle.csv"):
        labels.setdefault(row["ImageId"], []).append(row[" EncodedPixels"])
    patients = {row["ImageId"]: row["patient_id"] for row in rows(folder / "patients.csv")}
    truth = rows(folder / "phantom.csv")
    assert set(labels) == set(patients) == {row["image_id"] for row in truth}
    for row in truth:
        image_id = row["image_id"]
        [path] = folder.rglob(f"{image_id}.dcm")
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert (row["sex"], row["age"], row["view"]) == (dataset.PatientSex, dataset.PatientAge, dataset.ViewPosition)
        assert (row["monochrome1"] == "1") == (dataset.PhotometricInterpretation == "MONOCHROME1")
        area = rle.area(rle.unite(labels[image_id]))
        assert float(row["area_fraction"]) == pytest.approx(area / 1024**2, abs=1e-8)
        assert (row["side"] != "") == (area > 0)
        assert (row["tube"] == "1") == (row["tube_pixels"] != "-1")
        assert patients[image_id] == row["patient_id"]
    assert any(row["monochrome1"] == "1" for row in truth)


def test_pixels_and_masks_are_those_of_render(folder: Path) -> None:
    truth = {row["image_id"]: row for row in rows(folder / "phantom.csv")}
    checked = set()
    for patient, image in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0)):
        phantom = render(5, patient, image, SETTINGS)
        [path] = folder.rglob(f"{phantom.case.image_id}.dcm")
        stored = pydicom.dcmread(path).pixel_array.astype(int)
        shown = 255 - stored if phantom.case.monochrome1 else stored
        assert np.abs(shown - phantom.image).mean() < 2.0  # what JPEG loses of the noise
        x, y, width, height = phantom.marker_box
        row = truth[phantom.case.image_id]
        assert [int(row[f"marker_{name}"]) for name in ("x", "y", "width", "height")] == [x, y, width, height]
        checked.add(phantom.case.image_id)
    assert len(checked) == 5


def test_neither_workers_nor_more_images_change_a_byte(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = PhantomSettings(**{**SETTINGS.__dict__, "images": 6})
    summary = write_phantoms(
        tmp_path / "few", settings, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert summary.images == 6
    few, all_of_them = hashes(tmp_path / "few"), hashes(folder)
    images = {name: value for name, value in few.items() if name.endswith(".dcm")}
    assert len(images) == 6
    assert images.items() <= all_of_them.items()
    labels = (folder / "train-rle.csv").read_text().splitlines()
    assert set((tmp_path / "few" / "train-rle.csv").read_text().splitlines()) <= set(labels)


def test_a_complete_folder_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    first = write_phantoms(folder, SETTINGS, workers=1)
    assert not first.written
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before
    assert first.images == 24
    assert first.positives == sum(row["side"] != "" for row in rows(folder / "phantom.csv"))
    assert first.label_rows == len(rows(folder / "train-rle.csv"))
    assert first.patients == len({row["patient_id"] for row in rows(folder / "patients.csv")})
    assert first.monochrome1 > 0


def test_an_interrupted_folder_is_finished_to_the_same_bytes(tmp_path: Path) -> None:
    settings = PhantomSettings(images=3, seed=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_phantoms(whole, settings, workers=1)

    class StopError(Exception):
        """Stands for Ctrl-C."""

    def stop_at_two(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        write_phantoms(broken, settings, workers=1, progress=stop_at_two)
    assert not (broken / "train-rle.csv").exists()
    (next(broken.rglob("*.dcm")).parent / ".x.dcm.abcdefgh.part").write_bytes(b"half")
    assert write_phantoms(broken, settings, workers=1).written
    assert hashes(broken) == hashes(whole)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PneumoError, match="holds no phantoms"):
        write_phantoms(tmp_path, PhantomSettings(images=1), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("state", ["", "[]", "{}", '{"format": 1, "settings": 3, "complete": false}'])
def test_a_folder_with_a_broken_state_is_refused(tmp_path: Path, state: str) -> None:
    (tmp_path / "phantom.json").write_text(state)
    with pytest.raises(PneumoError, match=r"holds (no phantoms|phantoms made with other settings)"):
        write_phantoms(tmp_path, PhantomSettings(images=1), workers=1)


def test_phantoms_of_other_settings_are_refused(folder: Path) -> None:
    with pytest.raises(PneumoError, match="other settings"):
        write_phantoms(folder, PhantomSettings(images=24, seed=6), workers=1)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(PneumoError, match="is a file"):
        write_phantoms(tmp_path / "out", PhantomSettings(images=1), workers=1)


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    settings = PhantomSettings(images=2)

    def start_again(done: int, total: int) -> None:
        with pytest.raises(PneumoError, match="Another run"):
            write_phantoms(tmp_path, settings, workers=1)

    assert write_phantoms(tmp_path, settings, workers=1, progress=start_again).written


def test_a_full_disk_is_reported_and_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PneumoError, match=r"Cannot write .*No space left on device"):
        write_phantoms(tmp_path / "out", PhantomSettings(images=1), workers=1)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.name != ".lock"] == []


def test_no_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PneumoError, match="workers is 0"):
        write_phantoms(tmp_path / "out", PhantomSettings(images=1), workers=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 0), ("images", 2.5), ("images", True), ("seed", -1), ("seed", "x"), ("positive_rate", 1.1),
        ("positive_rate", float("nan")), ("monochrome1_rate", -0.1), ("tube_rate", None), ("several_rows_rate", 2),
        ("size_scale", 0), ("size_scale", float("inf")), ("size_scale", 21),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(PneumoError, match=name):
        PhantomSettings(**{name: value})  # type: ignore[arg-type]


def test_the_state_file_says_what_was_made(folder: Path) -> None:
    state = json.loads((folder / STATE).read_text())
    assert state["complete"] is True
    assert state["settings"]["images"] == 24
    assert IMAGES == "dicom-images-train"
