"""Eigenpairs, traces and densities against dense matrices, known spectra and another library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, STATISTICAL, assert_close

import implicit_reg as ir
from implicit_reg import curvature

pytestmark = pytest.mark.x64

SPECTRA = {
    "rank-deficient": np.concatenate([np.zeros(90), np.linspace(1, 3, 10)]),
    "clustered": np.concatenate([np.ones(50), 1 + 1e-9 * np.arange(47), [2.0, 2.0, 5.0]]),
    "indefinite": np.linspace(-3, 4, 100),
    "condition 1e8": np.logspace(-8, 0, 100),
    "zero": np.zeros(100),
    "negative": -np.linspace(1, 2, 100),
    "large and rank-deficient": np.concatenate([np.zeros(580), np.linspace(1, 3, 100)]),
    "far below one": 1e-12 * np.linspace(-3, 4, 100),
    "triple": np.concatenate([np.linspace(0, 1, 97), [2.0, 2.0, 2.0]]),
    "small": np.array([2.0, -1.0, 0.5]),
}


def matrix_operator(matrix):
    matrix = jnp.asarray(matrix)
    return curvature.Operator("matrix", len(matrix), matrix.dtype, lambda a, v: a @ v, matrix, lambda v: v)


def with_spectrum(values):
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(values), len(values))))
    return (rotation * values) @ rotation.T


@pytest.fixture(scope="module")
def network():
    problem = ir.problems.load_problem("digits-tanh", dtype="float64")
    operator = curvature.hessian_operator(problem.loss_fn, problem.params)
    return problem, operator, np.asarray(operator.dense())


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("sign", [1, -1])
def test_known_spectra(name, sign):
    """Values, multiplicities (no ghosts and none lost), residuals and bounds, at both ends."""
    values = np.sort(SPECTRA[name])
    matrix = with_spectrum(values)
    find = curvature.largest_eigenpairs if sign > 0 else curvature.smallest_eigenpairs
    found = find(matrix_operator(matrix), 3)
    expected = values[::-1][:3] if sign > 0 else values[:3]
    scale = np.max(np.abs(values)) or 1.0
    assert np.all(found.converged)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(3), atol=1e-12)
    residuals = np.linalg.norm(found.vectors @ matrix - found.values[:, None] * found.vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-13 * scale)
    nearest = np.min(np.abs(values - found.values[:, None]), axis=1)
    assert np.all(nearest <= found.bounds + 1e-15 * scale)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("sign", [1, -1])
def test_known_spectra_in_float32(name, sign):
    """The default tolerance is met in the dtype of the parameters, and the bounds hold there."""
    values = np.sort(SPECTRA[name])
    operator = matrix_operator(with_spectrum(values).astype(np.float32))
    find = curvature.largest_eigenpairs if sign > 0 else curvature.smallest_eigenpairs
    found = find(operator, 2)
    assert found.values.dtype == np.float32
    assert np.all(found.converged)
    scale = np.float32(np.max(np.abs(values)) or 1)
    expected = (values[::-1] if sign > 0 else values)[:2].astype(np.float32)
    np.testing.assert_allclose(found.values / scale, expected / scale, rtol=0, atol=DERIVATIVE.float32)
    # The eigenvalues of the rounded matrix, not of the one it was rounded from.
    true = np.linalg.eigvalsh(np.asarray(operator.dense(), np.float64))
    assert np.all(np.min(np.abs(true - found.values[:, None]), axis=1) <= found.bounds)


def test_a_network_against_the_dense_hessian_and_another_library(network):
    from matfree import decomp, eig

    _, operator, dense = network
    expected, vectors = np.linalg.eigh(dense)
    high, low = curvature.largest_eigenpairs(operator, 5), curvature.smallest_eigenpairs(operator, 5)
    np.testing.assert_allclose(high.values, expected[::-1][:5], rtol=0, atol=1e-8 * expected[-1])
    np.testing.assert_allclose(low.values, expected[:5], rtol=0, atol=1e-8 * expected[-1])
    np.testing.assert_allclose(np.abs(np.sum(high.vectors * vectors.T[::-1][:5], axis=1)), 1, atol=1e-6)
    assert np.all(high.converged)
    assert np.all(low.converged)
    assert high.products < 200
    krylov = eig.eigh_partial(decomp.tridiag_sym(60, materialize=True, reortho="full"))
    theirs, _ = krylov(lambda v: operator.apply(v), jnp.ones(operator.size))
    np.testing.assert_allclose(high.values[0], np.max(theirs), rtol=1e-8)
    np.testing.assert_allclose(low.values[0], np.min(theirs), rtol=1e-8)


def test_too_few_products_are_reported_and_never_wrong():
    values = np.linspace(0, 1, 400) ** 0.5  # no gap at the top
    found = curvature.largest_eigenpairs(matrix_operator(with_spectrum(values)), 4, max_products=30)
    assert not np.all(found.converged)
    nearest = np.min(np.abs(values - found.values[:, None]), axis=1)
    assert np.all(nearest <= found.bounds)
    assert found.values[0] <= 1 + 1e-12


def test_lanczos_decomposes(network):
    """`A Q' = Q' T + r e_m'` with orthonormal rows, also past an invariant subspace."""
    _, operator, dense = network
    space = curvature.lanczos(operator, jnp.ones(operator.size), 40)
    basis = np.asarray(space.basis)
    tridiagonal = np.diag(space.diagonal) + np.diag(space.off_diagonal, 1) + np.diag(space.off_diagonal, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(40), atol=1e-12)
    rest = dense @ basis.T - basis.T @ tridiagonal
    np.testing.assert_allclose(rest[:, :-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(rest[:, -1]), space.remainder, rtol=1e-9)
    extremes = curvature.extreme_eigenvalues(matrix_operator(2 * np.eye(9)))
    assert_close((extremes.low, extremes.high), (jnp.array(2.0), jnp.array(2.0)), DERIVATIVE)


def test_sharpness_observes_a_run(network):
    problem, *_ = network
    observe = partial(curvature.sharpness, problem.loss_fn)
    run = ir.descend(optax.sgd, problem.loss_fn, problem.params, 0.1, 20, every=10, observe=observe)
    for k in range(3):
        params = jax.tree.map(lambda leaf: leaf[k], run.params)
        dense = curvature.hessian_operator(problem.loss_fn, params).dense()
        np.testing.assert_allclose(run.observed[k], np.linalg.eigvalsh(dense)[-1], rtol=1e-6)


def test_the_trace_and_its_error_bar(network):
    """4 standard errors hold it, and one standard error covers it as often as it says (68 %)."""
    _, operator, dense = network
    estimate = curvature.trace(operator, num_samples=64)
    assert 0 < abs(estimate.value - np.trace(dense)) < STATISTICAL * estimate.standard_error
    matrix = with_spectrum(SPECTRA["indefinite"])
    operator = matrix_operator(matrix)
    runs = [curvature.trace(operator, num_samples=16, key=jax.random.key(k)) for k in range(60)]
    z = np.array([(run.value - np.trace(matrix)) / run.standard_error for run in runs])
    assert 0.5 < np.mean(np.abs(z) < 1) < 0.85
    assert abs(np.mean(z)) < 0.5


def test_density_moments_and_mass(network):
    _, operator, dense = network
    density = curvature.spectral_density(operator, num_samples=16, num_steps=40)
    for power in (1, 2, 3):
        truth = np.trace(np.linalg.matrix_power(dense, power)) / len(dense)
        moment = density.moment(power)
        assert abs(moment.value - truth) < STATISTICAL * moment.standard_error
    np.testing.assert_allclose(np.trapezoid(density.density, density.grid), 1, rtol=1e-3)
    values = np.linalg.eigvalsh(dense)
    bells = np.exp(-0.5 * ((density.grid - values[:, None]) / density.width) ** 2)
    truth = np.mean(bells, axis=0) / (density.width * np.sqrt(2 * np.pi))
    within = np.abs(density.density - truth) <= STATISTICAL * density.standard_error + 1e-3 * truth.max()
    assert np.mean(within) > 0.97
    assert curvature.spectral_density(operator, num_samples=2, num_steps=5, width=0.5).width == 0.5


def test_bad_input(network):
    operator = matrix_operator(with_spectrum(SPECTRA["indefinite"]))
    with pytest.raises(ValueError, match="`k` must be at most the dimension 100"):
        curvature.largest_eigenpairs(operator, 101)
    with pytest.raises(TypeError, match="`k`"):
        curvature.largest_eigenpairs(operator, 1.0)
    with pytest.raises(ValueError, match="`tolerance`=1e-20 is below what float64 holds"):
        curvature.smallest_eigenpairs(operator, 1, tolerance=1e-20)
    lopsided = matrix_operator(np.triu(np.ones((100, 100))))
    with pytest.raises(ValueError, match="must be symmetric"):
        curvature.largest_eigenpairs(lopsided)
    with pytest.raises(ValueError, match="not finite"):
        curvature.largest_eigenpairs(matrix_operator(np.full((100, 100), np.inf)))
    with pytest.raises(ValueError, match="not finite"):
        curvature.trace(matrix_operator(np.full((3, 3), np.inf)))
    with pytest.raises(ValueError, match="`num_samples`"):
        curvature.trace(operator, num_samples=1)
    with pytest.raises(ValueError, match="`grid` must increase"):
        curvature.spectral_density(operator, grid=[1.0, 0.0])
