"""The steps that `step_cost` compares: every method of the table, the loss wrappers, other routes to the penalty."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from implicit_reg import losses
from implicit_reg.methods import METHODS, Method

LEARNING_RATE = 0.05
GRAM = "losses.gradient_penalized, gram"
INTERVALS = (2, 4, 8)
EXACT = (  # the routes to the exact penalty that fit every model
    "gradient-penalty",
    "losses.gradient_penalized",
    "penalty, reverse over reverse",
    "penalty, forward over reverse",
    "penalty, reverse over forward",
)


class Step(NamedTuple):
    """`init(params) -> state`; `run(loss, params, state, batch) -> (params, state, value)`."""

    init: Callable[[Any], Any]
    run: Callable[..., tuple[Any, Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One program to check and time.

    Attributes:
      name, layer: as in the table.
      hyperparameters: those that are timed.
      make: `(**hyperparameters) -> Step`.
      formula: `(loss, x, h, **hyperparameters) -> x'` on a flat vector, without code of `make`.
      num_steps: how many steps the formula covers.
    """

    name: str
    layer: str
    hyperparameters: Mapping[str, Any]
    make: Callable[..., Step]
    formula: Callable[..., jax.Array]
    num_steps: int = 1


def from_transformation(transformation: optax.GradientTransformation) -> Step:
    """A step with every extra argument that a transformation may ask for."""
    transformation = optax.with_extra_args_support(transformation)

    def run(loss, params, state, batch):
        def value_fn(p):
            return loss(p, batch)

        value, gradient = jax.value_and_grad(value_fn)(params)
        updates, state = transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    return Step(transformation.init, run)


def from_wrapper(wrap: Callable[[Callable], Callable]) -> Step:
    """Gradient descent on a loss made from the loss."""
    optimizer = optax.sgd(LEARNING_RATE)

    def run(loss, params, state, batch):
        value, gradient = jax.value_and_grad(wrap(loss))(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return Step(optimizer.init, run)


def _along(params, scale, direction):
    return jax.tree.map(lambda p, d: p + scale * d, params, direction)


def _penalized_by(product: Callable) -> Callable[..., Step]:
    """Gradient descent with `g + 2 strength product(gradient function, loss, params, g)`."""

    def make(strength: float) -> Step:
        def run(loss, params, state, batch):
            def value_fn(p):
                return loss(p, batch)

            value, gradient = jax.value_and_grad(value_fn)(params)
            total = _along(gradient, 2 * strength, product(value_fn, params, gradient))
            return _along(params, -LEARNING_RATE, total), state, value

        return Step(lambda params: optax.EmptyState(), run)

    return make


def _forward_over_reverse(value_fn, params, gradient):
    return jax.jvp(jax.grad(value_fn), (params,), (gradient,))[1]


def _reverse_over_forward(value_fn, params, gradient):
    return jax.grad(lambda p: jax.jvp(value_fn, (p,), (gradient,))[1])(params)


def _central_difference(value_fn, params, gradient, displacement=0.01):
    ahead, behind = (jax.grad(value_fn)(_along(params, s * displacement, gradient)) for s in (1, -1))
    return jax.tree.map(lambda a, b: (a - b) / (2 * displacement), ahead, behind)


def _reverse_over_reverse(loss, strength):
    """The penalized loss as one writes it first."""

    def penalized(params, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        return value + strength * sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    return penalized


def _penalty_formula(loss, x, h, strength):
    return x - h * jax.grad(_reverse_over_reverse(loss, strength))(x)


def _forward_formula(loss, x, h, strength):
    gradient = jax.grad(loss)(x)
    return x - h * (gradient + 2 * strength * jax.jvp(jax.grad(loss), (x,), (gradient,))[1])


def _central_formula(loss, x, h, strength):
    g = jax.grad(loss)
    return x - h * (g(x) + strength * (g(x + 0.01 * g(x)) - g(x - 0.01 * g(x))) / 0.01)


def _interval_formula(loss, x, h, alpha, interval):
    x = METHODS["backstitch"].formula(loss, x, h, alpha)
    for _ in range(interval - 1):
        x = x - h * jax.grad(loss)(x)
    return x


# The published formula of this row has a dense Hessian, which no model of this size can hold.
AFFORDABLE = {"gradient-penalty": _penalty_formula}


def _method(row: Method) -> Variant:
    return Variant(
        row.name,
        "transformation",
        row.hyperparameters,
        lambda **hyperparameters: from_transformation(row.build(optax.sgd, LEARNING_RATE, **hyperparameters)),
        AFFORDABLE.get(row.name, row.formula),
        row.num_steps,
    )


def every(n: int) -> Variant:
    """Backstitch at the first of `n` steps; the formula covers all of them."""
    method = METHODS["backstitch"]
    return Variant(
        f"backstitch, interval {n}",
        "transformation",
        {"alpha": 0.3, "interval": n},
        lambda **hyperparameters: from_transformation(method.build(optax.sgd, LEARNING_RATE, **hyperparameters)),
        _interval_formula,
        n,
    )


def variants(methods: Mapping[str, Method] = METHODS, *, gram: bool = False) -> tuple[Variant, ...]:
    """Every method of the table, then the loss wrappers, then other routes to the gradient penalty.

    Args:
      methods: the rows.
      gram: whether the model has weights whose penalty pays by Gram matrices.
    """
    penalty = {"strength": 0.01}

    def wrapper(name, wrap, hyperparameters, formula):
        return Variant(
            name, "loss wrapper", hyperparameters, lambda **kw: from_wrapper(lambda l: wrap(l, **kw)), formula
        )

    def comparator(name, make, formula):
        return Variant(f"penalty, {name}", "comparator", penalty, make, formula)

    return (
        *map(_method, methods.values()),
        wrapper("losses.flooded", losses.flooded, {"level": 0.1}, METHODS["flooding"].formula),
        wrapper("losses.gradient_penalized", losses.gradient_penalized, penalty, _penalty_formula),
        *((wrapper(GRAM, functools.partial(losses.gradient_penalized, gram=True), penalty, _penalty_formula),) * gram),
        comparator(
            "reverse over reverse",
            lambda strength: from_wrapper(lambda loss: _reverse_over_reverse(loss, strength)),
            _forward_formula,
        ),
        comparator("forward over reverse", _penalized_by(_forward_over_reverse), _penalty_formula),
        comparator("reverse over forward", _penalized_by(_reverse_over_forward), _penalty_formula),
        comparator("central difference", _penalized_by(_central_difference), _central_formula),
    )
