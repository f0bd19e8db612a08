"""Which program runs a network: Keras, or ONNX Runtime where that is asked for, or measured to be faster.

In: the engine that the user chose, and how many images there are. Out: the ``DistributedPredictor`` for it.

- ``keras`` (the default everywhere): always the same program, so that a run's submission can be repeated bit for bit.
- ``onnx``: ONNX Runtime on the CPU. Its logits are compared with Keras's on the first images, and refused where they
  differ by more than :data:`BOUND`.
- ``auto``: Keras, unless ONNX Runtime is faster here by :data:`FASTER`. That is measured on the first batch, if the
  images keep Keras busy for :data:`WORTH_SECONDS` and more: an export takes ten seconds and more, so that it would not
  pay for a few. The measurement is kept (for these weights, versions, machine and batch), and so is the export.

Exports lie in the folder ``onnx`` of the user's cache, named by a hash of the network's weights and of the versions of
the libraries. ONNX needs onnx, tf2onnx and onnxruntime (extra ``export``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from keras_pneumo.errors import PneumoError
from keras_pneumo.inference.export import ONNX_PACKAGES, largest_difference, named_logits, onnx_runner, write_onnx
from keras_pneumo.inference.predictor import SINGLE_DEVICE, CompiledNetwork, DistributedPredictor, Predictor
from keras_pneumo.inference.run import hardware
from keras_pneumo.storage.files import cache_folder, read_json, write_json

Engine = Literal["keras", "onnx", "auto"]

BOUND = 1e-5
"""Largest difference of a logit between the engines, as a share of the largest logit's size (at least of 1)."""

FASTER = 1.05
"""How many times as fast as Keras ONNX Runtime must be for ``auto`` to choose it: less is noise."""

WORTH_SECONDS = 120.0
"""Work by Keras from which on ``auto`` tries ONNX Runtime: a quarter less of it is twice the time of an export."""

PAIRS = 3
"""Batches that each engine predicts in a measurement, in turns, after one to warm up."""

COMPARED = 4
"""Images on which the engines' logits are compared."""

KEPT = 8
"""Exports kept in the cache, the newest: each is as large as the weights, 100 MB for a ResNet50."""

FILE = "engines.json"
"""In the cache: the measurements, images per second of each engine by network, machine and batch."""


def predictors_on(engine: Engine, images: Callable[[], int], notify: Callable[[str], None]) -> DistributedPredictor:
    """Where networks are made and predict, on one device.

    Args:
        engine: see the module.
        images: tells how many will be predicted; only ``auto`` calls it, to see whether a trial pays.
        notify: called with a sentence on the engine of each network, unless ``engine`` is ``keras``.

    Raises:
        PneumoError: ``onnx`` is asked for, and a package is missing.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if engine == "onnx" and missing:
        raise PneumoError(f"ONNX needs {', '.join(missing)}. Run: pip install 'keras-pneumo[export]'")
    if engine == "auto" and (missing or tf.config.list_physical_devices("GPU")):
        reason = f"ONNX Runtime needs {', '.join(missing)}" if missing else "there is a GPU"
        notify(f"Engine: Keras ({reason}).")
    elif engine != "keras":
        used: set[str] = set()

        def distribute(model: keras.Model) -> Predictor:
            return EnginePredictor(model, engine, images, notify, used.add)

        return DistributedPredictor(contextlib.nullcontext, distribute, engines=used)
    return SINGLE_DEVICE


class EnginePredictor:
    """A network whose engine is settled with the first batch that it predicts."""

    def __init__(
        self,
        model: keras.Model,
        engine: Engine,
        images: Callable[[], int],
        notify: Callable[[str], None],
        on_chosen: Callable[[str], None] = lambda engine: None,
    ) -> None:
        """Predict with ``model`` on ``onnx`` or ``auto``; ``on_chosen`` is called with the name of the engine."""
        self.model: keras.Model | None = model
        self.engine, self.images = engine, images
        self.notify, self.on_chosen = notify, on_chosen
        self.predictor: Predictor | None = None

    def predict_on_batch(self, x: Any) -> Any:
        """The logits of a batch, as NumPy arrays.

        Raises:
            PneumoError: the engine is ``onnx``, and its logits are not those of Keras.
        """
        if self.predictor is None:
            assert self.model is not None
            keras_network = CompiledNetwork(self.model)
            chosen = self._onnx(keras_network, x) if self.engine == "onnx" else self._faster(keras_network, x)
            self.on_chosen(_named_version("onnxruntime") if chosen else _named_version("keras"))
            self.predictor, self.model = chosen or keras_network, None  # one copy of the weights is enough
        return self.predictor.predict_on_batch(x)

    def _onnx(self, keras_network: CompiledNetwork, x: Any) -> OnnxNetwork:
        network, difference = self._compared(keras_network, x)
        if not difference <= BOUND:
            raise PneumoError(_differs(difference) + " Use --engine keras, and please report this.")
        self.notify(f"Engine: ONNX Runtime; its logits differ from Keras's by {difference:.0e} of the largest.")
        return network

    def _faster(self, keras_network: CompiledNetwork, x: Any) -> OnnxNetwork | None:
        """The network on ONNX Runtime, if it is the faster one; None: Keras is, or a trial does not pay."""
        assert self.model is not None
        name = f"{network_hash(self.model)[:24]}, {hardware()}, {'x'.join(str(side) for side in x.shape)}"
        speeds = _measured(name)
        if speeds is None:
            keras_network.predict_on_batch(x)
            seconds = _seconds(keras_network, x) / len(x) * self.images()
            if seconds < WORTH_SECONDS:
                self.notify(
                    f"Engine: Keras. It needs about {seconds:.0f} s, too little for a trial of ONNX Runtime to pay."
                )
                return None
        elif speeds["onnx"] < FASTER * speeds["keras"]:
            self.notify(f"Engine: Keras. {_compare(speeds)} (measured earlier).")
            return None
        network, difference = self._compared(keras_network, x)
        if not difference <= BOUND:
            self.notify(f"Engine: Keras. {_differs(difference)}")
            return None
        earlier = speeds is not None
        if speeds is None:
            speeds = _measure(keras_network, network, x)
            _remember(name, speeds)
        faster = speeds["onnx"] >= FASTER * speeds["keras"]
        when = "measured earlier" if earlier else "measured now"
        self.notify(
            f"Engine: {'ONNX Runtime' if faster else 'Keras'}. {_compare(speeds)} ({when}); the logits differ by "
            f"{difference:.0e} of the largest."
        )
        return network if faster else None

    def _compared(self, keras_network: CompiledNetwork, x: Any) -> tuple[OnnxNetwork, float]:
        """The network on ONNX Runtime, and how far its logits are from Keras's on the first images."""
        assert self.model is not None
        network = open_onnx(self.model)
        few = x[:COMPARED]
        logits, expected = (named_logits(each.predict_on_batch(few)) for each in (network, keras_network))
        return network, largest_difference(logits, expected)


