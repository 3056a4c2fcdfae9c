"""What flooding does at its level: full batch, with momentum before and after it, and on minibatches.

Here the frame's `h` is `e^2`, with e the step size: `n h` is the time of the slow motion along the level set.
"""

from __future__ import annotations

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
from implicit_reg.predictions.prediction import Criterion, Finding, Flow, Orders, Recurrence, flow_of

SQUARES = (0.04, 0.01, 0.0025, 0.000625)  # e^2 for e = 0.2 ... 0.025
TIME = 0.8  # n e^2
PHASES = 8  # where in the oscillation across the level a run starts
DECAYS = (0.5, 0.9)
NUM_MINIBATCHES = 4


def square_field(*losses: Callable) -> Callable:
    """`grad of the mean of ||grad L_k||^2`."""
    return jax.grad(lambda x: sum(jnp.sum(jax.grad(loss)(x) ** 2) for loss in losses) / len(losses))


# --- Minibatch flooding, where every minibatch loss is at the level.


def common_level(objective: Objective) -> Criterion:
    """The mean of many runs against the flow on the common level set, and against that of full-batch flooding.

    A limit: the error is of first order in e, so that e has to be small for the bound, however many runs there are.
    Minibatches are drawn independently. In a fixed order the fluctuations repeat themselves and do not visit their
    phases evenly, as `fluctuation_areas` takes for granted: no claim is made there.
    """
    num, e, runs, substeps = NUM_MINIBATCHES, 0.00625, 32, 8
    loss = objective.minibatches(num)
    losses = lambda x: jnp.stack([loss(x, k) for k in range(num)])  # noqa: E731
    level = 0.9 * float(jnp.mean(losses(objective.start)))
    method = optax.chain(transforms.flooding(level), optax.sgd(e))
    num_steps = round(TIME / e**2)

    def draws(key, shape):
        return jax.random.randint(key, shape, 0, num)

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
        free = -square_field(lambda y: jnp.mean(losses(y)))(x) / 4
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
        return Finding(right, 0.05, min(without, full), numbers=numbers)

    return Criterion(
        "minibatch flooding, random order",
        "mean end within 5 % of the displacement on the common level set; without the commutators, or with the field "
        "of the full batch, it is not",
        measure,
    )


# --- The level set of the full batch.


def _on_level(objective: Objective) -> tuple[float, Callable]:
    level = float(objective.value(objective.start))
    one = lambda x: objective.value(x)[None]  # noqa: E731
    return level, lambda x: flood.project_to_levels(one, x, level, 3)


def full_batch(objective: Objective, decay: float) -> Recurrence:
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


def unprojected(objective: Objective) -> Criterion:
    def measure():
        fields = (
            flow_of(lambda h, n, x: flood.level_set_terms(objective.value, x, jnp.sqrt(h))[:1]),
            Flow(lambda w, h, n, x: -h / 4 * square_field(objective.value)(x)),
        )
        run, right, free = (program(d, objective) for d in (full_batch(objective, 0.0), *fields))
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


def flooding_before_momentum(objective: Objective) -> Criterion:
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
        for decay in DECAYS:
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


def momentum_before_flooding(objective: Objective, decay: float) -> Orders:
    def field(w, h, n, x):
        first, slips = flood.level_set_terms(objective.value, x, jnp.sqrt(h), decay)
        return first + w[0] * slips

    scale = 1 - decay  # the same slow displacement as without momentum, up to 1 + decay
    return Orders(
        f"momentum {decay:g} before flooding, slips",
        full_batch(objective, decay),
        Flow(field),
        (1.0,),
        one_step=False,
        mutation=-1.0,
        step_sizes=tuple(h * scale / 4 for h in SQUARES),
        time=TIME * scale,
    )
