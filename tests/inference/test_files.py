import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hostile_lab import framed, slow_jpeg
from pydicom.uid import JPEGBaseline8Bit
from small_siim import radiograph, write_dicom, write_jpeg_dicom

from keras_pneumo.cli import main
from keras_pneumo.cli.predict import predict_command
from keras_pneumo.cli.workers import EngineName
from keras_pneumo.config import CLASSIFIER
from keras_pneumo.data.batches.images import images_of, open_source
from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import load_prepared
from keras_pneumo.data.radiographs import decoders
from keras_pneumo.data.radiographs.reading import NOT_READ, read_radiograph
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.ensemble import predict_map_set
from keras_pneumo.inference.files import predict_files, predict_folder, predict_images, read_batches
from keras_pneumo.inference.postprocess import postprocess_maps, read_postprocessing
from keras_pneumo.inference.predictor import CompiledNetwork, predict_passes
from keras_pneumo.inference.run import FORMAT, RunFolder, build, read_run, versions
from keras_pneumo.inference.submission import predict_subset, write_predictions
from keras_pneumo.storage import workers
from keras_pneumo.storage.workers import FILE_FAILED


@pytest.fixture
def radiographs(tmp_path, phantoms):
    """A folder of five radiographs."""
    folder = tmp_path / "radiographs"
    folder.mkdir()
    for path in sorted(phantoms.rglob("*.dcm"))[:5]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_paths_arrays_and_a_folder_get_the_same_predictions(tmp_path, tiny_runs, radiographs, task):
    run = read_run(shutil.copytree(tiny_runs / task, tmp_path / task))
    if task == "segmenter":
        rule = {"top": 0.4, "area": 1, "bottom": 0.4}
        (run.folder / "postprocess.json").write_text(json.dumps({"rule": rule}))
    paths = sorted(radiographs.iterdir())
    arrays = [read_radiograph(path).pixels for path in paths]
    expected = pd.read_csv(predict_folder([run], radiographs, tmp_path / "out").path, dtype={"encoded_pixels": str})
    done = []
    folder = predict_images([run], str(radiographs), progress=lambda *now: done.append(now))
    assert done[-1] == (5, 5)
    columns = ["image_id", "probability"] + ["encoded_pixels"] * (task == "segmenter")
    assert folder.columns.tolist() == columns
    assert folder["image_id"].tolist() == expected["image_id"].tolist() == [path.stem for path in paths]
    np.testing.assert_array_equal(folder["probability"].round(6), expected["probability"])
    pd.testing.assert_frame_equal(predict_images([run], paths), folder)
    for images in (arrays, [array[..., None] for array in arrays], [array / np.float32(255) for array in arrays]):
        table = predict_images([run], images)
        assert table["image_id"].tolist() == list("01234")
        pd.testing.assert_frame_equal(table.drop(columns="image_id"), folder.drop(columns="image_id"))
    pd.testing.assert_frame_equal(predict_images([run], paths[2]), predict_images([run], [str(paths[2])]))
    if task == "segmenter":
        assert (folder["encoded_pixels"] == expected["encoded_pixels"]).all()
        assert (folder["encoded_pixels"] != "-1").any()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "list is empty"),
        (
            np.full((64, 64), 200.0),
            "values from 200 to 200. Divide it by 255",
        ),
        (np.full((64, 64), np.nan), "from 0 to 1"),
        (np.full((64, 64), -0.1), "from 0 to 1"),
        (np.zeros((64, 64), int), "must be uint8, or floats from 0 to 1; this one is int64"),
        (np.zeros((64, 64, 3), np.uint8), r"the shape \(64, 64, 3\)"),
        (np.zeros((64, 31), np.uint8), "64 rows and 31 columns; a radiograph has at least 32 of each"),
        (np.zeros((257, 64), np.uint8), "more than 4 times as long"),
        ("nowhere.dcm", "There is no nowhere.dcm"),
    ],
)
def test_images_that_cannot_be_predicted_are_refused(tiny_runs, images, words):
    with pytest.raises(PneumoError, match=words):
        predict_images([read_run(tiny_runs / "classifier")], images)


