"""The principal flow: exact for gradient descent on quadratics, oscillation beyond `h lambda = 1` included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Loss, Scalar

SERIES_BELOW = 1e-2  # where log(1 - z)/z loses digits and eight terms of its series lose none


def principal_factor(
    z: Float[Array, "*s"] | Complex[Array, "*s"], *, safe: bool | Array = True
) -> Complex[Array, "*s"]:
    """`phi(z) = -log(1 - z)/z`, the factor of the principal flow on a mode with `z = h lambda`.

    Beyond z = 1 the logarithm has a branch cut on the real axis: on a complex trajectory z leaves the axis by a little
    to either side, and the principal branch jumps by 2 pi i whenever it crosses. The safe branch is `log(z - 1) + i pi`
    for Re z > 1, which is smooth there and equal to the principal one on the lower side.

    Args:
      z: real or complex, not 1 (where phi is infinite: gradient descent arrives in one step).
      safe: whether to use the safe branch beyond Re z = 1; may be traced.

    Returns:
      phi(z), complex.

    Example:
      >>> z = jnp.array([0.5, 1.5])
      >>> [f"{abs(factor):.3f}" for factor in jnp.exp(-z * principal_factor(z))]     # |1 - z|
      ['0.500', '0.500']

    References:
      [rosca2023]
    """
    z = jnp.asarray(z)
    z = z.astype(jnp.result_type(z.dtype, jnp.complex64))
    beyond = (jnp.real(z) > 1) & safe
    small = jnp.abs(z) < SERIES_BELOW
    # Each branch sees only points of its own: derivatives of the other are never multiplied by 0.
    inside = jnp.where(beyond | small, 0.5, z)
    outside = jnp.where(beyond, z, 2.0)
    series = sum(jnp.where(small, z, 0.0) ** (k - 1) / k for k in range(8, 0, -1))
    log_inside = -jnp.log(1 - inside) / inside
    log_outside = -(jnp.log(outside - 1) + 1j * jnp.pi) / outside
    return jnp.where(small, series, jnp.where(beyond, log_outside, log_inside))


def principal_terms(
    loss_fn: Loss, x: Float[Array, " d"] | Complex[Array, " d"], h: Scalar, *, safe: bool | Array = True
) -> tuple[Complex[Array, " d"], Complex[Array, " d"]]:
    """The two terms of the principal flow per step.

        dx/dn = -h phi(h H) g - (h^3/12) T(g, g),     phi(z) = -log(1 - z)/z.

    The first is exact on quadratics. Elsewhere it holds every product of Hessians of the modified equation and no
    third derivative: `phi(z) = 1 + z/2 + z^2/3 + ...` gives `f_1`, `f_2` and the `-(1/3) H H g` of `f_3`, so that its
    order is 2. The second is what is missing from `f_3`: order 3.

    Beyond `h lambda = 1` the trajectory is complex, and so is its Hessian: symmetric, not Hermitian. Its eigenvectors
    then come from a dense nonsymmetric solver, which JAX has on the CPU only. For small problems.

    Args:
      loss_fn: `x -> L(x)` on a flat vector, analytic at complex points: no `abs`, no comparison, no conjugate.
      x: the point, real or complex.
      h: the step size.
      safe: which branch; see `principal_factor`.

    Returns:
      `-h phi(hH) g` and `-(h^3/12) T(g, g)`, complex; real in value at real points with `h lambda < 1`.

    Raises:
      TypeError, ValueError: `loss_fn` is not callable, or `h` not positive.

    Example:
      >>> first, second = principal_terms(lambda x: 0.25 * x[0] ** 2, jnp.array([2.0]), 0.5)
      >>> f"{2.0 * jnp.exp(first[0].real / 2.0):.3f}"                 # one step of gradient descent: 2 - 0.5
      '1.500'

    References:
      [rosca2023]
    """
    _checks.check_callable("principal_terms", "loss_fn", loss_fn, "x -> loss")
    _checks.check_number("principal_terms", "h", h, low=0, exclusive=True)
    is_complex = jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)
    gradient = jax.grad(loss_fn, holomorphic=is_complex)
    g = gradient(x)
    along = lambda y: jax.jvp(gradient, (y,), (g,))[1]  # noqa: E731
    hessian = jax.jacfwd(gradient, holomorphic=is_complex)(x)
    if is_complex:
        values, vectors = jnp.linalg.eig(hessian)
        modes = jnp.linalg.solve(vectors, g)
    else:
        values, vectors = jnp.linalg.eigh(hessian)
        modes = vectors.T @ g
    first = -h * vectors @ (principal_factor(h * values, safe=safe) * modes)
    return first, -(h**3) / 12 * jax.jvp(along, (x,), (g,))[1].astype(first.dtype)


def series_partial_sums(z: float, num_terms: Integer) -> np.ndarray:
    """`-sum_{k <= K} z^k/k` for K = 1..num_terms: what K terms of the modified equation make of `log(1 - z)`.

    On a mode with `h lambda = z` a truncated flow has the factor `exp` of it for each step, where gradient descent has
    `1 - z`. The sums converge for -1 <= z < 1 and diverge beyond, on both sides.

    Args:
      z: `h lambda`.
      num_terms: K at the end.

    Returns:
      The partial sums, shape (num_terms,).

    Example:
      >>> sums = series_partial_sums(0.5, 40)
      >>> f"{sums[0]:.2f} {sums[-1]:.6f} {np.log(0.5):.6f}"
      '-0.50 -0.693147 -0.693147'
    """
    _checks.check_integer("series_partial_sums", "num_terms", num_terms)
    k = np.arange(1, num_terms + 1)
    return -np.cumsum(float(z) ** k / k)


def heavy_ball_radius(beta: float) -> float:
    """Where heavy ball's series on a quadratic ceases to converge: `h lambda = (1 - sqrt b)^2`.

    The root of `z^2 - (1 + b - y) z + b = 0` near 1, as a function of `y = h lambda`, has a branch point where the
    discriminant `(1 + b - y)^2 - 4 b` vanishes, nearest at `y = (1 - sqrt b)^2`. There the two roots meet, and the
    field in the parameters alone ceases to be analytic; the iterates are stable up to `2 (1 + b)`.

    Example:
      >>> f"{heavy_ball_radius(0.81):.4f}"
      '0.0100'
    """
    return (1 - float(np.sqrt(beta))) ** 2


def nesterov_radius(beta: float) -> float:
    """The same for Nesterov's momentum, `(z - 1)(z - b) + y ((1 + b) z - b) = 0`: `y = ((1 - b)/(1 + b))^2`.

    The discriminant is `(1 + b)^2 (1 - y)^2 - 4 b (1 - y)`, with zeros at y = 1 and at
    `1 - 4 b/(1 + b)^2 = ((1 - b)/(1 + b))^2`.

    Example:
      >>> f"{nesterov_radius(0.8):.5f}"
      '0.01235'
    """
    return ((1 - beta) / (1 + beta)) ** 2


def momentum_partial_sums(y: float, beta: float, num_terms: Integer, *, nesterov: bool = False) -> np.ndarray:
    """`sum_{k <= K} c_k y^k` for K = 1..num_terms: the logarithm of momentum's slow root by K terms of its series.

    On a quadratic the iterates' slow root z near 1 solves `z^2 - (1 + b - r y) z + (b - s y) = 0` with `y = h lambda`
    and `(r, s) = (1, 0)` for heavy ball, `(1 + b, b)` for Nesterov; `log z = sum c_k y^k` with `c_1 = -1/(1 - b)`.

    Args:
      y: `h lambda`.
      beta: the decay.
      num_terms: K at the end.
      nesterov: Nesterov's momentum, or heavy ball.

    Returns:
      The partial sums, shape (num_terms,).

    Example:
      >>> [f"{s:.3f}" for s in momentum_partial_sums(0.1, 0.5, 2)]      # -2 y, then -(2^2) (1/2 + 1) y^2
      ['-0.200', '-0.260']
    """
    _checks.check_integer("momentum_partial_sums", "num_terms", num_terms)
    # Powers of y go into the coefficients, which alone would overflow.
    r, s = ((1 + beta) * y, beta * y) if nesterov else (y, 0.0)
    z = np.zeros(num_terms + 1)
    z[0] = 1.0
    for n in range(1, num_terms + 1):
        products = np.dot(z[1:n], z[n - 1 : 0 : -1])  # of z^2, without 2 z_0 z_n
        z[n] = (-products - r * z[n - 1] + (s if n == 1 else 0.0)) / (1 - beta)
    log = np.zeros(num_terms + 1)
    for n in range(1, num_terms + 1):
        log[n] = z[n] - np.dot(np.arange(1, n) * log[1:n], z[n - 1 : 0 : -1]) / n
    return np.cumsum(log[1:])


def momentum_root(y: float, beta: float, *, nesterov: bool = False) -> complex:
    """The slow root z of momentum on a quadratic with `y = h lambda`; complex beyond the radius.

    Example:
      >>> f"{momentum_root(0.0, 0.9).real:.6f}"
      '1.000000'
    """
    r, s = (1 + beta, beta) if nesterov else (1.0, 0.0)
    roots = np.roots([1.0, -(1 + beta - r * y), beta - s * y])
    return complex(roots[np.argmax(roots.real)])
