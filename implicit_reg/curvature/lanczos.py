"""The Lanczos iteration inside compiled programs: extreme eigenvalues and sharpness, also as an `observe=` hook.

Every new basis vector is orthogonalized against all the earlier ones, twice. Without that the largest eigenvalue comes
out right and the others come out several times (ghosts).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reg import _callables, _checks
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.leading import leading_eigenpairs
from implicit_reg.curvature.operators import Operator, hessian_operator


class Decomposition(NamedTuple):
    """`A Q' = Q' T + r e_m'` with orthonormal rows of Q.

    Attributes:
      basis: Q, (m, d); rows beyond an invariant subspace are zero.
      diagonal, off_diagonal: of T, (m,) and (m - 1,).
      remainder: the norm of r.
    """

    basis: Float[Array, "m d"]
    diagonal: Float[Array, " m"]
    off_diagonal: Float[Array, " n"]
    remainder: Float[Array, ""]

    def ritz(self) -> tuple[Array, Array, Array]:
        """Ritz values, ascending, their vectors of T in columns, and the residual norms of their pairs."""
        tridiagonal = jnp.diag(self.diagonal) + jnp.diag(self.off_diagonal, 1) + jnp.diag(self.off_diagonal, -1)
        values, vectors = jnp.linalg.eigh(tridiagonal)
        return values, vectors, self.remainder * jnp.abs(vectors[-1])


def lanczos(operator: Operator, start: Float[Array, " d"], num_steps: int) -> Decomposition:
    """`num_steps` steps of the Lanczos iteration with full reorthogonalization; traceable.

    Args:
      operator: symmetric.
      start: not zero.
      num_steps: m, at most the dimension.

    Returns:
      The decomposition.

    Example:
      >>> from implicit_reg.curvature import hessian_operator
      >>> hessian = hessian_operator(lambda x: 0.5 * x @ (jnp.array([1.0, 2.0, 5.0]) * x), jnp.zeros(3))
      >>> values, _, residuals = lanczos(hessian, jnp.ones(3), 3).ritz()
      >>> [round(float(value), 3) for value in values], bool(residuals.max() < 1e-4)
      ([1.0, 2.0, 5.0], True)
    """
    start = jnp.asarray(start, operator.dtype)
    basis = jnp.zeros((num_steps, operator.size), operator.dtype).at[0].set(start / jnp.linalg.norm(start))
    # What is left of a vector that lies in the span is round-off: its direction is noise, and is not taken.
    tiny = 100 * jnp.finfo(operator.dtype).eps

    def step(k, carry):
        basis, diagonal, off_diagonal, scale = carry
        product = operator.apply(basis[k])
        # Beyond an invariant subspace the rows are zero; the first Rayleigh quotient in their place adds nothing to the
        # ends of the spectrum, where a 0 would.
        quotient = jnp.where(jnp.any(basis[k] != 0), basis[k] @ product, diagonal[0])
        diagonal = diagonal.at[k].set(quotient)
        scale = jnp.maximum(scale, jnp.linalg.norm(product))
        rest = product
        for _ in range(2):
            rest = rest - basis.T @ (basis @ rest)
        norm = jnp.linalg.norm(rest)
        alive = norm > tiny * scale
        off_diagonal = off_diagonal.at[k].set(jnp.where(alive, norm, 0))
        direction = jnp.where(alive, rest / jnp.where(alive, norm, 1), 0)
        # Past the last row there is nothing to write, and `at` drops what is out of bounds.
        return basis.at[k + 1].set(direction, mode="drop"), diagonal, off_diagonal, scale

    zeros = jnp.zeros(num_steps, operator.dtype)
    with jax.default_matmul_precision("highest"):
        basis, diagonal, off_diagonal, _ = jax.lax.fori_loop(
            0, num_steps, step, (basis, zeros, zeros, jnp.zeros((), operator.dtype))
        )
    return Decomposition(basis, diagonal, off_diagonal[:-1], off_diagonal[-1])


class Extremes(NamedTuple):
    """Both ends of a spectrum, from inside the Krylov space: `low` from above and `high` from below.

    Attributes:
      low, high: extreme Ritz values.
      residual_low, residual_high: an eigenvalue of the operator lies within this distance of each.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    residual_low: Float[Array, ""]
    residual_high: Float[Array, ""]


def extreme_eigenvalues(operator: Operator, *, num_steps: Integer = 30, key: jax.Array | None = None) -> Extremes:
    """Smallest and largest eigenvalue by Lanczos, traceable.

    Args:
      operator: symmetric.
      num_steps: products to spend, cut at the dimension.
      key: of the random start; None is a fixed one.

    Returns:
      The `Extremes`. Each residual bounds the distance to *some* eigenvalue; that it is the extreme one is sure only
      once the whole space is spanned, and likely to the extent that the start is random.

    Raises:
      TypeError, ValueError: `num_steps` is not an integer of at least 1.

    Example:
      >>> from implicit_reg.curvature import hessian_operator
      >>> hessian = hessian_operator(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2))
      >>> [round(float(value), 3) for value in extreme_eigenvalues(hessian)[:2]]
      [-6.0, 2.0]
    """
    _checks.check_integer("extreme_eigenvalues", "num_steps", num_steps)
    steps = min(int(num_steps), operator.size)
    return _extremes(operator.product, operator.size, operator.dtype, steps, fixed(key), operator.arguments)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _extremes(product, size, dtype, num_steps, key, arguments):
    operator = Operator("extreme_eigenvalues", size, dtype, product, arguments, lambda v: v)
    # Drawn in float32 and cast, so that both precisions start at the same vector.
    start = jax.random.normal(key, (size,), jnp.float32).astype(dtype)
    values, _, residuals = lanczos(operator, start, num_steps).ritz()
    return Extremes(values[0], values[-1], residuals[0], residuals[-1])


def sharpness(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    num_steps: Integer = 20,
    tolerance: Scalar | None = None,
    key: jax.Array | None = None,
    batch_size: Integer | None = None,
) -> Float[Array, ""]:
    """The largest Hessian eigenvalue by `num_steps` of Lanczos, traceable: gradient descent is stable below 2/h.

    It approaches the eigenvalue from below; `leading_eigenpairs` and `largest_eigenpairs` give it with its error.

    Args:
      loss_fn, params, data, batch_size: as for `hessian_operator`.
      num_steps: products to spend, about 1.8 gradients each.
      tolerance: where given, it stops as soon as the estimated error relative to the eigenvalue is within it.
      key: of the random start; None is a fixed one.

    Returns:
      A scalar; `observe=functools.partial(sharpness, loss_fn)` follows it along a run or a flow.

    Raises:
      TypeError, ValueError: as `hessian_operator`.

    Example:
      >>> round(float(sharpness(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2))), 3)
      2.0
    """
    operator = hessian_operator(_callables.hashable(loss_fn), params, data, batch_size=batch_size)
    if tolerance is not None and operator.size > 2:
        _checks.check_integer("sharpness", "num_steps", num_steps, low=3)
        return leading_eigenpairs(operator, 1, tolerance=tolerance, max_steps=num_steps, key=key).values[0]
    return extreme_eigenvalues(operator, num_steps=num_steps, key=key).high


def fixed(key: Any) -> jax.Array:
    """The key, or the fixed one that stands for None."""
    return jax.random.key(0) if key is None else key
