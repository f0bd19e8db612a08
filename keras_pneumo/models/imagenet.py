"""Pretrained weights: ImageNet's by name, found on this machine or downloaded and checked, or a file by its path.

In: an encoder (``resnet18``, ``resnet34``, ``resnet50``) and a set (``imagenet_v1``; ``imagenet_v2``, which exists for
ResNet50 only). Out: torchvision's state dict as numpy arrays, the 1000-class head included. Looked for in this order:

1. the file or folder the user names;
2. the file or folder in ``$KERAS_PNEUMO_WEIGHTS``;
3. the cache: ``$KERAS_PNEUMO_CACHE``, then ``$XDG_CACHE_HOME/keras_pneumo`` or ``~/.cache/keras_pneumo``;
4. the sources below, downloaded into the cache.

In a folder these names count: ``resnet50.imagenet_v1.safetensors``; timm's repository layout,
``resnet50.tv_in1k/model.safetensors`` (``tv2_in1k`` for V2); a Hugging Face cache of it,
``models--timm--resnet50.tv_in1k/snapshots/*/model.safetensors``; and torchvision's own ``resnet50-0676ba61.pth``, as
PyTorch's cache ``~/.cache/torch/hub/checkpoints`` holds it. Files under our own and timm's names are trusted; a file
under torchvision's name must have torchvision's checksum, which is part of that name.

Where the checksums come from. V1: timm's copies of torchvision's weights, pinned to a commit, with the SHA-256 that the
Hugging Face hub shows on the file's page (Git LFS; for ResNet34 that page was not at hand, and the sum is that of a
public program which pins all three). torchvision's own files carry the first eight digits of their SHA-256 in their
published names; the full sums agree in many public records. For V2 no public record of the checksum of timm's copy was
found, so V2 comes from torchvision's file alone, which is read without unpickling (``models/torch_archive.py``).
Licence of the weights: BSD 3-Clause, torchvision.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_pneumo.errors import PneumoError
from keras_pneumo.models.torch_archive import load_torch_archive
from keras_pneumo.models.weights import from_torch, load_safetensors, safetensors_notes
from keras_pneumo.models.xrayvision import IMAGES as XRAYVISION
from keras_pneumo.models.xrayvision import is_torch_file, is_xrayvision, read_state, read_weights
from keras_pneumo.storage.files import cache_folder, default_cache_folder, replacing
from keras_pneumo.storage.tables import one_line


class WeightSource(NamedTuple):
    """A published file: where it is, its SHA-256, and its length in bytes."""

    url: str
    sha256: str
    size: int


def _timm(name: str, commit: str, sha256: str, size: int) -> WeightSource:
    return WeightSource(f"https://huggingface.co/timm/{name}/resolve/{commit}/model.safetensors", sha256, size)


def _torchvision(name: str, sha256: str, size: int) -> WeightSource:
    return WeightSource(f"https://download.pytorch.org/models/{name}-{sha256[:8]}.pth", sha256, size)


SOURCES: dict[str, tuple[WeightSource, ...]] = {
    "resnet18.imagenet_v1": (
        _timm(
            "resnet18.tv_in1k",
            "bbd144b3e5565108aad885f145491d11bc6ce807",
            "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
            46_807_446,
        ),
        _torchvision("resnet18", "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571),
    ),
    "resnet34.imagenet_v1": (
        _timm(
            "resnet34.tv_in1k",
            "1b7b21cca82ff974d341713f777bf740c2db38c4",
            "0bb82595a564991a9d424708b33f5d843f5aaed7f6c0886ff10849ff97022235",
            87_278_522,
        ),
        _torchvision("resnet34", "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f", 87_319_819),
    ),
    "resnet50.imagenet_v1": (
        _timm(
            "resnet50.tv_in1k",
            "78f3ecfdb38e06d9b8397f662e7ab8fee96026fa",
            "5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
            102_469_840,
        ),
        _torchvision("resnet50", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 102_530_333),
    ),
    "resnet50.imagenet_v2": (
        _torchvision("resnet50", "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca", 102_540_417),
    ),
}
"""Published files of each set, the first to be tried first.

