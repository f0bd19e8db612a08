"""Preparing a folder end to end, every fault on the way, and what is checked when the folder is read again."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from small_siim import (
    SIDE,
    block,
    dicom,
    hashes,
    radiograph,
    save,
    without_key,
    write_dicom,
    write_labels,
    write_png,
    write_siim,
)

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.cases import read_labels
from keras_pneumo.data.labels.known import LabelOptions, options_of
from keras_pneumo.data.labels.pseudonyms import KEY_FILE, key_of, new_key, patient_hash, read_key, write_key
from keras_pneumo.data.prepared import prepare as preparation
from keras_pneumo.data.prepared.folder import find_prepared, load_prepared, verify_files
from keras_pneumo.data.prepared.manifest import prepared_sha256
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.data.prepared.split import make_split
from keras_pneumo.data.radiographs import decoders
from keras_pneumo.data.radiographs.dicom import read_dicom
from keras_pneumo.data.radiographs.geometry import resize_image, resize_mask
from keras_pneumo.data.radiographs.reading import find_files
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.board.subgroups import attributes_of
from keras_pneumo.evaluation.inputs.truth import read_truth
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.storage.files import folder_lock, sha256_file

REAL = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", Path(__file__).parents[4] / "shared"))
needs_real = pytest.mark.skipif(not (REAL / "siim_mini").exists(), reason="no real radiographs beside the repository")
is_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    write_siim(folder)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "prepared"


def quarantine(out):
    return pd.read_csv(out / "quarantine.csv", dtype={"file": str, "reason": str, "row": "Int64"})


def set_aside(out, file):
    """The one reason for which ``file`` was set aside."""
    table = quarantine(out)
    reasons = table.loc[table["file"] == file, "reason"]
    assert len(reasons) == 1
    return reasons.iloc[0]


# -- what is made ------------------------------------------------------------------------------------------------------


def test_everything_a_prepared_folder_holds(data, out):
    summary = prepare(data, out, [32, 64])
    assert (summary.images, summary.positive, summary.patients, summary.set_aside) == (12, 6, 12, 0)
    assert summary.rendered == 12
    prepared = load_prepared(out)
    assert prepared.manifest["synthetic"] is False
    assert list(prepared.cases.columns) == [
        "image_id", "patient_id", "sex", "age", "view", "rows", "columns", "pixel_spacing_mm", "pneumothorax",
        "mask_pixels", "label_rows", "source", "source_sha256",
    ]  # fmt: skip
    assert list(prepared.truth.columns) == [
        "image_id", "patient_id", "subset", "fold", "pneumothorax", "encoded_pixels", "sex", "age", "view",
        "pixel_spacing_mm",
    ]  # fmt: skip
    assert list(prepared.split.columns) == ["image_id", "patient_id", "pneumothorax", "subset", "fold"]
    assert list(quarantine(out).columns) == ["file", "row", "reason"]
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "cases.csv", "images_32", "images_64", "manifest.json", "masks_32", "masks_64", "pseudonym.key",
        "quarantine.csv", "split.csv", "truth.csv",
    ]  # fmt: skip
    manifest = prepared.manifest
    assert manifest["format"] == 1
    assert manifest["sizes"] == [32, 64]
    assert manifest["decoder"] == {"1.2.840.10008.1.2.4.50": "pillow"}
    assert manifest["counts"]["label_rows"] == 18
    assert manifest["split_sha256"] == summary.split_sha256
    assert manifest["prepared_sha256"] == summary.prepared_sha256
    assert set(manifest["tables"]) == {"cases.csv", "split.csv", "truth.csv", "quarantine.csv"}
    files = {path.relative_to(out).as_posix() for path in out.glob("*_*/*.png")}
    assert set(manifest["files"]) == files
    assert len(files) == 2 * (12 + 6)
    for size in (32, 64):
        verify_files(prepared, size)
    assert str(data) not in (out / "manifest.json").read_text()


def test_images_and_masks_are_those_of_an_independent_computation(data, out):
    prepare(data, out, [32, 64])
    prepared = load_prepared(out)
    labels = read_labels(data / "train-rle.csv")
    for path in sorted(data.rglob("*.dcm")):
        image_id = path.stem
        source = read_dicom(path).pixels
        small = source.reshape(32, 2, 32, 2).mean(axis=(1, 3))  # area of whole pixels: a plain mean
        assert (cv2.imread(str(prepared.image_path(image_id, 64)), cv2.IMREAD_UNCHANGED) == source).all()
        image = cv2.imread(str(prepared.image_path(image_id, 32)), cv2.IMREAD_UNCHANGED)
        assert image.dtype == np.uint8
        assert np.abs(image - small).max() <= 0.5
        runs = labels.images[image_id].runs
        if rle.area(runs):
            share = rle.draw(runs).reshape(32, 32, 32, 32).mean(axis=(1, 3))
            mask = cv2.imread(str(prepared.mask_path(image_id, 32)), cv2.IMREAD_UNCHANGED)
            assert (mask == np.where(share >= 0.5, 255, 0)).all()
        else:
            assert not prepared.mask_path(image_id, 32).exists()


def test_tables_say_what_the_files_say(data, out):
    prepare(data, out, [32])
    prepared = load_prepared(out)
    case = prepared.cases.set_index("image_id").loc["1.2.276.3.5"]
    assert (case["sex"], case["age"], case["view"], case["label_rows"]) == ("M", 23.0, "PA", 2)
    truth = prepared.truth.set_index("image_id")["encoded_pixels"]
    united = rle.unite([block(3), block(103)])
    assert truth["1.2.276.3.5"] == rle.encode_runs(united)
    assert case["mask_pixels"] == rle.area(united)
    assert truth["1.2.276.0.5"] == "-1"
    png = prepared.cases.set_index("image_id").loc["1.2.276.1.5"]
    assert png["sex"] == ""
    assert np.isnan(png["age"])
    assert "Nemo" not in "".join(path.read_text() for path in out.glob("*.*") if path.is_file())
    assert "tag-" not in "".join(path.read_text() for path in out.glob("*.*") if path.is_file())


def test_subsets_come_in_the_tables_order(data, out):
    prepare(data, out, [32])
    prepared = load_prepared(out)
    order = list(prepared.split["image_id"])
    ids = [image_id for subset in ("train", "validation", "test") for image_id in prepared.subset(subset)]
    assert sorted(ids) == sorted(order)
    assert prepared.subset("train") == [image_id for image_id in order if image_id in prepared.subset("train")]
    assert prepared.subset("validation", fold=1) != prepared.subset("validation")


def test_patients_of_a_table_stay_together(data, out):
    ids = sorted(read_labels(data / "train-rle.csv").images)
    rows = [(image_id, f"p{number // 2}") for number, image_id in enumerate(ids)]
    table = write_labels(data.parent / "who.csv", rows, header=("ImageId", "patient_id"))
    summary = prepare(data, out, [32], patients=table)
    prepared = load_prepared(out)
    assert summary.patients == 6
    assert prepared.manifest["patients"] == "table"
    assert prepared.manifest["patients_note"] == ""
    assert (prepared.split.groupby("patient_id")["subset"].nunique() == 1).all()


def test_patient_table_in_the_folder_is_used(data, out):
    ids = sorted(read_labels(data / "train-rle.csv").images)
    write_labels(
        data / "nih_id.csv", [(i, f"{n // 2:08d}_001.png") for n, i in enumerate(ids)], ("Kaggle_ID", "NIH_ID")
    )
    assert prepare(data, out, [32]).patients == 6


def test_grouping_that_does_nothing_is_said_aloud(data, out):
    summary = prepare(data, out, [32])
    assert "PatientID is different in every file" in summary.notes[0]
    assert load_prepared(out).manifest["patients"] == "dicom"


def test_folder_of_pictures_alone(tmp_path, out):
    write_siim(tmp_path / "png", kinds=("png",))
    summary = prepare(tmp_path / "png", out, [32])
    assert load_prepared(out).manifest["patients"] == "none"
    assert "files name no patient" in summary.notes[0]


def test_vanishing_masks_are_counted_and_stay_positive(tmp_path, out):
    folder = tmp_path / "data"
    ids = write_siim(folder, kinds=("png",))
    rows = [(image_id, "5000 3" if number % 2 else "-1") for number, image_id in enumerate(ids)]
    write_labels(folder / "train-rle.csv", rows)
    summary = prepare(folder, out, [32, 64])
    assert load_prepared(out).manifest["vanished_masks"] == {"32": 6, "64": 6}
    assert summary.positive == 6
    assert any("At 32 pixels the masks of 6 positives vanish" in note for note in summary.notes)


def test_labels_can_be_told(data, out):
    (data / "train-rle.csv").rename(data.parent / "mine.csv")
    assert prepare(data, out, [32], labels=data.parent / "mine.csv").images == 12


def test_out_may_lie_inside_the_data_folder(data):
    out = data / "prepared"
    first = prepare(data, out, [32])
    again = prepare(data, out, [32])
    assert again.prepared_sha256 == first.prepared_sha256
    assert again.rendered == 0


def test_result_depends_neither_on_workers_nor_on_where_data_lie(data, out, tmp_path):
    prepare(data, out, [32], workers=1)
    shutil.copytree(data, tmp_path / "elsewhere with spaces" / "ž")
    prepare(tmp_path / "elsewhere with spaces" / "ž", tmp_path / "other", [32], workers=2, pseudonym_key=out)
    assert hashes(out) == hashes(tmp_path / "other")


def test_progress_is_told(data, out):
    seen = []
    prepare(data, out, [32], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 12) for number in range(13)]


def test_resizing_keeps_what_is_already_right():
    image = radiograph(1)
    assert resize_image(image, SIDE) is image
    mask = rle.decode("0 1", 4, 4)
    assert resize_mask(mask, 4) is mask


def test_a_mask_pixel_counts_from_one_half_on():
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, 0] = 1  # half of the first 2 x 2 block
    mask[0, 2] = 1  # a quarter of the second
    assert resize_mask(mask, 2).tolist() == [[1, 0], [0, 0]]


# -- again, and after an interruption ----------------------------------------------------------------------------------


def test_second_run_has_nothing_to_do(data, out):
    first = prepare(data, out, [32, 64])
    before = hashes(out)
    again = prepare(data, out, [64])
    assert again.rendered == 0
    assert (again.split_sha256, again.notes) == (first.split_sha256, first.notes)
    assert hashes(out) == before


def test_added_size_gives_the_folder_made_at_once(data, out, tmp_path):
    first = prepare(data, out, [64])
    second = prepare(data, out, [32])
    prepare(data, tmp_path / "at once", [32, 64], pseudonym_key=out)
    assert hashes(out) == hashes(tmp_path / "at once")
    assert first.prepared_sha256 == second.prepared_sha256


def test_an_image_that_is_smaller_than_an_added_size_is_enlarged_with_a_note(data, out):
    first = prepare(data, out, [64])
    assert not any("enlarged" in note for note in first.notes)
    second = prepare(data, out, [128])
    assert second.prepared_sha256 == first.prepared_sha256
    assert "12 images are smaller than 128 pixels and were enlarged." in second.notes
    image_id = load_prepared(out).cases["image_id"].iloc[0]
    small, large = (cv2.imread(str(out / f"images_{size}/{image_id}.png"), -1) for size in (64, 128))
    np.testing.assert_array_equal(large, cv2.resize(small, (128, 128), interpolation=cv2.INTER_LINEAR))


SHAPES = [(80, 60), (60, 80), (75, 75), (40, 160)]


def shaped(folder, mask=lambda shape, number: "-1", header=("ImageId", "EncodedPixels")):
    """Twelve images of :data:`SHAPES`, noise of 100 and more, every other one positive, and their labels."""
    rows = []
    for number in range(12):
        shape = SHAPES[number // 2 % len(SHAPES)]
        pixels = np.random.default_rng(number).integers(100, 256, shape).astype(np.uint8)
        write_dicom(folder / f"i{number:02}.dcm", pixels, PixelSpacing=[0.5, 0.5])
        rows.append((f"i{number:02}", mask(shape, number) if number % 2 else "-1"))
    write_labels(folder / "train-rle.csv", rows, header)


def test_images_of_any_shape_are_padded_and_their_masks_stay_on_them(tmp_path, out):
    def left_half(shape, number):
        # The image's left half, drawn in the canonical frame as the image lies in it.
        canonical = np.zeros((1024, 1024), np.uint8)
        side = max(shape)
        top, left = ((side - length) // 2 * 1024 // side for length in shape)
        rows, columns = (length * 1024 // side for length in shape)
        canonical[top : top + rows, left : left + columns // 2] = 1
        return rle.encode(canonical)

    shaped(tmp_path / "data", left_half)
    summary = prepare(tmp_path / "data", out, [32, 64, 160])
    assert (summary.images, summary.set_aside) == (12, 0)
    assert "10 images are not square; black was added on both sides to make a square." in summary.notes
    assert "10 images are smaller than 160 pixels and were enlarged." in summary.notes
    prepared = load_prepared(out)
    for number, row in enumerate(prepared.cases.itertuples()):
        shape = SHAPES[number // 2 % len(SHAPES)]
        assert (row.rows, row.columns, row.pixel_spacing_mm) == (*shape, 0.5)
        image = cv2.imread(str(prepared.image_path(row.image_id, 160)), -1)
        assert image.shape == (160, 160)
        # Noise above 100 on black: what is bright is the image, in the middle of the square.
        height, width = (length * 160 / max(shape) for length in shape)
        bright = image > 50
        assert np.flatnonzero(bright.any(axis=1))[[0, -1]] == pytest.approx([80 - height / 2, 79 + height / 2], abs=1.5)
        assert np.flatnonzero(bright.any(axis=0))[[0, -1]] == pytest.approx([80 - width / 2, 79 + width / 2], abs=1.5)
        if row.pneumothorax:
            mask = cv2.imread(str(prepared.mask_path(row.image_id, 160)), -1) > 0
            half = bright.copy()
            half[:, 80:] = False
            assert np.logical_xor(mask, half).sum() <= 2 * 160 + 2 * width
    truth = prepared.truth.set_index("image_id")
    assert truth.at["i00", "pixel_spacing_mm"] == pytest.approx(0.5 * 80 / 1024, abs=1e-6), "of the masks' grid"
    assert prepare(tmp_path / "data", out, [32, 64, 160]).rendered == 0, "the columns are read back"


def test_other_views_are_set_aside_by_their_tags_or_let_in(data, tmp_path):
    lateral = write_dicom(data / "lateral.dcm", radiograph(1), uid="9.1", ViewPosition="LL")
    write_dicom(data / "hand.dcm", radiograph(2), uid="9.2", BodyPartExamined="HAND")
    with (data / "train-rle.csv").open("a") as stream:
        stream.write("9.1,-1\n9.2,-1\n")
    assert prepare(data, tmp_path / "some", [64]).images == 12
    assert "the view LL, which is not frontal; --any-view lets it in" in set_aside(tmp_path / "some", lateral.name)
    assert "body part HAND" in set_aside(tmp_path / "some", "hand.dcm")
    everything = LabelOptions(any_view=True)
    assert prepare(data, tmp_path / "all", [64], options=everything).images == 14
    with pytest.raises(PneumoError, match=r"choice of views \(--any-view\) differ"):
        prepare(data, tmp_path / "some", [64], options=everything)


def test_makers_that_files_name_come_into_a_table_of_their_own(data, out):
    assert prepare(data, out, [64]).images == 12
    assert not (out / "makers.csv").exists(), "no file names one"
    for uid, maker in (("9.1", "Acme Röntgen"), ("9.2", " ACME")):
        write_dicom(
            data / f"{uid}.dcm",
            radiograph(int(uid[-1])),
            uid=uid,
            Manufacturer=maker,
            SpecificCharacterSet="ISO_IR 192",
        )
    with (data / "train-rle.csv").open("a") as stream:
        stream.write("9.1,-1\n9.2,-1\n")
    prepare(data, out.with_name("named"), [64])
    table = pd.read_csv(out.with_name("named") / "makers.csv", dtype=str)
    assert list(table.itertuples(index=False, name=None)) == [("9.1", "Acme Röntgen"), ("9.2", "ACME")]
    truth = read_truth(out.with_name("named"), subset="all")
    makers = attributes_of(truth, out.with_name("named"))["maker"]
    assert makers.value_counts().to_dict() == {"unknown": 12, "ACME RÖNTGEN": 1, "ACME": 1}


def test_a_folder_of_an_older_version_is_read_and_goes_on_as_it_is(data, out):
    prepare(data, out, [32])
    without_key(out, [f"tag-{number}" for number in range(12)])
    older = out / "cases.csv"
    table = pd.read_csv(older, dtype=str, keep_default_na=False).drop(columns=["rows", "columns"])
    table.to_csv(older, index=False, lineterminator="\n")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["tables"]["cases.csv"] = sha256_file(older)
    manifest["prepared_sha256"] = prepared_sha256(manifest["tables"], manifest["pixels"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    before = older.read_bytes()
    assert "rows" not in load_prepared(out).cases
    again = prepare(data, out, [64])
    assert (older.read_bytes(), again.prepared_sha256) == (before, manifest["prepared_sha256"])
    verify_files(load_prepared(out), 64)


GOLDEN = "02ce91dbe846ada09b546c0f465cd9151f4157fc44b140e5cdea0a383993ff2f"
"""Of the images and masks of 24 phantoms at 64 and 512 pixels, as the version before radiographs of any shape made
them; SHA-256 over names and decoded pixels."""


def test_square_radiographs_of_1024_pixels_give_the_same_bytes_as_ever(tmp_path):
    write_phantoms(tmp_path / "phantoms", PhantomSettings(images=24, seed=3, positive_rate=0.5), workers=1)
    prepare(tmp_path / "phantoms", tmp_path / "prepared", [64, 512], workers=1)
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "prepared").glob("*_*/*.png")):
        digest.update(path.relative_to(tmp_path / "prepared").as_posix().encode())
        digest.update(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes())
    assert digest.hexdigest() == GOLDEN
    assert load_prepared(tmp_path / "prepared").manifest["synthetic"] is True


KILL = """
import os, signal, sys
from pathlib import Path
from keras_pneumo.data.prepared import manifest, prepare as preparation
from keras_pneumo.storage import files

