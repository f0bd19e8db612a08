"""Tests of detection on folders: bad files are set aside, no patient is named, and no answer is lost."""

import json

import cv2
import fatal_render
import numpy as np
import pandas as pd
import pydicom
import pytest
from detector_lab import checked_detector, drawn_hand, known_detector
from pydicom.uid import UID

from keras_pneumo.detector.detect import detect
from keras_pneumo.errors import PneumoError

pytest.importorskip("highdicom", reason="highdicom (extra dicom) is not installed")


def test_ids_and_names_cannot_be_formulas(few, tmp_path):
    (tmp_path / "radiographs").mkdir()
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("=HYPERLINK(1)", validation_mode=0)
        dataset.save_as(tmp_path / "radiographs/+a.dcm")
    (tmp_path / "radiographs/@b.dcm").write_bytes(b"no radiograph")
    (row,) = detect(known_detector(top=2), [tmp_path / "radiographs"], tmp_path / "out").rows
    table = pd.read_csv(tmp_path / "out/predictions.csv", dtype=str)
    assert table[["file", "image_id", "encoded_pixels"]].to_numpy().tolist() == [["'+a.dcm", "'=HYPERLINK(1)", "-1"]]
    assert row["image_id"] == "=HYPERLINK(1)"
    assert pd.read_csv(tmp_path / "out/quarantine.csv")["file"].tolist() == ["'@b.dcm"]


def test_pictures_of_an_earlier_run_are_not_read(few, tmp_path):
    for path in few.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for _ in range(2):
        result = detect(known_detector(), [tmp_path], tmp_path / "out", dicom=True)
        assert (len(result.rows), result.set_aside) == (3, [])
    with pytest.raises(PneumoError, match="Name another --out"):
        detect(known_detector(), [tmp_path], tmp_path)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_crash_costs_only_its_own_file(few, tmp_path, monkeypatch, workers):
    (tmp_path / "radiographs").mkdir()
    for path in few.iterdir():
        (tmp_path / "radiographs" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "radiographs/fatal.dcm").write_bytes(b"ends its process")
    monkeypatch.setenv("FATAL_FILE", "fatal.dcm")
    # Spawned workers import the function by its name, so the fatal one lives in a module of the tests.
    monkeypatch.setattr("keras_pneumo.detector.detect.read_or_reason", fatal_render.read)
    result = detect(known_detector(), [tmp_path / "radiographs"], tmp_path / "out", workers=workers)
    assert len(result.rows) == 3
    (aside,) = result.set_aside
    assert aside["file"] == "fatal.dcm"
    assert aside["reason"].startswith("reading it crashed")


def test_bad_files_are_set_aside_and_no_patient_is_named(few, tmp_path, capsys, recwarn):
    data = tmp_path / "data"
    data.mkdir()
    named = pydicom.dcmread(next(few.iterdir()))
    named.PatientName, named.PatientID = "Unmistakable^Name", "UNMISTAKABLE"
    named.save_as(data / "named.dcm")
    named.Rows = 5000
    named.save_as(data / "liar.dcm")
    (data / "broken.dcm").write_bytes(b"no dicom at all")
    cv2.imwrite(str(data / "plain.png"), np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    cv2.imwrite(str(data / "wide.png"), np.zeros((16, 300), np.uint8))
    result = detect(known_detector(), [data], tmp_path / "out", dicom=True)
    quarantine = pd.read_csv(tmp_path / "out/quarantine.csv").set_index("file")["reason"]
    assert set(quarantine.index) == {"liar.dcm", "broken.dcm", "plain.png", "wide.png"}
    assert "no DICOM file" in quarantine["broken.dcm"]
    assert "16 rows" in quarantine["wide.png"]
    assert quarantine["plain.png"].startswith("answered, but without DICOM objects")
    assert {row["file"] for row in result.rows} == {"named.dcm", "plain.png"}
    output = capsys.readouterr()
    texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".csv")]
    everything = " ".join([*texts, output.out, output.err, *(str(warning.message) for warning in recwarn), str(result)])
    assert "unmistakable" not in everything.lower()


