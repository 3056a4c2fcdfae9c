"""Gradient flow of two networks in float64: `integrate`, bare diffrax, scipy and torchdiffeq at equal true error.

All solve one initial value problem with one right-hand side: scipy gets it jitted, torchdiffeq gets it in torch. Each
solver runs at the loosest tolerance, to an eighth of a decade, whose end is as near to the reference as asked for;
nothing is timed before that. Times are those of an RK4 scan of 40 steps; the targets compare `integrate` with the
best solver of each peer. `integrate` is also compared with as many right-hand sides as it evaluates, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import measure
import numpy as np
import scipy.integrate
from flow_solvers import SIZES, TINY, Problem, Solve, make_problem, rk4, solvers

import implicit_reg as ir

UNIT_STEPS = 40
LEVELS = (1e-5, 5e-9, 1e-11)
FIFTH_ORDER = {"integrate, order 5", "diffrax Tsit5", "scipy RK45", "torchdiffeq dopri5"}
FIFTH_ORDER_UNTIL = 1e-6  # below it the others are cheaper in every library
SCIPY_TARGET, TORCH_TARGET = 0.75, 0.2
UNIT = "RK4"
STAGES = {5: 6, 8: 13}  # evaluations of a step of each order that integrate offers
REFERENCE_TOLERANCE, AGREEMENT = 1e-13, 2e-12
FIELD_AGREEMENT = 1e-12
LOOSEST, TIGHTEST = 1e-3, 1e-13


def reference(problem: Problem, known: Mapping[str, Solve]) -> np.ndarray:
    """DOP853 at 1e-13, which a solver of other coefficients has to confirm: `integrate`, at the same tolerance."""
    first, second = (np.asarray(known[name](REFERENCE_TOLERANCE)) for name in ("scipy DOP853", "integrate, order 8"))
    if not (apart := distance(second, first)) <= AGREEMENT:
        raise measure.IncorrectError(f"{problem.title}: two references are {apart:.1e} apart")
    return first


def distance(actual: Any, expected: np.ndarray) -> float:
    """Relative, in the 2-norm."""
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))


def loosest(solve: Solve, expected: np.ndarray, level: float) -> tuple[float, float] | None:
    """The loosest tolerance that reaches the error, to an eighth of a decade, and the error; None where none does."""
    tolerance = min(LOOSEST, 100.0 * level)
    tried = {}

    def error(exponent):
        if exponent not in tried:
            tried[exponent] = distance(solve(10.0 ** (exponent / 2)), expected)
        return tried[exponent]

    exponent, last = round(2 * np.log10(tolerance)), round(2 * np.log10(TIGHTEST))
    while error(exponent) <= level and exponent < 2 * np.log10(LOOSEST):
        exponent += 1
    while not error(exponent) <= level:
        exponent -= 1
        if exponent < last:
            return None
    exponent = max(e for e in (exponent + k / 4 for k in range(4)) if error(e) <= level)
    return 10.0 ** (exponent / 2), error(exponent)


def counting(problem: Problem) -> tuple[Problem, list[Any]]:
    """The problem, and a list that grows with every evaluation of its field, there where it is evaluated."""
    calls: list[Any] = []

    def field(x):
        jax.debug.callback(calls.append, x[0])
        return problem.field(x)

    return problem._replace(field=field), calls


def bare_evaluations(problem: Problem) -> Callable[[jax.Array, int], jax.Array]:
    """Only right-hand sides, each at where the one before has moved to."""
    run = jax.jit(lambda x, count: jax.lax.fori_loop(0, count, lambda _, x: x + 1e-9 * problem.field(x), x))
    return lambda x, count: jax.block_until_ready(run(x, count))


def scipy_evaluations(problem: Problem, method: str, tolerance: float) -> int:
    """Right-hand sides that scipy evaluates."""
    f, times = jax.jit(problem.field), (0, problem.time)
    start, field = np.asarray(problem.start), lambda t, x: np.asarray(f(x))
    return scipy.integrate.solve_ivp(field, times, start, method, rtol=tolerance, atol=tolerance).nfev


def check_fields(problem: Problem) -> None:
    """The torch right-hand side is the JAX one."""
    if problem.torch_field is None:
        return
    torch = measure.peer("torch")
    x = problem.start + 0.01
    actual, expected = problem.torch_field(torch.tensor(np.array(x))).numpy(), np.asarray(jax.jit(problem.field)(x))
    if not (apart := distance(actual, expected)) <= FIELD_AGREEMENT:
        raise measure.IncorrectError(f"{problem.title}: the right-hand side in torch is {apart:.1e} off")


def study(
    problem: Problem,
    known: Mapping[str, Solve],
    counted: Mapping[str, Solve],
    calls: list[Any],
    expected: np.ndarray,
    level: float,
    rounds: int,
) -> dict[str, Any]:
    """Tolerances and errors of all solvers at one level, evaluations of `integrate`, and where timed the costs.

    `counted` are solvers that note in `calls` what they evaluate; `known` do not.
    """
    settings = {
        name: loosest(solve, expected, level)
        for name, solve in known.items()
        if level > FIFTH_ORDER_UNTIL or name not in FIFTH_ORDER
    }
    counts = {}
    for order in STAGES:
        if (name := f"integrate, order {order}") not in settings:
            continue
        if (found := settings[name]) is None:
            raise measure.IncorrectError(f"{problem.title}: {name} reaches {level:.0e} at no tolerance")
        jax.effects_barrier()
        calls.clear()
        counted[name](found[0])
        jax.effects_barrier()
        counts[order] = len(calls)
        # The last stage of a step is the first of the next: one evaluation more than the stages of all steps.
        if counts[order] % STAGES[order] != 1:
            raise measure.IncorrectError(f"{problem.title}: {counts[order]} evaluations in steps of {STAGES[order]}")
    unit, sides = measure.build(rk4(problem, UNIT_STEPS), problem.start), bare_evaluations(problem)
    programs: dict[str, Callable[[], Any]] = {
        name: functools.partial(known[name], found[0]) for name, found in settings.items() if found is not None
    }
    programs[UNIT] = unit
    for order, count in counts.items():
        programs[f"right-hand sides of order {order}"] = functools.partial(sides, problem.start, count)
    timed = measure.interleave(programs, unit=UNIT, rounds=rounds) if rounds else {}
    peers = {
        name: scipy_evaluations(problem, name.split()[1], found[0])
        for name, found in settings.items()
        if name.startswith("scipy") and found is not None
    }
    return {
        "evaluations": counts,
        "scipy_evaluations": peers,
        "unit_error": distance(unit.compiled(problem.start), expected),
        "solvers": {
            name: None if found is None else {"tolerance": found[0], "error": found[1]}
            for name, found in settings.items()
        },
        "costs": {name: cost._asdict() for name, cost in timed.items()},
    }


def _best(costs: Mapping[str, Mapping[str, Any]], family: str) -> str | None:
    """The cheapest of a library's solvers."""
    return min((name for name in costs if name.startswith(family)), key=lambda n: costs[n]["cpu"], default=None)


