"""The settings that decide how strong implicit regularization is: an optimizer's, and how its minibatches are drawn."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.flows import (
    LinearMemory,
    corrected_age,
    heavy_ball_memory,
    heavy_ball_radius,
    kappa,
    nesterov_memory,
    nesterov_radius,
    stationary_age,
)
from implicit_reg.flows.memory import check_decay


class Parts(NamedTuple):
    """Where a coefficient comes from; minibatches treat the parts differently.

    Attributes:
      effective_step: the time of the flow that one step takes.
      between: the coefficient of `||g||^2` that following gradients make: steps of finite length, and memory.
      within: the coefficient that a step makes of the one minibatch it sees: of the mean of `||g_k||^2`.
      source: key in `references.bib`.
    """

    effective_step: float
    between: float
    within: float
    source: str


def _number(owner: object, name: str, **limits) -> float:
    """The setting of that name as a Python float; JAX scalars are read, and then judged like any number."""
    value, function = getattr(owner, name), type(owner).__name__
    _checks.check_number(function, name, value, **limits)
    value = float(value)
    _checks.check_number(function, name, value, **limits)
    object.__setattr__(owner, name, value)
    return value


class Method(abc.ABC):
    """The settings of an optimizer whose steps follow `L + coefficient ||g||^2`."""

    @abc.abstractmethod
    def parts(self) -> Parts:
        """The effective step and the two parts of the coefficient."""

    @abc.abstractmethod
    def reach(self, curvature: Scalar) -> Scalar:
        """`|h lambda|`, or what stands in its place, over the radius of the series in h."""

    def shuffled(self, num_batches: int) -> float:
        """The coefficient that following gradients make of the variance of `num_batches` shuffled minibatches."""
        raise ValueError(
            f"implicit_strength: no formula is known for {type(self).__name__} on shuffled minibatches; use "
            f"FullBatch(), or GradientDescent, HeavyBall or Backstitch"
        )

    def edge(self) -> float | None:
        """`h lambda/2` at the edge of stability, or None where it is no single number."""
        return None


@dataclasses.dataclass(frozen=True)
class GradientDescent(Method):
    """`optax.sgd(step)`.

    Args:
      step: `h`, positive.

    Example:
      >>> GradientDescent(0.1).parts().between
      0.025
    """

    step: Scalar

    def __post_init__(self) -> None:
        _number(self, "step", low=0, exclusive=True)

    def parts(self) -> Parts:
        return Parts(self.step, self.step / 4, 0.0, "barrett2021")

    def shuffled(self, num_batches: int) -> float:
        return self.step / 4

    def reach(self, curvature: Scalar) -> Scalar:
        return self.step * abs(curvature)

    def edge(self) -> float | None:
        return 1.0


@dataclasses.dataclass(frozen=True)
class _Momentum(Method):
    """A step with a linear memory; the moments of the memory decide."""

    step: Scalar
    decay: Scalar

    def __post_init__(self) -> None:
        _number(self, "step", low=0, exclusive=True)
        check_decay(type(self).__name__, _number(self, "decay", low=0))

    @abc.abstractmethod
    def memory(self) -> LinearMemory:
        """The moments of the weights of past gradients."""

    def parts(self) -> Parts:
        memory = self.memory()
        eta = self.step * memory.mass
        return Parts(eta, eta * memory.delay / 2, 0.0, "ghosh2023")


@dataclasses.dataclass(frozen=True)
class HeavyBall(_Momentum):
    """`optax.sgd(step, momentum=decay)`.

    Args:
      step: `h`, positive.
      decay: `b`, in [0, 1).

    Example:
      >>> HeavyBall(0.1, 0.5).memory().mass
      2.0
    """

    def memory(self) -> LinearMemory:
        return heavy_ball_memory(self.decay)

    def shuffled(self, num_batches: int) -> float:
        return kappa(num_batches, self.decay) * self.step / 4

    def reach(self, curvature: Scalar) -> Scalar:
        return self.step * abs(curvature) / heavy_ball_radius(self.decay)

    def edge(self) -> float | None:
        return 1 + self.decay


@dataclasses.dataclass(frozen=True)
class Nesterov(_Momentum):
    """`optax.sgd(step, momentum=decay, nesterov=True)`.

    Args:
      step: `h`, positive.
      decay: `b`, in [0, 1).

    Example:
      >>> Nesterov(0.1, 0.5).memory().age
      0.5
    """

    def memory(self) -> LinearMemory:
        return nesterov_memory(self.decay)

    def reach(self, curvature: Scalar) -> Scalar:
        return self.step * abs(curvature) / nesterov_radius(self.decay)

    def edge(self) -> float | None:
        return (1 + self.decay) / (1 + 2 * self.decay)


@dataclasses.dataclass(frozen=True)
class Backstitch(Method):
    """`transforms.backstitch(optax.sgd(step), alpha, interval=interval)`.

    Args:
      step: `h`, positive.
      alpha: the length of the step back, at least 0.
      interval: every how many steps.

    Example:
      >>> Backstitch(0.1, 1.0, 4).parts().within
      0.025
    """

    step: Scalar
    alpha: Scalar
    interval: Integer = 1

    def __post_init__(self) -> None:
        _number(self, "step", low=0, exclusive=True)
        _number(self, "alpha", low=0)
        _checks.check_integer("Backstitch", "interval", self.interval)

    def parts(self) -> Parts:
        within = self.alpha * (1 + self.alpha) * self.step / (2 * self.interval)
        return Parts(self.step, self.step / 4, within, "wang2017")

    def shuffled(self, num_batches: int) -> float:
        return self.step / 4

    def reach(self, curvature: Scalar) -> Scalar:
        return (1 + self.alpha) * self.step * abs(curvature)


@dataclasses.dataclass(frozen=True)
class Alternating(Method):
    """`optax.sgd(transforms.alternating(step, ratio * step))`: descends by `e1`, then ascends by `e2 = ratio e1`.

    Args:
      step: `e1`, positive.
      ratio: `e2/e1`, in [0, 1): at 1 a pair does not move along the flow, and that is `flows.flooding_pair_terms`.

    Example:
      >>> Alternating(0.1, 0.5).parts().effective_step                                    # per step, half of a pair's
      0.025
    """

    step: Scalar
    ratio: Scalar

    def __post_init__(self) -> None:
        _number(self, "step", low=0, exclusive=True)
        if not _number(self, "ratio", low=0) < 1:
            raise ValueError(
                f"Alternating: `ratio` must be less than 1, got {self.ratio}; at 1 a pair has no time of its own: see "
                f"flows.flooding_pair_terms"
            )

    def parts(self) -> Parts:
        between = self.step * (1 + self.ratio**2) / (4 * (1 - self.ratio))
        return Parts(self.step * (1 - self.ratio) / 2, between, 0.0, "ishida2020")

    def reach(self, curvature: Scalar) -> Scalar:
        return self.step * abs(curvature)


@dataclasses.dataclass(frozen=True)
class GradientPenalty(Method):
    """`optax.chain(transforms.add_gradient_penalty(strength), optimizer)`; the penalty sees what a step sees.

    Args:
      method: the optimizer's settings.
      strength: `mu` of `mu ||g||^2`; negative is a reward.

    Example:
      >>> GradientPenalty(GradientDescent(0.1), 0.2).parts().within
      0.2
    """

    method: Any
    strength: Scalar

    def __post_init__(self) -> None:
        check_method("GradientPenalty", "method", self.method)
        _number(self, "strength")

    def parts(self) -> Parts:
        inner = self.method.parts()
        return inner._replace(within=inner.within + self.strength)

    def shuffled(self, num_batches: int) -> float:
        return self.method.shuffled(num_batches)

    def reach(self, curvature: Scalar) -> Scalar:
        # The penalized curvature is lambda + 2 mu lambda^2 on a quadratic; this bounds it between the ends as well.
        return self.method.reach(curvature) * (1 + 2 * abs(self.strength) * abs(curvature))


@dataclasses.dataclass(frozen=True)
class Adam:
    """`optax.adam(step, b1, b2)` on the full batch, whose penalty is of the 1-norm.

    Args:
      step: `h`, positive.
      b1, b2: the decays, in [0, 1).
      count: the number n >= 1 of the step, whose memories of a bias-corrected start are younger (`corrected_age`); None
        is long after the start.

    Example:
      >>> [round(age, 3) for age in Adam(1e-3, 0.9, 0.999).ages()]
      [9.0, 999.0]
    """

    step: Scalar
    b1: Scalar = 0.9
    b2: Scalar = 0.999
    count: Integer | None = None

    def __post_init__(self) -> None:
        _number(self, "step", low=0, exclusive=True)
        for name in ("b1", "b2"):
            check_decay("Adam", _number(self, name, low=0))
        if self.count is not None:
            _checks.check_integer("Adam", "count", self.count)

    def ages(self) -> tuple[float, float]:
        """The mean ages of the two memories in steps."""
        if self.count is None:
            return stationary_age(self.b1), stationary_age(self.b2)
        return tuple(float(corrected_age(b, self.count)) for b in (self.b1, self.b2))


def check_method(function: str, argument: str, value: object) -> None:
    if not isinstance(value, Method):
        cure = "; its penalty is of another norm" if isinstance(value, Adam) else ""
        raise TypeError(
            f"{function}: `{argument}` must be settings such as GradientDescent(step), got {value!r} of type "
            f"{type(value).__name__}{cure}"
        )
