"""Adam and its relatives in closed form: what elementwise rescaling with memories follows on the full batch.

One step moves x by `-h (M/(sqrt(V + eps_root) + eps) + d x)`, where M averages past gradients, V averages their squares
and d is the weight decay. With `D` the derivative along the flow, per step, and mean ages t1, t2 of the two memories,

    M = g - t1 D g + ...,    V = g^2 - 2 t2 g D g + ...,    D x = -h (...) - D^2 x/2 + ...,

and `D g = -h H q` to leading order with `R = sqrt(g^2 + eps_root)`, `q = g/(R + eps) + d x`, all elementwise:

    F_1 = -h q,
    F_2 = -h^2/(R + eps) [(1/2 + t1) - (1/2 + t2) g^2/(R (R + eps))] (H q) - (h^2/2) d q.

It holds while the gradient changes little over the age of the second memory (`memory_strain` below about 0.2), and
where no component of the gradient changes sign, unless eps or the root of eps_root is comparable to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Loss, Params, Scalar
from implicit_reg.flows.memory import check_decay

ROUND_OFF = 1e-17  # terms of a series below it change no sum


class Rescaling(NamedTuple):
    """What is added to the root of the second memory, and the weight decay.

    Attributes:
      eps: outside of the root.
      eps_root: inside the root. `optax.rmsprop` puts its `eps` here unless `eps_in_sqrt=False`.
      weight_decay: decoupled from the rescaling, as in `optax.adamw`.
    """

    eps: Scalar = 0.0
    eps_root: Scalar = 0.0
    weight_decay: Scalar = 0.0


def stationary_age(decay: Scalar) -> Scalar:
    """`b/(1 - b)`: the mean age of what an exponential average with a long past holds.

    Args:
      decay: `b`, in [0, 1).

    Returns:
      The age, in steps.

    Raises:
      TypeError, ValueError: `decay` is not a number in [0, 1).

    Example:
      >>> stationary_age(0.75)
      3.0
    """
    check_decay("stationary_age", decay)
    return decay / (1 - decay)


def corrected_age(decay: Scalar, step: Scalar) -> Scalar:
    """`b/(1 - b) - n b^n/(1 - b^n)`: the mean age of a bias-corrected average that began at step 1.

    At the first step it is 0, for there is nothing but the newest gradient; it grows like (n - 1)/2 and ends at
    `stationary_age`.

    Args:
      decay: `b`, in (0, 1).
      step: the number n of the step, 1, 2, ...; in a flow that has come to n (which counts steps from 0), n + 1/2, so
        that the integral over a step is that step's age up to the midpoint rule.

    Returns:
      The age, in steps.

    Raises:
      TypeError, ValueError: `decay` is not a number in [0, 1).

    Example:
      >>> [float(round(corrected_age(0.75, n), 3)) for n in (1, 2, 100)]
      [0.0, 0.429, 3.0]
    """
    age = stationary_age(decay)
    power = decay**step
    return age - step * power / (1 - power)


def _parts(loss_fn: Loss, rescaling: Rescaling, params: PyTree) -> tuple[PyTree, PyTree, PyTree, PyTree, PyTree]:
    """`(g, R, g/R, q, H q)`, the ratio 0 where the gradient and the root vanish."""
    gradient = jax.grad(loss_fn)
    g = gradient(params)
    root = jax.tree.map(lambda g: jnp.sqrt(g**2 + rescaling.eps_root), g)
    unit = jax.tree.map(lambda g, r: jnp.where(r > 0, g / jnp.where(r > 0, r, 1), 0), g, root)
    q = jax.tree.map(lambda g, r, x: g / (r + rescaling.eps) + rescaling.weight_decay * x, g, root, params)
    return g, root, unit, q, jax.jvp(gradient, (params,), (q,))[1]


def adaptive_coefficients(
    loss_fn: Loss, ages: tuple[Scalar, Scalar], rescaling: Rescaling
) -> Callable[[Params], tuple[PyTree, PyTree]]:
    """The coefficients of the flow that Adam and its relatives follow on the full batch.

        f_1 = -q,    f_2 = -1/(R + eps) [(1/2 + t1) - (1/2 + t2) g^2/(R (R + eps))] (H q) - (d/2) q,

    elementwise, with `R = sqrt(g^2 + eps_root)` and `q = g/(R + eps) + d x`; `x' = f_1 + h f_2` in the time `t = n h`.

    | optimizer | t1 | t2 |
    |---|---|---|
    | RMSProp | 0 | b2/(1 - b2) |
    | Adam, AdamW | b1/(1 - b1) | b2/(1 - b2) |
    | NAdam | b1^2/(1 - b1) | b2/(1 - b2) |

    These ages are those of memories with a long past. From Optax's zero state with bias correction they grow with the
    step (`corrected_age`; all but NAdam's t1), which is what makes the flow usable at b2 = 0.999.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      ages: `(t1, t2)`, mean ages of the memories of gradients and of their squares, in steps; they may be traced.
      rescaling: the constants of the optimizer.

    Returns:
      `params -> (f_1, f_2)`, structured as the parameters. Where the gradient, eps and eps_root are all zero it is NaN,
      as is Optax's update.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or a constant is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> fields = adaptive_coefficients(lambda x: 0.5 * x**2, (0.0, 3.0), Rescaling(eps=0.5))   # g = H = 1 at x = 1
      >>> [f"{float(f):.3f}" for f in fields(jnp.array(1.0))]          # -2/3, -(2/3) (1/2 - (7/2) (2/3)) (2/3)
      ['-0.667', '0.815']

    References:
      [cattaneo2024] for eps = 0 and no weight decay, where `f_2` is a multiple of the gradient of the perturbed 1-norm.
    """
    _checks.check_callable("adaptive_coefficients", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    for name, value in zip(Rescaling._fields, rescaling, strict=True):
        _checks.check_number("adaptive_coefficients", name, value, low=0)
    first_age, second_age = ages

    def coefficients(params: Params) -> tuple[PyTree, PyTree]:
        _, root, unit, q, hq = _parts(loss_fn, rescaling, params)

        def second(root, unit, g_root, q, hq):
            scale = root + rescaling.eps
            bracket = (0.5 + first_age) - (0.5 + second_age) * unit * g_root
            return -bracket / scale * hq - rescaling.weight_decay / 2 * q

        # g^2/(R (R + eps)) as (g/R) (g/(R + eps)): no quotient of two numbers that may both be tiny squares.
        g_root = jax.tree.map(lambda u, r: u * r / (r + rescaling.eps), unit, root)
        return _tree.scale(-1, q), jax.tree.map(second, root, unit, g_root, q, hq)

    return coefficients


def memory_strain(
    loss_fn: Loss, ages: tuple[Scalar, Scalar], rescaling: Rescaling
) -> Callable[[Scalar, Params], tuple[jax.Array, jax.Array]]:
    """Whether the theory speaks: how much the second memory lags behind, and which gradients may change sign.

        chi = h t2 max |g (H q)|/(R (R + eps)),

    the relative error that the age of the second memory makes in the denominator; with eps = eps_root = 0 it is
    `h t2 max |H q|/|g|`. Below about 0.2 two terms are good, at 1 the denominator is another one.

    Args:
      loss_fn, ages, rescaling: as for `adaptive_coefficients`.

    Returns:
      `(h, params) -> (chi, fraction)`: the fraction of components whose gradient, at its present rate `h H q`, passes
      through zero within the longer of the two ages and one step. There eps must be comparable to the gradient.

    Raises:
      TypeError: `loss_fn` is not callable.

    Example:
      >>> import jax.numpy as jnp
      >>> strain = memory_strain(lambda x: 0.5 * x**2, (1.0, 3.0), Rescaling())
      >>> chi, changing = strain(0.1, jnp.array(2.0))                               # h t2 |H q|/|g|
      >>> round(float(chi), 3), float(changing)
      (0.15, 0.0)
    """
    _checks.check_callable("memory_strain", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    first_age, second_age = ages

    def strain(h: Scalar, params: Params) -> tuple[jax.Array, jax.Array]:
        g, root, unit, _, hq = _parts(loss_fn, rescaling, params)
        reach = h * (1 + jnp.maximum(first_age, second_age))
        relative = jax.tree.map(lambda r, u, hq: jnp.max(jnp.abs(u * hq) / (r + rescaling.eps)), root, unit, hq)
        # A gradient that is exactly zero and stays so changes no sign.
        changing = jax.tree.map(lambda g, hq: jnp.sum((g * hq > 0) & (jnp.abs(g) < reach * jnp.abs(hq))), g, hq)
        size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(g))
        chi = h * second_age * jnp.max(jnp.stack(jax.tree.leaves(relative)))
        return chi, sum(jax.tree.leaves(changing)) / size

    return strain


def slow_moments(
    loss_fn: Loss, decays: tuple[Scalar, Scalar], rescaling: Rescaling
) -> Callable[[Scalar, Params], tuple[PyTree, PyTree]]:
    """The memories that a long past along the flow leaves at a point, before bias correction:

        mu = g + h H q/(1 - b1),    nu = g^2 + 2 h g (H q)/(1 - b2) + h^2 (H q)^2 (1 + b2)/(1 - b2)^2,

    as Optax's state holds them before the next update. The count of that state must be large, for otherwise the bias
    correction rescales them. The last term of `nu` is beyond the order of the others; with it `nu` is the average of
    the squares `(g + j h H q)^2`, and never negative where the gradient is near zero.

    Args:
      loss_fn, rescaling: as for `adaptive_coefficients`.
      decays: `(b1, b2)`; RMSProp has no first memory, and takes any b1.

    Returns:
      `(h, params) -> (mu, nu)`, each structured as the parameters, up to O(h^2).

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or a decay is not a number in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> moments = slow_moments(lambda x: 0.5 * x**2, (0.5, 0.75), Rescaling())   # q = H q = 1
      >>> [float(m) for m in moments(0.25, jnp.array(1.0))]
      [1.5, 4.75]
    """
    _checks.check_callable("slow_moments", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    for decay in decays:
        check_decay("slow_moments", decay)
    first, second = decays

    def moments(h: Scalar, params: Params) -> tuple[PyTree, PyTree]:
        g, _, _, _, hq = _parts(loss_fn, rescaling, params)
        mu = _tree.axpy(h / (1 - first), hq, g)
        lag = h / (1 - second)
        nu = jax.tree.map(lambda g, hq: (g + lag * hq) ** 2 + second * (lag * hq) ** 2, g, hq)
        return mu, nu

    return moments


def rms_ghost_shift(loss_fn: Loss, decay: float, rescaling: Rescaling) -> Callable[[Params], PyTree]:
    """From where RMSProp without bias correction seems to come: its memory starts at zero, so its first steps are long.

        x_0 - h sum_{n>=1} ( g/(sqrt((1 - b^n) g^2 + eps_root) + eps) - g/(R + eps) ).

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      decay: `b`, in [0, 1), a Python number: the sum is cut where b^n is below round-off.
      rescaling: the constants of the optimizer.

    Returns:
      `params -> s`: the flow starts at `x_0 + h s`.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or `decay` is not a number in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> shift = rms_ghost_shift(lambda x: 0.5 * x**2, 0.5, Rescaling())
      >>> f"{float(shift(jnp.array(1.0))):.4f}"                                      # -sum (1/sqrt(1 - 2^-n) - 1)
      '-0.7025'
    """
    _checks.check_callable("rms_ghost_shift", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    check_decay("rms_ghost_shift", decay)
    num_terms = 1 if decay == 0 else math.ceil(math.log(ROUND_OFF) / math.log(decay))

    def shift(params: Params) -> PyTree:
        def leaf(g):
            stationary = g / (jnp.sqrt(g**2 + rescaling.eps_root) + rescaling.eps)

            def add(n, total):
                filled = 1 - jnp.asarray(decay, g.dtype) ** n
                return total - (g / (jnp.sqrt(filled * g**2 + rescaling.eps_root) + rescaling.eps) - stationary)

            return jax.lax.fori_loop(1, num_terms + 1, add, jnp.zeros_like(g))

        return jax.tree.map(leaf, jax.grad(loss_fn)(params))

    return shift


def nadam_ghost_shift(loss_fn: Loss, decay: Scalar, rescaling: Rescaling) -> Callable[[Params], PyTree]:
    """From where NAdam seems to come: its two bias corrections do not cancel, so its first steps are long.

        x_0 - h g/(R + eps) sum_{n>=1} (s_n - 1),    s_n = b (1 - b^n)/(1 - b^(n+1)) + (1 - b)/(1 - b^n).

    With `A_n = 1/(1 - b^n)` a term is `(1 - b) (A_n - A_{n+1})`, and the sum is `b`.

    Args:
      loss_fn: `loss_fn(params) -> scalar`.
      decay: `b`, of the first memory, in [0, 1).
      rescaling: the constants of the optimizer.

    Returns:
      `params -> s = -b g/(R + eps)`: the flow starts at `x_0 + h s`.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or `decay` is not a number in [0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> float(nadam_ghost_shift(lambda x: 0.5 * x**2, 0.5, Rescaling(eps=1.0))(jnp.array(1.0)))
      -0.25
    """
    _checks.check_callable("nadam_ghost_shift", "loss_fn", loss_fn, "loss_fn(params) -> scalar")
    check_decay("nadam_ghost_shift", decay)

    def shift(params: Params) -> PyTree:
        return jax.tree.map(
            lambda g: -decay * g / (jnp.sqrt(g**2 + rescaling.eps_root) + rescaling.eps), jax.grad(loss_fn)(params)
        )

    return shift