def die(*ignored):
    os.kill(os.getpid(), signal.SIGKILL)

data, out, when, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
progress = None
if when.isdigit():
    progress = lambda done, total: die() if done == int(when) else None
elif when == "mid-file":
    preparation.map_files = lambda function, jobs, *_, **settings: ((job, function(job)) for job in jobs)
    real, left = os.replace, [9]
    class Counting(type(Path())):
        def replace(self, target):
            left[0] -= 1
            return die() if left[0] == 0 else super().replace(target)
    files.Path = Counting
elif when == "tables":
    manifest.truth_table = die
elif when == "manifest":
    manifest.write_json = die
if __name__ == "__main__":
    preparation.prepare(data, out, [32, 64], workers=workers, progress=progress)
"""


@pytest.mark.parametrize(
    ("when", "workers"), [("0", 1), ("5", 1), ("7", 2), ("12", 1), ("mid-file", 1), ("tables", 1), ("manifest", 1)]
)
def test_row_16_killed_and_started_again_gives_the_same_bytes(data, out, tmp_path, when, workers):
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, script, data, out, when, str(workers)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    with pytest.raises(PneumoError, match="not a finished prepared folder"):
        load_prepared(out)
    summary = prepare(data, out, [32, 64])
    finished = {"0": 0, "5": 5, "7": 7, "12": 12, "tables": 12, "manifest": 12}.get(when)
    # An image that was done but not yet noted is made again; never the other way round.
    assert finished is None or 12 - finished <= summary.rendered <= 12 - finished + 1
    prepare(data, tmp_path / "unbroken", [32, 64], pseudonym_key=out)
    assert hashes(out) == hashes(tmp_path / "unbroken")


def test_torn_journal_line_is_dropped(data, out, tmp_path):
    prepare(data, tmp_path / "unbroken", [32])
    with pytest.raises(RuntimeError, match="stop"):
        prepare(
            data, out, [32], progress=lambda done, total: stop() if done == 6 else None,
            pseudonym_key=tmp_path / "unbroken",
        )  # fmt: skip
    journal = out / ".journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert prepare(data, out, [32]).rendered == 7
    assert hashes(out) == hashes(tmp_path / "unbroken")


def stop():
    raise RuntimeError("stop")


def test_row_29_ctrl_c_leaves_a_folder_that_goes_on(data, out):
    def interrupt(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data, out, [32], progress=interrupt)
    assert prepare(data, out, [32]).rendered == 8


def test_unfinished_folder_of_other_data_is_refused(data, out):
    with pytest.raises(RuntimeError):
        prepare(data, out, [32], progress=lambda done, total: stop() if done == 6 else None)
    with pytest.raises(PneumoError, match="the seed differ"):
        prepare(data, out, [32], seed=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "missing or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "missing or damaged"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
            "missing or damaged",
        ),
        (lambda path: path.write_bytes(b""), "missing or damaged"),
    ],
    ids=["missing", "truncated", "flipped bit", "empty"],
)
@pytest.mark.parametrize("folder", ["images_32", "masks_32"])
def test_row_14_damaged_files_are_named_and_repaired(data, out, damage, message, folder):
    prepare(data, out, [32, 64])
    before = hashes(out)
    victim = sorted((out / folder).iterdir())[1]
    damage(victim)
    prepared = load_prepared(out)
    verify_files(prepared, 64)
    with pytest.raises(PneumoError, match=message) as error:
        verify_files(prepared, 32)
    assert f"{folder}/{victim.name}" in str(error.value)
    assert "keras-pneumo prepare" in str(error.value)
    others = [image_id for image_id in prepared.cases["image_id"] if image_id != victim.stem]
    verify_files(prepared, 32, others)
    assert prepare(data, out, [32]).rendered == 1
    assert hashes(out) == before


@pytest.mark.parametrize("table", ["cases.csv", "split.csv", "truth.csv", "quarantine.csv"])
def test_row_15_edited_table_is_refused_and_mended(data, out, table):
    prepare(data, out, [32])
    before = hashes(out)
    text = (out / table).read_text()
    (out / table).write_text(text.replace("train", "test", 1) if table == "split.csv" else text + "\n")
    with pytest.raises(PneumoError, match=f"{table} was changed"):
        load_prepared(out)
    (out / table).unlink()
    with pytest.raises(PneumoError, match=f"{table} cannot be read"):
        load_prepared(out)
    prepare(data, out, [32])
    assert hashes(out) == before


def test_edited_manifest_is_refused(data, out):
    prepare(data, out, [32])
    manifest = json.loads((out / "manifest.json").read_text())
    image_id = next(iter(manifest["pixels"]))
    for change in ({"pixels": {**manifest["pixels"], image_id: "0" * 64}}, {"split_sha256": "0" * 64}):
        (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(PneumoError, match="its hashes do not fit"):
            load_prepared(out)


@pytest.mark.parametrize(
    ("content", "part"), [("{", "not JSON"), ("[]", "not of format 1"), ('{"format": 2}', "not of format 1"),
                          ('{"format": 1}', "lacks the hashes")]
)  # fmt: skip
def test_manifests_that_are_none(data, out, content, part):
    prepare(data, out, [32])
    (out / "manifest.json").write_text(content)
    with pytest.raises(PneumoError, match=part):
        load_prepared(out)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("sizes", None, "lacks the sizes"),
        ("sizes", ["32"], "cannot be used. sizes"),
        ("vanished", [], "cannot be used. vanished"),
    ],
)
def test_a_manifest_that_lost_an_entry_is_refused(data, out, key, value, part):
    prepare(data, out, [32])
    manifest = json.loads((out / "manifest.json").read_text()) | {key: value}
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PneumoError, match=part):
        load_prepared(out)


def test_damaged_manifest_is_mended(data, out):
    prepare(data, out, [32])
    before = hashes(out)
    (out / "manifest.json").write_text("{")
    prepare(data, out, [32])
    assert hashes(out) == before


def test_split_that_leaks_is_refused_even_with_fitting_hashes(data, out, monkeypatch):
    def leaking(cases, seed=0):
        split = make_split(cases, seed)
        return split.assign(patient_id="everyone")

    monkeypatch.setattr("keras_pneumo.data.prepared.manifest.make_split", leaking)
    prepare(data, out, [32])
    with pytest.raises(PneumoError, match="more than one subset"):
        load_prepared(out)


def test_row_15_other_labels_images_patients_or_seed_are_refused(data, out):
    prepare(data, out, [32])
    before = hashes(out)
    labels = (data / "train-rle.csv").read_bytes()
    ids = sorted(read_labels(data / "train-rle.csv").images)
    table = write_labels(data.parent / "who.csv", [(i, i) for i in ids], header=("ImageId", "patient_id"))
    for options, part in [({"seed": 1}, "the seed differ"), ({"patients": table}, "the patient table differ")]:
        with pytest.raises(PneumoError, match=part) as error:
            prepare(data, out, [32], **options)
        assert "--out" in str(error.value)
    (data / "train-rle.csv").write_bytes(labels + b"\n")
    with pytest.raises(PneumoError, match="the labels differ"):
        prepare(data, out, [32])
    (data / "train-rle.csv").write_bytes(labels)
    write_png(data / "png" / "one more.png", radiograph(99))
    with pytest.raises(PneumoError, match="the images differ"):
        prepare(data, out, [32])
    assert hashes(out) == before


def test_size_that_was_not_prepared(data, out):
    prepare(data, out, [32])
    with pytest.raises(PneumoError, match=r"no images of 64 pixels, only 32.*--size 64"):
        verify_files(load_prepared(out), 64)
    with pytest.raises(PneumoError, match="has no image x"):
        verify_files(load_prepared(out), 32, ["x"])


# -- faults ------------------------------------------------------------------------------------------------------------


def test_bad_files_are_set_aside_each_with_its_reason(data, out):
    bad = data / "bad"
    bad.mkdir()
    (bad / "empty.dcm").write_bytes(b"")
    (bad / "text.dcm").write_bytes(b"hello")
    whole = write_dicom(bad / "cut.dcm", radiograph(1), uid="cut").read_bytes()
    (bad / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    write_dicom(bad / "huge.dcm", radiograph(1), uid="9.1", Rows=60000, Columns=60000)
    write_dicom(bad / "colour.dcm", radiograph(1), uid="9.2", PhotometricInterpretation="RGB")
    write_png(bad / "wide.png", radiograph(1)[:15])
    write_png(bad / "small.png", radiograph(1, 31))
    names = ["9.1", "9.2", "wide", "small", "cut", "text", "empty"]
    with (data / "train-rle.csv").open("a") as stream:
        stream.writelines(f"{name},-1\n" for name in names)
    summary = prepare(data, out, [64])
    assert summary.images == 12
    for file, part in {
        "bad/empty.dcm": "empty", "bad/text.dcm": "no DICOM file", "bad/cut.dcm": "bytes of pixels where",
        "bad/huge.dcm": "60000 rows", "bad/colour.dcm": "RGB", "bad/wide.png": "15 rows and 64 columns",
        "bad/small.png": "31 rows and 31 columns; a radiograph has at least 32",
    }.items():  # fmt: skip
        assert part in set_aside(out, file)
    assert summary.set_aside == len(quarantine(out)) == load_prepared(out).manifest["counts"]["set_aside"]
    assert prepare(data, out, [64]).rendered == 0  # what failed is known, and not tried again


def test_a_positive_label_without_a_mask_is_set_aside(data, out):
    labels = data / "train-rle.csv"
    header, *rows = labels.read_text().splitlines()
    positive = {row.split(",")[0] for row in rows if not row.endswith("-1")}
    victim = sorted(positive)[0]
    table = [f"{row},{int(row.split(',')[0] in positive)}" for row in rows if not row.startswith(f"{victim},")]
    labels.write_text("\n".join([f"{header},pneumothorax", *table, f"{victim},-1,1"]) + "\n")
    assert prepare(data, out, [32]).images == 11
    assert quarantine(out)["reason"].tolist() == [
        "train-rle.csv says that there is a pneumothorax, but has no mask of it"
    ]


def test_bad_label_rows_are_set_aside_with_file_and_row(data, out):
    text = (data / "train-rle.csv").read_text().splitlines()
    text[3] = text[3].split(",")[0] + ",5 -3"
    (data / "train-rle.csv").write_text("\n".join(text) + "\n")
    image_id = text[3].split(",")[0]
    summary = prepare(data, out, [32])
    table = quarantine(out)
    row = table[table["row"] == 4].iloc[0]
    assert (row["file"], "length -3" in row["reason"], image_id in row["reason"]) == ("train-rle.csv", True, True)
    assert "(row 4) cannot be used" in set_aside(out, next(data.rglob(f"{image_id}.*")).relative_to(data).as_posix())
    assert summary.images == 11


def test_row_10_the_same_bytes_twice_are_a_note(data, out):
    original = sorted(data.rglob("*.dcm"))[0]
    (data / "z").mkdir()
    shutil.copy(original, data / "z" / "again.dcm")
    summary = prepare(data, out, [32])
    assert summary.images == 12
    assert any("z/again.dcm is a copy of" in note for note in summary.notes)
    assert summary.set_aside == 0


def test_row_10_one_uid_on_different_images_refuses_both(data, out):
    original = sorted(data.rglob("*.dcm"))[0]
    write_dicom(data / "z" / "other.dcm", radiograph(77), uid=original.stem)
    summary = prepare(data, out, [32])
    assert summary.images == 11
    assert "different files" in set_aside(out, "z/other.dcm")
    assert "z/other.dcm" in set_aside(out, original.relative_to(data).as_posix())


def test_row_12_image_without_label_and_label_without_image(data, out):
    write_png(data / "nobody.png", radiograph(5))
    with (data / "train-rle.csv").open("a") as stream:
        stream.write("nothing,5 3\n")
    summary = prepare(data, out, [32])
    assert "no row of train-rle.csv names it" in set_aside(out, "nobody.png")
    assert "no file for image nothing" in set_aside(out, "train-rle.csv")
    assert quarantine(out).set_index("file").loc["train-rle.csv", "row"] == 20
    assert summary.set_aside == 2


def test_second_stage_files_go_by_their_name(tmp_path, out):
    folder = tmp_path / "data"
    rows = [(f"ID_{number}", block(number) if number % 2 else "-1") for number in range(10)]
    for number in range(10):
        write_dicom(folder / f"ID_{number}.dcm", radiograph(number), uid=f"1.2.3.{number}")
    write_labels(folder / "stage_2_train.csv", rows)
    assert prepare(folder, out, [32]).images == 10
    assert set(load_prepared(out).cases["image_id"]) == {f"ID_{number}" for number in range(10)}


@pytest.mark.parametrize("uid", ["../../escaped", "a/b", ".hidden", "-rf", "x" * 200, "nul\0l", "line\nbreak"])
def test_row_46_a_uid_that_cannot_name_a_file_is_refused(data, out, uid):
    save(dicom(radiograph(1), uid), data / "evil.dcm")
    with (data / "train-rle.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow([uid, "-1"])  # with a label it would be used
    assert prepare(data, out, [32]).images == 12
    cleaned = not uid.isprintable()  # of control characters, before it is looked for in the labels
    assert set_aside(out, "evil.dcm").startswith("no row of" if cleaned else "its image id ")
    assert not list(out.parent.rglob("*escaped*"))


def test_row_28_names_with_spaces_and_other_letters(tmp_path, out):
    folder = tmp_path / "Aufnahmen für später"
    ids = [f"plicní snímek č. {number}" for number in range(10)]
    for number, image_id in enumerate(ids):
        write_png(folder / "sub folder" / f"{image_id}.png", radiograph(number))
    write_labels(folder / "train-rle.csv", [(i, block(n) if n % 2 else "-1") for n, i in enumerate(ids)])
    assert prepare(folder, out / "výstup x", [32]).images == 10
    verify_files(load_prepared(out / "výstup x"), 32)
    assert sorted(load_prepared(out / "výstup x").cases["image_id"]) == sorted(ids)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_set_aside(data, out):
    odd = os.fsdecode(b"caf\xe9")
    write_png(data / "png" / f"{odd}.png", radiograph(99))
    (data / f"mask {odd}").mkdir()
    write_dicom(data / odd / "1.2.276.99.5.dcm", radiograph(98))
    assert prepare(data, out, [32]).images == 12
    assert "cannot be the name of a file" in set_aside(out, "png/caf\\udce9.png")
    assert "no row of" in set_aside(out, "caf\\udce9/1.2.276.99.5.dcm")
    assert [name for _, name in find_files([data / "png"]).files if "caf" in name] == ["caf\\udce9.png"]


def test_row_9_a_missing_decoder_is_said_once_before_any_work(data, out, monkeypatch):
    monkeypatch.setitem(decoders.DECODERS, "1.2.840.10008.1.2.4.50", ("gdcm", "python-gdcm"))
    with pytest.raises(PneumoError, match=r"4 are stored as JPEG Baseline.*pip install python-gdcm"):
        prepare(data, out, [32])
    assert not list(out.glob("images_*"))


def test_nothing_usable(tmp_path, out):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PneumoError, match="no DICOM, PNG or JPEG file"):
        prepare(tmp_path / "empty", out, [32])
    (tmp_path / "empty" / "a.nii.gz").write_bytes(b"x")
    with pytest.raises(
        PneumoError, match=r"no DICOM, PNG or JPEG file\. a\.nii\.gz: images of this format are not read"
    ):
        prepare(tmp_path / "empty", out, [32])
    (tmp_path / "empty" / "a.dcm").write_bytes(b"rubbish")
    write_labels(tmp_path / "empty" / "train-rle.csv", [("a", "-1")])
    with pytest.raises(PneumoError, match=r"None of the 1 files .* no DICOM file"):
        prepare(tmp_path / "empty", out, [32])


def test_images_without_any_label_file(data, out):
    (data / "train-rle.csv").unlink()
    with pytest.raises(PneumoError, match=r"No label csv .*--labels"):
        prepare(data, out, [32])


def test_nothing_that_can_be_decoded(tmp_path, out):
    for number in range(12):
        write_png(tmp_path / f"data/i{number}.png", radiograph(number, 31))
    write_labels(tmp_path / "data/train-rle.csv", [(f"i{n}", block(n) if n % 2 else "-1") for n in range(12)])
    with pytest.raises(PneumoError, match="None of the 12 labelled images can be prepared: it has 31 rows"):
        prepare(tmp_path / "data", out, [128])


@pytest.mark.parametrize("sizes", [[], [0], [31], [1025], [256, 2048], [-5]])
def test_sizes_out_of_range(data, out, sizes):
    with pytest.raises(PneumoError, match="between 32 and 1024"):
        prepare(data, out, sizes)
    assert not out.exists()


def test_too_few_images_are_said_before_any_decoding(tmp_path, out):
    write_siim(tmp_path / "data", count=4)
    with pytest.raises(PneumoError, match="4 images of 4 patients: 2 positive"):
        prepare(tmp_path / "data", out, [32])
    assert not list(out.glob("images_*"))


def test_row_25_two_runs_in_one_folder(data, out):
    out.mkdir()
    with folder_lock(out), pytest.raises(PneumoError, match="Another run is working"):
        prepare(data, out, [32])
    assert prepare(data, out, [32]).images == 12


def test_folder_with_other_files_is_left_alone(data, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("...")
    with pytest.raises(PneumoError, match="holds other files"):
        prepare(data, tmp_path / "thesis", [32])
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    with pytest.raises(PneumoError, match="is a file"):
        prepare(data, tmp_path / "thesis" / "chapter.txt", [32])


@pytest.mark.parametrize(("name", "text"), [("cases.csv", "case,verdict\n"), ("manifest.json", '{"format": 3}')])
def test_a_folder_of_other_files_with_one_name_of_a_prepared_folder_is_refused(data, out, name, text):
    theirs = {name: text, "video.mkv.part": "half a video", "thesis.txt": "..."}
    out.mkdir()
    for name, content in theirs.items():
        (out / name).write_text(content)
    before = hashes(out)
    with pytest.raises(PneumoError, match="holds other files"):
        prepare(data, out, [32])
    assert hashes(out) == before


def test_a_note_beside_a_prepared_folder_stays_and_harms_nothing(data, out):
    prepare(data, out, [32])
    (out / "notes.txt").write_text("mine")
    (out / "contact_sheet.png").write_text("")
    assert prepare(data, out, [32]).rendered == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(is_root, reason="root may write everywhere")
def test_row_28_no_right_to_write(data, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(PneumoError, match="Permission denied"):
        prepare(data, tmp_path / "closed" / "out", [32])


def test_row_28_no_right_to_write_is_one_sentence(data, out, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(PneumoError, match=r"Cannot write .* Permission denied. Give yourself the right"):
        prepare(data, out, [32])


def test_row_28_read_only_data_folder_is_enough(data, out):
    for path in [*data.rglob("*"), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = hashes(data)
    try:
        assert prepare(data, out, [32]).images == 12
    finally:
        for path in [data, *data.rglob("*")]:
            path.chmod(0o755)
    assert hashes(data) == before


def in_this_process(function, items, *_settings, **_named):
    """As ``map_files``, where a test's patches hold."""
    return ((item, function(item)) for item in items)


