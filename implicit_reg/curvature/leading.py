"""The largest eigenpairs from inside compiled programs, to a tolerance of the values: Lanczos that stops by itself.

A new basis vector is orthogonalized against all the earlier ones only when the recurrence of [simon1984] says that
orthogonality is nearly lost to half the digits: up to there the Ritz values are as good as those of an exact basis, and
no eigenvalue comes out twice. Of a large model a pass over the whole basis costs more than a Hessian product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.curvature.operators import Operator

ROWS = 8  # of a block of the basis: a pass reads the blocks that hold vectors, and no other
CHECK_EVERY = 2  # steps between looks at the Ritz values


class Leading(NamedTuple):
    """The algebraically largest eigenvalues, descending, as far as one Krylov space shows them.

    Attributes:
      values: Ritz values.
      vectors: unit rows, orthogonal to half the digits of the dtype.
      residuals: `||A v - lambda v||` by the Lanczos recurrence.
      errors: estimates of the errors of the values, `min(r, r^2 / gap)` with the gap between Ritz values.
      converged: whether each error is within the tolerance.
      products: spent.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k d"]
    residuals: Float[Array, " k"]
    errors: Float[Array, " k"]
    converged: Bool[Array, " k"]
    products: Int[Array, ""]


def leading_eigenpairs(
    operator: Operator,
    k: Integer = 1,
    *,
    tolerance: Scalar = 1e-4,
    max_steps: Integer | None = None,
    key: jax.Array | None = None,
) -> Leading:
    """The k largest eigenvalues to a relative error of the *values*, traceable: inside jit, scan, and `observe=`.

    A residual r moves an eigenvalue by at most `r^2 / gap`: half the digits of the residual are enough. One Krylov
    space shows one copy of a multiple eigenvalue; `largest_eigenpairs(..., value_tolerance=)` looks for others.

    Args:
      operator: symmetric.
      k: how many, less than the dimension.
      tolerance: of each value's estimated error, relative to the value; the iteration stops when all are within it.
      max_steps: products at most, and rows of the basis in memory; None is 24 + 3 (k - 1). Cut at the dimension.
      key: of the random start; None is a fixed one.

    Returns:
      The `Leading`, with `converged` False where the steps did not suffice.

    Raises:
      TypeError, ValueError: `k` or `max_steps` is no integer in range, or `tolerance` below what the dtype holds.

    References:
      [simon1984]

    Example:
      >>> from implicit_reg.curvature import hessian_operator
      >>> spectrum = jnp.concatenate([jnp.array([9.0, 7.0]), jnp.linspace(0.0, 1.0, 98)])
      >>> hessian = hessian_operator(lambda x: 0.5 * x @ (spectrum * x), jnp.zeros(100))
      >>> found = jax.jit(lambda: leading_eigenpairs(hessian, 2))()
      >>> found.values.round(2).tolist(), int(found.products) < 12
      ([9.0, 7.0], True)
    """
    name = "leading_eigenpairs"
    _checks.check_integer(name, "k", k)
    if k >= operator.size:
        raise ValueError(
            f"{name}: `k` must be less than the dimension {operator.size}, got {k}; all of so small a spectrum is "
            f"jnp.linalg.eigh(operator.dense())"
        )
    tolerance = _checks.check_tolerance(name, "tolerance", tolerance, 1e-4, operator.dtype)
    steps = steps_for(k) if max_steps is None else max_steps
    _checks.check_integer(name, "max_steps", steps, low=int(k) + 1)
    key = jax.random.key(0) if key is None else key
    size, dtype = operator.size, operator.dtype
    return grow(operator.repeated(), size, dtype, int(k), min(int(steps), size), key, tolerance).found


def steps_for(k: int) -> int:
    """Rows of the basis that do for the outliers of a network."""
    return 24 + 3 * (int(k) - 1)


class _Space(NamedTuple):
    """A basis that grows, with its tridiagonal matrix T and estimates of its lost orthogonality."""

    blocks: tuple[Array, ...]
    vector: Array  # row `count`, the next to be multiplied
    before: Array  # row `count - 1`
    diagonal: Array
    off_diagonal: Array
    loss: Array  # <vector, row i>, estimated
    loss_before: Array
    repair: Array  # the second of the two vectors that a repair takes
    scale: Array
    count: Array
    ritz: tuple[Array, ...]
    done: Array


class Grown(NamedTuple):
    """What was found, with the first two rows of the basis and the whole T."""

    found: Leading
    first: Array
    diagonal: Array
    off_diagonal: Array


