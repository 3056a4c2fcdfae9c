"""Published claims as rows: dynamics, the field they are said to follow, the orders that would show it, the source."""

from implicit_reg.predictions.any_optimizer import check_own, prepare_own
from implicit_reg.predictions.judging import worst
from implicit_reg.predictions.measure import check, check_applicable
from implicit_reg.predictions.prediction import (
    Criterion,
    Effort,
    Finding,
    Flow,
    Orders,
    Prediction,
    Recurrence,
    Trust,
    flow_of,
    iterates,
)
from implicit_reg.predictions.rows import DEFAULT_LOSSES, ROWS, find
from implicit_reg.predictions.trajectories import two_parameter_trajectories

__all__ = [
    "DEFAULT_LOSSES",
    "ROWS",
    "Criterion",
    "Effort",
    "Finding",
    "Flow",
    "Orders",
    "Prediction",
    "Recurrence",
    "Trust",
    "check",
    "check_applicable",
    "check_own",
    "find",
    "flow_of",
    "iterates",
    "prepare_own",
    "two_parameter_trajectories",
    "worst",
]
