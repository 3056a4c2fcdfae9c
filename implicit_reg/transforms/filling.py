"""Fill the holes of masked parameters, so that a loss can be evaluated on them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array

from implicit_reg import _checks
from implicit_reg._types import Loss, Params


def is_hole(node: Any) -> bool:
    """Whether the node stands for parameters that `optax.masked` left out."""
    return isinstance(node, optax.MaskedNode)


@dataclasses.dataclass(frozen=True, eq=False)
class FilledValueFn:
    """A loss that takes masked parameters; made by `fill_masked`, and known to the transformations by its type."""

    value_fn: Loss
    params: Params

    def __call__(self, params: Params, *args: Any, **kwargs: Any) -> Array:
        filled = jax.tree.map(lambda p, whole: whole if is_hole(p) else p, params, self.params, is_leaf=is_hole)
        return self.value_fn(filled, *args, **kwargs)


def fill_masked(value_fn: Loss, params: Params) -> FilledValueFn:
    """The loss as a function of the parameters that `optax.masked` or `optax.partition` left in.

    Those containers replace what a transformation shall not see by `optax.MaskedNode`, on which no loss can be
    evaluated. The result takes such a tree, puts `params` into its holes, and calls `value_fn`; a tree without holes
    goes through as it is, so that the same `value_fn` serves a whole chain.

    What a transformation computes is then block-wise: `optax.partition({"a": T, "b": T}, labels)` with a gradient
    penalty penalizes each block with the other one fixed, and leaves out the mixed second derivatives. To penalize
    the gradient of some parameters only, and to move all of them, use `add_gradient_penalty(..., mask=...)`.

    Args:
      value_fn: the loss as a function of all the parameters.
      params: all the parameters, at the point where `update` is called.

    Returns:
      A callable to pass as `value_fn` to `update`.

    Raises:
      TypeError: where `value_fn` is not callable.
      ValueError: where `params` have holes themselves.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from implicit_reg.transforms import add_gradient_penalty, fill_masked
      >>> loss = lambda p: 0.5 * jnp.sum((p["a"] * p["b"]) ** 2)
      >>> params = {"a": jnp.array([2.0]), "b": jnp.array([3.0])}
      >>> tx = optax.masked(add_gradient_penalty(0.5), {"a": True, "b": False})
      >>> updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params, value_fn=fill_masked(loss, params))
      >>> updates                                    # a b^2 + a b^4 for a, the plain gradient a^2 b for b
      {'a': Array([180.], dtype=float32), 'b': Array([12.], dtype=float32)}
    """
    _checks.check_callable("fill_masked", "value_fn", value_fn, "params -> scalar loss")
    if any(map(is_hole, jax.tree.leaves(params, is_leaf=is_hole))):
        raise ValueError(
            "fill_masked: `params` must be all the parameters, got a tree with optax.MaskedNode in it. Call "
            "fill_masked where the parameters are whole: outside of optax.masked and optax.partition."
        )
    return FilledValueFn(value_fn, params)