class OnnxNetwork:
    """A network on ONNX Runtime, with the one method of a Keras model that prediction uses."""

    def __init__(self, content: bytes) -> None:
        """Take an export's bytes."""
        self.run = onnx_runner(content)

    def predict_on_batch(self, x: Any) -> Any:
        """Logits of float32 (B, S, S, 1) in [0, 1]: (B, 1), (B, S, S, 1), or both as ``image`` and ``mask``."""
        outputs = self.run(np.ascontiguousarray(x, np.float32))
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return {"image": outputs["image_logit"], "mask": outputs["mask_logits"]}


def open_onnx(model: keras.Model) -> OnnxNetwork:
    """The network on ONNX Runtime's CPU kernels, exported into the cache if it is not there yet."""
    folder = cache_folder() / "onnx"
    path = folder / f"{network_hash(model)[:24]}.onnx"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
                export = Path(temporary) / path.name
                write_onnx(model, export)
                shutil.move(export, path)
            _forget_oldest(folder)
        path.touch()  # the newest are kept
        content = path.read_bytes()
    except OSError:  # a full or read-only cache: an export for this process alone
        with tempfile.TemporaryDirectory() as temporary:
            export = Path(temporary) / path.name
            write_onnx(model, export)
            content = export.read_bytes()
    return OnnxNetwork(content)


def network_hash(model: keras.Model) -> str:
    """A hash of the network's layers and weights, and of the versions of the libraries that run it."""
    digest = hashlib.sha256()
    libraries = ("keras", "tensorflow", *ONNX_PACKAGES)
    versions = {name: importlib.metadata.version(name) for name in libraries if find_spec(name)}
    digest.update(json.dumps([versions, model.to_json()], sort_keys=True).encode())
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _forget_oldest(folder: Path) -> None:
    exports = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in exports[KEPT:]:
        path.unlink(missing_ok=True)


def _measure(keras_network: Predictor, onnx_network: Predictor, x: Any) -> dict[str, float]:
    """Images per second of each engine, which predict the batch in turns; the median of each."""
    engines = {"keras": keras_network, "onnx": onnx_network}
    for network in engines.values():
        network.predict_on_batch(x)
    seconds = [{name: _seconds(network, x) for name, network in engines.items()} for _ in range(PAIRS)]
    return {name: round(len(x) / float(np.median([each[name] for each in seconds])), 3) for name in engines}


def _seconds(network: Predictor, x: Any) -> float:
    start = time.perf_counter()
    network.predict_on_batch(x)
    return time.perf_counter() - start


def _measured(name: str) -> dict[str, float] | None:
    """An earlier measurement; None where there is none."""
    match _measurements().get(name):
        case {"keras": int() | float() as by_keras, "onnx": int() | float() as by_onnx}:
            return {"keras": float(by_keras), "onnx": float(by_onnx)}
    return None


def _measurements() -> dict[str, object]:
    try:
        content = read_json(cache_folder() / FILE)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(name: str, speeds: dict[str, float]) -> None:
    with contextlib.suppress(PneumoError):  # where the cache cannot be written, it is measured again
        write_json(cache_folder() / FILE, _measurements() | {name: speeds})


def _compare(speeds: dict[str, float]) -> str:
    return f"ONNX Runtime predicts {speeds['onnx']:.1f} images/s here, Keras {speeds['keras']:.1f}"


def _differs(difference: float) -> str:
    return f"ONNX Runtime's logits differ from Keras's by {difference:.0e} of the largest (at most {BOUND:.0e})."


def _named_version(library: str) -> str:
    title = {"onnxruntime": "ONNX Runtime", "keras": "Keras"}[library]
    return f"{title} {importlib.metadata.version(library)}"
