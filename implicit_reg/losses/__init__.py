"""Loss wrappers: a loss from a loss, for methods that are the gradient of one; and an oracle for those that are not."""

from implicit_reg.losses.flooding import FloodLog as FloodLog
from implicit_reg.losses.flooding import flooded as flooded
from implicit_reg.losses.flooding import flooded_with_log as flooded_with_log
from implicit_reg.losses.penalty import gradient_penalized as gradient_penalized
from implicit_reg.losses.penalty import microbatch_gradient_penalized as microbatch_gradient_penalized
from implicit_reg.losses.soft import adaptive_level as adaptive_level
from implicit_reg.losses.soft import soft_flooded as soft_flooded
