"""Statements about shuffled epochs: the mean over orders, single orders, samples, discrete equivalents, momentum."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.flows import stochastic as fields
from implicit_reg.orderings import epoch_orders, mean_epoch
from implicit_reg.predictions.judging import ORDER_TOLERANCE
from implicit_reg.predictions.measure import program, relative_error
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.orderings import estimate, population
from implicit_reg.predictions.prediction import Criterion, Finding, Flow, Orders, Recurrence, flow_of, weighted

# The number of runs is (m!)^epochs, and epochs double with each halving: three minibatches for four epochs are 1296.
NUM_BATCHES, NUM_EPOCHS = 3, 4
STEP_SIZES = (0.03, 0.015, 0.0075)  # for 1, 2, 4 epochs
SAMPLE = 256  # orders drawn where m! is too large, fixed before any result was seen
SIGMAS = 4.0
DECAY = 0.3  # its memory is gone after the few steps that can be enumerated


def epochs(sequences: np.ndarray, objective: Objective, num_units: int, method=optax.sgd, **options) -> Recurrence:
    """The population of all runs through these sequences of the minibatches 0, 1, ..., all of which occur."""
    return population(method, objective.minibatches(int(sequences.max()) + 1), sequences, num_units, **options)


def shuffled_flow(objective: Objective, m: int, order: int) -> Flow:
    loss = objective.minibatches(m)
    return flow_of(lambda h, n, x: fields.shuffled_terms(loss, m, x, h, order=order))


def whole(field: Callable) -> Flow:
    """The flow of a whole field: nothing is truncated."""
    return flow_of(lambda h, n, x: (field(h, x),))


def over_epochs(
    name: str,
    runs: Recurrence,
    reference: Flow | Recurrence,
    expected: tuple[int, ...],
    num: int,
    *,
    one_step: bool = True,
) -> Orders:
    """Errors over 1, 2, 4, ..., `num` epochs, with a step size to match."""
    sizes = tuple(STEP_SIZES[0] / 2**k for k in range(num.bit_length()))
    return Orders(name, runs, reference, expected, one_step, step_sizes=sizes, time=sizes[0], num_records=1)


def _slope(
    runs: Recurrence, reference: Flow | Recurrence, objective: Objective, step_sizes, time: float | None
) -> float:
    """The order between the two finest step sizes, of the error at `time` or, for None, after one unit."""
    run, follow = program(runs, objective), program(reference, objective)
    errors = []
    for h in step_sizes[-2:]:
        counts, w = np.array([1 if time is None else round(time / h)]), np.ones(1)
        errors.append(np.linalg.norm(run(w, h, counts) - follow(w, h, counts)))
    return float(np.log(errors[0] / errors[1]) / np.log(step_sizes[-2] / step_sizes[-1]))


def order_against(
    name: str,
    wanted: str,
    runs: Recurrence,
    said: Flow | Recurrence,
    other: Flow | Recurrence,
    expected: float | int,
    objective: Objective,
    *,
    step_sizes: tuple[float, ...] = STEP_SIZES,
    time: float | None = STEP_SIZES[0],
) -> Criterion:
    """The order of the error against `said`; the mutant is another comparator, against which the order is not that.

    `time` None is after one unit.
    """

    def measure():
        found = [_slope(runs, reference, objective, step_sizes, time) for reference in (said, other)]
        off, wrong = (abs(slope - expected) for slope in found)
        return Finding(off, ORDER_TOLERANCE, wrong, numbers={"order": found[0], "order against the other": found[1]})

    return Criterion(name, f"{wanted}: order {expected:g} within {ORDER_TOLERANCE}", measure)


def gradient_steps(objective: Objective, m: int) -> Recurrence:
    """m steps on `C + (h/4) <||g_k - g||^2>`, with weights on the two."""
    loss = objective.minibatches(m)

    def step(w, h, n, x):
        for _ in range(m):
            (first,) = fields.shuffled_terms(loss, m, x, h, order=1)
            x = x + weighted(w, (first / m, fields.shuffled_parts(loss, m, x, h)[1] / m))
        return x

    return Recurrence(step)


def one_long_step(objective: Objective, m: int) -> Recurrence:
    """One step of size m h on `C - (m h/4) ||g||^2 + (h/4) <||g_k||^2>`, with weights on C and the rest."""
    loss = objective.minibatches(m)

    def step(w, h, n, x):
        first, second = fields.shuffled_terms(loss, m, x, h, order=2)
        full, _ = fields.shuffled_parts(loss, m, x, h)
        return x + weighted(w, (first, second - m * full))

    return Recurrence(step)


def fixed_order(objective: Objective, m: int) -> Criterion:
    """`F_2` of one order is that of the mean plus `(h^2/2) sum_{i<j} (H_j g_i - H_i g_j)`, i before j."""
    loss = objective.minibatches(m)

    def gradients(x):
        return jax.vmap(jax.grad(loss), (None, 0))(x, jnp.arange(m))

    def with_commutator(h, x):
        first, second = fields.shuffled_terms(loss, m, x, h, order=2)
        pairs = jax.vmap(lambda v: jax.jvp(gradients, (x,), (v,))[1])(gradients(x))  # H_i g_j at [j, i]
        earlier = jnp.tril(jnp.ones((m, m), x.dtype), -1)[..., None]  # i before j
        return first + second + 0.5 * h**2 * jnp.sum(earlier * (pairs.swapaxes(0, 1) - pairs), axis=(0, 1))

    return order_against(
        "the same order in every epoch",
        "F_1 + F_2 of the mean at fixed time, and order 2 once the commutator of that order is added",
        epochs(np.arange(m, dtype=np.int32)[None], objective, 4),
        whole(lambda h, x: sum(fields.shuffled_terms(loss, m, x, h, order=2))),
        whole(with_commutator),
        1,
        objective,
    )


def decomposition(objective: Objective, m: int) -> Criterion:
    loss, x, h = objective.minibatches(m), objective.start, 0.1

    def variance_of_losses(x):
        values = jax.vmap(lambda k: loss(x, k))(jnp.arange(m))
        return jnp.mean((values - jnp.mean(values)) ** 2)

    def measure():
        second = fields.shuffled_terms(loss, m, x, h, order=2)[1]
        full, variance = fields.shuffled_parts(loss, m, x, h)
        wrong = -m * h**2 / 4 * jax.grad(variance_of_losses)(x)
        numbers = {"variance part over full-batch part": jnp.linalg.norm(variance) / jnp.linalg.norm(full)}
        error, mutant = relative_error(full + variance, second), relative_error(full + wrong, second)
        return Finding(error, 1e-12, mutant, numbers=numbers)

    return Criterion("full-batch plus variance part", "relative difference from F_2 at most 1e-12", measure)


def without_variance(objective: Objective, m: int) -> Criterion:
    loss = objective.minibatches(m)
    return order_against(
        "gradient descent's term alone",
        "F_1 and the full-batch part of F_2 after one epoch, and order 3 once the variance part is added",
        epochs(epoch_orders(m), objective, 1),
        whole(lambda h, x: fields.shuffled_terms(loss, m, x, h, order=1)[0] + fields.shuffled_parts(loss, m, x, h)[0]),
        whole(lambda h, x: sum(fields.shuffled_terms(loss, m, x, h, order=2))),
        2,
        objective,
        time=None,
    )


def all_orders(objective: Objective, m: int) -> Criterion:
    loss = objective.minibatches(m)

    def measure():
        runs = Recurrence(lambda w, h, n, x: mean_epoch(optax.sgd, loss, m, x, h).params)
        follow = shuffled_flow(objective, m, 3)
        # An epoch is as long as m steps: smaller ones keep it as short as in the main statement.
        sizes = tuple(h * NUM_BATCHES / m for h in STEP_SIZES[-2:])
        run, field = program(runs, objective), program(follow, objective)

        def slope(w):
            errors = [np.linalg.norm(run(w, h, np.array([1])) - field(w, h, np.array([1]))) for h in sizes]
            return float(np.log2(errors[0] / errors[1]))

        weights = np.tril(np.ones((3, 3)))
        right = [slope(w) for w in weights]
        wrong = [slope(w) for w in weights + 0.1 * np.eye(3)]
        off, mutant = (np.abs(np.array(found) - [2, 3, 4]) for found in (right, wrong))
        return Finding(np.max(off), ORDER_TOLERANCE, np.min(mutant), numbers={"orders": right, "with 1.1": wrong})

    return Criterion(
        f"one epoch, all {math.factorial(m)} orders of {m}", f"orders 2, 3, 4 within {ORDER_TOLERANCE}", measure
    )


def sampled_orders(objective: Objective, m: int) -> Criterion:
    """Reverse pairs cancel the deviation of a single order, h^2, so that few are needed."""
    loss, h = objective.minibatches(m), STEP_SIZES[-1] * NUM_BATCHES / m

    def measure():
        orders = epoch_orders(m, num_samples=SAMPLE, key=jax.random.key(0))
        runs = epochs(orders, objective, 1, read=lambda runs: runs.x)
        x = objective.start
        ends = program(runs, objective)(np.ones(1), h, np.array([1]))[0]
        variance = fields.shuffled_parts(loss, m, x, h)[1]
        direction = variance / jnp.linalg.norm(variance)

        # Weights on the variance part: as predicted, 1.1 times as large, and none (gradient descent's term alone).
        def field(w, h, n, x):
            terms = fields.shuffled_terms(loss, m, x, h)
            return sum(terms) + w[0] * fields.shuffled_parts(loss, m, x, h)[1]

        follow = program(Flow(field), objective)

        def z(weight):
            there = follow(np.array([weight - 1.0]), h, np.array([1]))[0]
            found = estimate((ends - there) @ np.asarray(direction))
            return found.mean / found.standard_error

        right, larger, none = z(1.0), z(1.1), z(0.0)
        numbers = {
            "m": m,
            "orders drawn": SAMPLE,
            "z": right,
            "z with 1.1 variance": larger,
            "z without variance": none,
        }
        return Finding(abs(right), SIGMAS, min(abs(larger), abs(none)), numbers=numbers)

    wanted = f"|z| at most {SIGMAS:g} along the variance part; above it with 1.1 of that part, and with none of it"
    return Criterion(f"one epoch, {SAMPLE} sampled orders of {m}", wanted, measure)


def spread(name: str, runs: Callable, expected: float | int, wrong: Callable, objective: Objective) -> Criterion:
    """The order of the root mean square distance from the mean; the mutant is the other way to draw."""

    def slope(make):
        run = program(make(lambda runs: jnp.sqrt(jnp.sum(jnp.var(runs.x, axis=0), keepdims=True))), objective)
        spreads = [run(np.ones(1), h, np.array([round(STEP_SIZES[0] / h)]))[0, 0] for h in STEP_SIZES[-2:]]
        return float(np.log2(spreads[0] / spreads[1]))

    def measure():
        right, other = slope(runs), slope(wrong)
        off, mutant = abs(right - expected), abs(other - expected)
        return Finding(off, ORDER_TOLERANCE, mutant, numbers={"order": right, "the other way to draw": other})

    return Criterion(name, f"order {expected:g} within {ORDER_TOLERANCE}", measure)


def on_slow_manifold(gradient: Callable, decay: float) -> Callable:
    """The trace of heavy ball before the first step, `g/(1-b) + h H g/(1-b)^3`, for a single initial state."""

    def states(h, x, fresh):
        g, curved = jax.jvp(gradient, (x,), (gradient(x),))
        trace = g / (1 - decay) + h * curved / (1 - decay) ** 3
        return jax.tree.map(lambda leaf: trace[None], fresh)

    return states


def mean_gradient(objective: Objective, m: int) -> Callable:
    loss = objective.minibatches(m)
    return lambda x: jnp.mean(jax.vmap(jax.grad(loss), (None, 0))(x, jnp.arange(m)), axis=0)


def shuffled_momentum(objective: Objective, m: int, num: int) -> Orders:
    loss = objective.minibatches(m)
    return over_epochs(
        f"with momentum {DECAY:g}, m = {m}, from the slow manifold",
        epochs(
            epoch_orders(m),
            objective,
            num,
            functools.partial(optax.sgd, momentum=DECAY),
            states=on_slow_manifold(mean_gradient(objective, m), DECAY),
        ),
        flow_of(lambda h, n, x: fields.momentum_shuffled_terms(loss, m, x, h, decay=DECAY)),
        (1, 2),
        num,
        one_step=False,
    )
