"""What the contract test runs: every transformation as a function of the step size, with its formula typed again.

A row: `at(h)` is the transformation; `formula(loss, x, h, count)` is its step number `count` on a flat vector, in plain
`jax.grad` and `jax.hessian`; `needs` is the extra argument that it cannot do without.
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


class Case(NamedTuple):
    name: str
    at: Callable[[Any], optax.GradientTransformation]
    formula: Callable[..., jax.Array]
    needs: str | None = "value_fn"


def descended(loss, x, h, count):
    return x - h * jax.grad(loss)(x)


def flooded(level):
    return lambda loss, x, h, count: x - h * jnp.sign(loss(x) - level) * jax.grad(loss)(x)


def penalized(strength):
    def formula(loss, x, h, count):
        g = jax.grad(loss)(x)
        return x - h * (g + 2 * strength * jax.hessian(loss)(x) @ g)

    return formula


def differenced(strength, displacement):
    def formula(loss, x, h, count):
        g = jax.grad(loss)
        return x - h * (g(x) + 2 * strength * (g(x + displacement * g(x)) - g(x)) / displacement)

    return formula


def stitched(alpha, interval=1, offset=0):
    def formula(loss, x, h, count):
        if count % interval != offset:
            return descended(loss, x, h, count)
        behind = x + alpha * h * jax.grad(loss)(x)
        return behind - (1 + alpha) * h * jax.grad(loss)(behind)

    return formula


def sharpness_aware(radius, normalize):
    def formula(loss, x, h, count):
        g = jax.grad(loss)(x)
        return x - h * jax.grad(loss)(x + radius * (g / jnp.sqrt(jnp.sum(g**2)) if normalize else g))

    return formula


def alternated(ratio):
    return lambda loss, x, h, count: x - h * (1 if count % 2 == 0 else -ratio) * jax.grad(loss)(x)


def on_sgd(transformation):
    return lambda h: optax.chain(transformation, optax.sgd(h))


CASES = (
    Case("flooding-above", on_sgd(tr.flooding(0.05)), flooded(0.05), "value"),
    Case("flooding-across", on_sgd(tr.flooding(7.0)), flooded(7.0), "value"),
    Case("penalty", on_sgd(tr.add_gradient_penalty(0.2)), penalized(0.2)),
    Case("difference", on_sgd(tr.add_finite_difference_penalty(0.2, 0.5)), differenced(0.2, 0.5)),
    Case("sam", on_sgd(tr.sam(0.3)), sharpness_aware(0.3, True)),
    Case("unnormalized-sam", on_sgd(tr.sam(0.3, normalize=False)), sharpness_aware(0.3, False)),
    Case("backstitch", lambda h: tr.backstitch(optax.sgd(h), 0.4), stitched(0.4)),
    Case("interval", lambda h: tr.backstitch(optax.sgd(h), 1.0, interval=3, offset=1), stitched(1.0, 3, 1)),
    Case("alternating", lambda h: optax.sgd(tr.alternating(h, 0.5 * h)), alternated(0.5), None),
)
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
    for count in range(steps):
        x = case.formula(lambda x: loss(unravel(x)), x, h, count)
    return unravel(x)
