"""Runs with momentum, heavy ball's and Nesterov's in one program: what a sweep of `momentum` calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from implicit_reg import _tree
from implicit_reg.descent import optimizer_step
from implicit_reg.experiments.papers._small_epochs import small_network, unit_flow
from implicit_reg.flows.interpolated import interpolation_weights
from implicit_reg.flows.memory import (
    LinearMemory,
    ghost_shifts,
    heavy_ball_memory,
    memory_coefficients,
    nesterov_memory,
)
from implicit_reg.problems import factorization

NUM_UPDATES = 6  # interpolated: an error of h^6
NUM_RECORDS = 40  # of the two-parameter runs


def _memory(decay: Any, nesterov: Any) -> LinearMemory:
    pairs = zip(heavy_ball_memory(decay), nesterov_memory(decay), strict=True)
    return LinearMemory(*(jnp.where(nesterov, second, first) for first, second in pairs))


def _stepper(h: Array, decay: Array, nesterov: Array, loss: Callable) -> tuple[Any, Callable]:
    """Optax's method, and one step of it on `(params, state)`; both kinds in one program, and one of them taken."""
    methods = [optax.sgd(h, momentum=decay, nesterov=kind) for kind in (False, True)]

    def step(carry):
        first, second = (optimizer_step(method, loss, *carry) for method in methods)
        return jax.tree.map(lambda a, b: jnp.where(nesterov, b, a), first, second)

    return methods[0], step


def local_coefficient(key: Array, h: Array, decay: Array, burn: Array, nesterov: Array) -> Array:
    """The coefficient that the iterates show at one of their points, after `burn` steps from an empty trace.

    The field that they follow is interpolated from a few updates, `f = sum_j w_j (x_{j+1} - x_j)/h`; what is left of it
    after `-g/(1 - b)` is projected on `-2 h H g = -h grad ||g||^2`.

    Args:
      key: of the problem.
      h, decay: of the method.
      burn: steps before.
      nesterov: 1 for Nesterov's momentum, 0 for heavy ball's.

    Returns:
      The coefficient, up to O(h).
    """
    network = small_network(key)
    gradient = jax.grad(network.mean_loss)
    method, step = _stepper(h, decay, nesterov, network.mean_loss)
    carry = jax.lax.fori_loop(0, burn, lambda _, c: step(c), (network.start, method.init(network.start)))
    x = carry[0]

    def update(carry, _):
        after = step(carry)
        return after, (after[0] - carry[0]) / h

    updates = jax.lax.scan(update, carry, length=NUM_UPDATES)[1]
    field = jnp.array([float(w) for w in interpolation_weights(NUM_UPDATES)]) @ updates
    g, hg = jax.jvp(gradient, (x,), (gradient(x),))
    return -(field + g / (1 - decay)) @ hg / (2 * h * hg @ hg)


def flow_errors(key: Array, h: Array, decay: Array, num_steps: Array, nesterov: Array) -> Array:
    """Distances of the iterates, from Optax's empty trace, from the flows with one, two and three terms.

    The flows start at the ghost point that belongs to an empty trace, with as many of its terms as they need.

    Args:
      key, h, decay, nesterov: as for `local_coefficient`.
      num_steps: how many.

    Returns:
      Three distances.
    """
    network = small_network(key)
    memory = _memory(decay, nesterov)
    method, step = _stepper(h, decay, nesterov, network.mean_loss)
    end = jax.lax.fori_loop(0, num_steps, lambda _, c: step(c), (network.start, method.init(network.start)))[0]
    coefficients = memory_coefficients(network.mean_loss, memory)
    first, second = ghost_shifts(network.mean_loss, memory)(network.start)
    starts = network.start + jnp.cumsum(jnp.stack([jnp.zeros_like(first), h * first, h**2 * second]), axis=0)
    powers = h ** jnp.arange(3)
    weights = jnp.tril(jnp.ones((3, 3))) * powers  # row k: the first k + 1 terms

    def field(rows):
        return num_steps * h * jnp.einsum("kt,ktd->kd", weights, jax.vmap(lambda x: jnp.stack(coefficients(x)))(rows))

    return jnp.linalg.norm(unit_flow(field, starts, 96) - end, axis=1)


def imbalance(key: Array, h: Array, decay: Array, every: Array, nesterov: Array) -> Array:
    """`-log((a^2 - b^2)/(a_0^2 - b_0^2))/eta` along a run on the two-parameter loss, `eta = h/(1 - b)`.

    Gradient flow conserves `a^2 - b^2`; to leading order it decays in proportion to the coefficient of the modified
    loss.

    Args:
      key: not used: nothing is random.
      h, decay, nesterov: as for `local_coefficient`.
      every: steps between two of the `NUM_RECORDS` records.

    Returns:
      The values at the records.
    """
    del key
    problem = factorization()
    method, step = _stepper(h, decay, nesterov, problem.loss_fn)
    conserved = problem.facts["conserved"]

    def record(carry, _):
        carry = jax.lax.fori_loop(0, every, lambda _, c: step(c), carry)
        return carry, -jnp.log(conserved(carry[0]) / conserved(problem.params)) * (1 - decay) / h

    params = _tree.like(problem.params, jax.tree.map(lambda x: x + 0.0, problem.params))
    return jax.lax.scan(record, (params, method.init(params)), length=NUM_RECORDS)[1]
