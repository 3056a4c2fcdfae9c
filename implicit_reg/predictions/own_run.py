"""One run of somebody's optimizer, step by step: where the transient ends, what turns back, where kinks are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg.descent import descend
from implicit_reg.flows.empirical import empirical_vector_field
from implicit_reg.predictions import validity
from implicit_reg.predictions.judging import FAILS, HOLDS, ORDER_TOLERANCE, UNMEASURED, worst
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Criterion, Finding
from implicit_reg.predictions.subject import Subject

WINDOW = 160  # steps that are looked at after the memory of the start has ended
NUM_POINTS = 60  # of them, and of those before, at which fields are compared
AT_MOST = 0.5  # what the last term must leave of the distance without it
SETTLED = 1.5  # times the largest distance in the window: below it a transient is over
OPPOSED = 0.1  # share of updates that turn back, from which on there is an oscillation


class Observation(NamedTuple):
    """What was seen along a run from the fresh state, at the finest step size.

    Attributes:
      steps: the numbers of the steps at which fields were compared.
      distances: (number of terms, steps), relative distance of the empirical field to the predicted one.
      flipped: (steps,), the same with the sign of the last term flipped.
      settled: which steps count as after the transient.
      opposed: share of updates, after it, that turn back on the one before.
      roughness: what was seen of kinks in the field, or None.
      finite: whether the run is.
    """

    steps: np.ndarray
    distances: np.ndarray
    flipped: np.ndarray
    settled: np.ndarray
    opposed: float
    roughness: str | None
    finite: bool

    @property
    def first_step(self) -> int | None:
        """From which step on the iterates follow the field as well as they ever do, or None."""
        last = self.distances[-1]
        if not np.all(np.isfinite(last[self.settled])):
            return None
        late = np.flatnonzero(~(last <= SETTLED * last[self.settled].max()))
        return int(self.steps[late[-1] + 1 if late.size else 0])


def observe(subject: Subject) -> Observation:
    """Runs the optimizer from its fresh state and compares the field that the iterates have with the predicted one."""
    h, memory, order = subject.step_sizes[-1], subject.frozen.memory, subject.order
    begin = memory if memory is not None else WINDOW
    # Updates ahead, not central differences: the first of them is seen too.
    num_steps = begin + WINDOW + order + 2
    run = descend(subject.method, subject.problem.loss_fn, subject.problem.params, h, num_steps)
    empirical = empirical_vector_field(run, order + 2)
    half = NUM_POINTS // 2
    steps = np.unique(np.linspace([0, begin], [begin, begin + WINDOW], half).astype(int))
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    points, values = (np.asarray(flat(tree)) for tree in (empirical.points, empirical.values))
    # Not by `compare_fields`, which would compile the common terms once for each truncation.
    terms = np.stack([np.asarray(subject.table(h, float(n), points[n])) for n in steps]) / h
    fields = np.cumsum(terms, axis=1)
    flipped = fields[:, -1] - 2 * terms[:, -1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        size = np.linalg.norm(values[steps], axis=1)
        relative = lambda field: np.linalg.norm(values[steps] - field, axis=1) / size  # noqa: E731
        distances = np.stack([relative(fields[:, p]) for p in range(order)])
    ends = points[[0, -1]]
    return Observation(
        steps=steps,
        distances=distances,
        flipped=relative(flipped),
        settled=steps >= begin,
        opposed=_opposed(np.asarray(flat(run.params))[begin:]),
        roughness=_roughness(subject, ends) if np.all(np.isfinite(ends)) else None,
        finite=bool(np.all(run.finite)),
    )


def _opposed(x: np.ndarray) -> float:
    """The share of updates between the points that make an obtuse angle with the one before."""
    with np.errstate(invalid="ignore", over="ignore"):
        updates = np.diff(x, axis=0)
        return float(np.mean(np.sum(updates[1:] * updates[:-1], axis=1) < 0))


@dataclasses.dataclass(frozen=True, eq=False)
class _Updates(Objective):
    """An update in the place of a gradient, so that kinks are looked for in it."""

    along: Callable | None = None

    @property
    def gradient(self) -> Callable:
        return self.along


def _roughness(subject: Subject, ends: np.ndarray) -> str | None:
    """Kinks of the update at a standstill along the segment that the run spans, those of the gradient included."""
    h, unravel = subject.step_sizes[-1], subject.unravel
    if subject.frozen.memory is None:
        gradient = lambda x: ravel_pytree(jax.grad(subject.problem.loss_fn)(unravel(x)))[0]  # noqa: E731
    else:
        slow = subject.slow(1)
        gradient = lambda x: ravel_pytree(slow.update(h, unravel(x)))[0] / h  # noqa: E731
    updates = _Updates(subject.problem.name, jnp.asarray(ends[0]), subject.problem.loss_fn, along=gradient)
    seen = validity.roughness(updates, *ends)
    return (
        None
        if seen is None
        else seen.replace("the gradient has kinks along the first step", "the update has kinks along the run")
    )


def criterion(observed: Callable[[], Observation], order: int) -> tuple[Criterion, ...]:
    """The last term must bring the predicted field nearer to the iterates' own, step by step.

    Args:
      observed: makes the observation, once.
      order: how many terms; with one there is nothing to compare.
    """
    if order < 2:
        return ()

    def measure() -> Finding:
        seen = observed()
        before, last = seen.distances[-2:]
        with np.errstate(invalid="ignore", divide="ignore"):
            value, mutant = (float(np.median((d / before)[seen.settled])) for d in (last, seen.flipped))
        curves = {f"{p + 1} term{'s' * (p > 0)}": seen.distances[p].tolist() for p in range(order)}
        return Finding(
            value=value,
            bound=AT_MOST,
            mutant=mutant,
            numbers={"first step": seen.first_step, "updates that turn back": seen.opposed},
            series={
                "x": seen.steps.tolist(),
                "xlabel": "step",
                "ylabel": "relative distance of the iterates' field to the predicted one",
                "log": True,
                "curves": curves,
            },
        )

    return (
        Criterion(
            "step by step, from the fresh state",
            f"the last term leaves at most {AT_MOST:g} of the distance between the iterates' own field and the "
            f"predicted one, in the median over {WINDOW} steps after the transient",
            measure,
        ),
    )


def dynamics(subject: Subject, observed: Callable[[], Observation]) -> dict:
    """What was found out about the optimizer on one loss, ready for JSON."""
    found = {
        "loss": subject.problem.name,
        "memory": subject.frozen.memory,
        "clock": bool(subject.clock),
        "period": subject.frozen.period,
        "route": subject.route,
        "objection": subject.objection,
        "first_step": None,
        "opposed": None,
        "roughness": None,
    }
    if subject.objection:
        return found
    seen = observed()
    return found | {"first_step": seen.first_step, "opposed": seen.opposed, "roughness": seen.roughness}


def explain(cases: list[dict], seen: dict, *, derived: bool) -> None:
    """Adds what was seen along the run to the reason of whatever does not hold on that loss.

    Nobody claimed a derived field: where nothing rough was seen and the slopes have not settled, or a wrong last term
    cannot be told from the right one, the step sizes are too large to see an order, and that is what the verdict says.
    """
    words = [] if not seen["roughness"] else [seen["roughness"]]
    if seen["opposed"] and seen["opposed"] > OPPOSED:
        words.append(
            f"{seen['opposed']:.0%} of the updates turn back on the one before: an oscillation, as no flow has"
        )
    for case in cases:
        if case["loss"] != seen["loss"] or case["verdict"] == HOLDS:
            continue
        curves = [c for t in case.get("truncations", ()) for c in (t["one_step"], t["fixed_time"]) if c is not None]
        for judged in curves or [case]:
            if judged["verdict"] != HOLDS and judged["reason"]:
                judged["reason"] = "; ".join([judged["reason"], *(w for w in words if w not in judged["reason"])])
            if derived and curves and judged["verdict"] == FAILS and not words and _unsettled(judged):
                judged["verdict"] = UNMEASURED
                judged["reason"] += "; the slopes have not settled: take smaller step sizes"
        if curves:
            case["verdict"] = worst(curve["verdict"] for curve in curves)


def _unsettled(curve: dict) -> bool:
    *_, before, last = [np.nan, *(np.nan if slope is None else slope for slope in curve["slopes"])]
    return not abs(last - before) <= ORDER_TOLERANCE or not abs(last - (curve["mutant"] or np.nan)) > ORDER_TOLERANCE
