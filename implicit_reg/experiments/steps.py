"""A training loop for the inside of a sweep: traceable, of bounded memory, and divergence is data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Integer, Loss, Params
from implicit_reg.descent import optimizer_step


class Steps(NamedTuple):
    """A run.

    Attributes:
      params: the last finite parameters.
      state: the optimizer's state that belongs to them.
      observed: what `observe` saw at steps 0, every, 2 every, ...; leading axis num_steps / every + 1; floating leaves
        are NaN after the run went bad.
      first_bad_step: the step that would have made a parameter NaN or infinite, -1 where none did; int32.
    """

    params: PyTree
    state: PyTree
    observed: PyTree
    first_bad_step: Array


def _no_batch(step: Array) -> tuple:
    del step
    return ()


def run_steps(
    transformation: optax.GradientTransformation,
    loss_fn: Loss,
    params: Params,
    batch_at: Callable[[Array], tuple] | None,
    num_steps: Integer,
    *,
    every: Integer,
    observe: Callable[[PyTree, PyTree], PyTree],
) -> Steps:
    """Trains, observes, and stops moving where the next parameters would not be finite.

    `descend` keeps the parameters at every record; this keeps only what `observe` makes of them.

    Args:
      transformation: any of Optax's, its hyperparameters traced or not; `value`, `grad`, `value_fn` are passed to it.
      loss_fn: `loss_fn(params, *batch) -> scalar`.
      params: the start.
      batch_at: the batch of step n = 0, 1, ...; n is traced. None for a loss without a batch.
      num_steps: how many steps; a Python int.
      every: distance of two observations, divides `num_steps`.
      observe: `observe(params, optimizer_state) -> pytree of arrays`.

    Returns:
      The run.

    Raises:
      ValueError: `every` does not divide `num_steps`.

    Example:
      >>> def run(h):
      ...     return run_steps(optax.sgd(h), lambda x: x**4, jnp.float32(1), None, 8, every=4, observe=lambda x, s: x)
      >>> done = jax.jit(jax.vmap(run))(jnp.array([0.1, 3.0]))
      >>> done.first_bad_step
      Array([-1,  3], dtype=int32)
      >>> bool(jnp.isnan(done.observed[1, 2])), bool(jnp.isfinite(done.params).all())
      (True, True)
    """
    _checks.check_callable("run_steps", "loss_fn", loss_fn, "loss_fn(params, *batch) -> scalar")
    _checks.check_callable("run_steps", "observe", observe, "observe(params, state) -> pytree of arrays")
    _checks.check_integer("run_steps", "num_steps", num_steps)
    _checks.check_integer("run_steps", "every", every)
    if num_steps % every:
        raise ValueError(f"run_steps: `every` must divide `num_steps`, got every={every} and num_steps={num_steps}")
    transformation = optax.with_extra_args_support(transformation)
    batch_at = batch_at or _no_batch
    params = _tree.strong(params)

    def step(n, carry):
        params, state, bad = carry
        new, new_state = optimizer_step(transformation, loss_fn, params, state, batch_at(n))
        bad = jnp.where((bad < 0) & ~_tree.all_finite(new), n, bad)
        keep = bad >= 0
        new, new_state = jax.tree.map(lambda old, moved: jnp.where(keep, old, moved), (params, state), (new, new_state))
        return new, new_state, bad

    def look(carry):
        params, state, bad = carry
        seen = jax.tree.map(jnp.asarray, observe(params, state))
        return jax.tree.map(
            lambda x: jnp.where(bad >= 0, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x, seen
        )

    def record(carry, k):
        # No step before the first look: `observe` is traced once.
        carry = jax.lax.fori_loop(jnp.maximum(k - 1, 0) * every, k * every, step, carry)
        return carry, look(carry)

    start = (params, transformation.init(params), jnp.int32(-1))
    records = jnp.arange(num_steps // every + 1, dtype=jnp.int32)
    loop = canonical_convolutions(lambda start: jax.lax.scan(record, start, records))
    (params, state, bad), observed = loop(start)
    return Steps(params, state, observed, bad)


def shuffled_batches(key: Array, num_examples: Integer, batch_size: Integer) -> Callable[[Any], Array]:
    """Which examples step n uses: a fresh permutation in each epoch, drawn without replacement.

    With m = num_examples // batch_size batches an epoch, batch n mod m of the permutation drawn with
    `fold_in(key, n // m)`; a remainder of examples sits out an epoch. The full batch is not permuted.

    Args:
      key: of all permutations.
      num_examples: how many there are.
      batch_size: at most `num_examples`.

    Returns:
      `batch_index(n)`: int32 array of shape (batch_size,); n may be traced.

    Raises:
      ValueError: `batch_size` is above `num_examples`.

    Example:
      >>> batch = shuffled_batches(jax.random.key(0), 6, 3)
      >>> sorted(int(i) for n in (0, 1) for i in batch(n))
      [0, 1, 2, 3, 4, 5]
    """
    _checks.check_integer("shuffled_batches", "num_examples", num_examples)
    _checks.check_integer("shuffled_batches", "batch_size", batch_size)
    if batch_size > num_examples:
        raise ValueError(f"shuffled_batches: `batch_size` must be at most {num_examples}, got {batch_size}")
    identity = jnp.arange(num_examples, dtype=jnp.int32)
    if batch_size == num_examples:
        return lambda n: identity
    num_batches = num_examples // batch_size

    def batch_index(n):
        order = jax.random.permutation(jax.random.fold_in(key, n // num_batches), identity)
        return jax.lax.dynamic_slice_in_dim(order, (n % num_batches) * batch_size, batch_size)

    return batch_index
