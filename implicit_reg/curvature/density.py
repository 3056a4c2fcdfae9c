"""Traces and spectral densities from random vectors, with the error bars that belong to them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.curvature.lanczos import fixed, lanczos
from implicit_reg.curvature.operators import Operator


class Estimate(NamedTuple):
    """A mean over random vectors, and its standard error."""

    value: float
    standard_error: float
    num_samples: int


def trace(operator: Operator, *, num_samples: Integer = 32, key: jax.Array | None = None) -> Estimate:
    """The trace by Hutchinson's estimator: the mean of `v' A v` over random signs v, unbiased [hutchinson1990].

    Args:
      operator: symmetric.
      num_samples: random vectors, fixed before looking; at least 2, so that there is a standard error.
      key: of the random signs; None is a fixed one.

    Returns:
      The `Estimate`; its standard error is that of the mean, from the spread of the samples.

    Raises:
      TypeError, ValueError: `num_samples` is not an integer of at least 2; a product is not finite.

    References:
      [hutchinson1990]

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.curvature import hessian_operator
      >>> diagonal = hessian_operator(lambda x: 0.5 * x @ (jnp.array([1.0, 2.0, 5.0]) * x), jnp.zeros(3))
      >>> trace(diagonal).value, trace(diagonal).standard_error   # of a diagonal matrix random signs know all
      (8.0, 0.0)
    """
    _checks.check_integer("trace", "num_samples", num_samples, low=2)
    samples = _finite(
        "trace",
        _quadratic_forms(
            operator.product, operator.size, operator.dtype, int(num_samples), fixed(key), operator.arguments
        ),
    )
    return Estimate(float(samples.mean()), float(samples.std(ddof=1) / len(samples) ** 0.5), len(samples))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _quadratic_forms(product, size, dtype, num_samples, key, arguments):
    def one(key):
        signs = jax.random.rademacher(key, (size,), jnp.int32).astype(dtype)
        with jax.default_matmul_precision("highest"):
            return signs @ product(arguments, signs)

    return jax.lax.map(one, jax.random.split(key, num_samples))


class SpectralDensity(NamedTuple):
    """The density of eigenvalues, smoothed by Gaussians, with its standard error over random vectors.

    Attributes:
      grid: (n,), eigenvalues.
      density: (n,), per unit of eigenvalue; its integral is 1.
      standard_error: (n,), of the mean over the random vectors.
      nodes: (samples, steps), Ritz values.
      weights: (samples, steps), of the nodes; each row sums to 1.
      width: standard deviation of the smoothing Gaussians.
    """

    grid: Float[np.ndarray, " n"]
    density: Float[np.ndarray, " n"]
    standard_error: Float[np.ndarray, " n"]
    nodes: Float[np.ndarray, "samples steps"]
    weights: Float[np.ndarray, "samples steps"]
    width: float

    def moment(self, power: int) -> Estimate:
        """`tr(A^power)/d`, estimated: exact in each sample up to power 2 steps - 1 (Gauss quadrature)."""
        samples = np.sum(self.weights * self.nodes**power, axis=1)
        return Estimate(float(samples.mean()), float(samples.std(ddof=1) / len(samples) ** 0.5), len(samples))


def spectral_density(
    operator: Operator,
    *,
    num_samples: Integer = 8,
    num_steps: Integer = 64,
    key: jax.Array | None = None,
    grid: Any = None,
    width: Scalar | None = None,
) -> SpectralDensity:
    """The density of eigenvalues by stochastic Lanczos quadrature [ubaru2017], [ghorbani2019].

    For each random vector v the nodes (Ritz values) and weights (squared first components of their vectors) of Lanczos
    started at v are a Gauss quadrature of `v' f(A) v`; its mean over v is `tr f(A)/d`, here with Gaussians for f. An
    outlier of multiplicity one has a weight of 1/d in the mean, and a spread of about twice that: look at outliers
    with `largest_eigenpairs`.

    Args:
      operator: symmetric.
      num_samples: random vectors, at least 2; the error bars are their spread, over its root.
      num_steps: of Lanczos for each, cut at the dimension.
      key: of the random vectors; None is a fixed one.
      grid: eigenvalues at which the density is wanted, increasing; None is 512 values over the whole range.
      width: of the smoothing Gaussians; None is a hundredth of the range.

    Returns:
      The `SpectralDensity`, as host arrays.

    Raises:
      TypeError, ValueError: numbers out of range; a product is not finite.

    References:
      [ubaru2017], [ghorbani2019]

    Example:
      >>> import jax.numpy as jnp
      >>> from implicit_reg.curvature import hessian_operator
      >>> spectrum = jnp.repeat(jnp.array([0.0, 4.0]), 50)
      >>> density = spectral_density(hessian_operator(lambda x: 0.5 * x @ (spectrum * x), jnp.zeros(100)))
      >>> abs(density.moment(1).value - 2.0) < 4 * density.moment(1).standard_error
      True
    """
    name = "spectral_density"
    _checks.check_integer(name, "num_samples", num_samples, low=2)
    _checks.check_integer(name, "num_steps", num_steps)
    if grid is not None:
        grid = _checks.check_vector(name, "grid", grid)
        if len(grid) < 2 or not np.all(np.diff(grid) > 0):
            raise ValueError(f"{name}: `grid` must increase strictly, got {grid}")
    if width is not None:
        _checks.check_number(name, "width", width, low=0, exclusive=True)
    steps = min(int(num_steps), operator.size)
    nodes, weights = (
        _finite(name, x)
        for x in _quadratures(
            operator.product, operator.size, operator.dtype, int(num_samples), steps, fixed(key), operator.arguments
        )
    )
    low, high = float(nodes.min()), float(nodes.max())
    range_ = (high - low) or abs(high) or 1.0
    width = range_ / 100 if width is None else float(width)
    grid = np.linspace(low - 4 * width, high + 4 * width, 512) if grid is None else grid
    bells = np.exp(-0.5 * ((grid - nodes[:, :, None]) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    samples = np.einsum("sk,skg->sg", weights, bells)
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    return SpectralDensity(grid, samples.mean(axis=0), error, nodes, weights, width)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _quadratures(product, size, dtype, num_samples, num_steps, key, arguments):
    operator = Operator("spectral_density", size, dtype, product, arguments, lambda v: v)

    def one(key):
        start = jax.random.normal(key, (size,), jnp.float32).astype(dtype)
        values, vectors, _ = lanczos(operator, start, num_steps).ritz()
        return values, vectors[0] ** 2

    return jax.lax.map(one, jax.random.split(key, num_samples))


def _finite(name: str, x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name}: a product is not finite: the loss or its second derivative overflows there")
    return x
