"""Our networks against torchvision's and smp's, with the same random weights and random BatchNorm statistics.

Outputs are compared in float32, both stacks'. Gradients are compared in float64: a ReLU whose input rounds to the other
side of zero changes the gradient by a step, and a random ResNet50 has so many that PyTorch's own float32 gradient is
1 to 3% off its float64 one. In float64 what would remain is a difference of the implementations.
"""

import keras
import numpy as np
import pytest

from keras_pneumo.models.classifier import build_classifier
from keras_pneumo.models.fastai import build_fastai_classifier
from keras_pneumo.models.preprocessing import normalise
from keras_pneumo.models.resnet import depth_of, resnet
from keras_pneumo.models.torch_archive import load_torch_archive
from keras_pneumo.models.unet import build_unet
from keras_pneumo.models.weights import from_torch, from_torch_by_parts, load_safetensors, to_torch
from keras_pneumo.models.xrayvision import PATHOLOGIES, read_weights, three_channels
from keras_pneumo.parity.networks import by_torch_names, randomise

TRUTH = np.array([[0.0], [1.0], [1.0]], np.float32)


def radiographs(rng, count, height, width):
    """Smooth images of differing contrast with a little noise, shape (count, height, width, 1)."""
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)[None]
    phases = rng.uniform(0, 6, (count, 4, 1, 1))
    waves = np.sin(rows * phases[:, 0] + phases[:, 1]) * np.sin(columns * phases[:, 2] + phases[:, 3])
    image = rng.uniform(0.3, 1, (count, 1, 1)) * (0.5 + 0.45 * waves) + rng.uniform(0, 0.05, (count, height, width))
    return np.clip(image, 0, 1)[..., None].astype(np.float32)


def relative(actual, expected):
    """Largest difference as a share of the reference's range."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.ptp(expected))


def named(outputs):
    """The heads' logits by name."""
    return outputs if isinstance(outputs, dict) else {"mask" if len(outputs.shape) == 4 else "image": outputs}


def gradients_of(model, image, truths, training):
    """Heads' logits, and the gradients of their summed cross-entropy by PyTorch's names."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = named(model(image, training=training))
        losses = [
            keras.ops.binary_crossentropy(keras.ops.cast(truths[head], logits.dtype), logits, from_logits=True)
            for head, logits in outputs.items()
        ]
        loss = sum(keras.ops.mean(values) for values in losses)
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    by_name = by_torch_names(model, model.trainable_variables, gradients)
    return outputs, by_name


def gradient_error(actual, expected, prefix):
    """Norm of the difference over the norm of PyTorch's gradient, of the worst tensor."""
    pairs = {name.removeprefix(prefix): array for name, array in expected.items() if name.startswith(prefix)}
    differences = {name: np.linalg.norm(actual[name] - array) for name, array in pairs.items()}
    norms = {name: np.linalg.norm(array) for name, array in pairs.items()}
    # A gradient of zero (a ReLU that is off for the whole batch) must be zero here too.
    assert all(differences[name] == 0 for name, norm in norms.items() if norm == 0)
    return max(differences[name] / norm for name, norm in norms.items() if norm > 0)


def check_statistics(model, expected):
    """BatchNorm's new averages, mean and unbiased variance."""
    for name, array in to_torch(model).items():
        if name.endswith(("running_mean", "running_var")):
            np.testing.assert_allclose(array, expected[f"float64.buffer.{name}"], rtol=1e-6, atol=1e-9)


def check_round_trip(model, state, returned):
    """Keras, safetensors, PyTorch, safetensors, Keras, bit-equal; PyTorch's training pass moved only the averages."""
    assert returned.keys() == state.keys()
    from_torch(model, returned)
    for name, array in to_torch(model).items():
        if "num_batches" not in name:
            assert array.tobytes() == returned[name].tobytes()
            if "running" not in name:
                assert array.tobytes() == state[name].tobytes()


