"""Checks of functions, transformations, states and what a loss returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicit_reg._checks.trees import path_name


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


def check_loss_value(function: str, argument: str, value: Any) -> None:
    """A real floating scalar; shape (1,) is not squeezed."""
    cure = "; a loss that returns more is written lambda *args: loss(*args)[0]" if isinstance(value, tuple) else ""
    wanted = f"{function}: `{argument}` must be a scalar loss, got a {type(value).__name__}{cure}"
    if not jax.tree_util.all_leaves([value]):
        raise TypeError(wanted)
    try:
        dtype = jax.dtypes.result_type(value)
    except TypeError as error:
        raise TypeError(wanted) from error
    if jnp.shape(value) != ():
        raise ValueError(f"{function}: `{argument}` must be a scalar loss, got shape {jnp.shape(value)}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{function}: `{argument}` must be a real floating scalar, got dtype {dtype}")


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
