"""A loss of the parameters alone from a `flax.nnx` model with batch statistics and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from implicit_reg import _checks
from implicit_reg._types import Loss
from implicit_reg.transforms import _inputs


class NnxValueFn(NamedTuple):
    """What `nnx_value_fn` returns.

    Attributes:
      params: the parameters, an `nnx.State`: where to differentiate.
      value_fn: `params -> loss`, pure: every call sees the same dropout masks and statistics, and changes nothing.
      value_and_rest: `params -> (loss, rest)`, with the rest of the model (batch statistics, dropout counters, ...)
        as one forward pass leaves it; `nnx.update(model, rest)` moves the model on by that pass. With `has_aux`,
        `(loss, (rest, aux))`.
    """

    params: Any
    value_fn: Callable[[Any], jax.Array]
    value_and_rest: Callable[[Any], tuple[jax.Array, Any]]


def nnx_value_fn(model: Any, loss_fn: Loss, *batch: Any, wrt: Any = None, has_aux: _inputs.Flag = False) -> NnxValueFn:
    """Splits a `flax.nnx` model so that its loss can be evaluated more than once per step.

    Backstitch, SAM and the penalties evaluate the loss again within one step. On the model itself the second forward
    pass would draw other dropout masks and update the batch statistics twice. Here the model is split before any of
    it: everything but the parameters is frozen as arrays, each evaluation runs on a fresh copy, and the statistics
    and dropout counters move once per step, when the caller merges back what the first pass left:

        split = nnx_value_fn(model, loss_fn, x, y)
        (value, rest), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(split.params)
        optimizer.update(model, grads, value=value, value_fn=split.value_fn)     # an nnx.Optimizer
        nnx.update(model, rest)

    Works inside `nnx.jit`. Statistics of a batch normalization in training mode still enter the loss as functions of
    the parameters, and are differentiated as such.

    Args:
      model: a `flax.nnx` module, in training mode where it has one.
      loss_fn: `loss_fn(model, *batch) -> scalar`, or `(scalar, aux)` with `has_aux`.
      *batch: handed to `loss_fn`.
      wrt: the filter of the parameters, the same as the `nnx.Optimizer` has; default `nnx.Param`.
      has_aux: whether `loss_fn` returns something beside the loss.

    Returns:
      `params`, `value_fn` and `value_and_rest`; see `NnxValueFn`.

    Raises:
      TypeError: where `loss_fn` is not callable, or `model` not a `flax.nnx` module.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> from implicit_reg.transforms import backstitch, nnx_value_fn
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
      >>> optimizer = nnx.Optimizer(model, backstitch(optax.sgd(0.1)), wrt=nnx.Param)
      >>> loss_fn = lambda model, x: jnp.mean(model(x) ** 2)
      >>> split = nnx_value_fn(model, loss_fn, jnp.ones((4, 2)))
      >>> (value, rest), grads = jax.value_and_grad(split.value_and_rest, has_aux=True)(split.params)
      >>> bool(split.value_fn(split.params) == value)                    # the same masks again
      True
      >>> _ = optimizer.update(model, grads, value=value, value_fn=split.value_fn)
      >>> nnx.update(model, rest)                                        # the next step draws others
    """
    from flax import nnx

    _checks.check_callable("nnx_value_fn", "loss_fn", loss_fn, "(model, *batch) -> scalar loss")
    _checks.check_flag("nnx_value_fn", "has_aux", has_aux)
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"nnx_value_fn: `model` must be a flax.nnx module, got {model!r} of type {type(model).__name__}"
        )
    wrt = nnx.Param if wrt is None else wrt
    graphdef, params, rest = nnx.split(model, wrt, ...)
    frozen = nnx.as_pure(rest)

    def value_and_rest(params):
        copy = nnx.merge(graphdef, params, frozen)
        result = loss_fn(copy, *batch)
        left = nnx.as_pure(nnx.split(copy, wrt, ...)[2])
        return (result[0], (left, result[1])) if has_aux else (result, left)

    return NnxValueFn(params, lambda params: value_and_rest(params)[0], value_and_rest)