def test_a_lateral_view_is_set_aside_by_its_tag_or_answered_on_request(few, tmp_path):
    dataset = pydicom.dcmread(min(few.iterdir()))
    dataset.ViewPosition = "LATERAL"
    dataset.save_as(tmp_path / "lateral.dcm")
    result = detect(known_detector(), [tmp_path / "lateral.dcm"], tmp_path / "out")
    assert not result.rows
    assert "the view LATERAL, which is not frontal; --any-view" in result.set_aside[0]["reason"]
    (row,) = detect(known_detector(), [tmp_path / "lateral.dcm"], tmp_path / "out", any_view=True).rows
    assert row["pneumothorax"]
    written = json.loads((tmp_path / f"out/{dataset.SOPInstanceUID}.json").read_text())
    assert "no frontal radiograph" in " ".join(written["notes"])


def pixels_of(folder):
    return [pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir())]


def test_a_hand_is_answered_not_like_the_training_images_and_a_radiograph_as_ever(few, tmp_path):
    (tmp_path / "files").mkdir()
    cv2.imwrite(str(tmp_path / "files/hand.png"), drawn_hand())
    (tmp_path / "files/chest.dcm").write_bytes(min(few.iterdir()).read_bytes())
    result = detect(checked_detector(pixels_of(few), limit=0.6), [tmp_path / "files"], tmp_path / "out")
    (row,) = result.rows
    assert row["file"] == "chest.dcm"
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    assert list(table["file"]) == ["chest.dcm"]
    assert list(table["probability"]) == [0.8]
    aside = pd.read_csv(tmp_path / "out/quarantine.csv")
    assert list(aside["file"]) == ["hand.png"]
    assert aside["reason"][0].startswith("Not like the training images: its distance to them is ")
    written = json.loads((tmp_path / "out/hand.json").read_text())
    empty = ("probability", "classifier_probability", "own_head_probability", "pneumothorax", "meaning", "outlined")
    for name in (*empty, "disagreement", "mask_share", "area_mm2", "encoded_pixels"):
        assert written[name] is None, name
    assert written["reason"] == aside["reason"][0]
    assert written["likeness"]["distance"] > written["likeness"]["limit"] == 0.6
    assert (written["rows"], written["columns"], written["threshold"]) == (512, 512, 0.5)
    answered = json.loads((tmp_path / "out" / f"{row['image_id']}.json").read_text())
    assert (answered["probability"], answered["reason"]) == (0.8, None)
    assert 0 <= answered["likeness"]["distance"] <= 0.6
    # The picture is the hand with words and without an outline.
    picture = cv2.imread(str(tmp_path / "out/hand.png"))
    assert (np.ptp(picture[:440], axis=2) == 0).all()
    np.testing.assert_array_equal(picture[:440, :, 0], drawn_hand()[:440])
    assert (picture[440:, :, 0] != drawn_hand()[440:]).sum() > 500
    chest = cv2.imread(str(tmp_path / "out" / f"{row['image_id']}.png"))
    assert (np.ptp(chest, axis=2) > 60).any()


def test_hostile_ids_stay_inside_the_folder_and_equal_ids_get_separate_files(few, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    dataset = pydicom.dcmread(next(few.iterdir()))
    with pydicom.config.disable_value_validation():
        dataset.SOPInstanceUID = UID("../../outside", validation_mode=0)
        dataset.save_as(data / "a.dcm")
        dataset.save_as(data / "b.dcm")
    detect(known_detector(), [data], tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert len(names) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, PneumoError("Cannot write: no space left.")])
