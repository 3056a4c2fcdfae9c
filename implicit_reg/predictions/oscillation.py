"""The measurements behind the central flow's row: an oscillating optimizer beside what its time average should do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.descent import optimizer_step
from implicit_reg.flows import central
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Criterion, Effort, Finding

HEADROOM = 1.25  # how far above the sharpness of the settled start the edge is put
SETTLING = 0.1  # sharpness over the edge at the very start, for NUM_STEPS steps
WINDOW = 20  # steps of the moving average, on iterates and flow alike; even, for the oscillation has period 2
NUM_STEPS = 300
NUM_MODES = 2  # eigenpairs followed where several may become critical; one compiles in half the time
SEVERAL = "edge-valley-2"
DISTANCE = 0.5  # of the nearer of the flows without oscillation
AVERAGES = 0.1  # relative, of time-averaged loss and variance
PERSISTS = 0.25  # the oscillation persists where no window's variance falls below this fraction of the mean one

STABLE, SECOND, FLIPPED = central.Weights(0.0), central.Weights(0.0, 1.0), central.Weights(-1.0)


@dataclasses.dataclass(frozen=True)
class Oscillator:
    """An optimizer and what its central flow has to know of it.

    Attributes:
      edge: for the flow.
      method: `h -> transformation`.
      state: `(fresh state, memory, gradient, P amplitude) -> state` of iterates that oscillate already.
    """

    edge: central.EdgeOptimizer
    method: Callable[[Any], optax.GradientTransformation]
    state: Callable[..., Any] = lambda fresh, memory, gradient, kick: fresh


GRADIENT_DESCENT = Oscillator(central.edge_gradient_descent(), optax.sgd)


def _momentum(beta: float, nesterov: bool) -> Oscillator:
    edge = (central.edge_nesterov if nesterov else central.edge_heavy_ball)(beta)
    return Oscillator(
        edge,
        lambda h: optax.sgd(h, momentum=beta, nesterov=nesterov),
        # m_{n+1} = b m_n + H d (-1)^n has m_0 = -H d/(1 + b), and H d = kappa P d.
        lambda fresh, memory, gradient, kick: optax.tree_utils.tree_set(
            fresh, trace=gradient / (1 - beta) - edge.critical * kick / (1 + beta)
        ),
    )


def _rmsprop(decay: float) -> Oscillator:
    return Oscillator(
        central.edge_rmsprop(decay),
        lambda h: optax.rmsprop(h, decay=decay, eps=0.0, eps_in_sqrt=False),
        lambda fresh, memory, gradient, kick: optax.tree_utils.tree_set(fresh, nu=memory),
    )


def _adam(b1: float, b2: float) -> Oscillator:
    edge = central.edge_adam(b1, b2)
    return Oscillator(
        edge,
        # Bias correction is a transient, and its factors are 1 at a large count.
        lambda h: optax.adam(h, b1=b1, b2=b2, eps=0.0),
        lambda fresh, memory, gradient, kick: optax.tree_utils.tree_set(
            fresh,
            count=jnp.asarray(10**6, jnp.int32),
            mu=gradient - (1 - b1) / (1 + b1) * edge.critical * kick,
            nu=memory,
        ),
    )


def scale_by_norm(decay: float, start: Any) -> optax.GradientTransformation:
    """RMSProp with one number for all parameters, the moving average of `||g||^2`: Optax has no such thing."""

    def update(updates, state, params=None):
        nu = decay * state + (1 - decay) * optax.tree_utils.tree_norm(updates, squared=True)
        return jax.tree.map(lambda g: g / jnp.sqrt(nu), updates), nu

    return optax.GradientTransformation(lambda params: jnp.asarray(start), update)


def _scalar_rmsprop(decay: float) -> Oscillator:
    return Oscillator(
        central.edge_scalar_rmsprop(decay),
        lambda h: optax.chain(scale_by_norm(decay, 0.0), optax.scale(-h)),
        lambda fresh, memory, gradient, kick: (memory[0], *fresh[1:]),
    )


OTHERS = {
    "heavy ball": _momentum(0.5, False),
    "Nesterov": _momentum(0.5, True),
    "scalar RMSProp": _scalar_rmsprop(0.99),
    "RMSProp": _rmsprop(0.99),
    "Adam": _adam(0.5, 0.99),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """The iterates of an oscillator from the edge on, and the flows that start with them.

    Attributes:
      h: the step size, from `HEADROOM`.
      reached: when the flow without oscillation comes to the edge, where all start; None where it does not.
      iterates, losses: (n + 1, d) and (n + 1,).
      flows: by name: "central", "stable", "second" and "flipped".
    """

    h: float
    reached: int | None
    iterates: np.ndarray
    losses: np.ndarray
    flows: dict[str, central.CentralFlow]

    @property
    def variances(self) -> np.ndarray:
        """`||x_{n+1} - x_n||^2/4`: what an oscillation of period 2 about a slow mean has for `tr Sigma`."""
        return np.sum(np.diff(self.iterates, axis=0) ** 2, axis=1) / 4

    @property
    def persists(self) -> bool:
        """Whether no window's variance falls below `PERSISTS` of the mean."""
        return bool(np.min(smooth(self.variances)) > PERSISTS * np.mean(self.variances))

    def distances(self, name: str) -> np.ndarray:
        """Of the averaged iterates from an averaged flow."""
        return np.linalg.norm(smooth(self.iterates) - smooth(self.flows[name].params), axis=1)


