"""Which distance tells radiographs of the chest from anything else? The table of docs/detector.md, for one run.

    python experiments/benchmarks/likeness.py RUN PREPARED [OTHERS ...]

RUN is a classifier, PREPARED the folder that it was trained on, OTHERS folders of DICOM files that are no radiographs
of the chest, for instance those of the package pydicom-data (`pip download pydicom-data`). For each distance and each
kind of image: AUROC against the test images, and the share refused at the limit of one false alarm in a hundred. The
limit is the detector's way for the edges (each image by those of other patients); for the other distances it is the
quantile of the validation images, which the network has not learned from. One minute on two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import keras
import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from keras_pneumo.data.batches.images import open_source
from keras_pneumo.data.prepared.folder import PreparedFolder, load_prepared
from keras_pneumo.data.radiographs.geometry import resize_image, shape_fault
from keras_pneumo.data.radiographs.radiograph import Radiograph
from keras_pneumo.data.radiographs.reading import find_files, read_or_reason
from keras_pneumo.detector.likeness import fit_likeness, limit_of
from keras_pneumo.inference.run import RunFolder, load_model, read_run

Images = list[np.ndarray]
Distance = Callable[[np.ndarray], np.ndarray]
OTHER_IMAGES = 40


def pages(rng: np.random.Generator) -> Images:
    """Pages of random words, black on white and white on black."""
    images = []
    for number in range(OTHER_IMAGES):
        image = np.full((1024, 1024), 255 * (number % 2), np.uint8)
        scale, row = rng.uniform(0.5, 1.8), 40
        while row < 1000:
            words = "".join(rng.choice(list("abcdefghij klmnop qrst "), int(rng.integers(20, 70))))
            place = (int(rng.integers(20, 80)), row)
            cv2.putText(image, words, place, 0, scale, 255 * (1 - number % 2), max(1, int(scale * 1.5)), cv2.LINE_AA)
            row += int(scale * rng.uniform(28, 45))
        images.append(image)
    return images


def patterns(rng: np.random.Generator) -> Images:
    """Stripes, steps, checkerboards, ramps, disks and rings."""
    down, right = np.mgrid[:1024, :1024] / 1024
    radius = np.hypot(right - 0.5, down - 0.5)
    images = []
    for number in range(OTHER_IMAGES):
        many, size = rng.uniform(1, 20), rng.uniform(0.1, 0.5)
        drawn = (
            np.sin(2 * np.pi * many * right) / 2 + 0.5,
            np.floor(down * 8) / 8,
            (np.floor(right * (int(many) + 1)) + np.floor(down * (int(many) + 1))) % 2,
            radius * 1.4,
            right * (1 - down),
            (radius < size) * 1.0,
            (radius >= size) * 1.0,
            np.sin(300 * radius**2) / 2 + 0.5,
        )[number % 8]
        images.append((255 * drawn).clip(0, 255).astype(np.uint8))
    return images


def noise(rng: np.random.Generator) -> Images:
    """Noise with spectra from flat to steep."""
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None])
    frequency[0, 0] = 1 / 512
    images = []
    for number in range(OTHER_IMAGES):
        spectrum = np.fft.fft2(rng.normal(size=(512, 512))) / frequency ** (number % 4 / 2)
        grey = np.fft.ifft2(spectrum).real
        images.append(((grey - grey.mean()) / grey.std() * 50 + rng.uniform(80, 170)).clip(0, 255).astype(np.uint8))
    return images


def cut(images: Images, share: float, rng: np.random.Generator) -> Images:
    """A square part of each image, anywhere, of this share of its side."""
    parts = []
    for image in images:
        side = int(len(image) * share)
        top, left = rng.integers(0, len(image) - side + 1, 2)
        parts.append(image[top : top + side, left : left + side])
    return parts


def tilted(images: Images, degrees: float) -> Images:
    """Each image turned about its centre."""
    side = len(images[0])
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), degrees, 1)
    return [cv2.warpAffine(image, turn, (side, side)) for image in images]


def kinds_of(test: Images, others: list[Path]) -> dict[str, Images]:
    """What should get an answer, and what should not, by name."""
    rng = np.random.default_rng(0)
    kinds = {
        "test images": test,
        "mirrored": [image[:, ::-1] for image in test],
        "tilted by 7 degrees": tilted(test, 7),
        "cut to 95% of the side": cut(test, 0.95, rng),
        "gamma 0.7": [np.rint(255 * (image / 255) ** 0.7).astype(np.uint8) for image in test],
        "inverted": [255 - image for image in test],
        "rotated by 90 degrees": [np.rot90(image) for image in test],
        "rotated by 180 degrees": [np.rot90(image, 2) for image in test],
        "cut to 70% of the side": cut(test, 0.7, rng),
        "cut to 50% of the side": cut(test, 0.5, rng),
        "cut to 35% of the side": cut(test, 0.35, rng),
        "text pages": pages(rng),
        "test patterns": patterns(rng),
        "noise": noise(rng),
        "blank": [np.full((512, 512), value, np.uint8) for value in range(0, 256, 17)],
    }
    for path, name in find_files(others).files if others else []:
        radiograph = read_or_reason(path)
        if isinstance(radiograph, Radiograph) and not shape_fault(radiograph.pixels):
            kinds[f"file {name}"] = [radiograph.pixels]
    return {name: [np.ascontiguousarray(image) for image in images] for name, images in kinds.items()}


def pooled_features(run: RunFolder) -> Callable[[Images], np.ndarray]:
    """The features that the classifier's last layer sees, float32 (n, channels)."""
    model = load_model(run)
    network = keras.Model(model.input, model.get_layer("pool").output)
    size = run.experiment.image_size

    def features(images: Images) -> np.ndarray:
        pixels = np.stack([resize_image(image, size) for image in images])[..., None].astype(np.float32) / 255
        return np.asarray(network.predict(pixels, batch_size=32, verbose=0))

    return features


