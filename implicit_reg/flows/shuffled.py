"""The modified equation of the mean of shuffled descent, as a field that can be integrated beside the runs."""

from __future__ import annotations

import dataclasses
import functools

import jax
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, Params, Scalar
from implicit_reg.flows.modified import check_field_arguments
from implicit_reg.flows.stochastic import shuffled_terms


@dataclasses.dataclass(frozen=True)
class ShuffledField:
    """`(F_1 + ... + F_order) / (m h)`; made by `shuffled_vector_field`."""

    loss_fn: Loss
    num_batches: int
    order: int

    def __call__(self, t: Scalar, params: Params, h: Scalar) -> PyTree:
        return _shuffled(self, check_field_arguments("shuffled_vector_field", params, h), h)


@functools.partial(jax.jit, static_argnums=0)
def _shuffled(field: ShuffledField, params: PyTree, h: Scalar) -> PyTree:
    # At step size 1 the terms are the coefficients of the powers of h; dividing by h would fail at 0.
    *lower, total = shuffled_terms(field.loss_fn, field.num_batches, params, 1.0, order=field.order)
    for term in reversed(lower):
        total = _tree.axpy(h, total, term)
    return jax.tree.map(lambda leaf: leaf / field.num_batches, total)


def shuffled_vector_field(loss_fn: Loss, num_batches: Integer, order: Integer = 2) -> ShuffledField:
    """What the mean over all orders of an epoch of gradient descent follows, in time `t = n h` of minibatch steps:

        x' = (F_1 + ... + F_order) / (m h),    F_k as in `shuffled_terms`;

    with two terms that is the gradient flow of `C + (h/4) <||g_k||^2>`. At t = m h, after one epoch, it is off the mean
    (`mean_epoch`) by order `h^(order+1)`.

    Args:
      loss_fn: `loss_fn(params, k) -> loss on the k-th minibatch`; `k` is traced.
      num_batches: m.
      order: how many terms, 1 to 3.

    Returns:
      `field(t, params, h)`, structured and typed as `params`; it ignores `t`, and `h` may be traced or 0. It is
      compiled at its first call and, like `jax.jit`, knows `loss_fn` by identity.

    Raises:
      TypeError, ValueError: an argument is not as above; when called, a leaf is not real floating.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda x, k: 0.5 * k * x**2                                    # <H_k g_k> = x/2
      >>> float(shuffled_vector_field(loss, 2)(0.0, jnp.array(1.0), 0.5))       # -x/2 - (h/2) x/2
      -0.625

    References:
      [smith2021]
    """
    _checks.check_callable("shuffled_vector_field", "loss_fn", loss_fn, "(params, k) -> loss on the k-th minibatch")
    _checks.check_integer("shuffled_vector_field", "num_batches", num_batches)
    _checks.check_integer("shuffled_vector_field", "order", order)
    if order > 3:
        raise ValueError(f"shuffled_vector_field: `order` must be at most 3, got {order}; higher terms are not known")
    return ShuffledField(_callables.hashable(loss_fn), int(num_batches), int(order))
