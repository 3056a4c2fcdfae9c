"""Batch statistics and dropout: the same masks in every evaluation, statistics that move once per step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tolerances import DERIVATIVE, ROUND_OFF, assert_close

import implicit_reg.transforms as tr


class Network(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(jnp.tanh(self.norm(self.inner(x)))))[:, 0]


X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = np.tanh(X[:, 0] - X[:, 1])


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def make():
    model = Network(nnx.Rngs(0))
    model.train()
    return model


def arrays(model):
    return nnx.as_pure(nnx.state(model, nnx.Not(nnx.RngState)))


def test_evaluations_repeat_and_change_nothing():
    model = make()
    before = arrays(model)
    split = tr.nnx_value_fn(model, loss_fn, X, Y)
    first, again = split.value_fn(split.params), split.value_fn(split.params)
    value, rest = split.value_and_rest(split.params)
    assert float(first) == float(again) == float(value)
    assert_close(arrays(model), before, ROUND_OFF)
    # the same number as one forward pass of the model itself, which does mutate it
    other = make()
    assert float(loss_fn(other, X, Y)) == float(value)
    nnx.update(model, rest)
    assert_close(arrays(model), arrays(other), ROUND_OFF)
    assert float(loss_fn(model, X, Y)) == float(loss_fn(other, X, Y)) != float(value)


STEPS = {
    "backstitch": lambda: tr.backstitch(optax.sgd(0.1), 0.4),
    "sam": lambda: optax.chain(tr.sam(0.3, normalize=False), optax.sgd(0.1)),
    "penalty": lambda: optax.chain(tr.add_gradient_penalty(0.1), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step(name):
    """Against the formula with masks and statistics held by hand; the statistics are those of one pass per step."""
    model, witness = make(), make()
    optimizer = nnx.Optimizer(model, STEPS[name](), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        split = tr.nnx_value_fn(model, loss_fn, x, y)
        (value, rest), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(split.params)
        optimizer.update(model, grads, value=value, value_fn=split.value_fn)
        nnx.update(model, rest)
        return value

    def formula(g, p):
        shift = lambda t: jax.tree.map(lambda a, b: a + t * b, p, g(p))  # noqa: E731
        if name == "backstitch":
            return jax.tree.map(lambda a, b: a - 1.4 * 0.1 * b, shift(0.04), g(shift(0.04)))
        if name == "sam":
            return jax.tree.map(lambda a, b: a - 0.1 * b, p, g(shift(0.3)))
        product = jax.jvp(g, (p,), (g(p),))[1]
        return jax.tree.map(lambda a, b, c: a - 0.1 * (b + 2 * 0.1 * c), p, g(p), product)

    for _ in range(2):
        graphdef, params, rest = nnx.split(witness, nnx.Param, ...)
        frozen, pure = nnx.as_pure(rest), nnx.as_pure(params)
        value = step(model, optimizer, X, Y)
        g = jax.grad(lambda p: loss_fn(nnx.merge(graphdef, p, frozen), X, Y))
        moved = formula(g, pure)
        assert_close(value, loss_fn(witness, X, Y), DERIVATIVE)  # one forward pass: statistics and counters move once
        nnx.update(witness, moved)
        assert_close(arrays(model), arrays(witness), DERIVATIVE)
        assert int(model.dropout.rngs.count[...]) == int(witness.dropout.rngs.count[...])


def test_auxiliary_results_and_a_filter_of_one_s_own():
    model = make()

    def with_logits(model, x, y):
        logits = model(x)
        return jnp.mean((logits - y) ** 2), logits

    outer = lambda path, value: "outer" in path and isinstance(value, nnx.Param)  # noqa: E731
    split = tr.nnx_value_fn(model, with_logits, X, Y, wrt=outer, has_aux=True)
    (value, (rest, logits)), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(split.params)
    assert set(nnx.as_pure(grads)) == {"outer"}
    assert "inner" in rest
    assert_close(value, jnp.mean((logits - Y) ** 2), ROUND_OFF)
    assert_close(split.value_fn(split.params), value, ROUND_OFF)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"nnx_value_fn: `model` must be a flax.nnx module, got 3"):
        tr.nnx_value_fn(3, loss_fn)
    with pytest.raises(TypeError, match=r"nnx_value_fn: `loss_fn` must be callable"):
        tr.nnx_value_fn(make(), 3)
    with pytest.raises(TypeError, match=r"nnx_value_fn: `has_aux` must be True or False"):
        tr.nnx_value_fn(make(), loss_fn, has_aux=1)
