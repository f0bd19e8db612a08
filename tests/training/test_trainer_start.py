"""Tests of trainings that start from a run of other data: what is compared, recorded and refused."""

import json
import shutil
from dataclasses import replace

import crash_lab
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.prepared.prepare import prepare
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.contamination import contamination_by
from keras_pneumo.inference.export import export_run
from keras_pneumo.inference.provenance import LEARNED, learned_images, sources_named
from keras_pneumo.inference.run import read_run
from keras_pneumo.inference.submission import submission_info
from keras_pneumo.models.xrayvision import IMAGES
from keras_pneumo.parity.seeds.study import change_last_bit
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.training.trainer import TrainingOptions, declared_start, train

pytestmark = pytest.mark.usefixtures("own_cache")

BRIEF = crash_lab.SHORT.replace(name="brief", frozen_epochs=0, epochs=1, swa_epochs=0, top_k=1)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Other patients' phantoms, prepared at 64. Read only."""
    folder = tmp_path_factory.mktemp("others")
    settings = PhantomSettings(images=30, seed=11, positive_rate=0.5, size_scale=4.0)
    write_phantoms(folder / "phantoms", settings, workers=2)
    prepare(folder / "phantoms", folder / "prepared", [64], patients=folder / "phantoms/patients.csv", workers=2)
    return folder / "prepared"


def trained(data, folder, start_from=None, resume=False, weights=None, say=lambda message: None, **changes):
    """A tiny run on a prepared folder."""
    folder.mkdir(exist_ok=True)
    experiment = BRIEF.replace(name=folder.name, **changes)
    options = TrainingOptions(build=crash_lab.tiny, resume=resume, say=say)
    train(experiment, load_prepared(data), folder, options, start_from=start_from, weights=weights)
    return read_run(folder)


