"""Populations of runs that have gone through sequences of minibatches.

A sequence is a row of minibatch numbers, what one unit of time consists of: an order of all m for an epoch, or one
number alone for a step with replacement. A population makes one run for every way to choose a sequence in each unit, so
that its mean is exact and nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.descent import optimizer_step
from implicit_reg.predictions.prediction import Recurrence

if TYPE_CHECKING:
    Sequences: TypeAlias = Int[np.ndarray, "K L"]
else:
    Sequences: TypeAlias = object

MOST_RUNS = 2**16  # in a population


def single_batches(num_batches: Integer) -> Int[np.ndarray, "m 1"]:
    """The sequences of one step with replacement.

    Example:
      >>> single_batches(3).tolist()
      [[0], [1], [2]]
    """
    _checks.check_integer("single_batches", "num_batches", num_batches)
    return np.arange(int(num_batches), dtype=np.int32)[:, None]


class Runs(NamedTuple):
    """The state of a population: one entry for each run.

    Attributes:
      x: where the runs are.
      state: the optimizer's.
      choices: which sequences are still to come, as a number in base K whose last digit is the next one.
    """

    x: Float[Array, "runs d"]
    state: Any
    choices: Int[Array, " runs"]


def mean_point(runs: Runs) -> Float[Array, " d"]:
    """The mean over the runs."""
    return jnp.mean(runs.x, axis=0)


def population(
    method: Callable[[Any], optax.GradientTransformation],
    loss_fn: Callable[[Any, Any], Array],
    sequences: Sequences,
    num_units: Integer,
    *,
    states: Callable[[Any, Any, Any], Any] | None = None,
    num_states: Integer = 1,
    read: Callable[[Runs], Array] = mean_point,
) -> Recurrence:
    """All `num_states K^num_units` runs through K sequences, for up to `num_units` units; one unit is one sequence.

    After n <= `num_units` units every way to choose n sequences has occurred equally often, so that the mean over the
    runs is exact. (Later the choices would repeat the first sequence.)

    Args:
      method: `h -> transformation`.
      loss_fn: `(x, k) -> loss on the k-th minibatch`, of a flat vector.
      sequences: the K sequences of minibatch numbers.
      num_units: how many units the population is made for.
      states: `(h, x, fresh) -> optimizer states`, stacked along a first axis of length `num_states`: each run is made
        from each of them. None starts from the fresh state.
      num_states: how many.
      read: what is compared: the mean over the runs, or another number of them.

    Returns:
      A recurrence whose iterates ignore the weights.

    Raises:
      ValueError: there would be more than `MOST_RUNS` runs.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> loss = lambda x, k: 0.5 * jnp.sum((x - k) ** 2)
      >>> both = population(optax.sgd, loss, np.array([[0, 1], [1, 0]]), 1)
      >>> runs = both.step(None, 0.5, 0, both.start(None, 0.5, jnp.array([2.0])))
      >>> runs.x.ravel().tolist(), both.read(runs).tolist()
      ([1.0, 0.75], [0.875])
    """
    num_sequences = len(sequences)
    num_runs = num_states * num_sequences**num_units
    if num_runs > MOST_RUNS:
        raise ValueError(
            f"population: {num_states} x {num_sequences}^{num_units} = {num_runs} runs are more than {MOST_RUNS}; ask "
            f"for fewer units or sequences, or draw the orders (epoch_orders with `num_samples` and `key`)"
        )
    sequences = jnp.asarray(sequences)

    def start(w, h, x):
        fresh = method(h).init(x)
        stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], fresh) if states is None else states(h, x, fresh)
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, num_runs // num_states, axis=0), stacked)
        choices = jnp.tile(jnp.arange(num_runs // num_states, dtype=jnp.int32), num_states)
        return Runs(jnp.broadcast_to(x, (num_runs, *x.shape)), repeated, choices)

    def step(w, h, n, runs):
        def one(x, state, k):
            return optimizer_step(method(h), lambda x: loss_fn(x, k), x, state)

        def together(carry, batches):
            return jax.vmap(one)(*carry, batches), None

        chosen = sequences[runs.choices % num_sequences]
        (x, state), _ = jax.lax.scan(together, (runs.x, runs.state), chosen.T)
        return Runs(x, state, runs.choices // num_sequences)

    return Recurrence(step, start, read)


class Estimate(NamedTuple):
    """A mean over a sample, its standard error, and the number of independent draws."""

    mean: float
    standard_error: float
    num_draws: int


def estimate(values: Float[np.ndarray, " K"] | Float[Array, " K"]) -> Estimate:
    """The mean of numbers that come in reverse pairs, with its standard error: the pairs are the independent draws.

    Example:
      >>> estimate(np.array([1.0, 3.0, 2.0, 4.0]))
      Estimate(mean=2.5, standard_error=0.5, num_draws=2)
    """
    pairs = np.asarray(values, np.float64).reshape(-1, 2).mean(axis=1)
    return Estimate(float(pairs.mean()), float(pairs.std(ddof=1) / math.sqrt(pairs.size)), int(pairs.size))
