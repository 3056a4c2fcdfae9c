"""A value-and-gradient function for methods that are the gradient of no loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import optax

from implicit_reg import _checks
from implicit_reg._types import Loss

if TYPE_CHECKING:
    Transformation: TypeAlias = optax.GradientTransformation
else:
    Transformation: TypeAlias = object


def value_and_direction(transformation: Transformation, loss_fn: Loss, *, has_aux: bool = False) -> Callable:
    """What `jax.value_and_grad` would return if a method were the gradient of a loss.

        d = transformation.update(grad L(x), transformation.init(x), x, value=L(x), grad=grad L(x), value_fn=L)

    For loops that hand nothing but gradients to the optimizer, such as flax's `TrainState.apply_gradients`: SAM, the
    finite-difference penalty, and backstitch, none of which is the gradient of a loss. Inside an optimizer chain the
    transformation itself does the same, and more: its state lasts from step to step, here it is new at each call. Of a
    wrapper around an optimizer take the direction by dividing by the step:
    `optax.chain(backstitch(optax.sgd(h), alpha), optax.scale(-1 / h))`.

    Args:
      transformation: turns the gradient into the direction. Without a memory: counters may be in its state (they read
        0, so that no schedule, and no `interval` of backstitch, proceeds), floating arrays and random keys may not.
      loss_fn: `loss_fn(params, *batch, **kwargs)`, a real floating scalar.
      has_aux: whether `loss_fn` returns `(loss, aux)`.

    Returns:
      A function with the arguments of `loss_fn` that returns `(loss, d)`, or `((loss, aux), d)`. `d` is structured as
      the parameters, and in Optax's convention: for complex parameters it is not JAX's gradient but its conjugate.

    Raises:
      TypeError: if `transformation` is none, or `loss_fn` is not callable.
      ValueError: when called, if the transformation has a memory, naming it.

    Example:
      >>> import implicit_reg as ir, jax, jax.numpy as jnp, optax
      >>> loss = lambda x: jnp.sum(x**2)                                   # grad = 2 x
      >>> oracle = value_and_direction(ir.sam(0.5, normalize=False), loss)
      >>> print(oracle(jnp.array([1.0, 2.0]))[1])                          # grad at x + 0.5 * 2 x
      [4. 8.]

    References:
      [foret2021], [wang2017]
    """
    function = "value_and_direction"
    _checks.check_transformation(function, "transformation", transformation)
    _checks.check_callable(function, "loss_fn", loss_fn, "loss_fn(params, *batch, **kwargs)")
    _checks.check_flag(function, "has_aux", has_aux)
    transformation = optax.with_extra_args_support(transformation)

    def oracle(params: Any, *batch: Any, **kwargs: Any) -> tuple[Any, Any]:
        def value_fn(p):
            value = loss_fn(p, *batch, **kwargs)
            return value[0] if has_aux else value

        result, gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *batch, **kwargs)
        state = transformation.init(params)
        _checks.check_no_memory(function, "transformation", state)
        gradient = optax.tree.conj(gradient)
        value = result[0] if has_aux else result
        direction, _ = transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=value_fn)
        return result, direction

    return oracle
