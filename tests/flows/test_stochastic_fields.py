"""Closed-form fields of stochastic gradient descent against the exact mean, differentiated in the step size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.derivatives import step_coefficients
from implicit_reg.flows import modified_coefficients
from implicit_reg.flows import stochastic as fields
from implicit_reg.orderings import epoch_orders
from implicit_reg.problems import load_problem

pytestmark = pytest.mark.x64


@pytest.fixture(scope="module")
def network():
    problem = load_problem("tanh-network", dtype="float64")
    return problem.params, lambda params, k: problem.loss_fn(params, jnp.arange(2) + 2 * k)


def flat_network(network):
    x, unravel = jax.flatten_util.ravel_pytree(network[0])
    return x, lambda x, k: network[1](unravel(x), k)


def epoch_mean(loss, orders, stitched=None, alpha=0.0):
    """The exact mean of one epoch, typed without the library."""

    def run(h, x, order):
        for position, k in enumerate(order):
            if stitched is not None and position in stitched:
                x = x + alpha * h * jax.grad(loss)(x, k)
                x = x - (1 + alpha) * h * jax.grad(loss)(x, k)
            else:
                x = x - h * jax.grad(loss)(x, k)
        return x

    return lambda h, x: jnp.mean(jax.vmap(lambda order: run(h, x, order))(jnp.asarray(orders)), axis=0)


@pytest.mark.parametrize("m", [2, 4])
def test_shuffled_terms_are_the_modified_equation_of_the_exact_mean(network, m):
    x, loss = flat_network(network)
    exact = jax.jit(modified_coefficients(epoch_mean(loss, epoch_orders(m)), 3))(x)
    terms = jax.jit(lambda x: fields.shuffled_terms(loss, m, x, 1.0))(x)
    for term, coefficient in zip(terms, exact, strict=True):
        assert_close(term, coefficient, DERIVATIVE)


def test_powers_of_the_step_size_and_trees(network):
    params, loss = network
    x, flat_loss = flat_network(network)
    terms = jax.jit(lambda params: fields.shuffled_terms(loss, 3, params, 0.1))(params)
    flat_terms = jax.jit(lambda x: fields.shuffled_terms(flat_loss, 3, x, 1.0))(x)
    for n, (tree, flat) in enumerate(zip(terms, flat_terms, strict=True), start=1):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        assert_close(jax.flatten_util.ravel_pytree(tree)[0], 0.1**n * flat, DERIVATIVE)


def test_parts_are_gradients_of_the_squared_mean_and_of_the_variance(network):
    x, loss = flat_network(network)
    m, h = 3, 0.1

    def norms(x):
        g = jnp.stack([jax.grad(loss)(x, k) for k in range(m)])
        return jnp.sum(jnp.mean(g, axis=0) ** 2), jnp.mean(jnp.sum((g - jnp.mean(g, axis=0)) ** 2, axis=1))

    full, variance = jax.jit(lambda x: fields.shuffled_parts(loss, m, x, h))(x)
    of_mean, of_variance = jax.jit(jax.jacrev(lambda x: h / 4 * jnp.stack(norms(x))))(x)
    assert_close(full, -m * h * of_mean, DERIVATIVE)
    assert_close(variance, -m * h * of_variance, DERIVATIVE)
    second = jax.jit(lambda x: fields.shuffled_terms(loss, m, x, h, order=2))(x)[1]
    assert_close(full + variance, second, DERIVATIVE)


@pytest.mark.parametrize(("interval", "stitched"), [(1, (0, 1, 2, 3)), (2, (1, 3)), (4, (2,))])
def test_backstitch_terms_are_those_of_the_exact_mean(network, interval, stitched):
    x, loss = flat_network(network)
    mean = epoch_mean(loss, epoch_orders(4), stitched, 0.7)
    exact = jax.jit(modified_coefficients(mean, 2))(x)
    terms = jax.jit(lambda x: fields.backstitch_shuffled_terms(loss, 4, x, 1.0, alpha=0.7, interval=interval))(x)
    for term, coefficient in zip(terms, exact, strict=True):
        assert_close(term, coefficient, DERIVATIVE)


@pytest.mark.parametrize(("m", "num_epochs"), [(2, 8), (3, 4)])
def test_momentum_terms_are_those_of_the_mean_once_the_memory_is_full(network, m, num_epochs):
    """Taylor coefficients in h of the mean after n epochs, a_n and b_n, grow by D_1 and by D_2 + D_1' a_n per epoch."""
    x, loss = flat_network(network)
    decay, orders = 0.02, jnp.asarray(epoch_orders(m))
    num_epochs = min(num_epochs, 5)  # decay^(m n) is below round-off of second derivatives

    def mean(n):
        def run(h, x, path):
            v = jnp.zeros_like(x)
            for _ in range(n):
                for position in range(m):
                    v = decay * v + jax.grad(loss)(x, orders[path % len(orders), position])
                    x = x - h * v
                path = path // len(orders)
            return x

        paths = jnp.arange(len(orders) ** n)
        return lambda h, x: jnp.mean(jax.vmap(lambda path: run(h, x, path))(paths), axis=0)

    n = num_epochs - 1

    @jax.jit
    def both(x):
        (a, b), (c, d) = (step_coefficients(mean(count), x, 2) for count in (n, n + 1))
        first = lambda x: -jnp.sum(jax.vmap(jax.grad(loss), (None, 0))(x, jnp.arange(m)), 0) / (1 - decay)  # noqa: E731
        along = lambda v: jax.jvp(first, (x,), (v,))[1]  # noqa: E731
        return c - a, d - b - along(a) - 0.5 * along(first(x))

    terms = jax.jit(lambda x: fields.momentum_shuffled_terms(loss, m, x, 1.0, decay=decay))(x)
    for term, coefficient in zip(terms, both(x), strict=True):
        assert_close(term, coefficient, DERIVATIVE)


