"""The rows: which methods of the table are claimed to follow their modified equation, and on which losses."""

from __future__ import annotations

from collections.abc import Mapping

from implicit_reg import _checks, methods
from implicit_reg._types import Method
from implicit_reg.predictions.orders import Row

# A network on real data, and the loss on which the pictures can be looked at.
DEFAULT_LOSSES = ("digits-tanh", "factorization")

_CHECKED = ("gd", "gradient-penalty", "backstitch", "alternating", "sam")

ROWS: Mapping[str, Row] = {name: Row.from_method(methods.METHODS[name]) for name in _CHECKED}


def find(name: str) -> Row:
    """The row of that name; an unknown one raises with the known ones and the nearest.

    Example:
      >>> find("gd").expected
      (1, 2, 3)
    """
    if name not in ROWS:
        raise _checks.unknown_name("predictions", "prediction", name, ROWS)
    return ROWS[name]


def own_method(name: str, method: Method) -> Row:
    """A row for a user's own method `h -> transformation`: no formula was published, so its orders alone are judged."""
    _checks.check_callable("own_method", "method", method, "h -> optax.GradientTransformation")
    return Row(
        name=name,
        title=name,
        claim=f"{name} follows the modified equation that its own update implies.",
        formula="derived from the update by exact derivatives",
        source="",
        method=method,
    )
