"""Sharpness-aware minimization: step with the gradient found uphill."""

from __future__ import annotations

import jax
import optax

from implicit_reg import _checks, _tree
from implicit_reg._types import Params, Scalar
from implicit_reg.transforms import _inputs


def sam(radius: Scalar, *, normalize: _inputs.Flag = True) -> optax.GradientTransformationExtraArgs:
    """Replaces the updates by the gradient at a point uphill.

        u' = grad L(x + radius d / ||d||),        or, where not `normalize`,        u' = grad L(x + radius d),

    with `d` the gradient. Two limits are in use, and they differ. With the radius proportional to the step size h of
    `optax.sgd(h)` the iterates follow, to second order, the flow of `L + radius ||grad L|| + (h/4) ||grad L||^2`
    (unnormalized: `L + (radius/2 + h/4) ||grad L||^2`). With a fixed radius the limit as h goes to 0 is the flow of
    the uphill gradient itself, which is not the gradient of a loss. At a zero gradient the direction is zero, and the
    update the plain gradient.

    Args:
      radius: how far uphill, at least 0; in the units of the parameters where `normalize`, else in units of step size.
      normalize: whether `d` is divided by its Euclidean norm over all leaves.

    Returns:
      A transformation whose `update` needs `params` and `value_fn`, the loss as a function of the parameters alone
      (same minibatch, same dropout masks; `nnx_value_fn` makes it for flax). `d` is `grad` where it is given, else the
      incoming updates. It *replaces* the updates: what shall act on them (a clip) stands after it. Cost: two
      gradients. Leaves keep their dtypes; the norm is accumulated in float32 or wider.

    Raises:
      TypeError, ValueError: where the radius is not a finite real scalar or negative; in `init`, for an integer leaf;
        in `update`, for a missing `params` or `value_fn`, and trees that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from implicit_reg.transforms import sam
      >>> loss = lambda x: 0.5 * jnp.sum(x**2)
      >>> x = jnp.array([3.0, 4.0])
      >>> tx = optax.chain(sam(0.5), optax.sgd(1.0))
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
      >>> updates                                              # -(x + 0.5 x/||x||)
      Array([-3.3, -4.4], dtype=float32)

    References:
      [foret2021], [zhao2022]
    """
    why = "for a schedule, use optax.inject_hyperparams" if callable(radius) else ""
    _checks.check_number("sam", "radius", radius, low=0.0, why=why)
    _checks.check_flag("sam", "normalize", normalize)
    radius = _inputs.number(radius)

    def init(params: Params) -> optax.EmptyState:
        _inputs.check_params("sam", params)
        return optax.EmptyState()

    def update(updates, state, params=None, *, value_fn=None, grad=None, **extra):
        del extra
        _inputs.check_update("sam", updates, state, optax.EmptyState, params)
        if not jax.tree.leaves(updates):
            return updates, state
        _inputs.check_value_fn("sam", params, value_fn)
        uphill = _inputs.direction("sam", updates, grad)
        if normalize:
            uphill = _inputs.unit(uphill)
        _, gradient = _inputs.value_and_gradient("sam", value_fn, _tree.axpy(radius, uphill, params))
        return _tree.like(gradient, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
