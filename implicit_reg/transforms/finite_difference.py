"""Gradient penalty by a finite difference: first derivatives only, and a bias of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from implicit_reg import _checks, _tree
from implicit_reg._types import Params, Scalar
from implicit_reg.transforms import _inputs

_NAME = "add_finite_difference_penalty"


def add_finite_difference_penalty(strength: Scalar, displacement: Scalar) -> optax.GradientTransformationExtraArgs:
    """Adds the forward-difference form of the gradient of `strength * ||grad L||^2`.

        u' = u + 2 strength (grad L(x + displacement g) - g) / displacement

    The bias: with `T` the third derivative this adds `2 strength H g + strength displacement T(g, g)` and smaller
    terms, so that it tends to `add_gradient_penalty` as the displacement goes to 0, until round-off (about
    `eps ||g|| / displacement`) takes over. A large displacement is a method of its own, which looks ahead along the
    gradient, and can generalize better than the exact penalty. On networks with kinks (ReLU) the difference is 30 to
    300 % off the exact penalty at any sensible displacement, since it sees the kinks between the two points.

    Two points of that family: displacement `alpha h` with strength `alpha (1 + alpha) h/2` and `optax.sgd(h)` is
    backstitch; `displacement = 2 strength` is unnormalized SAM with that radius.

    Args:
      strength: any real scalar; negative is an anti-penalty; a concrete 0 is off, at no cost.
      displacement: how far along the gradient the second point lies, in units of the gradient; greater than 0. Where
        it is proportional to the step size, 0/0 makes derivatives at step size 0 undefined (`modified_vector_field`):
        keep it fixed there.

    Returns:
      A transformation whose `update` needs `params` and `value_fn`, the loss as a function of the parameters alone
      (same minibatch, same dropout masks). `g` is `grad` where it is given, else the incoming updates; pass `grad`
      where something before it in the chain has changed them. Cost: two gradients for the whole step. Leaves keep
      their dtypes.

    Raises:
      TypeError, ValueError: where a number is not finite and real, or the displacement is not positive; in `init`, for
        an integer leaf; in `update`, for a missing `params` or `value_fn`, and trees that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from implicit_reg.transforms import add_finite_difference_penalty
      >>> loss = lambda x: jnp.sum(x**3) / 3                   # g = x^2, H g = 2 x^3, T(g, g) = 2 x^4
      >>> x = jnp.array([1.0, 2.0])
      >>> tx = add_finite_difference_penalty(0.5, 0.25)
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
      >>> updates                                              # x^2 + 2 x^3 + 0.25 x^4
      Array([ 3.25, 24.  ], dtype=float32)

    References:
      [karakida2023], [geiping2022]
    """
    cure = "for a schedule, use optax.inject_hyperparams"
    _checks.check_number(_NAME, "strength", strength, why=cure if callable(strength) else "")
    why = "a displacement of 0 is the exact penalty, add_gradient_penalty"
    _checks.check_number(
        _NAME, "displacement", displacement, low=0.0, exclusive=True, why=cure if callable(displacement) else why
    )
    strength, displacement = _inputs.number(strength), _inputs.number(displacement)

    def init(params: Params) -> optax.EmptyState:
        _inputs.check_params(_NAME, params)
        return optax.EmptyState()

    def update(updates, state, params=None, *, value_fn=None, grad=None, **extra):
        del extra
        _inputs.check_update(_NAME, updates, state, optax.EmptyState, params)
        if not jax.tree.leaves(updates):
            return updates, state
        _inputs.check_value_fn(_NAME, params, value_fn)
        gradient = _inputs.direction(_NAME, updates, grad)
        if _inputs.is_zero(strength):
            return updates, state
        _, moved = _inputs.value_and_gradient(_NAME, value_fn, _tree.axpy(displacement, gradient, params))
        difference = _tree.axpy(-1, gradient, moved)
        return _tree.axpy(_ratio(2 * strength, displacement), difference, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _ratio(a: Scalar, b: Scalar) -> Scalar:
    """`a / b` for Python and JAX scalars of any dtypes, in float32 or wider."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    dtype = _tree.wide(a.dtype, b.dtype)
    return a.astype(dtype) / b.astype(dtype)
