"""The engine: runs what a row states, on every loss, and judges it.

For each statement with an order two programs are compiled, the discrete dynamics and their reference; weights, step
sizes and the numbers of units are operands, so that all truncations, mutants and step sizes share them. Nearly all of
the time is compilation.
"""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg import _checks, _tree
from implicit_reg.predictions import judging, solver, validity
from implicit_reg.predictions.judging import FAILS, UNMEASURED, judge, judge_number, number, worst
from implicit_reg.predictions.objective import Objective, flatten
from implicit_reg.predictions.prediction import Criterion, Effort, Flow, Orders, Prediction, Recurrence, Trust
from implicit_reg.problems import Problem

QUICK_STEP_SIZES = 3  # the coarser step sizes are for the eye; quick does without

Report = Callable[[str], None]


def check(
    row: Prediction,
    problems: Sequence[Problem],
    effort: Effort = Effort.QUICK,
    *,
    step_sizes: Sequence[float] | None = None,
    time: float | None = None,
    report: Report = lambda _: None,
) -> dict:
    """Puts one prediction to the test on several losses.

    Args:
      row: the prediction.
      problems: the losses, with float64 parameters (built under `jax.enable_x64(True)`).
      effort: how many statements and step sizes.
      step_sizes, time: instead of those of the statements; every step size must divide the time of a record.
      report: told in a few words what begins, for a progress bar; called once for each loss.

    Returns:
      A dict ready for JSON: `name`, `verdict`, `expected` and `measured` (the fixed-time orders of the main statement,
      on the loss that deviates most), `criterion` and `details` with every number of every case. NaN becomes None.

    Raises:
      ValueError: no problem is given, its parameters are not float64, or the step sizes are unusable.

    Example:
      >>> import jax
      >>> from implicit_reg import predictions, problems
      >>> with jax.enable_x64(True):
      ...     problem = problems.load_problem("nonquadratic", dtype="float64")
      >>> predictions.check(predictions.find("gd"), [problem])["verdict"]
      'holds'
    """
    if not problems:
        raise ValueError("check: `problems` must hold at least one problem")
    started, cases = clock.monotonic(), []
    with jax.enable_x64(True):
        for problem in problems:
            report(f"{row.name} on {problem.name}")
            objective = flatten(problem)
            cases += [
                _case(row, statement, objective, effort, step_sizes, time)
                for statement in row.statements(objective, effort)
            ]
    main = [case for case in cases if case["statement"] == "" and case["kind"] == "order"]
    expected, measured = _headline(main)
    return {
        "name": row.name,
        "verdict": worst(case["verdict"] for case in cases),
        "expected": expected,
        "measured": measured,
        "criterion": (
            f"on the finest pair of step sizes every order lies within {judging.ORDER_TOLERANCE} of the expected one, "
            "every number on its side of a bound fixed beforehand, and a wrong prediction does not"
        ),
        "wall_seconds": round(clock.monotonic() - started, 2),
        "details": {
            "title": row.title,
            "claim": row.claim,
            "formula": row.formula,
            "source": row.source,
            "time_scale": row.time_scale,
            "validity": row.validity,
            "cases": cases,
        },
    }


def check_applicable(
    row: Prediction,
    problems: Sequence[Problem],
    effort: Effort,
    *,
    step_sizes: Sequence[float] | None = None,
    time: float | None = None,
) -> None:
    """Whether the row can be put to the test on these losses, found out before anything is run.

    Raises:
      TypeError, ValueError: it cannot: a loss without examples for a stochastic prediction, parameters that are not
        float64, step sizes that do not meet the records.
    """
    with jax.enable_x64(True):
        for problem in problems:
            for statement in row.statements(flatten(problem), effort):
                if isinstance(statement, Orders):
                    statement = _with_settings(statement, effort, step_sizes, time)
                    check_step_sizes(statement.step_sizes, statement.time, statement.num_records)


def _headline(main: Sequence[dict]) -> tuple[list[float | int], list[float | None]]:
    """Expected and measured orders at fixed time, each on the loss that deviates most or could not be measured."""
    if not main:
        return [], []
    expected = [truncation["fixed_time"]["expected"] for truncation in main[0]["truncations"]]
    measured = []
    for k, order in enumerate(expected):
        found = [case["truncations"][k]["fixed_time"]["measured"] for case in main]
        measured.append(None if None in found else max(found, key=lambda slope, order=order: abs(slope - order)))
    return expected, measured


