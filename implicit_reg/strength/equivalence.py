"""Which explicit penalty, which step back or which step gives what another optimizer gives implicitly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.strength.meter import _FULL_BATCH, Drawn, Settings, Strength, implicit_strength
from implicit_reg.strength.sampling import check_sampling
from implicit_reg.strength.settings import Backstitch, GradientDescent, GradientPenalty, check_method

if TYPE_CHECKING:
    Target: TypeAlias = Strength
else:
    Target: TypeAlias = object  # see `_types`


def _check(function: str, target: object, sampling: object) -> None:
    if not isinstance(target, Strength):
        raise TypeError(
            f"{function}: `target` must be a Strength, the result of implicit_strength, got {type(target).__name__}; a "
            f"penalty of another norm has no equivalent here"
        )
    check_sampling(function, sampling)


def _check_variance(function: str, target: Strength, reached: Strength) -> None:
    """Both coefficients are to agree, and one number was chosen for the first."""
    scale = max(abs(target.squared_norm), abs(target.variance), abs(reached.squared_norm))
    if not math.isclose(target.variance, reached.variance, rel_tol=1e-9, abs_tol=1e-9 * scale):
        raise ValueError(
            f"{function}: `target` must be within reach, but what makes its {target.squared_norm:.3g} ||g||^2 makes "
            f"{reached.variance:.3g} times the minibatch variance, where the target has {target.variance:.3g}; to "
            f"match the full-batch part alone, take target and sampling on the full batch"
        )


def explicit_strength_for(target: Target, method: Settings, sampling: Drawn = _FULL_BATCH) -> float:
    """The `mu` of `add_gradient_penalty(mu)` with which `method` follows the loss of `target`.

        mu = target's coefficient - method's own

    Runs of equal flow time (steps times effective step) then agree to second order, where they differ at first order
    without it.

    Args:
      target: what another optimizer gave, from `implicit_strength`.
      method: that the penalty is added to, such as `GradientDescent(h)`.
      sampling: of `method`; the penalty sees minibatches, so that it penalizes their variance as well.

    Returns:
      The strength; negative where `method` gives more than the target itself.

    Raises:
      TypeError: `target` is not a `Strength` (Adam's norm is another), or an argument no settings.
      ValueError: no strength matches both coefficients, or no formula is known.

    Example:
      >>> from implicit_reg.strength import GradientDescent, HeavyBall, implicit_strength
      >>> round(explicit_strength_for(implicit_strength(GradientDescent(0.4)), GradientDescent(0.1)), 6)
      0.075
      >>> round(explicit_strength_for(implicit_strength(GradientDescent(0.1)), HeavyBall(0.1, 0.5)), 6)
      -0.125
    """
    _check("explicit_strength_for", target, sampling)
    check_method("explicit_strength_for", "method", method)
    strength = target.squared_norm - implicit_strength(method, sampling).squared_norm
    _check_variance("explicit_strength_for", target, implicit_strength(GradientPenalty(method, strength), sampling))
    return strength


def alpha_for(target: Target, step: Scalar, interval: Integer = 1, sampling: Drawn = _FULL_BATCH) -> float:
    """The `alpha` with which backstitch of step `h` on gradient descent follows the loss of `target`.

        alpha = (sqrt(1 + 2 n (4 c/h - 1)) - 1)/2,    c the target's coefficient, n the interval

    Args:
      target: what another optimizer gave, from `implicit_strength`.
      step: `h`.
      interval: every how many steps to backstitch.
      sampling: of the backstitch run.

    Returns:
      The length of the step back, at least 0.

    Raises:
      TypeError: as `explicit_strength_for`.
      ValueError: the target is weaker than gradient descent of this step: stepping back only adds; or no alpha matches
        both coefficients.

    Example:
      >>> from implicit_reg.strength import GradientDescent, implicit_strength
      >>> round(alpha_for(implicit_strength(GradientDescent(0.5)), 0.1), 6)
      1.0
    """
    _check("alpha_for", target, sampling)
    own = implicit_strength(GradientDescent(step)).squared_norm
    _checks.check_integer("alpha_for", "interval", interval)
    excess = target.squared_norm / own - 1
    if excess < -1e-12:
        raise ValueError(
            f"alpha_for: `target` must have at least {own:.3g} ||g||^2 of gradient descent of step {float(step):.3g}, "
            f"got {target.squared_norm:.3g}; a step back only adds: take a smaller step, or explicit_strength_for, "
            f"which may be negative"
        )
    alpha = (math.sqrt(1 + 2 * interval * max(excess, 0.0)) - 1) / 2
    _check_variance("alpha_for", target, implicit_strength(Backstitch(step, alpha, interval), sampling))
    return alpha


def step_for(target: Target, sampling: Drawn = _FULL_BATCH) -> float:
    """The step of plain gradient descent that follows the loss of `target`: `h = 4 c`.

    Args:
      target: what another optimizer gave, from `implicit_strength`.
      sampling: of the plain run.

    Returns:
      The step.

    Raises:
      TypeError: as `explicit_strength_for`.
      ValueError: the coefficient is not positive, or the variance cannot be matched as well.

    Example:
      >>> from implicit_reg.strength import HeavyBall, implicit_strength
      >>> round(step_for(implicit_strength(HeavyBall(0.1, 0.5))), 6)
      0.6
    """
    _check("step_for", target, sampling)
    if not target.squared_norm > 0:
        raise ValueError(
            f"step_for: `target` must have a positive coefficient of ||g||^2, got {target.squared_norm:.3g}; every "
            f"step of gradient descent penalizes: use explicit_strength_for, which may be negative"
        )
    step = 4 * target.squared_norm
    _check_variance("step_for", target, implicit_strength(GradientDescent(step), sampling))
    return step
