"""What the callbacks of a training count, without a network."""

import contextlib
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from keras_pneumo.training import callbacks
from keras_pneumo.training.callbacks import Interruption, Steps, Validation
from keras_pneumo.training.checkpoints import Checkpoint, State, position_of
from keras_pneumo.training.log import Events


@pytest.mark.parametrize("norm_sum", [12.0, float("nan")])
def test_a_checkpoint_of_an_earlier_version_counts_every_step_of_its_gradients(tmp_path, norm_sum):
    position = dataclasses.asdict(State(epoch=1, step=2, images=16, norm_sum=norm_sum, norm_images=16))
    position.pop("norm_images")
    found = position_of(Checkpoint(tmp_path, {}, {"position": position}))
    assert (found.norm_sum, found.norm_images) == ((12.0, 16) if norm_sum == 12 else (0.0, 0))


@pytest.mark.parametrize(("norms", "wanted"), [([1.0, np.inf, 4.0], 2.0), ([np.nan] * 3, np.nan)])
def test_the_mean_gradient_leaves_out_the_steps_that_overflowed(monkeypatch, norms, wanted):
    """In float16 the loss scale leaves such a step out; its norm is no number. Batches of 8, 4 and 4 images."""
    found, given = State(), []
    network = SimpleNamespace(optimizer=SimpleNamespace(inner_optimizer=None), data_seconds=0.0)
    steps = Steps(found, [8, 4, 4], 1, Interruption(), Events(None), None)
    steps.set_model(network)
    for norm in norms:
        steps.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": norm})
    monkeypatch.setattr(callbacks, "averaged_weights", lambda model: contextlib.nullcontext())
    log = SimpleNamespace(best=None, add_epoch=lambda *row: given.append(row[-1]) or SimpleNamespace(score=0.5))
    validation = Validation(found, log, lambda model: None, "whole", lambda row: None)
    validation.set_model(network)
    validation.on_epoch_end(0)
    assert given[0].gradient_norm == pytest.approx(wanted, nan_ok=True)
    assert found.images == 16