def test_complete_answers_keep_their_rows_however_it_ends(few, tmp_path, end):
    (tmp_path / "radiographs").mkdir()
    for number, path in enumerate(sorted(few.iterdir())):
        (tmp_path / f"radiographs/{number}.dcm").write_bytes(path.read_bytes())
    (tmp_path / "radiographs/0a.dcm").write_bytes(b"no radiograph")

    counts = []

    def stop(count, _):
        counts.append(count)
        if count >= 3:  # 3 or 4: the file that is no radiograph comes when its worker is done, and makes no batch
            raise end

    with pytest.raises(type(end) if isinstance(end, Exception) else end):
        detect(known_detector(), [tmp_path / "radiographs"], tmp_path / "out", batch=1, progress=stop)
    rows = pd.read_csv(tmp_path / "out/predictions.csv")
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set(rows["image_id"].astype(str))
    aside = tmp_path / "out/quarantine.csv"
    assert len(rows) + (len(pd.read_csv(aside)) if aside.exists() else 0) == counts[-1], "no file was lost"


def test_an_answer_that_could_not_be_written_has_no_row(few, tmp_path, monkeypatch):
    from keras_pneumo.detector import detect as module

    first = sorted(path.stem for path in few.iterdir())[0]
    whole = module.write_json

    def full(path, value):
        if path.stem != first:
            raise PneumoError("Cannot write: no space left.")
        return whole(path, value)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(PneumoError, match="no space left"):
        detect(known_detector(), [few], tmp_path)
    assert pd.read_csv(tmp_path / "predictions.csv")["image_id"].astype(str).tolist() == [first]


@pytest.mark.slow
def test_worker_processes_give_the_same_answers(few, tmp_path):
    for workers in (1, 2):
        detect(known_detector(), [few], tmp_path / str(workers), workers=workers)
    first, second = (pd.read_csv(tmp_path / name / "predictions.csv") for name in "12")
    pd.testing.assert_frame_equal(first, second)


