"""What identifies a sweep: the function, what it closes over, the settings, the key and the width."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from implicit_reg.experiments.axes import Runs, describe, function_name

_DEEP = 4  # functions that close over functions: how far down they are read


def configuration(fn: Callable[..., Any], runs: Runs, key: jax.Array, width: int, identity: Any) -> dict[str, Any]:
    """All that decides the results of a sweep, ready for JSON.

    Args:
      fn: the function that is swept.
      runs: its settings.
      key: the root of all randomness.
      width: lanes per device and call.
      identity: what else the caller declares.

    Returns:
      A dictionary; a sweep is continued only where it is equal.
    """
    return {
        "fn": fingerprint(fn),
        "settings": runs.plain_axes() or [describe(row) for row in runs.settings],
        "constants": sorted(set().union(*runs.constants)),
        "key": {"impl": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()},
        "width": width,
        "identity": identity,
    }


def fingerprint(fn: Any, depth: int = _DEEP) -> Any:
    """A callable by its name, its source without comments and layout, and what it closes over.

    Args:
      fn: a function, a partial, or a callable object.
      depth: how many functions deep.

    Returns:
      JSON: equal for the same code with the same numbers. What a function reads from globals is not seen.

    Example:
      >>> def scaled(a):
      ...     return lambda x: a * x
      >>> fingerprint(scaled(2)) == fingerprint(scaled(2)), fingerprint(scaled(2)) == fingerprint(scaled(3))
      (True, False)
    """
    if isinstance(fn, functools.partial):
        bound = {"args": [_value(v, depth) for v in fn.args], "keywords": _mapping(fn.keywords, depth)}
        return {"partial": fingerprint(fn.func, depth), **bound}
    if isinstance(fn, types.MethodType):
        return {"method": function_name(fn), "self": _value(fn.__self__, depth), "code": _source(fn.__func__)}
    inner = inspect.unwrap(fn) if hasattr(fn, "__wrapped__") else fn
    if not isinstance(inner, types.FunctionType):
        return {"name": function_name(fn), "object": _value(fn, depth)}
    names, cells = inner.__code__.co_freevars, inner.__closure__ or ()
    closed = {name: _cell(cell, depth) for name, cell in zip(names, cells, strict=True)}
    return {"name": function_name(inner), "code": _source(inner), **({"closure": closed} if closed else {})}


def _cell(cell: Any, depth: int) -> Any:
    try:
        return _value(cell.cell_contents, depth)
    except ValueError:  # an empty cell
        return None


def _source(fn: types.FunctionType) -> str:
    """A hash of the source, by its syntax tree where it parses alone; of the bytecode where there is no source."""
    try:
        text = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError):
        return hashlib.sha256(fn.__code__.co_code + repr(fn.__code__.co_names).encode()).hexdigest()[:16]
    with contextlib.suppress(SyntaxError):  # a lambda in the middle of an expression
        text = ast.dump(ast.parse(text))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mapping(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {str(name): _value(value, depth) for name, value in values.items()}


def _value(value: Any, depth: int) -> Any:
    """A closed-over value: plain ones as they are, arrays by hash, functions by fingerprint, others by type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, jax.core.Tracer):
        return _array(value)
    if depth <= 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return _mapping(value, depth - 1)
    if isinstance(value, list | tuple | range):
        return [_value(inner, depth - 1) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return {type(value).__qualname__: _mapping(fields, depth - 1)}
    if isinstance(value, functools.partial | types.FunctionType | types.MethodType):
        return fingerprint(value, depth - 1)
    return type(value).__qualname__


def _array(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(np.asarray(value))
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} {digest}"