def test_row_18_full_disk_ends_the_run_and_loses_nothing(data, out, monkeypatch):
    prepare(data, out, [64])
    before = hashes(out)
    real, left = os.replace, [8]

    def full(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "map_files", in_this_process)
        patch.setattr(Path, "replace", full)
        with pytest.raises(PneumoError, match=r"images_32|masks_32.*No space left on device. Free some space"):
            prepare(data, out, [32])
    after = hashes(out)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".part")]
    verify_files(load_prepared(out), 64)
    assert 0 < prepare(data, out, [32]).rendered < 12


def test_file_that_kills_its_process_costs_that_file_alone(data, out, monkeypatch):
    # Spawned workers import the function by its name, so the fatal one lives in a module of the tests.
    import fatal_render

    victim = sorted(path.name for path in data.rglob("*.dcm"))[2]
    monkeypatch.setenv("FATAL_FILE", victim)
    monkeypatch.setattr(preparation, "render", fatal_render.render)
    summary = prepare(data, out, [32], workers=2)
    assert summary.images == 11
    assert "reading it crashed" in quarantine(out)["reason"].iloc[0]
    assert victim in quarantine(out)["file"].iloc[0]


# -- the real radiographs ----------------------------------------------------------------------------------------------


@needs_real
def test_real_radiographs(out):
    patients = REAL / "siim_tables" / "nih_id.csv"
    summary = prepare(REAL / "siim_mini", out, [128, 256], patients=patients)
    assert (summary.images, summary.positive, summary.patients) == (88, 40, 78)
    table = quarantine(out)
    assert set(table["file"]) == {"monochrome1_example.dcm", "monochrome2_twin_of_example.dcm"}
    assert table["reason"].str.contains("6904").all()
    prepared = load_prepared(out)
    verify_files(prepared, 256)
    assert prepared.manifest["source"]["labels"]["file"] == "train-rle.csv"
    assert prepared.manifest["decoder"] == {"1.2.840.10008.1.2.4.50": "pillow"}
    assert prepared.manifest["vanished_masks"] == {"128": 1, "256": 0}


