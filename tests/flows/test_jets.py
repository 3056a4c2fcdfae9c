"""Coefficients along surfaces against nested derivatives of the same surface, and what is not computed for them."""

import math

import jax
import jax.numpy as jnp
import pytest
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

import implicit_reg as ir
from implicit_reg.flows.jets import BASE, Jet

pytestmark = pytest.mark.x64

X = {"a": jnp.array([0.3, -0.7]), "b": jnp.array(1.1)}
CURVE = {
    (1, 0): {"a": jnp.array([1.0, 0.5]), "b": jnp.array(-0.3)},
    (1, 1): {"a": jnp.array([0.2, -1.0]), "b": jnp.array(0.4)},
    (2, 0): {"a": jnp.array([-0.6, 0.1]), "b": jnp.array(0.9)},
    (2, 1): {"a": jnp.array([0.7, 0.8]), "b": jnp.array(-0.2)},
}


@jax.jit
def inner(x):
    return jnp.where(x > 0, jnp.exp(-x), jnp.tanh(x) / (2 + x**2))


def mixed(p):
    """All that is treated in a way of its own: calls, loops, branches, custom rules, constants, integers, quotients."""
    matrix = jnp.outer(p["a"], inner(p["a"])) + p["b"]
    folded, _ = jax.lax.scan(lambda c, row: (jnp.sin(c) * row @ row + 1 / (1 + c**2), None), p["b"], matrix)
    order = jnp.argsort(p["a"])
    smooth = jax.nn.softplus(matrix @ p["a"][order]) * jnp.sign(p["b"]) + jax.lax.stop_gradient(folded)
    chosen = jax.lax.cond(p["b"] > 0, jnp.cos, jnp.sin, folded)
    return {"first": smooth.T, "second": jnp.max(matrix) * chosen + jax.nn.relu(folded), "fixed": jnp.ones(2)}


def surface(t, h):
    return jax.tree.map(
        lambda x, *cs: x + sum(c * t**a * h**b for c, (a, b) in zip(cs, CURVE, strict=True)), X, *CURVE.values()
    )


@pytest.mark.parametrize("index", [BASE, (1, 0), (1, 1), (2, 0), (2, 1)])
def test_coefficients_are_those_of_nested_derivatives(index):
    def nested(t, h):
        fn = lambda t, h: mixed(surface(t, h))  # noqa: E731
        for _ in range(index[0]):
            fn = jax.jacfwd(fn, 0)
        for _ in range(index[1]):
            fn = jax.jacfwd(fn, 1)
        return fn(t, h)

    @jax.jit
    def by_jet(x):
        jet = Jet(mixed, x)
        if index == BASE:
            return jet.value
        found = {at: jet(at, CURVE[at]) for at in CURVE if at <= index}
        return [jnp.zeros_like(v) if c is None else c for c, v in zip(found[index], jet.value, strict=True)]

    factor = math.factorial(index[0]) * math.factorial(index[1])
    expected = [leaf / factor for leaf in jax.tree.leaves(jax.jit(nested)(0.0, 0.0))]
    assert_close(list(by_jet(X)), expected, DERIVATIVE)


def test_zeros_are_known_and_not_computed():
    jet = Jet(lambda x: (3 * x, jnp.sign(x) + jnp.floor(x), x * x, jnp.ones(2)), jnp.array([1.0, 2.0]))
    linear, flat, square, constant = jet((1, 0), jnp.array([1.0, 1.0]))
    assert_close([linear, square], [jnp.array([3.0, 3.0]), jnp.array([2.0, 4.0])], ROUND_OFF)
    assert flat is None
    assert constant is None
    linear, flat, square, constant = jet((2, 0), None)
    assert linear is flat is constant is None
    assert_close(square, jnp.ones(2), ROUND_OFF)


def test_products_are_counted():
    """Of two layers, whose data does not change: 5 for a gradient, 8 for its first coefficient, 11 for its second."""

    data = jnp.arange(20.0).reshape(5, 4) / 20
    loss = lambda w: jnp.sum(jnp.tanh(jnp.tanh(data @ w["a"]) @ w["b"]) ** 2)  # noqa: E731
    w = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}
    step = lambda h, w: jax.tree.map(lambda w, g: w - h * g, w, jax.grad(loss)(w))  # noqa: E731

    def products(order):
        compiled = jax.jit(ir.modified_coefficients(step, order)).lower(w).compile()
        return compiled.as_text().count(" dot(")

    assert [products(order) for order in (1, 2, 3)] == [5, 13, 24]
