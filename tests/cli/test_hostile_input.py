"""Sixty broken and hostile files among good ones: each is named with its reason, and nothing else changes.

Two folders, one with the sixty and one without, go through prepare, predict and detect as processes of their own. What
comes out for the good radiographs must be the same to the byte.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from command_lab import REPOSITORY
from hostile_lab import broken_files, framed, jpeg_2000
from pydicom.uid import JPEG2000Lossless
from small_siim import block, hashes, write_dicom, write_jpeg_dicom, write_labels, write_png

from keras_pneumo.data.radiographs.reading import read_radiograph
from keras_pneumo.storage.workers import FILE_MEMORY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits of memory hold on Linux")]

GOOD = 240
MEMORY = 2 * 2**30

COMMAND = """
import sys
from keras_pneumo.storage import workers
workers.FILE_SECONDS = 10.0  # a minute would be long for a test
from keras_pneumo.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, phantoms):
    """Data without and with broken files, each with its labels; and the reasons."""
    root = tmp_path_factory.mktemp("hostile")
    sources = [read_radiograph(path) for path in sorted(phantoms.rglob("*.dcm"))]
    clean = root / "clean"
    rows = []
    for number in range(GOOD):
        source = sources[number % len(sources)]
        image = cv2.resize(source.pixels, (128, 128), interpolation=cv2.INTER_AREA)
        image = image[:, ::-1].copy() if number // len(sources) % 2 else image
        image[0, 0] = number
        name = f"good-{number:03d}"
        tags = {"PatientID": f"patient-{number // 2}", "PixelSpacing": [0.2, 0.2]}
        if number % 3 == 0:
            write_jpeg_dicom(clean / "jpeg" / f"{name}.dcm", image, **tags)
        elif number % 3 == 1:
            write_dicom(clean / "raw" / f"{name}.dcm", image, **tags)
        else:
            write_png(clean / "png" / f"{name}.png", image)
        rows.append((name, block(number) if number % 2 else "-1"))
    write_labels(clean / "train-rle.csv", rows)
    mixed = Path(shutil.copytree(clean, root / "mixed"))
    reasons = broken_files(mixed / "jpeg", root / "outside")
    write_labels(mixed / "train-rle.csv", [*rows, *((Path(name).stem, "-1") for name in reasons)])
    return clean, mixed, {f"jpeg/{name}": words for name, words in reasons.items()}


def run(*arguments, cwd):
    """A command's exit code, what it wrote to stderr, and the most memory that its processes had together."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}
    with (cwd / "stderr.txt").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=errors, env=environment, cwd=cwd,
        )  # fmt: skip
        most = [0]
        watch = threading.Thread(target=watch_memory, args=(psutil.Process(process.pid), most))
        watch.start()
        code = process.wait(timeout=600)
        watch.join()
        errors.seek(0)
        return code, errors.read(), most[0]


def watch_memory(process, most):
    """Adds up the memory of a process and those below it, shared pages once, until it has ended."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            group = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        most[0] = max(most[0], sum(map(own_memory, group)))
        time.sleep(0.1)


def own_memory(process):
    """The proportional set size of one process; 0 when it has just ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def unlike_images(path, table=None):
    """Good images to which a detector gives no answer, and nothing else; of the clean folder all that is set aside."""
    if not path.exists():
        return {}
    rows = pd.read_csv(path) if table is None else table[table["reason"].str.startswith("Not like")]
    assert rows["reason"].str.startswith("Not like the training images").all()
    return dict(zip(rows["file"], rows["reason"], strict=True))


def set_aside_are_exactly(table, reasons):
    assert len(reasons) == 60
    found = dict(zip(table["file"], table["reason"], strict=True))
    assert len(found) == len(table)
    assert found.keys() == reasons.keys()
    wrong = {name: found[name] for name, words in reasons.items() if words not in found[name]}
    assert not wrong


def test_sixty_broken_files_among_three_hundred_cost_themselves_alone(tmp_path, folders, tiny_runs, tiny_detector):
    clean, mixed, reasons = folders
    commands = {
        "prepare": lambda data, out: ("prepare", data, "--out", out, "--size", 64),
        "predict": lambda data, out: ("predict", tiny_runs / "classifier", "--data", data, "--out", out),
        "detect": lambda data, out: ("detect", tiny_detector, data, "--out", out),
    }
    for name, command in commands.items():
        outputs = {}
        for data in (clean, mixed):
            out = tmp_path / f"{name}-{data.name}"
            key = ("--pseudonym-key", tmp_path / "prepare-clean/pseudonym.key")
            more = key if name == "prepare" and data == mixed else ()
            ended, errors, memory = run(*command(data, out), *more, cwd=tmp_path)
            # The detector never saw JPEGs, and calls some of the good ones unlike its training images: in both folders.
            unlike = unlike_images(tmp_path / f"{name}-clean/quarantine.csv")
            assert ended == int(data == mixed or bool(unlike)), f"{name}: {errors[-3000:]}"
            assert not unlike or name == "detect"
            assert "Traceback" not in errors
            assert memory < MEMORY, f"{name} took {memory / 2**30:.2f} GiB"
            outputs[data] = hashes(out)
        table = pd.read_csv(tmp_path / f"{name}-mixed/quarantine.csv")
        assert unlike_images(tmp_path / f"{name}-mixed/quarantine.csv", table) == unlike
        set_aside_are_exactly(table[~table["file"].isin(unlike)], reasons)
        # The record of a preparation says what was read, so it differs.
        records = {"manifest.json", "quarantine.csv"}
        good, among = ({file: data for file, data in each.items() if file not in records} for each in outputs.values())
        assert "predictions.csv" in good if name == "predict" else len(good) >= GOOD
        assert good == among, [file for file in good.keys() | among.keys() if good.get(file) != among.get(file)]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A DICOM file of 8192 x 8192 pixels in JPEG 2000."""
    pixels = np.tile(np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8), (16, 16))
    return framed(tmp_path_factory.mktemp("large") / "large.dcm", jpeg_2000(pixels), JPEG2000Lossless, pixels)


@pytest.mark.parametrize("command", ["prepare", "detect"])
def test_row_35_a_jpeg_2000_of_64_megapixels_costs_itself_alone(tmp_path, folders, tiny_detector, large, command):
    """Its decoder asks for 3.6 GB. The good files around it are read, and all processes stay under 2 GiB."""
    good = sorted((folders[0] / "raw").glob("*.dcm"))[:16]
    data = tmp_path / "data"
    for number, path in enumerate(good):
        (data / f"{number}").mkdir(parents=True)
        shutil.copy2(path, data / f"{number}" / path.name)
    shutil.copy2(large, data / "3" / "large.dcm")
    labels = [(path.stem, block(number) if number % 2 else "-1") for number, path in enumerate(good)]
    write_labels(data / "train-rle.csv", [*labels, ("large", "-1")])
    out = tmp_path / "out"
    ended, errors, memory = run(
        *{
            "prepare": ("prepare", data, "--out", out, "--size", 64),
            "detect": ("detect", tiny_detector, data, "--out", out),
        }[command],
        cwd=tmp_path,
    )
    assert ended == 1, errors[-3000:]
    table = pd.read_csv(out / "quarantine.csv")
    assert list(table["file"]) == ["3/large.dcm"], table
    assert f"{FILE_MEMORY / 2**30:g} GiB" in table["reason"][0]
    assert memory < MEMORY, f"{memory / 2**30:.2f} GiB"