def test_files_that_cannot_be_read_are_left_out_with_a_warning(tmp_path, tiny_runs, radiographs):
    run = read_run(tiny_runs / "classifier")
    (radiographs / "broken.dcm").write_bytes(b"no radiograph")
    with pytest.warns(UserWarning, match=r"1 of 6 files were left out. broken.dcm: "):
        table = predict_images([run], radiographs)
    assert len(table) == 5
    with pytest.raises(PneumoError, match=r"None of the 1 radiographs can be predicted; the first, broken.dcm: "):
        predict_images([run], radiographs / "broken.dcm")


def test_images_of_other_formats_beside_the_radiographs_are_named(tmp_path, tiny_runs, radiographs, capsys):
    for name in ("a.nii.gz", "b.tiff", "c.mha", "d.webp"):
        (radiographs / name).write_bytes(b"x")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(tiny_runs / "classifier"), "--data", str(radiographs), "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    named = f"a.nii.gz, b.tiff, c.mha and 1 more: {NOT_READ}."
    assert named in " ".join(capsys.readouterr().err.split())
    with pytest.warns(UserWarning, match=re.escape(f"4 of 9 files were left out. {named}")):
        predict_images([read_run(tiny_runs / "classifier")], radiographs)


def test_raw_files_and_prepared_images_get_the_same_prediction(tmp_path, radiographs, prepared_folder):
    """The way from a DICOM file and the way through a prepared folder are one."""
    experiment = CLASSIFIER.replace(name="x", encoder="resnet18", weights="random", image_size=64)
    model = build(experiment)
    model.save_weights(tmp_path / "best.weights.h5")
    run = RunFolder(tmp_path, experiment, {"format": FORMAT, "versions": versions()})
    (radiographs / "broken.dcm").write_bytes(b"no dicom at all")
    predictions, refused = predict_files([run], radiographs)
    assert len(predictions) == 5
    assert [str(file) for file in refused["file"]] == ["broken.dcm"]
    assert refused["reason"].str.len().gt(10).all()
    prepared = load_prepared(prepared_folder)
    ids = predictions["image_id"].tolist()
    pixels = images_of(open_source(prepared, ids, 64), range(len(ids))).astype(np.float32) / np.float32(255)
    expected = np.mean([each.image for each in predict_passes(model, pixels, experiment.flip_averaging)], axis=0)
    np.testing.assert_allclose(predictions["probability"], expected, rtol=1e-5)
    assert isinstance(predictions, pd.DataFrame)


def test_unused_options_are_refused(tmp_path, tiny_runs, prepared_folder, phantoms, monkeypatch):
    from keras_pneumo.cli.train import open_data

    run, segmenter = tiny_runs / "classifier", tiny_runs / "segmenter"
    for options in ({"gate": [run]}, {"parameters_file": tmp_path / "rule.json"}):
        with pytest.raises(PneumoError, match="are for segmenters' masks"):
            predict_command([run], data=phantoms, out_folder=tmp_path / "out", **options)
    with pytest.raises(PneumoError, match="--postprocess is not used"):
        predict_command([segmenter], data=prepared_folder, out_folder=tmp_path, parameters_file=tmp_path / "rule.json")
    several = SimpleNamespace(strategy="several devices")
    monkeypatch.setattr("keras_pneumo.training.distributed.strategy.start_distribution", lambda *args: several)
    with pytest.raises(PneumoError, match=r"--engine onnx predicts on one device\. Give --strategy one too"):
        predict_command([run], data=prepared_folder, out_folder=tmp_path / "out", engine=EngineName.ONNX)
    table = tmp_path / "patients.csv"
    with pytest.raises(PneumoError, match="so --labels and --patients cannot be used"):
        open_data(prepared_folder, CLASSIFIER, None, table, table)
    with pytest.raises(PneumoError, match="so --prepared cannot be used"):
        open_data(prepared_folder, CLASSIFIER, tmp_path, None, None)
    assert open_data(prepared_folder, CLASSIFIER, None, None, None).folder == prepared_folder


