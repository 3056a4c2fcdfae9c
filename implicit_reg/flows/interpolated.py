"""Modified equations from updates alone: no derivative of the method is taken."""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, OneStepMap, Params, Scalar
from implicit_reg.flows.modified import check_field_arguments, modified_coefficients


def interpolation_weights(order: int) -> tuple[Fraction, ...]:
    """`w_j = (-1)^j sum_{k=j+1..order} binom(k-1, j)/k`: the logarithm of the shift by forward differences.

    Example:
      >>> interpolation_weights(3)
      (Fraction(11, 6), Fraction(-7, 6), Fraction(1, 3))

    References:
      [hairer2006], ch. IX.
    """
    return tuple(
        (-1) ** j * sum(Fraction(math.comb(k - 1, j), k) for k in range(j + 1, order + 1)) for j in range(order)
    )


@dataclasses.dataclass(frozen=True)
class InterpolatedVectorField:
    """`sum_j w_j u_j` over consecutive updates; made by `interpolated_vector_field`."""

    update_map: OneStepMap
    order: int

    def __call__(self, t: Scalar, params: Params, h: Scalar) -> PyTree:
        params = check_field_arguments("interpolated_vector_field", params, h)
        if not isinstance(h, jax.core.Tracer) and h == 0:
            return modified_coefficients(self.update_map, 1)(params)[0]
        return _interpolated(self, params, h)


@functools.partial(jax.jit, static_argnums=0)
def _interpolated(field: InterpolatedVectorField, params: PyTree, h: Scalar) -> PyTree:
    phi, check = field.update_map, functools.partial(_checks.check_same_tree, "interpolated_vector_field")
    h = jnp.asarray(h).astype(_tree.widest_dtype(params))
    # Over h before they multiply anything: no pass over the parameters is spent on the division.
    weights = jnp.array([float(w) for w in interpolation_weights(field.order)], h.dtype) / h

    def step(x):
        """The next iterate and its difference from this one."""
        # Two ways to the difference: (1) subtract the iterates, (2) take the update before it is added. (1) loses
        # eps |x| / h as h goes to 0. We do (2) wherever the map offers it.
        if hasattr(phi, "update"):
            difference = phi.update(h, x)
            check("update_map.update(h, params)", difference, "params", x)
            return optax.apply_updates(x, difference), difference
        after = phi(h, x)
        check("update_map(h, params)", after, "params", x)
        after = _tree.like(after, x)
        return after, jax.tree.map(jnp.subtract, after, x)

    def accumulate(carry, weight):
        x, total = carry
        after, difference = step(x)
        return (after, _tree.axpy(weight, difference, total)), None

    # The first step apart: a loop from zero would copy the parameters, clear the sum and read it once more.
    after, difference = step(params)
    total = _tree.scale(weights[0], _tree.like(difference, params))
    if field.order > 1:
        (_, total), _ = jax.lax.scan(accumulate, (after, total), weights[1:])
    return total


def interpolated_vector_field(update_map: OneStepMap, order: Integer) -> InterpolatedVectorField:
    """The modified equation of a one-step map up to `O(h^order)`, from `order` updates alone:

        f(x) = sum_{j=0..order-1} w_j (Phi_h(x_j) - x_j) / h,   x_0 = x,   x_{j+1} = Phi_h(x_j).

    It costs `order` updates and compiles in a time that does not depend on `order`; nothing is differentiated, so it
    serves any deterministic map. Choose it from `order=4` on, and on real networks; its error constant is larger than
    that of `modified_vector_field`.

    Args:
      update_map: `(h, params) -> params`. Where it offers `update(h, params)`, the raw updates, those are used; a plain
        function falls back to differences of parameters, which lose `eps |x| / h` to cancellation.
      order: how many updates, at least 1.

    Returns:
      `field(t, params, h)`, structured and typed as `params`; it ignores `t`. A concrete `h = 0` gives `f_1`, by one
      derivative in `h`; a traced `h` must not be 0. It is compiled at its first call, once for all step sizes and, like
      `jax.jit`, knows `update_map` by identity.

    Raises:
      TypeError, ValueError: as `modified_vector_field`.

    Example:
      >>> import jax.numpy as jnp, optax, implicit_reg as ir
      >>> phi = ir.update_map(optax.sgd, lambda x: 0.5 * jnp.sum(x**2))
      >>> interpolated_vector_field(phi, 2)(0.0, jnp.array([1.0]), 0.25)  # (3/2) (-1) - (1/2) (-3/4)
      Array([-1.125], dtype=float32)
    """
    _checks.check_callable("interpolated_vector_field", "update_map", update_map, "(h, params) -> params")
    _checks.check_integer("interpolated_vector_field", "order", order)
    return InterpolatedVectorField(_callables.hashable(update_map), int(order))
