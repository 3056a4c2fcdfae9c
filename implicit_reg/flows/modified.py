"""Modified equations of any one-step map, by exact derivatives."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, OneStepMap, Params, Scalar
from implicit_reg.derivatives import step_coefficients


def check_field_arguments(function: str, params: Params, h: Scalar) -> PyTree:
    """Real floating parameters and a step size that is not negative; returns the parameters as arrays."""
    _checks.check_floating(function, "params", params)
    _checks.check_number(function, "h", h, low=0, why="for ascent, negate the loss")
    return jax.tree.map(jnp.asarray, params)


@dataclasses.dataclass(frozen=True)
class GradientField:
    """`-grad L`; made by `gradient_field`."""

    loss_fn: Loss

    def __call__(self, t: Scalar, params: Params, h: Scalar) -> PyTree:
        params = check_field_arguments("gradient_field", params, h)

        def loss(params):
            value = self.loss_fn(params)
            _checks.check_loss_value("gradient_field", "loss_fn(params)", value)
            return value

        return jax.tree.map(jnp.negative, jax.grad(loss)(params))


def gradient_field(loss_fn: Loss) -> GradientField:
    """The gradient flow `x' = -grad L(x)`, as a field `(t, params, h)` that ignores `t` and `h`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.

    Returns:
      `field(t, params, h)`, structured and typed as `params`.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable; when called, a leaf is not real floating, or the loss is not a
        real scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> gradient_field(lambda x: 0.5 * x**2)(0.0, jnp.array(3.0), 0.1)
      Array(-3., dtype=float32, weak_type=True)
    """
    _checks.check_callable("gradient_field", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    return GradientField(_callables.hashable(loss_fn))


def modified_coefficients(update_map: OneStepMap, order: Integer) -> Callable[[Params], tuple[PyTree, ...]]:
    """The coefficients `f_1, ..., f_order` of the modified equation of a one-step map, exactly.

    With `Phi_h(x) = x + h d_1(x) + h^2 d_2(x) + ...` the equation `x' = f_1 + h f_2 + h^2 f_3 + ...` whose time-h flow
    is the step has

        f_n = d_n - sum_{k=2..n} (1/k!) S_{k,n},   S_{1,n} = f_n,   S_{k,n} = sum_{j=1..n-k+1} D_{f_j} S_{k-1,n-j},

    where `D_F G = G' F` is the Lie derivative.

    Args:
      update_map: `(h, params) -> params`, smooth in both, the identity at h = 0.
      order: how many coefficients, at least 1. The cost grows about threefold with each.

    Returns:
      A function of the parameters that returns a tuple of `order` trees structured as the parameters.

    Raises:
      TypeError, ValueError: `order` is not an integer of at least 1, or `update_map` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> euler = lambda h, y: y + h * y**2               # y' = y^2: 1, -1, 3/2 times y^2, y^3, y^4
      >>> [float(f) for f in modified_coefficients(euler, 3)(jnp.array(1.0))]
      [1.0, -1.0, 1.5]

    References:
      [hairer2006], ch. IX.
    """
    return _coefficients("modified_coefficients", update_map, order)


def _coefficients(function: str, update_map: OneStepMap, order: Integer) -> Callable[[Params], tuple[PyTree, ...]]:
    _checks.check_callable(function, "update_map", update_map, "(h, params) -> params")
    _checks.check_integer(function, "order", order)

    def step(h, x):
        after = update_map(h, x)
        _checks.check_same_tree(function, "update_map(h, params)", after, "params", x)
        return _tree.like(after, x)

    def table(n: int) -> Callable[[Params], dict[tuple[int, int], PyTree]]:
        """x -> {(k, m): S_{k,m}(x)} for k <= m <= n.

        Two ways to the recursion: (1) a function for each S_{k,m}, differentiated along each f_j; (2) the whole lower
        table differentiated at once along each f_j. (1) traces a program that grows tenfold with the order and leaves
        it to XLA to find what repeats; (2) grows threefold. We do (2).
        """
        if n == 1:
            return lambda x: {(1, 1): step_coefficients(step, x, 1)[0]}

        def fn(x):
            # The lower table apart, though the first `jvp` has it too: XLA then finds more of what repeats (5.4
            # gradients instead of 6.4 at order 3, 17.8 instead of 19.4 at order 4).
            sums = table(n - 1)(x)
            along = {j: jax.jvp(table(n - j), (x,), (sums[1, j],))[1] for j in range(1, n)}
            total = step_coefficients(step, x, n)[-1]
            for k in range(2, n + 1):
                terms = (along[j][k - 1, n - j] for j in range(1, n - k + 2))
                sums[k, n] = jax.tree.map(lambda leaf, *rest: sum(rest, start=leaf), *terms)
                total = _tree.axpy(-1.0 / math.factorial(k), sums[k, n], total)
            sums[1, n] = total
            return sums

        return fn

    def coefficients(x):
        sums = table(order)(x)
        return tuple(sums[1, n] for n in range(1, order + 1))

    return coefficients


@dataclasses.dataclass(frozen=True)
class ModifiedVectorField:
    """`f_1 + h f_2 + ... + h^(order-1) f_order`; made by `modified_vector_field`."""

    update_map: OneStepMap
    order: int

    def __call__(self, t: Scalar, params: Params, h: Scalar) -> PyTree:
        return _modified(self, check_field_arguments("modified_vector_field", params, h), h)


@functools.partial(jax.jit, static_argnums=0)
def _modified(field: ModifiedVectorField, params: PyTree, h: Scalar) -> PyTree:
    *lower, total = _coefficients("modified_vector_field", field.update_map, field.order)(params)
    for coefficient in reversed(lower):
        total = _tree.axpy(h, total, coefficient)
    return total


def modified_vector_field(update_map: OneStepMap, order: Integer) -> ModifiedVectorField:
    """The modified equation of a one-step map, truncated after `order` terms, by exact derivatives:

        x' = f_1(x) + h f_2(x) + ... + h^(order-1) f_order(x).

    Its flow follows the iterates with an error of order `h^order` at a fixed time `t = n h`, and `h^(order+1)` in one
    step. For gradient descent `order=1` is gradient flow, and `order=2` adds the implicit gradient regularization:
    the flow of `L + (h/4) ||grad L||^2`. From `order=3` on the field is in general not the gradient of any loss.

    Args:
      update_map: `(h, params) -> params`, smooth in both; usually made by `implicit_reg.update_map`.
      order: how many terms, at least 1.

    Returns:
      `field(t, params, h)`, structured and typed as `params`; it ignores `t`. `h = 0` gives `f_1`; `h` may be traced.
      It is compiled at its first call and, like `jax.jit`, knows `update_map` by identity.

    Raises:
      TypeError, ValueError: `order` is not an integer of at least 1; when called, a leaf is not real floating, or a
        concrete `h` is negative or not finite.

    Example:
      >>> import jax.numpy as jnp, optax, implicit_reg as ir
      >>> phi = ir.update_map(optax.sgd, lambda x: 0.5 * jnp.sum(x**2))
      >>> modified_vector_field(phi, 2)(0.0, jnp.array([1.0]), 0.25)      # -x - (h/2) x
      Array([-1.125], dtype=float32)

    References:
      [barrett2021] for gradient descent, [hairer2006], ch. IX, in general.
    """
    _checks.check_callable("modified_vector_field", "update_map", update_map, "(h, params) -> params")
    _checks.check_integer("modified_vector_field", "order", order)
    return ModifiedVectorField(_callables.hashable(update_map), int(order))