The sets are torchvision's IMAGENET1K_V1 (ResNet50: 76.13% top-1) and IMAGENET1K_V2 (80.86%).
"""

_TIMM_TAGS = {"imagenet_v1": "tv_in1k", "imagenet_v2": "tv2_in1k"}


IMAGENET, IMAGENET_CLASSES = "ImageNet-1k", 1000

UNKNOWN = "unknown images"

PRETRAINING = "pretraining"
"""In the header of a safetensors file: the images that its weights have learned from."""


class ImageNetWeights(NamedTuple):
    """A state dict, the file it was read from, and that file's SHA-256."""

    state: dict[str, np.ndarray]
    path: Path
    sha256: str


def load_pretrained(
    model: keras.Model, encoder: str, weights: Path | str | None, location: Path | str | None = None
) -> None:
    """Load weights into a network that was just built.

    Args:
        model: a classifier or a U-Net whose encoder is the layer ``encoder``.
        encoder: the encoder's name, such as ``resnet50``.
        weights: None leaves the random weights. ``imagenet_v1`` or ``imagenet_v2`` goes into the encoder, and the rest
            stays random. Anything else is a safetensors file with PyTorch's names that holds the whole network,
            or torchxrayvision's ResNet50 (:mod:`keras_pneumo.models.xrayvision`).
        location: for ImageNet's weights, as in :func:`imagenet_weights`.

    Raises:
        PneumoError: the weights cannot be had, or they do not fit the network.
    """
    if weights is None:
        return
    if weights in _TIMM_TAGS:
        state = imagenet_weights(encoder, str(weights), location).state
        from_torch(model.get_layer("encoder"), state, head="skip")
    elif Path(weights).suffix == ".safetensors" or Path(weights).is_file():
        from_torch(model, read_weights(Path(weights)))
    else:
        raise PneumoError(
            f"There are no weights {str(weights)!r}. Choose {', '.join(_TIMM_TAGS)} or a safetensors file."
        )


