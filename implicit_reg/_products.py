"""Matrix products at the ends of a program, told apart: what the derivative of a weight matrix is made of.

The gradient of a matrix that multiplies rows of features is one product, `left^T right`, contracted over the rows; its
derivative is a sum of two. JAX transposes after the sum, and XLA's CPU back end makes of that a pass that strides
through memory, at a third of the cost of a product. Here the summands are found in the program, and each is formed in
the orientation of the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import Sharding
from jaxtyping import Array, PyTree

Atom: TypeAlias = Any  # a variable or a literal of a program


class Product(NamedTuple):
    """`left^T right`: the axes of `left` that stay, then those of `right`; `axes` are the contracted ones of each."""

    left: Any
    right: Any
    axes: tuple[tuple[int, ...], tuple[int, ...]]
    precision: Any

    def kept(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of each operand that stay."""
        return tuple(
            tuple(i for i in range(len(_aval(x).shape)) if i not in axes)
            for x, axes in zip((self.left, self.right), self.axes, strict=True)
        )

    def value(self) -> Array:
        """The product itself."""
        return jax.lax.dot_general(self.left, self.right, (self.axes, ((), ())), precision=self.precision)


class Other(NamedTuple):
    """A summand that is no product."""

    array: Any
    permutation: tuple[int, ...]

    def transposed(self) -> Array:
        """With the axes of the sum."""
        return jnp.transpose(self.array, self.permutation)


Summands: TypeAlias = list[Product | Other]


def _aval(x: Any) -> Any:
    return getattr(x, "aval", x)


def is_variable(atom: Atom) -> bool:
    """Whether it is computed or given, rather than a literal of the program."""
    return not isinstance(atom, core.Literal)


def program_of(
    inputs: Sequence[Atom], outputs: Sequence[Atom], equations: Sequence[core.JaxprEqn], like: core.Jaxpr
) -> core.Jaxpr:
    """A program without constants, of those equations alone that its outputs need."""
    needed, kept = {v for v in outputs if is_variable(v)}, []
    for equation in reversed(equations):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            kept.append(equation)
            needed.update(v for v in equation.invars if is_variable(v))
    names = like.debug_info._replace(arg_names=("",) * len(inputs), result_paths=("",) * len(outputs))
    return core.Jaxpr((), list(inputs), list(outputs), kept[::-1], like.effects, names)


def run(program: core.Jaxpr, values: Sequence[Any]) -> list:
    """The outputs of a program without constants."""
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*values)


def opened(program: core.Jaxpr) -> core.Jaxpr:
    """The program with its constants as its last inputs, and the bodies of plain `jit` calls written out."""
    equations: list[core.JaxprEqn] = []
    renamed: dict[Any, Atom] = {}

    def new(atom):
        return renamed.get(atom, atom) if is_variable(atom) else atom

    def write(body: core.Jaxpr, inner: bool) -> None:
        for equation in body.eqns:
            called = _plain_call(equation)
            if called is not None:
                renamed.update(zip(called.invars, map(new, equation.invars), strict=True))
                write(called, inner=True)
                outs = [new(v) for v in called.outvars]
                renamed.update(zip(equation.outvars, outs, strict=True))
                continue
            # A body that is called twice has the same variables both times.
            if inner:
                renamed.update((v, core.Var(v.aval)) for v in equation.outvars if not isinstance(v, core.DropVar))
            ends = {"invars": [*map(new, equation.invars)], "outvars": [*map(new, equation.outvars)]}
            equations.append(equation.replace(**ends))

    write(program, inner=False)
    inputs = [*program.invars, *program.constvars]
    return program_of(inputs, [*map(new, program.outvars)], equations, program)


def _plain_call(equation: core.JaxprEqn) -> core.Jaxpr | None:
    """The body of a `jit` call that asks the compiler for nothing."""
    if equation.primitive.name not in ("jit", "pjit"):
        return None
    closed, params = equation.params["jaxpr"], equation.params
    asked = [*params.get("in_shardings", ()), *params.get("out_shardings", ())]
    if closed.consts or params.get("compiler_options_kvs") or any(isinstance(s, Sharding) for s in asked):
        return None
    return closed.jaxpr


