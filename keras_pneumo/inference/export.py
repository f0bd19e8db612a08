"""Exports of a run's network for other programs: PyTorch, TensorFlow without Keras, ONNX Runtime, LiteRT.

In: a finished run, or a network as it starts. Out: a file (savedmodel: a folder) that computes the network's logits
from the input that the Keras network takes, float32 (batch, height, width, 1) in [0, 1]; the normalisation is inside.
PyTorch's file holds weights only, under the names of torchvision or smp. Each export is read back and run on a few test
images before it gets its name, and one that gives other logits is removed: a wrong export is worse than none. ONNX
needs onnx, tf2onnx and onnxruntime (extra ``export``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.config import Experiment
from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.run import RunFolder, build, load_model
from keras_pneumo.models.imagenet import PRETRAINING
from keras_pneumo.models.weights import from_torch, load_safetensors, save_safetensors

Format = Literal["torch", "savedmodel", "onnx", "litert"]

BOUND = 1e-4
"""Largest difference of a logit that is accepted, as a share of the largest logit's size (at least of 1)."""

TEST_IMAGES = 3
"""Images on which an export is compared with its network."""

ONNX_PACKAGES = ("tf2onnx", "onnx", "onnxruntime")

NamedLogits = dict[str, np.ndarray]
"""``image_logit`` (batch, 1) and, of segmenters, ``mask_logits`` (batch, height, width, 1)."""

Runner = Callable[[np.ndarray], NamedLogits]


@dataclass(frozen=True)
class Exported:
    """The path of an export, and its largest difference from the run's logits as a share of the largest one."""

    path: Path
    difference: float


def export_run(run: RunFolder, form: Format, path: Path) -> Exported:
    """Export a run's best weights; see :func:`export_network`."""
    split = str(run.record.get("split_sha256", ""))
    notes = {"split_sha256": split, PRETRAINING: run.images_seen, **_threshold(run)}
    return export_network(load_model(run), run.experiment, form, path, notes)


