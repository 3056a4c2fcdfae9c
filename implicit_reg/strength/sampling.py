"""How the minibatches of a step are drawn, and what that makes of their variance."""

from __future__ import annotations

import abc
import dataclasses

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.strength.settings import Method


class Sampling(abc.ABC):
    """How the minibatches of a step are drawn."""

    @property
    @abc.abstractmethod
    def num_batches(self) -> int:
        """Of one epoch."""

    @abc.abstractmethod
    def variance(self, method: Method) -> float:
        """The coefficient of `(1/m) sum_k ||g_k - g||^2`."""


@dataclasses.dataclass(frozen=True)
class FullBatch(Sampling):
    """Every step sees all examples: there is no variance."""

    @property
    def num_batches(self) -> int:
        return 1

    def variance(self, method: Method) -> float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class _Minibatches(Sampling):
    batch_size: Integer
    num_examples: Integer

    def __post_init__(self) -> None:
        name = type(self).__name__
        _checks.check_integer(name, "batch_size", self.batch_size)
        _checks.check_integer(name, "num_examples", self.num_examples)
        if self.num_examples % self.batch_size:
            raise ValueError(
                f"{name}: `batch_size` must divide `num_examples`, got {self.batch_size} and {self.num_examples}; "
                f"where the last minibatch is dropped, pass the number of examples that are left"
            )

    @property
    def num_batches(self) -> int:
        return self.num_examples // self.batch_size


@dataclasses.dataclass(frozen=True)
class Shuffled(_Minibatches):
    """Every epoch takes each minibatch once, in random order; the statement is of the mean over orders.

    Args:
      batch_size: B.
      num_examples: N, a multiple of B.

    Example:
      >>> Shuffled(10, 40).num_batches
      4
    """

    def variance(self, method: Method) -> float:
        return method.shuffled(self.num_batches) + method.parts().within


@dataclasses.dataclass(frozen=True)
class WithReplacement(_Minibatches):
    """Every step draws one of the minibatches anew; the statement is of the mean over draws, within one epoch.

    Args:
      batch_size: B.
      num_examples: N, a multiple of B.
    """

    def variance(self, method: Method) -> float:
        return method.parts().within


def check_sampling(function: str, value: object) -> None:
    if not isinstance(value, Sampling):
        raise TypeError(
            f"{function}: `sampling` must be FullBatch(), Shuffled(...) or WithReplacement(...), got {value!r} of type "
            f"{type(value).__name__}"
        )
