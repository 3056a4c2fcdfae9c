"""What the contract test runs: every row of the methods table, and corners of ours, as functions of the step size.

`at(h)` is the transformation; `formula(loss, x, h, count)` is its step from number `count` on, `num_steps` of them at
once, on a flat vector, in plain `jax.grad` and `jax.hessian`; `needs` is the extra argument it cannot do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import implicit_reg.transforms as tr
from implicit_reg.methods import METHODS, Method


class Case(NamedTuple):
    name: str
    at: Callable[[Any], optax.GradientTransformation]
    formula: Callable[..., jax.Array]
    needs: str | None
    num_steps: int = 1


def what_it_needs(tx) -> str | None:
    """Found by trying, so that a new row of the table needs no line here."""
    x = jnp.ones(2)
    for needs, extras in ((None, {}), ("value", {"value": jnp.ones(())})):
        try:
            jax.eval_shape(lambda: tx.update(x, tx.init(x), x, **extras)[0])
        except ValueError:
            continue
        return needs
    return "value_fn"


def from_row(row: Method) -> Case:
    def at(h):
        return row.build(optax.sgd, h, **row.hyperparameters)

    def formula(loss, x, h, count):
        return row.formula(loss, x, h, **row.hyperparameters)

    return Case(row.name, at, formula, what_it_needs(at(0.1)), row.num_steps)


def flooded_at_7(loss, x, h, count):
    return x - h * jnp.sign(loss(x) - 7.0) * jax.grad(loss)(x)


def stitched_at_1_of_3(loss, x, h, count):
    g = jax.grad(loss)
    return x + h * g(x) - 2 * h * g(x + h * g(x)) if count % 3 == 1 else x - h * g(x)


CASES = (
    *map(from_row, METHODS.values()),
    Case("flooding-across", lambda h: optax.chain(tr.flooding(7.0), optax.sgd(h)), flooded_at_7, "value"),
    Case("interval", lambda h: tr.backstitch(optax.sgd(h), 1.0, interval=3, offset=1), stitched_at_1_of_3, "value_fn"),
)


def holds_its_optimizer(case):
    return isinstance(case.at(H).init(make_params()), tr.BackstitchState)


H = 0.05
STEPS = 4  # enough for the interval and the sign to turn


def by_name(case: Case) -> str:
    return case.name


_rng = np.random.default_rng(0)
INPUTS = _rng.normal(size=(5, 2)).astype(np.float32)
TARGETS = _rng.normal(size=5).astype(np.float32)
_W, _B = _rng.normal(size=(2, 3)).astype(np.float32), _rng.normal(size=3).astype(np.float32)


def make_params(dtype=jnp.float32):
    return {"b": jnp.asarray(_B, dtype), "w": jnp.asarray(_W, dtype)}


def loss_fn(params, shift=0.0):
    """A tanh network: smooth, not quadratic, every derivative of the parameters mixed."""
    dtype = params["w"].dtype
    hidden = jnp.tanh(jnp.asarray(INPUTS, dtype) @ params["w"] + params["b"])
    return jnp.mean((jnp.sum(hidden**2 + hidden, axis=1) - jnp.asarray(TARGETS + np.float32(shift), dtype)) ** 2)


def stepper(tx, loss=loss_fn, **extra):
    """One step with all the extra arguments of Optax; `(params, state) -> (params, state)`."""

    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        grads = optax.tree.conj(grads)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss, **extra)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, steps=STEPS, loss=loss_fn, wrap=jax.jit):
    """The parameters after `steps` steps, and the state."""
    step, state = wrap(stepper(tx, loss)), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def expected(case, params, steps=STEPS, loss=loss_fn, h=H):
    """The same by the formula, on the flat vector."""
    x, unravel = ravel_pytree(params)
    assert steps % case.num_steps == 0
    for count in range(0, steps, case.num_steps):
        x = case.formula(lambda x: loss(unravel(x)), x, h, count)
    return unravel(x)
