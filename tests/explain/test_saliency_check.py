"""The check of heat maps: from a run and phantoms to the maps, the tables and the report's section."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from explain_lab import untrained

from keras_pneumo.cli import main
from keras_pneumo.config import SEGMENTER
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.errors import PneumoError
from keras_pneumo.evaluation.report.saliency_report import read_saliency_report
from keras_pneumo.evaluation.scoring.saliency import MAP_SCORES, score_map
from keras_pneumo.explain.gradcam import heat_maps
from keras_pneumo.explain.positives import can_be_checked, pixels_of, positives_of, true_masks
from keras_pneumo.explain.saliency_check import CheckOptions, explain_prepared, select_method
from keras_pneumo.inference.ensemble import predict_classifiers
from keras_pneumo.inference.predictor import predict_passes
from keras_pneumo.inference.run import WEIGHTS, build, load_model, read_run
from keras_pneumo.storage.files import write_json
from keras_pneumo.training.report import report_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def explained(tmp_path_factory, run, prepared):
    folder = tmp_path_factory.mktemp("explain")
    calls = []
    explain_prepared(run, prepared, folder, resamples=200, progress=lambda *now: calls.append(now))
    return folder, calls


def test_the_folder_holds_maps_pictures_and_tables(explained, run, prepared):
    folder, calls = explained
    positives = positives_of(run, prepared, "test")
    assert calls[-1] == (len(positives), len(positives))
    per_image = pd.read_csv(folder / "per_image.csv", dtype={"image_id": str})
    assert per_image["image_id"].tolist() == positives
    assert {path.stem for path in (folder / "overlays").glob("*.png")} == set(positives)
    maps = np.load(folder / "maps.npz", allow_pickle=False)
    record = json.loads((folder / "explain.json").read_text())
    assert maps["maps"].shape == (len(positives), *record["grid"])
    assert maps["image_ids"].tolist() == positives
    assert not list(folder.rglob("*.part"))
    assert "patient_id" not in per_image  # nobody's patient is named


def test_the_figures_are_those_of_the_maps(explained, run, prepared):
    folder, _ = explained
    record = json.loads((folder / "explain.json").read_text())
    positives = positives_of(run, prepared, "test")
    heat = heat_maps(load_model(run), pixels_of(prepared, positives, 64), record["method"], record["stage"])
    masks = true_masks(prepared, positives, 64)
    expected = pd.DataFrame([score_map(*pair) for pair in zip(heat, masks, strict=True)])
    per_image = pd.read_csv(folder / "per_image.csv")
    check = pd.read_csv(folder / "check.csv").set_index(["map", "score"])
    for score in MAP_SCORES:
        np.testing.assert_allclose(per_image[f"{score} (heat map)"], expected[score], atol=1e-6)
        assert check.loc[("heat map", score), "value"] == pytest.approx(expected[score].mean())
        assert check.loc[("heat map", score), "chance"] == pytest.approx(masks.mean())
    assert (check["images"] == len(positives)).all()


def test_validation_chooses_and_only_validation(explained, run, prepared):
    choice = pd.read_csv(explained[0] / "choice.csv")
    assert len(choice) == 15
    assert choice["pointing"].is_monotonic_decreasing
    record = json.loads((explained[0] / "explain.json").read_text())
    assert (record["method"], record["stage"]) == tuple(choice[["method", "stage"]].iloc[0])
    assert record["chosen_on_validation"]
    validation = positives_of(run, prepared, "validation")
    assert set(validation).isdisjoint(positives_of(run, prepared, "test"))
    assert (choice["images"] == len(validation)).all()
    settled = select_method(load_model(run), run, prepared, "gradcam", 4)
    assert settled[["method", "stage"]].to_numpy().tolist() == [["gradcam", 4]]


def test_tubes_are_known_and_counted(explained, prepared):
    shortcuts = pd.read_csv(explained[0] / "shortcuts.csv").set_index("region")
    assert set(shortcuts.index) == {"border", "marker", "chest tube", "words", "leads"}
    assert shortcuts.loc["border", "area"] < 1 - (1 - 2 / 16) ** 2 + 1e-6
    assert shortcuts.loc["marker", "images"] == len(pd.read_csv(explained[0] / "per_image.csv"))
    answers = pd.read_csv(explained[0] / "answers_by_tube.csv")
    counted = answers[answers["tube"] != "difference"]["images"].sum()
    assert counted == len(prepared.subset("test"))


def test_without_a_table_of_devices_the_border_is_all_that_is_known(tmp_path, run, prepared_copy):
    (prepared_copy / "devices.csv").unlink()
    explain_prepared(
        run, load_prepared(prepared_copy), tmp_path / "e", CheckOptions(method="gradcam", stage=4), resamples=100
    )
    assert pd.read_csv(tmp_path / "e" / "shortcuts.csv")["region"].tolist() == ["border"]
    saliency = read_saliency_report(tmp_path / "e")
    assert saliency.tube_accuracy == []
    assert saliency.methods == []
    assert not any("chosen" in sentence for sentence in saliency.sentences)


def test_the_twin_is_scored_alike_and_agrees_with_itself(tmp_path, run, prepared):
    plan = CheckOptions(method="hirescam", stage=3)
    explain_prepared(run, prepared, tmp_path / "one", plan, resamples=100)
    twin = CheckOptions(method="hirescam", stage=3, twin_maps=tmp_path / "one" / "maps.npz")
    explain_prepared(run, prepared, tmp_path / "two", twin, resamples=100)
    record = json.loads((tmp_path / "two" / "explain.json").read_text())
    assert record["twin"] == pytest.approx(
        {"rank_correlation": 1, "lowest": 1, "difference": 0, "same_peak": 1, "logit_difference": 0}
    )
    check = pd.read_csv(tmp_path / "two" / "check.csv").set_index(["map", "score"])["value"]
    assert (check["heat map"] == check["PyTorch twin"]).all()
    assert any("PyTorch twin" in sentence for sentence in read_saliency_report(tmp_path / "two").sentences)


def test_a_segmenter_beside_it_and_its_own_encoder(tmp_path, run, prepared):
    experiment = SEGMENTER.replace(
        name="unet", encoder="resnet18", weights="random", image_size=128, flip_averaging=False
    )
    segmenter = untrained(tmp_path / "unet", experiment, prepared)
    plan = CheckOptions(method="gradcam", stage=4, segmenters=[segmenter])
    explain_prepared(run, prepared, tmp_path / "beside", plan, resamples=100)
    assert "segmenter" in set(pd.read_csv(tmp_path / "beside" / "check.csv")["map"])
    explain_prepared(segmenter, prepared, tmp_path / "own", CheckOptions(method="gradcam", stage=2), resamples=100)
    record = json.loads((tmp_path / "own" / "explain.json").read_text())
    assert record["grid"] == [32, 32]
    assert record["task"] == "segmenter"
    with pytest.raises(PneumoError, match="is not a segmenter"):
        explain_prepared(run, prepared, tmp_path / "no", CheckOptions(segmenters=[run]), resamples=100)


def test_several_segmenters_are_scored_by_their_mean_map(tmp_path, run, prepared):
    sizes = {"small": 64, "large": 128}
    runs = [
        untrained(tmp_path / name, SEGMENTER.replace(name=name, encoder="resnet18", weights="random", image_size=size,
                  flip_averaging=False, seed=size), prepared)
        for name, size in sizes.items()
    ]  # fmt: skip
    plan = CheckOptions(method="gradcam", stage=4, segmenters=runs)
    explain_prepared(run, prepared, tmp_path / "e", plan, resamples=100)
    positives = positives_of(run, prepared, "test")
    maps = []
    for each in runs:
        pixels = pixels_of(prepared, positives, each.experiment.image_size)
        (predicted,) = predict_passes(load_model(each), pixels, flip_averaging=False)
        maps.append(predicted.maps)
    small = np.stack([cv2.resize(each, (128, 128), interpolation=cv2.INTER_LINEAR) for each in maps[0]])
    mean = [cv2.resize(each, (64, 64), interpolation=cv2.INTER_AREA) for each in (small + maps[1]) / 2]
    expected = [score_map(*pair)["auprc"] for pair in zip(mean, true_masks(prepared, positives, 64), strict=True)]
    per_image = pd.read_csv(tmp_path / "e" / "per_image.csv")
    np.testing.assert_allclose(per_image["auprc (segmenter)"], expected, atol=1e-4)
    assert read_saliency_report(tmp_path / "e").panels == 3
    picture = cv2.imread(str(tmp_path / "e" / "overlays" / f"{positives[0]}.png"))
    assert picture.shape[1] > 3 * 500


def test_the_best_of_several_checkpoints_is_shown_and_said(tmp_path, run, prepared):
    experiment = run.experiment.replace(top_k=2)
    mine = untrained(tmp_path / "several", experiment, prepared, threshold=0.5)
    (mine.folder / "checkpoints").mkdir()
    for epoch in (1, 2):
        build(experiment.replace(seed=epoch)).save_weights(mine.folder / f"checkpoints/epoch_{epoch:04d}.weights.h5")
    explain_prepared(mine, prepared, tmp_path / "e", CheckOptions(method="hirescam", stage=2), resamples=100)
    assert "best of its 2 checkpoints" in read_saliency_report(tmp_path / "e").source
    positives = positives_of(mine, prepared, "test")
    heat = heat_maps(load_model(mine), pixels_of(prepared, positives, 64), "hirescam", 2)
    expected = [score_map(*pair)["energy"] for pair in zip(heat, true_masks(prepared, positives, 64), strict=True)]
    per_image = pd.read_csv(tmp_path / "e" / "per_image.csv")
    np.testing.assert_allclose(per_image["energy (heat map)"], expected, atol=1e-6)
    answered = predict_classifiers([mine], prepared, "test").set_index("image_id")["probability"]
    np.testing.assert_allclose(per_image["probability"], answered.loc[positives], atol=1e-6)


def test_without_outlines_a_training_ends_without_the_section(tmp_path, run, prepared):
    mine = read_run(shutil.copytree(run.folder, tmp_path / "mine"))
    shutil.rmtree(mine.folder / "explain", ignore_errors=True)
    test = prepared.cases["image_id"].isin(prepared.subset("test"))
    nowhere = replace(prepared, cases=prepared.cases.assign(mask_pixels=prepared.cases["mask_pixels"].mask(test, 0)))
    assert not can_be_checked(mine, nowhere)
    report_run(mine, nowhere, resamples=100)
    assert "Where it looks" not in (mine.folder / "report.html").read_text()


def test_a_network_that_sees_nothing_is_marked_and_stops_nothing(tmp_path, run, prepared):
    model = load_model(run)
    model.get_layer("fc").set_weights([np.zeros((512, 1)), np.zeros(1)])
    blind = shutil.copytree(run.folder, tmp_path / "blind")
    model.save_weights(blind / WEIGHTS)
    explain_prepared(read_run(blind), prepared, tmp_path / "e", resamples=100)
    saliency = read_saliency_report(tmp_path / "e")
    assert any("not one of these images has any heat" in sentence for sentence in saliency.sentences)
    check = pd.read_csv(tmp_path / "e" / "check.csv").set_index(["map", "score"])
    assert check.loc[("heat map", "pointing"), "above_chance"] == 0


def test_another_split_is_refused(tmp_path, run, prepared):
    other = shutil.copytree(run.folder, tmp_path / "other")
    record = json.loads((other / "experiment.json").read_text())
    write_json(other / "experiment.json", record | {"split_sha256": "0" * 64})
    with pytest.raises(PneumoError, match="may have been trained on"):
        explain_prepared(read_run(other), prepared, tmp_path / "e")


def test_the_report_shows_it_and_the_command_says_it(tmp_path, run, prepared, capsys):
    mine = read_run(shutil.copytree(run.folder, tmp_path / "mine"))
    lines = report_run(mine, prepared, resamples=200).sentences
    assert any(line.startswith("Where it looks") for line in lines)
    page = (mine.folder / "report.html").read_text()
    assert "Where it looks" in page
    assert page.count('class="pair" src="data:image/jpeg;base64,') >= 1
    assert "Chest tube" in page
    with pytest.raises(SystemExit) as end:
        main(["explain", str(mine.folder), str(prepared.folder), "--method", "gradcam", "--stage", "5"])
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert "Grad-CAM of stage 5." in output
    assert "The hottest pixel lies in the true outline on" in output
    assert "Where it looks: Grad-CAM of stage 5" in (mine.folder / "report.html").read_text()
    shutil.rmtree(mine.folder / "submission")
    with pytest.raises(SystemExit) as end:
        main(["explain", str(mine.folder), str(prepared.folder), "--method", "gradcam", "--stage", "5"])
    assert end.value.code == 0
    assert "could not be written again" in capsys.readouterr().err