def test_the_folder_with_a_split_is_found_among_others(tmp_path):
    for name, manifest in (
        ("a_broken", "{"),
        ("b_other", '{"format": 1, "split_sha256": "eee", "sizes": [64]}'),
        ("c_smaller", '{"format": 1, "split_sha256": "abc", "sizes": [64]}'),
        ("d_right", '{"format": 1, "split_sha256": "abc", "sizes": [64, 128]}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(manifest)
    assert find_prepared(tmp_path, "abc", [64]) == tmp_path / "c_smaller"
    assert find_prepared(tmp_path, "abc", [128, 64]) == tmp_path / "d_right"
    assert find_prepared(tmp_path / "b_other", "abc", [64]) == tmp_path / "b_other"  # what is named is taken
    with pytest.raises(PneumoError, match=r"none with the split fff.*b_other has the split eee.*PREPARED="):
        find_prepared(tmp_path, "fff", [64])
    with pytest.raises(PneumoError, match=r"images of 256 pixels.*c_smaller lacks a size"):
        find_prepared(tmp_path, "abc", [256])
    with pytest.raises(PneumoError, match="holds none"):
        find_prepared(tmp_path / "nowhere", "abc", [64])


# -- masks of another grid than their image's --------------------------------------------------------------------------


def test_a_mask_of_other_proportions_than_its_image_is_set_aside_and_a_scaled_one_is_not(tmp_path, out):
    shapes = {
        "same": (60, 80),
        "half": (30, 40),
        "rounded": (37, 49),
        "double": (120, 160),
        "square": (64, 64),
        "turned": (80, 60),
    }
    for number, (name, shape) in enumerate(shapes.items()):
        write_png(tmp_path / "data" / f"{name}.png", radiograph(number, 80)[:60])
        mask = np.zeros(shape, np.uint8)
        mask[: shape[0] // 2, : shape[1] // 2] = 255
        write_png(tmp_path / "data" / f"{name}_mask.png", mask)
    for number in range(6):
        write_png(tmp_path / "data" / f"none{number}.png", radiograph(9 + number))
    prepare(tmp_path / "data", out, [64], options=LabelOptions(blank="negative"))
    cases = load_prepared(out).cases
    assert set(cases.loc[cases["pneumothorax"] == 1, "image_id"]) == {"same", "half", "rounded", "double"}
    for name in ("same", "half", "rounded", "double"):
        mask = cv2.imread(str(out / "masks_64" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 0
        expected = np.zeros((64, 64), bool)
        expected[8:32, :32] = True  # 10 of 80 rows are black above the image
        assert np.count_nonzero(mask != expected) <= 24 + 32, name  # a pixel at its right and lower edge
    for name, (rows, columns) in {"square": (64, 64), "turned": (80, 60)}.items():
        assert set_aside(out, f"{name}.png") == (
            f"its mask has {rows} rows and {columns} columns, the image 60 and 80: the proportions differ, so where "
            "the mask lies is not known"
        )


def test_run_length_masks_of_another_size_are_prepared_by_the_size_that_is_said(data, out, tmp_path):
    table = pd.read_csv(data / "train-rle.csv", skipinitialspace=True)
    table.columns = ["ImageId", "EncodedPixels"]

    def at(text, size):  # first at 512, so that both tables draw the same
        return text if rle.is_empty(text) else rle.encode(resize_mask(resize_mask(rle.decode(text), 512), size))

    for name, size in (("half", 512), ("whole", 1024)):
        texts = [at(text, size) for text in table["EncodedPixels"].astype(str)]
        table.assign(EncodedPixels=texts).to_csv(tmp_path / f"{name}.csv", index=False)
    options = options_of(mask_size="512x512")
    prepare(data, out, [64], labels=tmp_path / "half.csv", options=options)
    prepare(data, tmp_path / "whole", [64], labels=tmp_path / "whole.csv")
    folders = [folder / "masks_64" for folder in (out, tmp_path / "whole")]
    assert hashes(folders[0]) == hashes(folders[1]) != {}
    assert load_prepared(out).manifest["labels"][0]["mask_size"] == "512x512"
    folder = tmp_path / "plain"
    write_png(folder / "a.png", radiograph(1))
    (folder / "labels.csv").write_text("image,label\na.png,1\n")
    with pytest.raises(PneumoError, match="--mask-size is for tables of run-length masks"):
        prepare(folder, tmp_path / "no", [64], options=options)
    with pytest.raises(PneumoError, match="--mask-size is ROWSxCOLUMNS, for example 512x512, not '512'"):
        options_of(mask_size="512")


# -- studies of several radiographs ------------------------------------------------------------------------------------


def test_radiographs_of_one_study_stay_in_one_subset(tmp_path, out):
    data = tmp_path / "data"
    rows = []
    for number in range(24):
        uid = f"1.2.9.{number}"
        write_dicom(data / f"{number}.dcm", radiograph(number), uid, StudyInstanceUID=f"1.2.8.{number // 2}")
        rows.append((uid, "0 500" if number // 2 % 2 else "-1"))
    write_labels(data / "train-rle.csv", rows)
    assert prepare(data, out, [32]).patients == 12
    split = load_prepared(out).split.set_index("image_id")
    for number in range(0, 24, 2):
        pair = split.loc[[f"1.2.9.{number}", f"1.2.9.{number + 1}"]]
        assert pair[["patient_id", "subset", "fold"]].drop_duplicates().shape[0] == 1
    assert not any("1.2.8." in (out / name).read_text() for name in ("cases.csv", "split.csv", "manifest.json"))


# -- pseudonyms of patients and their key ------------------------------------------------------------------------------

TAGGED_SPLIT = "tr3 tr3 tr1 tr1 tr4 tr4 tr4 tr4 te-1 te-1 te-1 te-1 va0 tr1 tr1 tr2 tr2 va0 va0 va0 tr2 tr2 tr3 tr3"
"""How the last version without keys (065a5a7) split 24 files of the patients MRN 0 to MRN 11."""


@pytest.fixture
def tagged(tmp_path):
    """24 DICOM files, two of each patient, whom only PatientID tells."""
    write_siim(tmp_path / "tagged", 24, kinds=("dicom", "jpeg"))
    for path in (tmp_path / "tagged").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = f"MRN {int(dataset.PatientID[4:]) // 2}"
        dataset.save_as(path)
    return tmp_path / "tagged"


def test_pseudonyms_have_a_key_and_nothing_else_depends_on_it(tagged, out, tmp_path):
    summaries = [prepare(tagged, folder, [32], workers=1) for folder in (out, tmp_path / "other")]
    one, two = (load_prepared(folder) for folder in (out, tmp_path / "other"))
    assert one.manifest["pseudonym_key"] == read_key(out).fingerprint != two.manifest["pseudonym_key"]
    assert set(map(key_of, one.cases["patient_id"])) == {read_key(out).fingerprint[:8]}
    assert not set(one.cases["patient_id"]) & set(two.cases["patient_id"])
    assert one.cases["patient_id"].iloc[0] == read_key(out).pseudonym(patient_hash("MRN 0"))
    assert summaries[0].split_sha256 == summaries[1].split_sha256
    assert summaries[0].prepared_sha256 == summaries[1].prepared_sha256
    for prepared in (one, two):
        drawn = " ".join(f"{row.subset[:2]}{row.fold}" for row in prepared.split.itertuples())
        assert drawn == TAGGED_SPLIT
        assert prepared.truth["patient_id"].nunique() == 12
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != KEY_FILE)
    assert read_key(out).secret.hex().encode() not in written
    assert not any(patient_hash(f"MRN {number}").encode() in written for number in range(12))
    assert b"MRN" not in written


def test_a_folder_keeps_its_key_and_another_may_share_it(tagged, out, tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        prepare(tagged, out, [32], progress=lambda done, total: stop() if done == 6 else None)
    key = read_key(out)
    prepare(tagged, out, [32])
    before = hashes(out)
    prepare(tagged, out, [32], pseudonym_key=out)
    prepare(tagged, out, [32, 64])
    assert read_key(out) == key
    assert {name: content for name, content in hashes(out).items() if "64" not in name and "json" not in name} == {
        name: content for name, content in before.items() if "json" not in name
    }
    prepare(tagged, tmp_path / "other", [32, 64], pseudonym_key=out / KEY_FILE)
    assert hashes(tmp_path / "other") == hashes(out)


def test_another_key_or_a_lost_one_is_refused_before_anything_is_decoded(tagged, out, tmp_path):
    prepare(tagged, out, [32], workers=1)
    (tmp_path / "mine").mkdir()
    write_key(tmp_path / "mine", new_key())
    before = hashes(out)
    with pytest.raises(PneumoError, match=r"of another key than that in .*mine"):
        prepare(tagged, out, [64], workers=1, pseudonym_key=tmp_path / "mine")
    kept = (out / KEY_FILE).rename(tmp_path / "kept.key")
    with pytest.raises(PneumoError, match=r"pseudonym\.key is missing, .*Put it back.*another folder"):
        prepare(tagged, out, [64], workers=1)
    with pytest.raises(PneumoError, match="of another key"):
        prepare(tagged, out, [64], workers=1, pseudonym_key=tmp_path / "mine")
    assert hashes(out) == {name: content for name, content in before.items() if name != KEY_FILE}
    load_prepared(out)  # a folder is handed on without its key
    prepare(tagged, out, [32], workers=1, pseudonym_key=kept)
    assert hashes(out) == before


def test_a_folder_of_an_earlier_version_stays_as_it_is(tagged, out):
    prepare(tagged, out, [32], workers=1)
    old = without_key(out, [f"MRN {number}" for number in range(12)])
    assert old.cases["patient_id"].iloc[0] == patient_hash("MRN 0")
    before = {name: (out / name).read_bytes() for name in ("cases.csv", "split.csv", "truth.csv")}
    for size in (64, 128):
        summary = prepare(tagged, out, [size], workers=1)
        assert any("of an earlier version: its pseudonyms of patients have no key" in note for note in summary.notes)
        assert summary.prepared_sha256 == old.manifest["prepared_sha256"]
    assert {name: (out / name).read_bytes() for name in before} == before
    assert not (out / KEY_FILE).exists()
    key = out.parent / "key"
    key.mkdir()
    write_key(key, new_key())
    with pytest.raises(PneumoError, match=r"earlier version.*Prepare the data into another folder .* of this key"):
        prepare(tagged, out, [32], workers=1, pseudonym_key=key)


def test_names_of_a_table_are_kept_and_need_no_key(tagged, out, tmp_path):
    ids = [path.stem for path in tagged.rglob("*.dcm")]
    table = write_labels(tmp_path / "who.csv", [(i, f"p{n // 2}") for n, i in enumerate(ids)], ("ImageId", "patient"))
    (tmp_path / "mine").mkdir()
    write_key(tmp_path / "mine", new_key())
    summary = prepare(tagged, out, [32], patients=table, workers=1, pseudonym_key=tmp_path / "mine")
    assert not (out / KEY_FILE).exists()
    assert load_prepared(out).manifest["pseudonym_key"] is None
    assert set(load_prepared(out).cases["patient_id"]) == {f"p{number}" for number in range(12)}
    assert any(note.startswith("--pseudonym-key was not used") for note in summary.notes)


def test_one_key_for_several_folders(tagged, out, tmp_path):
    write_siim(tmp_path / "more", kinds=("dicom",))
    prepare([tagged, tmp_path / "more"], out, [32], workers=1)
    assert set(map(key_of, load_prepared(out).cases["patient_id"])) == {read_key(out).fingerprint[:8]}
