"""Rows of flooding: the pair of steps, the pair on two minibatches, the level set; momentum and minibatches on it.

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
from implicit_reg.flows.integration import solve
from implicit_reg.predictions.measure import program, relative_error
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Flow,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
    iterates,
)

SQUARES = (0.04, 0.01, 0.0025, 0.000625)  # e^2 for e = 0.2 ... 0.025
TIME = 0.8  # n e^2
PHASES = 8  # where in the oscillation across the level a run starts
FAST_DECAYS = (0.5, 0.9)
NUM_MINIBATCHES = 4
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

    times = {"step_sizes": SQUARES, "time": TIME} if slow else {}
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


def _square_field(*losses: Callable) -> Callable:
    """`grad of the mean of ||grad L_k||^2`."""
    return jax.grad(lambda x: sum(jnp.sum(jax.grad(loss)(x) ** 2) for loss in losses) / len(losses))


def _comparators(objective: Objective) -> Criterion:
    first, second = _two(objective)
    step = _signed_steps(objective, ((0, 1), (1, 0))).step

    def measure():
        x, sizes = objective.start, np.array([0.02, 0.01])

        @jax.jit
        def errors(e):
            moved = step(None, e, 0, x) - x
            right = flood.minibatch_pair_terms(first, second, x, e)[0]
            full = -(e**2) / 2 * _square_field(lambda y: (first(y) + second(y)) / 2)(x)
            mean = -(e**2) / 2 * _square_field(first, second)(x)
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

    found = (Orders("", _signed_steps(objective, ((0, 1), (1, 0))), flow_of(terms), (2, 3)),)
    if effort >= Effort.STANDARD:
        squares = _square_field(first, second)
        in_turn = flow_of(lambda h, n, x: (-(h**2) * squares(x),))
        found += (
            _comparators(objective),
            Orders("the two orders in turn", _signed_steps(objective, ((0, 1, 1, 0),)), in_turn, (2,)),
            _common_level(objective, "minibatch flooding, random order", fixed=False),
        )
    if effort >= Effort.FULL:
        found += (_common_level(objective, "minibatch flooding, fixed order", fixed=True),)
    return found


# --- Minibatch flooding, where every minibatch loss is at the level.


def _common_level(objective: Objective, name: str, *, fixed: bool) -> Criterion:
    """The mean of many runs against the flow on the common level set, and against that of full-batch flooding."""
    num, e, runs, substeps = NUM_MINIBATCHES, 0.025, 32, 8
    loss = objective.minibatches(num)
    losses = lambda x: jnp.stack([loss(x, k) for k in range(num)])  # noqa: E731
    level = 0.9 * float(jnp.mean(losses(objective.start)))
    method = optax.chain(transforms.flooding(level), optax.sgd(e))
    num_steps = round(TIME / e**2)

    def draws(key, shape):
        return jnp.broadcast_to(jnp.arange(shape[1]) % num, shape) if fixed else jax.random.randint(key, shape, 0, num)

    def phases(key, count):
        return jax.random.uniform(key, (count, num), jnp.float64) - 0.5

    @jax.jit
    def run(x, order, phase):
        x = x + e * phase @ jax.jacrev(losses)(x)

        def body(carry, k):
            return optimizer_step(method, lambda y: loss(y, k), *carry), None

        (x, state), _ = jax.lax.scan(body, (x, method.init(x)), order)
        return flood.project_to_levels(losses, x, level), transforms.flooded_fraction(state)

    @jax.jit
    def fields(x, order, phase):
        jacobian = jax.jacrev(losses)(x)
        areas = flood.fluctuation_areas(jacobian @ jacobian.T, order, phase)
        first, second = flood.common_level_terms(losses, x, 1.0, areas)
        free = -_square_field(lambda y: jnp.mean(losses(y)))(x) / 4
        full = free - jacobian.T @ jnp.linalg.solve(jacobian @ jacobian.T, jacobian @ free)
        return first + second, first, full

    def measure():
        keys = jax.random.split(jax.random.key(0), 4)
        on_level = jax.jit(lambda x: flood.project_to_levels(losses, x, level, 4))
        x0 = jax.lax.fori_loop(0, 8, lambda i, x: on_level(x), objective.start)
        table = draws(keys[0], (256, 1000)), phases(keys[1], 256)
        ends = []
        for which in range(3):
            x = x0
            for _ in range(substeps):  # the midpoint rule: the areas are known to about 1 % only
                half = x + TIME / substeps / 2 * fields(x, *table)[which]
                x = on_level(x + TIME / substeps * fields(half, *table)[which])
            ends.append(x)
        many = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
        found, ascents = many(x0, draws(keys[2], (runs, num_steps)), phases(keys[3], runs))
        mean = jnp.mean(found, axis=0)
        moved = float(jnp.linalg.norm(ends[0] - x0))
        right, without, full = (float(jnp.linalg.norm(mean - end)) / moved for end in ends)
        spread = float(jnp.sqrt(jnp.mean(jnp.sum((found - mean) ** 2, axis=1)))) / moved
        numbers = {
            "displacement": moved,
            "without the commutators": without,
            "full batch": full,
            "standard error": spread / runs**0.5,
            "fraction of ascents": float(jnp.mean(ascents)),
        }
        return Finding(right, 0.05, full, numbers=numbers)

    return Criterion(
        name,
        "mean end on the common level set within 5 % of the displacement; full-batch flooding's field is not",
        measure,
    )


# --- The level set of the full batch.


def _on_level(objective: Objective) -> tuple[float, Callable]:
    level = float(objective.value(objective.start))
    one = lambda x: objective.value(x)[None]  # noqa: E731
    return level, lambda x: flood.project_to_levels(one, x, level, 3)


def _flooded(objective: Objective, decay: float) -> Recurrence:
    """Full-batch flooding from all phases of its oscillation at once; read on the level set, as the mean over a pair.

    Two effects of the size e^2 would blur the order otherwise: the two points of a pair differ when projected, and
    the pair wanders across the level until two steps in a row go the same way.
    """
    level, project = _on_level(objective)
    phases = (jnp.arange(PHASES) + 0.5) / PHASES / (1 - decay)

    def method(h):
        trace = (optax.trace(decay),) if decay else ()
        return optax.chain(*trace, transforms.flooding(level), optax.sgd(jnp.sqrt(h)))

    def start(w, h, x):
        points = x + jnp.sqrt(h) * phases[:, None] * objective.gradient(x)

        def fresh(point):
            state = method(h).init(point)
            if decay:
                state = (state[0]._replace(trace=objective.gradient(point) / (1 - decay)), *state[1:])
            return state

        return points, points, jax.vmap(fresh)(points)

    def step(w, h, n, y):
        points, _, state = y
        after, state = jax.vmap(lambda x, s: optimizer_step(method(h), objective.value, x, s))(points, state)
        return after, points, state

    return Recurrence(step, start, lambda y: jnp.mean(jax.vmap(project)(jnp.concatenate(y[:2])), axis=0))


def _unprojected(objective: Objective) -> Criterion:
    def measure():
        level, project = _on_level(objective)
        fields = (
            flow_of(lambda h, n, x: flood.level_set_terms(objective.value, x, jnp.sqrt(h))[:1]),
            Flow(lambda w, h, n, x: -h / 4 * _square_field(objective.value)(x), read=project),
        )
        run, right, free = (program(d, objective) for d in (_flooded(objective, 0.0), *fields))
        off = np.array([[_end_error(run, flow, objective, h) for flow in (right, free)] for h in SQUARES[1:]])
        numbers = {"e": np.sqrt(SQUARES[1:]), "projected": off[:, 0], "free": off[:, 1]}
        return Finding(np.min(off[:, 1]), 0.1, np.max(off[:, 0]), at_most=False, numbers=numbers)

    return Criterion(
        "the free descent of ||g||^2 is wrong at every step size",
        "off by at least 10 % of the displacement at each; the projected field by less",
        measure,
    )


def _end_error(run: Callable, flow: Callable, objective: Objective, h: float) -> float:
    counts = np.array([round(TIME / h)])
    end = run(np.ones(1), h, counts)[0]
    return np.linalg.norm(flow(np.ones(1), h, counts)[0] - end) / np.linalg.norm(end - objective.start)


def _flooding_before_momentum(objective: Objective) -> Criterion:
    """`kappa` from the signs of the run itself: no sequence of signs is assumed."""
    level, project = _on_level(objective)

    @jax.jit
    def run(e, decay, count):
        method = optax.chain(transforms.flooding(level), optax.trace(decay), optax.sgd(e))
        x = objective.start + e / (2 * (1 - decay)) * objective.gradient(objective.start)
        lags = 200

        def body(n, carry):
            x, state, recent, sums = carry
            sign = jnp.sign(objective.value(x) - level)
            x, state = optimizer_step(method, objective.value, x, state)
            return x, state, jnp.concatenate([sign[None], recent[:-1]]), sums + sign * recent

        zeros = jnp.zeros(lags)
        x, _, _, sums = jax.lax.fori_loop(0, count, body, (x, method.init(x), zeros, zeros))
        weights = decay ** jnp.arange(1, lags + 1)
        correlations = sums / (count - jnp.arange(1, lags + 1))
        return project(x), (1 + 2 * weights @ correlations) / (2 * (1 - decay) ** 2)

    @jax.jit
    def flow(slow_time):
        field = lambda n, x, scale: flood.level_set_terms(objective.value, x, jnp.sqrt(scale))[0]  # noqa: E731
        return solve.__wrapped__(
            field, None, (1e-9, 1e-9), 4096, objective.start, jnp.array([0.0, 1.0]), 2 * slow_time
        )[0][1]

    def measure():
        errors, mutants, numbers = [], [], {}
        for decay in FAST_DECAYS:
            e = 0.02 * (1 - decay)
            alternating = 1 / (2 * (1 - decay**2))
            count = round(0.2 / alternating / e**2 * (1 - decay) * (1 + decay))
            end, kappa = run(e, decay, count)
            scale = count * e**2
            errors.append(relative_error(end - objective.start, flow(kappa * scale) - objective.start))
            mutants.append(relative_error(end - objective.start, flow(alternating * scale) - objective.start))
            numbers |= {f"kappa at {decay:g}": float(kappa), f"kappa of alternating signs at {decay:g}": alternating}
        return Finding(max(errors), 0.02, min(mutants), numbers=numbers)

    return Criterion(
        "flooding before momentum",
        "kappa from the correlations of the signs: displacement within 2 %; of signs that alternate it is not",
        measure,
    )


def _momentum_before_flooding(objective: Objective, decay: float) -> Orders:
    def field(w, h, n, x):
        first, slips = flood.level_set_terms(objective.value, x, jnp.sqrt(h), decay)
        return first + w[0] * slips

    scale = 1 - decay  # the same slow displacement as without momentum, up to 1 + decay
    return Orders(
        f"momentum {decay:g} before flooding, slips",
        _flooded(objective, decay),
        Flow(field),
        (1.0,),
        one_step=False,
        mutation=-1.0,
        step_sizes=tuple(h * scale / 4 for h in SQUARES),
        time=TIME * scale,
    )


def _level_statements(objective: Objective, effort: Effort) -> tuple[Orders | Criterion, ...]:
    reference = flow_of(lambda h, n, x: flood.level_set_terms(objective.value, x, jnp.sqrt(h))[:1])
    main = Orders("", _flooded(objective, 0.0), reference, (1.0,), one_step=False, step_sizes=SQUARES, time=TIME)
    found = (main,)
    if effort >= Effort.STANDARD:
        found += (_unprojected(objective), _flooding_before_momentum(objective))
    if effort >= Effort.FULL:
        found += (_momentum_before_flooding(objective, 0.5),)
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
