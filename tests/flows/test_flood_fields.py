"""Flooding's fields against coefficients found from the update, dense derivatives, and the signs of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg import problems
from implicit_reg.flows import flood

pytestmark = pytest.mark.x64


def smooth():
    problem = problems.load_problem("nonquadratic", dtype="float64")
    return problem.loss_fn, problem.params


def two_losses():
    loss, x = smooth()
    return loss, lambda x: jnp.sum(jnp.cos(x + 0.3)) + x[0] * x[1] ** 2, x


@pytest.mark.parametrize("ascent_first", [False, True])
def test_pair_is_what_the_modified_equation_of_the_update_says(ascent_first):
    loss, x = smooth()
    h, sign = 0.3, -1 if ascent_first else 1
    phi = ir.update_map(lambda h: optax.sgd(ir.alternating(sign * h, sign * h)), loss, num_steps=2)
    first, second, third = ir.modified_coefficients(phi, 3)(x)
    assert float(jnp.max(jnp.abs(first))) < ROUND_OFF.float64
    found = flood.flooding_pair_terms(loss, x, h, ascent_first=ascent_first)
    assert_close(found, (h**2 * second, h**3 * third), DERIVATIVE)


def test_mean_over_both_orders_of_two_minibatches():
    one, two, x = two_losses()
    h = 0.3

    def along(h, x, down, up):
        x = x - h * jax.grad(down)(x)
        return x + h * jax.grad(up)(x)

    def phi(h, x):
        return (along(h, x, one, two) + along(h, x, two, one)) / 2

    first, second, third = ir.modified_coefficients(phi, 3)(x)
    assert float(jnp.max(jnp.abs(first))) < ROUND_OFF.float64
    found = flood.minibatch_pair_terms(one, two, x, h)
    assert_close(found, (h**2 * second, h**3 * third), DERIVATIVE)
    inner = jax.grad(lambda x: jnp.vdot(jax.grad(one)(x), jax.grad(two)(x)))(x)
    assert_close(found[0], -(h**2) / 2 * inner, DERIVATIVE)


def test_pair_on_a_tree_is_the_pair_on_the_vector():
    loss, x = smooth()
    tree = {"a": x[:1], "b": x[1:]}
    found = flood.flooding_pair_terms(lambda p: loss(jnp.concatenate([p["a"], p["b"]])), tree, 0.1)
    expected = flood.flooding_pair_terms(loss, x, 0.1)
    assert_close([jnp.concatenate([p["a"], p["b"]]) for p in found], list(expected), ROUND_OFF)


def test_level_set_field_is_the_projected_one():
    loss, x = smooth()
    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    projector = jnp.eye(3) - jnp.outer(g, g) / (g @ g)
    field, slips = flood.level_set_terms(loss, x, 0.2)
    assert_close(field, -(0.2**2) / 2 * projector @ hessian @ g, DERIVATIVE)
    assert float(jnp.max(jnp.abs(slips))) == 0
    assert abs(float(field @ g)) < ROUND_OFF.float64


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_slips_are_what_the_correlations_of_the_signs_say(decay):
    """Every slip, `rate` of them per step, flips all signs behind it: r_j = (-1)^j (1 - 2 j rate) to first order."""
    loss, x = smooth()
    h = 1e-7
    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    lags = np.arange(1, 400)
    still = flood.flooding_coefficient(decay, (-1.0) ** lags)
    rate = h * still * (1 - decay) * abs(float(g @ hessian @ g / (g @ g)))
    moved = flood.flooding_coefficient(decay, (-1.0) ** lags * (1 - 2 * lags * rate))
    field, slips = flood.level_set_terms(loss, x, h, decay)
    ratio = float(jnp.linalg.norm(slips) / jnp.linalg.norm(field))
    np.testing.assert_allclose(ratio / h, (moved / still - 1) / h, rtol=1e-6)
    np.testing.assert_allclose(field, 2 * still * flood.level_set_terms(loss, x, h)[0], rtol=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_coefficient_of_known_signs(decay):
    lags = np.arange(1, 600)
    coefficient = lambda r: flood.flooding_coefficient(decay, r)  # noqa: E731
    np.testing.assert_allclose(coefficient(np.ones(599)), (1 + decay) / (2 * (1 - decay) ** 3), rtol=1e-12)
    np.testing.assert_allclose(coefficient((-1.0) ** lags), 1 / (2 * (1 - decay**2)), rtol=1e-12)
    # Down, down, up, up: one frequency, a quarter of the sampling rate.
    quarter = (1 + decay) / (2 * (1 - decay) * (1 + decay**2))
    np.testing.assert_allclose(coefficient(np.cos(np.pi / 2 * lags)), quarter, rtol=1e-12)
    with pytest.raises(ValueError, match="`decay` must be"):
        flood.flooding_coefficient(-0.1, [])


def losses_of(x):
    return jnp.stack([jnp.sum(x**2), jnp.sum(jnp.sin(x)) + x[0] * x[2], x[1] ** 3 - x[3] * x[4]])


POINT = jnp.linspace(0.3, 1.1, 5)


def test_projection_meets_all_levels_and_moves_along_the_gradients():
    level = losses_of(POINT) + jnp.array([0.05, -0.02, 0.03])
    x = flood.project_to_levels(losses_of, POINT, level)
    assert_close(losses_of(x), level, ROUND_OFF)
    near = flood.project_to_levels(losses_of, POINT, losses_of(POINT) + 1e-6, 1) - POINT
    jacobian = jax.jacrev(losses_of)(POINT)
    assert float(jnp.linalg.norm(near - jacobian.T @ jnp.linalg.lstsq(jacobian.T, near)[0])) < 1e-15


def test_common_level_terms_by_dense_derivatives():
    h, m = 0.1, jnp.array([[0.0, 0.2, -0.1], [-0.2, 0.0, 0.4], [0.1, -0.4, 0.0]])
    jacobian, hessians = jax.jacrev(losses_of)(POINT), jax.hessian(losses_of)(POINT)
    tangent = jnp.eye(5) - jnp.linalg.pinv(jacobian) @ jacobian
    squares = jax.grad(lambda x: jnp.sum(jax.jacrev(losses_of)(x) ** 2) / 3)(POINT)
    bent = jnp.einsum("kl,kij,lj->i", m, hessians, jacobian)
    found = flood.common_level_terms(losses_of, POINT, h, m)
    assert_close(found, (-(h**2) / 4 * tangent @ squares, -(h**2) * tangent @ bent), DERIVATIVE)
    assert float(jnp.max(jnp.abs(flood.common_level_terms(losses_of, POINT, h)[1]))) == 0
    assert float(jnp.linalg.norm(found[1])) > 0.01 * float(jnp.linalg.norm(found[0]))


def test_fluctuation_areas_by_hand():
    gram = np.array([[1.0, 0.4], [0.4, 0.8]])
    rng = np.random.default_rng(0)
    draws, phases = rng.integers(0, 2, (3, 40)), rng.uniform(-0.5, 0.5, (3, 2))
    mean = np.zeros((2, 2))
    for order, start in zip(draws, phases, strict=True):
        a = start.copy()
        for n, k in enumerate(order):
            sign = np.sign(gram[k] @ a)
            if n >= 10:
                mean[k] += sign * a / 90
            a[k] -= sign
    found = flood.fluctuation_areas(*map(jnp.asarray, (gram, draws, phases)))
    assert_close(found, jnp.asarray((mean - mean.T) / 2), ROUND_OFF)


def test_diagonal_of_the_fluctuations_is_half_a_draw():
    """`a_k^2` is bounded, and a draw of k changes it by `1 - 2 s a_k`: the mean of `s a_k` at a draw is 1/2."""
    gram = jnp.array([[1.0, 0.4], [0.4, 0.8]])
    draws = jax.random.randint(jax.random.key(0), (20000,), 0, 2)

    def body(a, k):
        sign = jnp.sign(gram[k] @ a)
        return a.at[k].add(-sign), sign * a[k]

    products = jax.lax.scan(body, jnp.array([0.2, -0.4]), draws)[1]
    assert abs(float(jnp.mean(products)) - 0.5) < 1e-3
