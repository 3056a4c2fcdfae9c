"""Alternating descent and ascent: a learning-rate schedule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from implicit_reg import _checks, _tree
from implicit_reg._types import Scalar
from implicit_reg.transforms import _inputs


def alternating(descent: Scalar | optax.Schedule, ascent: Scalar | optax.Schedule) -> optax.Schedule:
    """A learning rate of `+descent` at even counts and `-ascent` at odd ones.

    With `optax.sgd(alternating(e1, e2))` on one loss `L`, a pair of steps is one step of size `e1 - e2` on

        L + e1 e2 / (2 (e1 - e2)) ||grad L||^2

    to second order, and follows the *flow* of `L + (e1^2 + e2^2) / (4 (e1 - e2)) ||grad L||^2` for the time `e1 -
    e2`; the two coefficients belong to these two readings and are not interchangeable. Equal rates are what flooding
    does once it is at its level; `e1 = -alpha h, e2 = -(1 + alpha) h` is backstitch. The parity is that of the
    optimizer's step count, so there is no state to restore. With AdamW the sign of the weight decay alternates too.

    Args:
      descent: the rate at even counts: any real scalar, or a schedule of the same count.
      ascent: the rate at odd counts, with a plus sign for ascent; likewise.

    Returns:
      A schedule `count -> rate` for the `learning_rate` of any Optax optimizer.

    Raises:
      TypeError, ValueError: where a rate is not a finite real scalar and not a schedule.

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.transforms import alternating
      >>> schedule = alternating(0.2, 0.1)
      >>> [round(float(schedule(count)), 3) for count in range(3)]
      [0.2, -0.1, 0.2]

    References:
      [ishida2020], [wang2017]
    """
    for argument, rate in (("descent", descent), ("ascent", ascent)):
        if not callable(rate):
            _checks.check_number("alternating", argument, rate)

    def schedule(count):
        down, up = (_inputs.number(rate(count) if callable(rate) else rate) for rate in (descent, ascent))
        if isinstance(down, jax.Array) and isinstance(up, jax.Array):
            dtype = _tree.wide(down.dtype, up.dtype)
            down, up = down.astype(dtype), up.astype(dtype)
        return jnp.where(jnp.asarray(count) % 2 == 0, down, -up)

    return schedule
