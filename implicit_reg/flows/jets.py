"""Taylor coefficients of a function along a surface, one at a time: what is known of lower ones is used again.

Nested `jvp` computes every mixed derivative as often as it can be reached, and leaves it to XLA to find what repeats
(which it does only where sums were formed in the same order). A jet keeps the coefficients of every intermediate value
instead, so that the coefficient `t^a h^b` of a product costs as many products as there are splittings of (a, b).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, PyTree

Index: TypeAlias = tuple[int, int]  # the powers of t and h
Series: TypeAlias = dict[Index, Array]  # no coefficient where it is known to be zero

BASE = (0, 0)
# Linear in all inexact operands together.
# fmt: off
LINEAR = frozenset((
    "add", "sub", "neg", "add_any", "reduce_sum", "cumsum", "broadcast_in_dim", "reshape", "transpose", "squeeze",
    "expand_dims", "rev", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter-add", "concatenate",
    "pad", "select_n", "copy", "copy_p", "convert_element_type", "reduce_precision", "reduce_window_sum",
    "sharding_constraint", "optimization_barrier", "real", "imag",
))
# fmt: on
BILINEAR = frozenset(("mul", "dot_general", "conv_general_dilated"))
CONSTANT = frozenset(("sign", "floor", "ceil", "round", "stop_gradient"))
CALLS = frozenset(("jit", "closed_call"))


class Jet:
    """The coefficients of `fn` along `params + sum_k c_k t^a h^b`, in the order in which they are asked for.

    Args:
      fn: from a tree to a tree, smooth.
      params: where; every leaf inexact.

    Attributes:
      value: `fn(params)`, as a list of leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> jet = Jet(jnp.exp, jnp.array(0.0))                       # exp(t + t h) = 1 + t + t h + t^2/2 + ...
      >>> one = jnp.array(1.0)
      >>> [float(jet(index, c)[0]) for index, c in (((1, 0), one), ((1, 1), one), ((2, 0), None))]
      [1.0, 1.0, 0.5]
    """

    def __init__(self, fn: Callable[[PyTree], PyTree], params: PyTree) -> None:
        self._closed = jax.make_jaxpr(fn)(params)
        self._frame: dict[Any, Any] = {}
        self.value = self(BASE, params)

    def __call__(self, index: Index, coefficient: PyTree | None) -> list[Array | None]:
        """The coefficient `index` of the result, from that of the argument; None stands for zero.

        Every lower coefficient of the argument that is not zero has been given before.
        """
        leaves = [None] * len(self._closed.in_avals) if coefficient is None else jax.tree.leaves(coefficient)
        return _propagate(self._closed, self._frame, index, leaves)


def _propagate(closed: Any, frame: dict[Any, Any], index: Index, given: Sequence[Array | None]) -> list[Array | None]:
    """Adds one coefficient to every variable of a program; `frame` holds their series, and the frames of calls."""
    jaxpr = closed.jaxpr
    if index == BASE:
        frame.update((v, {}) for v in (*jaxpr.constvars, *jaxpr.invars))
        _store(frame, jaxpr.constvars, index, list(map(jnp.asarray, closed.consts)))
    _store(frame, jaxpr.invars, index, given)
    # The derivative of a weight matrix is a sum of products, transposed. XLA folds a transpose into a product but not
    # into a sum, where it strides through memory: products are transposed one by one.
    sums: dict[Any, list[Array]] = {}
    for k, eqn in enumerate(jaxpr.eqns):
        inputs = [_series(frame, v) for v in eqn.invars]
        if index == BASE:
            frame.update((v, {}) for v in eqn.outvars)
        elif not any(len(series) > 1 for series in inputs):
            continue
        if eqn.primitive.name in CALLS:
            inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
            found = _propagate(inner, frame.setdefault(k, {}), index, [series.get(index) for series in inputs])
        else:
            fn, name = _alone(jaxpr, eqn), eqn.primitive.name
            terms = _products(fn, inputs, index) if name in BILINEAR else None
            if name == "transpose" and (parts := sums.get(eqn.invars[0])):
                terms = [fn(part)[0] for part in parts]
            if terms:
                sums[eqn.outvars[0]] = terms
            found = [_sum(terms)] if terms else _coefficient(name, fn, inputs, index)
        _store(frame, eqn.outvars, index, found)
    return [_series(frame, v).get(index) for v in jaxpr.outvars]


def _series(frame: dict[Any, Any], v: Any) -> Series:
    return frame[v] if isinstance(v, core.Var) else {BASE: jnp.asarray(v.val, v.aval.dtype)}


def _store(frame: dict[Any, Any], variables: Sequence[Any], index: Index, found: Sequence[Array | None] | None) -> None:
    for v, leaf in zip(variables, found or [], strict=found is not None):
        if leaf is not None and (index == BASE or _inexact(v.aval)):
            frame[v][index] = leaf


def _alone(jaxpr: Any, eqn: Any) -> Callable[..., list[Array]]:
    """One equation as a function of its operands, its literals among them, whatever its primitive."""
    given = [core.Var(v.aval) for v in eqn.invars]
    results = [core.Var(v.aval) for v in eqn.outvars]
    one = eqn.replace(invars=given, outvars=results)
    info = jaxpr.debug_info.with_unknown_names()
    return core.jaxpr_as_fun(core.ClosedJaxpr(core.Jaxpr((), given, results, (one,), eqn.effects, info), ()))


def _inexact(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _products(fn: Callable[..., list[Array]], inputs: list[Series], index: Index) -> list[Array]:
    """The terms of the coefficient `index` of a bilinear primitive."""
    left, right = inputs
    return [fn(left[at], right[rest])[0] for at in left if (rest := _minus(index, at)) in right]


def _sum(terms: list[Array]) -> Array:
    return sum(terms[1:], start=terms[0])


def _coefficient(
    name: str, fn: Callable[..., list[Array]], inputs: list[Series], index: Index
) -> list[Array | None] | None:
    """The coefficient `index` of a primitive's results; None where all are zero."""
    base = [series[BASE] for series in inputs]
    if index == BASE:
        return fn(*base)
    if name in CONSTANT:
        return None
    if name == "div" and len(inputs[1]) == 1:
        return fn(inputs[0][index], base[1]) if index in inputs[0] else None
    if name in LINEAR:
        if not any(index in series for series in inputs):
            return None
        zeros = (jnp.zeros_like(x) if _inexact(x) else x for x in base)
        return fn(*(series.get(index, zero) for series, zero in zip(inputs, zeros, strict=True)))
    if name in BILINEAR:  # and no term
        return None
    inputs = [{at: c for at, c in series.items() if min(_minus(index, at)) >= 0} for series in inputs]
    if not _reachable(index, {at for series in inputs for at in series if at != BASE}):
        return None
    smooth = lambda *operands: [x for x in fn(*operands) if _inexact(x)]  # noqa: E731
    found = iter(_derivative(smooth, list(map(_filled, inputs)), [0] * index[0] + [1] * index[1]))
    factor = math.factorial(index[0]) * math.factorial(index[1])
    return [next(found) / factor if inexact else None for inexact in map(_inexact, jax.eval_shape(fn, *base))]


