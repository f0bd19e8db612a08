"""The simulation of a training on many GPUs: its arithmetic by hand, its random part, and its tables in the docs."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulation():
    path = ROOT / "experiments/benchmarks/scale_simulation.py"
    specification = importlib.util.spec_from_file_location("scale_simulation", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules["scale_simulation"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["scale_simulation"]


def test_all_reduce_by_hand(simulation):
    """Ring of 4: 6 turns of 25 of 100 bytes at 10 a second, and 1 s each. Tree: 2 levels up and down, and 2 x 10 s."""
    assert simulation.ring_seconds(100, 4, 10, 1) == pytest.approx(6 * (2.5 + 1))
    assert simulation.tree_seconds(100, 4, 10, 1) == pytest.approx(2 * 2 * 1 + 2 * 10)
    assert simulation.tree_seconds(100, 5, 10, 1) == pytest.approx(2 * 3 * 1 + 2 * 10), "three levels"
    assert simulation.ring_seconds(100, 1, 10, 1) == simulation.tree_seconds(100, 1, 10, 1) == 0


def test_the_slowest_link_counts(simulation):
    """Within one host links are ten times as fast and arrive in a third of the time."""
    host = simulation.Host(gpus=2, link_bytes_per_second=10, link_seconds=3)
    plan = simulation.Plan(gpus=2)
    assert simulation.message_seconds(100, plan, host) == pytest.approx(2 * (50 / 100 + 1))
    assert simulation.message_seconds(100, replace(plan, gpus=4), host) == pytest.approx(2 * (2 * 3 + 10))


def test_a_networks_bytes_by_hand(simulation):
    """2 BatchNorms of 3 and 4 channels: 7 + 9 float64 forwards, 6 + 8 float32 backwards; 10 weights, 4 copies."""
    network = simulation.Network(parameters=10, batch_norms=2, batch_norm_channels=7, optimizer_copies=3)
    assert network.gradient_bytes == 48
    assert network.batch_norm_bytes == 16 * 8 + 14 * 4
    assert network.checkpoint_bytes == 160


def test_the_real_networks_figures_are_the_networks_own(simulation):
    import keras

    from keras_pneumo.models.classifier import build_classifier
    from keras_pneumo.models.resnet import leaf_layers

    model, network = build_classifier("resnet50"), simulation.Network()
    norms = [layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert network.parameters == sum(variable.shape.num_elements() for variable in tensors(model))
    assert network.batch_norms == len(norms)
    assert network.batch_norm_channels == sum(layer.gamma.shape[0] for layer in norms)


def tensors(model):
    return [variable.value for variable in model.trainable_variables]


def test_a_step_by_hand(simulation):
    """8 images on each of 2 GPUs of a host, at 4 a second; 2 cores of 4 a second; half of the array in memory."""
    host = simulation.Host(
        gpus=2, cores=2, memory_bytes=1250, gpu_images_per_second=4, images_per_core=4, storage_bytes_per_second=40
    )
    plan = simulation.Plan(radiographs=20, image_size=10, gpus=2, per_gpu=8)
    step = simulation.step_of(simulation.Network(), plan, host)
    assert step.computing == 2
    assert step.augmenting == 16 / 8
    assert step.reading == pytest.approx(0.5 * 16 * 100 / 40)
    assert step.limit == "reading"
    assert step.seconds == pytest.approx(20)
    enough = simulation.step_of(simulation.Network(), plan, replace(host, memory_bytes=1e6))
    assert enough.reading == 0
    assert enough.limit == "GPU"
    assert enough.seconds == pytest.approx(2 + enough.batch_norm + enough.gradients)


def test_without_jitter_and_failures_time_is_steps_times_step(simulation):
    host = simulation.Host(jitter=0.0, gpu_hours_between_failures=1e12)
    plan = simulation.Plan(radiographs=100_000, gpus=8, epochs=2)
    training = simulation.simulate(simulation.Network(), plan, host)
    steps = 90_000 // 128
    assert training.epoch_minutes * 60 == pytest.approx(steps * training.step.seconds)
    assert training.waiting_hours == pytest.approx(0, abs=1e-9)
    assert training.failures == 0
    validation = 2 * 10_000 / (8 * host.gpu_images_per_second * 3)
    assert training.hours * 3600 == pytest.approx(2 * steps * training.step.seconds + validation)


def test_the_random_part_is_seeded_and_costs_what_it_should(simulation):
    """Of 64 replicas the slowest takes about 2.35 standard deviations longer; failures come at their rate."""
    network, plan = simulation.Network(), simulation.Plan(gpus=64, epochs=2)
    host = simulation.Host(gpu_hours_between_failures=1e12)
    first, same = (simulation.simulate(network, plan, host, 3) for _ in range(2))
    assert first == same
    assert first != simulation.simulate(network, plan, host, 4)
    steps = 2 * (900_000 // 1024)
    assert first.waiting_hours * 3600 / steps / first.step.computing == pytest.approx(2.35 * 0.03, rel=0.05)
    often = replace(host, gpu_hours_between_failures=16)  # one in a quarter of an hour on 64 GPUs
    failing = simulation.simulate(network, replace(plan, epochs=400), often, 0)
    assert failing.failures == pytest.approx(failing.hours / 0.25, rel=0.2)
    assert failing.lost_hours == pytest.approx(failing.failures * 450 / 3600, rel=0.2)


def test_the_docs_have_the_tables_that_it_prints(simulation, capsys):
    simulation.main([])
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page
