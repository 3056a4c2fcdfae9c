"""Every check of an argument, and every error text: what was wanted, what came, and the cure.

The rules. Python and NumPy scalars are judged by type and range when an object is built; JAX arrays by dtype and shape
alone, for their value may be traced (schedules, `inject_hyperparams`, `vmap` over a hyperparameter) and reading it
would wait for the device. `bool` is not a number. Wrong type: TypeError; wrong value: ValueError; wrong state of the
world: a subclass of `ImplicitRegError`. The NaN test is written `not (low <= x)`, which NaN fails.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class ImplicitRegError(RuntimeError):
    """The arguments are fine; the state of the world (a file, a lock, a precision) is not."""


class CorruptResultError(ImplicitRegError):
    """A file of results is truncated, damaged, or not of this library."""


class ConfigMismatchError(ImplicitRegError):
    """A folder was written with other settings than those asked for now."""


def path_name(root: str, path: tuple) -> str:
    """`root['dense']['w']` from a key path of `jax.tree_util`."""
    return root + jax.tree_util.keystr(path)


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


def check_callable(function: str, argument: str, value: Any, what: str) -> None:
    """Something to call; `what` says which signature."""
    if not callable(value):
        raise TypeError(
            f"{function}: `{argument}` must be callable: {what}; got {value!r} of type {type(value).__name__}"
        )


def check_transformation(function: str, argument: str, value: Any) -> None:
    """An Optax gradient transformation, and not a factory that still wants its learning rate."""
    if hasattr(value, "init") and hasattr(value, "update"):
        return
    name = getattr(value, "__name__", None)
    hint = f". Did you mean {name}(learning_rate)?" if callable(value) and name else ""
    raise TypeError(
        f"{function}: `{argument}` must be an optax.GradientTransformation, got {value!r} of type "
        f"{type(value).__name__}{hint}"
    )


def check_state(function: str, state: Any, expected: type) -> None:
    """The state that `init` made, with its structure (a bad restore gives a tuple or a dict)."""
    if not isinstance(state, expected):
        raise TypeError(
            f"{function}: the state must be {expected.__name__}, got {type(state).__name__}; was it made by another "
            f"transformation, or restored without its structure? Restore it into the result of init(params)."
        )


def check_floating(
    function: str, argument: str, tree: Any, *, allow_complex: bool = False, allow_empty: bool = False
) -> None:
    """A pytree whose leaves are all floating (or complex, where `allow_complex`)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves and not allow_empty:
        raise ValueError(f"{function}: `{argument}` must have at least one leaf, got {tree!r}")
    for path, leaf in leaves:
        name = path_name(argument, path)
        try:
            dtype = jax.dtypes.result_type(leaf)
        except TypeError as error:
            raise TypeError(f"{function}: {name} must be a floating array, got {type(leaf).__name__}") from error
        if jnp.issubdtype(dtype, jnp.complexfloating):
            if not allow_complex:
                raise TypeError(f"{function}: {name} has dtype {dtype}; complex parameters are not supported here")
        elif not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{function}: {name} has dtype {dtype}; every leaf must be floating. Keep the others out of the tree "
                f"(optax.masked, equinox.partition or flax.nnx.split)."
            )


def check_same_tree(function: str, name_a: str, a: Any, name_b: str, b: Any, *, shapes: bool = True) -> None:
    """Equal structure and, where `shapes`, equal shapes of the leaves; the first difference is named."""
    leaves_a, leaves_b = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
    structure_a, structure_b = jax.tree.structure(a), jax.tree.structure(b)
    if structure_a != structure_b:
        paths_a, paths_b = ([jax.tree_util.keystr(p) for p, _ in leaves] for leaves in (leaves_a, leaves_b))
        first = next((p for p in paths_a if p not in paths_b), None) or next(
            (p for p in paths_b if p not in paths_a), ""
        )
        where = f"; the first leaf that only one of them has is {first}" if first else ""
        raise ValueError(
            f"{function}: `{name_a}` and `{name_b}` must have the same structure{where}: got {structure_a} "
            f"and {structure_b}"
        )
    if not shapes:
        return
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
        if jnp.shape(x) != jnp.shape(y):
            raise ValueError(
                f"{function}: {path_name(name_a, path)} has shape {jnp.shape(x)} but {path_name(name_b, path)} has "
                f"shape {jnp.shape(y)}; they must be equal (Optax would broadcast)"
            )


def check_loss_value(function: str, argument: str, value: Any) -> None:
    """A real floating scalar; shape (1,) is not squeezed."""
    dtype = jax.dtypes.result_type(value)
    if jnp.shape(value) != ():
        raise ValueError(f"{function}: `{argument}` must be a scalar loss, got shape {jnp.shape(value)}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{function}: `{argument}` must be a real floating scalar, got dtype {dtype}")


def missing(function: str, argument: str, call: str) -> ValueError:
    """The error for an extra argument that a transformation lives on and did not get."""
    return ValueError(f"{function} needs `{argument}`: call {call}")


def unknown_name(function: str, argument: str, value: Any, known: Iterable[str]) -> ValueError:
    """The error for a name that is in no table: the known ones, and the nearest."""
    known = list(known)
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{function}: unknown {argument} {value!r}.{hint} Known: {', '.join(known)}")