def rows_of(title: str, level: float, found: Mapping[str, Any]) -> list[measure.Row]:
    """The comparisons with targets, then every solver in units of the RK4 scan."""
    costs, where = found["costs"], f"{title}, error {level:.0e}"
    best, rows = _best(costs, "integrate"), []
    for family, target in (("scipy", SCIPY_TARGET), ("torchdiffeq", TORCH_TARGET)):
        peer = _best(costs, family)
        known = any(name.startswith(family) for name in found["solvers"])
        note = "not timed" if not costs and known else f"{family} is not installed" if not known else ""
        value = costs[best]["cpu"] / costs[peer]["cpu"] if best and peer else None
        chosen = f"{best} over {peer}" if value is not None else note
        fewest = min(found["evaluations"].values()) / min(found["scipy_evaluations"].values(), default=np.nan)
        limit = fewest if family == "scipy" else None  # where right-hand sides are all that costs
        rows.append(measure.Row(f"{where}: over {family}", value, family, "cpu", limit, target, note=chosen))
    for order, count in found["evaluations"].items():
        rows.append(measure.Row(f"{where}: evaluations, order {order}", count, "right-hand sides", "count"))
        name, sides = f"integrate, order {order}", f"right-hand sides of order {order}"
        value = costs[name]["cpu"] / costs[sides]["cpu"] if costs else None
        rows.append(
            measure.Row(f"{where}: order {order} over its evaluations", value, "right-hand sides", "cpu", limit=1.0)
        )
    return rows


def table(found: Mapping[str, Any]) -> str:
    """Tolerances, errors and costs of every solver."""
    lines = []
    for name, solver in found["solvers"].items():
        cost = found["costs"].get(name, {})
        reached = ["-", "-"] if solver is None else [f"{solver['tolerance']:.1e}", f"{solver['error']:.1e}"]
        lines.append([name, *reached, measure.number(cost.get("cpu")), measure.number(cost.get("wall"))])
    for order, count in found["evaluations"].items():
        cost = found["costs"].get(f"right-hand sides of order {order}", {})
        clocks = [measure.number(cost.get(clock)) for clock in ("cpu", "wall")]
        lines.append([f"{count} right-hand sides (order {order})", "-", "-", *clocks])
    return measure.markdown(["solver", "tolerance", "error", "CPU", "wall"], lines)


def run(effort: measure.Effort, *names: str, ours: Callable = ir.integrate) -> measure.Report:
    """All problems (or those named) at all levels; `tiny` is one toy problem at the first level."""
    rows: list[measure.Row] = []
    details, data = [], {}
    with jax.enable_x64(True):
        for name, (sizes, batch, time) in (TINY if effort.tiny else SIZES).items():
            if names and name not in names:
                continue
            problem = make_problem(name, sizes, batch, time)
            check_fields(problem)
            watched, calls = counting(problem)
            counted = {name: s for name, s in solvers(watched, ours).items() if name.startswith("integrate")}
            known = solvers(problem, ours, bare_too=effort.rounds > 0)
            if not effort.rounds:  # one compilation fewer for each order
                known |= counted
            expected = reference(problem, known)
            for level in LEVELS[:1] if effort.tiny else LEVELS[:2] if name == "MLP" else LEVELS:
                found = study(problem, known, counted, calls, expected, level, effort.rounds)
                rows += rows_of(name, level, found)
                details.append(
                    f"{problem.title}, error {level:.0e}; unit: RK4 in {UNIT_STEPS} steps, error "
                    f"{found['unit_error']:.0e}\n\n{table(found)}\n"
                )
                data[f"{name}, {level:.0e}"] = found
    return measure.Report(tuple(rows), "\n".join(details), data)