def check_twins(build, run, image, truths, training_bound=1e-4):
    """Everything above for one network; ``build()`` makes it, ``run(arrays, state)`` gets PyTorch's answers."""
    keras.utils.set_random_seed(1)
    model = build()
    randomise(model, np.random.default_rng(1), image)
    state = to_torch(model)
    folder = run({"radiograph": image, **truths}, state)
    expected = dict(np.load(folder / "out.npz"))
    for mode in ("inference", "training"):
        if "float32.inference.feature0" in expected:
            for index, feature in enumerate(model.get_layer("encoder")(normalise(image), training=False)):
                assert relative(feature, expected[f"float32.inference.feature{index}"]) < 1e-4
        for head, logits in named(model(image, training=mode == "training")).items():
            single, double = (expected[f"{kind}.{mode}.{head}"] for kind in ("float32", "float64"))
            bound = training_bound if mode == "training" else 1e-4
            # Batch statistics of few positions magnify float32's rounding: as far as PyTorch is from its own float64.
            assert relative(logits, single) < max(bound, 3 * relative(single, double))
    check_round_trip(model, state, load_safetensors(folder / "out.safetensors"))

    keras.config.set_dtype_policy("float64")
    try:
        exact = build()
    finally:
        keras.config.set_dtype_policy("float32")
    from_torch(exact, state)
    for mode in ("inference", "training"):
        outputs, gradients = gradients_of(exact, image, truths, mode == "training")
        for head, logits in outputs.items():
            assert relative(logits, expected[f"float64.{mode}.{head}"]) < 1e-10
        assert gradient_error(gradients, expected, f"float64.{mode}.gradient.") < 1e-8
    check_statistics(exact, expected)
    return model, state, expected


@pytest.mark.parametrize(
    ("encoder", "size"),
    [
        ("resnet18", (64, 64)),
        pytest.param("resnet18", (45, 71), marks=pytest.mark.slow),  # odd sizes round up in both
        pytest.param("resnet34", (64, 64), marks=pytest.mark.slow),
        pytest.param("resnet50", (64, 96), marks=pytest.mark.slow),
    ],
)
def test_classifier_is_torchvisions(reference, encoder, size):
    image = radiographs(np.random.default_rng(2), 3, *size)

    def run(arrays, state):
        return reference("classifier", {"encoder": encoder}, arrays=arrays, state=state)

    check_twins(lambda: build_classifier(encoder), run, image, {"image": TRUTH})


@pytest.mark.parametrize(
    ("library", "encoder", "classes"),
    [
        ("timm_classifier", "resnet18", 2),
        pytest.param("classifier", "resnet50", 1000, marks=pytest.mark.slow),  # ImageNet's head
        pytest.param("timm_classifier", "resnet34", 1, marks=pytest.mark.slow),
        pytest.param("timm_classifier", "resnet50", 1000, marks=pytest.mark.slow),
    ],
)
def test_heads_of_any_size_are_torchvisions_and_timms(reference, library, encoder, classes):
    image = radiographs(np.random.default_rng(2), 3, 64, 64)
    truth = np.random.default_rng(5).integers(0, 2, (3, classes)).astype(np.float32)

    def run(arrays, state):
        return reference(library, {"encoder": encoder, "classes": classes}, arrays=arrays, state=state)

    check_twins(lambda: build_classifier(encoder, classes=classes), run, image, {"image": truth})


