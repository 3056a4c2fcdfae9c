"""B-series of maps and of fields, and the two ways between them: the flow and the modified equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from numbers import Rational
from typing import TYPE_CHECKING, Any, TypeAlias

from implicit_reg.bseries.trees import EMPTY, Order, Tree, density, prunings, tree_order, trees_through

if TYPE_CHECKING:
    Series: TypeAlias = dict[Tree | None, Fraction]
    Exact: TypeAlias = Fraction | int | str
else:
    Series: TypeAlias = dict
    Exact: TypeAlias = object  # judged below, with a message that says more than a type checker's


def exact_flow(order: Order, time: Exact = 1) -> Series:
    """The flow of `x' = f` over `time` steps: `a = time^|tree| / gamma(tree)`.

    Args:
      order: the order through which the series is complete.
      time: the time in units of the step size, exact: an integer, a fraction or a text such as "0.3".

    Returns:
      The series.

    Raises:
      TypeError: where `order` is no integer or `time` is not exact.
      ValueError: where `order` is below 1.

    Example:
      >>> from implicit_reg.bseries import exact_flow
      >>> exact_flow(2)[((),)]
      Fraction(1, 2)

    References:
      [hairer2006].
    """
    t = exact("exact_flow", "time", time)
    return {EMPTY: Fraction(1)} | {tree: t ** tree_order(tree) / density(tree) for tree in trees_through(order)}


def runge_kutta(matrix: Sequence[Sequence[Exact]], weights: Sequence[Exact], order: Order) -> Series:
    """A Runge-Kutta method by its tableau: the elementary weights.

        k_i = f(x + h sum_j matrix[i][j] k_j),    Phi_h(x) = x + h sum_i weights[i] k_i.

    Weights need not sum to 1: an optimizer may move by more or less than its step, or backwards.

    Args:
      matrix: the square matrix, rows of exact numbers; implicit methods too.
      weights: one exact number per row.
      order: the order through which the series is complete.

    Returns:
      The series.

    Raises:
      TypeError: where `order` is no integer or an entry is not exact.
      ValueError: where `order` is below 1, or the tableau is not square.

    Example:
      The midpoint rule is of order 2: it has the coefficients of the exact flow through there.

      >>> from implicit_reg.bseries import exact_flow, runge_kutta
      >>> midpoint = runge_kutta([[0, 0], ["1/2", 0]], [0, 1], 2)
      >>> midpoint == exact_flow(2)
      True

    References:
      [hairer2006].
    """
    b = [exact("runge_kutta", f"weights[{i}]", x) for i, x in enumerate(weights)]
    a = [[exact("runge_kutta", f"matrix[{i}][{j}]", x) for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    if len(a) != len(b) or any(len(row) != len(b) for row in a):
        raise ValueError(
            f"runge_kutta: `matrix` must be square with one row per weight; got {len(b)} weights and rows of length "
            f"{[len(row) for row in a]}"
        )

    @cache
    def stages(tree):
        """`F(tree)` of every stage, in units of the step: `k_i` holds `prod over subtrees of (matrix @ stages)_i`."""
        inner = [[sum(x * s for x, s in zip(row, stages(child), strict=True)) for row in a] for child in tree]
        return tuple(math.prod(values, start=Fraction(1)) for values in zip(*inner, strict=True)) or (
            Fraction(1),
        ) * len(b)

    series = {EMPTY: Fraction(1)}
    for tree in trees_through(order):
        series[tree] = sum((w * s for w, s in zip(b, stages(tree), strict=True)), start=Fraction(0))
    return series


def rescale(series: Series, factor: Exact) -> Series:
    """The same map or field with the step size `factor * h`: `a(tree)` times `factor^|tree|`.

    Args:
      series: any series.
      factor: an exact number; negative for a step backwards.

    Returns:
      The series in powers of the old step size.

    Raises:
      TypeError: where `factor` is not exact.

    Example:
      >>> from implicit_reg.bseries import exact_flow, rescale
      >>> rescale(exact_flow(3), 2) == exact_flow(3, time=2)
      True
    """
    c = exact("rescale", "factor", factor)
    return {tree: a * (1 if tree is EMPTY else c ** tree_order(tree)) for tree, a in series.items()}


def compose(first: Series, *then: Series) -> Series:
    """The maps one after the other: `compose(a, b)` is `x -> b(a(x))`.

        (a then b)(tree) = sum_s b(s) prod a(tree without s),

    over all subtrees `s` that hold the root, the empty one included.

    Args:
      first: the map that acts first, with coefficient 1 of the empty tree.
      *then: the maps that follow, in their order.

    Returns:
      The series of the composition, through the lowest order among them.

    Raises:
      ValueError: where a series is a field (its coefficient of the empty tree is not 1).

    Example:
      >>> from implicit_reg.bseries import compose, exact_flow
      >>> half = exact_flow(4, "1/2")
      >>> compose(half, half) == exact_flow(4)
      True

    References:
      [hairer2006].
    """
    for series in (first, *then):
        _check_empty("compose", series, 1)
    result = first
    for outer in then:
        inner, result = result, {EMPTY: Fraction(1)}
        for tree in (tree for tree in outer if tree is not EMPTY and tree in inner):
            result[tree] = inner[tree] + sum(
                outer[rest] * math.prod(inner[cut] for cut in forest) for rest, forest in prunings(tree)
            )
    return result


def modified_equation(series: Series) -> Series:
    """The field whose time-h flow is the map: backward error analysis in exact fractions.

        x' = sum_tree  h^(|tree|-1) / sigma(tree)  b(tree)  F(tree)(x),
        b(tree) = a(tree) - sum_{k>=2} (1/k!) (D_b^(k-1) b)(tree),

    with the Lie derivative `(D_b c)(tree) = sum c(what keeps the root) b(what falls off)` over the edges. Through any
    order, for maps that do not move by `h f` to first order too (a flooding pair has `b(()) = 0`).

    Args:
      series: a map, with coefficient 1 of the empty tree.

    Returns:
      The coefficients `b`, with 0 for the empty tree; `f_n` of `modified_vector_field` is the sum over the trees of
      order n of `b / sigma` times the elementary differential.

    Raises:
      ValueError: where the series is a field already.

    Example:
      `y' = y^2` under Euler's method, where every `F(tree)` is a number times `y^(|tree|+1)`:

      >>> import math
      >>> from implicit_reg.bseries import elementary_differential, gradient_descent, modified_equation, symmetry, trees
      >>> b = modified_equation(gradient_descent(4))
      >>> def square(vectors):
      ...     return [1, 2, 2, 0][min(len(vectors), 3)] * math.prod(vectors)
      >>> terms = [sum(b[t] / symmetry(t) * elementary_differential(t, square) for t in trees(n)) for n in (1, 2, 3, 4)]
      >>> [str(term) for term in terms]
      ['1', '-1', '3/2', '-8/3']

    References:
      [hairer2006].
    """
    _check_empty("modified_equation", series, 1)
    return _exponential(series, time=Fraction(1), inverse=True)


def flow(field: Series, time: Exact = 1) -> Series:
    """The time-`time` flow of a field: the inverse of `modified_equation`.

    Args:
      field: a field, with coefficient 0 of the empty tree.
      time: the time in units of the step size, exact.

    Returns:
      The series of the map.

    Raises:
      TypeError: where `time` is not exact.
      ValueError: where the series is a map already.

    Example:
      >>> from implicit_reg.bseries import backstitch, flow, modified_equation
      >>> flow(modified_equation(backstitch("3/10", 5))) == backstitch("3/10", 5)
      True

    References:
      [hairer2006].
    """
    _check_empty("flow", field, 0)
    return _exponential(field, time=exact("flow", "time", time), inverse=False)


def _exponential(given: Series, *, time: Fraction, inverse: bool) -> Series:
    """`exp(time D_b)` of the identity, for `b` given; or (`inverse`, time 1) the `b` that makes the given map.

    Order by order: `powers[k]`, which is `D_b^k b`, needs `b` of lower orders only, so both directions are one loop.
    """
    ordered = sorted((tree for tree in given if tree is not EMPTY), key=tree_order)
    field: Series = {EMPTY: Fraction(0)}
    result: Series = {EMPTY: Fraction(1)}
    powers: list[Series] = [field]
    for tree in ordered:
        rest = Fraction(0)
        splits = [(kept, forest[0]) for kept, forest in prunings(tree) if len(forest) == 1]
        for k in range(1, tree_order(tree)):
            if k == len(powers):
                powers.append({})
            powers[k][tree] = sum(
                (powers[k - 1].get(kept, 0) * field[fallen] for kept, fallen in splits), start=Fraction(0)
            )
            rest += powers[k][tree] * time ** (k + 1) / math.factorial(k + 1)
        field[tree] = given[tree] - rest if inverse else given[tree]
        result[tree] = time * field[tree] + rest
    return field if inverse else result


def exact(function: str, argument: str, value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, Rational | str):
        raise TypeError(
            f"{function}: `{argument}` must be exact, an integer, a fraction or a text such as '0.3' or '1/3'; got "
            f"{value!r} of type {type(value).__name__}. A float is rarely the fraction that was meant."
        )
    try:
        return Fraction(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{function}: `{argument}` must be a number such as '0.3' or '1/3', got {value!r}") from error


def _check_empty(function: str, series: Series, wanted: int) -> None:
    if series.get(EMPTY) != wanted:
        kinds = {1: "a map (coefficient 1 of the empty tree)", 0: "a field (coefficient 0 of the empty tree)"}
        raise ValueError(f"{function}: wants {kinds[wanted]}, got a series with {series.get(EMPTY)}")
