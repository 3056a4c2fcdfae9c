"""Modified equations by automatic differentiation against B-series in exact fractions, coefficient by coefficient.

The two share nothing but the loss: one differentiates the coded update in the step size, the other sums rooted trees of
the method's tableau.
"""

from __future__ import annotations

from fractions import Fraction

import elementary
import jax
import jax.numpy as jnp
import optax
import pytest
from tolerances import DERIVATIVE, assert_close

import implicit_reg as ir
from implicit_reg import bseries

pytestmark = pytest.mark.x64

ORDER = 5
POINT = (0.4, -0.3, 0.7)
MIX = ((0.5, -0.3, 0.2), (0.1, 0.4, -0.6), (-0.2, 0.3, 0.5))


def loss(x):
    """Derivatives of every order in every direction, from few operations: compile time is theirs to the order."""
    return jnp.sum(jnp.exp(jnp.array(MIX) @ x)) + 0.5 * jnp.sum(x**2)


# The finite-difference penalty with a displacement proportional to h is missing: at h = 0, where the coefficients in h
# are taken, its update is 0/0. `test_bseries` has its fractions.
CASES = {
    "gd": (optax.sgd, 1, bseries.gradient_descent),
    "backstitch": (lambda h: ir.backstitch(optax.sgd(h), 0.3), 1, lambda n: bseries.backstitch("3/10", n)),
    "alternating": (
        lambda h: optax.sgd(ir.alternating(h, 0.5 * h)),
        2,
        lambda n: bseries.alternating("1/2", n),
    ),
    "flooding-pair": (lambda h: optax.sgd(ir.alternating(h, h)), 2, lambda n: bseries.alternating(1, n)),
    "gradient-penalty": (
        lambda h: optax.chain(ir.add_gradient_penalty(0.25 * h), optax.sgd(h)),
        1,
        lambda n: bseries.gradient_penalty("1/4", n),
    ),
    "sam-unnormalized": (
        lambda h: optax.chain(ir.sam(0.5 * h, normalize=False), optax.sgd(h)),
        1,
        lambda n: bseries.unnormalized_sam("1/2", n),
    ),
}


def expected_coefficients(series, x):
    b = bseries.modified_equation(series)
    return jax.jit(lambda x: elementary.series_coefficients(b, lambda y: -jax.grad(loss)(y), x, ORDER))(x)


@pytest.mark.parametrize("name", CASES)
def test_every_coefficient(name):
    method, num_steps, series = CASES[name]
    x = jnp.array(POINT)
    phi = ir.update_map(method, loss, num_steps=num_steps)
    found = jax.jit(ir.modified_coefficients(phi, ORDER))(x)
    assert len(found) == ORDER
    # One by one: a large first coefficient must not hide a wrong fifth.
    for f, expected in zip(found, expected_coefficients(series(ORDER), x), strict=True):
        assert_close(f, expected, DERIVATIVE)


def test_a_wrong_fraction_is_seen():
    """The comparison is not blind: it sees one tree of order 5 whose coefficient is 1 % off."""
    x = jnp.array(POINT)
    right = bseries.modified_equation(bseries.gradient_descent(ORDER))
    tree = bseries.trees(ORDER)[-2]
    assert right[tree]
    wrong = right | {tree: right[tree] * Fraction(101, 100)}
    fifth = [elementary.series_coefficients(b, lambda y: -jax.grad(loss)(y), x, ORDER)[-1] for b in (right, wrong)]
    with pytest.raises(AssertionError):
        assert_close(*fifth, DERIVATIVE)


def test_the_field_sums_the_coefficients():
    x, h = jnp.array(POINT), 0.1
    f = expected_coefficients(bseries.gradient_descent(ORDER), x)
    field = ir.modified_vector_field(ir.update_map(optax.sgd, loss), ORDER)
    assert_close(jax.jit(field)(0.0, x, h), sum(h**n * c for n, c in enumerate(f)), DERIVATIVE)
