"""The front door: ``import keras_pneumo as kp``, its examples, and the Python blocks of README and docs/python.md."""

import ast
import contextlib
import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_pneumo as kp
from keras_pneumo import api
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.postprocess import PostprocessingParameters, PostprocessingSearch, write_postprocessing

REPOSITORY = Path(__file__).parents[1]
SMALLEST = {"encoder": "resnet18", "weights": "random", "image_size": 64, "frozen_epochs": 0, "epochs": 1}


@pytest.fixture
def house(tmp_path, monkeypatch, phantoms, prepared_folder, tiny_runs, tiny_detector):
    """A working folder with the files that the examples use."""
    for name, source in (("phantoms", phantoms), ("prepared", prepared_folder), ("detector", tiny_detector)):
        shutil.copytree(source, tmp_path / name)
    shutil.copytree(tiny_runs, tmp_path / "runs")
    with_postprocessing(tmp_path / "runs/segmenter")
    shutil.copy(files_of(phantoms)[0], tmp_path / "radiograph.dcm")
    submission = tmp_path / "submissions" / "test_team"
    submission.mkdir(parents=True)
    prepared = kp.load_prepared(prepared_folder)
    answers = pd.DataFrame({"image_id": prepared.image_ids("test")})
    answers.assign(probability=np.linspace(0, 1, len(answers))).to_csv(submission / "predictions.csv", index=False)
    info = '{"format": 1, "team": "Test team", "task": "classification", "split_sha256": "%s"}'
    (submission / "submission.json").write_text(info % prepared.prepared_folder.manifest["split_sha256"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_postprocessing(folder):
    """The run folder of a segmenter with postprocessing parameters."""
    parameters = PostprocessingParameters(top=0.5, area=100, bottom=0.4)
    write_postprocessing(folder, PostprocessingSearch(parameters, 1.0, 1.0, 1, np.zeros(1), (), ()))
    return folder


def files_of(folder):
    """The DICOM files of a folder, sorted."""
    return sorted(folder.rglob("*.dcm"))


def examples_of(name):
    """The examples in a public name's docstring; of a class, those of the class itself."""
    documented = getattr(kp, name)
    text = type(documented).__doc__ if name in ("CLASSIFIER", "SEGMENTER") else documented.__doc__
    return doctest.DocTestParser().get_doctest(text, {"kp": kp}, name, None, 0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "train" else []) for name in kp.__all__]
)
def test_the_example_of_every_public_name_runs(name, house):
    example = examples_of(name)
    assert example.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = []
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


