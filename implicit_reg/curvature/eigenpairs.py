"""Eigenpairs at either end of a spectrum, each with its residual and an error bound: ARPACK on the compiled product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.curvature.operators import Operator

DENSE = 64  # columns up to which a dense `eigh` is cheaper than any iteration, and cannot miss a pair
POWERS = 6  # power iterations that tell the size of the operator to a factor of about two
WIDTH = 40  # basis vectors between restarts of ARPACK


class Eigenpairs(NamedTuple):
    """Eigenvalues with their vectors, and how far they can be trusted.

    Attributes:
      values: (k,), from the end of the spectrum inwards.
      vectors: (k, d), orthonormal rows; `operator.unravel` gives them the structure of the parameters.
      residuals: (k,), `||A v - lambda v||`, with a product of its own for each returned pair.
      bounds: (k,), an eigenvalue of A lies within this distance of each value: the residual plus round-off. That no
        eigenvalue was missed between them is what ARPACK's restarts make likely, and no residual can show.
      converged: (k,), whether the bound is within the tolerance.
      tolerance: absolute.
      products: spent.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "k d"]
    residuals: Float[np.ndarray, " k"]
    bounds: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    tolerance: float
    products: int


def largest_eigenpairs(
    operator: Operator,
    k: Integer = 1,
    *,
    tolerance: Scalar | None = None,
    max_products: Integer | None = None,
    key: jax.Array | None = None,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues, descending, with vectors, residuals and error bounds.

    Args:
      operator: real and symmetric.
      k: how many, at most the dimension.
      tolerance: of the residual, relative to the largest stretch of a vector that was seen; None is a hundredth of the
        square root of the dtype's resolution. Iteration stops when it is met.
      max_products: products after which the iteration is not restarted; None is 50 k + 500. What has been reached then
        is returned with `converged` False, or by a dense matrix where that takes no more products again.
      key: of the random start; None is a fixed one.

    Returns:
      The `Eigenpairs`, as host arrays.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: k beyond the dimension, a tolerance below what the dtype holds, an operator that is not symmetric,
        or products that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.curvature import hessian_operator
      >>> hessian = hessian_operator(lambda x: 0.5 * x @ (jnp.array([1.0, 2.0, 5.0]) * x), jnp.zeros(3))
      >>> largest_eigenpairs(hessian, 2).values.round(3).tolist()
      [5.0, 2.0]
    """
    return _eigenpairs("largest_eigenpairs", operator, k, tolerance, max_products, key, sign=1)


def smallest_eigenpairs(
    operator: Operator,
    k: Integer = 1,
    *,
    tolerance: Scalar | None = None,
    max_products: Integer | None = None,
    key: jax.Array | None = None,
) -> Eigenpairs:
    """The k algebraically smallest eigenvalues, ascending: the most negative ones of an indefinite operator first.

    Args:
      operator, k, tolerance, max_products, key: as for `largest_eigenpairs`.

    Returns:
      The `Eigenpairs`.

    Raises:
      TypeError, ValueError: as `largest_eigenpairs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.curvature import hessian_operator
      >>> hessian = hessian_operator(lambda x: x[0] ** 2 - 3 * x[1] ** 2, jnp.zeros(2))
      >>> smallest_eigenpairs(hessian).values.round(3).tolist()
      [-6.0]
    """
    return _eigenpairs("smallest_eigenpairs", operator, k, tolerance, max_products, key, sign=-1)


def check_symmetric(function: str, operator: Operator, matvec: Callable[[np.ndarray], np.ndarray]) -> None:
    """Two random vectors tell a matrix that is not symmetric from one that is, almost surely."""
    u, v = np.random.default_rng(1).standard_normal((2, operator.size)).astype(operator.dtype)
    au, av = matvec(u), matvec(v)
    scale = np.linalg.norm(u) * np.linalg.norm(av) + np.linalg.norm(v) * np.linalg.norm(au)
    gap = abs(float(u @ av) - float(v @ au))
    # Random directions are nearly orthogonal: of an asymmetry the gap shows the part 1/sqrt(d).
    if gap > np.sqrt(np.finfo(operator.dtype).eps / operator.size) * scale:
        raise ValueError(
            f"{function}: `operator` must be symmetric, got <u, A v> and <v, A u> that differ by {gap:.2g} for random "
            f"u, v; a spectrum of its symmetric part would be a number for something else"
        )


class _Counted:
    """The product on the host, with what was spent and the largest stretch of a vector that was seen."""

    def __init__(self, operator: Operator, bar: Any) -> None:
        self.operator, self.bar = operator, bar
        self.spent, self.scale = 0, 0.0

    def spend(self, products: int) -> None:
        self.spent += products
        self.bar.update(products)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        self.spend(1)
        product, length = self.operator.matvec(vector), float(np.linalg.norm(vector))
        if length:
            self.scale = max(self.scale, float(np.linalg.norm(product)) / length)
        return product


def _eigenpairs(function, operator, k, tolerance, max_products, key, *, sign) -> Eigenpairs:
    _checks.check_integer(function, "k", k)
    if k > operator.size:
        raise ValueError(f"{function}: `k` must be at most the dimension {operator.size}, got {k}")
    eps = float(jnp.finfo(operator.dtype).eps)
    tolerance = _checks.check_tolerance(function, "tolerance", tolerance, 1e-2 * eps**0.5, operator.dtype)
    most = 50 * int(k) + 500 if max_products is None else max_products
    _checks.check_integer(function, "max_products", most)
    from tqdm import tqdm

    with tqdm(desc=function, unit=" products", delay=2, disable=None, leave=False) as bar:
        matvec = _Counted(operator, bar)
        check_symmetric(function, operator, matvec)
        vectors = _subspace(operator, matvec, int(k), tolerance, int(most), key, sign)
        # Rayleigh-Ritz on what came back: the values belong to the vectors, and each residual to its pair.
        images = np.stack([matvec(v) for v in vectors])
    scale = matvec.scale
    small = vectors @ images.T
    values, rotation = np.linalg.eigh((small + small.T) / 2)
    order = np.argsort(-sign * values, kind="stable")
    values, rotation = values[order], rotation[:, order]
    vectors, images = rotation.T @ vectors, rotation.T @ images
    residuals = np.linalg.norm(images - values[:, None] * vectors, axis=1)
    # A vector of unit length and its product carry about sqrt(d) roundings of their own.
    roundings = eps * scale * operator.size**0.5
    bounds = residuals + roundings
    converged = bounds <= max(tolerance * scale, 2 * roundings)
    return Eigenpairs(values, vectors, residuals, bounds, converged, tolerance * scale, matvec.spent)


def _subspace(operator, matvec, k, tolerance, most, key, sign) -> np.ndarray:
    """Orthonormal rows that span, nearly, the wanted eigenvectors."""

    def dense():
        matvec.spend(operator.size)
        _, vectors = np.linalg.eigh(np.asarray(operator.dense()))
        return np.ascontiguousarray((vectors[:, ::-1] if sign > 0 else vectors)[:, :k].T)

    if operator.size <= DENSE or k >= operator.size - 1:
        return dense()
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

    start = jax.random.normal(jax.random.key(0) if key is None else key, (operator.size,), jnp.float32)
    vector = np.asarray(start, operator.dtype)
    for _ in range(POWERS):
        vector = matvec(vector)
        vector = vector / (np.linalg.norm(vector) or 1)
    # ARPACK measures a residual against its Ritz value, which near 0 asks for what no product holds, and against
    # eps^(2/3), which a small matrix is below. Of I + A/c the wanted values are of order 1, residuals relative to c.
    c = operator.dtype.type(sign * (matvec.scale or 1.0))
    linear = LinearOperator((operator.size, operator.size), matvec=lambda v: v + matvec(v) / c, dtype=operator.dtype)
    width = min(operator.size, max(2 * k + 1, min(WIDTH, most)))
    restarts = max(1, (most - matvec.spent - width) // max(1, width - k))
    found: Any = None
    try:
        _, found = eigsh(
            linear,
            k=k,
            which="LA",
            ncv=width,
            tol=tolerance / 4,  # the scale grows as products are seen, and the Ritz values of I + A/c are up to 2
            maxiter=restarts,
            v0=np.asarray(start, operator.dtype),
        )
    except ArpackNoConvergence as error:
        found = error.eigenvectors
    except ArpackError:
        found = np.zeros((operator.size, 0))
    missing = k - found.shape[1]
    if missing and operator.size <= most:
        return dense()  # as many products again, and nothing is missed: clusters at the end of a small spectrum
    if missing:
        # An honest stand-in for what did not converge, which its residual tells apart: the best of one Lanczos space.
        from implicit_reg.curvature.lanczos import lanczos

        matvec.spend(width)
        space = lanczos(operator, start.astype(operator.dtype), width)
        ritz = np.asarray(space.ritz()[1]).T @ np.asarray(space.basis)
        found = np.concatenate([found, (ritz[::-1] if sign > 0 else ritz)[:k].T], axis=1)
    orthonormal, _ = np.linalg.qr(found)
    if not missing:
        return np.ascontiguousarray(orthonormal.T)
    images = np.stack([matvec(v) for v in orthonormal.T])
    values, rotation = np.linalg.eigh(orthonormal.T @ images.T)
    chosen = rotation[:, np.argsort(-sign * values)[:k]]
    return np.ascontiguousarray((orthonormal @ chosen).T)
