"""Squared norms and Hessian products of weight matrices whose gradients are not formed, by Gram matrices of the rows.

Where a weight `W` multiplies rows `A` of features, its gradient is `A^T D`, with `D` the derivatives of the products.

    ||A^T D||^2 = <(A A^T) D, D>,    A (A^T D) = (A A^T) D,    D (A^T D)^T = (D D^T) A:

the first is the penalty, and the other two are all that forward over reverse needs of the direction `A^T D`: what it
adds to the products `A W`, and to the derivatives `D W^T` on their way back. They enter the program as inputs of its
own, "taps", in the places where `W` is used, while `W` stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from implicit_reg import _products, _tree
from implicit_reg._products import Atom, Product, Reader


class Use(NamedTuple):
    """A product of the weight with `other`, over all the axes that one operand of the gradient gives to the weight.

    Attributes:
      equation: which one of the program.
      other: the atom beside the weight.
      axes: of `other`, contracted.
      side: which operand of the gradient, 0 or 1.
      kept: the axes of that operand that meet `axes`.
      first: whether the weight is the first operand.
    """

    equation: int
    other: Atom
    axes: tuple[int, ...]
    side: int
    kept: tuple[int, ...]
    first: bool


class Leaf(NamedTuple):
    """A weight matrix: its gradient, as a product of atoms, and all its uses."""

    gradient: Product
    uses: tuple[Use, ...]

    def pays(self) -> bool:
        """Whether the Gram matrices take fewer multiplications than the gradient formed once and used."""
        shapes = [operand.aval.shape for operand in self.gradient[:2]]
        ours, theirs = (math.prod(s[i] for i in kept) for s, kept in zip(shapes, self.gradient.kept(), strict=True))
        rows = math.prod(shapes[0][i] for i in self.gradient.axes[0])
        used = sum(math.prod(n for i, n in enumerate(use.other.aval.shape) if i not in use.axes) for use in self.uses)
        return used * rows * (ours + theirs) < (rows + used) * ours * theirs


def read(program: core.Jaxpr, reader: Reader, parameters: Sequence[Atom], weight: Atom, output: Atom) -> Leaf | str:
    """The weight as a `Leaf`, or why it is none."""
    gradient, *more = terms = reader.summands(output)
    if not any(isinstance(term, Product) for term in terms):
        made = reader.made.get(output) if _products.is_variable(output) else None
        source = "no product" if made is None else f"`{made.primitive.name}`"
        return f"its gradient comes from {source}, not from one product of real rows in float32 or wider"
    if more:
        return f"its gradient has {len(terms)} terms: it enters the loss more than once"
    uses, names = [], {weight: tuple(range(len(weight.aval.shape)))}
    for k, equation in enumerate(program.eqns):
        mine = [v for v in equation.invars if _products.is_variable(v) and v in names]
        if not mine:
            continue
        axes = names[mine[0]]
        if equation.primitive.name == "transpose":
            names[equation.outvars[0]] = tuple(axes[i] for i in equation.params["permutation"])
            continue
        use = _use(k, equation, mine, axes, gradient)
        if use is not None and any(_origin(reader, v) in parameters for v in (use.other, *gradient[:2])):
            return "it multiplies another parameter"
        if use is None:
            return f"it is used by `{equation.primitive.name}`, in another way than as a factor of rows"
        uses.append(use)
    return Leaf(gradient, tuple(uses))


def _origin(reader: Reader, atom: Atom) -> Atom:
    """What the atom is a transpose of."""
    while _products.is_variable(atom) and atom in reader.made and reader.made[atom].primitive.name == "transpose":
        atom = reader.made[atom].invars[0]
    return atom


def _use(k: int, equation: core.JaxprEqn, mine: list[Atom], axes: tuple[int, ...], gradient: Product) -> Use | None:
    if equation.primitive.name != "dot_general" or len(mine) > 1:
        return None
    (contracted, batch), params = equation.params["dimension_numbers"], equation.params
    if any(batch) or params.get("out_sharding") is not None or equation.outvars[0].aval.dtype != mine[0].aval.dtype:
        return None
    first = equation.invars[0] is mine[0]
    own, others = contracted if first else contracted[::-1]
    own = [axes[i] for i in own]
    left, right = gradient.kept()
    for side, (kept, start) in enumerate(((left, 0), (right, len(left)))):
        if sorted(own) == list(range(start, start + len(kept))):
            other = equation.invars[1 if first else 0]
            free = [i for i in axes if i not in own]
            # What of the weight is not contracted comes out in the order of the gradient.
            fits = free == sorted(free)
            return Use(k, other, tuple(others), side, tuple(kept[i - start] for i in own), first) if fits else None
    return None


def _through_rows(use: Use, other: Any, gradient: Product) -> Array:
    """`other . (left^T right)` in the axes of the product that it adds to, without forming what is in the brackets."""
    (near, far), (of_near, of_far) = (x if use.side == 0 else x[::-1] for x in (gradient[:2], gradient.axes))
    inner = jax.lax.dot_general(other, near, ((use.axes, use.kept), ((), ())), precision=gradient.precision)
    ours = other.ndim - len(use.axes)
    # The rows come out in the order of their axes in `near`.
    rows = tuple(far for _, far in sorted(zip(of_near, of_far, strict=True)))
    axes = (tuple(range(ours, inner.ndim)), rows)
    product = jax.lax.dot_general(inner, far, (axes, ((), ())), precision=gradient.precision)
    ends = tuple(range(product.ndim - ours, product.ndim))
    return jnp.moveaxis(product, tuple(range(ours)), ends) if use.first else product


def squared_norm(gradient: Product) -> Array:
    """`||left^T right||^2` without forming the product, accumulated in float32 or wider."""
    kept = gradient.kept()
    through = _through_rows(Use(0, None, kept[0], 0, kept[0], False), gradient.left, gradient)
    order = [right for _, right in sorted(zip(*gradient.axes, strict=True))]
    right = jnp.transpose(gradient.right, (*order, *kept[1]))
    wide = _tree.wide(right.dtype)
    return jnp.sum(through.astype(wide) * right.astype(wide))


class Rows:
    """A gradient program with taps, whose outputs are the operands of the leaves' gradients in place of these."""

    def __init__(self, program: core.Jaxpr, leaves: dict[int, Leaf], first: int):
        """`leaves` by the index of the gradient; the first gradient is the output `first`."""
        self.leaves, self.first, self.num_outputs = leaves, first, len(program.outvars)
        self.uses = [(j, use) for j, leaf in leaves.items() for use in leaf.uses]
        self.taps = [core.Var(program.eqns[use.equation].outvars[0].aval) for _, use in self.uses]
        equations = []
        for k, equation in enumerate(program.eqns):
            taps = [tap for tap, (_, use) in zip(self.taps, self.uses, strict=True) if use.equation == k]
            if not taps:
                equations.append(equation)
                continue
            (out,), before = equation.outvars, core.Var(equation.outvars[0].aval)
            add = {"primitive": jax.lax.add_p, "params": {}, "invars": [before, *taps], "outvars": [out]}
            equations += [equation.replace(outvars=[before]), equation.replace(**add)]
        outputs = list(program.outvars)
        for j, leaf in leaves.items():
            outputs[first + j] = leaf.gradient.left
            outputs.append(leaf.gradient.right)
        outputs += [use.other for _, use in self.uses]
        inputs = [*program.invars, *self.taps]
        self.program = _products.program_of(inputs, outputs, equations, program)

    def zeros(self) -> list[Array]:
        """Taps that change nothing."""
        return [jnp.zeros(tap.aval.shape, tap.aval.dtype) for tap in self.taps]

    def run(self, inputs: Sequence[Any], taps: Sequence[Any]) -> tuple[list, dict[int, Product], list]:
        """The outputs, left operands in place of gradients; the gradients as products; what the weights multiply."""
        found = _products.run(self.program, [*inputs, *taps])
        end = self.num_outputs + len(self.leaves)
        products = {
            j: leaf.gradient._replace(left=found[self.first + j], right=right)
            for (j, leaf), right in zip(self.leaves.items(), found[self.num_outputs : end], strict=True)
        }
        return found[: self.num_outputs], products, found[end:]

    def directions(self, products: dict[int, Product], others: Sequence[Any]) -> list[Array]:
        """What the gradients, as a direction, add at the taps."""
        return [_through_rows(use, other, products[j]) for (j, use), other in zip(self.uses, others, strict=True)]

    def moving(self, inputs: Sequence[int]) -> dict[int, bool]:
        """Whether the left operands of the gradients depend on the taps, or on those inputs."""
        seen = {*self.taps, *(self.program.invars[i] for i in inputs)}
        for equation in self.program.eqns:
            if any(_products.is_variable(v) and v in seen for v in equation.invars):
                seen.update(equation.outvars)
        lefts = {j: leaf.gradient.left for j, leaf in self.leaves.items()}
        return {j: _products.is_variable(left) and left in seen for j, left in lefts.items()}
