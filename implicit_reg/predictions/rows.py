"""The table of predictions: what `verify`, the tests and the documentation run from."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_reg import _checks
from implicit_reg.predictions import (
    adaptive,
    edge,
    flooded,
    games,
    memory,
    penalties,
    steps,
    stochastic,
)
from implicit_reg.predictions.prediction import Prediction

DEFAULT_LOSSES = ("digits-tanh", "nonquadratic")  # of an optimizer from outside: real data, and quick to run

_ROOMS = (steps, penalties, flooded, memory, adaptive, stochastic, edge, games)

ROWS: Mapping[str, Prediction] = {row.name: row for room in _ROOMS for row in room.ROWS}


def find(name: str) -> Prediction:
    """The row of that name; an unknown one raises with the known ones and the nearest.

    Example:
      >>> find("gd").source
      'barrett2021'
    """
    if name not in ROWS:
        raise _checks.unknown_name("predictions", "prediction", name, ROWS)
    return ROWS[name]