def _case(row: Prediction, statement, objective: Objective, effort: Effort, step_sizes, time) -> dict:
    head = {"statement": statement.name, "loss": objective.name, "num_params": int(objective.start.size)}
    if isinstance(statement, Criterion):
        return {"kind": "criterion", **head, **_judged_criterion(statement)}
    statement = _with_settings(statement, effort, step_sizes, time)
    return {"kind": "order", **head, **_judged_orders(statement, objective, row.trust)}


def _with_settings(statement: Orders, effort: Effort, step_sizes, time) -> Orders:
    """The statement with the step sizes and the time asked for; quick does without the coarser step sizes."""
    if step_sizes is not None:
        statement = statement._replace(step_sizes=tuple(float(h) for h in step_sizes))
    elif effort == Effort.QUICK:
        statement = statement._replace(step_sizes=statement.step_sizes[-QUICK_STEP_SIZES:])
    return statement if time is None else statement._replace(time=float(time))


def _judged_criterion(statement: Criterion) -> dict:
    found = statement.measure()
    verdict, reason = judge_number(float(found.value), float(found.bound), float(found.mutant), found.at_most)
    return {
        "verdict": verdict,
        "wanted": statement.wanted,
        "value": number(found.value),
        "bound": number(found.bound),
        "at_most": bool(found.at_most),
        "mutant": number(found.mutant),
        "reason": reason,
        "numbers": {name: _plain(value) for name, value in found.numbers.items()},
        "series": None if found.series is None else _plain(dict(found.series)),
    }