def unmarked(folder):
    """The prepared folder as if it held radiographs."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"synthetic": False}))
    return folder


def of_other_seed(phantoms, folder):
    """The same images with another split."""
    prepare(phantoms, folder, [64], patients=phantoms / "patients.csv", workers=2, seed=1)
    return folder


def test_a_start_from_other_patients_is_compared_and_recorded(tmp_path, prepared_copy, others):
    """Three trainings: on (what is said to be) radiographs, then twice on phantoms."""
    first = trained(unmarked(prepared_copy), tmp_path / "first", fold=1)
    own = learned_images(first)
    assert len(own) == first.record["training_images"] + first.record["validation_images"]
    assert set(own["subset"]) == {"train", "validation"}
    assert first.record["trained_on"] == f"SIIM-ACR ({len(own)} images)"

    second = trained(others, tmp_path / "second", first)
    start = second.record["start_from"]
    assert (start["name"], start["split_sha256"]) == ("first", first.record["split_sha256"])
    assert start["pretraining"] == first.record["trained_on"]
    prepared = load_prepared(others)
    assert start["compared"] == {
        "learned": len(own),
        "held_out": len(prepared.subset("validation")) + len(prepared.subset("test")),
        "compared": {
            "file": len(own),
            "pixels": len(own),
            "image": len(own),
            "patient": own["patient_id"].nunique(),
        },
        "other_key": 0,
    }
    both = learned_images(second)
    phantoms = second.record["training_images"] + second.record["validation_images"]
    assert both["earlier"].value_counts().to_dict() == {1: len(own), 0: phantoms}
    assert both.groupby("earlier")["synthetic"].unique().map(list).to_dict() == {0: [1], 1: [0]}

    third = trained(others, tmp_path / "third", second)
    assert third.record["start_from"]["start_from"] == start
    assert third.record["learned_images_sha256"] != second.record["learned_images_sha256"]
    pd.testing.assert_frame_equal(learned_images(third)[["image_id"]], both[["image_id"]])
    for run in (second, third):
        declared = submission_info([run], "classification", "test", 0.5).pretraining
        assert declared.images == f"SIIM-ACR ({len(own)} images)"
        assert declared.image_ids == sorted(own["image_id"])


def test_a_start_from_what_is_held_out_now_is_refused_through_all_earlier_starts(
    tmp_path, phantoms, prepared_folder, others
):
    first = trained(prepared_folder, tmp_path / "first")
    again = of_other_seed(phantoms, tmp_path / "again")
    held_out = {name for subset in ("validation", "test") for name in load_prepared(again).subset(subset)}
    shared = held_out & set(learned_images(first)["image_id"])
    with pytest.raises(PneumoError, match=rf"first cannot be started from: .* learned from {len(shared)} images of"):
        trained(again, tmp_path / "refused", first)
    assert not (tmp_path / "refused/experiment.json").exists()

    between = trained(others, tmp_path / "between", first)
    shutil.rmtree(first.folder)  # the run folder alone is enough
    with pytest.raises(PneumoError, match=r"between cannot be started from: .* or a run that it was started from"):
        trained(again, tmp_path / "refused", between)


def test_a_training_that_goes_on_keeps_what_its_start_had_learned(tmp_path, prepared_folder, others):
    first = trained(others, tmp_path / "first")
    run = trained(prepared_folder, tmp_path / "run", first)
    before = (run.folder / LEARNED).read_bytes()
    shutil.rmtree(first.folder)
    assert trained(prepared_folder, tmp_path / "run", resume=True).record["start_from"] == run.record["start_from"]
    assert (run.folder / LEARNED).read_bytes() == before
    (run.folder / LEARNED).unlink()
    with pytest.raises(PneumoError, match=r"learned_images.csv cannot be read"):
        trained(prepared_folder, tmp_path / "run", resume=True)


def test_runs_of_earlier_versions_are_started_from_where_their_prepared_folder_is(tmp_path, prepared_folder, others):
    first = trained(others, tmp_path / "first")
    older = {
        key: value
        for key, value in first.record.items()
        if key not in ("learned_images_sha256", "trained_on", "sha256")
    }
    (first.folder / LEARNED).unlink()

    def write(command):
        (first.folder / "experiment.json").write_text(json.dumps(older | {"command": command}))
        return read_run(first.folder)

    with pytest.raises(PneumoError, match=r"not known which images .* It is no more in /gone"):
        trained(prepared_folder, tmp_path / "run", write("keras-pneumo train e.py --data /gone"))
    run = trained(prepared_folder, tmp_path / "run", write(f"keras-pneumo train e.py --data {others}"))
    images = first.record["training_images"] + first.record["validation_images"]
    assert run.pretraining == f"synthetic phantoms ({images} images)"
    assert len(learned_images(run)) == images + run.record["training_images"] + run.record["validation_images"]


def test_the_weights_are_those_of_the_start(tmp_path, prepared_folder, others):
    first = trained(others, tmp_path / "first")
    still = trained(prepared_folder, tmp_path / "still", first, learning_rate=1e-12, weight_decay=0.0, ema=0.0)
    log = pd.read_csv(still.folder / "log.csv")
    assert log["phase"].tolist()[0] == "start"
    model, other = crash_lab.tiny(BRIEF), crash_lab.tiny(BRIEF)
    first.load_weights(model)
    still.load_weights(other)
    np.testing.assert_allclose(other.get_layer("fc").kernel, model.get_layer("fc").kernel, atol=1e-6)


# ---------------------------------------------------------------- a file of weights


def test_a_runs_own_file_is_a_start_from_that_run(tmp_path, phantoms, prepared_folder, others):
    first = trained(prepared_folder, tmp_path / "first")
    own, messages = first.folder / "best.safetensors", []
    run = trained(others, tmp_path / "run", weights=own, say=messages.append, learning_rate=1e-12, weight_decay=0.0)
    assert messages[0] == f"{own}: encoder, fc loaded."
    images = len(learned_images(first))
    assert run.record["start_from"]["name"] == "first"
    assert run.record["start_from"]["compared"]["learned"] == images
    given = run.record["weights_file"]
    assert (given["name"], given["loaded"], given["random"]) == ("best.safetensors", ["encoder", "fc"], {})
    assert run.pretraining == given["pretraining"] == f"synthetic phantoms ({images} images)"
    before, after = (load_file(folder / "best.safetensors") for folder in (first.folder, run.folder))
    np.testing.assert_allclose(after["fc.weight"], before["fc.weight"], atol=1e-6)
    with pytest.raises(PneumoError, match=r"first cannot be started from: .* holds out"):
        trained(of_other_seed(phantoms, tmp_path / "again"), tmp_path / "refused", weights=own)
    with pytest.raises(PneumoError, match="not both"):
        trained(others, tmp_path / "refused", first, weights=own)


def test_what_a_file_from_elsewhere_has_learned_from_is_unknown_unless_it_says_so(tmp_path, prepared_folder, others):
    first = trained(prepared_folder, tmp_path / "first")
    path = tmp_path / "copied.safetensors"
    save_file(load_file(first.folder / "best.safetensors"), path)
    run = trained(others, tmp_path / "run", weights=path)
    assert "start_from" not in run.record
    assert run.pretraining == "unknown images (copied.safetensors)"
    save_file(load_file(path), path, {"pretraining": "CheXpert (9 images)"})
    with pytest.raises(PneumoError, match=r"began from other weights, those of copied\.safetensors, not from copied"):
        trained(others, tmp_path / "run", weights=path, resume=True)
    assert trained(others, tmp_path / "run", resume=True).record["weights_file"] == run.record["weights_file"]
    noted = trained(others, tmp_path / "noted", weights=path)
    assert submission_info([noted], "classification", "test", 0.5).pretraining.images == "CheXpert (9 images)"
    assert noted.images_seen == f"CheXpert (9 images), {noted.record['trained_on']}"


def test_a_place_of_imagenets_weights_is_refused_where_the_start_is_random(tmp_path, prepared_folder):
    with pytest.raises(PneumoError, match=r"starts from random weights, so ImageNet's in .* are not used"):
        trained(prepared_folder, tmp_path / "run", weights=tmp_path)
    with pytest.raises(PneumoError, match="cannot be read"):
        trained(prepared_folder, tmp_path / "run", weights=tmp_path / "absent.safetensors")
    assert not (tmp_path / "run/experiment.json").exists()


def test_the_exported_start_says_what_it_has_learned_from(tmp_path, prepared_folder, monkeypatch):
    first = trained(prepared_folder, tmp_path / "first")
    own = first.folder / "best.safetensors"
    assert declared_start(BRIEF) == "none"
    assert declared_start(BRIEF.replace(weights="imagenet_v1")) == "ImageNet-1k"
    assert declared_start(BRIEF, own) == first.record["trained_on"]
    for module in ("run", "export"):
        monkeypatch.setattr(f"keras_pneumo.inference.{module}.build", crash_lab.tiny)
    export_run(first, "torch", tmp_path / "exported.safetensors")
    assert declared_start(BRIEF, tmp_path / "exported.safetensors") == first.record["trained_on"]
    change_last_bit(tmp_path / "exported.safetensors", tmp_path / "changed.safetensors")
    assert declared_start(BRIEF, tmp_path / "changed.safetensors") == first.record["trained_on"]


def test_data_sets_of_which_only_the_names_are_known_are_warned_of_through_all_starts(
    tmp_path, prepared_folder, prepared_copy, others
):
    first = trained(prepared_folder, tmp_path / "first")
    path = tmp_path / "cohorts.safetensors"
    save_file(load_file(first.folder / "best.safetensors"), path, {"pretraining": IMAGES})
    phantoms = trained(others, tmp_path / "phantoms", weights=path)
    assert "caution" not in phantoms.record["weights_file"], "phantoms are in no data set"
    second = trained(unmarked(prepared_copy), tmp_path / "second", phantoms, fold=0)
    assert second.record["start_from"]["unlisted"] == second.unlisted_images == IMAGES

    radiographs = load_prepared(prepared_copy)
    run = trained(prepared_copy, tmp_path / "run", weights=path)
    assert run.pretraining == run.unlisted_images == IMAGES
    caution = run.record["weights_file"]["caution"]
    assert caution.startswith(f"The training started from weights that have learned from {IMAGES}; from which")
    assert "Images here (SIIM-ACR) may be among them" in caution
    for each in (run, second):
        assert contamination_by([each], radiographs).sentences[-1] == caution
    assert contamination_by([run], load_prepared(others)).by_name == ""
    assert contamination_by([first], radiographs).by_name == ""


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("SIIM-ACR", True),
        ("NIH ChestX-ray14", True),
        ("Google's adjudicated NIH", True),
        ("VinDr-CXR", True),
        ("PadChest", True),
        ("CheXpert", False),
        ("CANDID-PTX", False),
    ],
)
def test_which_sources_share_images_with_torchxrayvisions(prepared_folder, source, named):
    prepared = load_prepared(prepared_folder)
    prepared = replace(prepared, manifest=prepared.manifest | {"synthetic": False, "sources": {source: 40}})
    assert sources_named(IMAGES, prepared) == [source] * named
    assert not sources_named("ImageNet-1k", prepared)