def smooth(values: np.ndarray) -> np.ndarray:
    """The moving average over `WINDOW` steps, along the first axis."""
    sums = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0)
    return (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW


@functools.lru_cache(maxsize=8)
def study(objective: Objective, oscillator: Oscillator, *, prepared: bool, num_modes: int) -> Study:
    """Runs an oscillator from the edge on; `prepared` starts its iterates off the mean by the predicted amplitude."""
    edge, with_memory = oscillator.edge, oscillator.edge.memory is not None

    def flow(x, h, weights, memory=None):
        found = central.central_flow(
            objective.value, edge, x, h, NUM_STEPS, memory=memory, num_modes=num_modes, weights=weights
        )
        return jax.tree.map(np.asarray, found)

    # The sharpness over the edge is proportional to h, so any run tells which h puts it where. The first, small steps
    # leave the violent beginning behind: momentum at full length would jump out of it.
    never = Study(float("nan"), None, np.empty((0, 0)), np.empty(0), {})
    settled = flow(objective.start, float(SETTLING / flow(objective.start, 1.0, STABLE).sharpness[0, 0]), STABLE)
    x, memory = settled.params[-1], settled.memory[-1]
    h = float(1 / (HEADROOM * flow(x, 1.0, STABLE, memory).sharpness[0, 0])) if np.all(np.isfinite(x)) else np.nan
    if not np.isfinite(h) or h <= 0:  # the flow left every valley, or there is no positive curvature
        return never
    before = flow(x, h, STABLE, memory)
    beyond = before.sharpness[:, 0] >= 1
    if not np.any(beyond):
        return dataclasses.replace(never, h=h)
    reached = int(np.argmax(beyond))
    x, memory = before.params[reached], before.memory[reached]
    kinds = {"central": central.PLAIN, "stable": STABLE, "flipped": FLIPPED}
    if oscillator is GRADIENT_DESCENT:  # with momentum its stiffness is beyond the substeps
        kinds["second"] = SECOND
    flows = {name: flow(x, h, weights, memory) for name, weights in kinds.items()}
    # Of the first whole step: at the first substep the curvature may still be below the edge.
    amplitude = flows["central"].amplitude[1] if prepared else np.zeros_like(x)

    @jax.jit
    def run(x, memory, amplitude, h):
        p = jnp.ones_like(x) / h if not with_memory else (jnp.sqrt(memory) + edge.eps) / h
        method = oscillator.method(h)
        fresh = optax.with_extra_args_support(method).init(x)
        start = (x + amplitude, oscillator.state(fresh, memory, objective.gradient(x), p * amplitude))

        def step(carry, _):
            return optimizer_step(method, objective.value, *carry), (carry[0], objective.value(carry[0]))

        return jax.lax.scan(step, jax.tree.map(jnp.asarray, start), length=NUM_STEPS + 1)[1]

    iterates, losses = (np.asarray(found) for found in run(x, memory, amplitude, h))
    return Study(h, reached, iterates, losses, flows)


def _unmeasured(found: Study, why: str) -> Finding:
    return Finding(float("nan"), 0.0, float("nan"), numbers={"h": found.h, "reason": why})


NOT_REACHED = f"the sharpness does not reach {HEADROOM:g} times that of the settled start in {NUM_STEPS} steps"
NOT_PERSISTENT = "the oscillation dies out between bursts"


def _distance(found: Study) -> Finding:
    if found.reached is None:
        return _unmeasured(found, NOT_REACHED)
    mean = {name: float(np.mean(found.distances(name))) for name in found.flows}
    # The flow with the wrong sign starts with the others and may run away: then it is infinitely far.
    wrong = mean["flipped"] if np.isfinite(mean["flipped"]) else np.inf
    nearest = min(mean[name] for name in ("stable", "second") if name in mean)
    flow = found.flows["central"]
    return Finding(
        mean["central"] / nearest,
        DISTANCE,
        wrong / nearest,
        numbers={
            "h": found.h,
            "reached the edge at step": found.reached,
            "distance": mean,
            "sharpness over the edge, central": float(flow.sharpness[-1, 0]),
            "sharpness over the edge, stable": float(found.flows["stable"].sharpness[-1, 0]),
            "critical directions at the end": int(np.sum(flow.sharpness[-1] > central.NEAR)),
            "loss, measured over predicted": float(np.mean(found.losses) / np.mean(flow.predicted_loss)),
            "variance, measured over predicted": float(np.mean(found.variances) / np.mean(flow.variance)),
            "persists": found.persists,
        },
        series=_picture(found),
    )


def _picture(found: Study) -> dict:
    flow = found.flows["central"]
    curves = {
        "iterates": found.losses,
        "iterates, averaged": np.concatenate([np.full(WINDOW // 2, np.nan), smooth(found.losses)])[: NUM_STEPS + 1],
        "central flow, predicted average": flow.predicted_loss,
        "central flow": flow.loss,
        "flow without oscillation": found.flows["stable"].loss,
    }
    padded = {name: np.pad(c, (0, NUM_STEPS + 1 - len(c)), constant_values=np.nan) for name, c in curves.items()}
    return {
        "x": list(range(NUM_STEPS + 1)),
        "xlabel": "step from the edge on",
        "ylabel": "loss",
        "log": True,
        "curves": {name: [float(v) for v in c] for name, c in padded.items()},
    }


def _averages(found: Study, kind: str) -> Finding:
    if found.reached is None:
        return _unmeasured(found, NOT_REACHED)
    if not found.persists:
        return _unmeasured(found, NOT_PERSISTENT)
    flow = found.flows["central"]
    if kind == "loss":
        measured, predicted, wrong = found.losses, flow.predicted_loss, flow.loss
    else:
        # Without the half step: the variance of one mode is twice as large, were the oscillation not of period 2.
        measured, predicted, wrong = found.variances, flow.variance, flow.variance / 2
    measured = float(np.mean(measured))
    error, mutant = (abs(float(np.mean(p)) - measured) / measured for p in (predicted, wrong))
    return Finding(error, AVERAGES, mutant, numbers={"measured": measured, "predicted": float(np.mean(predicted))})


def _held(objective: Objective, found: Study) -> Finding:
    """The sharpness at the averaged iterates, in units of the edge."""
    if found.reached is None:
        return _unmeasured(found, NOT_REACHED)
    points = smooth(found.iterates)[:: NUM_STEPS // 10]
    largest = jax.jit(lambda x: jnp.linalg.eigvalsh(jax.hessian(objective.value)(x))[-1] * found.h / 2)
    edge = np.array([float(largest(jnp.asarray(x))) for x in points])
    free = found.flows["stable"].sharpness[WINDOW :: NUM_STEPS // 10, 0]
    return Finding(
        float(np.mean(np.abs(edge - 1))),
        0.02,
        float(np.mean(np.abs(free - 1))),
        numbers={"averaged iterates": list(edge), "flow without oscillation": list(free)},
        series={
            "x": [int(n) for n in range(0, len(points) * (NUM_STEPS // 10), NUM_STEPS // 10)],
            "xlabel": "step from the edge on",
            "ylabel": "sharpness over the edge",
            "log": False,
            "curves": {
                "averaged iterates": list(edge),
                "flow without oscillation": list(free[: len(points)]),
                "central flow": list(found.flows["central"].sharpness[WINDOW :: NUM_STEPS // 10, 0][: len(points)]),
            },
        },
    )


def oscillation_statements(objective: Objective, effort: Effort) -> Sequence[Criterion]:
    """The statements of the central flow's row."""
    closer = (
        f"the iterates, averaged over {WINDOW} steps, stay within {DISTANCE:g} of the distance to the nearest flow "
        "without oscillation; with the sign of Sigma flipped they do not"
    )

    def of(oscillator: Oscillator, prepared: bool) -> Study:
        several = objective.name == SEVERAL or oscillator is not GRADIENT_DESCENT
        num_modes = min(NUM_MODES, objective.start.size) if several else 1
        return study(objective, oscillator, prepared=prepared, num_modes=num_modes)

    main = Criterion("", closer, lambda: _distance(of(GRADIENT_DESCENT, True)))
    if objective.name == SEVERAL:
        # The second direction comes to the edge later and unprepared: its oscillation grows in bursts, of which
        # averages over a run say nothing.
        return (main,) if effort >= Effort.STANDARD else ()
    statements = [main]
    if effort >= Effort.STANDARD:
        statements += [
            Criterion(
                "sharpness",
                "at the averaged iterates the sharpness is on average within 2 % of the edge; on the flow without "
                "oscillation it is not",
                lambda: _held(objective, of(GRADIENT_DESCENT, True)),
            ),
            Criterion(
                "time-averaged loss",
                f"within {AVERAGES:.0%} of L + 0.5 <Sigma, H>, and not of L, where the oscillation persists",
                lambda: _averages(of(GRADIENT_DESCENT, True), "loss"),
            ),
            Criterion(
                "variance of the oscillation",
                f"within {AVERAGES:.0%} of tr Sigma, and not of half of it, where the oscillation persists",
                lambda: _averages(of(GRADIENT_DESCENT, True), "variance"),
            ),
        ]
    # Not on a valley in closed form: at its bottom the gradient across is exactly zero, so that no oscillation ever
    # starts and a memory of squares of it is zero.
    if effort >= Effort.STANDARD and objective.num_examples is not None:
        statements.append(
            Criterion("without a prepared oscillation", closer, lambda: _distance(of(GRADIENT_DESCENT, False)))
        )
    if effort >= Effort.FULL and objective.num_examples is not None:
        statements += [
            Criterion(name, closer, lambda oscillator=oscillator: _distance(of(oscillator, True)))
            for name, oscillator in OTHERS.items()
        ]
    return tuple(statements)
