"""The coefficients of the modified loss from an optimizer's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from implicit_reg.strength.sampling import FullBatch, Sampling, WithReplacement, check_sampling
from implicit_reg.strength.settings import Adam, Method, check_method

if TYPE_CHECKING:
    Settings: TypeAlias = Method | Adam
    Drawn: TypeAlias = Sampling
else:
    Settings: TypeAlias = object  # see `_types`
    Drawn: TypeAlias = object


class Strength(NamedTuple):
    """The loss whose gradient flow the iterates follow: `L + squared_norm ||g||^2 + variance (1/m) sum_k ||g_k-g||^2`.

    Attributes:
      effective_step: the time of that flow that one step takes.
      squared_norm: the coefficient of `||grad L||^2`.
      variance: the coefficient of the variance of minibatch gradients.
      example_variance: the coefficient of `(1/N) sum_i ||g_i - g||^2` that this is, averaged over how the examples are
        put into minibatches.
      text: in words.
      source: key in `references.bib`.
    """

    effective_step: float
    squared_norm: float
    variance: float
    example_variance: float
    text: str
    source: str


class OneNormStrength(NamedTuple):
    """Adam's: `L + coefficient sum_i sqrt(g_i^2 + eps_root)` in the metric `1/sqrt(g^2 + eps_root)`. Not `||g||^2`.

    Attributes:
      effective_step: the time of the preconditioned flow `x' = -grad/sqrt(g^2 + eps_root)` that one step takes.
      one_norm: the coefficient where `|g_i|` is far above `sqrt(eps_root)`; negative rewards a large gradient.
      one_norm_small: the coefficient where `|g_i|` is far below it.
      text: in words.
      source: key in `references.bib`.
    """

    effective_step: float
    one_norm: float
    one_norm_small: float
    text: str
    source: str


_FULL_BATCH = FullBatch()


def implicit_strength(method: Settings, sampling: Drawn = _FULL_BATCH) -> Strength | OneNormStrength:
    """What an optimizer penalizes without being asked, to second order in its step.

        x' = -grad( L + squared_norm ||g||^2 + variance (1/m) sum_k ||g_k - g||^2 )

    in the time `effective_step` per step. A part `between` (steps of finite length, memory) and a part `within` a step
    (a penalty, a step back) make it up: `squared_norm` is their sum. The variance gets both from shuffled minibatches
    and the second alone from minibatches drawn with replacement, whose statement is of one epoch: over a longer time
    the covariance of the iterates counts too (`flows.replacement_moments`).

    Args:
      method: `GradientDescent`, `HeavyBall`, `Nesterov`, `Backstitch`, `Alternating`, `GradientPenalty` of one of them,
        or `Adam`.
      sampling: `FullBatch`, `Shuffled` or `WithReplacement`.

    Returns:
      A `Strength`; for Adam a `OneNormStrength`, of another norm and therefore of another type.

    Raises:
      TypeError: an argument is something else.
      ValueError: no formula is known for the two together.

    Example:
      >>> from implicit_reg.strength import HeavyBall, Shuffled
      >>> strength = implicit_strength(HeavyBall(0.1, 0.5), Shuffled(10, 20))
      >>> [round(value, 4) for value in strength[:4]]
      [0.2, 0.15, 0.025, 0.0013]

    References:
      [barrett2021], [smith2021], [ghosh2023], [wang2017], [cattaneo2024]; momentum and backstitch on minibatches were
      derived here.
    """
    check_sampling("implicit_strength", sampling)
    if isinstance(method, Adam):
        return _adam(method, sampling)
    check_method("implicit_strength", "method", method)
    parts = method.parts()
    full, variance = parts.between + parts.within, sampling.variance(method)
    per_example = 0.0
    text = f"{parts.effective_step:.3g} of flow time per step on L + {full:.3g} ||grad L||^2"
    if not isinstance(sampling, FullBatch):
        n, b = sampling.num_examples, sampling.batch_size
        per_example = variance * (n - b) / ((n - 1) * b) if n > 1 else 0.0
        text += f" + {variance:.3g} times the variance of {sampling.num_batches} minibatch gradients"
    if isinstance(sampling, WithReplacement):
        text += ", within one epoch"
    return Strength(parts.effective_step, full, variance, per_example, text, parts.source)


def _adam(method: Adam, sampling: Sampling) -> OneNormStrength:
    if not isinstance(sampling, FullBatch):
        raise ValueError(
            f"implicit_strength: `sampling` must be FullBatch() for Adam, got {sampling!r}; with minibatches no flow "
            f"in the mean gradient is known"
        )
    first, second = method.ages()
    # Cattaneo's (1+b1)/(1-b1) - (1+b2)/(1-b2) is twice the difference of the ages; below eps_root the second one goes.
    large, small = method.step * (first - second), method.step * (0.5 + first)
    text = f"{method.step:.3g} of preconditioned flow time per step on L {large:+.3g} ||grad L||_1: " + (
        "the memory rewards a large gradient" if large < 0 else "the memory penalizes the gradient"
    )
    return OneNormStrength(method.step, large, small, text, "cattaneo2024")
