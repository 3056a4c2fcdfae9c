"""Flatness, loss surfaces and stability thresholds, against closed forms on quadratics and runs of Optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import implicit_reg as ir
from implicit_reg.curvature.eigenpairs import largest_eigenpairs
from implicit_reg.curvature.flatness import (
    epsilon_sharpness,
    gradient_norm,
    minibatch_gradient_variance,
    noise_robustness,
)
from implicit_reg.curvature.operators import hessian_operator
from implicit_reg.curvature.stability import (
    adam_stability,
    momentum_stability,
    nesterov_stability,
    preconditioned_sharpness,
    preconditioner,
    sgd_stability,
)
from implicit_reg.curvature.surface import filter_normalized, loss_along, project, random_direction

pytestmark = pytest.mark.x64
SPECTRUM = jnp.array([5.0, 2.0, -1.0])


def quadratic(x):
    return 0.5 * jnp.sum(SPECTRUM * x**2)


def test_minibatch_variance_is_its_definition(key):
    y = jax.random.normal(key, (12, 3))
    loss = lambda x, y: jnp.mean(jnp.sum((x - y) ** 2, axis=-1))  # noqa: E731
    means = np.asarray(y).reshape(4, 3, 3).mean(axis=1)
    expected = 4 * np.mean(np.sum((means - means.mean(axis=0)) ** 2, axis=1))
    got = minibatch_gradient_variance(loss, jnp.ones(3), (y,), num_batches=4)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    with pytest.raises(ValueError, match="must divide"):
        minibatch_gradient_variance(loss, jnp.ones(3), (y,), num_batches=5)


def test_epsilon_sharpness_of_a_quadratic_at_its_critical_point():
    """There the maximum is `lambda_max rho^2 / 2`, and SAM's one step sees nothing."""
    got = epsilon_sharpness(quadratic, jnp.zeros(3), radius=0.3, num_steps=60)
    np.testing.assert_allclose(got, 0.5 * 5 * 0.3**2, rtol=1e-9)


def test_epsilon_sharpness_is_at_least_one_step_of_sam():
    x = jnp.array([0.1, 1.0, 0.3])
    gradient = SPECTRUM * x
    one = quadratic(x + 0.3 * gradient / jnp.linalg.norm(gradient)) - quadratic(x)
    got = epsilon_sharpness(quadratic, x, radius=0.3, num_steps=40)
    assert got > one
    np.testing.assert_allclose(epsilon_sharpness(quadratic, x, radius=0.3, num_steps=0), one, rtol=1e-12)


def test_noise_robustness_of_a_quadratic(key):
    """Absolute noise: `sigma^2 trace / 2`."""
    got = noise_robustness(quadratic, jnp.zeros(3), scale=0.1, key=key, num_samples=4000, relative=False)
    assert abs(got.value - 0.03) < 4 * got.standard_error
    np.testing.assert_allclose(got.standard_error, 0.01 * np.sqrt(30 / 2 / 4000), rtol=0.1)


def test_flatness_can_be_observed_along_a_run():
    run = ir.descend(
        optax.sgd, quadratic, jnp.array([1.0, 1.0, 0.0]), 0.1, 3, observe=partial(gradient_norm, quadratic)
    )
    np.testing.assert_allclose(run.observed, np.linalg.norm(SPECTRUM * run.params, axis=1), rtol=1e-12)
    run = ir.descend(
        optax.sgd, quadratic, jnp.ones(3), 0.1, 2, observe=partial(epsilon_sharpness, quadratic, radius=0.1)
    )
    assert np.all(np.asarray(run.observed) > 0)


def test_filters_get_the_norms_of_the_parameters(key):
    params = {"w": jax.random.normal(key, (3, 4, 5)), "b": jnp.arange(5.0)}
    direction = random_direction(params, key)
    norm = lambda leaf: np.sqrt(np.sum(np.asarray(leaf) ** 2, axis=(0, 1)))  # noqa: E731
    np.testing.assert_allclose(norm(direction["w"]), norm(params["w"]), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(direction["b"]), np.linalg.norm(params["b"]), rtol=1e-12)
    zero = filter_normalized(direction, jax.tree.map(jnp.zeros_like, params))
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(zero))


@pytest.mark.parametrize("chunk", [None, 4])
def test_surface_along_eigenvectors(chunk):
    rows = largest_eigenpairs(hessian_operator(quadratic, jnp.zeros(3)), 2).vectors
    surface = loss_along(quadratic, jnp.zeros(3), (rows[0], rows[1]), extents=(1.0, 2.0), num_points=5, chunk=chunk)
    a, b = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-2, 2, 5), indexing="ij")
    np.testing.assert_allclose(surface.losses, 2.5 * a**2 + b**2, atol=1e-6)


def test_projection_onto_directions_that_are_not_orthogonal():
    directions = (jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 0.0]))
    surface = loss_along(quadratic, jnp.ones(3), directions, num_points=3)
    points = 1 + jnp.array([[3.0, 2.0, 7.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(project(surface, points), [[1.0, 2.0], [0.0, 0.0]], atol=1e-12)
    with pytest.raises(ValueError, match="parallel"):
        loss_along(quadratic, jnp.ones(3), (directions[0], 2 * directions[0]))


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        (optax.sgd, sgd_stability(0.1)),
        (partial(optax.sgd, momentum=0.9), momentum_stability(0.1, 0.9)),
        (partial(optax.sgd, momentum=0.6, nesterov=True), nesterov_stability(0.1, 0.6)),
        (lambda h: optax.chain(optax.ema(0.9, debias=False), optax.scale(-h)), adam_stability(0.1, 0.9)),
    ],
)
def test_a_run_is_stable_below_the_threshold_and_diverges_above(method, threshold):
    """The last one is Adam with a preconditioner of 1."""
    ends = []
    for factor in (0.98, 1.02):
        loss = lambda x, factor=factor: 0.5 * factor * threshold * x**2  # noqa: E731
        ends.append(abs(float(ir.descend(method, loss, jnp.array(1.0), 0.1, 3000, every=3000).params[-1])))
    assert ends[0] < 1e-3
    assert not ends[1] < 1e3


@pytest.mark.parametrize("amsgrad", [False, True])
def test_preconditioner_of_adam_reproduces_its_update(amsgrad):
    x, settings = jnp.array([1.0, -2.0, 0.5]), {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    method = (optax.amsgrad if amsgrad else optax.adam)(0.1, **settings)
    state = method.init(x)
    for _ in range(3):
        updates, state = method.update(SPECTRUM * x, state, x)
        x = x + updates
    np.testing.assert_allclose(updates, -0.1 * state[0].mu / preconditioner(state, **settings), rtol=1e-10)
    with pytest.raises(ValueError, match="count=0"):
        preconditioner(method.init(x))


@pytest.mark.parametrize("inside", [True, False])
def test_preconditioner_of_rmsprop_reproduces_its_update(inside):
    x = jnp.array([1.0, -2.0, 0.5])
    method = optax.rmsprop(0.1, eps=1e-2, eps_in_sqrt=inside)
    updates, state = method.update(SPECTRUM * x, method.init(x), x)
    scale = preconditioner(state, eps=1e-2, eps_in_sqrt=inside)
    np.testing.assert_allclose(updates, -0.1 * SPECTRUM * x / scale, rtol=1e-10)
    np.testing.assert_allclose(preconditioned_sharpness(quadratic, x, scale), jnp.max(SPECTRUM / scale), rtol=1e-9)
    with pytest.raises(ValueError, match="exactly one"):
        preconditioner(optax.sgd(0.1).init(x))
