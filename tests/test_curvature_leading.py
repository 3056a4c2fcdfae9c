"""Eigenvalues to a tolerance of their values: it is met, and little more; no ghosts; copies are looked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg import curvature
from implicit_reg.curvature import leading

pytestmark = pytest.mark.x64

OUTLIERS = np.concatenate([np.linspace(0, 1, 392), [1.5, 2, 2.6, 3, 4, 6, 9, 14]])


def diagonal(values, dtype=np.float64):
    values = jnp.asarray(values, dtype)
    return curvature.Operator("diagonal", len(values), values.dtype, lambda a, v: a * v, values, lambda v: v)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("k", "tolerance", "most"), [(1, 1e-4, 14), (5, 1e-5, 34), (6, 1e-3, 34)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_tolerance_is_met_and_little_more(dtype, k, tolerance, most, sign):
    expected = sign * OUTLIERS[::-1][:k]
    operator = diagonal(sign * OUTLIERS, dtype)
    find = curvature.largest_eigenpairs if sign > 0 else curvature.smallest_eigenpairs
    found = find(operator, k, value_tolerance=tolerance)
    assert found.values.dtype == dtype
    assert np.all(found.converged)
    assert found.products <= most
    error = np.abs(found.values - expected)
    assert np.all(error <= tolerance * np.abs(expected))
    assert np.all(error <= found.errors)  # the estimate is one of the error, from above where gaps are as seen
    assert np.max(found.residuals) > tolerance  # half the digits: a residual as small as the error costs twice as much
    half = 3 * np.finfo(dtype).eps ** 0.5
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(k), atol=half)
    residuals = np.linalg.norm(found.vectors * (sign * OUTLIERS) - found.values[:, None] * found.vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, rtol=0.1, atol=14 * half)
    tight = find(operator, k)
    assert tight.products > found.products


@pytest.mark.parametrize(("k", "checks"), [(1, 1), (3, 1 + 5)])
def test_products_are_those_that_run(k, checks):
    """The combination of all pairs, and for more than one pair five steps outside of them."""
    runs = []

    def product(a, v):
        jax.debug.callback(lambda: runs.append(1))
        return a * v

    operator = diagonal(OUTLIERS)
    counted = curvature.Operator("counted", operator.size, operator.dtype, product, operator.arguments, lambda v: v)
    key = jax.random.key(3)
    found = curvature.largest_eigenpairs(counted, k, value_tolerance=1e-5, key=key)
    jax.effects_barrier()
    assert found.products == len(runs)
    traced = curvature.leading_eigenpairs(operator, k, tolerance=1e-5, key=jax.random.split(key)[0])
    assert found.products == int(traced.products) + checks
    np.testing.assert_allclose(found.values, traced.values, rtol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("skew", [0.0, 1e-3])
def test_asymmetry_shows_in_the_start_and_a_combination_of_the_pairs(sign, skew):
    """Without a product of its own: what the operator makes of the start is in the first two rows of the basis."""
    turn = np.random.default_rng(0).standard_normal((100, 100))
    dense = jnp.asarray(np.diag(sign * OUTLIERS[-100:]) + skew * (turn - turn.T))
    keys, signs, k = jax.random.split(jax.random.key(1)), np.array([1.0, -1.0]), 2
    static = lambda a, v: a @ v, 100, dense.dtype, k, 40, 4
    found, _, checks = leading.searched(static, (dense, keys, 1e-3, sign, 40, signs))
    start, mixed = np.asarray(leading.random_unit(keys[0], 100, dense.dtype)), signs @ np.asarray(found.vectors)
    assert bool(jnp.all(found.converged))
    expected = start @ dense @ mixed - mixed @ dense @ start
    np.testing.assert_allclose(checks.gap, expected, rtol=1e-6, atol=1e-12)
    assert (abs(float(checks.gap)) > 1e-6) == (skew > 0)
    off = np.linalg.norm(dense @ mixed - (signs * np.asarray(found.values)) @ np.asarray(found.vectors))
    np.testing.assert_allclose(checks.off, off, rtol=1e-8)
    images = np.linalg.norm(dense @ start), np.linalg.norm(dense @ mixed)
    np.testing.assert_allclose(checks.size, np.linalg.norm(mixed) * images[0] + images[1], rtol=0.03)
    # Its projections are those of the operator on a space outside of the pairs, which holds the third eigenvalue.
    outside = np.linalg.eigvalsh(np.triu(checks.projected) + np.triu(checks.projected, 1).T)
    assert OUTLIERS[-3] * 0.7 < outside[-1] <= OUTLIERS[-3] * (1 + 1e-2)


def test_nothing_is_spent_on_checks_of_what_did_not_converge():
    operator, keys = diagonal(np.linspace(0, 1, 400)), jax.random.split(jax.random.key(0))
    static = operator.product, 400, operator.dtype, 3, 12, 5
    found, _, checks = leading.searched(static, (operator.arguments, keys, 1e-9, 1, 12, np.ones(3)))
    assert not bool(jnp.all(found.converged))
    assert (int(found.products), int(checks.products)) == (12, 0)


def test_no_ghosts_where_outliers_have_long_converged():
    """Without repairs the largest values come out several times by now; with all of them none does."""
    values = np.concatenate([np.linspace(0, 1, 492), 4.0 ** np.arange(1, 5), [1.05, 1.1, 1.15, 1.2]])
    found = curvature.leading_eigenpairs(diagonal(values, np.float32), 8, tolerance=1e-5, max_steps=80)
    assert bool(jnp.all(found.converged))
    assert int(found.products) > 30
    np.testing.assert_allclose(found.values, np.sort(values)[::-1][:8], rtol=1e-5)


def test_too_few_steps_are_reported():
    found = curvature.leading_eigenpairs(diagonal(np.linspace(0, 1, 400)), 4, max_steps=12)
    assert not bool(jnp.all(found.converged))
    assert int(found.products) == 12
    assert float(found.values[0]) <= 1 + 1e-12


def test_an_invariant_subspace_is_left():
    """Three different eigenvalues: the Krylov space ends after three steps, and others begin."""
    values = np.repeat([1.0, 2.0, 5.0], [40, 2, 30])
    found = curvature.leading_eigenpairs(diagonal(values), 3)
    np.testing.assert_allclose(found.values[0], 5.0, rtol=1e-12)
    assert bool(jnp.all(found.converged))
    assert np.all(np.min(np.abs(found.values[:, None] - np.array([1, 2, 5])), axis=1) < 1e-9)


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_an_outlier_are_found(copies):
    values = np.concatenate([np.linspace(0, 1, 400), [2.0, 3.0], np.full(copies, 5.0)])
    found = curvature.largest_eigenpairs(diagonal(values), copies + 2, value_tolerance=1e-6)
    np.testing.assert_allclose(found.values, np.sort(values)[::-1][: copies + 2], rtol=1e-6)


def test_it_goes_on_where_one_space_does_not_do():
    values = np.linspace(0, 1, 300) ** 2
    found = curvature.largest_eigenpairs(diagonal(values), 2, value_tolerance=1e-5)
    assert np.all(found.converged)
    np.testing.assert_allclose(found.values, values[::-1][:2], rtol=1e-5)


def test_in_compiled_programs_without_a_new_compilation():
    traces = []

    def loss(x, scale):
        traces.append(1)
        return 0.5 * x @ (scale * jnp.asarray(OUTLIERS) * x)

    @jax.jit
    def top(x, scale):
        return curvature.leading_eigenpairs(curvature.hessian_operator(loss, x, (scale,)), 3, tolerance=1e-6).values

    x = jnp.zeros(len(OUTLIERS))
    np.testing.assert_allclose(top(x, jnp.array(1.0)), [14, 9, 6], rtol=1e-6)
    seen = len(traces)
    np.testing.assert_allclose(top(x, jnp.array(2.0)), [28, 18, 12], rtol=1e-6)
    assert len(traces) == seen


def test_sharpness_with_a_tolerance_observes_a_run():
    """Whatever the size of the problem, no more products than the tolerance takes."""
    quartic = lambda x: jnp.sum(jnp.asarray(OUTLIERS) * (x**2 / 2 + x**4 / 12))  # noqa: E731
    observe = partial(curvature.sharpness, quartic, tolerance=1e-4, num_steps=40)
    run = ir.descend(optax.sgd, quartic, jnp.ones(400), 0.02, 4, every=2, observe=observe)
    expected = np.max(OUTLIERS * (1 + np.asarray(run.params) ** 2), axis=1)
    np.testing.assert_allclose(run.observed, expected, rtol=1e-4)


def test_products_of_one_linearization_are_those_of_the_operator():
    problem = ir.problems.load_problem("digits-tanh", dtype="float64")
    operator = curvature.hessian_operator(problem.loss_fn, problem.params)
    vector = jnp.linspace(-1, 1, operator.size)
    np.testing.assert_allclose(operator.matvec(vector), operator.apply(vector), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda v: operator.repeated()(v))(vector), operator.apply(vector), rtol=1e-10)


def test_bad_input():
    operator = diagonal(OUTLIERS)
    with pytest.raises(ValueError, match="`k` must be less than the dimension 400"):
        curvature.leading_eigenpairs(operator, 400)
    with pytest.raises(ValueError, match="`max_steps`"):
        curvature.leading_eigenpairs(operator, 4, max_steps=4)
    with pytest.raises(ValueError, match="`tolerance`=1e-20 is below what float64 holds"):
        curvature.leading_eigenpairs(operator, 4, tolerance=1e-20)
    with pytest.raises(ValueError, match="`value_tolerance`=1e-20 is below what float64 holds"):
        curvature.largest_eigenpairs(operator, 4, value_tolerance=1e-20)
    lopsided = curvature.Operator(
        "matrix", 100, operator.dtype, lambda a, v: a @ v, jnp.triu(jnp.ones((100, 100))), lambda v: v
    )
    with pytest.raises(ValueError, match="must be symmetric"):
        curvature.largest_eigenpairs(lopsided, value_tolerance=1e-4)
    with pytest.raises(ValueError, match="not finite"):
        curvature.largest_eigenpairs(diagonal(np.full(100, np.inf)), value_tolerance=1e-4)
