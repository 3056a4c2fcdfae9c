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


def _terms(f: Player, k: Player, first: PyTree, second: PyTree, rates, weights) -> tuple[Pair, Pair]:
    """`F_1`, and `F_2 = (-(a/2) (p f_x f + q f_y k), -(b/2) (r k_x f + s k_y k))` for `weights` `(p, q), (r, s)`.

    One derivative for each player: along both directions at once, and not one for each of the four products.
    """
    (a, b), (f0, k0) = rates, (f(first, second), k(first, second))

    def bent(player, p, q):
        return jax.jvp(player, (first, second), (_tree.scale(p, f0), _tree.scale(q, k0)))[1]

    return (_tree.scale(a, f0), _tree.scale(b, k0)), (
        _tree.scale(-a / 2, bent(f, *weights[0])),
        _tree.scale(-b / 2, bent(k, *weights[1])),
    )


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
    return _terms(f, k, first, second, rates, ((a, b), (-a, b)))


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
    return _terms(f, k, first, second, rates, (rates, rates))


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
    return _terms(f, k, first, second, rates, ((a, a), (b if simultaneous else b - 2 * a, b)))
