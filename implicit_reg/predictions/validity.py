"""When to trust a prediction: the bands of the step size, successive terms, the next term, the floor, and kinks.

The thresholds are a reading of tables, not theorems: with `x = h max|lambda|` (or what a row has in its place) two to
four terms reach 1 % relative error per step at x = 0.29 to 0.49, and the series in h diverges from x = 1 on.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg.predictions.judging import number
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Orders, Trust

BANDS = ((0.3, "fine"), (0.8, "caution"), (1.0, "unreliable"), (float("inf"), "beyond"))
SMOOTH_RATIO = 3.0  # by how much second differences of a smooth gradient shrink, at least, when the points are halved


def band(x: float) -> str:
    """The word for a value of the quantity that a row is trusted by.

    Example:
      >>> band(0.1), band(0.5), band(0.9), band(2.0)
      ('fine', 'caution', 'unreliable', 'beyond')
    """
    return next((word for limit, word in BANDS if x < limit), "beyond")


def measure(
    statement: Orders, objective: Objective, trust: Trust, one_step_errors: Any, advances: Any, floor: float
) -> dict:
    """The validity of a statement, ready for JSON.

    Args:
      statement: whose step sizes.
      objective: whose spectrum.
      trust: the row's.
      one_step_errors: (step sizes, truncations), distance of iterates and reference after one unit.
      advances: (step sizes, truncations), distance of the references with p and p - 1 terms after one unit: the size of
        the p-th term. It is a good estimate of the one-step error of the p - 1 terms before it.
      floor: what cannot be resolved.

    Returns:
      `quantity`, `x` (for each step size), `band` (at the finest), `low` and `high` (the extreme Hessian eigenvalues at
      the start), `term_ratio` (of successive terms, from the second on, at the finest step size), `next_term` (for each
      number of terms but the last: one-step error over the size of the next term) and `above_floor` (the smallest error
      that decides, over the floor).
    """
    spectrum = objective.spectrum
    x = [float(trust.of(objective, spectrum, h)) for h in statement.step_sizes]
    errors, sizes = np.asarray(one_step_errors), np.asarray(advances)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sizes[-1, 1:] / sizes[-1, :-1]
        following = errors[-1, :-1] / sizes[-1, 1:] if statement.one_step else np.full(sizes.shape[1] - 1, np.nan)
    decisive = errors[-2:] if statement.one_step else np.full((1, 1), np.nan)
    return {
        "quantity": trust.quantity,
        "x": [number(value) for value in x],
        "band": band(x[-1]),
        "low": number(spectrum.low),
        "high": number(spectrum.high),
        "term_ratio": [number(ratio) for ratio in ratios],
        "next_term": [number(ratio) for ratio in following],
        "above_floor": number(np.min(decisive) / floor),
    }


def roughness(objective: Objective, start: np.ndarray, end: np.ndarray) -> str | None:
    """What is seen of kinks along the segment from `start` to `end`, or None where the gradient is smooth.

    Second differences of a smooth gradient shrink fourfold when the distance of the points is halved, twofold where its
    derivative jumps, and not at all where the gradient itself does.
    """

    @jax.jit
    def largest(points):
        gradients = jax.lax.map(objective.gradient, points)
        return jnp.max(jnp.linalg.norm(gradients[2:] - 2 * gradients[1:-1] + gradients[:-2], axis=1))

    def second_difference(num: int) -> float:
        s = np.linspace(0.0, 1.0, num + 1)[:, None]
        return float(largest(jnp.asarray(start + s * (end - start))))

    # From coarse to fine: a kink is met by some pair of neighbors at every resolution.
    coarse, fine = second_difference(64), second_difference(512)
    if not (np.isfinite(coarse) and np.isfinite(fine)) or fine <= 1e-13:
        return None
    shrinks = (coarse / fine) ** (1 / 3)
    if shrinks >= SMOOTH_RATIO:
        return None
    return (
        f"the gradient has kinks along the first step (its second differences shrink {shrinks:.1f}-fold when the "
        f"distance of the points is halved, where a smooth one's shrink 4-fold), and the theory needs derivatives"
    )