class Reader:
    """Reads sums of products off a program that `opened` has made."""

    def __init__(self, program: core.Jaxpr):
        self.program = program
        self.made = {v: equation for equation in program.eqns for v in equation.outvars}
        atoms = [v for equation in program.eqns for v in equation.invars] + list(program.outvars)
        self.uses = Counter(v for v in atoms if is_variable(v))

    def summands(self, output: Atom) -> Summands:
        """What the output is the sum of; products are those that are formed for it alone."""
        return self._read(output, tuple(range(len(output.aval.shape))))

    def _read(self, atom: Atom, permutation: tuple[int, ...]) -> Summands:
        equation = self.made.get(atom) if is_variable(atom) and self.uses[atom] == 1 else None
        name = None if equation is None else equation.primitive.name
        if name in ("add_any", "add") and all(v.aval.shape == atom.aval.shape for v in equation.invars):
            return [term for v in equation.invars for term in self._read(v, permutation)]
        if name == "transpose":
            inner = equation.params["permutation"]
            return self._read(equation.invars[0], tuple(inner[i] for i in permutation))
        product = _product(equation, permutation) if name == "dot_general" else None
        return [Other(atom, permutation) if product is None else product]


def _product(equation: core.JaxprEqn, permutation: tuple[int, ...]) -> Product | None:
    (axes, batch), params = equation.params["dimension_numbers"], equation.params
    left, right = equation.invars
    dtypes = {left.aval.dtype, right.aval.dtype, equation.outvars[0].aval.dtype}
    # Two programs may sum in another order, not in another precision; complex operands have a conjugate to mind.
    if any(batch) or params.get("out_sharding") is not None or dtypes - {np.dtype("float32"), np.dtype("float64")}:
        return None
    if len(dtypes) > 1:
        return None
    product = Product(left, right, (tuple(axes[0]), tuple(axes[1])), params["precision"])
    ours, theirs = map(len, product.kept())
    if permutation == tuple(range(ours + theirs)):
        return product
    if permutation == (*range(ours, ours + theirs), *range(ours)):
        return Product(right, left, product.axes[::-1], product.precision)
    return None


def atoms(terms: Summands) -> list[Atom]:
    """The variables that a sum is made of, in order."""
    return [v for t in terms for v in ((t.left, t.right) if isinstance(t, Product) else (t.array,))]


def filled(terms: Summands, values: Sequence[Any]) -> Summands:
    """The same sum of these values in place of `atoms`."""
    rest = iter(values)
    return [
        t._replace(left=next(rest), right=next(rest)) if isinstance(t, Product) else t._replace(array=next(rest))
        for t in terms
    ]


def total(terms: Summands) -> Array:
    """The sum.

    Three ways to add products: (1) as they come, transposed after the sum; (2) as one product over the rows of all,
    stacked; (3) each in the orientation of the sum. (1) strides through memory in the sum; (2) saves that pass, and
    costs one over the rows, which are many in a transformer. We do (3).
    """
    first, *more = (term.value() if isinstance(term, Product) else term.transposed() for term in terms)
    return sum(more, start=first)


def gathered(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """What the function makes of its arguments, the sums of products at its ends formed by `total`."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    program = opened(closed.jaxpr)
    reader = Reader(program)
    ends = [reader.summands(v) for v in program.outvars]
    reduced = program_of(program.invars, [v for terms in ends for v in atoms(terms)], program.eqns, program)
    found = iter(run(reduced, [*jax.tree.leaves(arguments), *closed.consts]))
    sums = [total(filled(terms, [next(found) for _ in atoms(terms)])) for terms in ends]
    return jax.tree.unflatten(jax.tree.structure(shapes), sums)
