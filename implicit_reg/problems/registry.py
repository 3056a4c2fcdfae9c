"""The problems by name, and a user's own by `module:attribute`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.problems.edge import chebyshev_tanh, diabetes_tanh, sharpening_valley
from implicit_reg.problems.named import STIFF_START, factorization, nonquadratic, quadratic
from implicit_reg.problems.networks import digits_tanh, tanh_network
from implicit_reg.problems.plugins import load_attribute
from implicit_reg.problems.problem import Problem

# Each is called with `seed=` and `dtype=`; what else a problem can be asked for, its own function says.
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "factorization": lambda seed, **options: factorization(**options),
    "factorization-stiff": lambda seed, **options: factorization(start=STIFF_START, **options),
    "nonquadratic": lambda seed, **options: nonquadratic(**options),
    "quadratic": quadratic,
    "tanh-network": tanh_network,
    "digits-tanh": digits_tanh,
    "edge-valley": lambda seed, **options: sharpening_valley(**options),
    "edge-valley-2": lambda seed, **options: sharpening_valley(2, **options),
    "diabetes-tanh": diabetes_tanh,
    "diabetes-tanh-2": lambda seed, **options: diabetes_tanh(seed, width=2, **options),
    "chebyshev-tanh": chebyshev_tanh,
}


def load_problem(name: str, *, seed: Integer = 0, dtype: Any = None) -> Problem:
    """The problem with this name, or a user's own.

    Args:
      name: a key of `PROBLEMS`, or "module:attribute" where the attribute is a `Problem`, or a function of the
        keyword `dtype` that returns one.
      seed: of what is random in it (data, split, start); a user's own problem has its own.
      dtype: of the parameters; `None` is JAX's default. A ready-made `Problem` keeps its own.

    Returns:
      A `Problem`.

    Raises:
      ValueError: for a name that is not known (the message lists the known ones and the nearest).
      TypeError: where "module:attribute" is something else.

    Example:
      >>> load_problem("factorization").description
      '(y - a b x)^2 / 2: a hyperbola of minima.'
    """
    _checks.check_seed("load_problem", "seed", seed)
    if name in PROBLEMS:
        return PROBLEMS[name](seed=seed, dtype=dtype)
    if ":" not in str(name):
        raise _checks.unknown_name("load_problem", "problem", name, [*PROBLEMS, "module:attribute"])
    value = load_attribute("load_problem", "problem", name)
    if callable(value) and not isinstance(value, Problem):
        value = value(dtype=dtype)
    if not isinstance(value, Problem):
        raise TypeError(
            f"load_problem: {name} must be an implicit_reg.problems.Problem, or a function of `dtype` that returns "
            f"one; got {type(value).__name__}"
        )
    return value