def test_momentum_without_decay_is_plain(network):
    x, loss = flat_network(network)
    for a, b in zip(
        fields.momentum_shuffled_terms(loss, 3, x, 0.1, decay=0.0),
        fields.shuffled_terms(loss, 3, x, 0.1, order=2),
        strict=True,
    ):
        assert_close(a, b, DERIVATIVE)


def test_kappa():
    assert np.isclose(fields.kappa(3, 0.5), (3 + 0.5) / 3)
    assert fields.kappa(1, 0.9) == 1.0


def test_replacement_moments_against_dense_derivatives(network):
    x, loss = flat_network(network)
    h, decay, d = 0.1, 0.4, x.size
    factor = jax.random.normal(jax.random.key(0), (d, d), x.dtype)
    s = factor @ factor.T / d

    @jax.jit
    def dense(x, s):
        g = jnp.stack([jax.grad(loss)(x, k) for k in range(3)])
        mean = lambda x: jnp.mean(jnp.stack([loss(x, k) for k in range(3)]))  # noqa: E731
        hessian, eta = jax.hessian(mean)(x), h / (1 - decay)
        drift = jax.grad(lambda x: jnp.sum(jax.hessian(mean)(x) * s))(x)
        sigma = jnp.mean(jnp.stack([jnp.outer(v - g.mean(0), v - g.mean(0)) for v in g]), axis=0)
        return (
            -eta * g.mean(0),
            -(eta**2) * (0.5 + decay / (1 - decay)) * hessian @ g.mean(0) - eta / 2 * drift,
            -eta * (hessian @ s + s @ hessian) + eta**2 * sigma,
        )

    found = jax.jit(lambda x, s: fields.replacement_moments(loss, 3, x, s, h, decay=decay))(x, s)
    for moment, expected in zip(found, dense(x, s), strict=True):  # each on a scale of its own
        assert_close(moment, expected, DERIVATIVE)


def test_one_minibatch_is_gradient_descent():
    loss = lambda x, k: jnp.sum(jnp.cos(x) + x**4 / 5)  # noqa: E731
    x = jnp.array([0.3, -1.2])
    g, hess, third = (
        f(x)
        for f in (jax.grad(lambda x: loss(x, 0)), lambda x: -jnp.cos(x) + 2.4 * x**2, lambda x: jnp.sin(x) + 4.8 * x)
    )
    found = fields.shuffled_terms(loss, 1, x, 0.1)
    assert_close(found[2], -(0.1**3) * (hess * hess * g / 3 + third * g * g / 12), DERIVATIVE)
    assert_close(fields.shuffled_parts(loss, 1, x, 0.1)[1], jnp.zeros(2), ROUND_OFF)


def test_bad_arguments(network):
    x, loss = flat_network(network)
    with pytest.raises(ValueError, match="`order` must be at most 3, got 4; for more, hand the exact mean"):
        fields.shuffled_terms(loss, 2, x, 0.1, order=4)
    with pytest.raises(TypeError, match="`loss_fn` must be callable"):
        fields.shuffled_parts(1.0, 2, x, 0.1)
    with pytest.raises(ValueError, match="`num_batches` must be an integer, at least 1"):
        fields.shuffled_terms(loss, 0, x, 0.1)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        fields.shuffled_terms(lambda x, k: x[:2], 2, x, 0.1)
    with pytest.raises(ValueError, match="`decay` must be"):
        fields.momentum_shuffled_terms(loss, 2, x, 0.1, decay=1.5)
    with pytest.raises(ValueError, match="`alpha` must be"):
        fields.backstitch_shuffled_terms(loss, 2, x, 0.1, alpha=-1.0)
