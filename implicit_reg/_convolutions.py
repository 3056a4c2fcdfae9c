"""Convolutions in the one layout that XLA's CPU back end is fast in.

A gradient with respect to a kernel, or to what a convolution is given, is a convolution with its axes permuted. XLA:CPU
transposes the operands of such a one, and hands it to a fast library, only where it stands in the outermost computation
of a program: inside a loop or a branch it stays as it is, and takes tens of times as long. Here the same transpositions
are written into the program, wherever the convolution stands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from implicit_reg import _checks


def canonical_convolutions(fn: Any) -> Callable[..., Any]:
    """The same function, whose convolutions and their derivatives are fast inside loops and branches on a CPU.

    Every convolution of the traced program, those of loops, branches and inner functions included, gets its operands in
    the layout (batch, spatial axes, features) and its kernel as (spatial axes, features in, features out). It is the
    same sum. XLA's CPU back end does so by itself only outside of `lax.scan`, `lax.fori_loop`, `lax.while_loop`,
    `lax.map` and `lax.cond`: a step of a small convolution network in such a loop takes more than twenty times its time
    outside, and as long as there with this (`python benchmarks loops`). On other back ends nothing is changed.

    It is what the *derivative* does that matters, so wrap the outermost function: the step or the loop, not the loss.
    `descend`, `integrate`, `implicit_reg.training`, the sweeps, the curvature in loops, and the second gradient of
    `backstitch` do it themselves.

    Args:
      fn: a function of pytrees of arrays that returns a pytree of arrays; traced once for each call.

    Returns:
      A function of the same arguments; `jit`, `vmap` and derivatives apply to it.

    Raises:
      TypeError: where `fn` is not callable, or an argument or result is no array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from implicit_reg import canonical_convolutions
      >>> images = jnp.ones((4, 8, 8, 1))
      >>> convolve = lambda w: jax.lax.conv_general_dilated(
      ...     images, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> step = lambda w: w - 1e-4 * jax.grad(lambda w: jnp.sum(convolve(w) ** 2))(w)
      >>> loop = canonical_convolutions(lambda w: jax.lax.fori_loop(0, 10, lambda _, w: step(w), w))
      >>> jax.jit(loop)(jnp.ones((3, 3, 1, 2))).shape
      (3, 3, 1, 2)
    """
    _checks.check_callable("canonical_convolutions", "fn", fn, "fn(*arrays) -> arrays")

    @functools.wraps(fn)
    def canonical(*args, **kwargs):
        if jax.default_backend() != "cpu":
            return fn(*args, **kwargs)
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        closed = _rewritten(closed, {})
        return jax.tree.unflatten(
            jax.tree.structure(shape), core.jaxpr_as_fun(closed)(*jax.tree.leaves((args, kwargs)))
        )

    return canonical


def _rewritten(program: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """A program, or whatever else an equation has for a parameter, without convolutions in other layouts."""
    if isinstance(program, core.ClosedJaxpr):
        inner = _rewritten(program.jaxpr, seen)
        return program if inner is program.jaxpr else program.replace(jaxpr=inner)
    if isinstance(program, tuple | list):
        items = [_rewritten(item, seen) for item in program]
        same = all(new is old for new, old in zip(items, program, strict=True))
        return program if same or hasattr(program, "_fields") else type(program)(items)
    if not isinstance(program, core.Jaxpr):
        return program
    # The program is kept beside what was made of it: an id is of use only as long as its owner lives.
    if id(program) not in seen:
        equations = [new for equation in program.eqns for new in _equations(equation, seen)]
        same = len(equations) == len(program.eqns) and all(map(lambda a, b: a is b, equations, program.eqns))
        seen[id(program)] = program, program if same else program.replace(eqns=equations)
    return seen[id(program)][1]


def _equations(equation: core.JaxprEqn, seen: dict[int, tuple[Any, Any]]) -> Iterator[core.JaxprEqn]:
    if equation.primitive is jax.lax.conv_general_dilated_p:
        yield from _canonical(equation)
        return
    params = {name: _rewritten(value, seen) for name, value in equation.params.items()}
    same = all(params[name] is value for name, value in equation.params.items())
    yield equation if same else equation.replace(params=params)


def _canonical(equation: core.JaxprEqn) -> Iterator[core.JaxprEqn]:
    """Transpositions, the convolution, and the transposition back."""
    lhs, rhs, out = equation.params["dimension_numbers"]
    spatial, last = tuple(range(1, len(lhs) - 1)), len(lhs) - 1
    images = (0, last, *spatial)
    wanted = jax.lax.ConvDimensionNumbers(images, (last, last - 1, *(i - 1 for i in spatial)), images)
    if (lhs, rhs, out) == tuple(wanted):
        yield equation
        return
    # Specifications name the axes of (batch, features, spatial axes), and of (features out, features in, spatial axes).
    to_images, to_kernel = (lhs[0], *lhs[2:], lhs[1]), (*rhs[2:], rhs[1], rhs[0])
    back = np.argsort((out[0], *out[2:], out[1]))

    def convolve(x, kernel):
        result = jax.lax.conv_general_dilated_p.bind(
            jax.lax.transpose(x, to_images),
            jax.lax.transpose(kernel, to_kernel),
            **{**equation.params, "dimension_numbers": wanted},
        )
        return jax.lax.transpose(result, back)

    program = jax.make_jaxpr(convolve)(*(atom.aval for atom in equation.invars)).jaxpr
    names = dict(zip(program.invars, equation.invars, strict=True))
    names |= dict(zip(program.outvars, equation.outvars, strict=True))
    for each in program.eqns:
        yield each.replace(
            invars=[names.get(v, v) for v in each.invars],
            outvars=[names.get(v, v) for v in each.outvars],
            source_info=equation.source_info,
            ctx=equation.ctx,
        )
