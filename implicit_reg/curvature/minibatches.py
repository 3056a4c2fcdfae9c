"""Means over all the examples of a loss, in minibatches of bounded memory, and what may be asked for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Data, Integer, Loss, Params


def mean_value_and_gradient(
    loss_fn: Loss, params: Params, data: Data = (), *, batch_size: Integer | None = None
) -> tuple[Array, PyTree]:
    """Loss and gradient on all the data, in minibatches of bounded memory.

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.

    Returns:
      The loss, and the gradient structured as the parameters.

    Raises:
      TypeError, ValueError: as `hessian_operator`.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, y: jnp.mean((x - y) ** 2)
      >>> data = (jnp.array([0.0, 1.0, 5.0, 6.0]),)
      >>> [float(z) for z in mean_value_and_gradient(loss, jnp.array(1.0), data, batch_size=3)]
      [10.5, -4.0]
    """
    params, data, batch_size = checked_arguments("mean_value_and_gradient", loss_fn, params, data, batch_size)
    return _mean_value_and_gradient(_callables.hashable(loss_fn), batch_size, params, data)


@partial(jax.jit, static_argnums=(0, 1))
def _mean_value_and_gradient(loss_fn, batch_size, params, data):
    def one(*batch):
        value, gradient = jax.value_and_grad(loss_fn)(params, *batch)
        _checks.check_loss_value("curvature", "loss_fn(params, *data)", value)
        return value, gradient

    return mean_over_batches(one, data, batch_size)


def mean_over_batches(fn: Callable[..., PyTree], data: tuple, batch_size: int | None) -> PyTree:
    """The mean over the examples of what `fn(*batch)` gives as the mean over its batch; the last one may be smaller."""
    fn = canonical_convolutions(fn)  # it stands in a loop here, or in one of those who call
    leaves = jax.tree.leaves(data)
    if batch_size is None or not leaves or batch_size >= leaves[0].shape[0]:
        return fn(*data)
    total = leaves[0].shape[0]
    whole = total // batch_size
    stacked = jax.tree.map(lambda x: x[: whole * batch_size].reshape(whole, batch_size, *x.shape[1:]), data)

    def body(carry, batch):
        return jax.tree.map(lambda c, x: c + x, carry, fn(*batch)), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda d: fn(*d), data))
    summed, _ = jax.lax.scan(body, zero, stacked)
    mean = _tree.scale(batch_size / total, summed)
    if total % batch_size:
        rest = fn(*jax.tree.map(lambda x: x[whole * batch_size :], data))
        mean = _tree.axpy(total % batch_size / total, rest, mean)
    return mean


def checked_arguments(
    function: str, fn: Any, params: Any, data: Any, batch_size: Any
) -> tuple[PyTree, tuple, int | None]:
    """The arguments as arrays."""
    _checks.check_callable(function, "loss_fn", fn, "loss_fn(params, *data) -> scalar")
    _checks.check_floating(function, "params", params)
    params, data = jax.tree.map(jnp.asarray, params), _checked_data(function, data)
    leaves = jax.tree.leaves(params)
    if not sum(leaf.size for leaf in leaves):
        raise ValueError(f"{function}: `params` must have at least one entry, got leaves of size zero")
    finite = _tree.all_finite(params)
    if not isinstance(finite, jax.core.Tracer) and not bool(finite):
        raise ValueError(f"{function}: `params` must be finite; the run diverged, or a step before this one overflowed")
    if batch_size is None:
        return params, data, None
    _checks.check_integer(function, "batch_size", batch_size)
    arrays = jax.tree.leaves(data)
    if not arrays:
        raise ValueError(
            f"{function}: `batch_size` needs `data`: a loss that holds its data cannot be cut into batches"
        )
    _checks.check_equal_lengths(function, arrays)
    return params, data, int(batch_size)


def _checked_data(function: str, data: Any) -> tuple:
    """The further arguments of a loss as arrays."""
    if not isinstance(data, tuple):
        raise TypeError(
            f"{function}: `data` must be a tuple of the loss's further arguments, got {type(data).__name__}"
        )
    return jax.tree.map(jnp.asarray, data)
