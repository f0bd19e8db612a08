"""ImageNet weights: where they are looked for, and downloads from a local stand-in with a table of its own."""

import hashlib
import http.server
import threading

import keras
import numpy as np
import pytest
import safetensors.numpy

from keras_pneumo.errors import PneumoError
from keras_pneumo.models import imagenet
from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.imagenet import SOURCES, WeightSource, imagenet_weights, images_of_weights, load_pretrained
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import to_torch

STATE = {"conv1.weight": np.arange(8, dtype=np.float32).reshape(2, 4)}
CONTENT = safetensors.numpy.save(STATE)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights in the environment, an empty cache, and no way to the network."""
    monkeypatch.delenv("KERAS_PNEUMO_WEIGHTS", raising=False)
    monkeypatch.delenv("KERAS_PNEUMO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(*_arguments, **_keywords):
        raise OSError("the network is not to be used here")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", refuse)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that gives ``server.content`` (or ``server.status``); its requests are kept."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(self.path)
            self.send_response(state.status)
            self.send_header("Content-Length", str(state.length or len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *_arguments):
            pass

    state = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.content, state.status, state.length, state.requests = CONTENT, 200, None, []
    thread = threading.Thread(target=state.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{state.server_port}/model.safetensors"
    monkeypatch.undo()
    yield state
    state.shutdown()
    thread.join()
    state.server_close()


@pytest.fixture
def downloads(server, tmp_path, monkeypatch):
    """The server's file stands in the table as ResNet50's V1."""
    monkeypatch.delenv("KERAS_PNEUMO_WEIGHTS", raising=False)
    monkeypatch.delenv("KERAS_PNEUMO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = {**SOURCES, "resnet50.imagenet_v1": (WeightSource(server.url, SHA256, len(CONTENT)),)}
    monkeypatch.setattr(imagenet, "SOURCES", table)
    return server


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.imagenet_v1.safetensors",
        "resnet50.tv_in1k/model.safetensors",
        "timm/resnet50.tv_in1k/model.safetensors",
        "models--timm--resnet50.tv_in1k/snapshots/78f3ecf/model.safetensors",
    ],
)
def test_found_in_a_folder_by_its_name(tmp_path, monkeypatch, name):
    path = tmp_path / "my weights ü" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    given = imagenet_weights("resnet50", "imagenet_v1", location=tmp_path / "my weights ü")
    monkeypatch.setenv("KERAS_PNEUMO_WEIGHTS", str(tmp_path / "my weights ü"))
    for weights in (given, imagenet_weights("resnet50", "imagenet_v1")):
        np.testing.assert_array_equal(weights.state["conv1.weight"], STATE["conv1.weight"])
        assert weights.path == path
        assert weights.sha256 == SHA256


def test_a_file_is_taken_whatever_its_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(CONTENT)
    assert imagenet_weights("resnet18", "imagenet_v1", location=path).path == path


def test_the_cache_is_used_before_the_network(tmp_path):
    path = tmp_path / "cache" / "keras_pneumo" / "resnet34.imagenet_v1.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert imagenet_weights("resnet34", "imagenet_v1").path == path


def test_a_folder_without_them_says_what_it_would_hold(tmp_path):
    with pytest.raises(PneumoError, match=r"resnet18\.imagenet_v1\.safetensors.*resnet18-f37072fd\.pth"):
        imagenet_weights("resnet18", "imagenet_v1", location=tmp_path)
    with pytest.raises(PneumoError, match="does not exist"):
        imagenet_weights("resnet18", "imagenet_v1", location=tmp_path / "absent")


def test_torchvisions_name_promises_torchvisions_bytes(tmp_path):
    (tmp_path / "resnet50-11ad3fa6.pth").write_bytes(b"something else")
    with pytest.raises(PneumoError, match="not the file that torchvision publishes"):
        imagenet_weights("resnet50", "imagenet_v2", location=tmp_path)


def test_v2_exists_for_resnet50_only():
    with pytest.raises(PneumoError, match="imagenet_v2 exists for resnet50 only"):
        imagenet_weights("resnet18", "imagenet_v2")
    with pytest.raises(PneumoError, match=r"Choose one of resnet18\.imagenet_v1"):
        imagenet_weights("resnet50", "imagenet21k")


def test_every_pinned_source_is_whole():
    assert set(SOURCES) == {f"resnet{d}.imagenet_v1" for d in (18, 34, 50)} | {"resnet50.imagenet_v2"}
    for sources in SOURCES.values():
        for source in sources:
            assert len(bytes.fromhex(source.sha256)) == 32
            assert source.url.startswith("https://")
            # torchvision's published name carries the checksum's first digits; timm's address a whole commit.
            assert source.sha256[:8] in source.url or len(source.url.split("/resolve/")[1].split("/")[0]) == 40


def test_download_is_checked_kept_and_not_repeated(downloads, tmp_path):
    seen = []
    weights = imagenet_weights("resnet50", "imagenet_v1", progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(weights.state["conv1.weight"], STATE["conv1.weight"])
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert files(tmp_path / "cache") == ["resnet50.imagenet_v1.safetensors"]
    imagenet_weights("resnet50", "imagenet_v1")
    assert len(downloads.requests) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENT[:-1] + b"!", "SHA-256"),
        (CONTENT + b"!", "more than the published"),
        (CONTENT[:-9], "bytes came instead of"),
        (b"", "0 bytes came"),
    ],
)
def test_other_bytes_are_refused_and_not_kept(downloads, tmp_path, content, words):
    downloads.content = content
    with pytest.raises(PneumoError, match=words):
        imagenet_weights("resnet50", "imagenet_v1")
    assert files(tmp_path / "cache") == []


def test_a_broken_connection_is_refused_and_not_kept(downloads, tmp_path):
    downloads.content, downloads.length = CONTENT[:40], len(CONTENT)
    with pytest.raises(PneumoError, match="could they be downloaded"):
        imagenet_weights("resnet50", "imagenet_v1")
    assert files(tmp_path / "cache") == []


def test_an_error_of_the_server_says_what_to_do_by_hand(downloads):
    downloads.status = 404
    with pytest.raises(PneumoError, match=r"404.*KERAS_PNEUMO_WEIGHTS.*random weights"):
        imagenet_weights("resnet50", "imagenet_v1")


def test_the_second_source_is_tried(downloads, monkeypatch):
    good = WeightSource(downloads.url, SHA256, len(CONTENT))
    bad = good._replace(sha256="0" * 64)
    monkeypatch.setattr(imagenet, "SOURCES", {"resnet50.imagenet_v1": (bad, good)})
    assert imagenet_weights("resnet50", "imagenet_v1").sha256 == SHA256
    assert len(downloads.requests) == 2


def test_no_network_is_one_message_with_every_address_tried():
    with pytest.raises(PneumoError, match=r"huggingface\.co.*download\.pytorch\.org.*Fetch"):
        imagenet_weights("resnet18", "imagenet_v1")


def test_a_cache_that_cannot_be_made_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(PneumoError, match="could they be downloaded"):
        imagenet_weights("resnet18", "imagenet_v1")


@pytest.fixture(scope="module")
def trained():
    """A state dict of torchvision's ResNet18 with ImageNet's thousand classes."""
    keras.utils.set_random_seed(3)
    return to_torch(build_classifier("resnet18", classes=1000))


def test_imagenet_weights_by_name_go_into_the_encoder_only(tmp_path, monkeypatch, trained):
    (tmp_path / "resnet18.imagenet_v1.safetensors").write_bytes(safetensors.numpy.save(trained))
    monkeypatch.setenv("KERAS_PNEUMO_WEIGHTS", str(tmp_path))
    state = to_torch(build_classifier("resnet18", "imagenet_v1"))
    np.testing.assert_array_equal(state["layer4.1.conv2.weight"], trained["layer4.1.conv2.weight"])
    assert state["fc.weight"].shape == (1, 512)
    state = to_torch(build_unet("resnet18", "imagenet_v1"))
    np.testing.assert_array_equal(state["encoder.layer4.1.conv2.weight"], trained["layer4.1.conv2.weight"])
    model = build_classifier("resnet18")
    load_pretrained(model, "resnet18", "imagenet_v1", tmp_path / "resnet18.imagenet_v1.safetensors")
    np.testing.assert_array_equal(to_torch(model)["conv1.weight"], trained["conv1.weight"])


def test_a_file_of_weights_is_the_whole_network(tmp_path, trained):
    path = tmp_path / "torchvision.safetensors"
    path.write_bytes(safetensors.numpy.save(trained))
    state = to_torch(build_classifier("resnet18", path, classes=1000))
    assert all(state[name].tobytes() == trained[name].tobytes() for name in trained)
    with pytest.raises(PneumoError, match=r"fc\.weight \(1000, 512\) instead of \(1, 512\)"):
        build_classifier("resnet18", str(path))
    with pytest.raises(PneumoError, match=r"missing: encoder\.conv1\.weight"):
        build_unet("resnet18", path)


def test_weights_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(PneumoError, match=r"no weights 'imagenet21k'\. Choose imagenet_v1, imagenet_v2 or"):
        build_classifier("resnet18", "imagenet21k")
    with pytest.raises(PneumoError, match="imagenet_v2 exists for resnet50 only"):
        build_unet("resnet18", "imagenet_v2")
    with pytest.raises(PneumoError, match="cannot be read"):
        build_unet("resnet18", tmp_path / "absent.safetensors")


def test_what_a_files_weights_have_learned_from(tmp_path, trained):
    def images(name, weights="random", **state):
        notes = state.pop("notes", None)
        (tmp_path / name).write_bytes(safetensors.numpy.save(state or trained, notes))
        return images_of_weights(tmp_path / name, "resnet18", weights)

    assert images("any.safetensors") == "ImageNet-1k"  # by its thousand classes
    one = {"fc.weight": trained["fc.weight"][:1]}
    assert images("any.safetensors", "imagenet_v1", **one) == "unknown images (any.safetensors)"
    assert images("resnet18.imagenet_v1.safetensors", "imagenet_v1", **one) == "ImageNet-1k"
    assert images("resnet18.imagenet_v1.safetensors", "random", **one).startswith("unknown")
    assert images("any.safetensors", **one, notes={"pretraining": "CheXpert\n(5 images)"}) == "CheXpert (5 images)"
