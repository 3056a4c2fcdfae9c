"""Directional and step-size derivatives: the calculus behind every penalty and every modified equation.

Everything is forward mode over whatever the caller brings (forward over reverse for a gradient), because nested
reverse mode costs up to six gradients where these cost less than three.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicit_reg import _products, _tree
from implicit_reg._types import Params


def hessian_vector_product(fn: Callable[[Params], jax.Array], params: Params, vector: PyTree) -> tuple[PyTree, PyTree]:
    """`(grad f, H v)` at `params`, sharing the primal gradient.

    Args:
      fn: a twice differentiable scalar function of the parameters.
      params: any pytree of floating leaves.
      vector: the tangent `v`, structured as `params`; its leaves are cast to the dtypes of the parameters.

    Returns:
      The gradient and the Hessian-vector product, both structured as `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])
      >>> gradient, product = hessian_vector_product(lambda x: jnp.sum(x**3), x, v)
      >>> product                                          # 6 x v
      Array([ 6., 12.], dtype=float32)
    """
    gradient, pushforward = jax.linearize(jax.grad(fn), params)
    vector = jax.tree.map(lambda v, p: jnp.asarray(v).astype(jnp.asarray(p).dtype), vector, params)
    # As JAX writes it, the part of a weight matrix is the transpose of a sum of two products: 0.15 gradients more.
    return gradient, _products.gathered(pushforward, vector)


def step_coefficients(step: Callable[[jax.Array, Params], PyTree], params: Params, order: int) -> tuple[PyTree, ...]:
    """Taylor coefficients `d_1, ..., d_order` of `h -> step(h, params)` at `h = 0`.

    Args:
      step: a map smooth in `h` around 0.
      params: where.
      order: how many coefficients, at least 1.

    Returns:
      `(1/n!) d^n step/dh^n` for n = 1..order, each structured as the result of `step`.

    Example:
      >>> import jax.numpy as jnp
      >>> step_coefficients(lambda h, x: x * jnp.exp(2 * h), jnp.array(1.0), 3)[2]   # 2^3/3!
      Array(1.3333334, dtype=float32)
    """
    zero = jnp.zeros((), _tree.widest_dtype(params))
    one = jnp.ones_like(zero)

    def derivatives(n: int) -> Callable[[jax.Array], tuple[PyTree, ...]]:
        """h -> (the n-th derivative, the one below, ..., the map itself); one nested jvp gives them all."""
        if n == 0:
            return lambda h: (step(h, params),)
        lower = derivatives(n - 1)

        def fn(h):
            values, tangents = jax.jvp(lower, (h,), (one,))
            return (tangents[0], *values)

        return fn

    *found, _ = derivatives(order)(zero)
    return tuple(
        jax.tree.map(lambda d: d / math.factorial(n), derivative)
        for n, derivative in enumerate(reversed(found), start=1)
    )
