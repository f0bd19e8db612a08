"""Tests of the commands that hand a run on: zip, unpack, push, card and track, called in this process."""

import zipfile

import pytest
from hub_lab import TOKEN, running_hub
from sharing_lab import write_detector, write_evaluation, write_run

from keras_pneumo.sharing.package import LIST, read_package
from keras_pneumo.storage.files import sha256_file
from keras_pneumo.training.logs import tracking


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs/shared", synthetic=True)


def test_a_run_goes_into_a_zip_and_comes_out_of_it(tmp_path, run, call):
    out = tmp_path / "shared.zip"
    code, said, _ = call("export", run, "--format", "zip", "--out", out, "--licence", "cc-by-4.0")
    assert code == 0
    digest = sha256_file(out)
    assert said.splitlines() == [f"8 files of the run shared. SHA-256 of the zip: {digest}", str(out)]
    with zipfile.ZipFile(out) as archive:
        assert "These weights: cc-by-4.0." in archive.read("README.md").decode()
    code, said, noted = call("unpack", out, "--out", tmp_path / "there", "--sha256", digest.upper())
    assert (code, said.splitlines()[-1]) == (0, str(tmp_path / "there"))
    assert "knows nothing of real radiographs" in noted
    assert read_package(tmp_path / "there").name == "shared"
    code, _, noted = call("unpack", out, "--out", tmp_path / "other", "--sha256", "0" * 64)
    assert (code, (tmp_path / "other").exists()) == (2, False)
    assert f"has the SHA-256 {digest}, not 0000" in noted


def test_options_of_other_formats_are_refused(tmp_path, run, call):
    code, _, noted = call("export", run, "--out", tmp_path / "x", "--licence", "mit")
    assert code == 2
    assert "are for --format zip" in noted
    code, _, noted = call("export", run, "--format", "zip", "--out", tmp_path / "x", "--set", "epochs=1")
    assert code == 2
    assert "are for experiments" in noted
    assert not (tmp_path / "x").exists()


def test_a_card_is_printed_or_written(tmp_path, run, call):
    evaluation = write_evaluation(tmp_path / "hospital")
    code, said, _ = call("card", run, "--evaluation", evaluation)
    assert code == 0
    assert "### hospital" in said
    code, said, _ = call("card", run, "--evaluation", evaluation, "--out", tmp_path / "card.md")
    assert said.strip() == str(tmp_path / "card.md")
    assert "# shared" in (tmp_path / "card.md").read_text()
    code, said, _ = call("card", write_detector(tmp_path / "detector"))
    assert "# joined" in said


def test_a_run_is_pushed_and_unpacked_from_the_hub(tmp_path, run, call, monkeypatch, own_cache):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as (hub, address):
        monkeypatch.setenv("HF_ENDPOINT", address)
        code, said, _ = call("push", run, "hf://somebody/shared")
        assert code == 0
        sha, files = hub.files("somebody/shared")
        assert said.splitlines()[-1] == f"hf://somebody/shared@{sha}"
        assert 'kp.load_run("hf://somebody/shared")' in files["README.md"].decode()
        code, said, _ = call("unpack", "hf://somebody/shared", "--out", tmp_path / "there")
        assert code == 0
        assert f"From hf://somebody/shared@{sha}." in said
    assert {path.name for path in (tmp_path / "there").iterdir()} >= {LIST, "experiment.json", "best.weights.h5"}
    code, _, noted = call("push", run, "somewhere/else")
    assert code == 2
    assert "Write hf://OWNER/NAME" in noted


def test_a_run_is_sent_to_a_tracker(run, call, monkeypatch):
    sent = []

    class Recorder:
        def __init__(self, folder):
            pass

        def send(self, rows):
            sent.append(("rows", len(rows)))

        def end(self, scores, pictures):
            sent.append(("end", scores["test_auroc"], list(pictures)))

        def close(self):
            pass

    monkeypatch.setitem(tracking.OPEN, "mlflow", Recorder)
    code, said, _ = call("track", run, "--log-to", "mlflow")
    assert (code, said.strip()) == (0, f"{run} is in mlflow.")
    assert sent == [("rows", 3), ("end", 0.94, ["curves.png"])]
    code, _, noted = call("track", run, "--log-to", "notebook")
    assert code == 2
    assert "no tracker 'notebook'" in noted


def test_train_refuses_a_tracker_before_anything_else(tmp_path, call):
    code, _, noted = call("train", "smallest_classifier", "--data", tmp_path / "nowhere", "--log-to", "notebook")
    assert code == 2
    assert "no tracker 'notebook'" in noted
    code, _, noted = call("train", "smallest_classifier", "--data", tmp_path / "nowhere", "--log-radiographs")
    assert code == 2
    assert "Give --log-to too" in noted
