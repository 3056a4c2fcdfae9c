"""The table of predictions: what `verify`, the tests and the documentation run from."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_reg import _checks
from implicit_reg._types import Method
from implicit_reg.predictions import from_table, penalties, steps
from implicit_reg.predictions.prediction import Prediction

ROWS: Mapping[str, Prediction] = {row.name: row for room in (steps, penalties) for row in room.ROWS}


def find(name: str) -> Prediction:
    """The row of that name; an unknown one raises with the known ones and the nearest.

    Example:
      >>> find("gd").source
      'barrett2021'
    """
    if name not in ROWS:
        raise _checks.unknown_name("predictions", "prediction", name, ROWS)
    return ROWS[name]


def own_method(name: str, method: Method) -> Prediction:
    """A row for a user's own method `h -> transformation` without memory: its update implies the field."""
    _checks.check_callable("own_method", "method", method, "h -> optax.GradientTransformation")
    return Prediction(
        name=name,
        title=name,
        claim=f"{name} follows the modified equation that its own update implies.",
        formula="derived from the update by exact derivatives",
        source="",
        time_scale="h per step",
        validity=from_table.SMALL_STEPS,
        statements=steps.implied(method),
    )
