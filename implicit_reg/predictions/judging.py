"""Verdicts: the order of a set of errors, whether it can be told from another one, and what many verdicts come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from implicit_reg.compare import observed_order

HOLDS, FAILS, UNMEASURED = "holds", "fails", "could not measure"

DIVERGED = "the run or the flow diverged, or the solver gave up"

ORDER_TOLERANCE = 0.1  # of the slope between the two finest step sizes
FLOOR_MARGIN = 30.0  # an error counts while it stands this far above the floor of solver and arithmetic


def judge(
    step_sizes: Sequence[float] | np.ndarray, error: Any, mutant_error: Any, expected: float | int, floor: float
) -> dict:
    """The order of `error` on the finest pair, and whether it can be told from another one.

    Args:
      step_sizes: strictly decreasing.
      error: one for each step size.
      mutant_error: the same of a prediction that is wrong on purpose.
      expected: the predicted order.
      floor: what the solver and the arithmetic cannot resolve.

    Returns:
      `expected`, `error`, `slopes`, `measured`, `mutant` (the mutant's order), `verdict` and `reason` (None where it
      holds).
    """
    error = np.asarray(error, np.float64)
    slopes = observed_order(step_sizes, error)
    measured, mutant = slopes[-1], observed_order(step_sizes, mutant_error)[-1]
    if not np.all(np.isfinite(error[-2:])):
        verdict, reason = UNMEASURED, DIVERGED
    elif not min(error[-2:]) > FLOOR_MARGIN * floor:
        verdict, reason = UNMEASURED, f"the error {min(error[-2:]):.1e} is too near to the floor {floor:.1e}"
    elif not math.isfinite(measured):
        verdict, reason = UNMEASURED, "an error is zero"
    elif abs(measured - expected) > ORDER_TOLERANCE:
        verdict, reason = FAILS, f"order {measured:.2f} where {expected:g} was predicted"
    elif abs(mutant - expected) <= ORDER_TOLERANCE:
        verdict, reason = UNMEASURED, f"the mutant (its last term wrong on purpose) would pass too: order {mutant:.2f}"
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


def judge_number(value: float, bound: float, mutant: float, at_most: bool) -> tuple[str, str | None]:
    """Verdict and reason of a number that must lie at or below its bound (or above it), where its mutant must not."""
    if not math.isfinite(value):
        return UNMEASURED, "the number is not finite: something diverged"
    if (value <= bound) != at_most and value != bound:
        return FAILS, f"{value:.3g} where {'at most' if at_most else 'at least'} {bound:.3g} was wanted"
    if math.isnan(mutant):
        return UNMEASURED, "the wrong prediction could not be measured, so that nothing shows the criterion's power"
    if mutant == bound or (mutant <= bound) == at_most:
        return UNMEASURED, f"the wrong prediction would pass too: {mutant:.3g}"
    return HOLDS, None


def worst(verdicts: Iterable[str]) -> str:
    """What many verdicts come to: one failure fails, and what could not be measured never becomes a pass."""
    verdicts = list(verdicts)
    return next((verdict for verdict in (FAILS, UNMEASURED) if verdict in verdicts), HOLDS)


def number(x: Any) -> float | None:
    """A finite Python float, or None: JSON has no NaN."""
    return float(x) if x is not None and math.isfinite(x) else None
