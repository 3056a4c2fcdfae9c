"""The solvers with sparse stages take diffrax's own steps, to rounding, and reject what it rejects."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import loops_around
from tolerances import SOLVER, assert_close

import implicit_reg as ir
from implicit_reg.flows import _stages

PAIRS = {5: (diffrax.Tsit5, _stages.Tsit5), 8: (diffrax.Dopri8, _stages.Dopri8)}
# Stages multiply a tableau of entries up to 17 and of both signs: some tens of roundings.
BOUND = {"float32": 5e-6, "float64": 1e-13}


def solve(method, field, start, *, tolerance, ts=(0.0, 0.7, 2.0), t1=2.0):
    """Everything that a solver returns, in the dtype of the start."""
    dtype = jnp.result_type(*jax.tree.leaves(start))
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        method,
        t0=jnp.zeros((), dtype),
        t1=jnp.asarray(t1, dtype),
        dt0=jnp.asarray(t1 / 16, dtype),
        y0=start,
        saveat=diffrax.SaveAt(ts=jnp.asarray(ts, dtype), t1=True),
        stepsize_controller=diffrax.PIDController(
            rtol=tolerance, atol=tolerance, dtmin=16 * jnp.finfo(dtype).eps, force_dtmin=False
        ),
        max_steps=256,
        throw=False,
    )


def oscillators(t, x, _):
    """Depends on time, mixes its leaves, and makes a solver reject steps."""
    return {"a": jnp.cos(3 * t) - x["a"] ** 3 + jnp.sum(x["b"]), "b": 2 * jnp.sin(4 * x["a"][:2, None]) - x["b"]}


def assert_same(found, expected, bound):
    for name in ("num_steps", "num_accepted_steps", "num_rejected_steps"):
        assert int(found.stats[name]) == int(expected.stats[name])
    assert found.result == expected.result
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=bound, atol=bound), found.ys, expected.ys)


def start_of(dtype):
    return {"a": jnp.asarray([2.0, -1.0, 0.3], dtype), "b": jnp.asarray([[0.5], [1.5]], dtype)}


@pytest.mark.parametrize("order", [5, 8])
@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.x64), "float32"])
def test_steps_and_values_are_those_of_diffrax(order, dtype):
    theirs, ours = PAIRS[order]
    start, tolerance = start_of(dtype), {"float32": 1e-4, "float64": 1e-7}[dtype]
    expected, found = (solve(kind(), oscillators, start, tolerance=tolerance) for kind in (theirs, ours))
    assert int(expected.stats["num_rejected_steps"]) > 0
    assert_same(found, expected, BOUND[dtype])


@pytest.mark.x64
@pytest.mark.parametrize("order", [5, 8])
def test_a_step_returns_what_a_step_of_diffrax_returns(order):
    theirs, ours = PAIRS[order]
    term, start = diffrax.ODETerm(oscillators), start_of("float64")
    t0, t1, t2 = jnp.array(0.1), jnp.array(0.3), jnp.array(0.45)
    results = []
    for solver in (theirs(), ours()):
        first = solver.step(term, t0, t1, start, None, solver.init(term, t0, t1, start, None), False)
        second = solver.step(term, t1, t2, first[0], None, first[3], False)  # its first stage is handed on
        jumped = solver.step(term, t1, t2, first[0], None, first[3], jnp.array(True))  # and is not, after a jump
        results.append([step[:4] for step in (first, second, jumped)])
    expected, found = results
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-14), found, expected)


@pytest.mark.x64
@pytest.mark.parametrize("order", [5, 8])
def test_time_runs_backwards_too(order):
    expected, found = (
        solve(kind(), oscillators, start_of("float64"), tolerance=1e-7, ts=(-0.02, -0.05), t1=-0.08)
        for kind in PAIRS[order]
    )
    assert_same(found, expected, BOUND["float64"])
    np.testing.assert_allclose(found.ts[-1], -0.08)


@pytest.mark.x64
@pytest.mark.parametrize("order", [5, 8])
def test_derivatives_and_batches_are_those_of_diffrax(order):
    def loss(method, x, rate):
        found = solve(method, lambda t, x, _: -rate * x**3 + jnp.cos(t), x, tolerance=1e-7)
        return jnp.sum(found.ys[1] ** 2) + jnp.sum(found.ys[-1])

    x, rates = jnp.array([1.0, -0.4]), jnp.array([0.5, 2.0, 30.0])
    theirs, ours = (
        jax.jit(jax.vmap(jax.value_and_grad(functools.partial(loss, kind()), argnums=(0, 1)), in_axes=(None, 0)))
        for kind in PAIRS[order]
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), ours(x, rates), theirs(x, rates))


@pytest.mark.x64
@pytest.mark.parametrize("order", [5, 8])
def test_a_stage_that_is_not_a_number_rejects_the_step(order):
    """Whichever stage it is, for a field that recovers at once; the zeros of a row are where it would not be missed."""
    theirs, ours = PAIRS[order]
    t0, t1, start = jnp.array(1.0), jnp.array(2.0), jnp.ones(2)

    def error(kind, node):
        field = lambda t, x, _: jnp.where(t == node, jnp.nan, jnp.where(x == x, -x, 0.0))  # noqa: E731
        solver, term = kind(), diffrax.ODETerm(field)
        return solver.step(term, t0, t1, start, None, solver.init(term, t0, t1, start, None), False)[1]

    times = jnp.asarray([1.0, *(1.0 + c for c in theirs.tableau.c), 7.0])
    expected, found = (jax.vmap(functools.partial(error, kind))(times) for kind in (theirs, ours))
    assert not np.any(np.isfinite(found[:-1]))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", [5, 8])
def test_the_field_is_traced_no_more_often_than_by_diffrax(order):
    counts = []
    for kind in PAIRS[order]:
        field = lambda t, x, _: jnp.tan(x)  # noqa: E731
        traced = jax.make_jaxpr(lambda x, kind=kind, field=field: solve(kind(), field, x, tolerance=1e-4).ys)
        counts.append(loops_around(traced(jnp.ones(2)).jaxpr, "tan"))
    assert counts[1] == counts[0]
    assert set(counts[1]) == {2}  # steps, and stages


@pytest.mark.parametrize("order", [5, 8])
def test_the_last_record_is_where_the_solver_ends(order):
    """Alone, or after others that are interpolated; not a number where the solver has not come so far."""
    field = lambda t, x, h: -(x**2)  # noqa: E731
    alone = ir.integrate(field, jnp.ones(2), [1.5], 0.1, order=order)
    after = ir.integrate(field, jnp.ones(2), [0.0, 0.4, 1.5], 0.1, order=order)
    assert np.array_equal(alone.params[-1], after.params[-1])
    assert_close(after.params[:, 0], jnp.asarray(1 / (1 + np.array([0.0, 0.4, 1.5])), jnp.float32), SOLVER)
    cut = ir.integrate(lambda t, x, h: jnp.cos(50 * t), jnp.array(0.0), [10.0], 0.1, order=order, max_steps=3)
    assert cut.solver.out_of_steps
    assert not np.isfinite(cut.params[0])
    start = ir.integrate(field, jnp.ones(2), [0.0], 0.1, order=order)
    assert np.array_equal(start.params, np.ones((1, 2)))
