"""Published claims as rows: a method, the field it is said to follow, the orders that would show it, the source."""

from implicit_reg.predictions.orders import NUM_STAGES, OrderCheck, Row, check_applicable, check_orders, worst
from implicit_reg.predictions.rows import DEFAULT_LOSSES, ROWS, find, own_method
from implicit_reg.predictions.trajectories import two_parameter_trajectories

__all__ = [
    "DEFAULT_LOSSES",
    "NUM_STAGES",
    "ROWS",
    "OrderCheck",
    "Row",
    "check_applicable",
    "check_orders",
    "find",
    "own_method",
    "two_parameter_trajectories",
    "worst",
]