def export_network(
    model: keras.Model, experiment: Experiment, form: Format, path: Path, notes: dict[str, str] | None = None
) -> Exported:
    """Write ``model`` to ``path``, checked; on a failure nothing is written.

    Args:
        model: the experiment's network.
        experiment: its settings; kept beside the weights as JSON.
        form: of the file. ``litert`` has the experiment's image size built in, the others take any size (the U-Net: any
            that divides by 32).
        path: a new file, or for ``savedmodel`` a new folder.
        notes: further texts for the record.

    Raises:
        PneumoError: ``path`` exists or cannot be written, a package is missing, or the export's logits differ from the
            network's by more than :data:`BOUND`.
    """
    for new in (path, _note_of(path)) if form == "litert" else (path,):
        _require_new(new)
    if form == "onnx" and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise PneumoError(f"ONNX needs {', '.join(missing)}. Run: pip install 'keras-pneumo[export]'")
    record = {**describe(experiment, form), **(notes or {})}
    images = make_test_images(experiment.image_size)
    expected = keras_runner(model)(images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            runner = _WRITERS[form](model, experiment, temporary, record)
            difference = largest_difference(runner(images), expected)
            if not difference <= BOUND:
                raise PneumoError(
                    f"The {form} export gives other logits than the network (by {difference:.1e} of the largest; "
                    f"at most {BOUND:.0e} is accepted), so it was removed. Please report this with the experiment."
                )
            finished = sorted(Path(folder).iterdir())
            for each in finished:
                _require_new(path.parent / each.name)
            for each in finished:
                shutil.move(each, path.parent / each.name)
    except OSError as error:
        raise PneumoError(
            f"{path} could not be written: {error.strerror or error}. Free some space, or choose another --out."
        ) from error
    return Exported(path, difference)


def make_test_images(size: int, count: int = TEST_IMAGES) -> np.ndarray:
    """Smooth random images with some grain, float32 (count, size, size, 1) in [0, 1]; the same each time.

    Like a radiograph they have large bright and dark areas, edges and noise, so that every layer has something to do.
    """
    random = np.random.default_rng(0)
    images = []
    for _ in range(count):
        image = 0.03 * random.normal(size=(size, size))
        for cells, weight in ((4, 1.0), (16, 0.4)):
            cloud = random.normal(size=(cells, cells)).astype(np.float32)
            image += weight * cv2.resize(cloud, (size, size), interpolation=cv2.INTER_CUBIC)
        images.append((image - image.min()) / (image.max() - image.min()))
    return np.stack(images)[..., None].astype(np.float32)


def keras_runner(model: keras.Model) -> Runner:
    """Runs the network itself; its outputs have the names that the exports use."""
    return lambda images: named_logits(model.predict_on_batch(images))


def named_logits(outputs: Any) -> NamedLogits:
    """The outputs of ``predict_on_batch`` by the names that the exports use."""
    return {name: np.asarray(value) for name, value in _named(outputs).items()}


def largest_difference(logits: NamedLogits, expected: NamedLogits) -> float:
    """Largest difference of a logit as a share of the largest expected one's size (at least of 1); inf if none fits."""
    if logits.keys() != expected.keys() or any(logits[name].shape != expected[name].shape for name in expected):
        return float("inf")
    shares = [np.abs(logits[name] - value).max() / max(1.0, np.abs(value).max()) for name, value in expected.items()]
    return float(np.max(np.nan_to_num(shares, nan=np.inf)))


def describe(experiment: Experiment, form: Format) -> dict[str, str]:
    """The record of an export: its input, its output, and the experiment as JSON."""
    size = experiment.image_size
    taken = "float32 (batch, height, width, 1), a grey radiograph in [0, 1]; normalisation is inside"
    if form == "litert":
        taken = f"float32 (batch, {size}, {size}, 1), a grey radiograph in [0, 1]; normalisation is inside"
    if form == "torch":
        taken = (
            "float32 (batch, 3, height, width): three equal channels of a grey radiograph in [0, 1], less ImageNet's "
            "mean (0.485, 0.456, 0.406), by its deviation (0.229, 0.224, 0.225)"
        )
    outputs = "image_logit (batch, 1): its sigmoid is the probability of a pneumothorax"
    if experiment.task == "segmenter":
        outputs = "mask_logits (batch, height, width, 1)" + ("; " + outputs if experiment.image_head else "")
    return {
        "input": taken,
        "output": outputs,
        "trained_at": f"{size}x{size}",
        "use": "research use only",
        "experiment": json.dumps(experiment.model_dump(mode="json")),
    }


def _threshold(run: RunFolder) -> dict[str, str]:
    return {} if run.threshold is None else {"threshold": repr(run.threshold)}


def _named(outputs: Any) -> dict[str, Any]:
    if not isinstance(outputs, dict):
        outputs = {"mask" if len(outputs.shape) == 4 else "image": outputs}
    return {"mask_logits" if name == "mask" else "image_logit": value for name, value in outputs.items()}


def _serving(model: keras.Model, side: int | None = None) -> keras.Model:
    """The network with new names of its input and outputs, and a fixed size where one is given.

    A network whose input and output are both called ``image``, as the U-Net's are, confuses tf2onnx.
    """
    radiograph = keras.Input((side, side, 1), name="radiograph")
    return keras.Model(radiograph, _named(model(radiograph)), name="exported")


def _torch(model: keras.Model, experiment: Experiment, path: Path, record: dict[str, str]) -> Runner:
    save_safetensors(model, path, record)
    again = build(experiment)
    from_torch(again, load_safetensors(path))
    return keras_runner(again)


def _savedmodel(model: keras.Model, _: Experiment, path: Path, record: dict[str, str]) -> Runner:
    _serving(model).export(path, format="tf_saved_model", verbose=False)
    _write_note(path / "keras_pneumo.json", record)
    loaded = tf.saved_model.load(str(path))
    return lambda images: {name: value.numpy() for name, value in loaded.serve(images).items()}


def _onnx(model: keras.Model, _: Experiment, path: Path, record: dict[str, str]) -> Runner:
    write_onnx(model, path, record)
    return onnx_runner(path.read_bytes())


def onnx_runner(content: bytes) -> Runner:
    """Runs an ONNX export, given as its bytes, on ONNX Runtime's CPU kernels."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> NamedLogits:
        return dict(zip(names, session.run(names, {"radiograph": images}), strict=True))

    return run


def write_onnx(model: keras.Model, path: Path, record: dict[str, str] | None = None) -> None:
    """Write a network as ONNX, from the input ``radiograph`` to :data:`NamedLogits`; it is not run."""
    import onnx

    network = _serving(model)
    network(np.zeros((1, 64, 64, 1), np.float32))  # Keras asks for one call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras's patch of tf2onnx looks for np.object
        network.export(path, format="onnx", verbose=False)
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, record or {})
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _litert(model: keras.Model, experiment: Experiment, path: Path, record: dict[str, str]) -> Runner:
    # With a free size the converter leaves convolutions to TensorFlow's own kernels, which LiteRT's runtime lacks.
    # Keras insists on the ending.
    file = path.with_name(path.name + ".tflite")
    _serving(model, experiment.image_size).export(file, format="litert", verbose=False)
    file.rename(path)
    _write_note(_note_of(path), record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the interpreter will move to a package of its own
        run = tf.lite.Interpreter(str(path)).get_signature_runner()

    def runner(images: np.ndarray) -> NamedLogits:
        each = [run(radiograph=image[None]) for image in images]
        return {name: np.concatenate([logits[name] for logits in each]) for name in each[0]}

    return runner


def _note_of(path: Path) -> Path:
    """The file with the record of a LiteRT export: beside it, since the export has no room for a record."""
    return path.with_name(path.name + ".json")


def _require_new(path: Path) -> None:
    if path.exists():
        raise PneumoError(f"{path} exists already and was not changed. Choose another --out, or remove it.")


def _write_note(path: Path, record: dict[str, str]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


_WRITERS: dict[str, Callable[[keras.Model, Experiment, Path, dict[str, str]], Runner]] = {
    "torch": _torch,
    "savedmodel": _savedmodel,
    "onnx": _onnx,
    "litert": _litert,
}
