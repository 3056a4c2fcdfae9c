"""The principal flow against gradient descent, the modified equation and the radii of its series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg import problems
from implicit_reg.flows import principal

pytestmark = pytest.mark.x64


@pytest.mark.parametrize("z", [-3.0, -0.5, 1e-9, 5e-3, 9.99e-3, 1.01e-2, 0.5, 0.999, 1.001, 1.5, 2.5])
def test_the_factor_makes_a_flow_of_gradient_descent(z):
    """`exp(-z phi(z)) = 1 - z` on both branches."""
    for safe in (True, False):
        factor = principal.principal_factor(jnp.array(z), safe=safe)
        assert_close(jnp.exp(-z * factor), jnp.array(1 - z + 0j), DERIVATIVE)
    if z < 1:
        assert float(jnp.imag(factor)) == 0.0
        np.testing.assert_allclose(jnp.real(factor), -np.log1p(-z) / z, rtol=1e-13)


def test_the_safe_branch_does_not_jump():
    above, below = jnp.array(1.5 + 1e-12j), jnp.array(1.5 - 1e-12j)
    jump = lambda safe: float(  # noqa: E731
        jnp.abs(principal.principal_factor(above, safe=safe) - principal.principal_factor(below, safe=safe))
    )
    assert jump(True) < 1e-10
    assert abs(jump(False) - 2 * np.pi / 1.5) < 1e-10


def test_derivatives_are_finite_where_branches_meet():
    gradient = jax.grad(lambda z: jnp.real(principal.principal_factor(z)))
    assert np.all(np.isfinite([float(gradient(jnp.array(z))) for z in (0.0, 1e-3, 0.01, 0.5, 2.0)]))
    assert abs(float(gradient(jnp.array(0.0))) - 0.5) < 1e-14  # phi = 1 + z/2 + ...


def test_terms_against_the_modified_equation():
    """`h f_1 + h^2 f_2 + h^3 f_3` re-typed with dense derivatives, to O(h^4); the first term misses T(g, g) alone."""
    problem = problems.load_problem("nonquadratic", dtype="float64")
    loss, x = problem.loss_fn, problem.params
    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    third = jnp.einsum("ijk,j,k->i", jax.jacfwd(jax.hessian(loss))(x), g, g)

    def off(h):
        first, second = principal.principal_terms(loss, x, h)
        expected = -h * g - h**2 / 2 * hessian @ g - h**3 / 3 * hessian @ hessian @ g
        return float(jnp.linalg.norm(first - expected)), float(jnp.linalg.norm(second + h**3 / 12 * third))

    (coarse, same), (fine, _) = off(0.02), off(0.01)
    assert abs(np.log2(coarse / fine) - 4.0) < 0.1
    assert same < 1e-15


def test_real_and_complex_points_agree():
    problem = problems.load_problem("nonquadratic", dtype="float64")
    for h in (0.1, 2.0):
        real = principal.principal_terms(problem.loss_fn, problem.params, h)
        both = principal.principal_terms(problem.loss_fn, problem.params.astype(complex), h)
        assert_close(both, real, DERIVATIVE)
    assert float(jnp.max(jnp.abs(jnp.imag(real[0])))) > 0.1


def test_exact_on_a_quadratic_in_closed_form():
    """The solution of the linear equation, mode by mode, is `(1 - h lambda)^n` whatever h."""
    values = jnp.array([-0.4, 0.3, 1.0])
    rotation = jnp.linalg.qr(jnp.cos(jnp.arange(9.0).reshape(3, 3) ** 2))[0]
    hessian = rotation @ jnp.diag(values) @ rotation.T
    x = jnp.array([1.0, 2.0, -1.0])
    for h in (0.5, 0.9, 1.5, 2.5):
        columns = jax.vmap(lambda v, h=h: principal.principal_terms(lambda x: 0.5 * x @ hessian @ x, v, h)[0])(
            jnp.eye(3)
        )
        flow = jax.scipy.linalg.expm(3 * columns.T)
        steps = jnp.linalg.matrix_power(jnp.eye(3) - h * hessian, 3)
        assert_close(flow @ x, (steps @ x).astype(complex), DERIVATIVE)


def test_the_series_and_its_radius():
    sums = principal.series_partial_sums(0.9, 600)
    assert abs(sums[-1] - np.log(0.1)) < 1e-12
    assert abs(sums[1] + 0.9 + 0.405) < ROUND_OFF.float64 * 10
    assert abs(principal.series_partial_sums(-0.9, 600)[-1] - np.log(1.9)) < 1e-12
    for z in (1.1, -1.1):
        assert abs(principal.series_partial_sums(z, 600)[-1]) > 1e20


@pytest.mark.parametrize("beta", [0.3, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_radius_of_momentum(beta, nesterov):
    radius = (principal.nesterov_radius if nesterov else principal.heavy_ball_radius)(beta)
    inside, outside = 0.9 * radius, 1.1 * radius
    root = principal.momentum_root(inside, beta, nesterov=nesterov)
    assert root.imag == 0.0
    sums = principal.momentum_partial_sums(inside, beta, 1000, nesterov=nesterov)
    assert abs(sums[-1] - np.log(root.real)) < 1e-12
    assert abs(principal.momentum_root(outside, beta, nesterov=nesterov).imag) > 0
    assert abs(principal.momentum_partial_sums(outside, beta, 1000, nesterov=nesterov)[-1]) > 1e20
    eta = 1 / (1 - beta)
    age = 0.5 + (beta**2 if nesterov else beta) / (1 - beta)
    np.testing.assert_allclose(
        principal.momentum_partial_sums(0.01, beta, 2, nesterov=nesterov),
        np.cumsum([-eta * 0.01, -(eta**2) * age * 1e-4]),
        rtol=1e-12,
    )


def test_bad_input():
    with pytest.raises(TypeError, match="`loss_fn` must be callable"):
        principal.principal_terms(None, jnp.ones(2), 0.1)
    with pytest.raises(ValueError, match="`h` must be"):
        principal.principal_terms(lambda x: jnp.sum(x**2), jnp.ones(2), -0.1)
    for fn in (principal.series_partial_sums, lambda y, n: principal.momentum_partial_sums(y, 0.5, n)):
        with pytest.raises(ValueError, match="`num_terms` must be an integer"):
            fn(0.1, 0)
