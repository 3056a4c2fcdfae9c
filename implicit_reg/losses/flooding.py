"""Flooding as a loss: `|l - b| + b`, of the batch's mean or of every example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Loss, Scalar


def flood_sign(value: Float[Array, "*n"], level: Float[Array, "*m"]) -> Float[Array, "*n"]:
    """The sign of `value - level`: 0 where they are equal, NaN where one is NaN; in float32 or `value`'s wider dtype.

    Loss wrapper and transformation must agree on it, also at the tie, so this is the one place where it is decided.
    The difference itself is not formed: a compiler may fuse it with the product that made `value` and then finds a
    sign where the rounded numbers are equal, and it flushes a subnormal difference to zero.
    """
    dtype = _tree.wide(value.dtype)
    value, level = value.astype(dtype), jnp.asarray(level).astype(dtype)
    ordered = jnp.where(value > level, 1.0, jnp.where(value < level, -1.0, 0.0))
    return jnp.where(jnp.isnan(value) | jnp.isnan(level), jnp.nan, ordered).astype(dtype)


@jax.custom_jvp
def _flood(value, level):
    wide = value.astype(level.dtype)
    # |l - b| + b rounds twice and differs from l above the level (7.7 % of the values at b = 0.27 in float32).
    return jnp.where(wide > level, wide, 2 * level - wide).astype(value.dtype)


@_flood.defjvp
def _flood_jvp(primals, tangents):
    value, level = primals
    value_dot, level_dot = tangents
    sign = flood_sign(value, level)
    tangent = sign * value_dot.astype(sign.dtype) + (1 - sign) * level_dot
    return _flood(value, level), tangent.astype(value.dtype)


class FloodLog(NamedTuple):
    """What to log beside a flooded loss.

    Attributes:
      raw: the loss that says how well the model does: a scalar, the mean where `per_example`.
      flooded: the loss that was differentiated.
      below: `l < b`, where the step ascends: a boolean or, where `per_example`, one for each example. The mean is
        the flooded fraction: about one half when the level is active, zero when it is too low to matter.
      aux: the auxiliary output of the loss, None where it has none.
    """

    raw: Float[Array, ""]
    flooded: Float[Array, ""]
    below: Bool[Array, "*n"]
    aux: PyTree


def check_flooded_loss(function: str, value: Any, level: Any, *, per_example: bool) -> tuple[Array, Array | None]:
    """The losses as an array, and the level in the dtype of the comparison."""
    if per_example:
        cure = "; reshape it with .reshape(-1), and return no mean"
    else:
        cure = "; a vector of losses needs per_example=True, an auxiliary output needs has_aux=True"
    _checks.check_loss_output(function, value, ndim=int(per_example), cure=cure)
    value = jnp.asarray(value)
    if level is None:
        return value, None
    level = jnp.asarray(level, _tree.wide(value.dtype))
    if level.shape not in ((), value.shape):
        raise ValueError(
            f"{function}: `level` has shape {level.shape} but loss_fn returned {value.shape}; it must be a scalar or "
            f"one level for each example"
        )
    return value, level


def _logged(function: str, loss_fn: Loss, level: Any, per_example: bool, has_aux: bool) -> Callable:
    _checks.check_callable(function, "loss_fn", loss_fn, "loss_fn(params, *batch, **kwargs)")
    _checks.check_flag(function, "per_example", per_example)
    _checks.check_flag(function, "has_aux", has_aux)
    if level is not None:
        _checks.check_level(function, level, vector=per_example, schedules="flooding")

    def loss(params, *batch, **kwargs):
        value, aux = loss_fn(params, *batch, **kwargs), None
        if has_aux:
            _checks.check_pair(function, value)
            value, aux = value
        value, b = check_flooded_loss(function, value, level, per_example=per_example)
        if b is None:
            flooded, below = value, jnp.zeros(value.shape, bool)
        else:
            flooded, below = _flood(value, jnp.broadcast_to(b, value.shape)), flood_sign(value, b) < 0
        if per_example:
            value, flooded = jnp.mean(value), jnp.mean(flooded)
        return flooded, FloodLog(value, flooded, below, aux)

    return loss


def flooded(
    loss_fn: Loss, level: Scalar | Float[Array, " n"] | None, *, per_example: bool = False, has_aux: bool = False
) -> Callable:
    """Keeps a loss from sinking below a level: gradient descent above it, gradient ascent below it.

        |L - b| + b,    or with `per_example`    mean_i (|l_i - b_i| + b_i).

    Above the level the value is exactly `L`. The gradient is `sign(L - b) grad L`: zero at `L == b`, NaN where `L` is
    NaN. The transformation `flooding` makes the same updates of the same batch. Loss and level are compared in float32
    or, where it is wider, in the loss's dtype. The derivative with respect to a level that is itself differentiated is
    `1 - sign(L - b)`. Weight decay inside `loss_fn` is flooded, too: leave it to the optimizer. What counts is
    the mean over all that `loss_fn` sees: with gradients averaged over devices or microbatches, each floods by itself.
    At test time use `loss_fn`.

    Args:
      loss_fn: `loss_fn(params, *batch, **kwargs)`, a real floating scalar; the vector of the examples' losses where
        `per_example`.
      level: the flood level `b`, a real number, of any sign; None is off. A vector of levels, one for each example,
        where `per_example` (see `adaptive_level`). A schedule needs the transformation `flooding`.
      per_example: flood each example's loss, and take the mean after.
      has_aux: whether `loss_fn` returns `(loss, aux)`; so does the result, then.

    Returns:
      A loss with the arguments of `loss_fn`. Cost: one gradient.

    Raises:
      TypeError: if `level` is not a number (a bool, a string, a schedule), or if `loss_fn` returns something else
        than a real floating scalar or vector.
      ValueError: if `level` is not finite, or of a wrong shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda x: jnp.sum(x**2)                              # grad = 2 x
      >>> x = jnp.array([0.5, 0.0])                                   # loss 0.25
      >>> value, grad = jax.value_and_grad(flooded(loss, 0.3))(x)     # below the level: ascend
      >>> print(round(float(value), 4), grad)
      0.35 [-1. -0.]

    References:
      [ishida2020]; the individual form: [xie2022].
    """
    loss = _logged("flooded", loss_fn, level, per_example, has_aux)
    if level is None and not per_example:
        return loss_fn

    def flooded_loss(params, *batch, **kwargs):
        value, log = loss(params, *batch, **kwargs)
        return (value, log.aux) if has_aux else value

    return flooded_loss


def flooded_with_log(
    loss_fn: Loss, level: Scalar | Float[Array, " n"] | None, *, per_example: bool = False, has_aux: bool = False
) -> Callable:
    """The flooded loss together with the raw one, for logging: differentiate the first, look at the second.

        (|L - b| + b,  FloodLog(raw=L, flooded=|L - b| + b, below=L < b, aux))

    A flooded loss looks stuck, by intention, and its value says nothing of the model: log `raw`.

    Args:
      loss_fn: as in `flooded`.
      level: as in `flooded`.
      per_example: as in `flooded`.
      has_aux: whether `loss_fn` returns `(loss, aux)`; `aux` is then a field of the log.

    Returns:
      A loss with an auxiliary output, a `FloodLog`: for `jax.value_and_grad(..., has_aux=True)`.

    Raises:
      TypeError: as `flooded`.
      ValueError: as `flooded`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> losses = lambda x, y: (x - y)**2
      >>> loss = flooded_with_log(losses, 0.5, per_example=True)
      >>> (_, log), grad = jax.value_and_grad(loss, has_aux=True)(jnp.array(0.0), jnp.array([0.5, 2.0]))
      >>> print(log.raw, log.flooded, log.below, jnp.mean(log.below))
      2.125 2.375 [ True False] 0.5

    References:
      [ishida2020]
    """
    return _logged("flooded_with_log", loss_fn, level, per_example, has_aux)
