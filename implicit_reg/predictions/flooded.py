"""Rows of flooding: the pair of steps, the pair on two minibatches, the level set.

The displacement of n steps down and up is of the size n e^2, with e the step size. Where that is the time scale, the
frame's `h` is `e^2`, so that `n h` is this slow time, and an order in e is half an order in h.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg import transforms
from implicit_reg.descent import optimizer_step
from implicit_reg.flows import flood
from implicit_reg.predictions import flooded_levels as levels
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
    iterates,
)

SMALL = "e max|lambda| below 0.3"

_slow = Trust("e max|lambda|, h = e^2", lambda objective, spectrum, h: h**0.5 * spectrum.radius)


# --- The pair on one loss.


def _pair(objective: Objective, *, ascent_first: bool, name: str, slow: bool = True) -> Orders:
    size = jnp.sqrt if slow else lambda h: h

    def method(h):
        e = -size(h) if ascent_first else size(h)
        return optax.sgd(transforms.alternating(e, e))

    def terms(h, n, x):
        return flood.flooding_pair_terms(objective.value, x, size(h), ascent_first=ascent_first)

    times = {"step_sizes": levels.SQUARES, "time": levels.TIME} if slow else {}
    expected = (0.5, 1.0) if slow else (2, 3)
    return Orders(name, iterates(method, objective, num_steps=2), flow_of(terms), expected, **times)


def _pair_statements(objective: Objective, effort: Effort) -> tuple[Orders, ...]:
    found = (_pair(objective, ascent_first=False, name=""),)
    if effort >= Effort.STANDARD:
        found += (_pair(objective, ascent_first=True, name="ascent first"),)
    if effort >= Effort.FULL:
        found += (_pair(objective, ascent_first=False, name="at fixed n e, h = e", slow=False),)
    return found


# --- The pair on two minibatches.


def _two(objective: Objective) -> tuple[Callable, Callable]:
    loss = objective.minibatches(2)
    return (lambda x: loss(x, 0)), (lambda x: loss(x, 1))


def _signed_steps(objective: Objective, orders: tuple[tuple[int, ...], ...]) -> Recurrence:
    """Down, up, down, ... on these minibatches; the mean over several orders, each begun at the same point."""
    losses = _two(objective)

    def along(order, h, x):
        method = optax.sgd(transforms.alternating(h, h))
        state = method.init(x)
        for k in order:
            x, state = optimizer_step(method, losses[k], x, state)
        return x

    return Recurrence(lambda w, h, n, x: sum(along(order, h, x) for order in orders) / len(orders))


def _comparators(objective: Objective) -> Criterion:
    first, second = _two(objective)
    step = _signed_steps(objective, ((0, 1), (1, 0))).step

    def measure():
        x, sizes = objective.start, np.array([0.02, 0.01])

        @jax.jit
        def errors(e):
            moved = step(None, e, 0, x) - x
            right = flood.minibatch_pair_terms(first, second, x, e)[0]
            full = -(e**2) / 2 * levels.square_field(lambda y: (first(y) + second(y)) / 2)(x)
            mean = -(e**2) / 2 * levels.square_field(first, second)(x)
            return jnp.stack([jnp.linalg.norm(moved - field) for field in (right, full, mean)])

        coarse, fine = (np.asarray(errors(e)) for e in sizes)
        slopes = np.log(coarse / fine) / np.log(sizes[0] / sizes[1])
        numbers = dict(
            zip(("inner product", "square of the mean", "mean of the squares"), slopes.tolist(), strict=True)
        )
        return Finding(abs(slopes[0] - 3), 0.1, np.min(np.abs(slopes[1:] - 3)), numbers=numbers)

    return Criterion(
        "neither ||g||^2 nor the mean of ||g_k||^2",
        "one pair: order 3 with <g_i, g_j> to 0.1, and with neither of the two squares",
        measure,
    )


def _minibatch_statements(objective: Objective, effort: Effort) -> tuple[Orders | Criterion, ...]:
    first, second = _two(objective)

    def terms(h, n, x):
        return flood.minibatch_pair_terms(first, second, x, h)

    # A third derivative takes most of the time to compile: quick does without the second term.
    expected = (2, 3) if effort >= Effort.STANDARD else (2,)
    reference = flow_of(lambda h, n, x: terms(h, n, x)[: len(expected)])
    found = (Orders("", _signed_steps(objective, ((0, 1), (1, 0))), reference, expected),)
    if effort >= Effort.STANDARD:
        squares = levels.square_field(first, second)
        in_turn = flow_of(lambda h, n, x: (-(h**2) * squares(x),))
        found += (
            _comparators(objective),
            Orders("the two orders in turn", _signed_steps(objective, ((0, 1, 1, 0),)), in_turn, (2,)),
        )
    if effort >= Effort.FULL:
        found += (levels.common_level(objective),)
    return found


# --- The level set of the full batch.


def _level_statements(objective: Objective, effort: Effort) -> tuple[Orders | Criterion, ...]:
    reference = flow_of(lambda h, n, x: flood.level_set_terms(objective.value, x, jnp.sqrt(h))[:1])
    main = Orders(
        "",
        levels.full_batch(objective, 0.0),
        reference,
        (1.0,),
        one_step=False,
        step_sizes=levels.SQUARES,
        time=levels.TIME,
    )
    found = (main,)
    if effort >= Effort.STANDARD:
        found += (levels.unprojected(objective), levels.flooding_before_momentum(objective))
    if effort >= Effort.FULL:
        found += (levels.momentum_before_flooding(objective, 0.5),)
    return found


_pair_row = Prediction(
    name="flooding-pair",
    title="Flooding: a pair of steps",
    claim="One step down and one up on the same loss move by -(e^2/2) grad ||g||^2, whichever comes first.",
    formula="per pair -(e^2/2) grad||g||^2 +- (e^3/2) T(g,g); h = e^2",
    source="ishida2020",
    time_scale="pairs of steps, at fixed n e^2",
    validity=SMALL,
    statements=_pair_statements,
    trust=_slow,
)

ROWS = (
    _pair_row,
    Prediction(
        name="flooding-minibatch-pair",
        title="Flooding: a pair on two minibatches",
        claim="Down on one minibatch and up on another, the mean over both orders moves by -(e^2/2) grad <g_i, g_j>.",
        formula="per pair -(e^2/2) grad<g_i,g_j> + (e^3/4)(T_i(g_j,g_j) + T_j(g_i,g_i)); h = e",
        source="ishida2020",
        time_scale="pairs of steps, both orders begun anew at each",
        validity="h max|lambda| below 0.3",
        statements=_minibatch_statements,
        losses=("digits-tanh", "tanh-network"),
    ),
    dataclasses.replace(
        _pair_row,
        name="flooding-level-set",
        title="Flooding on its level set",
        claim="Full-batch flooding slides along {L = b} by projected descent of ||g||^2.",
        formula="per step -(e^2/2)(I - gg'/||g||^2) H g; h = e^2",
        time_scale="steps, at fixed n e^2",
        validity="e max|lambda| below 0.3; g not 0 on the level set",
        statements=_level_statements,
    ),
)
