"""Epochs small enough to enumerate: a network of twelve parameters, twelve examples in four minibatches, 24 orders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from implicit_reg._types import Integer
from implicit_reg.descent import optimizer_step
from implicit_reg.orderings import epoch_orders

NUM_BATCHES, NUM_EXAMPLES, NUM_INPUTS, NUM_HIDDEN = 4, 12, 2, 3
NUM_PARAMS = NUM_HIDDEN * (NUM_INPUTS + 2)
ORDERS = epoch_orders(NUM_BATCHES)
SEQUENCES = np.array(list(itertools.product(range(NUM_BATCHES), repeat=NUM_BATCHES)), np.int32)  # with replacement


class SmallNetwork(NamedTuple):
    """A 2-3-1 tanh network on twelve random examples.

    Attributes:
      loss_fn: `(params, k) -> half the mean squared error on minibatch k`; k may be traced.
      start: its twelve parameters, a flat vector.
    """

    loss_fn: Callable[[Array, Any], Array]
    start: Float[Array, " 12"]

    def mean_loss(self, params: Array) -> Array:
        """The loss on all examples."""
        return jnp.mean(jax.vmap(lambda k: self.loss_fn(params, k))(jnp.arange(NUM_BATCHES)))


def small_network(key: Array) -> SmallNetwork:
    """Examples, targets and parameters, all standard normal.

    Args:
      key: of all of them.

    Returns:
      The network.

    Example:
      >>> network = small_network(jax.random.key(0))
      >>> network.start.shape, network.loss_fn(network.start, 3).shape
      ((12,), ())
    """
    numbers = jax.random.normal(key, (NUM_EXAMPLES * (NUM_INPUTS + 1) + NUM_PARAMS,))
    points, targets, start = jnp.split(numbers, [NUM_EXAMPLES * NUM_INPUTS, NUM_EXAMPLES * (NUM_INPUTS + 1)])
    points = points.reshape(NUM_BATCHES, -1, NUM_INPUTS)
    targets = targets.reshape(NUM_BATCHES, -1)

    def loss_fn(params, k):
        first, bias, last = jnp.split(params, [NUM_INPUTS * NUM_HIDDEN, NUM_PARAMS - NUM_HIDDEN])
        hidden = jnp.tanh(points[k] @ first.reshape(NUM_INPUTS, NUM_HIDDEN) + bias)
        return 0.5 * jnp.mean((hidden @ last - targets[k]) ** 2)

    return SmallNetwork(loss_fn, start)


def epoch_end(
    transformation: optax.GradientTransformation, network: SmallNetwork, order: Array, state: Any = None
) -> Array:
    """Where an optimizer is after one step on each minibatch of a sequence.

    Args:
      transformation: any of Optax's.
      network: where it runs, from its start.
      order: the numbers of the minibatches.
      state: of the optimizer; None is its fresh one.

    Returns:
      The parameters.
    """

    def step(carry, k):
        return optimizer_step(transformation, network.loss_fn, *carry, batch=(k,)), None

    state = transformation.init(network.start) if state is None else state
    return jax.lax.scan(step, (network.start, state), order)[0][0]


def unit_flow(field: Callable[[Array], Array], start: Array, substeps: Integer = 16) -> Array:
    """The solution of `x' = field(x)` at time 1, by the classical Runge-Kutta method.

    A field of one epoch is of size m h: 16 substeps leave 1e-10 of it at `m h lambda = 0.3`, far below every error that
    is measured, and there is less to compile than of an adaptive solver.

    Args:
      field: autonomous.
      start: any array.
      substeps: of equal length.

    Returns:
      Structured as `start`.

    Example:
      >>> round(float(unit_flow(lambda x: -x, jnp.array(1.0))), 5)                # exp(-1)
      0.36788
    """
    dt = 1.0 / substeps

    # A loop over the stages: the field, most of what there is to compile, is compiled once and not four times.
    def substep(_, x):
        def stage(carry, coefficients):
            slope, total = carry
            reach, weight = coefficients
            slope = field(x + reach * dt * slope)
            return (slope, total + weight * dt * slope), None

        reaches, weights = jnp.array([0, 1 / 2, 1 / 2, 1], x.dtype), jnp.array([1, 2, 2, 1], x.dtype) / 6
        return jax.lax.scan(stage, (jnp.zeros_like(x), x), (reaches, weights))[0][1]

    return jax.lax.fori_loop(0, int(substeps), substep, start)


def order_between(step_sizes: Sequence[float], errors: Any) -> np.ndarray:
    """The observed orders of errors between neighboring step sizes, finest last: `log(e_1/e_2) / log(h_1/h_2)`.

    Args:
      step_sizes: decreasing.
      errors: first axis as the step sizes.

    Returns:
      One entry less along the first axis.

    Example:
      >>> order_between([0.2, 0.1, 0.05], [8.0, 2.0, 0.5]).tolist()
      [2.0, 2.0]
    """
    sizes, errors = np.asarray(step_sizes, float), np.asarray(errors, float)
    ratio = np.log(sizes[:-1] / sizes[1:])
    return np.log(errors[:-1] / errors[1:]) / ratio.reshape((-1,) + (1,) * (errors.ndim - 1))


def extrapolated(step_sizes: Sequence[float], values: Any) -> np.ndarray:
    """The limit for h to 0 of values that approach it linearly, from the two finest step sizes.

    Args:
      step_sizes: decreasing.
      values: first axis as the step sizes.

    Returns:
      The limit, up to O(h^2).

    Example:
      >>> extrapolated([0.2, 0.1], [[3.4], [3.2]]).round(6).tolist()
      [3.0]
    """
    a, b = step_sizes[-2:]
    values = np.asarray(values, float)
    return np.asarray((a * values[-1] - b * values[-2]) / (a - b))
