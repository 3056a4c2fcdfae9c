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
from implicit_reg.curvature.leading import searched, steps_for
from implicit_reg.curvature.operators import Operator

DENSE = 64  # columns up to which a dense `eigh` is cheaper than any iteration, and cannot miss a pair
POWERS = 6  # power iterations that tell the size of the operator to a factor of about two
WIDTH = 40  # basis vectors between restarts of ARPACK
PROBE = 5  # steps from a random start outside of what was found: a copy of an outlier shows in so many


class Eigenpairs(NamedTuple):
    """Eigenvalues with their vectors, and how far they can be trusted.

    Attributes:
      values: (k,), from the end of the spectrum inwards.
      vectors: (k, d), orthonormal rows, to half the digits where `value_tolerance` is given; `operator.unravel` gives
        them the structure of the parameters.
      residuals: (k,), `||A v - lambda v||`, with a product of its own for each returned pair; where
        `value_tolerance` is given by the recurrence, with one product that checks all of them.
      bounds: (k,), an eigenvalue of A lies within this distance of each value: the residual plus round-off. That no
        eigenvalue was missed between them is what ARPACK's restarts make likely, and no residual can show.
      converged: (k,), whether the bound is within the tolerance, or the error within `value_tolerance`.
      tolerance: of the bounds, absolute.
      products: spent.
      errors: (k,), estimates of the errors of the values: `residual^2 / gap`, where gaps are known to be wide, else the
        residual, and some roundings.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "k d"]
    residuals: Float[np.ndarray, " k"]
    bounds: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    tolerance: float
    products: int
    errors: Float[np.ndarray, " k"]


def largest_eigenpairs(
    operator: Operator,
    k: Integer = 1,
    *,
    tolerance: Scalar | None = None,
    value_tolerance: Scalar | None = None,
    max_products: Integer | None = None,
    key: jax.Array | None = None,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues, descending, with vectors, residuals and error bounds.

    Args:
      operator: real and symmetric.
      k: how many, at most the dimension.
      tolerance: of the residual, relative to the largest stretch of a vector that was seen; None is a hundredth of the
        square root of the dtype's resolution. Iteration stops when it is met.
      value_tolerance: where given, the iteration stops when the error of each *value*, relative to it, is within this:
        at half the digits of the residuals, and a fraction of the cost. A copy of a multiple eigenvalue that is
        well above the k-th one is looked for; a close neighbor of the k-th may be missed.
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
    return _eigenpairs("largest_eigenpairs", operator, k, tolerance, value_tolerance, max_products, key, sign=1)


def smallest_eigenpairs(
    operator: Operator,
    k: Integer = 1,
    *,
    tolerance: Scalar | None = None,
    value_tolerance: Scalar | None = None,
    max_products: Integer | None = None,
    key: jax.Array | None = None,
) -> Eigenpairs:
    """The k algebraically smallest eigenvalues, ascending: the most negative ones of an indefinite operator first.

    Args:
      operator, k, tolerance, value_tolerance, max_products, key: as for `largest_eigenpairs`.

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
    return _eigenpairs("smallest_eigenpairs", operator, k, tolerance, value_tolerance, max_products, key, sign=-1)


def check_symmetric(function: str, operator: Operator, matvec: Callable[[np.ndarray], np.ndarray]) -> None:
    """Two random vectors tell a matrix that is not symmetric from one that is, almost surely."""
    u, v = np.random.default_rng(1).standard_normal((2, operator.size), np.float32).astype(operator.dtype)
    refuse_asymmetry(function, operator, u, v, matvec(u), matvec(v))


def refuse_asymmetry(function, operator, u, v, au, av) -> None:
    """An error where `<u, A v>` and `<v, A u>` differ by more than round-off, u or v being random."""
    scale = np.linalg.norm(u) * np.linalg.norm(av) + np.linalg.norm(v) * np.linalg.norm(au)
    _refuse_gap(function, operator, float(u @ av) - float(v @ au), scale)


def _refuse_gap(function, operator, gap, scale) -> None:
    gap = abs(gap)
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