@pytest.fixture
def nothing_is_predicted(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a prediction was begun")

    monkeypatch.setattr("keras_pneumo.inference.submission.predict_subset", fail)
    monkeypatch.setattr("keras_pneumo.inference.files.predict_folder", fail)


def test_a_folder_of_other_files_is_refused_before_anything_is_predicted(
    tmp_path, tiny_runs, prepared_folder, nothing_is_predicted
):
    (tmp_path / "thesis.txt").write_text("three years")
    for out in (tmp_path, tmp_path / "thesis.txt", tiny_runs / "segmenter"):
        with pytest.raises(PneumoError, match="nothing was changed"):
            predict_command([tiny_runs / "classifier"], data=prepared_folder, out_folder=out)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    assert (tiny_runs / "segmenter" / "best.weights.h5").exists()


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_predicted(
    tmp_path, tiny_runs, prepared_folder, phantoms, nothing_is_predicted
):
    (tmp_path / "file").write_text("mine")
    run = tiny_runs / "classifier"
    with pytest.raises(PneumoError, match="is a file, but a folder is to be written there"):
        predict_command([run], data=phantoms, out_folder=tmp_path / "file")
    with pytest.raises(PneumoError, match="file"):
        predict_command([run], data=prepared_folder, out_folder=tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_names_are_no_formulas_in_the_table_and_an_old_quarantine_is_removed(tmp_path, tiny_runs, prepared_folder):
    """A file's name is anybody's; a spreadsheet would run one that begins as a formula does."""
    folder, out = tmp_path / "radiographs", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    shutil.copy(next((prepared_folder / "images_64").glob("*.png")), folder / "=1+1.png")
    (out / "quarantine.csv").write_text("file,reason\n")
    predict_folder([read_run(tiny_runs / "classifier")], folder, out)
    (row,) = pd.read_csv(out / "predictions.csv").to_dict("records")
    assert (row["image_id"], row["file"]) == ("'=1+1", "'=1+1.png")
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]


def test_masks_of_raw_files_are_those_of_prepared_images(tmp_path, tiny_runs, phantoms, prepared_folder):
    run, prepared = read_run(shutil.copytree(tiny_runs / "segmenter", tmp_path / "run")), load_prepared(prepared_folder)
    (run.folder / "postprocess.json").write_text(json.dumps({"rule": {"top": 0.4, "area": 1, "bottom": 0.4}}))
    image_ids = set(prepared.subset("test")[:4])
    folder = tmp_path / "radiographs"
    folder.mkdir()
    for path in phantoms.rglob("*.dcm"):
        if path.stem in image_ids:
            shutil.copy(path, folder)
    summary = predict_folder([run], folder, tmp_path / "out")
    table = pd.read_csv(summary.path, dtype=str).set_index("image_id")
    maps = predict_map_set([run], prepared, "test")
    parameters = read_postprocessing(run.folder / "postprocess.json")
    expected = postprocess_maps(maps, parameters, maps.image_probability).set_index("image_id")
    assert len(table) == len(image_ids) == 4
    masks = {image_id: rle.decode(text) for image_id, text in table["encoded_pixels"].items()}
    assert any(mask.any() for mask in masks.values())
    for image_id, mask in masks.items():
        prepared_mask = rle.decode(expected.loc[image_id, "encoded_pixels"])
        assert np.count_nonzero(mask != prepared_mask) <= 0.001 * mask.size


@pytest.mark.parametrize("task", ["classifier", "segmenter"])
def test_radiographs_of_any_shape_get_the_prediction_of_their_padded_square(tmp_path, tiny_runs, phantoms, task):
    run = read_run(shutil.copytree(tiny_runs / task, tmp_path / task))
    if task == "segmenter":
        (run.folder / "postprocess.json").write_text(json.dumps({"rule": {"top": 0.01, "area": 1, "bottom": 0.01}}))
    pixels = read_radiograph(min(phantoms.rglob("*.dcm"))).pixels[:, 160:865]
    square = np.pad(pixels, ((0, 0), (159, 160)))
    tiny = pixels[:50, :40]
    table = predict_images([run], [pixels, square, tiny])
    assert table["probability"].between(0, 1).all()
    if task == "classifier":
        assert table["probability"][0] == pytest.approx(table["probability"][1], abs=1e-6)
    else:
        masks = [rle.decode(text) for text in table["encoded_pixels"]]
        assert masks[1][:, :159].any(), "this network outlines nearly all"
        masks[1][:, :159] = masks[1][:, -160:] = 0
        np.testing.assert_array_equal(masks[0], masks[1], "and nothing on padding")


def test_several_runs_need_a_postprocessing_for_raw_files(tiny_runs, tmp_path, phantoms):
    run = read_run(tiny_runs / "segmenter")
    with pytest.raises(PneumoError, match="postprocess"):
        predict_folder([run, run], phantoms, tmp_path / "out")


def test_batches_are_filled_across_what_is_refused():
    good, small = np.zeros((64, 64), np.uint8), np.zeros((31, 31), np.uint8)
    sources = [(str(number), small if number in (1, 2, 6, 7) else good) for number in range(8)]
    refused = []
    batches = [[image.name for image in batch] for batch in read_batches(sources, 2, refused)]
    assert batches == [["0", "3"], ["4", "5"], []]
    assert [row["file"] for row in refused] == ["1", "2", "6", "7"]


@pytest.mark.parametrize("prepared", [True, False])
def test_the_engine_is_said_and_recorded(tmp_path, tiny_runs, prepared_folder, phantoms, own_cache, capsys, prepared):
    """Whatever runs the network, predictions and files are the same; the stand-in for ONNX Runtime is Keras."""
    pytest.importorskip("onnxruntime", reason="onnxruntime (extra export) is not installed")
    pytest.importorskip("tf2onnx", reason="tf2onnx (extra export) is not installed")
    data, tables, run = prepared_folder if prepared else phantoms, {}, tiny_runs / "classifier"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_pneumo.inference.engine.open_onnx", CompiledNetwork)
        for engine in EngineName:
            out = tmp_path / engine.value
            predict_command([run], data=data, out_folder=out, strategy="one", engine=engine)
            tables[engine] = pd.read_csv(out / "predictions.csv")
            message = " ".join(capsys.readouterr().err.split())
            if engine == EngineName.KERAS:
                assert "Engine" not in message
            else:
                words = {"onnx": "Engine: ONNX Runtime; its logits", "auto": "Engine: Keras. It needs about"}
                assert words[engine.value] in message
            if prepared:
                framework = json.loads((out / "submission.json").read_text())["framework"]
                assert ("predicted by ONNX Runtime" in framework) == (engine == EngineName.ONNX)
                assert ("predicted by Keras" in framework) == (engine == EngineName.AUTO)
    for table in tables.values():
        pd.testing.assert_frame_equal(table, tables[EngineName.KERAS])


@pytest.fixture
def world(tmp_path):
    """A turned radiograph, a small one, a lateral one and a hand, as DICOM files."""
    folder = tmp_path / "world"
    for number, (name, tags) in enumerate(
        {
            "turned": {"PatientOrientation": ["R", "F"]},
            "small": {"PixelSpacing": [0.2, 0.2]},
            "lateral": {"ViewPosition": "LL"},
            "hand": {"BodyPartExamined": "HAND"},
        }.items()
    ):
        write_dicom(
            folder / f"{name}.dcm", radiograph(number, 48 if name == "small" else 64), uid=f"1.2.{number}", **tags
        )
    return folder


@pytest.mark.parametrize("call", ["predict", "explain", "detect"])
def test_row_9_a_missing_decoder_is_said_once_before_the_run(tmp_path, tiny_runs, call, monkeypatch):
    from keras_pneumo.detector.detect import detect
    from keras_pneumo.explain.files import explain_files

    monkeypatch.setitem(decoders.DECODERS, "1.2.840.10008.1.2.4.50", ("gdcm", "python-gdcm"))
    data, out = tmp_path / "data", tmp_path / "out"
    for number in range(3):
        write_jpeg_dicom(data / f"{number}.dcm", radiograph(number))
    write_dicom(data / "plain.dcm", radiograph(4))
    run = read_run(tiny_runs / "classifier")
    calls = {
        "predict": lambda: predict_folder([run], data, out),
        "explain": lambda: explain_files(run, [data], out),
        "detect": lambda: detect(None, [data], out),
    }
    with pytest.raises(PneumoError, match=r"Of 4 files 3 are stored as JPEG Baseline.*pip install python-gdcm"):
        calls[call]()
    assert not out.exists() or not any(out.rglob("*.csv"))


@pytest.mark.slow
def test_row_34_a_file_that_takes_for_ever_costs_itself_alone_and_the_order_stays(tmp_path, tiny_runs, monkeypatch):
    monkeypatch.setattr(workers, "FILE_SECONDS", 8.0)
    for name in ("a", "c"):
        write_dicom(tmp_path / "data" / f"{name}.dcm", radiograph(ord(name)))
    framed(tmp_path / "data/b.dcm", slow_jpeg(300_000), JPEGBaseline8Bit, np.zeros((1440, 1440), np.uint8))
    predictions, refused = predict_files([read_run(tiny_runs / "classifier")], tmp_path / "data")
    assert predictions["file"].tolist() == ["a.dcm", "c.dcm"]
    assert refused["file"].tolist() == ["b.dcm"]
    assert refused["reason"][0] == FILE_FAILED


def test_notes_are_told_and_other_views_set_aside(tmp_path, tiny_runs, world):
    run = read_run(tiny_runs / "classifier")
    summary = predict_folder([run], world, tmp_path / "out")
    table = pd.read_csv(summary.path).set_index("file")
    assert sorted(table.index) == ["small.dcm", "turned.dcm"]
    assert "mirrored (PatientOrientation R, F)" in table.at["turned.dcm", "notes"]
    assert "has 48 pixels, fewer than the 64 that the network sees" in table.at["small.dcm", "notes"]
    assert "mirrored" not in table.at["small.dcm", "notes"]
    reasons = pd.read_csv(tmp_path / "out" / "quarantine.csv").set_index("file")["reason"]
    assert reasons["lateral.dcm"].startswith("its header gives the view LL, which is not frontal; --any-view")
    assert reasons["hand.dcm"].startswith("its header gives the body part HAND; --any-view")
    told = list(summary.remarks())
    assert "hand.dcm: its header gives the body part HAND; --any-view (any_view=True) lets it in." in told
    assert sum("turned.dcm: The header says that the image is mirrored" in line for line in told) == 1
    everything = predict_folder([run], world, tmp_path / "all", any_view=True)
    assert (everything.predicted, everything.set_aside) == (4, [])
    with pytest.warns(UserWarning, match=r"2 of 4 files were left out. hand.dcm: its header gives the body"):
        assert len(predict_images([run], world)) == 2
    assert len(predict_images([run], world, any_view=True)) == 4
    few = list(summary.remarks(most=1))
    assert few[-1] == f"{len(summary.notes) - 1} further notes are in {summary.path}, column notes."


@pytest.mark.parametrize("synthetic", [True, False])
def test_a_run_of_phantoms_says_so_in_table_summary_and_submission(
    tmp_path, tiny_runs, world, prepared_folder, synthetic
):
    real = read_run(tiny_runs / "classifier")
    run = RunFolder(real.folder, real.experiment, real.record | {"synthetic": synthetic})
    summary = predict_folder([run], world, tmp_path / "out")
    assert ("trained_on" in pd.read_csv(summary.path)) == synthetic
    first = next(summary.remarks())
    assert first.startswith("Trained on synthetic radiographs (phantoms).") == synthetic
    assert predict_images([run], world, any_view=True).attrs == {"synthetic": synthetic}
    predicted = predict_subset([run], load_prepared(prepared_folder))
    write_predictions(predicted, tmp_path / "submission")
    assert json.loads((tmp_path / "submission" / "submission.json").read_text())["synthetic"] is synthetic
