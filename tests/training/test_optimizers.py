"""Tests of AdamW and SGD: against PyTorch's steps (tests/parity/pytorch/golden, PyTorch 2.14), and within Keras."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_pneumo.training.optimizers import SGD, AdamW, decays
from keras_pneumo.training.schedules import Tabulated, one_cycle

PARITY = Path(__file__).parents[1] / "parity" / "pytorch"
sys.path.insert(0, str(PARITY))
from make_golden import OPTIMIZERS, optimizer_inputs  # noqa: E402 - the plans that the golden values were made with

GOLDEN = json.loads((PARITY / "golden" / "optimizers.json").read_text())


def optimizer_of(plan, bias_path):
    """The package's optimizer for one of PyTorch's recorded settings, 12 steps."""
    arguments = dict(plan["arguments"])
    rate, momentum = plan["rate"], arguments.pop("momentum", None)
    if plan["one_cycle"]:
        rates, momenta = one_cycle(np.arange(12), 12, rate)
        rate, momentum = Tabulated(rates), Tabulated(momenta)
    if plan["kind"] == "AdamW":
        arguments = {"epsilon": arguments.get("eps", 1e-8), "beta_1": 0.9 if momentum is None else momentum}
    else:
        arguments["momentum"] = momentum
    return {"AdamW": AdamW, "SGD": SGD}[plan["kind"]](
        rate,
        weight_decay=plan["decay"],
        rate_multipliers={bias_path: plan.get("bias_multiple", 1.0)},
        global_clipnorm=plan.get("clip"),
        **arguments,
    )


def steps_of(plan, compiled):
    """Kernel and bias after each of the 12 steps."""
    import tensorflow as tf

    inputs = optimizer_inputs()
    kernel, bias = keras.Variable(inputs["kernel"], name="kernel"), keras.Variable(inputs["bias"], name="bias")
    optimizer = optimizer_of(plan, bias.path)
    optimizer.build([kernel, bias])
    apply = tf.function(lambda *g: optimizer.apply(g)) if compiled else (lambda *g: optimizer.apply(g))
    for of_kernel, of_bias in zip(inputs["kernel_gradients"], inputs["bias_gradients"], strict=True):
        apply(tf.constant(of_kernel), tf.constant(of_bias))
        yield np.array(kernel), np.array(bias)


@pytest.mark.parametrize(("compiled", "fused"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("index", range(len(OPTIMIZERS)))
def test_every_step_equals_pytorchs(index, compiled, fused, monkeypatch):
    if not fused:  # as on Keras's other backends
        monkeypatch.setattr(keras.backend, "backend", lambda: "another")
    for step, (kernel, bias) in enumerate(steps_of(OPTIMIZERS[index], compiled)):
        np.testing.assert_allclose(kernel, np.float32(GOLDEN[f"{index}.kernel.{step}"]), rtol=2e-6, atol=3e-7)
        np.testing.assert_allclose(bias, np.float32(GOLDEN[f"{index}.bias.{step}"]), rtol=2e-6, atol=3e-7)


def test_first_adamw_step_by_hand():
    # The first bias-corrected step is rate * g / (|g| + epsilon); decay first takes rate * decay of the variable.
    variable = keras.Variable(np.array([[2.0, -1.0]], np.float32))
    optimizer = AdamW(0.1, weight_decay=0.5, epsilon=1e-2)
    optimizer.apply([keras.ops.convert_to_tensor([[0.03, 0.0]])], [variable])
    np.testing.assert_allclose(np.array(variable), [[2 * 0.95 - 0.1 * 0.03 / 0.04, -0.95]], rtol=1e-6)


def test_sgd_by_hand_at_a_changing_rate():
    # Gradients 1, 1 and momentum 0.5: buffers 1, 1.5; rates 1, 0.1. Keras's own SGD would take 1 * 0.5 + 0.1 next.
    variable = keras.Variable(np.zeros((1, 1), np.float32))
    optimizer = SGD(Tabulated([1.0, 0.1]), momentum=0.5)
    for expected in (-1.0, -1.15):
        optimizer.apply([keras.ops.ones((1, 1))], [variable])
        np.testing.assert_allclose(np.array(variable), [[expected]], rtol=1e-6)


def test_weight_decay_leaves_out_vectors():
    kernel, bias = keras.Variable(np.ones((3, 3), np.float32)), keras.Variable(np.ones(3, np.float32))
    assert decays(kernel)
    assert not decays(bias)
    for optimizer in (AdamW(0.1, weight_decay=0.1), SGD(0.1, weight_decay=0.1)):
        variables = [keras.Variable(kernel), keras.Variable(bias)]
        optimizer.apply([keras.ops.zeros((3, 3)), keras.ops.zeros(3)], variables)
        np.testing.assert_allclose(np.array(variables[0]), 0.99, rtol=1e-6)
        np.testing.assert_array_equal(np.array(variables[1]), 1)
    everything = AdamW(0.1, weight_decay=0.1, decay_applies=lambda _variable: True)
    everything.apply([keras.ops.zeros(3)], [bias])
    np.testing.assert_allclose(np.array(bias), 0.99, rtol=1e-6)


def test_a_multiplier_of_zero_changes_nothing():
    first, second = keras.Variable(np.ones((2, 2), np.float32)), keras.Variable(np.ones((2, 2), np.float32))
    optimizer = AdamW(0.1, rate_multipliers={first.path: 0.0})
    optimizer.apply([keras.ops.ones((2, 2))] * 2, [first, second])
    np.testing.assert_array_equal(np.array(first), 1)
    assert np.array(second).max() < 1


def dense_model():
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
    rng = np.random.default_rng(5)
    return model, rng.normal(size=(64, 5)).astype(np.float32), rng.normal(size=(64, 1)).astype(np.float32)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_fit_learns_with_schedule_clipping_and_ema(policy, kind):
    keras.config.set_dtype_policy(policy)
    try:
        model, inputs, targets = dense_model()
    finally:
        keras.config.set_dtype_policy("float32")
    rates, momenta = one_cycle(np.arange(80), 80, 0.05)
    momentum = {"beta_1": Tabulated(momenta)} if kind is AdamW else {"momentum": Tabulated(momenta)}
    optimizer = kind(Tabulated(rates), global_clipnorm=1.0, use_ema=True, ema_momentum=0.5, **momentum)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model.compile(optimizer, loss="mse")
    losses = model.fit(inputs, targets, batch_size=16, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert int(optimizer.iterations) == 80


def test_state_is_saved_and_restored_midway():
    plan = OPTIMIZERS[1]
    expected = list(steps_of(plan, compiled=False))[-1][0]
    inputs = optimizer_inputs()

    def go(kernel, bias, optimizer, steps):
        for step in steps:
            gradients = [inputs["kernel_gradients"][step], inputs["bias_gradients"][step]]
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], [kernel, bias])

    kernel, bias = keras.Variable(inputs["kernel"]), keras.Variable(inputs["bias"])
    optimizer = optimizer_of(plan, bias.path)
    go(kernel, bias, optimizer, range(6))
    store = {}
    optimizer.save_own_variables(store)
    again = [keras.Variable(np.array(kernel)), keras.Variable(np.array(bias))]
    restored = optimizer_of(plan, again[1].path)
    restored.build(again)
    restored.load_own_variables(store)
    go(*again, restored, range(6, 12))
    np.testing.assert_array_equal(np.array(again[0]), expected)


def test_steps_under_a_distribution_strategy_equal_the_plain_ones():
    import tensorflow as tf

    devices = tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices[:1]])
    results = []
    for scope in (strategy.scope(), tf.distribute.get_strategy().scope()):
        with scope:
            model, inputs, targets = dense_model()
            path = model.trainable_variables[0].path
            model.compile(AdamW(0.05, weight_decay=0.1, rate_multipliers={path: 0.5}), loss="mse")
            model.fit(inputs, targets, batch_size=16, epochs=2, shuffle=False, verbose=0)
            results.append([np.array(v) for v in model.trainable_variables])
    for mirrored, plain in zip(*results, strict=True):
        np.testing.assert_allclose(mirrored, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_schedule_stands_once_in_the_graph_of_a_step(kind):
    """Not once for each of a network's variables, each time with its table of all steps."""
    import tensorflow as tf

    table = Tabulated(np.linspace(0.85, 0.95, 77))
    optimizer = kind(0.1, **{"beta_1" if kind is AdamW else "momentum": table})
    variables = [keras.Variable(np.ones((2, 2), np.float32)) for _ in range(5)]
    optimizer.build(variables)
    apply = tf.function(lambda *gradients: optimizer.apply(gradients))
    graph = apply.get_concrete_function(*[tf.ones((2, 2))] * 5).graph
    constants = [operation for operation in graph.get_operations() if operation.type == "Const"]
    assert [operation.outputs[0].shape.as_list() for operation in constants].count([77]) == 1
    steps = ("ResourceApplyAdam", "ResourceApplyMomentum")
    assert sum(operation.type in steps for operation in graph.get_operations()) == 5
