"""What a prediction is made of: dynamics, the field or discrete equivalent said to follow them, orders, validity.

A row of the table is a `Prediction`. On a loss it makes statements: `Orders`, whose errors vanish at predicted orders
of the step size, and `Criterion`, a number with a bound fixed beforehand. Both carry a mutation that must fail.

Conventions: vectors are flat and float64; `n` counts units (one step, pair or epoch) and `h` is the step size, so that
`t = n h`; fields are per unit, powers of `h` included; `w` holds one weight for each term of a truncation. `w`, `h` and
`n` are traced: one compiled program serves all truncations, mutants and step sizes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float

from implicit_reg.descent import optimizer_step
from implicit_reg.predictions.objective import Objective, Spectrum, Vector

MUTATION = 1.1  # the factor on the last term with which a check must fail
STEP_SIZES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
TIME = 0.5


class Effort(enum.IntEnum):
    """How much is run: the presets of `verify`."""

    QUICK = 0
    STANDARD = 1
    FULL = 2


def _from_start(w: Any, h: Any, x: Any) -> Any:
    return x


def _itself(y: Any) -> Any:
    return y


class Flow(NamedTuple):
    """Continuous dynamics `dy/dn = field(w, h, n, y)`, started at `start(w, h, x)` and read by `read`.

    `field` is linear in the weights `w` of its terms. `y` may be any pytree; what is compared is the vector `read(y)`.
    """

    field: Callable[..., Any]
    start: Callable[..., Any] = _from_start
    read: Callable[[Any], Vector] = _itself


class Recurrence(NamedTuple):
    """Discrete dynamics `y_{n+1} = step(w, h, n, y_n)`: the iterates, which ignore `w`, or a discrete equivalent."""

    step: Callable[..., Any]
    start: Callable[..., Any] = _from_start
    read: Callable[[Any], Vector] = _itself


Terms = Callable[[Any, Any, Vector], Sequence[Vector]]


def weighted(w: Float[Array, " p"], terms: Sequence[Vector]) -> Vector:
    """`sum_k w_k F_k`."""
    return sum(w[k] * term for k, term in enumerate(terms))


def flow_of(terms: Terms, ghost: Callable[[Any, Vector], Sequence[Vector]] | None = None) -> Flow:
    """The flow of `dx/dn = sum_k w_k F_k(x)`.

    Args:
      terms: `(h, n, x) -> (F_1, ..., F_P)`, per unit, powers of `h` included.
      ghost: `(h, x) -> (G_1, ..., G_P)`: the flow starts at `x + sum_k w_k G_k`, where iterates without a history
        seem to come from; None starts at `x`.
    """
    start = _from_start if ghost is None else lambda w, h, x: x + weighted(w, ghost(h, x))
    return Flow(lambda w, h, n, x: weighted(w, terms(h, n, x)), start)


def iterates(
    method: Callable[[Any], optax.GradientTransformation],
    objective: Objective,
    *,
    num_steps: int = 1,
    state: Callable[[Any, Vector, Any], Any] | None = None,
) -> Recurrence:
    """The iterates of an Optax method on the full-batch loss; one unit is `num_steps` steps.

    Args:
      method: `h -> transformation`.
      objective: the loss.
      num_steps: steps in a unit.
      state: `(h, x, fresh) -> the optimizer's state to start from`, for example one on the slow manifold; None starts
        from the fresh one.
    """

    def start(w, h, x):
        fresh = optax.with_extra_args_support(method(h)).init(x)
        return x, fresh if state is None else state(h, x, fresh)

    def step(w, h, n, y):
        for _ in range(num_steps):
            y = optimizer_step(method(h), objective.value, *y)
        return y

    return Recurrence(step, start, lambda y: y[0])


class Orders(NamedTuple):
    """A statement with an order: the distance of `iterates` and `reference` vanishes as `h^expected[p-1]` with p terms.

    Attributes:
      name: empty for the main statement of a row, else a few words.
      iterates: what is run.
      reference: what is said to follow it.
      expected: the order at fixed time with 1, 2, ..., P terms; after one unit it must be one more.
      one_step: whether the error after one unit is judged too (not where a transient comes first).
      mutation: the factor on the last weight of every truncation, or one factor each, with which the check must fail.
      step_sizes: decreasing; each divides `time / num_records`. The last two decide.
      time: `n h` at the end.
      num_records: the error at fixed time is the largest over so many equidistant times.
    """

    name: str
    iterates: Recurrence
    reference: Flow | Recurrence
    expected: tuple[float, ...]
    one_step: bool = True
    mutation: float | tuple[float, ...] = MUTATION
    step_sizes: tuple[float, ...] = STEP_SIZES
    time: float = TIME
    num_records: int = 5


class Finding(NamedTuple):
    """What a criterion measured.

    Attributes:
      value: the number that is judged.
      bound: what it is held against.
      mutant: the same number of a wrong prediction (sign flipped, another comparator); it must violate the bound.
      at_most: whether `value` must lie below the bound, or above.
      numbers: further numbers for the report.
      series: a picture: `x`, `xlabel`, `ylabel`, `log` and `curves`, label to values.
    """

    value: float
    bound: float
    mutant: float
    at_most: bool = True
    numbers: Mapping[str, Any] = MappingProxyType({})
    series: Mapping[str, Any] | None = None


class Criterion(NamedTuple):
    """A statement without an order; `wanted` says in words what was fixed before the measurement."""

    name: str
    wanted: str
    measure: Callable[[], Finding]


@dataclasses.dataclass(frozen=True)
class Trust:
    """The number that says whether the theory speaks: below 0.3 it does, from 0.8 on it does not.

    Attributes:
      quantity: what it is, in words.
      of: `(objective, spectrum, h) -> x`.
    """

    quantity: str
    of: Callable[[Objective, Spectrum, float], float]


SMALL_STEPS = Trust("h max|lambda|", lambda objective, spectrum, h: h * spectrum.radius)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One row: a claim about discrete training dynamics, and how to put it to the test.

    Attributes:
      name: as on the command line.
      title: as in a heading.
      claim: one sentence.
      formula: the field or the discrete equivalent, in one line.
      source: key in `references.bib`, or "" where the formula was derived here.
      time_scale: what one unit is, in words.
      validity: where the claim speaks, in words.
      statements: `(objective, effort) -> statements`; the first is the main one.
      losses: names of problems, at least two that are not quadratic.
      trust: the number behind `validity`.
    """

    name: str
    title: str
    claim: str
    formula: str
    source: str
    time_scale: str
    validity: str
    statements: Callable[[Objective, Effort], Sequence[Orders | Criterion]]
    losses: tuple[str, ...] = ("digits-tanh", "nonquadratic")
    trust: Trust = SMALL_STEPS
