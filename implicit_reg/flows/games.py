"""Two players who learn at once: the modified equations of alternating and simultaneous updates.

The first player moves by `a f(x, y)`, the second by `b k(x, y)`: vector functions of both, not necessarily gradients of
one loss. `f_x f` is a Jacobian of `f` times `f`. Terms are per step, powers of the rates included.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from implicit_reg import _tree
from implicit_reg._types import Params, Scalar

Player = Callable[[PyTree, PyTree], PyTree]
Pair = tuple[PyTree, PyTree]


def _products(f: Player, k: Player, first: PyTree, second: PyTree) -> tuple[PyTree, ...]:
    """`f, k, f_x f, f_y k, k_x f, k_y k`."""
    f0, k0 = f(first, second), k(first, second)
    in_first = lambda player: jax.jvp(lambda x: player(x, second), (first,), (f0,))[1]  # noqa: E731
    in_second = lambda player: jax.jvp(lambda y: player(first, y), (second,), (k0,))[1]  # noqa: E731
    return f0, k0, in_first(f), in_second(f), in_first(k), in_second(k)


def _combine(p: Scalar, u: PyTree, q: Scalar, v: PyTree) -> PyTree:
    return _tree.axpy(q, v, _tree.scale(p, u))


def alternating_game_terms(
    f: Player, k: Player, first: Params, second: Params, rates: tuple[Scalar, Scalar]
) -> tuple[Pair, Pair]:
    """The terms of alternating updates `x' = x + a f(x, y)`, then `y' = y + b k(x', y)`, at any rates a and b:

        F_1 = (a f, b k),   F_2 = (-(a/2)(a f_x f + b f_y k), -(b/2)(b k_y k - a k_x f)).

    Args:
      f: the first player, `(x, y) -> direction`, structured as `x`.
      k: the second player, structured as `y`.
      first: x, any pytree of floating leaves.
      second: y.
      rates: `(a, b)`.

    Returns:
      `F_1` and `F_2`, each a pair structured as `(x, y)`.

    Example:
      >>> import jax.numpy as jnp
      >>> f, k = lambda x, y: y, lambda x, y: -x                           # min over x and max over y of -x y
      >>> _, (f2, k2) = alternating_game_terms(f, k, jnp.array(1.0), jnp.array(2.0), (0.5, 0.5))
      >>> float(f2), float(k2)                                             # (a b/2) x and -(a b/2) y: no growth
      (0.125, -0.25)
    """
    a, b = rates
    f0, k0, fxf, fyk, kxf, kyk = _products(f, k, first, second)
    return (_tree.scale(a, f0), _tree.scale(b, k0)), (
        _combine(-a * a / 2, fxf, -a * b / 2, fyk),
        _combine(-b * b / 2, kyk, a * b / 2, kxf),
    )


def simultaneous_game_terms(
    f: Player, k: Player, first: Params, second: Params, rates: tuple[Scalar, Scalar]
) -> tuple[Pair, Pair]:
    """The terms of simultaneous updates `x' = x + a f(x, y)`, `y' = y + b k(x, y)`, at any rates a and b:

        F_1 = (a f, b k),   F_2 = (-(a/2)(a f_x f + b f_y k), -(b/2)(b k_y k + a k_x f)).

    Args, returns: as `alternating_game_terms`, from which it differs in one sign.

    Example:
      >>> import jax.numpy as jnp
      >>> f, k = lambda x, y: y, lambda x, y: -x
      >>> _, (f2, k2) = simultaneous_game_terms(f, k, jnp.array(1.0), jnp.array(2.0), (0.5, 0.5))
      >>> float(f2), float(k2)                                             # (a b/2)(x, y): outwards
      (0.125, 0.25)
    """
    a, b = rates
    f0, k0, fxf, fyk, kxf, kyk = _products(f, k, first, second)
    return (_tree.scale(a, f0), _tree.scale(b, k0)), (
        _combine(-a * a / 2, fxf, -a * b / 2, fyk),
        _combine(-b * b / 2, kyk, -a * b / 2, kxf),
    )


def players_clock_terms(
    f: Player,
    k: Player,
    first: Params,
    second: Params,
    rates: tuple[Scalar, Scalar],
    *,
    simultaneous: bool = False,
) -> tuple[Pair, Pair]:
    """The drift with the coefficients of google-deepmind/discretisation_drift, read as one field per step.

        alternating:   F_2 = (-(a^2/2)(f_x f + f_y k), -(b^2/2) k_y k + b (a - b/2) k_x f)
        simultaneous:  F_2 = (-(a^2/2)(f_x f + f_y k), -(b^2/2)(k_y k + k_x f))

    Their coefficients belong to each player's own clock (a for the first, b for the second), on which the other player
    moves too. One system of equations has one clock; on it they are right for equal rates only. Kept for comparison:
    `alternating_game_terms` and `simultaneous_game_terms` hold for any rates.

    Args, returns: as `alternating_game_terms`; `simultaneous` says which of the two sets of coefficients.

    Example:
      >>> import jax.numpy as jnp
      >>> f, k = lambda x, y: y, lambda x, y: -x
      >>> x, y = jnp.array(1.0), jnp.array(2.0)
      >>> equal, other = (0.5, 0.5), (0.5, 0.25)
      >>> players_clock_terms(f, k, x, y, equal)[1] == alternating_game_terms(f, k, x, y, equal)[1]
      True
      >>> players_clock_terms(f, k, x, y, other)[1] == alternating_game_terms(f, k, x, y, other)[1]
      False

    References:
      [rosca2021]
    """
    a, b = rates
    f0, k0, fxf, fyk, kxf, kyk = _products(f, k, first, second)
    return (_tree.scale(a, f0), _tree.scale(b, k0)), (
        _combine(-a * a / 2, fxf, -a * a / 2, fyk),
        _combine(-b * b / 2, kyk, -b * b / 2 if simultaneous else b * (a - b / 2), kxf),
    )
