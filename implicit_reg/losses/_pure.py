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

from implicit_reg import _checks, _products
from implicit_reg._types import Loss

_ARRAY = object()  # stands for an array among static leaves


class PureLoss(NamedTuple):
    """What `trace` makes.

    Attributes:
      program: from the inputs to what `split` takes, apart: `(value, gradients, aux, state)`, lists but for the value.
      inputs: the arrays: of the parameters, the batch and the keyword arguments, and then of the closure.
      own: `gradients[j]` is the derivative with respect to `inputs[own[j]]`.
      batch: which inputs came with `*batch`.
      stateful: `state[j]` is what the evaluation made of `inputs[stateful[j]]` (batch statistics, random counters).
      parameters: the parameters, in the structure of the gradient.
      paths: of every leaf of the parameters.
      dtype: of the value.
      finish: `finish(aux, state)` writes the state into the model and rebuilds the auxiliary output.
    """

    program: core.Jaxpr
    split: Callable[[Sequence], tuple[jax.Array, list, list, list]]
    inputs: list
    own: list[int]
    batch: list[int]
    stateful: list[int]
    parameters: Any
    paths: list[tuple]
    dtype: Any
    finish: Callable[[list, list], Any]

    def run(self, inputs: Sequence) -> tuple[jax.Array, list, list, list]:
        """`(value, gradients, aux, state)` of these inputs."""
        return self.split(_products.run(self.program, inputs))


