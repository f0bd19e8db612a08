"""Tests of join, detect and view as processes: the examples of the help, exit codes, a page that ends with Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import cv2
import pandas as pd
import pytest
from command_lab import REPOSITORY, example, refused, run, shell
from detector_lab import drawn_hand

from keras_pneumo.storage.files import content_hash

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory, phantoms, prepared_folder, tiny_runs):
    """A folder as it is after training: runs and data under the names that the examples use."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "runs").mkdir()
    (folder / "data/phantom-try").symlink_to(phantoms)
    (folder / "data/prepared/phantom-try").symlink_to(prepared_folder)
    for name in ("classifier", "segmenter"):
        (folder / f"runs/smallest_{name}").symlink_to(tiny_runs / name)
    for result in shell(example("join"), folder):
        assert "segmenter without classifier" in result.stdout
        assert "Not like the training images from a distance of " in result.stdout
        assert "Where it looks (" in result.stdout
        assert "runs/detector-try" in result.stdout
    return folder


def test_the_examples_work_one_after_the_other(root):
    for result in shell(example("detect"), root):
        assert "40 radiographs answered" in result.stdout
    table = pd.read_csv(root / "runs/detect-try/predictions.csv")
    assert len(table) == 40
    answer = json.loads((root / "runs/detect-try" / f"{table['image_id'][0]}.json").read_text())
    assert answer["use"].startswith("Research use only")
    # As compare shows it: the detector's own submission, found in its folder.
    compared = run(
        *("compare", "runs/detector-try", "--truth", "data/prepared/phantom-try", "--out", "board", "--resamples", 100),
        cwd=root,
    )
    assert compared.returncode == 0, compared.stderr
    assert "joined" in compared.stdout


def test_set_aside_files_give_exit_code_one_and_a_second_sentence(root, tmp_path):
    (tmp_path / "radiographs").mkdir()
    source = next((root / "data/phantom-try").rglob("*.dcm"))
    (tmp_path / "radiographs/good.dcm").write_bytes(source.read_bytes())
    (tmp_path / "radiographs/bad.dcm").write_bytes(b"no radiograph")
    result = run("detect", root / "runs/detector-try", tmp_path / "radiographs", "--out", tmp_path / "out", "--dicom")
    assert result.returncode == 1, result.stderr
    assert "bad.dcm: it is no DICOM file" in result.stderr
    assert "1 set aside" in result.stdout
    assert len(list((tmp_path / "out/dicom").rglob("report.dcm"))) == 1


def test_a_hand_gives_exit_code_one_and_a_detector_without_the_check_says_so_once(root, tmp_path):
    cv2.imwrite(str(tmp_path / "hand.png"), drawn_hand())
    result = run("detect", root / "runs/detector-try", tmp_path / "hand.png", "--out", tmp_path / "out")
    assert result.returncode == 1, result.stderr
    assert "hand.png: Not like the training images: its distance to them is" in result.stderr
    assert "0 radiographs answered, 0 with yes" in result.stdout
    assert "does not check" not in result.stderr
    older = shutil.copytree(root / "runs/detector-try", tmp_path / "older", symlinks=True)
    record = json.loads((older / "detector.json").read_text())
    del record["likeness"], record["files"]["likeness.npy"], record["sha256"]
    (older / "detector.json").write_text(json.dumps(record | {"sha256": content_hash(record)}))
    result = run("detect", older, tmp_path / "hand.png", "--out", tmp_path / "out2")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("does not check whether a radiograph is like its training images") == 1
    assert "1 radiographs answered" in result.stdout


def test_what_cannot_be_done_is_refused(root, tmp_path, call):
    detector, out = root / "runs/detector-try", tmp_path / "o"
    pair = (root / "runs/smallest_classifier", "--segmenter", root / "runs/smallest_segmenter")
    for words, sentences in {
        ("detect", tmp_path, tmp_path, "--out", out): ("not a detector", "keras-pneumo join"),
        ("detect", detector, tmp_path / "nowhere", "--out", out): ("There is no",),
        ("detect", detector, tmp_path, "--out", out, "--make-uids"): ("Give --dicom too",),
        ("view", tmp_path): ("not a detector",),
        ("join", tmp_path, "--segmenter", tmp_path, "--data", root / "data/prepared/phantom-try"): ("not a run",),
        ("join", *pair, "--data", tmp_path, "--out", out): ("holds none with the split", "PREPARED="),
    }.items():
        code, _, noted = call(*words)
        assert code == 2, noted
        assert "Traceback" not in noted
        assert not [sentence for sentence in sentences if sentence not in noted], noted
    assert not out.exists()
    code, _, noted = call(
        "join", *pair, "--data", root / "data/prepared", "--out", tmp_path / "found", "--resamples", 100
    )
    assert code == 0, noted


def test_the_page_is_served_and_ends_with_ctrl_c(root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "keras_pneumo",
        "view",
        root / "runs/detector-try",
        root / "data/phantom-try",
    ]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
    )
    try:
        address, token = re.search(r"(http://127\.0\.0\.1:\d+/)(\?token=\S+)", process.stdout.readline()).groups()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        deadline = time.monotonic() + 60
        while True:
            try:
                browser.open(address + token, timeout=10).close()
                about = json.load(browser.open(address + "api/about", timeout=10))
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert len(about["files"]) == 40
        answer = json.load(browser.open(address + "api/folder/0", timeout=60))
        assert set(answer["maps"]) == {"classifier", "segmenter"}
        second = subprocess.run(
            [*command, "--port", "0", "--no-browser"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            timeout=120,
        )
        refused(second, "readings.csv", "--readings")
    finally:
        process.send_signal(signal.SIGINT)
    spoken, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "No answer is marked Agree" in spoken
