"""Momentum: heavy ball, Nesterov's, and moving averages of gradients, in Optax's own implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from implicit_reg.flows import memory as flows
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import (
    Effort,
    Flow,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
    iterates,
    weighted,
)

# The series in h converges for smaller steps the longer the memory. At 1/2 the finest step sizes below lie well inside
# on every loss; at 0.9, the usual setting, they would have to be many times finer, and the runs as much longer.
DECAY = 0.5
SHORT_DECAY = 0.3  # a second one, so that no coefficient is right at one half alone
STEP_SIZES = (0.05, 0.025, 0.0125, 0.00625, 0.003125)
AFTER_TRANSIENT = 2  # records from a zero trace: by the first of them 0.5^n is far below every error


class Kind(NamedTuple):
    """An Optax method with a linear memory: `method(decay)(h)`, its moments, and the radius of its series.

    Attributes:
      method: `decay -> (h -> transformation)`.
      memory: `decay -> moments`.
      trace: the name of the trace in the optimizer's state, and `decay -> its unit`.
      radius: `decay -> largest eta |lambda|` for which the series in h converges.
    """

    method: Callable
    memory: Callable[[float], flows.LinearMemory]
    trace: str
    unit: Callable[[float], float]
    radius: Callable[[float], float]

    def terms(self, objective: Objective, decay: float, order: int = flows.MAX_ORDER) -> Callable:
        """`(h, n, x) -> (F_1, ..., F_order)`, per step."""
        coefficients = flows.memory_coefficients(objective.value, self.memory(decay), order)
        return lambda h, n, x: tuple(h ** (k + 1) * f for k, f in enumerate(coefficients(x)))

    def on_slow_manifold(self, objective: Objective, decay: float, order: int = flows.MAX_ORDER) -> Recurrence:
        """The iterates, with the trace that a long past would have left."""
        trace = flows.slow_trace(objective.value, self.memory(decay), decay, order)

        def state(h, x, fresh):
            return optax.tree.set(fresh, **{self.trace: self.unit(decay) * trace(h, x)})

        return iterates(self.method(decay), objective, state=state)

    def from_zero(self, objective: Objective, decay: float) -> Recurrence:
        """The iterates, as Optax starts them."""
        return iterates(self.method(decay), objective)

    def ghost(self, objective: Objective, decay: float) -> Callable:
        """`(h, x) -> (0, h s_1, h^2 s_2)`: what a truncation of so many terms needs to keep its order."""
        shifts = flows.ghost_shifts(objective.value, self.memory(decay))

        def of(h, x):
            first, second = shifts(x)
            return jnp.zeros_like(x), h * first, h**2 * second

        return of


def _heavy_ball_radius(decay: float) -> float:
    """Of `eta lambda` at which the two roots of heavy ball on a quadratic meet: `(1 - sqrt b)/(1 + sqrt b)`."""
    return (1 - decay**0.5) / (1 + decay**0.5)


HEAVY_BALL = Kind(
    lambda b: lambda h: optax.sgd(h, momentum=b),
    flows.heavy_ball_memory,
    "trace",
    lambda b: 1.0,
    _heavy_ball_radius,
)
NESTEROV = Kind(
    lambda b: lambda h: optax.sgd(h, momentum=b, nesterov=True),
    flows.nesterov_memory,
    "trace",
    lambda b: 1.0,
    lambda b: (1 - b) / (1 + b) ** 2,
)
AVERAGE = Kind(
    lambda b: lambda h: optax.chain(optax.ema(b, debias=False), optax.sgd(h)),
    flows.averaged_memory,
    "ema",
    lambda b: 1 - b,
    _heavy_ball_radius,
)


def _main(kind: Kind, objective: Objective, decay: float, name: str, order: int) -> Orders:
    return Orders(
        name,
        kind.on_slow_manifold(objective, decay),
        flow_of(kind.terms(objective, decay, order)),
        tuple(range(1, order + 1)),
        step_sizes=STEP_SIZES,
    )


def _zero_trace(kind: Kind, objective: Objective, decay: float, name: str) -> Orders:
    return Orders(
        name,
        kind.from_zero(objective, decay),
        flow_of(kind.terms(objective, decay), kind.ghost(objective, decay)),
        (1, 2, 3),
        one_step=False,
        step_sizes=STEP_SIZES,
        num_records=AFTER_TRANSIENT,
    )


def _no_ghost(kind: Kind, objective: Objective, decay: float) -> Orders:
    """The flow from x_0 itself. The mutant, whose last weight is 2, is the right one: it starts at the ghost point."""
    terms, ghost = kind.terms(objective, decay, 2), kind.ghost(objective, decay)
    return Orders(
        "from Optax's zero trace without the ghost start two terms have order 1 only",
        kind.from_zero(objective, decay),
        Flow(
            lambda w, h, n, x: weighted(jnp.minimum(w, 1.0), terms(h, n, x)),
            lambda w, h, x: x + jnp.maximum(w[1] - 1, 0.0) * ghost(h, x)[1],
        ),
        (1, 1),
        one_step=False,
        mutation=(0.9, 2.0),
        step_sizes=STEP_SIZES,
        num_records=AFTER_TRANSIENT,
    )


def _discrete(kind: Kind, objective: Objective, decay: float) -> Orders:
    """One step of size eta without memory, on `L + (eta tau/2) ||grad L||^2`."""
    memory = kind.memory(decay)

    def step(w, h, n, x):
        g, hg = flows.gradient_products(objective.value, x)[:2]
        eta = h * memory.mass
        return x - weighted(w, (eta * g, eta**2 * memory.age * hg))

    return Orders(
        "as discrete steps without memory",
        kind.on_slow_manifold(objective, decay),
        Recurrence(step),
        (1, 2),
        step_sizes=STEP_SIZES,
    )


def _statements(kind: Kind) -> Callable:
    def statements(objective: Objective, effort: Effort):
        found = (_main(kind, objective, DECAY, "", 2 if effort == Effort.QUICK else 3),)
        if effort >= Effort.STANDARD:
            found += (
                _zero_trace(kind, objective, DECAY, "from Optax's zero trace, the flow from the ghost point"),
                _no_ghost(kind, objective, DECAY),
                _discrete(kind, objective, DECAY),
            )
        if effort >= Effort.FULL:
            found += (
                _main(kind, objective, SHORT_DECAY, f"decay {SHORT_DECAY:g}", 3),
                _zero_trace(kind, objective, SHORT_DECAY, f"decay {SHORT_DECAY:g}, from Optax's zero trace"),
            )
        return found

    return statements


def _trust(kind: Kind, radius: str) -> Trust:
    def of(objective, spectrum, h):
        return h * kind.memory(DECAY).mass * spectrum.radius / kind.radius(DECAY)

    return Trust(f"eta max|lambda| over the radius of the series, {radius}", of)


def _row(name: str, title: str, claim: str, kind: Kind, formula: str, radius: str, source: str = "") -> Prediction:
    return Prediction(
        name=name,
        title=title,
        claim=claim,
        formula=formula,
        source=source,
        time_scale=f"eta = {kind.memory(DECAY).mass:g} h per step, at decay b = {DECAY:g}",
        validity=f"eta max|lambda| below 0.3 of the radius {radius}; {kind.radius(DECAY):.3f} at b = {DECAY:g}, "
        f"{kind.radius(0.9):.3f} at b = 0.9, far below the stable step sizes",
        statements=_statements(kind),
        trust=_trust(kind, radius),
    )


ROWS = (
    _row(
        "heavy-ball",
        "Heavy ball (SGD with momentum)",
        "After its transient heavy ball follows the flow of L + (eta/4) (1 + b)/(1 - b) ||grad L||^2 in the time eta "
        "per step, and a third term that is not a gradient.",
        HEAVY_BALL,
        "eta = h/(1 - b): L + (eta/4) (1 + b)/(1 - b) ||g||^2; third term -eta^3 [(c^2 + q) H H g + q T(g, g)], "
        "c = 1/2 + tau, q = c/2 - 1/6 + s2/2",
        "(1 - sqrt b)/(1 + sqrt b)",
        "ghosh2023",
    ),
    _row(
        "nesterov",
        "Nesterov's momentum",
        "After its transient Nesterov's momentum follows the flow of L + (eta/4) (1 - b + 2 b^2)/(1 - b) ||grad L||^2 "
        "in the time eta per step, and a third term that is not a gradient.",
        NESTEROV,
        "eta = h/(1 - b): L + (eta/4) (1 - b + 2 b^2)/(1 - b) ||g||^2; third term as heavy ball's, tau = b^2/(1 - b), "
        "s2 = b^2 (1 + b)/(1 - b)^2",
        "(1 - b)/(1 + b)^2",
    ),
    _row(
        "ema",
        "Moving average of gradients",
        "After its transient descent along a moving average of gradients follows the flow of L + (h/4) (1 + b)/(1 - b) "
        "||grad L||^2 in the time h per step: heavy ball with a step size smaller by 1 - b.",
        AVERAGE,
        "L + (h/4) (1 + b)/(1 - b) ||g||^2; third term as heavy ball's with eta = h",
        "(1 - sqrt b)/(1 + sqrt b)",
    ),
)
