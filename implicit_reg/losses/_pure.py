"""A loss and its gradient, with whatever model they are of, as a function of arrays alone.

A rule of differentiation needs a function whose inputs are all visible: not hidden in a closure, in a module, or in a
reference to a module's state. Pytrees are flattened; `flax.nnx` objects are split, run as a fresh copy at every
evaluation, and updated once at the end; arrays of the closure are hoisted; everything else is static.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.tree_util import SequenceKey, keystr

from implicit_reg import _checks
from implicit_reg._types import Loss


class PureLoss(NamedTuple):
    """What `trace` makes.

    Attributes:
      run: `run(inputs) -> (value, gradients, aux, state)`: lists of arrays but for the value.
      inputs: the arrays: of the parameters, the batch and the keyword arguments, and then of the closure.
      own: `gradients[j]` is the derivative with respect to `inputs[own[j]]`.
      batch: which inputs came with `*batch`.
      stateful: `state[j]` is what the evaluation made of `inputs[stateful[j]]` (batch statistics, random counters).
      parameters: the parameters, in the structure of the gradient.
      paths: of every leaf of the parameters, the gradient's first.
      dtype: of the value.
      finish: `finish(aux, state)` writes the state into the model and rebuilds the auxiliary output.
    """

    run: Callable[[Sequence], tuple[jax.Array, list, list, list]]
    inputs: list
    own: list[int]
    batch: list[int]
    stateful: list[int]
    parameters: Any
    paths: list[tuple]
    dtype: Any
    finish: Callable[[list, list], Any]


class _Objects:
    """The `flax.nnx` objects among the leaves of a tree: a model, streams of random numbers."""

    def __init__(self, flat: list[tuple[tuple, Any]]):
        self.nnx, self.found = _nnx(), {}
        if self.nnx is not None:
            self.found = {i: leaf for i, (_, leaf) in enumerate(flat) if isinstance(leaf, self.nnx.Pytree)}
        self.leaves = []
        if self.found:
            self.graphdef, state = self.nnx.split(self.found)
            leaves, self.treedef = jax.tree_util.tree_flatten_with_path(state)
            self.leaves = [(flat[path[0].key][0] + path[1:], leaf) for path, leaf in leaves]

    def rebuild(self, values: Sequence) -> dict[int, Any]:
        if not self.found:
            return {}
        return self.nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, values))

    def read(self, function: str, objects: dict[int, Any]) -> list:
        """The leaves of copies that a loss has used."""
        if not self.found:
            return []
        leaves, treedef = jax.tree.flatten(self.nnx.state(objects))
        if treedef != self.treedef:
            raise ValueError(
                f"{function}: loss_fn added or removed variables of the model (by `sow`, or by lazy initialization); "
                f"call the model once before, or return what it should record as aux"
            )
        return leaves

    def write(self, values: Sequence) -> None:
        """Updates the variables that have changed, and no other: the rest may not be ours to touch."""
        changed = [new is not old for new, (_, old) in zip(values, self.leaves, strict=True)]
        if not any(changed):
            return
        flag = dict(self.nnx.to_flat_state(jax.tree.unflatten(self.treedef, changed)))
        new = dict(self.nnx.to_flat_state(jax.tree.unflatten(self.treedef, values)))
        kept = {path: variable for path, variable in new.items() if any(jax.tree.leaves(flag[path]))}
        self.nnx.update(self.found, self.nnx.from_flat_state(kept))


def _nnx():
    """flax.nnx, if the user has it loaded; who has not, has no object of it."""
    return sys.modules.get("flax.nnx")


def _is_array(x: Any) -> bool:
    if isinstance(x, jax.Array):
        return True
    return isinstance(x, np.ndarray | np.generic) and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)


_ARRAY = object()  # stands for an array among the static leaves


def _position(function: str, position: dict[str, int], path: tuple) -> int:
    if keystr(path) not in position:
        raise TypeError(
            f"{function}: `value_and_grad` returned a gradient with a leaf at {keystr(path)!r}, where the parameters "
            f"have none; it must differentiate with respect to the first argument"
        )
    return position[keystr(path)]


def _slice(function: str, path: tuple, leaf: Any, num_microbatches: int) -> jax.ShapeDtypeStruct:
    """One microbatch of a leaf of the batch."""
    shape = jnp.shape(leaf)
    if not shape or shape[0] == 0 or shape[0] % num_microbatches:
        raise _checks.indivisible(function, path[1:], shape, num_microbatches)
    return jax.ShapeDtypeStruct((shape[0] // num_microbatches, *shape[1:]), leaf.dtype)


def trace(
    function: str,
    loss_fn: Loss,
    value_and_grad: Callable,
    has_aux: bool,
    params: Any,
    batch: tuple,
    kwargs: dict[str, Any],
    num_microbatches: int | None = None,
) -> PureLoss:
    """Traces `value_and_grad(loss_fn)` once, on one microbatch where `num_microbatches` is given."""
    is_object = None if _nnx() is None else lambda x: isinstance(x, _nnx().Pytree)
    flat, treedef = jax.tree_util.tree_flatten_with_path((params, batch, kwargs), is_leaf=is_object)
    objects = _Objects(flat)
    plain = [i for i in range(len(flat)) if i not in objects.found]
    leaves = [flat[i] for i in plain] + objects.leaves
    paths, leaves = [path for path, _ in leaves], [leaf for _, leaf in leaves]
    position = {keystr(path[1:]): i for i, path in enumerate(paths) if path[0] == SequenceKey(0)}
    source = range(len(plain), len(leaves))  # of the state, within `leaves`
    static_aux: dict[str, Any] = {}

    def attempt():
        arrays = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def pure(*values):
            full = list(leaves)
            for i, value in zip(arrays, values, strict=True):
                full[i] = value
            copies = objects.rebuild(full[len(plain) :])
            tree = [copies.get(i) for i in range(len(flat))]
            for i, value in zip(plain, full, strict=False):
                tree[i] = value
            p, args, kw = jax.tree.unflatten(treedef, tree)
            result = value_and_grad(loss_fn, has_aux=True)(p, *args, **kw) if has_aux else None
            result = value_and_grad(loss_fn)(p, *args, **kw) if result is None else result
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{function}: `value_and_grad` must return (value, gradient) as jax.value_and_grad does, got "
                    f"{type(result).__name__}"
                )
            (value, aux), gradient = result if has_aux else ((result[0], None), result[1])
            gradients, static_aux["gradient"] = jax.tree_util.tree_flatten_with_path(gradient)
            static_aux["own"] = [_position(function, position, path) for path, _ in gradients]
            aux, static_aux["treedef"] = jax.tree.flatten(aux)
            static_aux["leaves"] = [_ARRAY if _is_array(leaf) else leaf for leaf in aux]
            aux = [leaf for leaf in aux if _is_array(leaf)]
            state = [leaf for i, leaf in zip(source, objects.read(function, copies), strict=True) if i in arrays]
            return value, [leaf for _, leaf in gradients], aux, state

        examples = [
            _slice(function, paths[i], leaves[i], num_microbatches)
            if num_microbatches is not None and paths[i][0] == SequenceKey(1) and i < len(plain)
            else leaves[i]
            for i in arrays
        ]
        return arrays, *jax.make_jaxpr(pure, return_shape=True)(*examples)

    arrays, closed, shapes = attempt()
    numbers = [i for i in static_aux["own"] if i not in arrays]
    if numbers:
        # Python numbers are static to some differentiation functions and parameters to others; this one is of those.
        for i in numbers:
            leaves[i] = jnp.asarray(leaves[i])
        arrays, closed, shapes = attempt()

    own = [arrays.index(i) for i in static_aux["own"]]
    value, gradients, aux, state = shapes
    # A variable that the loss only reads comes out of the program as the very input.
    first = len(closed.jaxpr.outvars) - len(state)
    origin = [arrays.index(i) for i in source if i in arrays]
    changed = [j for j, i in enumerate(origin) if closed.jaxpr.outvars[first + j] is not closed.jaxpr.invars[i]]

    def run(inputs):
        values, constants = inputs[: len(arrays)], inputs[len(arrays) :]
        out = core.jaxpr_as_fun(core.ClosedJaxpr(closed.jaxpr, list(constants)))(*values)
        g, a = 1 + len(gradients), 1 + len(gradients) + len(aux)
        return out[0], out[1:g], out[g:a], [out[first + j] for j in changed]

    def finish(aux, state):
        values = list(leaves)
        for j, new in zip(changed, state, strict=True):
            values[arrays[origin[j]]] = new
        objects.write(values[len(plain) :])
        rest = iter(aux)
        filled = [next(rest) if leaf is _ARRAY else leaf for leaf in static_aux["leaves"]]
        return jax.tree.unflatten(static_aux["treedef"], filled)

    return PureLoss(
        run=run,
        inputs=[leaves[i] for i in arrays] + list(closed.consts),
        own=own,
        batch=[arrays.index(i) for i in arrays if paths[i][0] == SequenceKey(1) and i < len(plain)],
        stateful=[origin[j] for j in changed],
        parameters=jax.tree.unflatten(static_aux["gradient"], [leaves[i] for i in static_aux["own"]]),
        paths=[path[1:] for path in paths if path[0] == SequenceKey(0)],
        dtype=value.dtype,
        finish=finish,
    )