def run_python(code, **options):
    """Runs a line in a new Python process; fails if the process fails."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, **options)


def test_importing_brings_nothing_heavy_and_prints_nothing():
    heavy = ["tensorflow", "keras", "numpy", "pandas", "scipy", "cv2", "matplotlib", "pydicom", "pydantic", "sklearn"]
    done = run_python(f"import sys, keras_pneumo as kp; dir(kp); print([n for n in {heavy} if n in sys.modules])")
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_names_that_need_no_network_bring_no_tensorflow():
    code = (
        "import sys, keras_pneumo as kp; kp.Experiment, kp.CLASSIFIER, kp.read_radiograph, kp.prepare;"
        "kp.load_prepared, kp.dice('-1', '-1'); kp.score, kp.compare, kp.write_phantoms, kp.train, kp.load_run;"
        "print([n for n in ('tensorflow', 'keras') if n in sys.modules])"
    )
    done = run_python(code)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_tensorflow_comes_without_notices():
    done = run_python(
        "import keras_pneumo as kp; kp.build_classifier('resnet18')(__import__('numpy').zeros((1,32,32,1)))"
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_what_the_user_set_for_tensorflow_stays():
    name = "TF_CPP_MIN_LOG_LEVEL"
    code = f"import os; os.environ['{name}'] = '0'; import keras_pneumo; print(os.environ['{name}'])"
    assert run_python(code).stdout == "0\n"


def test_every_public_name_is_listed_and_others_are_refused():
    assert set(kp.__all__) <= set(dir(kp))
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        kp.predict  # noqa: B018


def test_editors_see_the_names_that_are_imported_when_used():
    tree = ast.parse((REPOSITORY / "keras_pneumo/__init__.py").read_text())
    seen = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(kp.__all__) <= seen


def test_a_dataset_can_be_iterated_again_and_again(prepared_folder):
    dataset = kp.load_prepared(prepared_folder).dataset("validation", image_size=64, batch_size=4)
    passes = [[(images.numpy(), labels.numpy()) for images, labels in dataset] for _ in range(3)]
    assert all(len(batches) == dataset.cardinality() for batches in passes)
    for batches in passes[1:]:
        for (images, labels), (again, labels_again) in zip(passes[0], batches, strict=True):
            np.testing.assert_array_equal(images, again)
            np.testing.assert_array_equal(labels, labels_again)


def test_a_dataset_holds_each_image_of_its_subset_with_label_and_mask(prepared_folder):
    prepared = kp.load_prepared(prepared_folder)
    image_ids = prepared.image_ids("test")
    truth = prepared.cases.set_index("image_id")["pneumothorax"].astype(int).loc[image_ids]
    labels = np.concatenate([labels.numpy() for _, labels in prepared.dataset("test", 64)])
    np.testing.assert_array_equal(labels[:, 0], truth)
    masks = np.concatenate([masks.numpy() for _, masks in prepared.dataset("test", 64, masks=True)])
    assert masks.shape == (len(image_ids), 64, 64, 1)
    np.testing.assert_array_equal(masks.any(axis=(1, 2, 3)), truth.astype(bool))


def test_shuffled_passes_differ_and_the_same_seed_repeats_them(prepared_folder):
    prepared = kp.load_prepared(prepared_folder)

    def passes(seed):
        dataset = prepared.dataset("train", 64, 8, augmentation=kp.Augmentation(), seed=seed, shuffle=True)
        return [np.concatenate([images.numpy() for images, _ in dataset]) for _ in range(2)]

    first, again, other = passes(1), passes(1), passes(2)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("flip_averaging", [False, True])
def test_the_networks_own_predict_gives_what_the_command_gives(tmp_path, prepared_folder, tiny_runs, flip_averaging):
    from keras_pneumo.inference.run import read_run
    from keras_pneumo.inference.submission import predict_subset, write_predictions

    shutil.copytree(tiny_runs / "classifier", tmp_path / "run")
    record = tmp_path / "run/experiment.json"
    text = record.read_text()
    record.write_text(text.replace('"flip_averaging": true', f'"flip_averaging": {str(flip_averaging).lower()}'))
    prepared = kp.load_prepared(prepared_folder)
    run = kp.load_run(tmp_path / "run")
    dataset = prepared.dataset("test", image_size=run.experiment.image_size, batch_size=4)
    probability = 1 / (1 + np.exp(-run.model.predict(dataset, verbose=0)[:, 0].astype(float)))
    if flip_averaging:
        mirrored = run.model.predict(dataset.map(lambda images, _: images[:, :, ::-1]), verbose=0)[:, 0]
        probability = (probability + 1 / (1 + np.exp(-mirrored.astype(float)))) / 2
    write_predictions(predict_subset([read_run(tmp_path / "run")], prepared.prepared_folder), tmp_path / "submission")
    table = pd.read_csv(tmp_path / "submission/predictions.csv")
    assert table["image_id"].tolist() == prepared.image_ids("test")
    np.testing.assert_allclose(probability, table["probability"], atol=2e-6)


def test_a_file_an_array_and_the_folder_are_predicted_alike(tmp_path, phantoms, tiny_runs):
    shutil.copytree(tiny_runs / "segmenter", tmp_path / "run")
    run = kp.load_run(with_postprocessing(tmp_path / "run"))
    files = files_of(phantoms)[:3]
    (tmp_path / "files").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "files")
    table = run.predict(files)
    assert list(table.columns) == ["image_id", "probability", "encoded_pixels"]
    assert table["image_id"].tolist() == [kp.read_radiograph(file).image_id for file in files]
    by_name = run.predict(str(tmp_path / "files")).set_index("image_id").loc[table["image_id"]]
    arrays = run.predict([kp.read_radiograph(str(file)).pixels for file in files])
    floats = run.predict([kp.read_radiograph(file).pixels / np.float32(255) for file in files])
    for other in (by_name, arrays, floats):
        np.testing.assert_allclose(other["probability"], table["probability"], atol=1e-6)
        assert other["encoded_pixels"].tolist() == table["encoded_pixels"].tolist()


def test_a_runs_networks_are_loaded_once(phantoms, tiny_runs, monkeypatch):
    from keras_pneumo.inference import ensemble

    loaded, load = [], ensemble.load_predictors
    monkeypatch.setattr(ensemble, "load_predictors", lambda run, *rest: loaded.append(run.folder) or load(run, *rest))
    run, file = kp.load_run(tiny_runs / "classifier"), files_of(phantoms)[0]
    first, second = run.predict(file), run.predict([file])
    pd.testing.assert_frame_equal(first, second)
    assert loaded == [run.folder]


def test_values_up_to_255_are_refused_where_floats_to_1_are_meant(phantoms, tiny_runs):
    run = kp.load_run(tiny_runs / "classifier")
    pixels = kp.read_radiograph(files_of(phantoms)[0]).pixels.astype(np.float32)
    for refused in (run.predict, run.heat_map):
        with pytest.raises(PneumoError, match=r"from 0 to 1; .* Divide it by 255"):
            refused(pixels)


def test_a_heat_map_has_the_rows_and_columns_of_its_image(phantoms, tiny_runs):
    run = kp.load_run(tiny_runs / "classifier")
    file = files_of(phantoms)[0]
    heat = run.heat_map(file)
    assert (heat.shape, heat.dtype) == ((1024, 1024), np.float32)
    assert 0 <= heat.min() <= heat.max() <= 1
    np.testing.assert_array_equal(heat, run.heat_map(kp.read_radiograph(file).pixels))
    assert (run.heat_map(file, "hirescam", stage=3) != heat).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda prepared: prepared.dataset("test", 100), "no images of 100 pixels, only 64, 128"),
        (lambda prepared: prepared.dataset("test"), "Give one as image_size"),
        (lambda prepared: prepared.dataset("tests", 64), "There is no subset 'tests'"),
        (lambda prepared: prepared.dataset("test", 64, batch_size=0), "at least 1"),
        (lambda prepared: kp.load_run("nowhere"), "not a run folder"),
        (lambda prepared: kp.load_detector("nowhere"), "not a detector"),
        (lambda prepared: kp.load_prepared("nowhere"), "nowhere"),
        (lambda prepared: kp.prepare("nowhere", "out"), "nowhere"),
        (lambda prepared: kp.read_radiograph("nowhere.dcm"), "cannot be read"),
        (lambda prepared: kp.build_classifier("resnet7"), "resnet7"),
        (lambda prepared: kp.build_unet("resnet18", "nowhere.safetensors"), "nowhere.safetensors"),
        (lambda prepared: kp.compare("nowhere", prepared), "nowhere"),
        (lambda prepared: kp.train("nowhere.py", prepared), "nowhere.py"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(prepared_folder, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PneumoError, match=message):
        call(kp.load_prepared(prepared_folder))


def test_a_run_without_scores_says_so(tiny_runs):
    with pytest.raises(PneumoError, match=r"has no board\.csv"):
        _ = kp.load_run(tiny_runs / "classifier").scores


def test_preparing_warns_of_what_was_set_aside(tmp_path, phantoms):
    shutil.copytree(phantoms, tmp_path / "phantoms")
    (tmp_path / "phantoms" / "damaged.dcm").write_bytes(b"no radiograph")
    with pytest.warns(UserWarning, match="set aside"):
        prepared = kp.prepare(str(tmp_path / "phantoms"), str(tmp_path / "prepared"), sizes=64)
    assert (prepared.sizes, len(prepared.cases)) == ([64], 40)


def python_blocks(page):
    """The blocks of Python on a page."""
    return re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_ten_lines_are_ten_and_the_same_in_readme_and_docs():
    (ten_lines,) = python_blocks("README.md")
    assert ten_lines == python_blocks("docs/python.md")[0]
    assert len([line for line in ten_lines.splitlines() if line.strip()]) == 10


def test_the_tour_of_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in python_blocks("docs/python.md"):
        with contextlib.redirect_stdout(None):
            exec(compile(block, "docs/python.md", "exec"), names)
    assert isinstance(names["classifier"], api.Run)
    assert names["heat"].shape == (1024, 1024)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == set(re.findall(r"\]\((\w+\.png)\)", (REPOSITORY / "docs/python.md").read_text()))
