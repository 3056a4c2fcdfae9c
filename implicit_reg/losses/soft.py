"""Relatives of flooding: a soft level (SoftAD), and a level for each example (AdaFlood)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reg import _checks, _tree
from implicit_reg._types import Loss, Scalar
from implicit_reg.losses.flooding import check_flooded_loss


def _soft_sign(x):
    """`x / sqrt(x^2 + 1)`, in [-1, 1] for every x, infinities included."""
    far = jnp.abs(x) > 1
    near = jnp.where(far, 1, x)
    inverse = 1 / jnp.where(far, x, 1)
    return jnp.where(far, jnp.sign(x), near) / jnp.sqrt(1 + jnp.where(far, inverse, near) ** 2)


@jax.custom_jvp
def _soft_abs(x):
    """`sqrt(x^2 + 1) - 1` without cancellation near 0 and without overflow far away."""
    far = jnp.abs(x) > 1
    near = jnp.where(far, 1, x)
    away = jnp.where(far, jnp.abs(x), 1)
    return jnp.where(far, away * jnp.sqrt(1 + (1 / away) ** 2) - 1, near**2 / (jnp.sqrt(near**2 + 1) + 1))


# The derivative of the line above is right but for infinities, where it is inf * 0.
_soft_abs.defjvps(lambda x_dot, _, x: _soft_sign(x) * x_dot)


def soft_flooded(
    loss_fn: Loss,
    level: Scalar | Float[Array, " n"] | None,
    *,
    scale: Scalar = 1.0,
    level_weight: Scalar = 1.0,
    has_aux: bool = False,
) -> Callable:
    """Flooding without the kink: examples far from the level count fully, examples near it count little (SoftAD).

        eta mean_i b_i + sigma^2 mean_i rho((l_i - b_i)/sigma),    rho(x) = sqrt(x^2 + 1) - 1,

    where `sigma` is `scale` and `eta` is `level_weight`. Example i enters the gradient with weight
    `sigma phi((l_i - b_i)/sigma)`, `phi(x) = x/sqrt(x^2 + 1)`: `l_i - b_i` near the level, `+-sigma` far from it. So
    for small `sigma` it is `sigma` times the individual form of `flooded`, up to a constant, and for large `sigma`
    the squared distance from the level.

    Args:
      loss_fn: `loss_fn(params, *batch, **kwargs)`, the vector of the examples' losses.
      level: `b`, a real number, or one for each example; None is off (the mean of the losses).
      scale: `sigma > 0`, in the unit of the loss: how far from the level the weight saturates.
      level_weight: `eta`; moves the value, and the gradient only of a level that is itself trained.
      has_aux: whether `loss_fn` returns `(losses, aux)`; the result is `(loss, aux)`, then.

    Returns:
      A loss with the arguments of `loss_fn`: a scalar. Cost: one gradient.

    Raises:
      TypeError: if a number is none, or if `loss_fn` does not return a vector of real floating losses.
      ValueError: if a number is not finite, `scale` is not positive, or `level` has a wrong shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> losses = lambda x: x                                    # each example's loss is a parameter
      >>> [f"{float(g):.3f}" for g in jax.grad(soft_flooded(losses, 0.5))(jnp.array([0.5, 1.5, 1000.0]))]
      ['0.000', '0.236', '0.333']

    References:
      [holland2024]
    """
    function = "soft_flooded"
    _checks.check_callable(function, "loss_fn", loss_fn, "loss_fn(params, *batch, **kwargs)")
    _checks.check_flag(function, "has_aux", has_aux)
    if level is not None:
        _checks.check_level(function, level, vector=True)
    _checks.check_number(function, "scale", scale, low=0, exclusive=True)
    _checks.check_number(function, "level_weight", level_weight)

    def loss(params, *batch, **kwargs):
        value, aux = loss_fn(params, *batch, **kwargs), None
        if has_aux:
            _checks.check_pair(function, value)
            value, aux = value
        value, b = check_flooded_loss(function, value, level, per_example=True)
        if b is None:
            soft = jnp.mean(value)
        else:
            sigma, eta = jnp.asarray(scale, b.dtype), jnp.asarray(level_weight, b.dtype)
            away = _soft_abs((value.astype(b.dtype) - b) / sigma)
            soft = (eta * jnp.mean(b) + sigma**2 * jnp.mean(away)).astype(value.dtype)
        return (soft, aux) if has_aux else soft

    return loss


def adaptive_level(
    auxiliary_losses: Float[Array, " n"], gamma: Scalar = 0.5, alpha: Scalar = 1.0, beta: Scalar = 0.0
) -> Float[Array, " n"]:
    """A flood level for each example, from the loss that a model trained without it has on it (AdaFlood).

        b_i = -log((1 - gamma) exp(-(alpha a_i + beta)) + gamma)

    With cross-entropy `exp(-a_i)` is the probability that the auxiliary model gives to the label: hard or mislabeled
    examples get a high level. `gamma = 0` is `b = alpha a + beta`, `gamma = 1` is `b = 0`.

    Args:
      auxiliary_losses: `a`, the examples' losses under models that have not seen them.
      gamma: in [0, 1], how far the auxiliary model's probability is drawn towards 1; 0.05 to 0.95 in use.
      alpha: slope of the correction of the auxiliary losses.
      beta: offset of the correction.

    Returns:
      The levels, for `flooded(loss_fn, levels, per_example=True)`, in the dtype of the losses.

    Raises:
      TypeError: if the losses are not a real floating array, or a number is none.
      ValueError: if `gamma` is outside of [0, 1], or a number is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{float(b):.3f}" for b in adaptive_level(jnp.array([0.0, 0.7, 50.0]))]
      ['0.000', '0.290', '0.693']

    References:
      [bae2024]
    """
    function = "adaptive_level"
    _checks.check_floating(function, "auxiliary_losses", auxiliary_losses)
    if not hasattr(auxiliary_losses, "dtype"):
        raise TypeError(
            f"{function}: `auxiliary_losses` must be an array, got {type(auxiliary_losses).__name__}; the losses of "
            f"all examples as jax.numpy.array"
        )
    _checks.check_fraction(function, "gamma", gamma)
    _checks.check_number(function, "alpha", alpha)
    _checks.check_number(function, "beta", beta)
    losses = jnp.asarray(auxiliary_losses)
    dtype = _tree.wide(losses.dtype)
    gamma, alpha, beta = (jnp.asarray(x, dtype) for x in (gamma, alpha, beta))
    # In logarithms: exp(-a) underflows in float32 beyond a = 87, and gamma = 0 must give alpha a + beta.
    kept = jnp.log1p(-gamma) - (alpha * losses.astype(dtype) + beta)
    return (0 - jnp.logaddexp(kept, jnp.log(gamma))).astype(losses.dtype)
