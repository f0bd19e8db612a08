"""Tests that the garbage collector is paused, and afterwards as it was before."""

import gc

import pytest

from keras_pneumo.storage.collection import without_collection


@without_collection()
def paused():
    raise KeyError("it runs" if gc.isenabled() else "paused")


@pytest.mark.parametrize("before", [True, False])
def test_it_is_paused_and_afterwards_as_before(before):
    if not before:
        gc.disable()
    try:
        with pytest.raises(KeyError, match="paused"):
            paused()
        assert gc.isenabled() is before
    finally:
        gc.enable()