def check_batches(function: str, batches: Any, num_steps: int) -> tuple:
    """A tuple of pytrees whose leaves have leading axis `num_steps`; None is the empty tuple."""
    if batches is None:
        return ()
    if not isinstance(batches, tuple):
        raise TypeError(
            f"{function}: `batches` must be a tuple with one pytree for each argument of loss_fn after params, got "
            f"{type(batches).__name__}; a single one is written (batch,)"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(batches):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_steps:
            raise ValueError(
                f"{function}: {path_name('batches', path)} must have leading axis num_steps={num_steps}, got shape "
                f"{shape}"
            )
    return jax.tree.map(jnp.asarray, batches)


def check_times(function: str, argument: str, ts: Any) -> Any:
    """One-dimensional times, strictly increasing from at least 0; concrete ones are returned as float64 NumPy."""
    if isinstance(ts, jax.core.Tracer):
        if ts.ndim != 1 or ts.shape[0] == 0:
            raise ValueError(f"{function}: `{argument}` must be a vector of times, got shape {ts.shape}")
        return ts
    try:
        times = np.asarray(ts, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: `{argument}` must be a vector of times, got {ts!r}") from error
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


def check_vector(function: str, argument: str, value: Any) -> np.ndarray:
    """A vector of real numbers, as float64 NumPy."""
    try:
        vector = np.asarray(value)
        if vector.dtype == bool or not (
            np.issubdtype(vector.dtype, np.floating) or np.issubdtype(vector.dtype, np.integer)
        ):
            raise TypeError
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: `{argument}` must be a vector of real numbers, got {value!r}") from error
    if vector.ndim != 1:
        raise ValueError(f"{function}: `{argument}` must be a vector, got shape {vector.shape}")
    return vector.astype(np.float64)


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


def check_mask(function: str, argument: str, mask: Any, tree: Any) -> None:
    """A pytree of bools structured as `tree`, or as a prefix of it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(mask):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(
                f"{function}: {path_name(argument, path)} must be True or False, got {leaf!r} of type "
                f"{type(leaf).__name__}; a mask is static"
            )
    try:
        jax.tree.broadcast(mask, tree)
    except ValueError as error:
        raise ValueError(
            f"{function}: `{argument}` must have the structure of the parameters, or of a prefix of it; got "
            f"{jax.tree.structure(mask)} for {jax.tree.structure(tree)}"
        ) from error


def masked_params(function: str) -> ValueError:
    """The error for a loss that would meet the holes which `optax.masked` and `optax.partition` leave."""
    return ValueError(
        f"{function}: `params` hold optax.MaskedNode where optax.masked or optax.partition left other parameters out, "
        f"and a loss cannot be evaluated on them: call update(grads, state, params, "
        f"value_fn=fill_masked(value_fn, params)) with all the parameters."
    )


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


def check_loss_output(function: str, value: Any, *, ndim: int, cure: str) -> None:
    """What a loss returned: a real floating scalar (`ndim` 0) or a vector of them; a TypeError as JAX's own."""
    wanted = "a real floating scalar" if ndim == 0 else "a vector of real floating losses, one for each example"
    if isinstance(value, jax.Array | np.ndarray | np.generic | float):
        shape, dtype = jnp.shape(value), jax.dtypes.result_type(value)
        if len(shape) == ndim and jnp.issubdtype(dtype, jnp.floating):
            return
        got = f"shape {shape} and dtype {dtype}"
    else:
        got = f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
    raise TypeError(f"{function}: loss_fn must return {wanted}, got {got}{cure}")


def check_pair(function: str, value: Any) -> None:
    """What a loss with auxiliary output returned."""
    if not isinstance(value, tuple) or len(value) != 2:
        got = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
        raise TypeError(f"{function}: with has_aux=True loss_fn must return (loss, aux), got {got}")


def indivisible(function: str, path: tuple, shape: tuple, num_microbatches: int) -> ValueError:
    """The error for a batch that cannot be cut into equal microbatches."""
    return ValueError(
        f"{function}: {path_name('batch', path)} must have a leading axis divisible by "
        f"num_microbatches={num_microbatches}, got shape {shape}; what all microbatches share goes in by keyword"
    )


def check_path_mask(function: str, argument: str, mask: Any, paths: list, known: list) -> list[bool]:
    """A pytree of bools, matched by path: one for every one of `paths`, or for a prefix of it; none but of `known`."""
    entries = jax.tree_util.tree_leaves_with_path(mask)
    for path, leaf in entries:
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(
                f"{function}: {path_name(argument, path)} must be True or False, got {leaf!r} of type "
                f"{type(leaf).__name__}; a mask is static"
            )
        if not any(other[: len(path)] == path for other in known):
            raise ValueError(f"{function}: {path_name(argument, path)} is of no leaf of the parameters")
    chosen = []
    for path in paths:
        found = [bool(leaf) for prefix, leaf in entries if path[: len(prefix)] == prefix]
        if not found:
            raise ValueError(f"{function}: `{argument}` says nothing of {path_name('params', path)}")
        chosen.append(found[0])
    return chosen


def check_equal_lengths(function: str, arrays: list) -> None:
    """Arrays of a batch, with one length of their leading axes."""
    lengths = sorted({jnp.shape(x)[0] for x in arrays})
    if len(lengths) != 1:
        raise ValueError(
            f"{function}: every array of the batch must have the same length of its leading axis, got "
            f"{', '.join(map(str, lengths)) or 'no array'}; what all microbatches share goes in by keyword"
        )


def check_no_memory(function: str, argument: str, state: Any) -> None:
    """A state of counters and constant hyperparameters alone: nothing that the next step would have to see."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        dtype = jax.dtypes.result_type(leaf)
        constant = any(getattr(key, "name", None) == "hyperparams" for key in path)
        if not constant and not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)):
            raise ValueError(
                f"{function}: `{argument}` must have no memory, but {path_name('state', path)} has dtype {dtype}; use "
                f"it in the optimizer's chain, and pass the extra arguments there"
            )
