"""Measures the seconds per radiograph from the DICOM file to the written answer: ResNet50 and U-Net at 512, on a CPU.

    python experiments/benchmarks/detect.py [--images 16] [--size 512] [--json bench.json]

The weights are random (they cost the same as learnt ones), the images are phantoms as DICOM files of 1024x1024. Prints
the seconds of decoding, predicting and writing alone, and of the whole pipeline. ``--json`` also writes rows
``{"name", "ratio", "low", "high", "goal", "note"}``; the ratio is the sum of the stages over the pipeline's time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from keras_pneumo.config import CLASSIFIER, SEGMENTER
from keras_pneumo.data.radiographs.geometry import mask_on_image
from keras_pneumo.data.radiographs.reading import find_files, read_radiograph
from keras_pneumo.detector.calibration import Calibration
from keras_pneumo.detector.detect import detect
from keras_pneumo.detector.detector import BATCH, Detector, ValidationCounts
from keras_pneumo.detector.overlay import encode_png, overlay_mask
from keras_pneumo.detector.summary import caption
from keras_pneumo.inference.engine import Engine, predictors_on
from keras_pneumo.inference.postprocess import PostprocessingParameters
from keras_pneumo.inference.run import FORMAT, RunFolder, build, versions
from keras_pneumo.models.folding import fold_batch_norm
from keras_pneumo.phantoms.folder import PhantomSettings, write_phantoms
from keras_pneumo.storage.workers import available_cores


def random_detector(size: int, flips: bool, engine: Engine) -> Detector:
    """A detector of the untrained default classifier and segmenter; it outlines something on every image."""
    record = {"format": FORMAT, "versions": versions()}
    changes = {"image_size": size, "weights": "random", "flip_averaging": flips}
    runs = [RunFolder(Path(), base.replace(**changes), record) for base in (CLASSIFIER, SEGMENTER)]
    distribute = predictors_on(engine, lambda: 0, print).distribute
    members: list[Any] = [[(run, [distribute(fold_batch_norm(build(run.experiment)))])] for run in runs]
    return Detector(
        folder=Path(), name="random", version="0", classifiers=members[0], segmenters=members[1],
        postprocessing=PostprocessingParameters(0.0, 1, 0.0), outline_area=1,
        calibration=Calibration("none"), probability_source="classifier",
        threshold=0.5, counts=ValidationCounts(2, 2, 1, 0, 0, 1), record={},
    )  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "radiographs", PhantomSettings(images=args.images, seed=0), workers=1)
        paths = [path for path, _ in find_files([folder / "radiographs"]).files]
        engines: tuple[Engine, ...] = ("keras", "onnx")
        for engine, flips in [(engine, flips) for engine in engines for flips in (True, False)]:
            detector = random_detector(args.size, flips, engine)
            images = [read_radiograph(path).pixels for path in paths]
            detector.answer(images[:BATCH])  # compiles, which is paid once
            seconds = {}
            start = time.perf_counter()
            for path in paths:
                read_radiograph(path)
            seconds["decode"] = time.perf_counter() - start
            start = time.perf_counter()
            batches = [images[first : first + BATCH] for first in range(0, len(images), BATCH)]
            answers = [answer for batch in batches for answer in detector.answer(batch)]
            seconds["predict"] = time.perf_counter() - start
            start = time.perf_counter()
            for number, (image, answer) in enumerate(zip(images, answers, strict=True)):
                picture = overlay_mask(image, mask_on_image(answer.mask, *image.shape), caption(detector, answer))
                (folder / f"{number}.png").write_bytes(encode_png(picture))
            seconds["write"] = time.perf_counter() - start
            start = time.perf_counter()
            detect(detector, [folder / "radiographs"], folder / f"out-{engine}-{flips}")
            whole = time.perf_counter() - start
            start = time.perf_counter()
            detect(detector, [folder / "radiographs"], folder / f"dicom-{engine}-{flips}", dicom=True)
            with_dicom = time.perf_counter() - start
            each = {stage: value / len(paths) for stage, value in seconds.items()}
            kind = f"{engine}, {'image and mirror image' if flips else 'image alone'}"
            print(
                f"{kind}: {whole / len(paths):.2f} s per image in all, {with_dicom / len(paths):.2f} s with DICOM "
                f"objects; alone: decode {each['decode']:.3f}, predict {each['predict']:.2f}, write {each['write']:.3f}"
            )
            rows.append({
                "name": f"stages one after the other against the pipeline, {kind}",
                "ratio": sum(seconds.values()) / whole, "low": None, "high": None, "goal": 1.0,
                "note": f"{whole / len(paths):.2f} s per image, {args.images} images at {args.size}",
            })  # fmt: skip
    cores = available_cores()
    print(f"{cores} of {os.cpu_count()} CPU cores, ResNet50 and U-Net on ResNet50 at {args.size}, batches of {BATCH}")
    if args.json:
        machine = f"{platform.platform()}, {cores} cores"
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
