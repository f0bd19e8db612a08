"""The referee and the data preparation in an environment of their own, without TensorFlow and Keras."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_plain_package_prepares_and_referees(tmp_path, phantoms):
    python = tmp_path / "env/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    # Only a part of the pinned packages: pip wants either the hashes of all that it installs or none.
    pins = re.findall(r"^[a-zA-Z0-9].*?(?= \\\\$)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    (tmp_path / "pins.txt").write_text("\n".join(pins) + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "-c", tmp_path / "pins.txt", REPOSITORY]
    installed = subprocess.run(install, capture_output=True, text=True)
    if "No matching distribution" in installed.stderr or "ConnectionError" in installed.stderr:
        pytest.skip(f"packages cannot be installed here: {installed.stderr[-200:]}")
    assert installed.returncode == 0, installed.stderr
    absent = "import importlib.util as u; assert not any(u.find_spec(n) for n in ('tensorflow', 'keras', 'torch'))"
    subprocess.run([python, "-c", absent], check=True)

    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name a checkout

    def run(*arguments):
        command = [python, "-m", "keras_pneumo", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=elsewhere)

    listed = run("experiments")
    assert listed.returncode == 0, listed.stderr
    assert f"File: {(tmp_path / 'env').resolve()}" in listed.stdout, "not those of the checkout"
    assert "demo_classifier: Does the classifier learn" in listed.stdout
    prepared = run("prepare", phantoms, "--out", "prepared", "--size", 64)
    assert prepared.returncode == 0, prepared.stderr
    truth = pd.read_csv(tmp_path / "prepared/truth.csv")
    test = truth[truth["subset"] == "test"]
    rows = pd.DataFrame({"ImageId": test["image_id"], "EncodedPixels": test["encoded_pixels"]})
    rows.to_csv(tmp_path / "perfect.csv", index=False)
    compared = run("compare", "perfect.csv", "--truth", "prepared", "--out", "board", "--resamples", 200)
    assert compared.returncode == 0, compared.stderr
    board = pd.read_csv(tmp_path / "board/board.csv")
    assert board.loc[board["team"] == "perfect", "dice"].item() == 1
    assert (tmp_path / "board/report.html").exists()

    refused = run("train", REPOSITORY / "experiments/smallest_classifier.py", "--data", "prepared")
    assert refused.returncode == 2
    assert "keras-pneumo[train]" in refused.stderr
    assert "Traceback" not in refused.stderr
    doctor = run("doctor")
    assert "TensorFlow and Keras are not installed" in doctor.stdout