def grey_features(images: Images) -> np.ndarray:
    """Grey values of 16x16 pixels, of mean 0 and deviation 1 in each image."""
    small = np.stack([resize_image(image, 16).ravel() for image in images]).astype(np.float32)
    return (small - small.mean(axis=1, keepdims=True)) / (small.std(axis=1, keepdims=True) + 1)


def mahalanobis(train: np.ndarray) -> Distance:
    """Lee et al. 2018, with the shrinkage of Ledoit and Wolf."""
    fit = LedoitWolf().fit(train)
    return lambda x: np.asarray(fit.mahalanobis(x))


def nearest(train: np.ndarray, count: int = 5) -> Distance:
    """Sun et al. 2022: the distance to the fifth nearest, features of length 1."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    return lambda x: 1 - np.sort(unit(x) @ unit(train).T, axis=1)[:, -count]


def components(train: np.ndarray) -> Distance:
    """Mahalanobis distance within the main components, and what they leave over (probabilistic PCA)."""
    fit = PCA(n_components=min(40, len(train) // 4)).fit(train)
    return lambda x: -fit.score_samples(x)


def main(run_folder: Path, prepared_folder: Path, others: list[Path]) -> None:
    """Print the table as Markdown."""
    run, prepared = read_run(run_folder), load_prepared(prepared_folder)
    size = run.experiment.image_size

    def images_of(subset: str) -> Images:
        return _images(prepared, prepared.subset(subset, run.experiment.fold), size)

    train, validation, kinds = images_of("train"), images_of("validation"), kinds_of(images_of("test"), others)
    fit = fit_likeness(prepared, size, run.experiment.fold)
    assert fit is not None
    names = ["edges, nearest"]
    groups: list[tuple[Callable[[Images], np.ndarray], list[tuple[Distance, float]]]] = []
    for kind, features, ways in (
        ("classifier", pooled_features(run), {"Mahalanobis": mahalanobis, "nearest": nearest}),
        ("grey 16x16", grey_features, {"PCA": components, "nearest": nearest}),
    ):
        known, held_out = features(train), features(validation)
        distances = [make(known) for make in ways.values()]
        groups.append((features, [(distance, limit_of(distance(held_out), 0.01)[0]) for distance in distances]))
        names += [f"{kind}, {way}" for way in ways]

    def measured(images: Images) -> list[tuple[np.ndarray, float]]:
        rows = [(fit.likeness.distances(images), fit.likeness.limit)]
        for features, ways in groups:
            values = features(images)
            rows += [(distance(values), limit) for distance, limit in ways]
        return rows

    print(f"| images | n | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    inside = measured(kinds["test images"])
    for kind, images in kinds.items():
        cells = []
        for (distances, limit), (own, _) in zip(measured(images), inside, strict=True):
            auroc = roc_auc_score([0] * len(own) + [1] * len(distances), np.r_[own, distances])
            cells.append(f"{auroc:.2f}, {np.mean(distances > limit):.0%}")
        print(f"| {kind} | {len(images)} | {' | '.join(cells)} |", flush=True)


def _images(prepared: PreparedFolder, image_ids: list[str], size: int) -> Images:
    source = open_source(prepared, image_ids, size)
    return [source.image(index) for index in range(len(image_ids))]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(folder) for folder in sys.argv[3:]])
