"""Backstitch: a step back along the base optimizer's update, then a longer one forward, on the same minibatch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from implicit_reg import _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Integer, Params, Scalar
from implicit_reg.transforms import _inputs


class BackstitchState(NamedTuple):
    """The number of updates so far, and the state that the second half-step left in the base optimizer."""

    steps: Int32[Array, ...]
    optimizer_state: optax.OptState


def backstitch(
    optimizer: _inputs.Optimizer, alpha: Scalar = 0.3, *, interval: Integer = 1, offset: Integer = 0
) -> optax.GradientTransformationExtraArgs:
    """Steps back by `alpha`, then forward by `1 + alpha`, in units of the base optimizer's step.

    With `u(x)` the update that `optimizer` makes of the gradient at `x` (for `optax.sgd(h)`: `-h grad L(x)`),

        x1 = x - alpha u(x),        x' = x1 + (1 + alpha) u(x1).

    For gradient descent of step h this is one step on `L + (alpha (1 + alpha) h/2) ||grad L||^2` to second order, and
    follows the *flow* of `L + (h/4)(1 + 2 alpha + 2 alpha^2) ||grad L||^2`.

    The rules, Kaldi's where it has one. Both half-steps see the same minibatch and the same dropout masks. The state
    after the first is discarded (Kaldi freezes its preconditioner there), so that momentum enters once and any base
    optimizer is allowed (Kaldi forbids momentum). Every `interval`-th update, those whose count from 0 is `offset`
    modulo `interval`, is a backstitch; the others are plain steps; `alpha` is not multiplied by the interval. Unlike
    in Kaldi, where it acts in the second half-step only, weight decay inside the base acts in both, at each
    half-step's own
    parameters: `-alpha + (1 + alpha)`, once in the net to first order. A clip, too, belongs inside the base
    (`backstitch(chain(clip, sgd))`): one before backstitch does not reach the second gradient. To accumulate gradients,
    hand it the gradient and the loss of the whole batch at once: `optax.MultiSteps` around it would evaluate the second
    gradient at every minibatch, and use that of the last one alone.

    Args:
      optimizer: the base optimizer, with its learning rate in it.
      alpha: the length of the step back, at least 0; a concrete 0 is the base optimizer itself.
      interval: every how many updates to backstitch, at least 1; then the mean cost is 1 + 1/interval gradients.
      offset: which updates of the interval, at least 0; Kaldi draws it at random for each job.

    Returns:
      A transformation whose `update` needs `params` and `value_fn`, the loss as a function of the parameters alone
      (same minibatch, same dropout masks; `nnx_value_fn` makes it for flax). The base gets the same extra arguments,
      and `value` and `grad` of the moved parameters in the second half-step. Its updates are the whole way `x' - x`.
      Leaves keep their dtypes. Where `interval` is not 1 the second gradient is inside `lax.cond`; under `vmap` both
      branches run. A loop of your own around it, if a network has convolutions: `implicit_reg.canonical_convolutions`.

    Raises:
      TypeError, ValueError: where a number is out of range or the base is not a transformation; in `init`, for an
        integer leaf; in `update`, for a missing `params` or `value_fn`, and trees that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from implicit_reg.transforms import backstitch
      >>> loss = lambda x: 0.5 * jnp.sum(x**2)
      >>> x = jnp.array([1.0, 2.0])
      >>> tx = backstitch(optax.sgd(0.5), alpha=1.0)
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
      >>> x + updates                                          # to 1.5 x, then by -2 * 0.5 * 1.5 x
      Array([0., 0.], dtype=float32)

    References:
      [wang2017]
    """
    _checks.check_transformation("backstitch", "optimizer", optimizer)
    why = "for a schedule, use optax.inject_hyperparams" if callable(alpha) else "a negative one swaps the two steps"
    _checks.check_number("backstitch", "alpha", alpha, low=0.0, why=why)
    _checks.check_traceable_integer("backstitch", "interval", interval, low=1)
    _checks.check_traceable_integer("backstitch", "offset", offset, low=0)
    alpha = _inputs.number(alpha)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> BackstitchState:
        _inputs.check_params("backstitch", params)
        return BackstitchState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates, state, params=None, *, value_fn=None, **extra):
        _inputs.check_update("backstitch", updates, state, BackstitchState, params)
        empty = not jax.tree.leaves(updates)
        if not empty:
            _inputs.check_value_fn("backstitch", params, value_fn)
        back, plain_state = optimizer.update(updates, state.optimizer_state, params, value_fn=value_fn, **extra)

        def stitched():
            moved = optax.apply_updates(params, _tree.scale(-alpha, back))
            value, gradient = _inputs.value_and_gradient("backstitch", value_fn, moved)
            gradient = _tree.like(gradient, updates)
            again = dict(extra, value=value, grad=gradient, value_fn=value_fn)
            # Two ways to treat the state: (1) keep what the first half-step made of it; (2) discard that. (1) lets
            # momentum see each minibatch twice, with opposite signs. We do (2).
            forth, kept = optimizer.update(gradient, state.optimizer_state, moved, **again)
            return _tree.axpy(-alpha, back, _tree.scale(1 + alpha, forth)), kept

        if empty or _inputs.is_zero(alpha):
            total, kept = back, plain_state
        elif _checks.is_concrete(interval) and interval == 1:
            total, kept = stitched()
        else:
            turn = state.steps % interval == offset % interval
            total, kept = jax.lax.cond(turn, canonical_convolutions(stitched), lambda: (back, plain_state))
        return total, BackstitchState(optax.safe_increment(state.steps), kept)

    return optax.GradientTransformationExtraArgs(init, update)