def imagenet_weights(
    encoder: str,
    weights: str,
    location: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageNetWeights:
    """Find or download the ImageNet weights of an encoder; :func:`load_pretrained` loads them.

    Args:
        encoder: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: ``imagenet_v1`` or ``imagenet_v2``.
        location: a file or folder to take them from; nothing else is then looked at.
        progress: called with bytes read and bytes in all during a download.

    Raises:
        PneumoError: no such set; ``location`` does not hold it; or it could neither be found nor downloaded. The
            message says what was tried and what to do by hand.
    """
    name = f"{encoder}.{weights}"
    if name not in SOURCES:
        only = " imagenet_v2 exists for resnet50 only." if weights == "imagenet_v2" else ""
        names = ", ".join(SOURCES)
        raise PneumoError(f"There are no weights {weights!r} for {encoder!r}.{only} Choose one of {names}.")
    named = os.environ.get("KERAS_PNEUMO_WEIGHTS")
    for candidate, source in ((location, "given"), (named, "named by $KERAS_PNEUMO_WEIGHTS")):
        if candidate:
            return _from_location(Path(candidate).expanduser(), encoder, weights, source)
    for folder in (cache_folder(), default_cache_folder()):  # the second is where earlier versions kept them
        cached = _in_folder(folder, encoder, weights)
        if cached is not None:
            return _load(cached, name)
    return _load(_download(name, progress), name)


def images_of_weights(path: Path, encoder: str, weights: str) -> str:
    """The images that a file's weights have learned from, as a submission declares them.

    By the note that our own safetensors files carry; those of torchxrayvision's ResNet50, which is known by its shape;
    ImageNet's where a thousand classes or a published name say so; else unknown.

    Args:
        path: the file.
        encoder: the encoder it was given for.
        weights: what an experiment says of its start: ``random``, ``imagenet_v1`` or ``imagenet_v2``.

    Raises:
        PneumoError: it cannot be read.
    """
    if not is_torch_file(path) and (note := safetensors_notes(path).get(PRETRAINING)):
        return one_line(note, 200)
    state = read_state(path)
    if is_xrayvision(state):
        return XRAYVISION
    head = state.get("fc.weight")
    published = weights in _TIMM_TAGS and any(path.match(name) for name in _names(encoder, weights))
    if published or (head is not None and len(head) == IMAGENET_CLASSES):
        return IMAGENET
    return f"{UNKNOWN} ({one_line(path.name, 80)})"


def _from_location(location: Path, encoder: str, weights: str, source: str) -> ImageNetWeights:
    name = f"{encoder}.{weights}"
    if location.is_file():
        return _load(location, name)
    if not location.is_dir():
        raise PneumoError(
            f"The file or folder of the ImageNet weights, {location} ({source}), does not exist. Check the path."
        )
    path = _in_folder(location, encoder, weights)
    if path is None:
        names = ", ".join(str(candidate) for candidate in _names(encoder, weights))
        raise PneumoError(
            f"The folder {location} ({source}) does not hold the weights {name}. They have one of these names: "
            f"{names}. Put one of them there."
        )
    return _load(path, name)


def _names(encoder: str, weights: str) -> Iterator[str]:
    """Yield names, relative to a folder, that the weights may have; ``*`` stands for any commit."""
    name, timm = f"{encoder}.{weights}", f"{encoder}.{_TIMM_TAGS[weights]}"
    yield f"{name}.safetensors"
    yield f"{timm}/model.safetensors"
    yield f"timm/{timm}/model.safetensors"
    yield f"models--timm--{timm}/snapshots/*/model.safetensors"
    for source in SOURCES[name]:
        if source.url.endswith(".pth"):
            yield source.url.rsplit("/", 1)[-1]


def _in_folder(folder: Path, encoder: str, weights: str) -> Path | None:
    for name in _names(encoder, weights):
        if paths := sorted(folder.glob(name)):
            return paths[0]
    return None


def _load(path: Path, name: str) -> ImageNetWeights:
    """Read the file in the form its name states, after its checksum where the name promises one."""
    digest = _sha256(path)
    for source in SOURCES[name]:
        if path.name == source.url.rsplit("/", 1)[-1] and path.suffix == ".pth" and digest != source.sha256:
            raise PneumoError(
                f"{path} is not the file that torchvision publishes under this name: its SHA-256 is {digest}, not "
                f"{source.sha256}. Delete it and fetch it again."
            )
    state = load_torch_archive(path) if path.suffix == ".pth" else load_safetensors(path)
    return ImageNetWeights(state, path, digest)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PneumoError(
            f"The weights in {path} cannot be read: {error.strerror or error}. Check the path, or fetch the file again."
        ) from error


def _download(name: str, progress: Callable[[int, int], None] | None) -> Path:
    """Download the weights into the cache from the first source that gives the published bytes."""
    folder = cache_folder()
    tried = []
    for source in SOURCES[name]:
        target = folder / _cached_name(source, name)
        try:
            _fetch(source, target, progress)
            return target
        except (OSError, http.client.HTTPException, _NotTheFileError) as error:
            tried.append(f"{source.url}: {error}")
    first = SOURCES[name][0]
    file_name = _cached_name(first, name)
    raise PneumoError(
        f"The ImageNet weights {name} are neither on this machine nor could they be downloaded ({'; '.join(tried)}). "
        f"Fetch {first.url} on a machine with a network, name it {file_name}, and put it into {folder} or set "
        "KERAS_PNEUMO_WEIGHTS to its path; or start from random weights."
    )


def _cached_name(source: WeightSource, name: str) -> str:
    """Return the name under which a download is kept."""
    return source.url.rsplit("/", 1)[-1] if source.url.endswith(".pth") else f"{name}.safetensors"


class _NotTheFileError(Exception):
    """The downloaded bytes are not the published ones."""


def _fetch(source: WeightSource, target: Path, progress: Callable[[int, int], None] | None) -> None:
    """Download a file, checking its length and SHA-256 before it gets its name."""
    request = urllib.request.Request(source.url, headers={"User-Agent": "keras-pneumo"})
    with urllib.request.urlopen(request, timeout=30) as response, replacing(target) as file:
        digest, length = hashlib.sha256(), 0
        while chunk := response.read(1 << 20):
            length += len(chunk)
            if length > source.size:
                raise _NotTheFileError(f"more than the published {source.size} bytes came")
            digest.update(chunk)
            file.write(chunk)
            if progress is not None:
                progress(length, source.size)
        if length != source.size:
            raise _NotTheFileError(f"{length} bytes came instead of {source.size}")
        if digest.hexdigest() != source.sha256:
            raise _NotTheFileError(f"its SHA-256 is {digest.hexdigest()} instead of {source.sha256}")
