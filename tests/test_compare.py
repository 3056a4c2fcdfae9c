"""Discrepancies and orders against hand-made trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import ROUND_OFF, assert_close

import implicit_reg as ir


def trajectory(params, t=(0.0, 1.0), h=0.1):
    return ir.Trajectory(np.asarray(t, float), params, None, np.ones(len(t), bool), h)


def test_error_is_the_norm_over_all_leaves():
    a = trajectory({"x": np.array([[0.0, 0.0], [3.0, 0.0]]), "y": np.array([1.0, 4.0])})
    b = trajectory({"x": np.zeros((2, 2)), "y": np.array([1.0, 0.0])})
    found = ir.discrepancy(a, b)
    np.testing.assert_array_equal(found.error, [0.0, 5.0])
    np.testing.assert_array_equal(found.t, [0.0, 1.0])


def test_error_is_summed_in_float64_whatever_the_flag():
    a, b = trajectory(np.array([1.0, 1.0])), trajectory(np.array([1.0, 1.0 + 1e-12]))
    assert abs(ir.discrepancy(a, b).error[1] / 1e-12 - 1) < 1e-3


def test_error_of_complex_parameters():
    a, b = trajectory(np.array([0j, 3 + 4j])), trajectory(np.array([0j, 0j]))
    np.testing.assert_array_equal(ir.discrepancy(a, b).error, [0.0, 5.0])


def test_a_diverged_record_has_no_finite_error():
    a, b = trajectory(np.array([1.0, np.inf])), trajectory(np.array([1.0, 2.0]))
    assert not np.isfinite(ir.discrepancy(a, b).error[1])


def test_discrepancy_under_jit():
    run = lambda h: ir.descend(optax.sgd, lambda x: jnp.sum(x**2), jnp.ones(2), h, 2)  # noqa: E731
    error = jax.jit(lambda h: ir.discrepancy(run(h), run(2 * h)).error)(0.1)
    assert_close(error, jnp.sqrt(2.0) * jnp.abs(jnp.array([0.0, 0.8 - 0.6, 0.64 - 0.36])), ROUND_OFF)


def test_times_may_differ_by_rounding():
    h = 0.1
    steps = np.arange(101) * h
    summed = np.concatenate([[0.0], np.cumsum(np.full(100, h))])
    assert np.any(steps != summed)
    ir.discrepancy(trajectory(np.zeros(101), steps), trajectory(np.zeros(101), summed))


@pytest.mark.parametrize("h", [jnp.float32(0.1), np.float32(0.1)])
def test_a_float32_step_size_has_its_own_rounding(h):
    steps = ir.descend(optax.sgd, lambda x: x**2, jnp.array(1.0), h, 100, every=50)
    ir.discrepancy(steps, trajectory(np.zeros(3, np.float32), [0.0, 5.0, 10.0]))


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (
            trajectory(np.ones(2)),
            trajectory(np.ones(2), [0.0, 1.0 + 1e-6]),
            ValueError,
            r"same times, got t\[1\]=1.0 and",
        ),
        (
            trajectory(np.ones(2)),
            trajectory(np.ones(3), [0.0, 0.5, 1.0]),
            ValueError,
            r"same times, got \(2,\) and \(3,\)",
        ),
        (trajectory(np.ones(2)), trajectory({"x": np.ones(2)}), ValueError, "must have the same structure"),
        (trajectory(np.ones(2)), trajectory(np.ones((2, 1))), ValueError, "they must be equal"),
        (trajectory({}), trajectory({}), ValueError, "at least one leaf"),
        (trajectory(np.ones(2, int)), trajectory(np.ones(2, int)), TypeError, "every leaf must be floating"),
        (
            ir.Trajectory(np.zeros((2, 2)), np.ones((2, 2)), None, None),
            trajectory(np.ones(2)),
            ValueError,
            r"use jax.vmap\(discrepancy\)",
        ),
        (np.ones(2), trajectory(np.ones(2)), TypeError, "`a` must be a Trajectory, got ndarray"),
    ],
)
def test_bad_input_of_discrepancy(a, b, error, message):
    with pytest.raises(error, match=message):
        ir.discrepancy(a, b)


@given(
    order=st.floats(0.5, 6.0),
    constant=st.floats(1e-3, 1e3),
    ratios=st.lists(st.floats(1.2, 4.0), min_size=1, max_size=5),
)
def test_a_power_law_has_its_order(order, constant, ratios):
    h = 1.0 / np.cumprod([1.0, *ratios])
    np.testing.assert_allclose(ir.observed_order(h, constant * h**order), np.full(len(ratios), order), rtol=1e-9)


def test_orders_of_several_errors_at_once():
    h = np.array([0.4, 0.2, 0.1])
    np.testing.assert_allclose(ir.observed_order(h, np.stack([h, h**3], axis=1)), [[1.0, 3.0], [1.0, 3.0]])


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_error_that_says_nothing_gives_nan(bad):
    slopes = ir.observed_order([0.4, 0.2, 0.1], [4.0, 2.0, bad])
    assert slopes[0] == 1.0
    assert np.isnan(slopes[1])


@pytest.mark.parametrize(
    ("h", "errors", "error", "message"),
    [
        ([0.1], [1.0], ValueError, "at least two step sizes, got 1"),
        ([], [], ValueError, "at least two step sizes, got 0"),
        ([0.1, 0.2], [1.0, 2.0], ValueError, "strictly decreasing"),
        ([0.2, 0.2], [1.0, 2.0], ValueError, "strictly decreasing"),
        ([0.2, -0.1], [1.0, 2.0], ValueError, "positive and strictly decreasing"),
        ([0.2, np.nan], [1.0, 2.0], ValueError, "positive and strictly decreasing"),
        ([0.2, 0.1], [1.0, 2.0, 3.0], ValueError, "one entry for each of 2 step sizes"),
        ([0.2, 0.1], [1.0, -2.0], ValueError, "must not be negative"),
        ("0.2", [1.0], TypeError, "`h` must be real numbers"),
        ([0.2, 0.1], ["a", "b"], TypeError, "`error` must be real numbers"),
        ([0.2, 0.1], [1j, 1j], TypeError, "`error` must be real numbers"),
        ([0.2, 0.1], [True, True], TypeError, "`error` must be real numbers"),
        ([[0.2, 0.1]], [1.0], ValueError, "must be a vector"),
    ],
)
def test_bad_input_of_observed_order(h, errors, error, message):
    with pytest.raises(error, match=message):
        ir.observed_order(h, errors)
