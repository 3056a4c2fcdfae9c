"""Checks of numbers and vectors of numbers."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(x: Any) -> bool:
    """Whether the value can be read without waiting for a device: a Python or NumPy number or array."""
    return isinstance(x, numbers.Number | np.ndarray | np.generic)


def check_number(
    function: str, argument: str, value: Any, *, low: float | int = -math.inf, exclusive: bool = False, why: str = ""
) -> None:
    """A finite real scalar, `low <= value` (or `low < value`)."""
    interval = ("greater than" if exclusive else "at least") + f" {low:g}" if low > -math.inf else ""
    wanted = "a finite real number" + (f", {interval}" if interval else "")
    text = f"{function}: `{argument}` must be {wanted}"
    suffix = f"; {why}" if why else ""
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(f"{text}, a scalar; got shape {value.shape}. Use jax.vmap for several values{suffix}")
        if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
            raise TypeError(f"{text}, got dtype {value.dtype}{suffix}")
        return
    if isinstance(value, np.ndarray):
        if value.shape != ():
            raise ValueError(f"{text}, a scalar; got shape {value.shape}. Use jax.vmap for several values{suffix}")
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.floating | np.integer):
        raise TypeError(f"{text}, got {value!r} of type {type(value).__name__}{suffix}")
    if not math.isfinite(value):
        raise ValueError(f"{text}, got {value}{suffix}")
    if not (low < value if exclusive else low <= value):
        raise ValueError(f"{text}, got {value}{suffix}")


def check_integer(function: str, argument: str, value: Any, *, low: int = 1, why: str = "") -> None:
    """A Python or NumPy integer, at least `low`; never a bool or a float."""
    text = f"{function}: `{argument}` must be an integer, at least {low}"
    suffix = f"; {why}" if why else ""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral | np.integer):
        raise TypeError(f"{text}, got {value!r} of type {type(value).__name__}{suffix}")
    if value < low:
        raise ValueError(f"{text}, got {value}{suffix}")


def check_seed(function: str, argument: str, value: Any) -> None:
    """An integer in [0, 2**32): outside of it JAX's keys coincide or depend on the x64 flag."""
    check_integer(function, argument, value, low=0)
    if value >= 2**32:
        raise ValueError(f"{function}: `{argument}` must be below 2**32, got {value}")


def check_times(function: str, argument: str, ts: Any) -> Any:
    """One-dimensional times, strictly increasing from at least 0; concrete ones are returned as float64 NumPy."""
    if isinstance(ts, jax.core.Tracer):
        if ts.ndim != 1 or ts.shape[0] == 0:
            raise ValueError(f"{function}: `{argument}` must be a vector of times, got shape {ts.shape}")
        return ts
    times = check_real_array(function, argument, ts)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(f"{function}: `{argument}` must be a vector of times, got shape {times.shape}")
    if not np.all(np.isfinite(times)):
        raise ValueError(f"{function}: `{argument}` must be finite, got {times}")
    if not times[0] >= 0 or not np.all(np.diff(times) > 0):
        raise ValueError(f"{function}: `{argument}` must increase strictly from at least 0, got {times}")
    return times


def check_tolerance(function: str, argument: str, value: Any, default: float, dtype: Any) -> float:
    """A solver's tolerance that the dtype can hold; None is the default."""
    if value is None:
        return default
    check_number(function, argument, value, low=0, exclusive=True)
    floor = 4 * float(jnp.finfo(dtype).eps)
    if not float(value) >= floor:
        raise ValueError(
            f"{function}: `{argument}`={value} is below what {dtype} holds ({floor:.1e}); loosen it, or use float64 "
            f"parameters (jax.enable_x64)"
        )
    return float(value)


def check_real_array(function: str, argument: str, value: Any) -> np.ndarray:
    """Real numbers in an array of any shape, as float64 NumPy."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: `{argument}` must be real numbers, got {value!r}") from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{function}: `{argument}` must be real numbers, got {value!r} of dtype {array.dtype}")
    return array.astype(np.float64)


def check_vector(function: str, argument: str, value: Any) -> np.ndarray:
    """A vector of real numbers, as float64 NumPy."""
    vector = check_real_array(function, argument, value)
    if vector.ndim != 1:
        raise ValueError(f"{function}: `{argument}` must be a vector, got shape {vector.shape}")
    return vector


def check_traceable_integer(function: str, argument: str, value: Any, *, low: int = 1, why: str = "") -> None:
    """As `check_integer`, and a JAX integer scalar too, whose value is not read (`optax.inject_hyperparams`)."""
    if not isinstance(value, jax.Array):
        return check_integer(function, argument, value, low=low, why=why)
    text = f"{function}: `{argument}` must be an integer, at least {low}"
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{text}, got dtype {value.dtype}")
    if value.shape != ():
        raise ValueError(f"{text}, a scalar; got shape {value.shape}")


def check_flag(function: str, argument: str, value: Any) -> None:
    """True or False, and nothing that only behaves like one."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: `{argument}` must be True or False, got {value!r} of type {type(value).__name__}")


def check_level(function: str, value: Any, *, vector: bool, schedules: str = "") -> None:
    """A flood level: a finite real scalar or, where `vector`, one for each example; `schedules` takes callables."""
    if callable(value):
        cure = f"; for a schedule use the transformation `{schedules}`, which counts steps" if schedules else ""
        raise TypeError(f"{function}: `level` must be a real number, got the callable {value!r}{cure}")
    shape = value.shape if isinstance(value, jax.Array | np.ndarray) else ()
    if len(shape) != 1:
        check_number(function, "level", value)
    elif not vector:
        raise ValueError(
            f"{function}: `level` must be a scalar, got shape {shape}; one level for each example needs "
            f"per_example=True, several runs need jax.vmap"
        )
    elif not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{function}: `level` must be real, got dtype {value.dtype}")
    elif is_concrete(value) and not np.all(np.isfinite(np.asarray(value, np.float64))):
        raise ValueError(f"{function}: `level` must be finite, got {value}")


def check_fraction(function: str, argument: str, value: Any) -> None:
    """A number in [0, 1]."""
    check_number(function, argument, value, low=0)
    if is_concrete(value) and not value <= 1:
        raise ValueError(f"{function}: `{argument}` must be at most 1, got {value}")
