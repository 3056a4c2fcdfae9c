"""Published claims as rows: a method, the field it is said to follow, the orders that would show it, the source."""

from implicit_reg.predictions.orders import OrderCheck, Row, check_orders
from implicit_reg.predictions.rows import DEFAULT_LOSSES, ROWS, find, own_method

__all__ = ["DEFAULT_LOSSES", "ROWS", "OrderCheck", "Row", "check_orders", "find", "own_method"]