class _Arguments:
    """`(params, batch, kwargs)` as leaves with paths: first those of pytrees, then those of `flax.nnx` objects."""

    def __init__(self, function: str, params: Any, batch: tuple, kwargs: dict[str, Any]):
        self.function = function
        self.nnx = sys.modules.get("flax.nnx")  # who has not imported it has no object of it
        is_object = None if self.nnx is None else lambda x: isinstance(x, self.nnx.Pytree)
        flat, self.treedef = jax.tree_util.tree_flatten_with_path((params, batch, kwargs), is_leaf=is_object)
        self.size = len(flat)
        self.objects = {} if is_object is None else {i: x for i, (_, x) in enumerate(flat) if is_object(x)}
        self.plain = [i for i in range(self.size) if i not in self.objects]
        found = [flat[i] for i in self.plain]
        if self.objects:
            self.graphdef, state = self.nnx.split(self.objects)
            leaves, self.statedef = jax.tree_util.tree_flatten_with_path(state)
            found += [(flat[path[0].key][0] + path[1:], leaf) for path, leaf in leaves]
        self.paths, self.leaves = [path for path, _ in found], [leaf for _, leaf in found]
        self.first_state = len(self.plain)
        self.of_params = {keystr(path[1:]): i for i, path in enumerate(self.paths) if path[0] == SequenceKey(0)}
        self.of_batch = [i for i, path in enumerate(self.paths[: self.first_state]) if path[0] == SequenceKey(1)]

    def rebuild(self, values: list) -> tuple[tuple, dict[int, Any]]:
        """`(params, batch, kwargs)` of these leaves, and the copies of the objects in it."""
        copies = {}
        if self.objects:
            copies = self.nnx.merge(self.graphdef, jax.tree.unflatten(self.statedef, values[self.first_state :]))
        nodes = [copies.get(i) for i in range(self.size)]
        for i, value in zip(self.plain, values, strict=False):
            nodes[i] = value
        return jax.tree.unflatten(self.treedef, nodes), copies

    def read(self, copies: dict[int, Any]) -> list:
        """The leaves of copies that a loss has used."""
        if not self.objects:
            return []
        leaves, structure = jax.tree.flatten(self.nnx.state(copies))
        if structure != self.statedef:
            raise ValueError(
                f"{self.function}: loss_fn added or removed variables of the model (by `sow`, or by lazy "
                f"initialization); call the model once before, or return what it should record as aux"
            )
        return leaves

    def write(self, values: list) -> None:
        """Updates the variables that have new values, and no other: the rest may not be ours to touch."""
        new = [value is not leaf for value, leaf in zip(values, self.leaves, strict=True)][self.first_state :]
        if not any(new):
            return
        flags = dict(self.nnx.to_flat_state(jax.tree.unflatten(self.statedef, new)))
        state = dict(self.nnx.to_flat_state(jax.tree.unflatten(self.statedef, values[self.first_state :])))
        kept = {path: variable for path, variable in state.items() if any(jax.tree.leaves(flags[path]))}
        self.nnx.update(self.objects, self.nnx.from_flat_state(kept))

    def position(self, path: tuple) -> int:
        """Which leaf a leaf of the gradient belongs to."""
        if keystr(path) not in self.of_params:
            raise TypeError(
                f"{self.function}: `value_and_grad` returned a gradient with a leaf at {keystr(path)!r}, where the "
                f"parameters have none; it must differentiate with respect to the first argument"
            )
        return self.of_params[keystr(path)]

    def example(self, i: int, num_microbatches: int | None) -> Any:
        """A leaf to trace with: of the batch, one microbatch."""
        leaf = self.leaves[i]
        if num_microbatches is None or i not in self.of_batch:
            return leaf
        shape = jnp.shape(leaf)
        if not shape or shape[0] == 0 or shape[0] % num_microbatches:
            raise _checks.indivisible(self.function, self.paths[i][1:], shape, num_microbatches)
        return jax.ShapeDtypeStruct((shape[0] // num_microbatches, *shape[1:]), leaf.dtype)


def _is_array(x: Any) -> bool:
    if isinstance(x, jax.Array):
        return True
    return isinstance(x, np.ndarray | np.generic) and (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool)


def trace(
    function: str,
    loss_fn: Loss,
    value_and_grad: Callable,
    has_aux: bool,
    params: Any,
    batch: tuple,
    kwargs: dict[str, Any],
    num_microbatches: int | None,
) -> PureLoss:
    """Traces `value_and_grad(loss_fn)` once, on one microbatch where `num_microbatches` is given."""
    arguments = _Arguments(function, params, batch, kwargs)
    leaves = arguments.leaves
    structure: dict[str, Any] = {}  # what the trace finds out besides arrays

    def traced():
        arrays = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def pure(*values):
            full = list(leaves)
            for i, value in zip(arrays, values, strict=True):
                full[i] = value
            (p, args, kw), copies = arguments.rebuild(full)
            differentiate = value_and_grad(loss_fn, has_aux=True) if has_aux else value_and_grad(loss_fn)
            result = differentiate(p, *args, **kw)
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{function}: `value_and_grad` must return (value, gradient) as jax.value_and_grad does, got "
                    f"{type(result).__name__}"
                )
            (value, aux), gradient = result if has_aux else ((result[0], None), result[1])
            gradients, structure["gradient"] = jax.tree_util.tree_flatten_with_path(gradient)
            structure["own"] = [arguments.position(path) for path, _ in gradients]
            aux, structure["aux"] = jax.tree.flatten(aux)
            structure["static"] = [_ARRAY if _is_array(leaf) else leaf for leaf in aux]
            aux = [leaf for leaf in aux if _is_array(leaf)]
            state = enumerate(arguments.read(copies), start=arguments.first_state)
            return value, [g for _, g in gradients], aux, [leaf for i, leaf in state if i in arrays]

        examples = [arguments.example(i, num_microbatches) for i in arrays]
        return arrays, *jax.make_jaxpr(pure, return_shape=True)(*examples)

    arrays, program, (value, gradients, aux, _) = traced()
    numbers = [i for i in structure["own"] if i not in arrays]
    if numbers:
        # Python numbers are parameters to jax.value_and_grad and static to others; here they are parameters.
        for i in numbers:
            leaves[i] = jnp.asarray(leaves[i])
        arrays, program, (value, gradients, aux, _) = traced()

    # A variable that the loss only reads comes out of the program as the very input.
    ends = np.cumsum([1, len(gradients), len(aux)])
    origin = [j for j, i in enumerate(arrays) if i >= arguments.first_state]
    inward, outward = program.jaxpr.invars, program.jaxpr.outvars[ends[2] :]
    changed = [j for j, out in enumerate(outward) if out is not inward[origin[j]]]

    def split(out):
        return out[0], out[1 : ends[1]], out[ends[1] : ends[2]], [out[ends[2] + j] for j in changed]

    def finish(aux, state):
        values = list(leaves)
        for j, new in zip(changed, state, strict=True):
            values[arrays[origin[j]]] = new
        arguments.write(values)
        rest = iter(aux)
        filled = [next(rest) if leaf is _ARRAY else leaf for leaf in structure["static"]]
        return jax.tree.unflatten(structure["aux"], filled)

    return PureLoss(
        program=_products.opened(program.jaxpr),
        split=split,
        inputs=[leaves[i] for i in arrays] + list(program.consts),
        own=[arrays.index(i) for i in structure["own"]],
        batch=[j for j, i in enumerate(arrays) if i in arguments.of_batch],
        stateful=[origin[j] for j in changed],
        parameters=jax.tree.unflatten(structure["gradient"], [leaves[i] for i in structure["own"]]),
        paths=[path[1:] for path in arguments.paths if path[0] == SequenceKey(0)],
        dtype=value.dtype,
        finish=finish,
    )