def grow(
    apply: Callable[[Array], Array],
    size: int,
    dtype: Any,
    k: int,
    capacity: int,
    key: jax.Array,
    tolerance: Any,
    *,
    sign: Any = 1,
    limit: Any = None,
) -> Grown:
    """The k largest of `sign * A` by at most `limit` steps, A given as `apply`."""
    eps = float(jnp.finfo(dtype).eps)
    index = jnp.arange(capacity)
    tolerance, sign = jnp.asarray(tolerance, dtype), jnp.asarray(sign, dtype)
    limit = capacity if limit is None else jnp.minimum(limit, capacity)

    def against(blocks, count, w):
        """`w` without what lies along the rows before `count`."""
        for b, rows in enumerate(blocks):
            w = _times(count > b * ROWS, lambda w, rows=rows: w - (rows @ w) @ rows, w)
        return w

    def step(space: _Space) -> _Space:
        j, q, before = space.count, space.vector, space.before
        blocks = tuple(
            rows.at[jnp.where(j // ROWS == b, j % ROWS, ROWS)].set(q, mode="drop")
            for b, rows in enumerate(space.blocks)
        )
        w = sign * apply(q)
        prior = jnp.where(j > 0, space.off_diagonal[j - 1], 0)
        a = q @ w
        w = w - a * q - prior * before
        b = jnp.linalg.norm(w)
        scale = jnp.maximum(space.scale, jnp.hypot(a, jnp.hypot(b, prior)))  # of the product, without a pass over it
        diagonal = space.diagonal.at[j].set(a)
        loss = _next_loss(space, diagonal, prior, b, scale, eps)
        lost = jnp.max(jnp.where(index <= j, jnp.abs(loss), 0)) > eps**0.5
        # What is left of a vector that lies in the span is round-off: another one is drawn, and T falls in two.
        alive = b > 100 * eps * scale
        w = jax.lax.cond(alive, lambda w: w, lambda _: random_unit(jax.random.fold_in(key, j + 1), size, dtype), w)
        passes = jnp.where(alive, (lost | space.repair).astype(jnp.int32), 2)
        w = _times(passes, lambda w: against(blocks, j + 1, w), w)
        norm = jnp.where(passes > 0, jnp.linalg.norm(w), b)
        loss = jnp.where(passes > 0, jnp.where(index <= j, eps, 0), loss)
        return space._replace(
            blocks=blocks,
            vector=w / jnp.where(norm > 0, norm, 1),
            before=q,
            diagonal=diagonal,
            off_diagonal=space.off_diagonal.at[j].set(jnp.where(alive, norm, 0)),
            loss=loss.at[j + 1].set(1, mode="drop"),
            loss_before=space.loss,
            repair=lost & ~space.repair,
            scale=scale,
            count=j + 1,
        )

    def look(ritz, done, diagonal, off_diagonal, count, scale):
        values, vectors, residuals, errors = _ritz(diagonal, off_diagonal, count, scale, k)
        # Below some roundings of the operator no error can be told.
        within = errors <= jnp.maximum(tolerance * jnp.abs(values), 4 * eps * scale)
        return (values, vectors, residuals, errors, within), jnp.all(within) & (count >= min(k + 2, size))

    def body(space):
        space = step(space)
        turn = (space.count % CHECK_EVERY == 0) | (space.count == limit)
        seen = space.ritz, space.done, space.diagonal, space.off_diagonal, space.count, space.scale
        ritz, done = jax.lax.cond(turn, look, lambda ritz, done, *_: (ritz, done), *seen)
        return space._replace(ritz=ritz, done=done)

    start = random_unit(key, size, dtype)
    zeros, nothing = jnp.zeros(capacity, dtype), jnp.zeros(k, dtype)
    space = _Space(
        tuple(jnp.zeros((ROWS, size), dtype) for _ in range(-(-capacity // ROWS))),
        start,
        jnp.zeros_like(start),
        zeros,
        zeros,
        zeros.at[0].set(1),
        zeros,
        jnp.asarray(False),
        jnp.zeros((), dtype),
        jnp.asarray(0, jnp.int32),
        (nothing, jnp.zeros((capacity, k), dtype), nothing, nothing, jnp.zeros(k, bool)),
        jnp.asarray(False),
    )
    with jax.default_matmul_precision("highest"):
        space = jax.lax.while_loop(lambda s: ~s.done & (s.count < limit), body, space)
        values, small, residuals, errors, within = space.ritz
        padded = jnp.zeros((len(space.blocks) * ROWS, k), dtype).at[:capacity].set(small)
        vectors = jnp.zeros((k, size), dtype)
        for b, rows in enumerate(space.blocks):
            part = padded[b * ROWS : (b + 1) * ROWS].T
            vectors = _times(space.count > b * ROWS, lambda v, part=part, rows=rows: v + part @ rows, vectors)
    found = Leading(sign * values, vectors, residuals, errors, within, space.count)
    return Grown(found, space.blocks[0][:2], space.diagonal, space.off_diagonal)


def random_unit(key: jax.Array, size: int, dtype: Any) -> Array:
    """A random direction; drawn in float32 and cast, so that both precisions start at the same vector."""
    w = jax.random.normal(key, (size,), jnp.float32).astype(dtype)
    return w / jnp.linalg.norm(w)


class Checks(NamedTuple):
    """What tells whether pairs are what they seem.

    Attributes:
      off: the norm of the residual of a random combination of all pairs: whether the recurrence told the truth.
      gap, size: `<u, A v> - <v, A u>` of the start and that combination, and what round-off in it is relative to.
      projected: the operator (times the sign) in a short Krylov space from a random start outside of what was found,
        its upper triangle: a copy of what was found has an eigenvector there, and shows if well above.
      scale: the largest stretch of a vector.
      products: spent on that.
    """

    off: jax.Array
    gap: jax.Array
    size: jax.Array
    projected: jax.Array
    scale: jax.Array
    products: jax.Array


@partial(jax.jit, static_argnums=0)
def searched(static, operands):
    """The Lanczos iteration and its checks with one linearization, T, and nothing spent on checks of what failed."""
    product, size, dtype, k, capacity, probe = static
    arguments, keys, tolerance, sign, limit, signs = operands
    apply = Operator("eigenpairs", size, dtype, product, arguments, lambda v: v).repeated()
    grown = grow(apply, size, dtype, k, capacity, keys[0], tolerance, sign=sign, limit=limit)
    found, vectors = grown.found, grown.found.vectors
    basis, nothing = jnp.zeros((probe, size), dtype), jnp.zeros((), dtype)

    def outside(basis, w):
        for rows in (vectors, basis):
            w = w - (rows @ w) @ rows
        norm = jnp.linalg.norm(w)
        return w / jnp.where(norm > 0, norm, 1)

    def check(j, state):
        """First the combination, which leaves a random vector to begin with, then the short Krylov space."""
        v, basis, projected, off, gap, scale = state
        image = apply(v)
        length, stretched = jnp.linalg.norm(v), jnp.linalg.norm(image)
        scale = jnp.maximum(scale, stretched / jnp.where(length > 0, length, 1))
        first = j == 0
        off = jnp.where(first, jnp.linalg.norm(image - (signs * found.values) @ vectors), off)
        gap = jnp.where(first, grown.first[0] @ image - turned, gap)
        if probe:
            at = jnp.where(first, probe, j - 1)
            basis = basis.at[at].set(v, mode="drop")
            projected = projected.at[:, at].set(sign * (basis @ image), mode="drop")
            v = outside(basis, jnp.where(first, begin, image))
        return v, basis, projected, off, gap, scale

    with jax.default_matmul_precision("highest"):
        mixed = signs @ vectors
        begin = random_unit(keys[1], size, dtype) if probe else mixed
        # The start is the first row of the basis, and its image is in the first two.
        turned = sign * jnp.stack([grown.diagonal[0], grown.off_diagonal[0]]) @ (grown.first @ mixed)
        turns = jnp.where(jnp.all(found.converged), 1 + probe, 0)
        state = mixed, basis, jnp.zeros((probe, probe), dtype), nothing, nothing, nothing
        _, _, projected, off, gap, scale = jax.lax.fori_loop(0, turns, check, state)
    length = jnp.sqrt(jnp.asarray(k, dtype))
    relative = length * jnp.hypot(grown.diagonal[0], grown.off_diagonal[0]) + length * scale
    return found, (grown.diagonal, grown.off_diagonal), Checks(off, gap, relative, projected, scale, turns)


def _times(turns: Any, fn: Callable[[Array], Array], w: Array) -> Array:
    """`fn` applied so many times, 0 included: a loop, where `cond` might copy what `fn` reads."""
    return jax.lax.fori_loop(0, jnp.asarray(turns, jnp.int32), lambda _, w: fn(w), w)


def _next_loss(space: _Space, diagonal, prior, b, scale, eps):
    """What `<q_(j+1), q_i>` has become, by the recurrence that A being symmetric gives [simon1984]."""
    j, off, now, before = space.count, space.off_diagonal, space.loss, space.loss_before
    after = jnp.roll(now, -1).at[-1].set(0)
    earlier = jnp.roll(now, 1).at[0].set(0)
    below = jnp.roll(off, 1).at[0].set(0)
    loss = off * after + (diagonal - diagonal[j]) * now + below * earlier - prior * before
    loss = (loss + jnp.sign(loss) * eps * scale) / jnp.where(b > 0, b, 1)
    index = jnp.arange(len(diagonal))
    return jnp.where(index < j, loss, jnp.where(index == j, eps, 0))


def _ritz(diagonal, off_diagonal, count, scale, k):
    """The k largest Ritz values of the first `count` steps, their vectors of T in columns, residuals, errors."""
    index = jnp.arange(len(diagonal))
    # The rows to come stand below all others.
    diagonal = jnp.where(index < count, diagonal, -4 * scale - 1)
    links = jnp.where(index < count - 1, off_diagonal, 0)[:-1]
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(links, 1) + jnp.diag(links, -1))
    values, vectors = values[::-1], vectors[:, ::-1]
    last = jnp.take(off_diagonal, count - 1)
    residuals = last * jnp.abs(jnp.take(vectors, count - 1, axis=0))
    steps = values[:-1] - values[1:]
    gaps = jnp.minimum(
        jnp.concatenate([jnp.full(1, jnp.inf, values.dtype), steps]),
        jnp.concatenate([steps, jnp.full(1, jnp.inf, values.dtype)]),
    )
    errors = jnp.minimum(residuals, residuals**2 / jnp.where(gaps > 0, gaps, 1))
    errors = jnp.where(gaps > 0, errors, residuals)
    return values[:k], vectors[:, :k], residuals[:k], errors[:k]
