"""Modified equations of any one-step map, by exact derivatives."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, OneStepMap, Params, Scalar
from implicit_reg.derivatives import step_coefficients
from implicit_reg.flows.jets import BASE, Index, Jet


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

    where `D_F G = G' F` is the Lie derivative. Summed over h, `f = sum_m (B_m/m!) (h D_f)^m u` with
    `u = (Phi_h - id)/h` and Bernoulli's numbers: that is computed, along Taylor coefficients of one solution, so that
    no coefficient is ever differentiated as a function. Of gradient descent on dense layers the first 1, 2, 3, 4
    coefficients take the operations of 1, 2.5, 4.5, 8.6 gradients.

    Args:
      update_map: `(h, params) -> params`, smooth in both, the identity at h = 0.
      order: how many coefficients, at least 1.

    Returns:
      A function of the parameters that returns a tuple of `order` trees structured as the parameters; compiled at its
      first call.

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

    # One program: operation by operation, every coefficient of every intermediate value would be compiled by itself.
    return jax.jit(lambda x: _series(functools.partial(step_coefficients, step, order=int(order)), x, int(order)))


def _bernoulli(n: int) -> Fraction:
    """`B_n`, with `B_1 = -1/2`."""
    if n == 0:
        return Fraction(1)
    return -sum((math.comb(n + 1, k) * _bernoulli(k) for k in range(n)), start=Fraction(0)) / (n + 1)


def _series(coefficients: Callable[[Params], tuple[PyTree, ...]], x: PyTree, order: int) -> tuple[PyTree, ...]:
    """`f_1, ..., f_order` at `x`, from the functions `d_1, ..., d_order`.

    With `u = d_1 + h d_2 + ...` and the solution `X(t) = x + sum X_{k,j} t^k h^j` the relation of
    `modified_coefficients` reads, by powers of t and h,

        (k+1) X_{k+1,j} = sum_{m=0..j} B_m binom(k+m, m) [t^{k+m} h^{j-m}] u(h, X(t)),      f_n = X_{1,n-1},

    in which only lower powers of X occur on the right.
    """
    like = jax.tree.leaves(x)
    width, treedef = len(like), jax.tree.structure(x)
    jet = Jet(coefficients, x)
    found: dict[Index, list[list]] = {}  # of d_1, ..., d_order, the coefficients by leaf

    def keep(index, leaves):
        found[index] = [leaves[k : k + width] for k in range(0, len(leaves), width)]

    def total(terms):
        """`sum w c` over the pairs, as a tree; None stands for zero among the leaves."""
        sums: list = [None] * width
        for w, leaves in terms:
            for k, leaf in enumerate(leaves):
                if leaf is not None:
                    term = leaf if w == 1 else jnp.asarray(float(w), leaf.dtype) * leaf
                    sums[k] = term if sums[k] is None else sums[k] + term
        return treedef.unflatten([jnp.zeros_like(x) if s is None else s for s, x in zip(sums, like, strict=True)])

    def solution(k, j):
        """`X_{k,j}`."""
        terms = []
        for m in filter(_bernoulli, range(j + 1)):
            w = _bernoulli(m) * math.comb(k - 1 + m, m) / k
            terms += [(w, found[k - 1 + m, i][j - m - i]) for i in range(j - m + 1) if (k - 1 + m, i) in found]
        return total(terms)

    keep(BASE, jet.value)
    curve = {(1, 0): solution(1, 0)}
    for degree in range(1, order):
        # No coefficient of X in h alone; those of low degree in t first, for the others need them.
        indices = [(degree - j, j) for j in reversed(range(degree))]
        if degree < order - 1:
            for index in indices:
                keep(index, jet(index, curve[index]))
            curve |= {(degree + 1 - j, j): solution(degree + 1 - j, j) for j in range(degree + 1)}
        else:
            # Of the last degree only one sum over m is needed, in which the highest powers of X occur linearly: their
            # combination takes the place of one of them, and the others are left out.
            indices = [(m, j) for m, j in indices if _bernoulli(m)]
            last = indices[-1]
            merged = total((_bernoulli(m) / _bernoulli(last[0]), jax.tree.leaves(curve[m, j])) for m, j in indices)
            for index in indices:
                keep(index, jet(index, merged if index == last else None))
            curve[1, degree] = solution(1, degree)
    return tuple(curve[1, j] for j in range(order))


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
