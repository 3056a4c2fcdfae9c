"""Rooted trees as sorted nested tuples, and the three numbers of each: order, symmetry and density."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    Tree: TypeAlias = tuple["Tree", ...]
    Order: TypeAlias = int
else:
    Tree: TypeAlias = tuple
    Order: TypeAlias = object  # judged below, with a message that says more than a type checker's

Vector = TypeVar("Vector")

EMPTY = None
"""The empty tree, whose coefficient is that of `x` itself."""

LEAF: Tree = ()
"""The tree with one node, whose elementary differential is `f`."""


def trees(order: Order) -> tuple[Tree, ...]:
    """All rooted trees with `order` nodes: 1, 1, 2, 4, 9, 20, 48, ... of them, tall ones first.

    Args:
      order: the number of nodes, at least 1.

    Returns:
      The trees, each a sorted tuple of the subtrees of its root.

    Raises:
      TypeError: where `order` is no integer.
      ValueError: where it is below 1.

    Example:
      >>> from implicit_reg.bseries import trees
      >>> trees(3)
      ((((),),), ((), ()))

    References:
      [hairer2006].
    """
    return _trees(_order("trees", order))


def trees_through(order: Order) -> tuple[Tree, ...]:
    """All rooted trees with 1 to `order` nodes, small ones first.

    Args:
      order: the largest number of nodes, at least 1.

    Returns:
      The trees of every order, in the order of `trees`.

    Raises:
      TypeError: where `order` is no integer.
      ValueError: where it is below 1.

    Example:
      >>> from implicit_reg.bseries import differential, trees_through
      >>> [differential(tree) for tree in trees_through(3)]
      ['f', "f'f", "f'f'f", "f''(f, f)"]
    """
    return tuple(tree for n in range(1, _order("trees_through", order) + 1) for tree in _trees(n))


def tree_order(tree: Tree) -> int:
    """The number of nodes.

    Args:
      tree: a rooted tree.

    Returns:
      `|tree|`, the power of the step size that it comes with.

    Example:
      >>> from implicit_reg.bseries import tree_order
      >>> tree_order(((), ((),)))
      4
    """
    return 1 + sum(map(tree_order, tree))


def symmetry(tree: Tree) -> int:
    """The number of automorphisms, `sigma = prod_i sigma(t_i)^m_i m_i!` over the distinct subtrees of the root.

    Args:
      tree: a rooted tree.

    Returns:
      `sigma(tree)`.

    Example:
      >>> from implicit_reg.bseries import symmetry
      >>> symmetry(((), ())), symmetry(((), (), ()))
      (2, 6)

    References:
      [hairer2006].
    """
    return math.prod(symmetry(child) ** m * math.factorial(m) for child, m in Counter(tree).items())


def density(tree: Tree) -> int:
    """The density, `gamma = |tree| prod_i gamma(t_i)`: the exact flow has the coefficients `1 / gamma`.

    Args:
      tree: a rooted tree.

    Returns:
      `gamma(tree)`; the factorial of the order for a tall tree.

    Example:
      >>> from implicit_reg.bseries import density
      >>> density((((),),)), density(((), ()))
      (6, 3)

    References:
      [hairer2006].
    """
    return tree_order(tree) * math.prod(map(density, tree))


def differential(tree: Tree) -> str:
    """The elementary differential in the notation of textbooks.

    Args:
      tree: a rooted tree.

    Returns:
      Text such as `f''(f, f'f)`.

    Example:
      >>> from implicit_reg.bseries import differential
      >>> differential(((), ((),)))
      "f''(f, f'f)"
    """
    if not tree:
        return "f"
    head = "f" + "'" * len(tree)
    return head + (differential(tree[0]) if len(tree) == 1 else f"({', '.join(map(differential, tree))})")


def elementary_differential(tree: Tree, derivative: Callable[[tuple[Vector, ...]], Vector]) -> Vector:
    """`F(tree) = f^(m)(F(t_1), ..., F(t_m))`, with the derivatives of `f` at a point as the caller computes them.

    Args:
      tree: a rooted tree with the subtrees `t_1 ... t_m`.
      derivative: maps `m` vectors to the `m`-th derivative of `f` applied to them; no vectors give `f` itself.

    Returns:
      The vector `F(tree)`, in the type that `derivative` returns.

    Example:
      `f = y^2` at `y = 3`, where `f = 9`, `f' = 6`, `f'' = 2`:

      >>> import math
      >>> from implicit_reg.bseries import elementary_differential
      >>> def derivative(vectors):
      ...     return [9, 6, 2, 0][min(len(vectors), 3)] * math.prod(vectors)
      >>> elementary_differential(((), ()), derivative)
      162

    References:
      [hairer2006].
    """
    return derivative(tuple(elementary_differential(child, derivative) for child in tree))


@cache
def _trees(order: int) -> tuple[Tree, ...]:
    if order == 1:
        return (LEAF,)
    # Every tree is one of a node less with a leaf put somewhere. Joining subtrees over the partitions of `order - 1`
    # makes each tree once, but takes longer to read; the set forgets the doubles.
    return tuple(sorted({grown for tree in _trees(order - 1) for grown in _with_leaf(tree)}, key=_tallest_first))


def _with_leaf(tree: Tree) -> list[Tree]:
    """The tree with one more leaf, at each of its nodes in turn."""
    below = [(*tree[:i], grown, *tree[i + 1 :]) for i, child in enumerate(tree) for grown in _with_leaf(child)]
    return [tuple(sorted(children)) for children in [(*tree, LEAF), *below]]


def _tallest_first(tree: Tree) -> tuple[int, Tree]:
    return -_height(tree), tree


def _height(tree: Tree) -> int:
    return 1 + max(map(_height, tree), default=0)


@cache
def prunings(tree: Tree) -> tuple[tuple[Tree, tuple[Tree, ...]], ...]:
    """Each subtree that holds the root, with the forest that falls off; one pair for every cut, equal ones too."""
    choices = [[(None, (child,)), *prunings(child)] for child in tree]
    return tuple(
        (
            tuple(sorted(kept for kept, _ in choice if kept is not None)),
            tuple(fallen for _, forest in choice for fallen in forest),
        )
        for choice in product(*choices)
    )


# The checks stand here and not in `_checks`, which imports JAX.
def _order(function: str, order: Any) -> int:
    text = f"{function}: `order` must be an integer, at least 1, got {order!r}"
    if isinstance(order, bool) or not isinstance(order, int):
        raise TypeError(f"{text} of type {type(order).__name__}")
    if order < 1:
        raise ValueError(text)
    return order