@pytest.mark.parametrize("size", [(64, 96), pytest.param((45, 71), marks=pytest.mark.slow)])
def test_torchxrayvisions_resnet50_is_taken_as_it_is(reference, size):
    """Its stem of one channel, its range of pixels, its padding and its output, from the file that torch.save wrote."""
    image = radiographs(np.random.default_rng(2), 4, *size)
    image[0] = 0.0  # all black: at the border the padding stands for grey
    image[1] = 1.0
    name = "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"
    folder = reference("xrayvision", {"seed": 3, "file": name}, arrays={"radiograph": image})
    expected = np.load(folder / "out.npz")
    row = PATHOLOGIES.index("Pneumothorax")
    single, double, training = (expected[key][:, row : row + 1] for key in ("float32", "float64", "training"))
    model = build_classifier("resnet50", weights=folder / name)
    assert relative(model(image, training=False), single) < max(1e-4, 3 * relative(single, double))
    keras.config.set_dtype_policy("float64")
    try:
        exact = build_classifier("resnet50")
    finally:
        keras.config.set_dtype_policy("float32")
    state = load_torch_archive(folder / name)
    doubles = {key: array.astype(np.float64) for key, array in state.items() if array.dtype == np.float32}
    from_torch(exact, three_channels(doubles))
    assert relative(exact(image.astype(np.float64), training=False), double) < 1e-10
    assert relative(exact(image.astype(np.float64), training=True), training) < 1e-10

    unet = build_unet("resnet50")
    parts = from_torch_by_parts(unet, read_weights(folder / name))
    assert (parts.loaded, parts.unused) == (["encoder"], ["fc"])
    encoder, of_classifier = (each.get_layer("encoder").get_weights() for each in (unet, model))
    assert all(np.array_equal(*pair) for pair in zip(encoder, of_classifier, strict=True))


@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_headless_timm_takes_and_gives_the_encoders_weights(reference, encoder):
    keras.utils.set_random_seed(3)
    network = resnet(depth_of(encoder))
    image = radiographs(np.random.default_rng(2), 3, 64, 64)
    state = to_torch(network)
    truth = np.zeros((3, network.outputs[-1].shape[-1]), np.float32)
    arguments = {"encoder": encoder, "classes": 0}
    folder = reference("timm_classifier", arguments, arrays={"radiograph": image, "image": truth}, state=state)
    pooled = np.load(folder / "out.npz")["float32.inference.image"]
    pooled_keras = np.array(network(normalise(image), training=False)[-1]).mean(axis=(1, 2))
    assert relative(pooled_keras, pooled) < 1e-4
    check_round_trip(network, state, load_safetensors(folder / "out.safetensors"))


@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_fastai_classifier_is_fastais(reference, encoder):
    image = radiographs(np.random.default_rng(2), 8, 64, 64)
    truth = np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1, 0, 0, 1]]

    def run(arrays, state):
        return reference("fastai_classifier", {"encoder": encoder}, arrays=arrays, state=state)

    # The head's BatchNorm divides by the deviation of eight numbers, which magnifies float32's rounding; in float64 the
    # two agree to 1e-10 as all networks do.
    check_twins(lambda: build_fastai_classifier(encoder, dropout=0.0), run, image, {"image": truth}, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "attention", "image_head"),
    [("resnet18", "scse", True), ("resnet34", None, True), ("resnet50", None, False)],
)
def test_unet_is_smps(reference, encoder, attention, image_head):
    image = radiographs(np.random.default_rng(3), 3, 64, 96)
    mask = (radiographs(np.random.default_rng(4), 3, 64, 96) > 0.6).astype(np.float32)
    options = {"attention": attention, "image_head": image_head}

    def run(arrays, state):
        return reference("unet", {"encoder": encoder, **options}, arrays=arrays, state=state)

    truths = {"mask": mask, "image": TRUTH} if image_head else {"mask": mask}
    model, state, expected = check_twins(lambda: build_unet(encoder, dropout=0.0, **options), run, image, truths)
    # The unused attention of the last block is trained in neither, but PyTorch counts its parameters.
    unused = sum(array.size for name, array in state.items() if "blocks.4.attention1" in name)
    assert sum(variable.numpy().size for variable in model.trainable_variables) + unused == expected["parameters"]
    if encoder == "resnet50":
        assert expected["parameters"] == 32_521_105
