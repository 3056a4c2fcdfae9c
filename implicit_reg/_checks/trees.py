"""Checks of pytrees; the path of the first leaf at fault is named."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def path_name(root: str, path: tuple) -> str:
    """`root['dense']['w']` from a key path of `jax.tree_util`."""
    return root + jax.tree_util.keystr(path)


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
                f"{shape}; make it one array"
            )
    return jax.tree.map(jnp.asarray, batches)


def is_function(mask: Any) -> bool:
    """Whether it makes a mask, and is not a module of bools that happens to have a `__call__`."""
    return callable(mask) and jax.tree_util.all_leaves([mask])


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
