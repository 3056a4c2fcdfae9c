"""The semidefinite complementarity problem behind a central flow, solved in JAX: no conic solver is needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar


def clip_to_semidefinite(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The positive semidefinite matrix nearest to a symmetric one: its negative eigenvalues become 0.

    Args:
      matrix: symmetric.

    Returns:
      `sum_i max(lambda_i, 0) v_i v_i'`.

    Example:
      >>> clip_to_semidefinite(jnp.diag(jnp.array([2.0, -1.0]))).tolist()
      [[2.0, 0.0], [0.0, 0.0]]
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0.0)) @ vectors.T


def solve_complementarity(
    a: Float[Array, "k k"],
    b: Float[Array, "k k k k"],
    guess: Float[Array, "k k"] | None = None,
    *,
    tolerance: Scalar | None = None,
    max_iterations: Integer = 2000,
) -> Float[Array, "k k"]:
    """Finds `X` with `X >= 0`, `A + B[X] >= 0` and `<X, A + B[X]> = 0`, where `>= 0` means positive semidefinite.

    These are the optimality conditions of `min 0.5 <X, B[X]> + <A, X>` over `X >= 0`, which is convex because `B` is.
    It is solved by projected gradient steps of length 1/||B|| with Nesterov's acceleration, restarted whenever the
    momentum points uphill; the projection clips eigenvalues. For k = 1 the solution is `max(0, -A/B)`, in closed form.

    An interior-point solver would be exact and would need cvxpy on the host at every substep; in a central flow k is a
    handful, the last solution is an excellent guess, and the loop ends after a few iterations.

    Args:
      a: symmetric.
      b: `B[X]_ij = sum_kl b_ijkl X_kl`, symmetric in (i, j), in (k, l) and between the pairs, and semidefinite.
      guess: where to start; None starts from 0.
      tolerance: stop when a step moves by at most this fraction of `||X|| + ||A||/||B||`; None is 16 units of rounding.
      max_iterations: the most steps.

    Returns:
      `X`, positive semidefinite exactly. Where `B` vanishes and `A` is not semidefinite no solution exists, and `X` is
      unbounded: inf or the last iterate.

    Raises:
      TypeError, ValueError: `max_iterations` is not a positive integer, or `tolerance` negative.

    Example:
      >>> a = jnp.diag(jnp.array([-1.0, 3.0]))
      >>> b = jnp.einsum("ik,jl->ijkl", jnp.eye(2), jnp.eye(2))   # B[X] = X: the solution is the positive part of -A
      >>> solve_complementarity(a, b).tolist()
      [[1.0, 0.0], [0.0, 0.0]]

    References:
      [cohen2025]
    """
    _checks.check_integer("solve_complementarity", "max_iterations", max_iterations)
    k = a.shape[0]
    if k == 1:
        # The guard keeps 0/0 out of the branch that is not taken.
        return jnp.where(a < 0, -a / jnp.where(a < 0, b[:, :, 0, 0], 1.0), 0.0)
    if tolerance is None:
        tolerance = 16 * jnp.finfo(a.dtype).eps
    else:
        _checks.check_number("solve_complementarity", "tolerance", tolerance, low=0)
    norm = jnp.linalg.eigvalsh(b.reshape(k * k, k * k))[-1]
    step = 1 / jnp.where(norm > 0, norm, 1.0)
    small = tolerance * step * jnp.linalg.norm(a)

    def iterate(carry):
        x, y, theta, _, count = carry
        new = clip_to_semidefinite(y - step * (a + jnp.einsum("ijkl,kl->ij", b, y)))
        uphill = jnp.sum((y - new) * (new - x)) > 0
        theta = jnp.where(uphill, 1.0, theta)
        following = (1 + jnp.sqrt(1 + 4 * theta**2)) / 2
        y = jnp.where(uphill, new, new + (theta - 1) / following * (new - x))
        moving = jnp.linalg.norm(new - x) > small + tolerance * jnp.linalg.norm(new)
        # A restart may stand still for one step without having arrived.
        return new, y, following, moving | uphill, count + 1

    start = jnp.zeros_like(a) if guess is None else clip_to_semidefinite(guess)
    first = (start, start, jnp.ones((), a.dtype), jnp.array(True), jnp.array(0))
    return jax.lax.while_loop(lambda carry: carry[3] & (carry[4] < max_iterations), iterate, first)[0]
