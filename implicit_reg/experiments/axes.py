"""What a sweep runs: one dictionary of settings per run, and which of them are operands and which are constants."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from implicit_reg._types import Axes

SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Static:
    """A setting that is a constant of the compiled program, such as a width; made by `static`."""

    value: Any


def static(values: Any) -> Any:
    """Marks settings as constants of the compiled program: one compilation for each.

    A number is an operand otherwise, so that all its values share one compilation; what decides a shape, or a Python
    `if`, must be a constant. Texts, booleans, None and callables are constants without being marked.

    Args:
      values: a sequence for an axis, or one value.

    Returns:
      A list of marked values, or one marked value.

    Example:
      >>> static([50, 100])
      [Static(value=50), Static(value=100)]
    """
    if isinstance(values, Sequence | range | np.ndarray) and not isinstance(values, str | bytes):
        return [Static(value) for value in values]
    return Static(values)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a sweep, in order.

    Attributes:
      settings: for each run its settings, the seed included, as plain Python values.
      constants: for each run the names of those that are constants of its program.
      axes: names to values for a grid, None for a list of settings.
    """

    settings: tuple[Mapping[str, Any], ...]
    constants: tuple[frozenset[str], ...]
    axes: Mapping[str, tuple[Any, ...]] | None

    def __len__(self) -> int:
        return len(self.settings)

    def program(self, row: int) -> Hashable:
        """What distinguishes the compiled programs: names, constants and kinds of number of a run."""
        return tuple(
            (name, "constant", type(value), value)
            if name in self.constants[row]
            else (name, "operand", float if isinstance(value, float) else int, None)
            for name, value in sorted(self.settings[row].items())
            if name != SEED
        )

    def plain_axes(self) -> dict[str, list[Any]] | None:
        """The axes as JSON holds them, None for a list of settings."""
        return self.axes and {name: [_plain(value) for value in values] for name, values in self.axes.items()}

    def seed(self, row: int) -> int:
        """The seed of a run, 0 where there is none."""
        return self.settings[row].get(SEED, 0)


def make_runs(axes: Axes) -> Runs:
    """Expands a grid, or takes a list of settings, and judges it.

    Args:
      axes: names to sequences of values (their product, the last name fastest), or a list of dictionaries.

    Returns:
      The runs.

    Raises:
      TypeError: a value is no number, text, boolean, None, callable or `static`.
      ValueError: no run, a number that is not finite, the same settings twice, a name that Python cannot pass.

    Example:
      >>> runs = make_runs({"h": [0.1, 0.2], "seed": range(2)})
      >>> [dict(run) for run in runs.settings][:2]
      [{'h': 0.1, 'seed': 0}, {'h': 0.1, 'seed': 1}]
    """
    grid = None
    if isinstance(axes, Mapping):
        for name, values in axes.items():
            if isinstance(values, str) or not isinstance(values, Sequence | range | np.ndarray):
                raise TypeError(f"sweep: axes[{name!r}] must be a sequence of values, got {type(values).__name__}")
        marked = {name: list(values) for name, values in axes.items()}
        rows = expand(marked)
        grid = marked
    elif isinstance(axes, Sequence) and not isinstance(axes, str):
        rows = [dict(row) for row in axes]
        if len({frozenset(row) for row in rows}) > 1:
            raise ValueError("sweep: all settings in the list `axes` must have the same names")
    else:
        raise TypeError(f"sweep: `axes` must be a dictionary of sequences or a list of dictionaries, got {type(axes)}")
    if not rows or not rows[0]:
        raise ValueError("sweep has 0 runs: each axis needs at least one value, and there must be an axis")
    floats = {name for row in rows for name, value in row.items() if _is_float(value)}
    cleaned, constants = [], []
    for row in rows:
        plain, fixed = {}, set()
        for name, value in row.items():
            plain[name], constant = _clean(name, value, name in floats)
            if constant:
                fixed.add(name)
        cleaned.append(plain)
        constants.append(frozenset(fixed))
    _refuse_duplicates(cleaned)
    if grid is not None:
        grid = {
            name: tuple(_clean(name, value, name in floats)[0] for value in values) for name, values in grid.items()
        }
    return Runs(tuple(cleaned), tuple(constants), grid)


def expand(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The runs of a grid, the last axis fastest.

    Args:
      axes: names to values.

    Returns:
      A dictionary for each run.

    Example:
      >>> expand({"h": [1, 2], "n": [3]})
      [{'h': 1, 'n': 3}, {'h': 2, 'n': 3}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _is_float(value: Any) -> bool:
    return isinstance(value, float | np.floating)


def _clean(name: Any, value: Any, as_float: bool) -> tuple[Any, bool]:
    """A setting as a plain Python value, and whether it is a constant."""
    if not isinstance(name, str) or not name.isidentifier() or name == "key":
        raise ValueError(f"sweep: a setting's name must be a Python identifier other than `key`, got {name!r}")
    constant = isinstance(value, Static)
    value = value.value if constant else value
    value = value.item() if isinstance(value, np.generic) else value
    if name == SEED:
        if constant or isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            raise ValueError(f"sweep: `seed` must be an int in [0, 2**32), got {value!r}")
        return value, False
    if value is None or isinstance(value, bool | str) or callable(value):
        return value, True
    if not isinstance(value, int | float):
        raise TypeError(
            f"sweep: `{name}` must be a number, a text, a boolean, None or a callable, got {type(value).__name__}; "
            f"pass a name and look the object up in `fn`"
        )
    if not math.isfinite(value):
        raise ValueError(f"sweep: `{name}` must be finite, got {value}")
    if constant:
        return value, True
    if as_float:
        return float(value), False
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"sweep: the operand `{name}` must fit into 32 bits, got {value}; pass a float or static")
    return value, False


def _refuse_duplicates(rows: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[Any, int] = {}
    for row in rows:
        # 1, 1.0 and True are equal to Python.
        fingerprint = tuple((name, type(value), value) for name, value in sorted(row.items()))
        if fingerprint in seen:
            raise ValueError(f"sweep: the same settings twice: {describe(row)}; repeat runs with a `seed` axis")
        seen[fingerprint] = 1


def describe(row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them: a callable by its name.

    Args:
      row: settings of a run.

    Returns:
      The same, with texts for callables.

    Example:
      >>> describe({"h": 0.1, "fn": math.sqrt})
      {'h': 0.1, 'fn': 'math:sqrt'}
    """
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    return function_name(value) if callable(value) else value


def function_name(fn: Callable[..., Any]) -> str:
    """`module:qualified name` of a callable, of what it wraps for a partial.

    Args:
      fn: any callable.

    Returns:
      Its name.

    Example:
      >>> function_name(math.sqrt)
      'math:sqrt'
    """
    while hasattr(fn, "func"):
        fn = fn.func
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    return f"{getattr(fn, '__module__', type(fn).__module__)}:{name}"
