"""Losses in a few parameters about which something is known in closed form.

Random numbers are drawn in float32 by NumPy and cast up, so that a problem starts at the same point in every precision
and whether or not x64 is on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.problems.problem import Problem, working_dtype

# Barrett and Dherin's picture starts at (2.8, 3.5): sharpness 20 there, so that step sizes from 0.05 on are already
# far from the asymptotic range. The default has sharpness 3 at the start and 2 at the end.
GENTLE_START = (1.5, 0.8)
STIFF_START = (2.8, 3.5)


def factorization(
    y: Scalar = 0.6,
    x: Scalar = 1.0,
    *,
    start: tuple[Scalar, Scalar] = GENTLE_START,
    dtype: Any = None,
) -> Problem:
    """The two-parameter loss `L(a, b) = (y - a b x)^2 / 2`, whose minima form a hyperbola.

    Gradient flow conserves `a^2 - b^2`; gradient descent shrinks it, which is the implicit regularization made
    visible: it ends nearer to the flattest minimum.

    Args:
      y: target.
      x: input, not 0.
      start: `(a, b)`. The default is gentle enough for orders of accuracy at step sizes up to 0.2; `STIFF_START`,
        (2.8, 3.5), is the one usually drawn.
      dtype: of the parameters; `None` is JAX's default.

    Returns:
      A `Problem` with `params` `{"a", "b"}` and the facts `minimum_value`; `product` (a b at every minimum);
      `flattest_minimum` and `flattest_sharpness` (its largest Hessian eigenvalue, `2 |x y|`); `conserved`, the
      function `a^2 - b^2`; `sharpness_at_minimum`, the function `x^2 (a^2 + b^2)`.

    Raises:
      TypeError: where `y`, `x` or `start` are not numbers.
      ValueError: where they are not finite, or `x` is 0.

    Example:
      >>> problem = factorization()
      >>> bool(jnp.isclose(problem.loss_fn({"a": jnp.float32(0.5), "b": jnp.float32(1.2)}), 0.0))
      True
      >>> problem.facts["product"]
      0.6

    References:
      [barrett2021]
    """
    _checks.check_number("factorization", "y", y)
    _checks.check_number("factorization", "x", x)
    if float(x) == 0.0:
        raise ValueError("factorization: `x` must not be 0, for then the loss does not depend on a and b; got 0")
    for name, value in zip("ab", start, strict=True):
        _checks.check_number("factorization", f"start[{name!r}]", value)
    dtype = working_dtype("factorization", dtype)
    y, x = float(y), float(x)

    def loss_fn(params: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
        return 0.5 * (y - params["a"] * params["b"] * x) ** 2

    root = math.sqrt(abs(y / x))
    facts = {
        "minimum_value": 0.0,
        "product": y / x,
        "flattest_minimum": {"a": root, "b": math.copysign(root, y / x)},
        "flattest_sharpness": 2.0 * abs(x * y),
        "conserved": lambda params: params["a"] ** 2 - params["b"] ** 2,
        "sharpness_at_minimum": lambda params: x**2 * (params["a"] ** 2 + params["b"] ** 2),
    }
    params = {name: jnp.asarray(float(value), dtype) for name, value in zip("ab", start, strict=True)}
    return Problem(
        "factorization", loss_fn, params, facts, "(y - a b x)^2 / 2: a hyperbola of minima.", source="barrett2021"
    )


def nonquadratic(*, dtype: Any = None) -> Problem:
    """A smooth three-parameter loss with an indefinite Hessian and every third derivative alive.

        L(u, v, w) = log(1 + exp(u + v/2)) + sin(v - w)/2 + u v w/4 + w^2/2 + exp(-v)/5

    The gradient stays away from zero along the gradient flow of length 1 from the start, so that an order of accuracy
    is not measured at a point where everything has already stopped.

    Args:
      dtype: of the parameters; `None` is JAX's default.

    Returns:
      A `Problem` with `params` of shape (3,) and the facts `start_gradient` (in closed form, shape (3,)) and
      `gradient_norm_at_least` (0.5, along the gradient flow for times up to 1).

    Example:
      >>> problem = nonquadratic()
      >>> bool(jnp.allclose(jax.grad(problem.loss_fn)(problem.params), problem.facts["start_gradient"], atol=1e-6))
      True
    """
    dtype = working_dtype("nonquadratic", dtype)
    start = (1.0, 0.5, -0.75)

    def loss_fn(params: Inexact[Array, " 3"]) -> Inexact[Array, ""]:
        u, v, w = params[0], params[1], params[2]
        return jax.nn.softplus(u + 0.5 * v) + 0.5 * jnp.sin(v - w) + 0.25 * u * v * w + 0.5 * w**2 + 0.2 * jnp.exp(-v)

    u, v, w = start
    sigmoid, cosine = 1.0 / (1.0 + math.exp(-(u + 0.5 * v))), 0.5 * math.cos(v - w)
    gradient = np.array(
        [
            sigmoid + 0.25 * v * w,
            0.5 * sigmoid + cosine + 0.25 * u * w - 0.2 * math.exp(-v),
            -cosine + 0.25 * u * v + w,
        ]
    )
    facts = {"start_gradient": gradient, "gradient_norm_at_least": 0.5}
    return Problem(
        "nonquadratic",
        loss_fn,
        jnp.asarray(start, dtype),
        facts,
        "Softplus, sine, exponential and a product of three parameters.",
    )


def quadratic(spectrum: Sequence[Scalar] = (1.0, 0.5, 0.1, -0.2), seed: Integer = 0, *, dtype: Any = None) -> Problem:
    """The quadratic `L(x) = x' Q diag(spectrum) Q' x / 2` in a random orthogonal basis `Q`.

    Every step of gradient descent is `Q diag(1 - h spectrum) Q' x`, and its exact modified field is
    `Q diag(log(1 - h spectrum)/h) Q' x`.

    Args:
      spectrum: the eigenvalues of the Hessian, of either sign, one or more.
      seed: of the basis and of the start.
      dtype: of the parameters; `None` is JAX's default.

    Returns:
      A `Problem` with `params` of shape (n,) and the facts `spectrum` (n,), `basis` (n, n, eigenvectors in columns),
      `hessian` (n, n) and, where no eigenvalue is negative, `minimum_value`.

    Raises:
      TypeError: where an eigenvalue is not a number.
      ValueError: where one is not finite or there is none.

    Example:
      >>> problem = quadratic([2.0, 1.0])
      >>> import numpy as np
      >>> np.round(np.linalg.eigvalsh(problem.facts["hessian"]), 6)
      array([1., 2.])

    References:
      [hairer2006]
    """
    _checks.check_seed("quadratic", "seed", seed)
    spectrum = list(spectrum)
    if not spectrum:
        raise ValueError("quadratic: `spectrum` must hold at least one eigenvalue, got none")
    for k, value in enumerate(spectrum):
        _checks.check_number("quadratic", f"spectrum[{k}]", value)
    dtype = working_dtype("quadratic", dtype)
    rng = np.random.default_rng(int(seed))
    gaussian = rng.standard_normal((len(spectrum),) * 2, dtype=np.float32).astype(np.float64)
    basis, triangle = np.linalg.qr(gaussian)
    basis = basis * np.where(np.diag(triangle) < 0, -1.0, 1.0)  # without the signs the basis is not uniform
    eigenvalues = np.array([float(value) for value in spectrum])
    hessian = (basis * eigenvalues) @ basis.T
    hessian = 0.5 * (hessian + hessian.T)
    start = rng.standard_normal(len(spectrum), dtype=np.float32)
    matrix = hessian.astype(dtype)

    def loss_fn(params: Float[Array, " n"]) -> Float[Array, ""]:
        return 0.5 * params @ (jnp.asarray(matrix) @ params)

    facts = {"spectrum": eigenvalues, "basis": basis, "hessian": hessian}
    if eigenvalues.min() >= 0:
        facts["minimum_value"] = 0.0
    return Problem(
        "quadratic",
        loss_fn,
        jnp.asarray(start, dtype),
        facts,
        "A quadratic with given eigenvalues in a random basis.",
        source="hairer2006",
    )
