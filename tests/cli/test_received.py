"""Tests that a run or a detector is named by its folder, its zip or its address on a hub, by every command alike."""

import shutil

import pytest
from hub_lab import TOKEN, running_hub
from sharing_lab import write_run

from keras_pneumo.cli import COMMANDS, _Commands, main
from keras_pneumo.cli.referee import submission_folder
from keras_pneumo.cli.workers import run_folder
from keras_pneumo.sharing.archive import write_zip
from keras_pneumo.sharing.hub import is_received, received
from keras_pneumo.sharing.package import LIST, read_package
from keras_pneumo.sharing.packing import write_package

constants = pytest.importorskip("huggingface_hub.constants")
HUB = "hf://somebody/{}"


@pytest.fixture(scope="module")
def packages(tmp_path_factory, tiny_runs, tiny_detector, prepared_folder):
    """Packages of the two tiny runs and their detector, and a zip of each; the classifier's has its predictions."""
    folder = tmp_path_factory.mktemp("packages")
    predicted = shutil.copytree(tiny_runs / "classifier", folder / "predicted")
    with pytest.raises(SystemExit) as end:
        main(["predict", str(predicted), "--data", str(prepared_folder)])
    assert not end.value.code
    for name, source in (
        ("classifier", predicted),
        ("segmenter", tiny_runs / "segmenter"),
        ("detector", tiny_detector),
    ):
        package = write_package(source, folder / name, with_predictions=name == "classifier")
        write_zip(package, folder / f"{name}.zip")
    return folder


@pytest.fixture
def named(request, packages, own_cache, monkeypatch, tmp_path):
    """Gives the zip of a package, or its address on a hub; nothing that a command does may change what was received.

    Each command takes one of the two: all read both in the same place, as the last test here shows.
    """
    if request.param == "zip":
        yield lambda name: packages / f"{name}.zip"
    else:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with running_hub() as (hub, address):
            monkeypatch.setenv("HF_ENDPOINT", address)
            for name in ("classifier", "segmenter", "detector"):
                files = read_package(packages / name).files
                hub.commit(f"somebody/{name}", {file: (packages / name / file).read_bytes() for file in (LIST, *files)})
            yield HUB.format
    kept = [path.parent for path in (tmp_path / "cache").rglob(LIST)]
    assert kept
    assert all(is_received(folder) and read_package(folder) for folder in kept)


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory, phantoms):
    folder = tmp_path_factory.mktemp("radiographs")
    for path in sorted(phantoms.rglob("*.dcm"))[:2]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("named", ["hub"], indirect=True)
def test_predict(named, call, radiographs, prepared_folder, tmp_path):
    code, _, noted = call("predict", named("classifier"), "--data", radiographs, "--out", tmp_path / "out")
    assert code == 0, noted
    assert len((tmp_path / "out/predictions.csv").read_text().splitlines()) == 3
    gate = ("--gate", named("classifier"))
    code, _, noted = call("predict", named("segmenter"), *gate, "--data", prepared_folder, "--out", tmp_path / "masks")
    assert code == 0, noted
    assert (tmp_path / "masks/predictions.csv").is_file()


@pytest.mark.parametrize("named", ["zip"], indirect=True)
def test_explain(named, call, radiographs, tmp_path):
    code, _, noted = call("explain", named("classifier"), "--data", radiographs, "--out", tmp_path / "out")
    assert code == 0, noted
    assert (tmp_path / "out/explained.csv").is_file()


@pytest.mark.parametrize("named", ["zip"], indirect=True)
def test_what_was_received_is_not_written_into(named, call, radiographs, prepared_folder):
    for command in ("predict", "explain"):
        for data in (radiographs, prepared_folder):
            code, _, noted = call(command, named("classifier"), "--data", data)
            assert (code, "Name a folder of your own with --out" in noted) == (2, True), noted


