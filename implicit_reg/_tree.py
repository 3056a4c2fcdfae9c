"""Pytree arithmetic that `optax.tree` lacks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


def axpy(a: object, x: PyTree, y: PyTree) -> PyTree:
    """`a x + y`, every leaf in the dtype of the leaf of `y`, so that no scalar promotes it."""

    def leaf(x, y):
        y = jnp.asarray(y)
        return jnp.asarray(a).astype(y.dtype) * jnp.asarray(x).astype(y.dtype) + y

    return jax.tree.map(leaf, x, y)


def scale(a: object, x: PyTree) -> PyTree:
    """`a x`, every leaf in its own dtype."""
    return jax.tree.map(lambda x: jnp.asarray(a).astype(jnp.asarray(x).dtype) * x, x)


def squared_norm(x: PyTree) -> Array:
    """`sum |x_i|^2` over all leaves, accumulated in float32 or, where a leaf is wider, in its precision."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(x)]
    dtype = jnp.result_type(jnp.float32, *(jnp.finfo(leaf.dtype).dtype for leaf in leaves))

    def one(leaf):
        wide = leaf.astype(jnp.result_type(leaf.dtype, dtype))
        return jnp.sum((wide * jnp.conj(wide)).real).astype(dtype)

    return sum((one(leaf) for leaf in leaves), start=jnp.zeros((), dtype))


def real_dtype(tree: PyTree) -> np.dtype:
    """The coarsest real floating dtype among the leaves: the precision that the whole tree can hold."""
    return max((jnp.finfo(jnp.asarray(leaf).dtype) for leaf in jax.tree.leaves(tree)), key=lambda f: float(f.eps)).dtype


def widest_dtype(tree: PyTree) -> np.dtype:
    """The precision of numbers that act on all leaves: the widest real dtype among them, at least float32."""
    return wide(*(jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)))


def like(tree: PyTree, reference: PyTree) -> PyTree:
    """`tree` with the dtypes of `reference`."""
    return jax.tree.map(lambda x, r: jnp.asarray(x).astype(jnp.result_type(r)), tree, reference)


def strong(tree: PyTree) -> PyTree:
    """Arrays without weak types, so that a loop carries them unchanged; an array that is strong is left as it is."""

    def leaf(x):
        if isinstance(x, jax.Array) and not x.weak_type:
            return x
        return jax.lax.convert_element_type(jnp.asarray(x), jnp.result_type(x))

    return jax.tree.map(leaf, tree)


def all_finite(tree: PyTree) -> Array:
    """Whether every entry of every leaf is finite, as one boolean."""
    flags = (jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))


def wide(*dtypes: np.dtype) -> np.dtype:
    """The widest real precision among the inexact dtypes and float32.

    `jnp.promote_types` says the same, but refuses under `jax_numpy_dtype_promotion="strict"`.
    """
    inexact = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return max((jnp.finfo(dtype).dtype for dtype in (jnp.float32, *inexact)), key=lambda dtype: jnp.finfo(dtype).bits)
