"""Tests of masks from any team's probability maps."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.inputs.submission import read_submission
from keras_pneumo.inference.maps import MapSet, PackedMap
from keras_pneumo.inference.postprocess import count_maps, fit_postprocessing, postprocess_maps, read_postprocessing
from keras_pneumo.inference.team_maps import find_maps, fit_team_maps, make_masks, read_map


def blurred(prepared, image_id, generator, side=64):
    """A map like a network's: the true mask, smeared and noisy, with false regions on some images; uint8."""
    mask = cv2.imread(str(prepared.mask_path(image_id, side)), cv2.IMREAD_GRAYSCALE)
    mask = np.zeros((side, side), np.uint8) if mask is None else mask
    if generator.random() < 0.4:
        row, column = generator.integers(0, side - 6, 2)
        mask[row : row + 5, column : column + 4] = generator.integers(60, 250)
    smeared = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5) + generator.normal(0, 3, mask.shape)
    return np.clip(np.rint(smeared), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def team(tmp_path_factory, prepared_folder):
    """A team's folder of maps, and the same maps and image-level probabilities as our own segmenters hold them."""
    folder = tmp_path_factory.mktemp("team") / "maps"
    prepared, generator, sets = load_prepared(prepared_folder), np.random.default_rng(3), {}
    for subset in ("validation", "test"):
        (folder / subset).mkdir(parents=True)
        image_ids = sorted(prepared.subset(subset, fold=0))
        maps = [blurred(prepared, image_id, generator) for image_id in image_ids]
        probability = np.round(generator.random(len(image_ids)), 6)
        for image_id, values in zip(image_ids, maps, strict=True):
            cv2.imwrite(str(folder / subset / f"{image_id}.png"), values)
        table = pd.DataFrame({"image_id": image_ids, "probability": probability})
        table.sample(frac=1, random_state=1).to_csv(folder / f"{subset}.csv", index=False)
        sets[subset] = MapSet(image_ids, [PackedMap.of(values) for values in maps], probability)
    return folder, prepared, sets


def test_the_masks_are_those_that_our_own_segmenters_would_have(team, tmp_path):
    folder, prepared, sets = team
    search = fit_postprocessing(count_maps(sets["validation"], prepared), sets["validation"].image_probability, "x")
    result = make_masks(folder, tmp_path / "out", prepared.folder, team="strangers")
    for name in ("top", "area", "bottom", "component", "gate"):
        assert getattr(result.parameters, name) == getattr(search.parameters, name), name
    assert result.search.dice == search.dice
    submission = read_submission(tmp_path / "out")
    assert submission.info.team == "strangers"
    assert submission.info.task == "joint"
    assert submission.info.threshold == search.parameters.threshold
    for subset, table in (("test", submission.predictions), ("validation", submission.validation)):
        expected = postprocess_maps(sets[subset], search.parameters, sets[subset].image_probability)
        pd.testing.assert_frame_equal(table[expected.columns.tolist()], expected, check_exact=True, check_dtype=False)
    assert (submission.predictions["encoded_pixels"] != "-1").any(), "else nothing was compared"
    assert read_postprocessing(tmp_path / "out/postprocess.json") == result.parameters


def test_the_images_decide_not_the_order_of_rows_and_without_a_csv_there_is_no_gate(team, tmp_path):
    folder, prepared, sets = team
    maps = find_maps(folder / "validation")
    assert list(maps.files) == sets["validation"].image_ids
    np.testing.assert_array_equal(maps.image_probability, sets["validation"].image_probability)
    (tmp_path / "validation").symlink_to(folder / "validation")
    bare = find_maps(tmp_path / "validation")
    assert bare.image_probability is None
    assert fit_team_maps(bare, prepared.folder, components=False).parameters.gate == 0


def test_without_test_maps_only_the_postprocessing_is_fitted_and_it_can_be_applied_later(team, tmp_path):
    folder, prepared, _ = team
    (tmp_path / "maps").mkdir()
    for name in ("validation", "validation.csv"):
        (tmp_path / "maps" / name).symlink_to(folder / name)
    fitted = make_masks(tmp_path / "maps", tmp_path / "fit", prepared.folder / "truth.csv")
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["postprocess.json"]
    (tmp_path / "later").mkdir()
    for name in ("test", "test.csv"):
        (tmp_path / "later" / name).symlink_to(folder / name)
    declared = {"team": "late", "framework": "JAX 1", "task": "segmentation", "seeds": [4], "deterministic": True}
    (tmp_path / "later/submission.json").write_text(json.dumps(declared))
    make_masks(tmp_path / "later", tmp_path / "out", parameters=tmp_path / "fit/postprocess.json")
    submission, whole = read_submission(tmp_path / "out"), tmp_path / "whole"
    assert (submission.info.framework, submission.info.seeds, submission.info.deterministic) == ("JAX 1", [4], True)
    assert submission.info.threshold == fitted.parameters.threshold
    make_masks(folder, whole, prepared.folder)
    assert (whole / "predictions.csv").read_text() == (tmp_path / "out/predictions.csv").read_text()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_floats_are_rounded_to_255ths(tmp_path, dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.save(tmp_path / "a.npy", (levels / 255).astype(dtype)[None, :, :, None])
    np.testing.assert_array_equal(read_map(tmp_path / "a.npy"), levels)
    np.savez_compressed(tmp_path / "a.npz", anything=levels)
    np.testing.assert_array_equal(read_map(tmp_path / "a.npz"), levels)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((8, 8), 1.5), "apply a sigmoid"),
        (np.full((8, 8), np.nan), "not from 0 to 1"),
        (np.zeros((8, 9), np.uint8), "square"),
        (np.zeros((2, 8, 8), np.uint8), "one channel"),
        (np.zeros((1025, 1025), np.uint8), "at most 1024"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.array([["a"]], object), "cannot be read"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(PneumoError, match=words):
        read_map(tmp_path / "a.npy")


def test_damaged_files_are_refused(tmp_path):
    for name, content in (("a.png", b"no picture"), ("a.npy", b""), ("a.npz", b"PK broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PneumoError, match="cannot be read as a probability map"):
            read_map(tmp_path / name)
    np.savez(tmp_path / "two.npz", one=np.zeros((2, 2)), two=np.zeros((2, 2)))
    with pytest.raises(PneumoError, match="2 arrays"):
        read_map(tmp_path / "two.npz")


def test_faults_of_the_folder_are_told(team, tmp_path):
    folder, prepared, sets = team
    with pytest.raises(PneumoError, match="has no maps"):
        find_maps(tmp_path)
    with pytest.raises(PneumoError, match=r"test images.*validation images only"):
        fit_team_maps(find_maps(folder / "test"), prepared.folder)
    with pytest.raises(PneumoError, match="--truth"):
        make_masks(folder, tmp_path / "out")
    first = sets["validation"].image_ids[0]
    maps = tmp_path / "maps"
    (maps / "validation").mkdir(parents=True)
    (maps / "validation" / f"{first}.png").write_bytes((folder / "validation" / f"{first}.png").read_bytes())
    with pytest.raises(PneumoError, match="no folder test"):
        make_masks(maps, tmp_path / "out", parameters=tmp_path / "postprocess.json")
    np.save(maps / "validation" / f"{first}.npy", np.zeros((4, 4)))
    with pytest.raises(PneumoError, match="two maps"):
        find_maps(maps / "validation")
    (maps / "validation" / f"{first}.npy").rename(maps / "validation/stranger.npy")
    with pytest.raises(PneumoError, match=r"no label of 1 maps.*stranger"):
        fit_team_maps(find_maps(maps / "validation"), prepared.folder)
    (maps / "validation/stranger.npy").unlink()
    for rows, words in (
        (f"image_id,probability\n{first},0.5\nother,0.5\n", r"no other.*other"),
        (f"image_id,probability\n{first},0.5\n{first},0.5\n", "comes twice"),
        (f"image_id,probability\n{first},1.5\n", "row 2.*not a number from 0 to 1"),
        (f"image_id,score\n{first},1.5\n", "no column probability"),
    ):
        (maps / "validation.csv").write_text(rows)
        with pytest.raises(PneumoError, match=words):
            find_maps(maps / "validation")


def test_a_gate_needs_the_probabilities_that_it_was_fitted_on(team, tmp_path):
    folder, *_ = team
    rule = {"top": 0.5, "area": 1, "bottom": 0.5, "component": 0, "gate": 0.4, "gate_source": "x"}
    (tmp_path / "postprocess.json").write_text(json.dumps({"rule": rule}))
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/test").symlink_to(folder / "test")
    with pytest.raises(PneumoError, match=r"gate.*test\.csv"):
        make_masks(tmp_path / "maps", tmp_path / "out", parameters=tmp_path / "postprocess.json")
    assert not (tmp_path / "out").exists()


def test_neither_tensorflow_nor_keras_is_imported(team, tmp_path):
    folder, prepared, _ = team
    code = (
        "import sys\nfrom keras_pneumo.cli import main\n"
        f"try:\n    main({['masks', str(folder), '--truth', str(prepared.folder), '--out', str(tmp_path / 'out')]!r})\n"
        "finally:\n    print('IMPORTED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.splitlines()[-1].split()) & {"tensorflow", "keras", "torch"}
    assert "Dice on" in done.stdout
    texts = read_submission(tmp_path / "out").predictions["encoded_pixels"]
    assert all(rle.decode(text).shape == (1024, 1024) for text in texts)