def test_radiographs_of_one_study_get_their_own_answers_and_name_it_in_secret(few, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number, path in enumerate(sorted(few.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = "1.2.77.1" if number < 2 else "1.2.77.2"
        dataset.save_as(data / f"{number}.dcm")
    detector = known_detector()
    result = detect(detector, [data], tmp_path / "out")
    table = pd.read_csv(tmp_path / "out/predictions.csv").set_index("file")
    assert table.at["0.dcm", "study"] == table.at["1.dcm", "study"] != table.at["2.dcm", "study"]
    assert "1 study has several radiographs, each with its own answer" in str(result)
    alone = detect(detector, [data / "1.dcm"], tmp_path / "alone")
    assert alone.rows[0]["encoded_pixels"] == table.at["1.dcm", "encoded_pixels"]
    assert alone.rows[0]["study"] == table.at["1.dcm", "study"]
    assert "several" not in str(alone)
    texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".csv")]
    assert not any("1.2.77." in text for text in texts)
    assert sum(table.at["0.dcm", "study"] in text for text in texts) == 3, "both json and the table"


class Killed(BaseException):
    """The end of a process by SIGKILL: it writes no table and says nothing."""


def killed_at(monkeypatch, number, *arguments, **settings):
    """Runs ``detect`` and ends it at the n-th file that it writes, as SIGKILL would."""
    from keras_pneumo.detector import detect as module

    count = 0

    def kill(real):
        def call(*given, **named):
            nonlocal count
            count += 1
            if count >= number:
                raise Killed
            return real(*given, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_bytes"):
            patch.setattr(module, name, kill(getattr(module, name)))
        patch.setattr(module, "_write_tables", lambda *_: None)
        patch.setattr(module._Journal, "remove", kill(module._Journal.remove))
        with pytest.raises(Killed):
            detect(*arguments, **settings)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.fixture
def five(few, tmp_path):
    """Three DICOM files, one of them twice, and two that are no radiographs."""
    folder = tmp_path / "radiographs"
    folder.mkdir()
    for number, path in enumerate([*sorted(few.iterdir()), min(few.iterdir())]):
        (folder / f"{number}.dcm").write_bytes(path.read_bytes())
    for name in ("0a.dcm", "9.dcm"):
        (folder / name).write_bytes(b"no radiograph")
    return folder


def counting(detector):
    """The detector, and a list that gets the number of radiographs of each of its batches."""
    batches = []

    class Counting(type(detector)):
        def answer(self, images):
            batches.append(len(images))
            return super().answer(images)

    return Counting(**vars(detector)), batches


def test_row_42_killed_at_any_moment_the_same_call_goes_on_to_the_same_answers(five, tmp_path, monkeypatch):
    detect(known_detector(), [five], tmp_path / "whole", batch=2)
    whole = contents(tmp_path / "whole")
    assert "unfinished.jsonl" not in whole
    spared = []
    for number in range(1, 20):
        out = tmp_path / str(number)
        if number < 11:
            killed_at(monkeypatch, number, known_detector(), [five], out, batch=2)
            assert number == 1 or (out / "unfinished.jsonl").exists(), "it shows that it is unfinished"
            listed = (out / "unfinished.jsonl").read_text().splitlines()[1:] if number > 1 else []
            answered = {path.stem for path in out.glob("*.json")}
            assert {json.loads(line).get("name") for line in listed} - {None} <= answered, "each row has its answer"
        detector, batches = counting(known_detector())
        result = detect(detector, [five], out, batch=2)
        assert contents(out) == whole
        assert sum(batches) + sum(row["file"] not in ("0a.dcm", "9.dcm") for row in result.rows[: result.earlier]) >= 4
        spared.append(4 - sum(batches))
        if number >= 11:
            break
    assert max(spared) >= 2, "it went on, and did not begin again"
    assert spared[0] == spared[-1] == 0


def ended_early(five, out, monkeypatch, **settings):
    """An unfinished folder of answers in which the first block is done."""
    killed_at(monkeypatch, 7, known_detector(), [five], out, batch=1, **settings)
    assert len((out / "unfinished.jsonl").read_text().splitlines()) > 2


def test_row_42_only_what_is_as_it_was_is_taken_over(five, tmp_path, monkeypatch):
    detect(known_detector(), [five], tmp_path / "whole", batch=1)
    whole = contents(tmp_path / "whole")

    def go_on(out, **settings):
        detector, batches = counting(known_detector(**settings))
        detect(detector, [five], out, batch=1)
        return sum(batches)

    ended_early(five, tmp_path / "plain", monkeypatch)
    assert go_on(tmp_path / "plain") < 4
    ended_early(five, tmp_path / "torn", monkeypatch)
    journal = tmp_path / "torn/unfinished.jsonl"
    journal.write_text(journal.read_text() + '{"key": "ab')
    assert go_on(tmp_path / "torn") < 4
    ended_early(five, tmp_path / "damaged", monkeypatch)
    for path in (tmp_path / "damaged").glob("*.png"):
        path.write_bytes(b"")
    assert go_on(tmp_path / "damaged") == 4
    ended_early(five, tmp_path / "touched", monkeypatch)
    for path in five.iterdir():
        path.touch()
    assert go_on(tmp_path / "touched") == 4
    ended_early(five, tmp_path / "other", monkeypatch, any_view=True)
    assert go_on(tmp_path / "other") == 4
    ended_early(five, tmp_path / "no list", monkeypatch)
    (tmp_path / "no list/unfinished.jsonl").write_text("[" * 100_000)
    assert go_on(tmp_path / "no list") == 4
    for name in ("plain", "torn", "damaged", "touched", "other", "no list"):
        assert contents(tmp_path / name) == whole, name


def test_row_42_after_ctrl_c_the_same_call_goes_on_and_says_so(five, tmp_path):
    def stop(count, _):
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect(known_detector(), [five], tmp_path / "out", batch=1, progress=stop, workers=1)
    tables = {name: pd.read_csv(tmp_path / "out" / name) for name in ("predictions.csv", "quarantine.csv")}
    done = sum(map(len, tables.values()))
    assert (tmp_path / "out/unfinished.jsonl").exists()
    result = detect(known_detector(), [five], tmp_path / "out", batch=1, dicom=False)
    assert result.earlier == done == 4
    assert "4 files were done before, by a call that was ended" in str(result)
    assert (len(result.rows), len(result.set_aside)) == (4, 2)
    assert not (tmp_path / "out/unfinished.jsonl").exists()