def _plain(value: Any) -> Any:
    """Lists, floats and text for JSON; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if np.ndim(value):
        return [_plain(item) for item in np.asarray(value)]
    return number(value)


def check_step_sizes(step_sizes: Sequence[float], time: float, num_records: int) -> None:
    """At least two step sizes, decreasing, well apart, each of which meets the records.

    Raises:
      TypeError, ValueError: they are not.
    """
    h = _checks.check_vector("verify", "step_sizes", step_sizes)
    if h.size < 2 or not (np.all(np.isfinite(h)) and np.all(h > 0) and np.all(np.diff(h) < 0)):
        raise ValueError(
            f"verify: `step_sizes` must hold at least two positive numbers, strictly decreasing, got "
            f"{tuple(step_sizes)}"
        )
    if not h[-2] / h[-1] >= 1.2:
        raise ValueError(
            f"verify: the two finest `step_sizes` must differ by a factor of at least 1.2, for a slope between nearer "
            f"ones is noise; got {h[-2]:g} and {h[-1]:g}"
        )
    _checks.check_number("verify", "time", time, low=0, exclusive=True)
    for step in h:
        count = time / num_records / step
        if not (round(count) >= 1 and math.isclose(count, round(count), rel_tol=1e-9)):
            raise ValueError(
                f"verify: every step size must divide time/num_records={time / num_records:g} a whole number of times, "
                f"got {step:g}"
            )


def _judged_orders(statement: Orders, objective: Objective, trust: Trust) -> dict:
    check_step_sizes(statement.step_sizes, statement.time, statement.num_records)
    step_sizes, num_terms = statement.step_sizes, len(statement.expected)
    factors = np.broadcast_to(np.asarray(statement.mutation, np.float64), (num_terms,))
    run, follow = program(statement.iterates, objective), program(statement.reference, objective)
    errors, mutants, advances = (np.full((len(step_sizes), num_terms, 2), np.nan) for _ in range(3))
    for i, h in enumerate(step_sizes):
        per_record = round(statement.time / statement.num_records / h)
        counts = np.concatenate([[1], per_record * np.arange(1, statement.num_records + 1)])
        discrete = run(np.ones(num_terms), h, counts)
        before = (
            np.broadcast_to(objective.start, discrete.shape) if objective.start.shape == discrete.shape[1:] else None
        )
        for p in range(num_terms):
            right = np.where(np.arange(num_terms) <= p, 1.0, 0.0)
            wrong = right.copy()
            wrong[p] = factors[p]
            found = follow(right, h, counts)
            errors[i, p] = _distances(discrete, found)
            if i >= len(step_sizes) - 2:  # the pair whose slope is judged
                mutants[i, p] = _distances(discrete, follow(wrong, h, counts))
            advances[i, p] = _distances(found, before) if before is not None else np.nan
            before = found
    floor = solver.TOLERANCE * max(1.0, float(jnp.linalg.norm(objective.start)))
    measures = validity.measure(statement, objective, trust, errors[..., 0], advances[..., 0], floor)
    truncations = []
    for p, expected in enumerate(statement.expected):
        curves = {
            "one_step": judge(step_sizes, errors[:, p, 0], mutants[:, p, 0], expected + 1, floor)
            if statement.one_step
            else None,
            "fixed_time": judge(step_sizes, errors[:, p, 1], mutants[:, p, 1], expected, floor),
        }
        truncations.append({"terms": p + 1, **curves})
    curves = [curve for t in truncations for curve in (t["one_step"], t["fixed_time"]) if curve is not None]
    _explain(curves, measures, objective, run, step_sizes, num_terms)
    return {
        "verdict": worst(curve["verdict"] for curve in curves),
        "h": list(step_sizes),
        "time": statement.time,
        "floor": floor,
        "truncations": truncations,
        "validity": measures,
    }


def _explain(curves: list[dict], measures: dict, objective: Objective, run, step_sizes, num_terms: int) -> None:
    """A failure outside of the theory's range, or on a loss with kinks, is told apart from a wrong prediction."""
    failed = [curve for curve in curves if curve["verdict"] == FAILS]
    puzzling = failed + [curve for curve in curves if curve["reason"] == judging.DIVERGED]
    if not puzzling:
        return
    if measures["band"] in ("unreliable", "beyond"):
        for curve in failed:
            curve["verdict"] = UNMEASURED
            curve["reason"] += (
                f"; but {measures['quantity']} is {measures['x'][-1]:.2g}, where the theory does not speak"
            )
        return
    after = run(np.ones(num_terms), step_sizes[0], np.array([1]))
    seen = (
        validity.roughness(objective, np.asarray(objective.start), after[0])
        if after.shape[1:] == objective.start.shape
        else None
    )
    if seen:
        for curve in puzzling:
            curve["reason"] += f"; {seen}"


def program(dynamics: Flow | Recurrence, objective: Objective) -> Callable[..., np.ndarray]:
    """`(w, h, counts) -> what is read after so many units each`; one compilation serves all of them."""
    return (_recurrence if isinstance(dynamics, Recurrence) else solver.flow)(dynamics, objective)


def _recurrence(dynamics: Recurrence, objective: Objective) -> Callable[..., np.ndarray]:
    @solver.compiled
    def run(w, h, x, counts):
        def segment(carry, count):
            n, y = carry
            y = jax.lax.fori_loop(n, count, lambda i, y: _same(dynamics.step(w, h, i, y), y), y)
            return (count, y), dynamics.read(y)

        start = _tree.strong(dynamics.start(w, h, x))
        return jax.lax.scan(segment, (jnp.zeros((), counts.dtype), start), counts)[1]

    def call(w: np.ndarray, h: float, counts: np.ndarray) -> np.ndarray:
        found = run(jnp.asarray(w), jnp.asarray(float(h)), objective.start, jnp.asarray(counts, jnp.int32))
        return np.asarray(found)

    return call


def _same(after: Any, before: Any) -> Any:
    """The state after a step with the dtypes of the state before, so that a loop can carry it."""
    return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), after, before)


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The distance after one unit, and the largest at the fixed times; neither says anything where a run diverges."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.sqrt(np.sum(np.abs(a - b) ** 2, axis=1))
    return (distance[0], np.max(distance[1:])) if np.all(np.isfinite(distance)) else (np.nan, np.nan)


def relative_error(actual: Any, expected: Any) -> float:
    """`||actual - expected|| / ||expected||` over all leaves."""
    a, b = (ravel_pytree(tree)[0] for tree in (actual, expected))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
