"""The published terms against those that exact differentiation of the update finds, and against exact fractions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from elementary import series_coefficients
from tolerances import DERIVATIVE, assert_close

import implicit_reg as ir
from implicit_reg import bseries, methods, problems
from implicit_reg.flows import closed_forms, modified_coefficients

pytestmark = pytest.mark.x64
H = 0.1


def terms_of(phi, x, order=3):
    """`h^n f_n` from the update."""
    return tuple(H ** (n + 1) * f for n, f in enumerate(modified_coefficients(phi, order)(x)))


@pytest.fixture(scope="module")
def problem():
    return problems.load_problem("nonquadratic", dtype="float64")


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("gd", lambda loss, x: closed_forms.gradient_descent_terms(loss, x, H)[:3]),
        ("alternating", lambda loss, x: closed_forms.signed_steps_terms(loss, x, (H, -0.25 * H))),
        ("backstitch", lambda loss, x: closed_forms.signed_steps_terms(loss, x, (-0.3 * H, 1.3 * H))),
        ("gradient-penalty", lambda loss, x: closed_forms.gradient_penalty_terms(loss, x, H, 0.5 * H)),
        ("sam", lambda loss, x: closed_forms.sam_terms(loss, x, H, 0.5 * H)),
        ("sam-unnormalized", lambda loss, x: closed_forms.unnormalized_sam_terms(loss, x, H, 0.5 * H)),
    ],
)
def test_closed_forms_are_what_the_update_implies(name, closed, problem):
    row = methods.METHODS[name]
    phi = ir.update_map(row.at, problem.loss_fn, num_steps=row.num_steps)
    assert_close(closed(problem.loss_fn, problem.params), terms_of(phi, problem.params), DERIVATIVE)


def test_four_terms_of_gradient_descent(problem):
    phi = ir.update_map(optax.sgd, problem.loss_fn)
    found = closed_forms.gradient_descent_terms(problem.loss_fn, problem.params, H)
    assert_close(found, terms_of(phi, problem.params, 4), DERIVATIVE)


@pytest.mark.parametrize("steps", [(0.1, 0.05, -0.03), (-0.02, 0.1, -0.07, 0.04), (0.1,), (0.1, -0.1), (-0.1, 0.1)])
def test_any_number_of_signed_steps(steps, problem):
    """The sum over pairs, against composed B-series in exact fractions."""
    exact = [f"{round(1000 * a)}/1000" for a in steps]
    series = bseries.gradient_descent(3, exact[0])
    for a in exact[1:]:
        series = bseries.compose(series, bseries.gradient_descent(3, a))
    field = lambda x: -jax.grad(problem.loss_fn)(x)  # noqa: E731
    expected = series_coefficients(bseries.modified_equation(series), field, problem.params, 3)
    found = closed_forms.signed_steps_terms(problem.loss_fn, problem.params, steps)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


def test_steps_along_a_field_that_is_no_gradient():
    field = lambda x: jnp.array([x[0] * x[1] - jnp.sin(x[1]), x[0] ** 2 + jnp.cos(x[0] * x[1])])  # noqa: E731
    x = jnp.array([0.7, -0.4])
    phi = lambda h, x: x - h * field(x)  # noqa: E731
    assert_close(closed_forms.euler_terms(field, x, H), terms_of(phi, x), DERIVATIVE)


def test_trees_are_as_good_as_vectors():
    problem = problems.load_problem("tanh-network", dtype="float64")
    phi = ir.update_map(optax.sgd, problem.loss_fn)
    found = closed_forms.gradient_descent_terms(problem.loss_fn, problem.params, H)[:2]
    for ours, f in zip(found, modified_coefficients(phi, 2)(problem.params), strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(f)
    assert_close(found[1], jax.tree.map(lambda f: H**2 * f, f), DERIVATIVE)


def test_asymmetry(problem):
    """`f_1` and `f_2` of gradient descent are gradients, `f_3` is not; the measure is that of the dense Jacobian."""
    term = lambda k: lambda x: closed_forms.gradient_descent_terms(problem.loss_fn, x, 1.0)[k]  # noqa: E731
    for k, gradient in ((0, True), (1, True), (2, False)):
        jacobian = jax.jacfwd(term(k))(problem.params)
        skew = float(jnp.linalg.norm(jacobian - jacobian.T) / jnp.linalg.norm(jacobian))
        assert (skew < 1e-14) == gradient
        assert (float(closed_forms.asymmetry(term(k), problem.params)) < 1e-14) == gradient
