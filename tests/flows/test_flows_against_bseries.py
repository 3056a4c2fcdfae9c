"""Modified equations by automatic differentiation against B-series in exact fractions, coefficient by coefficient.

The two share nothing but the loss: one differentiates the coded update in the step size, the other sums rooted trees of
the method's tableau.
"""

from __future__ import annotations

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


def loss(x):
    """Smooth, with derivatives of every order in every direction."""
    return jnp.exp(0.3 * x[0] - 0.2 * x[2]) + jnp.sin(x[0] * x[1]) + 0.5 * jnp.sum(x**2) + 0.1 * x[1] * x[2] ** 3


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
    "finite-difference-penalty": (
        lambda h: optax.chain(ir.add_finite_difference_penalty(0.25 * h, 0.5 * h), optax.sgd(h)),
        1,
        lambda n: bseries.finite_difference_penalty("1/4", "1/2", n),
    ),
    "sam-unnormalized": (
        lambda h: optax.chain(ir.sam(0.5 * h, normalize=False), optax.sgd(h)),
        1,
        lambda n: bseries.unnormalized_sam("1/2", n),
    ),
}
# The three that need the most orders; the others differ from them in their first coefficients already.
ORDERS = {"gd": 5, "backstitch": 5, "alternating": 5}


def expected_coefficients(series, order, x):
    b = bseries.modified_equation(series)
    return elementary.series_coefficients(b, lambda y: -jax.grad(loss)(y), x, order)


@pytest.mark.parametrize("name", CASES)
def test_every_coefficient(name):
    method, num_steps, series = CASES[name]
    order = ORDERS.get(name, 3)
    x = jnp.array(POINT)
    phi = ir.update_map(method, loss, num_steps=num_steps)
    found = jax.jit(ir.modified_coefficients(phi, order))(x)
    assert len(found) == order
    # One by one: a large first coefficient must not hide a wrong fifth.
    for f, expected in zip(found, expected_coefficients(series(order), order, x), strict=True):
        assert_close(f, expected, DERIVATIVE)
