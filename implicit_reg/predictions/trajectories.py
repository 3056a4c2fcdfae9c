"""Iterates, gradient flow and modified flow on the two-parameter loss: the numbers behind the picture."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from implicit_reg.descent import descend, update_map
from implicit_reg.flows import gradient_field, integrate, modified_vector_field
from implicit_reg.methods import Method
from implicit_reg.problems import Problem

# Large enough that the eye sees the three curves part, small enough that the second term explains the parting.
STEP_SIZE = 0.0125
TIME = 0.8
NUM_POINTS = 81


def two_parameter_trajectories(rows: Sequence[Method], problem: Problem, *, num_grid: int = 81) -> dict:
    """What each method does on a loss of two parameters, beside gradient flow and its own modified flow.

    Args:
      rows: methods of the table that have a family of hyperparameters proportional to the step size.
      problem: a loss with two scalar parameters, in float64.
      num_grid: points on each side of the grid for the contours.

    Returns:
      A dict ready for JSON: `loss`, `h`, `time`, `grid` (`a`, `b`, `loss`) and `runs`, one for each row, with the
      points `iterates`, `gradient_flow` and `modified_flow` as (a, b) pairs, as far as they are finite.
    """
    with jax.enable_x64(True):
        h, units = STEP_SIZE, round(TIME / STEP_SIZE)
        ts = np.linspace(0.0, TIME, NUM_POINTS)
        flow = integrate(gradient_field(problem.loss_fn), problem.params, ts, h)
        runs = []
        for row in rows:
            steps = descend(row.at, problem.loss_fn, problem.params, h, units * row.num_steps, every=row.num_steps)
            modified = modified_vector_field(update_map(row.at, problem.loss_fn, num_steps=row.num_steps), 2)
            runs.append(
                {
                    "name": row.name,
                    "h": h,
                    "iterates": _points(steps),
                    "gradient_flow": _points(flow),
                    "modified_flow": _points(integrate(modified, problem.params, ts, h)),
                }
            )
        every = np.concatenate([np.asarray(run[key]) for run in runs for key in ("iterates", "gradient_flow")])
        low, high = every.min(axis=0), every.max(axis=0)
        margin = 0.15 * (high - low).max()
        a, b = (np.linspace(low[k] - margin, high[k] + margin, num_grid) for k in (0, 1))
        losses = jax.vmap(lambda a: jax.vmap(lambda b: problem.loss_fn({"a": a, "b": b}))(b))(a).T
        grid = {"a": a.tolist(), "b": b.tolist(), "loss": np.asarray(losses).tolist()}
    return {"loss": problem.name, "h": h, "time": TIME, "grid": grid, "runs": runs}


def _points(trajectory) -> list[list[float]]:
    keep = np.asarray(trajectory.finite)
    return np.stack([np.asarray(trajectory.params[name])[keep] for name in ("a", "b")], axis=1).tolist()
