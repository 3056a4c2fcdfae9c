"""One prediction put to the test: the errors of every truncation over a range of step sizes, and their orders.

For each loss a row is pinned twice, because a modified field that is derived from the update agrees with a wrongly
coded update: the update against its published formula, and the second coefficient against the published correction.
Then the iterates are compared with the flow of f_1, of f_1 + h f_2 and of f_1 + h f_2 + h^2 f_3, after one step and at
a fixed time. Every order is checked for its power: with the last coefficient scaled by 1.1 it has to fail.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg import _checks, _tree, methods
from implicit_reg.compare import discrepancy, observed_order
from implicit_reg.descent import descend, update_map
from implicit_reg.flows import modified_coefficients
from implicit_reg.flows.integration import DEFAULT_TOLERANCE, solve
from implicit_reg.problems import Problem
from implicit_reg.trajectory import Trajectory

HOLDS, FAILS, UNMEASURED = "holds", "fails", "could not measure"

TERMS = (1, 2, 3)
STEP_SIZES = (0.1, 0.05, 0.025, 0.0125, 0.00625)
TIME = 0.5
ORDER_TOLERANCE = 0.1  # of the slope between the two finest step sizes
MUTATION = 1.1  # the factor on the last coefficient with which a check must fail
UPDATE_TOLERANCE = 1e-12  # two routes to one update, relative to the step
LEADING_TOLERANCE = 1e-9  # two routes to f_2, which hold third derivatives, relative to f_2
FLOOR_MARGIN = 30.0  # an error counts while it stands this far above the floor of solver and arithmetic


@dataclasses.dataclass(frozen=True)
class Row:
    """A prediction: the iterates of `method` follow their modified equation at orders 1, 2, 3 for 1, 2, 3 terms."""

    name: str
    title: str
    claim: str
    formula: str
    source: str
    method: Callable[[Any], Any]
    num_steps: int = 1
    expected: tuple[int, ...] = TERMS
    published: methods.Method | None = None

    @classmethod
    def from_method(cls, row: methods.Method) -> Row:
        """The prediction that a row of the methods table makes."""
        return cls(
            row.name,
            row.title,
            row.claim,
            row.modified_loss,
            row.source,
            row.at,
            num_steps=row.num_steps,
            published=row,
        )


@dataclasses.dataclass(frozen=True)
class OrderCheck:
    """The settings of `check_orders`, shared by all rows of a run.

    Attributes:
      step_sizes: strictly decreasing; each must divide `time / num_records`.
      time: the fixed time at which errors are compared, in units of the method's step.
      num_records: the error at fixed time is the largest over this many equidistant times.
    """

    step_sizes: tuple[float, ...] = STEP_SIZES
    time: float = TIME
    num_records: int = 5

    def __post_init__(self) -> None:
        h = _checks.check_vector("OrderCheck", "step_sizes", self.step_sizes)
        if h.size < 2 or not (np.all(np.isfinite(h)) and np.all(h > 0) and np.all(np.diff(h) < 0)):
            raise ValueError(
                f"OrderCheck: `step_sizes` must hold at least two positive numbers, strictly decreasing, got "
                f"{self.step_sizes}"
            )
        _checks.check_number("OrderCheck", "time", self.time, low=0, exclusive=True)
        _checks.check_integer("OrderCheck", "num_records", self.num_records)
        for step in h:
            count = self.time / self.num_records / step
            if not (round(count) >= 1 and math.isclose(count, round(count), rel_tol=1e-9)):
                raise ValueError(
                    f"OrderCheck: every step size must divide time/num_records={self.time / self.num_records:g} a "
                    f"whole number of times, got {step:g}"
                )


Report = Callable[[str], None]


def check_orders(
    row: Row, problems: Sequence[Problem], settings: OrderCheck = OrderCheck(), *, report: Report = lambda _: None
) -> dict:
    """Puts one prediction to the test on several losses.

    Args:
      row: the prediction.
      problems: the losses, with float64 parameters (built under `jax.enable_x64(True)`).
      settings: step sizes and times.
      report: told in a few words what begins, for a progress bar; called `NUM_STAGES` times for each loss.

    Returns:
      A dict ready for JSON: `name`, `verdict`, `expected`, `measured` (the fixed-time order of each truncation on the
      finest pair, on the loss that deviates most) and `details`, with every number of every loss. NaN becomes None.

    Raises:
      ValueError: no problem is given.
    """
    if not problems:
        raise ValueError("check_orders: `problems` must hold at least one problem")
    with jax.enable_x64(True):
        losses = [_on_one_loss(row, problem, settings, report) for problem in problems]
    measured = []
    for k, order in enumerate(row.expected):
        found = [loss["truncations"][k]["fixed_time"]["measured"] for loss in losses]
        measured.append(None if None in found else max(found, key=lambda slope, order=order: abs(slope - order)))
    return {
        "name": row.name,
        "verdict": worst(loss["verdict"] for loss in losses),
        "expected": list(row.expected),
        "measured": measured,
        "details": {
            "title": row.title,
            "claim": row.claim,
            "formula": row.formula,
            "source": row.source,
            "criterion": (
                f"on the finest pair of step sizes every order lies within {ORDER_TOLERANCE} of the expected one, and "
                f"no longer does with the last coefficient scaled by {MUTATION}"
            ),
            "losses": losses,
        },
    }


def check_applicable(row: Row, problem: Problem) -> None:
    """Whether the row's method can step on the loss at all, found out by tracing alone.

    Raises:
      TypeError, ValueError: it cannot; a memory such as momentum included, for which no modified equation in the
        parameters alone exists.
    """
    with jax.enable_x64(True):
        jax.eval_shape(update_map(row.method, problem.loss_fn, num_steps=row.num_steps), STEP_SIZES[0], problem.params)


def worst(verdicts) -> str:
    """What many verdicts come to: one failure fails, and what could not be measured never becomes a pass."""
    verdicts = list(verdicts)
    return next((verdict for verdict in (FAILS, UNMEASURED) if verdict in verdicts), HOLDS)


NUM_STAGES = 3


def _on_one_loss(row: Row, problem: Problem, settings: OrderCheck, report: Report) -> dict:
    where = f"{row.name} on {problem.name}"
    phi = update_map(row.method, problem.loss_fn, num_steps=row.num_steps)
    report(f"{where}: update and leading correction")
    pins = _pins(row, phi, problem, settings)
    report(f"{where}: modified equation")
    flow = _Flow(phi, problem, settings)
    report(f"{where}: orders")
    step_sizes = settings.step_sizes
    iterates = [_iterates(row, problem, h, settings) for h in step_sizes]
    truncations = []
    for terms, expected in zip(TERMS, row.expected, strict=True):
        exact, mutant = np.zeros(len(TERMS)), np.zeros(len(TERMS))
        exact[:terms] = mutant[:terms] = 1.0
        mutant[terms - 1] = MUTATION
        errors, mutants = (
            np.array([_errors(run, flow(h, weights)) for h, run in zip(step_sizes, iterates, strict=True)])
            for weights in (exact, mutant)
        )
        truncations.append(
            {
                "terms": terms,
                "one_step": judge(step_sizes, errors[:, 0], mutants[:, 0], expected + 1, flow.floor),
                "fixed_time": judge(step_sizes, errors[:, 1], mutants[:, 1], expected, flow.floor),
            }
        )
    orders = [t[kind]["verdict"] for t in truncations for kind in ("one_step", "fixed_time")]
    return {
        "name": problem.name,
        "num_params": problem.num_params,
        "verdict": worst([*orders, *(pin["verdict"] for pin in pins.values())]),
        "h": list(step_sizes),
        "time": settings.time,
        "floor": flow.floor,
        "truncations": truncations,
        **pins,
    }


def _pins(row: Row, phi, problem: Problem, settings: OrderCheck) -> dict:
    """The update against its formula typed again, and f_2 against the published correction."""
    if row.published is None:
        return {}
    x, unravel = ravel_pytree(problem.params)
    h = settings.step_sizes[0]
    hyperparameters = dict(row.published.scaled(h))

    def loss(flat):
        return problem.loss_fn(unravel(flat))

    @jax.jit
    def routes(x):
        update = ravel_pytree(phi.update(h, unravel(x)))[0]
        formula = row.published.formula(loss, x, h, **hyperparameters) - x
        coefficient = ravel_pytree(modified_coefficients(phi, 2)(unravel(x))[1])[0]
        return (update, formula), (coefficient, row.published.leading(loss, x, h, **hyperparameters))

    update, leading = routes(x)
    return {
        "update": _agreement(*update, UPDATE_TOLERANCE),
        "leading": _agreement(*leading, LEADING_TOLERANCE),
    }


def _agreement(actual, expected, tolerance: float) -> dict:
    error = float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))
    verdict = UNMEASURED if not math.isfinite(error) else HOLDS if error <= tolerance else FAILS
    return {"error": number(error), "tolerance": tolerance, "verdict": verdict}


class _Flow:
    """The flows of all truncations of one modified equation, and of their mutants, from one compiled program."""

    def __init__(self, phi, problem: Problem, settings: OrderCheck) -> None:
        coefficients = modified_coefficients(phi, len(TERMS))
        params = jax.tree.map(jnp.asarray, problem.params)
        tolerance = DEFAULT_TOLERANCE[_tree.real_dtype(params)]
        size = math.sqrt(float(_tree.squared_norm(params)))

        def field(t, x, h_and_weights):
            h, weights = h_and_weights
            total = jax.tree.map(jnp.zeros_like, x)
            for n, coefficient in enumerate(coefficients(x)):
                total = _tree.axpy(weights[n] * h**n, coefficient, total)
            return total

        self._solve = functools.partial(solve, field, None, (tolerance, tolerance), 16**4, params)
        self._records = settings.time / settings.num_records * np.arange(1, settings.num_records + 1)
        # The solver's tolerance and the rounding of every step, in units of the parameters' norm.
        self.floor = tolerance * max(1.0, size)
        self(settings.step_sizes[0], np.ones(len(TERMS)))

    def __call__(self, h: float, weights: np.ndarray) -> Trajectory:
        """The solution after one step, then at the fixed times."""
        ts = np.concatenate([[h], self._records])
        params, *_ = self._solve(jnp.asarray(ts), (jnp.asarray(h), jnp.asarray(weights)))
        return Trajectory(ts, params, None, jax.vmap(_tree.all_finite)(params), h)


def _iterates(row: Row, problem: Problem, h: float, settings: OrderCheck) -> Trajectory:
    """The discrete run after one unit of `num_steps` steps, then at the fixed times, on the clock of units of h."""
    units = round(settings.time / settings.num_records / h)
    one = descend(row.method, problem.loss_fn, problem.params, h, row.num_steps, every=row.num_steps)
    many = descend(
        row.method,
        problem.loss_fn,
        problem.params,
        h,
        units * settings.num_records * row.num_steps,
        every=units * row.num_steps,
    )
    t, params = jax.tree.map(
        lambda first, rest: np.concatenate([first[1:], rest[1:]]), (one.t, one.params), (many.t, many.params)
    )
    return Trajectory(t / row.num_steps, params, None, np.concatenate([one.finite[1:], many.finite[1:]]), h)


def _errors(iterates: Trajectory, flow: Trajectory) -> tuple[float, float]:
    """The error after one step, and the largest at the fixed times; neither says anything where the run diverges."""
    error = discrepancy(iterates, flow).error
    return (error[0], np.max(error[1:])) if np.all(np.isfinite(error)) else (np.nan, np.nan)


def judge(step_sizes: Sequence[float] | np.ndarray, error, mutant_error, expected: int, floor: float) -> dict:
    """The order of `error` on the finest pair, and whether it can be told from another one.

    Args:
      step_sizes: strictly decreasing.
      error: one for each step size.
      mutant_error: the same with the last coefficient scaled by `MUTATION`.
      expected: the predicted order.
      floor: what the solver and the arithmetic cannot resolve.

    Returns:
      `expected`, `error`, `slopes`, `measured`, `mutant` (the mutant's order), `verdict` and `reason` (None where it
      holds).
    """
    slopes = observed_order(step_sizes, error)
    measured, mutant = slopes[-1], observed_order(step_sizes, mutant_error)[-1]
    off = abs(measured - expected)
    if not np.all(np.isfinite(error[-2:])):
        verdict, reason = UNMEASURED, "the run or the flow diverged"
    elif not min(error[-2:]) > FLOOR_MARGIN * floor:
        verdict, reason = UNMEASURED, f"the error {min(error[-2:]):.1e} is too near to the floor {floor:.1e}"
    elif not math.isfinite(measured):
        verdict, reason = UNMEASURED, "an error is zero"
    elif off > ORDER_TOLERANCE:
        verdict, reason = FAILS, f"order {measured:.2f} where {expected} was predicted"
    elif abs(mutant - expected) <= ORDER_TOLERANCE:
        verdict, reason = UNMEASURED, f"a coefficient {MUTATION:g} times as large would pass too (order {mutant:.2f})"
    else:
        verdict, reason = HOLDS, None
    return {
        "expected": expected,
        "error": [number(e) for e in error],
        "slopes": [number(slope) for slope in slopes],
        "measured": number(measured),
        "mutant": number(mutant),
        "verdict": verdict,
        "reason": reason,
    }


def number(x: Any) -> float | None:
    """A finite Python float, or None: JSON has no NaN."""
    return float(x) if math.isfinite(x) else None
