"""B-series in exact fractions: what theory says of Runge-Kutta-like updates, with nothing rounded and nothing traced.

An update is *Runge-Kutta-like* when it combines the field `f` evaluated at points that it reached with `f`. Its Taylor
series in the step size is then a sum over rooted trees, one elementary differential `F` each:

    Phi_h(x) = x + sum_tree  h^|tree| / sigma(tree)  a(tree)  F(tree)(x).

For an optimizer `f = -grad L`. A series is a dictionary from trees to the fractions `a`, complete through some order,
with `a[EMPTY] = 1` for a map and `a[EMPTY] = 0` for a field. A tree is the sorted tuple of the trees that hang from its
root, so `()` is the single node.

    >>> from implicit_reg.bseries import EMPTY, differential, gradient_descent, modified_equation, symmetry
    >>> f = modified_equation(gradient_descent(3))
    >>> [(differential(tree), str(f[tree] / symmetry(tree))) for tree in f if tree is not EMPTY]
    [('f', '1'), ("f'f", '-1/2'), ("f'f'f", '1/3'), ("f''(f, f)", '1/12')]

This is the third, independent route to a modified equation, after automatic differentiation and the published formula:
the standard library alone, so that it cannot share an error with the others. Notation and theorems: [hairer2006],
chapters III and IX.
"""

from __future__ import annotations

from implicit_reg.bseries.optimizers import (
    alternating,
    backstitch,
    extragradient,
    finite_difference_penalty,
    gradient_descent,
    gradient_penalty,
    unnormalized_sam,
)
from implicit_reg.bseries.series import (
    Series,
    compose,
    exact_flow,
    flow,
    modified_equation,
    rescale,
    runge_kutta,
)
from implicit_reg.bseries.trees import (
    EMPTY,
    LEAF,
    Tree,
    density,
    differential,
    elementary_differential,
    symmetry,
    tree_order,
    trees,
    trees_through,
)

__all__ = [
    "EMPTY",
    "LEAF",
    "Series",
    "Tree",
    "alternating",
    "backstitch",
    "compose",
    "density",
    "differential",
    "elementary_differential",
    "exact_flow",
    "extragradient",
    "finite_difference_penalty",
    "flow",
    "gradient_descent",
    "gradient_penalty",
    "modified_equation",
    "rescale",
    "runge_kutta",
    "symmetry",
    "tree_order",
    "trees",
    "trees_through",
    "unnormalized_sam",
]
