"""``keras-pneumo prepare`` of 400 radiographs at 512 pixels, whole command, against the least that could be done.

The other side of the first row is a script of fifteen lines that does nothing but decode, resize and write: it looks
for the JPEG stream in the bytes of the file, without reading the DICOM header, and checks and hashes nothing. It runs
in two processes, forked after the imports, with one thread of OpenCV each and OpenCV's own PNG settings. The other side
of the second row reads the files with pydicom, as most people do. Ours reads labels and patients, makes the split,
draws the masks, and checks, isolates and hashes every file besides.

The files are SIIM's own, under new ids, where ``KERAS_PNEUMO_REAL_DATA`` (or ``../shared``) has some, two of nine with
a pneumothorax; phantoms, stored in the same way, where it has none.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import Lab
from measuring import Command, Row

IMAGES = 400
SIZE = 512
PROCESSES = 2

OPENCV = f"""
import sys
from multiprocessing import get_context
from pathlib import Path
import cv2, numpy as np

def one(job):
    path, out = job
    data = path.read_bytes()
    jpeg = np.frombuffer(data, np.uint8, offset=data.index(b"\\xff\\xd8\\xff"))
    image = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
    small = cv2.resize(image, ({SIZE}, {SIZE}), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(out / (path.stem + ".png")), small)

cv2.setNumThreads(1)
data, out = map(Path, sys.argv[1:])
out.mkdir(parents=True)
with get_context("fork").Pool({PROCESSES}) as pool:
    pool.map(one, [(path, out) for path in sorted(data.rglob("*.dcm"))], chunksize=8)
"""

PYDICOM = OPENCV.replace("import cv2, numpy as np", "import cv2, numpy as np, pydicom, warnings").replace(
    """    data = path.read_bytes()
    jpeg = np.frombuffer(data, np.uint8, offset=data.index(b"\\xff\\xd8\\xff"))
    image = cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE)
""",
    """    warnings.simplefilter("ignore")
    image = pydicom.dcmread(path).pixel_array
""",
)


def rows(lab: Lab) -> Iterator[Row]:
    """The rows of this file."""
    folder = lab.folder / "prepare"
    real = _real_files(lab)
    radiographs = folder / "siim" if real else lab.folder / f"phantoms-{IMAGES}"
    ours, theirs = folder / "ours", folder / "theirs"

    def prepare() -> None:
        if real:
            copy_under_new_ids(real, radiographs, IMAGES)
        else:
            lab.phantoms(IMAGES)

    def empty(out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)

    command = Command(
        lab.command("prepare", radiographs, "--out", ours, "--size", str(SIZE)),
        IMAGES,
        lab.environment,
        before=lambda: empty(ours),
        exit_codes=(0, 1),
    )
    files = f"{len(real)} files of SIIM-ACR under {IMAGES} ids" if real else f"{IMAGES} phantoms"
    for name, goal, script, what in (
        ("OpenCV alone", 0.8, OPENCV, "decoding, resizing and writing alone, in two processes"),
        ("a pydicom loop", 1.0, PYDICOM, "pydicom, resizing and writing, in two processes"),
    ):
        yield Row(
            f"prepare {IMAGES} DICOM at {SIZE} px against {name}",
            "images/s",
            goal,
            command,
            Command([lab.python, "-c", script, radiographs, theirs], IMAGES, before=lambda: empty(theirs)),
            f"Whole command with labels, split, masks, checks and hashes, against {what}; {files}.",
            prepare=prepare,
        )


def _real_files(lab: Lab) -> list[Path]:
    shared = Path(os.environ.get("KERAS_PNEUMO_REAL_DATA", lab.repository.parent / "shared"))
    return sorted((shared / "siim_mini/dicom").glob("*.dcm"))


def copy_under_new_ids(files: list[Path], out: Path, images: int) -> None:
    """Write SIIM's files again and again under ids and patients of their own, with their labels; made once.

    Args:
        files: SIIM's DICOM files, in a folder whose parent has ``train-rle.csv``.
        out: the new folder.
        images: how many files; two of nine have a pneumothorax.
    """
    if (out / "train-rle.csv").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    masks: dict[str, list[str]] = {}
    with (files[0].parent.parent / "train-rle.csv").open(newline="") as stream:
        for image_id, text in list(csv.reader(stream))[1:]:
            masks.setdefault(image_id, []).append(text.strip())
    positive = [path for path in files if masks.get(path.stem, ["-1"]) != ["-1"]]
    negative = [path for path in files if path not in positive]
    labels = [("ImageId", "EncodedPixels")]
    for number in range(images):
        group = positive if number % 9 in (0, 4) and positive else negative
        source = group[number // 2 % len(group)]
        # Ids and patients of the same length, so that the file stays as it is around them.
        image_id = f"{source.stem[:-6]}{number:06d}"
        data = source.read_bytes().replace(source.stem.encode(), image_id.encode())
        patient = re.search(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", data)
        if patient:
            data = data.replace(patient[0], patient[0][:-6] + f"{number:06d}".encode())
        (out / f"{image_id}.dcm").write_bytes(data)
        labels += [(image_id, text) for text in masks.get(source.stem, ["-1"])]
    temporary = out / "labels.part"
    with temporary.open("w", newline="") as stream:
        csv.writer(stream).writerows(labels)
    temporary.replace(out / "train-rle.csv")
