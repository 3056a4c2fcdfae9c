"""Momentum in closed form: what optimizers with a linear memory of past gradients follow.

The update is `x_{n+1} - x_n = -h sum_j k_j g_{n-j}`, and three moments of the weights `k_j` decide:

    mu0 = sum_j k_j,    tau = sum_j j k_j / mu0,    s2 = sum_j j^2 k_j / mu0,    eta = h mu0.

Let `D` be the derivative along the flow that the iterates follow, per step. A past gradient is `g_{n-j} = e^{-jD} g`
and a step is `e^D x - x`, so

    D x = -eta D/(e^D - 1) (1 - tau D + s2/2 D^2 - ...) g = -eta (g - c D g + b D^2 g - ...),
    c = 1/2 + tau,    b = c/2 - 1/6 + s2/2.

With `D g = H D x` this is solved order by order: `D g = -eta H g - eta^2 c H H g`, `D^2 g = eta^2 (H H g + T(g, g))`.
Plain gradient descent is the memory without age: mu0 = 1, tau = s2 = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Integer, Loss, Params, Scalar
from implicit_reg.flows.closed_forms import gradient_products
from implicit_reg.flows.modified import check_field_arguments

MAX_ORDER = 3


class LinearMemory(NamedTuple):
    """The moments of the weights `k_j` with which gradients of age j enter an update.

    Attributes:
      mass: `mu0`, their sum: the effective step size is `eta = h mu0`.
      age: `tau`, the mean age.
      square_age: `s2`, the mean square of the age.
    """

    mass: Scalar
    age: Scalar
    square_age: Scalar

    @property
    def delay(self) -> Scalar:
        """`c = 1/2 + tau`: the flow is that of `L + (eta c/2) ||grad L||^2`."""
        return 0.5 + self.age


def check_decay(function: str, decay: Scalar) -> None:
    _checks.check_number(function, "decay", decay, low=0)
    if _checks.is_concrete(decay) and not decay < 1:
        raise ValueError(f"{function}: `decay` must be less than 1, got {decay}; from 1 on the memory never forgets")


def heavy_ball_memory(decay: Scalar) -> LinearMemory:
    """Of `optax.sgd(h, momentum=decay)`: `k_j = b^j`.

    Args:
      decay: `b`, in [0, 1).

    Returns:
      `mu0 = 1/(1 - b)`, `tau = b/(1 - b)`, `s2 = b (1 + b)/(1 - b)^2`.

    Raises:
      TypeError, ValueError: `decay` is not a number in [0, 1).

    Example:
      >>> heavy_ball_memory(0.5)
      LinearMemory(mass=2.0, age=1.0, square_age=3.0)
    """
    check_decay("heavy_ball_memory", decay)
    return LinearMemory(1 / (1 - decay), decay / (1 - decay), decay * (1 + decay) / (1 - decay) ** 2)


def nesterov_memory(decay: Scalar) -> LinearMemory:
    """Of `optax.sgd(h, momentum=decay, nesterov=True)`: `k_0 = 1 + b`, `k_j = b^(j+1)`.

    Args:
      decay: `b`, in [0, 1).

    Returns:
      `mu0 = 1/(1 - b)`, `tau = b^2/(1 - b)`, `s2 = b^2 (1 + b)/(1 - b)^2`: the same mass, younger.

    Raises:
      TypeError, ValueError: `decay` is not a number in [0, 1).

    Example:
      >>> nesterov_memory(0.5)
      LinearMemory(mass=2.0, age=0.5, square_age=1.5)
    """
    check_decay("nesterov_memory", decay)
    return LinearMemory(1 / (1 - decay), decay**2 / (1 - decay), decay**2 * (1 + decay) / (1 - decay) ** 2)


def averaged_memory(decay: Scalar) -> LinearMemory:
    """Of `optax.chain(optax.ema(decay, debias=False), optax.sgd(h))`: `k_j = (1 - b) b^j`.

    Args:
      decay: `b`, in [0, 1).

    Returns:
      Mass 1 and the ages of `heavy_ball_memory`.

    Raises:
      TypeError, ValueError: `decay` is not a number in [0, 1).

    Example:
      >>> averaged_memory(0.5)
      LinearMemory(mass=1.0, age=1.0, square_age=3.0)
    """
    check_decay("averaged_memory", decay)
    return heavy_ball_memory(decay)._replace(mass=1.0)


def weighted_memory(weights: Sequence[float]) -> LinearMemory:
    """Of any memory that is given by its weights, newest gradient first, as far back as it reaches.

    Args:
      weights: `k_0, k_1, ...`; their sum must not be zero.

    Returns:
      Their moments.

    Raises:
      TypeError, ValueError: `weights` is not a vector of numbers with a sum other than zero.

    Example:
      >>> weighted_memory([0.5, 0.25, 0.25])
      LinearMemory(mass=1.0, age=0.75, square_age=1.25)
    """
    k = _checks.check_vector("weighted_memory", "weights", weights)
    mass = float(np.sum(k))
    if not (np.all(np.isfinite(k)) and mass != 0):
        raise ValueError(f"weighted_memory: `weights` must be finite with a sum other than 0, got {weights!r}")
    j = np.arange(k.size)
    return LinearMemory(mass, float(j @ k) / mass, float(j**2 @ k) / mass)


def _check_order(function: str, order: Integer) -> None:
    _checks.check_integer(function, "order", order)
    if order > MAX_ORDER:
        raise ValueError(
            f"{function}: `order` must be at most {MAX_ORDER}, got {order}; the fourth term needs the third moment of "
            f"the weights: use the interpolated field of iterates after their transient"
        )


def memory_coefficients(
    loss_fn: Loss, memory: LinearMemory, order: Integer = MAX_ORDER
) -> Callable[[Params], tuple[PyTree, ...]]:
    """The coefficients of the flow that iterates with a linear memory follow after their transient.

        f_1 = -mu0 g,    f_2 = -mu0^2 c H g,    f_3 = -mu0^3 [(c^2 + b) H H g + b T(g, g)],

    `c = 1/2 + tau`, `b = c/2 - 1/6 + s2/2`, `x' = f_1 + h f_2 + h^2 f_3` in the time `t = n h`. The first two are the
    gradient flow of `L + (eta c/2) ||g||^2` in the time `n eta`, `eta = h mu0`; the third is not a gradient.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      memory: of the optimizer.
      order: how many terms, at most 3.

    Returns:
      `params -> (f_1, ..., f_order)`, each structured as the parameters.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or `order` not an integer from 1 to 3.

    Example:
      >>> import jax.numpy as jnp
      >>> fields = memory_coefficients(lambda x: 0.5 * x**2, heavy_ball_memory(0.5))
      >>> [f"{float(f):.3f}" for f in fields(jnp.array(1.0))]
      ['-2.000', '-6.000', '-34.667']

    References:
      [ghosh2023] for the second term of heavy ball; the third, and other memories, were derived here.
    """
    _checks.check_callable("memory_coefficients", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    _check_order("memory_coefficients", order)
    mass, c = memory.mass, memory.delay
    b = c / 2 - 1 / 6 + memory.square_age / 2

    def coefficients(params: Params) -> tuple[PyTree, ...]:
        g, hg, hhg, tgg = gradient_products(loss_fn, params)
        first, second = _tree.scale(-mass, g), _tree.scale(-(mass**2) * c, hg)
        third = _tree.axpy(-(mass**3) * (c**2 + b), hhg, _tree.scale(-(mass**3) * b, tgg))
        return (first, second, third)[:order]

    return coefficients


def memory_vector_field(
    loss_fn: Loss, memory: LinearMemory, order: Integer = MAX_ORDER
) -> Callable[[Scalar, Params, Scalar], PyTree]:
    """The sum `f_1 + h f_2 + h^2 f_3` of `memory_coefficients` as a field for `integrate`.

    Orders 1, 2, 3 at a fixed time hold for iterates whose memory starts on the slow manifold (`slow_trace`), and from
    Optax's zero memory where the flow starts at the ghost point (`ghost_shifts`). The series converges for
    `eta lambda < (1 - sqrt(b))/(1 + sqrt(b))` with heavy ball and `eta lambda < (1 - b)/(1 + b)^2` with Nesterov's
    momentum: 0.17 and 0.22 at b = 1/2, but 0.026 and 0.028 at b = 0.9, far below the stable step sizes.

    Args:
      loss_fn, memory, order: as for `memory_coefficients`.

    Returns:
      `field(t, params, h)`, structured and typed as `params`; it ignores `t`.

    Raises:
      TypeError, ValueError: as `memory_coefficients`; when called, a leaf is not real floating, or a concrete `h` is
        negative.

    Example:
      >>> import jax.numpy as jnp
      >>> field = memory_vector_field(lambda x: 0.5 * x**2, heavy_ball_memory(0.5), 2)
      >>> float(field(0.0, jnp.array(1.0), 0.25))                               # -2 - 0.25 * 6
      -3.5
    """
    coefficients = memory_coefficients(_callables.hashable(loss_fn), memory, order)

    def field(t: Scalar, params: Params, h: Scalar) -> PyTree:
        del t
        *lower, total = coefficients(check_field_arguments("memory_vector_field", params, h))
        for coefficient in reversed(lower):
            total = _tree.axpy(h, total, coefficient)
        return total

    return field


def slow_trace(
    loss_fn: Loss, memory: LinearMemory, decay: Scalar, order: Integer = MAX_ORDER
) -> Callable[[Scalar, Params], PyTree]:
    """The trace `sum_j b^j g_{-1-j}` that iterates on the slow manifold bring to a point, to `order` terms.

        m = g/(1 - b) + eta H g/(1 - b)^2
            + eta^2 [c H H g/(1 - b)^2 + (1 + b)/(2 (1 - b)^3) (H H g + T(g, g))] + O(h^3),

    the sum of `b^j e^{-(1+j) D} g`. It is what `optax.trace` stores before the first update, with either kind of
    momentum; `optax.ema` stores `(1 - b) m`. With `order` terms the first step is exact up to `O(h^(order+1))`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      memory: of the optimizer; it says along which flow the past was.
      decay: `b`, in [0, 1), of the trace.
      order: how many terms, at most 3.

    Returns:
      `(h, params) -> m`, structured as the parameters.

    Raises:
      TypeError, ValueError: as `memory_coefficients` and `heavy_ball_memory`.

    Example:
      >>> import jax.numpy as jnp
      >>> trace = slow_trace(lambda x: 0.5 * x**2, heavy_ball_memory(0.5), 0.5, 2)
      >>> float(trace(0.25, jnp.array(1.0)))                                    # 2 + (0.25 * 2) * 4
      4.0
    """
    _checks.check_callable("slow_trace", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    _check_order("slow_trace", order)
    check_decay("slow_trace", decay)
    rest = 1 - decay

    def trace(h: Scalar, params: Params) -> PyTree:
        g, hg, hhg, tgg = gradient_products(loss_fn, params)
        eta = h * memory.mass
        total = _tree.scale(1 / rest, g)
        if order >= 2:
            total = _tree.axpy(eta / rest**2, hg, total)
        if order >= 3:
            twice = eta**2 * (1 + decay) / (2 * rest**3)
            total = _tree.axpy(eta**2 * memory.delay / rest**2 + twice, hhg, _tree.axpy(twice, tgg, total))
        return total

    return trace


def ghost_shifts(loss_fn: Loss, memory: LinearMemory) -> Callable[[Params], tuple[PyTree, PyTree]]:
    """From where iterates with an empty memory seem to come: the flow that they join started at a ghost point,

        x_0 + h mu0 tau g + h^2 mu0^2 (tau^2 + tau + s2) H g + O(h^3).

    The first updates lack the gradients from before the start, which costs `h sum_n sum_{j>n} k_j g_{n-j}`: this is
    `eta tau g` plus `eta^2 (tau + s2)/2 H g` because what is missing is old, as much again because the iterates are off
    the flow meanwhile, and `eta^2 tau^2 H g` because `g` belongs to the ghost point. Without the first
    shift no flow is better than first-order accurate, without the second the third-order flow only second-order.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      memory: of the optimizer.

    Returns:
      `params -> (s_1, s_2)`: the flow starts at `x_0 + h s_1 + h^2 s_2`.

    Raises:
      TypeError: `loss_fn` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> shifts = ghost_shifts(lambda x: 0.5 * x**2, heavy_ball_memory(0.5))
      >>> [float(s) for s in shifts(jnp.array(1.0))]                            # b/(1-b)^2, b (2+b)/(1-b)^4
      [2.0, 20.0]
    """
    _checks.check_callable("ghost_shifts", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    mass, age, square_age = memory

    def shifts(params: Params) -> tuple[PyTree, PyTree]:
        g, hg, *_ = gradient_products(loss_fn, params)
        return _tree.scale(mass * age, g), _tree.scale(mass**2 * (age**2 + age + square_age), hg)

    return shifts
