"""Loss wrappers: a loss from a loss, for methods that are the gradient of one; and an oracle for those that are not."""

from implicit_reg.losses.flooding import FloodLog, flooded, flooded_with_log
from implicit_reg.losses.oracle import value_and_direction
from implicit_reg.losses.penalty import gradient_penalized, microbatch_gradient_penalized
from implicit_reg.losses.soft import adaptive_level, soft_flooded

__all__ = [
    "FloodLog",
    "adaptive_level",
    "flooded",
    "flooded_with_log",
    "gradient_penalized",
    "microbatch_gradient_penalized",
    "soft_flooded",
    "value_and_direction",
]
