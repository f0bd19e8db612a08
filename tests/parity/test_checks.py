"""What our code computes for the ladder, where that can be checked without PyTorch."""

import importlib

import keras
import numpy as np

from keras_pneumo.parity.checks import decoded, float64_kept, resized


def test_keras_still_has_the_private_table_of_types():
    """The only private name of Keras that the ladder uses; setup.cfg caps Keras for such names."""
    name = "keras.src.backend.common.dtypes"
    table = getattr(importlib.import_module(name), "BIT64_TO_BIT32_DTYPE", None)
    assert isinstance(table, dict), (
        f"This Keras has no {name}.BIT64_TO_BIT32_DTYPE. The ladder's check 8 (gradients in float64) needs it: without "
        "it Keras's torch backend rounds to float32 in between. See float64_kept in keras_pneumo/parity/checks.py."
    )
    before = table.get("float64")
    assert before in ("float64", "float32"), (
        f"{name}.BIT64_TO_BIT32_DTYPE no longer has an entry for float64, so float64_kept in "
        "keras_pneumo/parity/checks.py changes nothing, and check 8 may compare rounded gradients."
    )
    table["float64"] = "float32"  # as it is on Keras's torch backend
    try:
        with float64_kept():
            assert keras.backend.result_type("float64", "float32") == "float64", (
                f"{name}.BIT64_TO_BIT32_DTYPE does not decide about float64 any more; see float64_kept in "
                "keras_pneumo/parity/checks.py."
            )
        assert table["float64"] == "float32", "the table is as it was"
    finally:
        table["float64"] = before


def test_only_square_images_that_are_large_enough_are_resized(tmp_path):
    import cv2

    shapes = [(64, 64), (64, 48), (16, 16)]
    paths = [tmp_path / f"{number}.png" for number in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        cv2.imwrite(str(path), np.full(shape, 100, np.uint8))
    pixels = decoded(paths)
    assert [image.shape for image in pixels.values()] == shapes
    assert list(pixels) == ["file 0 (png)", "file 1 (png)", "file 2 (png)"]
    assert {name: image.shape for name, image in resized(pixels, [32]).items()} == {"file 0 (png) at 32": (32, 32)}
