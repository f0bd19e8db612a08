"""Tests of the schedules, against PyTorch's values (tests/parity/pytorch/golden, PyTorch 2.14) and cases by hand."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_pneumo.errors import PneumoError
from keras_pneumo.training.schedules import Plateau, Tabulated, cosine, one_cycle, warm_restarts

GOLDEN = json.loads((Path(__file__).parents[1] / "parity" / "pytorch" / "golden" / "schedules.json").read_text())


def rates_and_momenta(plan):
    """The rates, and the momenta if there are any, of the package for one of PyTorch's recorded schedules."""
    arguments, steps = dict(plan["arguments"]), np.arange(plan["steps"])
    if plan["kind"] == "OneCycleLR":
        return one_cycle(
            steps,
            arguments["total_steps"],
            arguments["max_lr"],
            rise=arguments.get("pct_start", 0.3),
            div_factor=arguments.get("div_factor", 25.0),
            final_div_factor=arguments.get("final_div_factor", 1e4),
            momentum=(arguments.get("base_momentum", 0.85), arguments.get("max_momentum", 0.95)),
            three_phase=arguments.get("three_phase", False),
        )
    if plan["kind"] == "CosineAnnealingLR":
        return cosine(steps, arguments["T_max"], plan["rate"], arguments.get("eta_min", 0.0)), None
    if plan["kind"] == "CosineAnnealingWarmRestarts":
        factor, lowest = arguments.get("T_mult", 1), arguments.get("eta_min", 0.0)
        return warm_restarts(steps, arguments["T_0"], plan["rate"], factor, lowest), None
    names = {"min_lr": "lowest", "eps": "smallest_change"}
    plateau = Plateau(plan["rate"], **{names.get(name, name): value for name, value in arguments.items()})
    return [plateau.step(figure) for figure in plan["figures"]], None


@pytest.mark.parametrize("plan", GOLDEN, ids=lambda plan: f"{plan['kind']}-{plan['steps']}")
def test_equal_to_pytorch_at_every_step(plan):
    rates, momenta = rates_and_momenta(plan)
    # PyTorch multiplies the cosine's rate on from step to step, so its zero is a rounding error of the first rate.
    np.testing.assert_allclose(rates, plan["rates"], rtol=1e-9, atol=1e-15)
    if momenta is not None:
        np.testing.assert_allclose(momenta, plan["momenta"], rtol=1e-9)


@pytest.mark.parametrize("plan", GOLDEN[:4], ids=lambda plan: f"{plan['kind']}-{plan['steps']}")
def test_the_graphs_table_is_the_function_rounded_to_float32(plan):
    import tensorflow as tf

    rates, momenta = rates_and_momenta(plan)
    for values in (rates, momenta):
        schedule = Tabulated(values)
        in_graph = tf.function(schedule)
        table = [float(in_graph(tf.constant(step, tf.int64))) for step in range(len(values))]
        np.testing.assert_array_equal(np.float32(table), np.float32(values))
        assert float(in_graph(tf.constant(10**6))) == np.float32(values[-1])


def test_one_cycle_by_hand():
    # 10 steps, rise 0.5: up to step 4, then down to step 9.
    rates, momenta = one_cycle(np.array([0, 2, 4, 9]), 10, 1.0, rise=0.5, div_factor=10, final_div_factor=10)
    np.testing.assert_allclose(rates, [0.1, 0.55, 1.0, 0.01])
    np.testing.assert_allclose(momenta, [0.95, 0.90, 0.85, 0.95])
    assert one_cycle(4, 10, 1.0, rise=0.5).rate == 1.0


@given(st.integers(10, 400), st.floats(0.25, 0.9), st.floats(1e-6, 10))
def test_one_cycle_rises_once_and_falls_once(total, rise, peak):
    rates, momenta = one_cycle(np.arange(total), total, peak, rise=rise)
    top = int(rates.argmax())
    assert (np.diff(rates[: top + 1]) >= 0).all()
    assert (np.diff(rates[top:]) <= 0).all()
    assert rates.max() <= peak * (1 + 1e-12)
    np.testing.assert_allclose(rates[-1], peak / 25 / 1e4, rtol=1e-6)
    assert momenta.min() >= 0.85 - 1e-12
    assert momenta.max() <= 0.95 + 1e-12


@pytest.mark.parametrize(
    ("total", "options"), [(1, {}), (0, {}), (10, {"rise": 1.5}), (10, {"rise": 0.1}), (10, {"rise": 1.0})]
)
def test_a_plan_without_room_is_refused(total, options):
    with pytest.raises(PneumoError):
        one_cycle(0, total, **options)


def test_cosine_by_hand():
    np.testing.assert_allclose(cosine(np.array([0, 1, 2, 4]), 4, 2.0, 1.0), [2.0, 1 + (1 + 0.5**0.5) / 2, 1.5, 1.0])
    with pytest.raises(PneumoError):
        cosine(0, 0, 1.0)


def test_warm_restarts_by_hand():
    # Cycles of 2, 4, 8 steps: restarts at 0, 2, 6, 14.
    rates = warm_restarts(np.arange(15), 2, 1.0, factor=2)
    np.testing.assert_array_equal(np.flatnonzero(rates == 1.0), [0, 2, 6, 14])
    np.testing.assert_allclose(rates[[1, 4, 10]], 0.5)
    for first, factor in ((0, 2), (2, 0), (2, 1.5)):
        with pytest.raises(PneumoError):
            warm_restarts(0, first, 1.0, factor)


def test_a_table_is_serialised_and_restored_and_invalid_values_are_refused():
    schedule = Tabulated([0.1, 0.2])
    copy = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert float(copy(1)) == np.float32(0.2)
    for values in ([], [np.nan], [[1.0]]):
        with pytest.raises(PneumoError):
            Tabulated(values)


def test_plateau_state_is_saved_and_restored_midway():
    figures = [1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0]
    whole = Plateau(0.1, patience=1)
    expected = [whole.step(figure) for figure in figures]
    first = Plateau(0.1, patience=1)
    rates = [first.step(figure) for figure in figures[:3]]
    second = Plateau(**json.loads(json.dumps(dataclasses.asdict(first))))
    assert rates + [second.step(figure) for figure in figures[3:]] == expected
    assert expected[-1] == pytest.approx(0.001)


def test_plateau_takes_nan_as_no_improvement():
    plateau = Plateau(0.1, patience=0)
    plateau.step(1.0)
    assert plateau.step(float("nan")) == pytest.approx(0.01)
    assert plateau.best == 1.0


@pytest.mark.parametrize("options", [{"mode": "up"}, {"threshold_mode": "x"}, {"factor": 1.0}, {"factor": 0.0}])
def test_plateau_settings_are_checked(options):
    with pytest.raises(PneumoError):
        Plateau(0.1, **options)
