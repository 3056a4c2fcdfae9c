"""Every check of an argument, and every error text: what was wanted, what came, and the cure.

The rules. Python and NumPy scalars are judged by type and range when an object is built; JAX arrays by dtype and shape
alone, for their value may be traced (schedules, `inject_hyperparams`, `vmap` over a hyperparameter) and reading it
would wait for the device. `bool` is not a number. Wrong type: TypeError; wrong value: ValueError; wrong state of the
world: a subclass of `ImplicitRegError`. The NaN test is written `not (low <= x)`, which NaN fails.
"""

from __future__ import annotations

from implicit_reg._checks.arguments import (
    check_callable,
    check_loss_output,
    check_loss_value,
    check_no_memory,
    check_pair,
    check_state,
    check_transformation,
)
from implicit_reg._checks.errors import (
    ConfigMismatchError,
    CorruptResultError,
    EnvironmentMismatchError,
    ImplicitRegError,
    LockedError,
    indivisible,
    masked_params,
    missing,
    unknown_name,
)
from implicit_reg._checks.numbers import (
    check_flag,
    check_fraction,
    check_integer,
    check_level,
    check_number,
    check_real_array,
    check_seed,
    check_times,
    check_tolerance,
    check_traceable_integer,
    check_vector,
    is_concrete,
)
from implicit_reg._checks.trees import (
    check_batches,
    check_equal_lengths,
    check_floating,
    check_mask,
    check_path_mask,
    check_same_tree,
    is_function,
    path_name,
)

__all__ = [
    "ConfigMismatchError",
    "CorruptResultError",
    "EnvironmentMismatchError",
    "ImplicitRegError",
    "LockedError",
    "check_batches",
    "check_callable",
    "check_equal_lengths",
    "check_flag",
    "check_floating",
    "check_fraction",
    "check_integer",
    "check_level",
    "check_loss_output",
    "check_loss_value",
    "check_mask",
    "check_no_memory",
    "check_number",
    "check_pair",
    "check_path_mask",
    "check_real_array",
    "check_same_tree",
    "check_seed",
    "check_state",
    "check_times",
    "check_tolerance",
    "check_traceable_integer",
    "check_transformation",
    "check_vector",
    "indivisible",
    "is_concrete",
    "is_function",
    "masked_params",
    "missing",
    "path_name",
    "unknown_name",
]
