"""Directional and step-size derivatives against dense ones and closed forms."""

import math

import jax
import jax.numpy as jnp
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

from implicit_reg.derivatives import hessian_vector_product, step_coefficients

pytestmark = pytest.mark.x64


def loss(x):
    return jnp.sum(jnp.tanh(x) ** 2) + jnp.prod(x) + jnp.exp(-x[0])


X = [0.3, -0.7, 1.1]
V = [1.0, 2.0, -0.5]


def test_hessian_vector_product_is_that_of_the_dense_hessian():
    x, v = jnp.array(X), jnp.array(V)
    gradient, product = hessian_vector_product(loss, x, v)
    assert_close(gradient, jax.grad(loss)(x), ROUND_OFF)
    assert_close(product, jax.hessian(loss)(x) @ v, DERIVATIVE)


def test_hessian_vector_product_keeps_the_dtype_of_each_leaf():
    params = {"wide": jnp.array(1.0), "narrow": jnp.array(2.0, jnp.float32)}
    fn = lambda p: p["wide"] ** 2 * p["narrow"].astype(jnp.float64) ** 2  # noqa: E731
    _, product = hessian_vector_product(fn, params, {"wide": jnp.array(1.0), "narrow": jnp.array(0.0)})
    assert {k: v.dtype.name for k, v in product.items()} == {"wide": "float64", "narrow": "float32"}
    assert_close(product, {"wide": jnp.array(8.0), "narrow": jnp.array(8.0, jnp.float32)}, ROUND_OFF)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_step_coefficients_of_the_exponential(order):
    step = lambda h, x: jax.tree.map(lambda leaf: leaf * jnp.exp(-2 * h), x)  # noqa: E731
    found = step_coefficients(step, {"a": jnp.array(1.5)}, order)
    expected = tuple({"a": jnp.array(1.5 * (-2.0) ** n / math.factorial(n))} for n in range(1, order + 1))
    assert_close(found, expected, ROUND_OFF)