def _minus(a: Index, b: Index) -> Index:
    return a[0] - b[0], a[1] - b[1]


def _reachable(index: Index, parts: set[Index]) -> bool:
    """Whether `index` is a sum of parts: where it is not, no product of coefficients can contribute."""
    return index == BASE or any(min(rest := _minus(index, part)) >= 0 and _reachable(rest, parts) for part in parts)


def _filled(series: Series) -> Series:
    """With zeros where `_derivative` passes on its way down from a higher coefficient."""
    ways = ([(a, k) for k in range(b)] + [(k, 0) for k in range(1, a)] for a, b in series)
    zeros = {at: jnp.zeros_like(series[BASE]) for at in itertools.chain(*ways) if at not in series}
    return zeros | series


def _derivative(
    fn: Callable[..., list[Array]], inputs: Sequence[Mapping[Index, Array]], path: list[int]
) -> list[Array]:
    """The derivative of `fn` along the series at t = h = 0, once for each 0 (t) and 1 (h) in `path`.

    With coefficients as the arguments, d/dt is the derivative along `c_a -> (a + 1) c_(a+1)`. That happens within one
    primitive, where nothing is lost by its repetitions: they are equal to the letter, and XLA merges them.
    """
    if not path:
        return fn(*(series[BASE] for series in inputs))
    *rest, axis = path
    primals, tangents = {}, {}
    for k, series in enumerate(inputs):
        for at, c in series.items():
            lower = _minus(at, (1 - axis, axis))
            if lower in series and lower[0] <= rest.count(0) and lower[1] <= rest.count(1):
                primals[k, lower], tangents[k, lower] = series[lower], at[axis] * c

    def below(changed):
        given = [dict(series) for series in inputs]
        for (k, at), c in changed.items():
            given[k][at] = c
        return _derivative(fn, given, rest)

    return jax.jvp(below, (primals,), (tangents,))[1]