def _eigenpairs(function, operator, k, tolerance, value_tolerance, max_products, key, *, sign) -> Eigenpairs:
    _checks.check_integer(function, "k", k)
    if k > operator.size:
        raise ValueError(f"{function}: `k` must be at most the dimension {operator.size}, got {k}")
    eps = float(jnp.finfo(operator.dtype).eps)
    tolerance = _checks.check_tolerance(function, "tolerance", tolerance, 1e-2 * eps**0.5, operator.dtype)
    if value_tolerance is not None:
        value_tolerance = _checks.check_tolerance(
            function, "value_tolerance", value_tolerance, value_tolerance, operator.dtype
        )
    most = 50 * int(k) + 500 if max_products is None else max_products
    _checks.check_integer(function, "max_products", most)
    from tqdm import tqdm

    with tqdm(desc=function, unit=" products", delay=2, disable=None, leave=False) as bar:
        matvec = _Counted(operator, bar)
        found = None
        if value_tolerance is not None:
            found = _by_one_space(function, operator, matvec, int(k), value_tolerance, int(most), key, sign)
            tolerance = max(tolerance, value_tolerance)
        if found is None:
            check_symmetric(function, operator, matvec)
            values, vectors, residuals = _pairs(
                matvec, _subspace(operator, matvec, int(k), tolerance, int(most), key, sign), sign
            )
            errors = _errors(values, residuals)
        else:
            values, vectors, residuals, errors = found
    scale = max(matvec.scale, float(np.max(np.abs(values))))
    # A vector of unit length and its product carry about sqrt(d) roundings of their own.
    roundings = eps * scale * operator.size**0.5
    bounds = residuals + roundings
    converged = bounds <= max(tolerance * scale, 2 * roundings)
    if value_tolerance is not None:
        converged |= errors <= np.maximum(value_tolerance * np.abs(values), 4 * eps * scale)
    errors = errors + 8 * eps * scale
    return Eigenpairs(values, vectors, residuals, bounds, converged, tolerance * scale, matvec.spent, errors)


def _pairs(matvec, vectors, sign) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rayleigh-Ritz on nearly orthonormal rows: the values belong to the vectors, and each residual to its pair."""
    dtype = vectors.dtype
    images = np.stack([matvec(v) for v in vectors])
    small, gram = (np.asarray(vectors @ rows.T, np.float64) for rows in (images, vectors))
    half = np.linalg.inv(np.linalg.cholesky((gram + gram.T) / 2))
    values, rotation = np.linalg.eigh(half @ ((small + small.T) / 2) @ half.T)
    order = np.argsort(-sign * values, kind="stable")
    values, rotation = values[order].astype(dtype), (half.T @ rotation[:, order]).astype(dtype)
    vectors, images = rotation.T @ vectors, rotation.T @ images
    return values, vectors, np.linalg.norm(images - values[:, None] * vectors, axis=1)


def _errors(values, residuals) -> np.ndarray:
    """`min(r, r^2 / gap)`; of the last value no gap is known."""
    steps = np.append(np.abs(np.diff(values)), 0)
    gaps = np.minimum(np.append(np.inf, steps[:-1]), steps)
    return np.where(gaps > residuals, residuals**2 / np.where(gaps > 0, gaps, 1), residuals)


def _by_one_space(function, operator, matvec, k, tolerance, most, key, sign) -> tuple | None:
    """Values, vectors, residuals, errors; None where one Krylov space does not do, or misses a pair."""
    capacity = min(steps_for(k), operator.size)
    if operator.size <= max(DENSE, k + 2) or most < k + 2:
        return None
    keys = jax.random.split(jax.random.key(0) if key is None else key)
    signs = np.random.default_rng(2).choice([-1, 1], k).astype(operator.dtype)
    found, tridiagonal, checks = searched(
        (operator.product, operator.size, operator.dtype, k, capacity, PROBE if k > 1 else 0),
        (operator.arguments, keys, tolerance, sign, min(most, capacity), signs),
    )
    count = int(found.products)
    matvec.spend(count + int(checks.products))
    if not np.all(found.converged):
        return None
    matvec.scale = max(matvec.scale, float(checks.scale))
    diagonal, off_diagonal = (np.asarray(x[:count], np.float64) for x in tridiagonal)
    projected = np.diag(diagonal) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1)
    values = sign * np.linalg.eigvalsh(projected)[::-1][:k].astype(operator.dtype)
    vectors, residuals, errors = (np.asarray(x) for x in (found.vectors, found.residuals, found.errors))
    eps, off = float(jnp.finfo(operator.dtype).eps), float(checks.off)
    if not off <= 3 * float(np.linalg.norm(residuals)) + eps**0.5 * matvec.scale:
        return None
    _refuse_gap(function, operator, float(checks.gap), float(checks.size))
    small = np.asarray(checks.projected, np.float64)
    above = float(np.linalg.eigvalsh(small, UPLO="U")[-1]) - sign * float(values[-1]) if k > 1 else 0.0
    if above > max(tolerance * abs(values[-1]), 4 * eps * matvec.scale):
        return None
    return values, vectors, np.maximum(residuals, off) if k == 1 else residuals, errors


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
