"""Heat maps of radiographs without a prepared folder."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from small_siim import write_dicom

from keras_pneumo.cli import main
from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.errors import PneumoError
from keras_pneumo.explain.files import explain_files, heat_map
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.explain.saliency_check import CheckOptions, explain_prepared
from keras_pneumo.inference.files import pixels_at, predict_files
from keras_pneumo.inference.run import load_model, read_run
from keras_pneumo.storage.files import write_json

pytestmark = pytest.mark.slow


def test_radiographs_as_they_come(tmp_path, run, phantoms, capsys):
    folder = tmp_path / "radiographs"
    folder.mkdir()
    paths = sorted(phantoms.rglob("*.dcm"))[:3]
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.dcm").write_bytes(b"nothing")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["explain", str(run.folder), str(folder), str(paths[0]), "--labels", str(phantoms / "train-rle.csv"),
              "--out", str(out), "--method", "hirescam"])  # fmt: skip
    assert end.value.code == 1
    assert "was not selected on validation" in capsys.readouterr().err
    table = pd.read_csv(out / "explained.csv")
    assert len(table) == 4
    assert table["picture"].is_unique  # the same file twice has two pictures
    for picture in table["picture"]:
        assert cv2.imread(str(out / picture)).shape[1] > 1000
    assert pd.read_csv(out / "quarantine.csv")["file"].tolist() == ["broken.dcm"]
    assert table["hottest_x"].between(0, 1).all()
    predicted, _ = predict_files([run], folder)
    same = table.drop_duplicates("image_id").set_index("image_id")["probability"]
    np.testing.assert_allclose(same.loc[predicted["image_id"]], predicted["probability"], atol=1e-6)


def test_nothing_is_said_of_files_that_an_earlier_call_set_aside(tmp_path, run, phantoms):
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    path = sorted(phantoms.rglob("*.dcm"))[0]
    assert explain_files(run, [path, tmp_path / "broken.dcm"], tmp_path / "out").set_aside[0]["file"] == "broken.dcm"
    assert (tmp_path / "out/quarantine.csv").exists()
    assert explain_files(run, [path], tmp_path / "out").set_aside == []
    assert not (tmp_path / "out/quarantine.csv").exists()


def test_files_are_explained_as_the_check_says_and_as_validation_chose(tmp_path, run, prepared, phantoms, capsys):
    mine = read_run(shutil.copytree(run.folder, tmp_path / "mine"))
    radiograph = sorted(phantoms.rglob("*.dcm"))[0]
    explain_prepared(mine, prepared, mine.folder / "explain", CheckOptions(method="gradcam++", stage=2), resamples=100)
    done = explain_files(mine, [radiograph], tmp_path / "out")
    assert (done.method, done.stage, done.selected) == ("gradcam++", 2, False), "named by a person"
    assert main_code("explain", mine.folder, radiograph, "--out", tmp_path / "out") == 0
    assert "Grad-CAM++ of stage 2 was not selected on validation" in " ".join(capsys.readouterr().err.split())
    path = mine.folder / "explain/explain.json"
    record = json.loads(path.read_text())
    write_json(path, record | {"chosen_on_validation": True})
    done = explain_files(mine, [radiograph], tmp_path / "out")
    assert (done.method, done.stage, done.selected) == ("gradcam++", 2, True)
    other = explain_files(mine, [radiograph], tmp_path / "out", stage=3)
    assert (other.method, other.stage, other.selected) == ("gradcam++", 3, False)
    del record["chosen_on_validation"]
    write_json(path, record)
    with pytest.raises(PneumoError, match="is damaged"):
        explain_files(mine, [radiograph], tmp_path / "out")


def test_maps_of_a_run_of_phantoms_say_so_and_other_views_are_set_aside(tmp_path, run, phantoms, capsys):
    mine = shutil.copytree(run.folder, tmp_path / "mine")
    write_json(mine / "experiment.json", json.loads((mine / "experiment.json").read_text()) | {"synthetic": True})
    write_dicom(tmp_path / "hand.dcm", np.eye(64, dtype=np.uint8) * 255, BodyPartExamined="HAND")
    files = [sorted(phantoms.rglob("*.dcm"))[0], tmp_path / "hand.dcm"]
    assert main_code("explain", mine, *files, "--out", tmp_path / "out") == 1
    words = " ".join(capsys.readouterr().err.split())
    assert "Trained on synthetic radiographs (phantoms). These maps say nothing of real radiographs." in words
    assert pd.read_csv(tmp_path / "out/explained.csv")["trained_on"].tolist() == ["phantoms"]
    assert "body part HAND" in pd.read_csv(tmp_path / "out/quarantine.csv")["reason"][0]
    assert main_code("explain", mine, *files, "--out", tmp_path / "all", "--any-view") == 0
    assert len(pd.read_csv(tmp_path / "all/explained.csv")) == 2


def test_pictures_of_an_earlier_call_are_no_radiographs(tmp_path, run, phantoms):
    path = sorted(phantoms.rglob("*.dcm"))[0]
    (tmp_path / "=1.dcm").write_bytes(path.read_bytes())
    for _ in range(2):
        done = explain_files(run, [tmp_path], tmp_path / "out")
        assert (done.explained, done.set_aside) == (1, [])
    assert pd.read_csv(tmp_path / "out/explained.csv")["file"].tolist() == ["'=1.dcm"]


def main_code(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_the_heat_map_of_one_image_is_that_of_the_network_at_the_images_size(tmp_path, run, phantoms):
    path = min(phantoms.rglob("*.dcm"))
    pixels = read_radiograph(path).pixels
    heat = heat_map(run, path)
    assert (heat.dtype, heat.shape) == (np.float32, pixels.shape)
    assert 0 <= heat.min() < heat.max() <= 1
    small = heat_maps(load_model(run), pixels_at([pixels], 64), "gradcam", 5)[0]
    np.testing.assert_allclose(heat, cv2.resize(small, pixels.shape[::-1], interpolation=cv2.INTER_LINEAR), atol=1e-6)
    for image in (pixels, pixels[..., None], pixels / np.float32(255)):
        np.testing.assert_array_equal(heat_map(run, image), heat)
    other = heat_map(run, pixels, method="hirescam", stage=3, model=load_model(run))
    assert np.abs(other - heat).max() > 0.1
    for image, words in (
        (pixels * 1.0, "from 0 to 1"),
        (pixels[:9, :9], "at least 32 of each"),
    ):
        with pytest.raises(PneumoError, match=words):
            heat_map(run, image)
    with pytest.raises(PneumoError, match="no encoder stage 0"):
        heat_map(run, pixels, stage=0)
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    with pytest.raises(PneumoError, match=r"broken\.dcm cannot be read: "):
        heat_map(run, tmp_path / "broken.dcm")