@pytest.mark.parametrize("named", ["zip"], indirect=True)
def test_detect_and_view(named, call, radiographs, tmp_path, monkeypatch):
    detector = named("detector")
    code, _, noted = call("detect", detector, radiographs, "--out", tmp_path / "out", "--any-view")
    assert code in (0, 1), noted  # noise may be unlike the training images
    assert (tmp_path / "out/quarantine.csv").is_file() or list((tmp_path / "out").glob("*.json"))
    shown = []
    monkeypatch.setattr("keras_pneumo.viewer.server.serve", lambda page, *rest: shown.append(page.detector.version))
    code, _, noted = call("view", detector, "--port", 0, "--no-browser", "--readings", tmp_path / "readings.csv")
    assert (code, len(shown)) == (0, 1), noted


@pytest.mark.parametrize("named", ["hub"], indirect=True)
def test_evaluate(named, call, prepared_folder, tmp_path):
    out = tmp_path / "out"
    code, _, noted = call(
        "evaluate", named("detector"), "--data", prepared_folder, "--out", out, "--resamples", 100,
        "--keep-contaminated",
    )  # fmt: skip
    assert code == 0, noted
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("named", ["zip"], indirect=True)
def test_join(named, call, prepared_folder, tmp_path):
    code, _, noted = call(
        "join", named("classifier"), "--segmenter", named("segmenter"), "--data", prepared_folder, "--out",
        tmp_path / "joined", "--resamples", 100,
    )  # fmt: skip
    assert code == 0, noted
    assert (tmp_path / "joined/detector.json").is_file()


@pytest.mark.parametrize("named", ["hub"], indirect=True)
def test_compare(named, call, prepared_folder, tmp_path):
    truth = ("--truth", prepared_folder)
    code, said, noted = call("compare", named("classifier"), *truth, "--out", tmp_path / "out", "--resamples", 100)
    assert code == 0, noted
    assert (tmp_path / "out/board.csv").is_file()
    code, said, noted = call("check-submission", named("classifier"), *truth)
    assert (code, "No fault" in said) == (0, True), noted
    code, _, noted = call("compare", named("segmenter"), *truth, "--out", tmp_path / "none")
    assert (code, "has no predictions" in noted) == (2, True), noted


@pytest.mark.parametrize("named", ["zip", "hub"], indirect=True)
def test_export_and_card(named, call, tmp_path):
    code, _, noted = call("export", named("classifier"), "--out", tmp_path / "out.safetensors")
    assert code == 0, noted
    code, said, noted = call("card", named("detector"))
    assert (code, "# tiny" in said) == (0, True), noted


def test_the_commit_of_a_name_without_one_is_said(packages, call, own_cache, monkeypatch, tmp_path):
    run = write_package(write_run(tmp_path / "run"), tmp_path / "package")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as (hub, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        sha = hub.commit("a/b", {name: (run.folder / name).read_bytes() for name in (LIST, *run.files)})
        code, said, noted = call("card", "hf://a/b")
        assert code == 0
        assert said.startswith("---\n"), "the output is the card alone"
        assert f"hf://a/b is hf://a/b@{sha}" in noted
    code, said, noted = call("card", f"hf://a/b@{sha}")
    assert (code, noted) == (0, ""), "the commit is in the cache, and is read without the hub"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, noted = call("card", "hf://a/b")
    assert (code, "The hub did not answer for hf://a/b" in noted) == (2, True)
    code, _, noted = call("card", tmp_path / "nowhere.zip")
    assert (code, "There is no file" in noted) == (2, True)
    folder, _ = received(f"hf://a/b@{sha}")
    (folder / "log.csv").write_text("changed")
    code, _, noted = call("card", f"hf://a/b@{sha}")
    assert (code, "log.csv is missing or changed" in noted) == (2, True)


def test_every_command_reads_the_name_of_a_run_in_the_same_place():
    """Each that names a run or a detector by its metavar, its option or its help; track writes into its run."""
    asked = {}
    for command in COMMANDS:
        for parameter in _Commands()[command].params:
            metavar = str(parameter.metavar or "")
            if (
                any(word in metavar for word in ("RUN", "DETECTOR", "CLASSIFIER"))
                or parameter.name in ("segmenter", "segmenters", "gate", "start_from")
                or (command, parameter.name) in (("compare", "submissions"), ("check-submission", "submission"))
            ):
                parser = parameter.type_descriptor.parameter_info.parser
                asked[f"{command} {parameter.name}"] = parser in (run_folder, submission_folder)
    assert [name for name, reads in asked.items() if not reads] == ["track source"]
    assert len(asked) == 16
