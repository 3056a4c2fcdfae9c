"""Rows of stochastic gradient descent: shuffled epochs, draws with replacement, backstitch on shuffled minibatches.

Expectations are exact wherever they can be enumerated: a population of runs goes through every order of every epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.flows import stochastic as fields
from implicit_reg.orderings import epoch_orders, reverse_pair
from implicit_reg.predictions import epochs
from implicit_reg.predictions.epochs import NUM_BATCHES, NUM_EPOCHS, over_epochs, shuffled_flow
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.orderings import population, single_batches
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Flow,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
    weighted,
)
from implicit_reg.transforms import backstitch

MANY = 6  # minibatches whose 720 orders are enumerated for one epoch
SMALL = 100  # parameters up to which a covariance is a dense matrix
DRAWN, NUM_DRAWS = 2, 8  # minibatches and steps with replacement: 256 runs
REPLACEMENT_STEP_SIZES = (0.1, 0.05, 0.025)  # for 2, 4, 8 steps
FEW_DRAWS, FEW_STEP_SIZES = 5, (0.01, 0.005)  # 243 runs through three minibatches
TIME = NUM_DRAWS * REPLACEMENT_STEP_SIZES[-1]
LOSSES = ("digits-tanh", "tanh-network")

SHORT_EPOCHS = Trust(
    f"m h max|lambda| (m = {NUM_BATCHES})", lambda objective, spectrum, h: NUM_BATCHES * h * spectrum.radius
)


def _sgd_shuffled(objective: Objective, effort: Effort):
    m, num = NUM_BATCHES, NUM_EPOCHS
    order = 2 if effort == Effort.QUICK else 3  # the third term compiles as long as all the rest
    runs = epochs.epochs(epoch_orders(m), objective, num)
    statements = (over_epochs("", runs, shuffled_flow(objective, m, order), tuple(range(1, order + 1)), num),)
    if effort >= Effort.STANDARD:
        pair = epochs.epochs(reverse_pair(np.arange(5)), objective, 4)
        statements += (
            over_epochs("an order and its reverse, m = 5", pair, shuffled_flow(objective, 5, 2), (1, 2), 4),
            over_epochs(
                "discrete, m steps of gradient descent", runs, epochs.gradient_steps(objective, m), (1, 2), num
            ),
            over_epochs("discrete, one step of size m h", runs, epochs.one_long_step(objective, m), (1, 2), num),
            epochs.decomposition(objective, m),
            epochs.fixed_order(objective, m),
            epochs.without_variance(objective, m),
            epochs.sampled_orders(objective, 8),
        )
    if effort >= Effort.FULL:
        statements += (
            epochs.all_orders(objective, MANY),
            epochs.spread(
                "spread of single runs",
                lambda read: epochs.epochs(epoch_orders(m), objective, num, read=read),
                1.5,
                lambda read: epochs.epochs(single_batches(DRAWN), objective, num, read=read),
                objective,
            ),
            epochs.shuffled_momentum(objective, 2, 8),
            epochs.shuffled_momentum(objective, 3, 4),
        )
    return statements


def _moments(objective: Objective, *, decay: float = 0.0, read: Callable = lambda y: y[0]) -> Flow:
    """The flow of mean and covariance; weights on `F_1` (and the covariance's rate) and on `F_2`."""
    loss = objective.minibatches(DRAWN)

    def field(w, h, n, y):
        first, second, rate = fields.replacement_moments(loss, DRAWN, *y, h, decay=decay)
        # A main statement with one term has no second weight.
        return weighted(w, (first, second)[: w.shape[0]]), w[0] * rate

    return Flow(field, lambda w, h, x: (x, jnp.zeros((x.size, x.size), x.dtype)), read)


def _discrete_moments(objective: Objective, weight: float) -> Recurrence:
    """The same in `FEW_DRAWS` steps of h, with a weight on the covariance:

        x <- x - h g - (h/2) grad <H, S>,    S <- (I - h H) S (I - h H) + h^2 Sigma.

    Every step adds m columns to a factor of `S = Y Y'`, so that hundreds of parameters are no obstacle.
    """
    m = NUM_BATCHES
    loss = objective.minibatches(m)

    def gradients(x):
        return jax.vmap(jax.grad(loss), (None, 0))(x, jnp.arange(m))

    def product(x, v):
        return jax.jvp(lambda x: jnp.mean(gradients(x), axis=0), (x,), (v,))[1]

    def step(h, n, y):
        x, rows = y
        g = gradients(x)
        mean = jnp.mean(g, axis=0)
        turned = jax.vmap(lambda v: product(x, v))(rows)
        bent = jax.vmap(lambda v: jax.jvp(lambda x: product(x, v), (x,), (v,))[1])(rows)
        added = h * (g - mean) / np.sqrt(m)
        rows = jax.lax.dynamic_update_slice_in_dim(rows - h * turned, added, m * n, axis=0)
        return x - h * mean - weight * 0.5 * h * jnp.sum(bent, axis=0), rows

    def unit(w, h, n, x):
        start = (x, jnp.zeros((m * FEW_DRAWS, x.size), x.dtype))
        return jax.lax.fori_loop(0, FEW_DRAWS, lambda n, y: step(h, n, y), start)[0]

    return Recurrence(unit)


def _discrete(objective: Objective) -> Criterion:
    """At a fixed n every term shows its order.

    The covariance moves the mean of n steps by `n (n - 1) h^3/2` times something: by order 1 in h for n = t/h large,

    which takes more steps than can be enumerated. With two minibatches the
    deviations would have no third moment, and the error would be of order 5.
    """
    draws = np.array(list(itertools.product(range(NUM_BATCHES), repeat=FEW_DRAWS)), np.int32)
    return epochs.order_against(
        f"{FEW_DRAWS} draws, mean and covariance in discrete form",
        f"the mean after {FEW_DRAWS} steps, and order 3 without the covariance",
        epochs.epochs(draws, objective, 1),
        _discrete_moments(objective, 1.0),
        _discrete_moments(objective, 0.0),
        4,
        objective,
        step_sizes=FEW_STEP_SIZES,
        time=None,
    )


def _covariance(runs) -> jax.Array:
    deviation = runs.x - jnp.mean(runs.x, axis=0)
    return jnp.ravel(deviation.T @ deviation / len(deviation))


def _draws(objective: Objective, num: int = NUM_DRAWS, method=optax.sgd, **options) -> Recurrence:
    return population(method, objective.minibatches(DRAWN), single_batches(DRAWN), num, **options)


def _over_steps(
    name: str, runs: Recurrence, reference: Flow | Recurrence, expected: tuple[int, ...], *, one_step: bool = True
) -> Orders:
    sizes = REPLACEMENT_STEP_SIZES
    return Orders(name, runs, reference, expected, one_step, step_sizes=sizes, time=TIME, num_records=1)


def _one_drawn_epoch(objective: Objective) -> Criterion:
    m = NUM_BATCHES
    loss = objective.minibatches(m)
    sequences = np.array(list(itertools.product(range(m), repeat=m)), np.int32)
    return epochs.order_against(
        "one epoch of draws has no variance term",
        "C + (h/4) ||g||^2 after m steps, and order 2 with the variance term of shuffling",
        epochs.epochs(sequences, objective, 1),
        epochs.whole(
            lambda h, x: fields.shuffled_terms(loss, m, x, h, order=1)[0] + fields.shuffled_parts(loss, m, x, h)[0]
        ),
        epochs.whole(lambda h, x: sum(fields.shuffled_terms(loss, m, x, h, order=2))),
        3,
        objective,
        time=None,
    )


def _sgd_replacement(objective: Objective, effort: Effort):
    # Products with a dense S cost as many gradients as there are parameters: beyond, the moments in discrete form.
    if objective.start.size > SMALL:
        statements = (_discrete(objective),)
        return statements if effort == Effort.QUICK else (*statements, _one_drawn_epoch(objective))
    statements = (_over_steps("", _draws(objective), _moments(objective), (1, 2)),)
    if effort >= Effort.STANDARD:
        of_covariance = _moments(objective, read=lambda y: jnp.ravel(y[1]))
        statements += (
            _discrete(objective),
            _one_drawn_epoch(objective),
            _over_steps("the covariance itself", _draws(objective, read=_covariance), of_covariance, (2,)),
        )
    if effort >= Effort.FULL:
        gradient = epochs.mean_gradient(objective, DRAWN)
        runs = _draws(
            objective,
            2 * NUM_DRAWS,
            functools.partial(optax.sgd, momentum=epochs.DECAY),
            states=epochs.on_slow_manifold(gradient, epochs.DECAY),
        )
        statements += (
            _over_steps(
                f"with momentum {epochs.DECAY:g}, from the slow manifold",
                runs,
                _moments(objective, decay=epochs.DECAY),
                (1, 2),
                one_step=False,
            )._replace(step_sizes=tuple(h / 2 for h in REPLACEMENT_STEP_SIZES)),
        )
    return statements


def _stitched(objective: Objective, name: str, m: int, num: int, alpha: float, interval: int) -> Orders:
    """All orders and all offsets: `num` epochs of m minibatches."""
    loss = objective.minibatches(m)
    runs = epochs.epochs(
        epoch_orders(m),
        objective,
        num,
        lambda h: backstitch(optax.sgd(h), alpha, interval=interval),
        states=lambda h, x, fresh: jax.tree.map(lambda leaf: jnp.arange(interval, dtype=leaf.dtype), fresh),
        num_states=interval,
    )
    follow = flow_of(lambda h, n, x: fields.backstitch_shuffled_terms(loss, m, x, h, alpha=alpha, interval=interval))
    return over_epochs(name, runs, follow, (1, 2), num)


def _backstitch_shuffled(objective: Objective, effort: Effort):
    statements = (_stitched(objective, "", NUM_BATCHES, NUM_EPOCHS, 0.3, 1),)
    if effort >= Effort.STANDARD:
        statements += (_stitched(objective, "alpha = 1, every fourth step, all offsets", 2, 8, 1.0, 4),)
    return statements


ROWS = (
    Prediction(
        name="sgd-shuffled",
        title="SGD, shuffled epochs",
        claim="The mean over all orders of an epoch follows the flow of C + (h/4) <||grad C_k||^2>, and a third term.",
        formula="F_1 = -m h g, F_2 = -m h grad (h/4) <||g_k||^2>, F_3 = h^3 (m a_1 + m^2 a_2)",
        source="smith2021",
        time_scale="one epoch of m minibatch steps",
        validity="an epoch is short: m h max|lambda| at most 1; beyond about 5 the variance term hurts",
        statements=_sgd_shuffled,
        losses=LOSSES,
        trust=SHORT_EPOCHS,
    ),
    Prediction(
        name="sgd-replacement",
        title="SGD, drawn with replacement",
        claim="The mean over all draws follows C + (h/4) ||grad C||^2 and the covariance of the iterates.",
        formula="x' = -g - (h/2) H g - (1/2) grad <H, S>, S' = -H S - S H + h <(g_k - g)(g_k - g)'>",
        source="",
        time_scale="one minibatch step",
        validity="h max|lambda| below 0.3",
        statements=_sgd_replacement,
        losses=LOSSES,
    ),
    Prediction(
        name="backstitch-shuffled",
        title="Backstitch on shuffled minibatches",
        claim="Backstitch at every n-th step multiplies the regularizer of shuffling by 1 + 2 alpha (1 + alpha)/n.",
        formula="F_1 = -m h g, F_2 = -m h grad (h/4) [1 + 2 alpha (1 + alpha)/n] <||g_k||^2>",
        source="wang2017",
        time_scale="one epoch of m minibatch steps",
        validity="an epoch is short: m h max|lambda| at most 1",
        statements=_backstitch_shuffled,
        losses=LOSSES,
        trust=SHORT_EPOCHS,
    ),
)
