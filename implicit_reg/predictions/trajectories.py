"""Iterates, gradient flow and modified flow on the two-parameter loss: the numbers behind the picture."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from implicit_reg.predictions.measure import program
from implicit_reg.predictions.objective import flatten
from implicit_reg.predictions.prediction import Effort, Prediction
from implicit_reg.problems import Problem

# Large enough that the eye sees the three curves part, small enough that the second term explains the parting.
STEP_SIZE = 0.0125
TIME = 0.8


def two_parameter_trajectories(rows: Sequence[Prediction], problem: Problem, *, num_grid: int = 81) -> dict:
    """What each method does on a loss of two parameters, beside gradient flow and its own modified flow.

    Args:
      rows: predictions whose main statement is a flow of two terms or more.
      problem: a loss with two scalar parameters `a` and `b`, in float64.
      num_grid: points on each side of the grid for the contours.

    Returns:
      A dict ready for JSON: `loss`, `h`, `time`, `grid` (`a`, `b`, `loss`) and `runs`, one for each row, with the
      points `iterates`, `gradient_flow` (the first term) and `modified_flow` (two terms) as (a, b) pairs, as far as
      they are finite.
    """
    with jax.enable_x64(True):
        objective = flatten(problem)
        counts = np.arange(round(TIME / STEP_SIZE) + 1)
        runs = []
        for row in rows:
            main, *_ = row.statements(objective, Effort.QUICK)
            first, second = (np.where(np.arange(len(main.expected)) < terms, 1.0, 0.0) for terms in (1, 2))
            follow = program(main.reference, objective)
            runs.append(
                {
                    "name": row.name,
                    "h": STEP_SIZE,
                    "iterates": _points(program(main.iterates, objective)(second, STEP_SIZE, counts)),
                    "gradient_flow": _points(follow(first, STEP_SIZE, counts)),
                    "modified_flow": _points(follow(second, STEP_SIZE, counts)),
                }
            )
        every = np.concatenate([np.asarray(run[key]) for run in runs for key in ("iterates", "gradient_flow")])
        low, high = every.min(axis=0), every.max(axis=0)
        margin = 0.15 * (high - low).max()
        a, b = (np.linspace(low[k] - margin, high[k] + margin, num_grid) for k in (0, 1))
        losses = jax.vmap(lambda a: jax.vmap(lambda b: problem.loss_fn({"a": a, "b": b}))(b))(a).T
        grid = {"a": a.tolist(), "b": b.tolist(), "loss": np.asarray(losses).tolist()}
    return {"loss": problem.name, "h": STEP_SIZE, "time": TIME, "grid": grid, "runs": runs}


def _points(found: np.ndarray) -> list[list[float]]:
    return found[np.all(np.isfinite(found), axis=1)].tolist()
