"""Away from a saddle along negative curvature, and to one by minimizing the gradient's norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from implicit_reg import _checks
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.critical import MAX_DENSE, finite_value_and_gradient
from implicit_reg.curvature.eigenpairs import smallest_eigenpairs
from implicit_reg.curvature.operators import flatten, hessian_operator


class Escape(NamedTuple):
    """A step out of a saddle.

    Attributes:
      params: after it; those that were given where there was no way out.
      escaped: whether there was one.
      loss: at `params`.
      decrease: of the loss, at least 0.
      direction: the unit eigenvector of the smallest eigenvalue, structured as the parameters.
      sign, step: `params + sign * step * direction` are the new ones; 0 without escape.
      eigenvalue, bound: the smallest eigenvalue and the error bound of it.
      gradient_norm: at `params`.
      text: the outcome in words.
    """

    params: PyTree
    escaped: bool
    loss: float
    decrease: float
    direction: PyTree
    sign: int
    step: float
    eigenvalue: float
    bound: float
    gradient_norm: float
    text: str


class CriticalPoint(NamedTuple):
    """Where the minimization of `||g||^2` ended.

    Attributes:
      params: there.
      loss: there.
      gradient_norm: there; `initial_gradient_norm` at the start.
      converged: whether the former is within the tolerance; a local minimum of `||g||^2` need not be a critical point.
      evaluations: gradients on all the data.
      text: the outcome in words.
    """

    params: PyTree
    loss: float
    gradient_norm: float
    initial_gradient_norm: float
    converged: bool
    evaluations: int
    text: str


def escape(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    batch_size: Integer | None = None,
    eigenvalue_tolerance: Scalar | None = None,
    max_step: Scalar | None = None,
    num_trials: Integer = 24,
    key: jax.Array | None = None,
) -> Escape:
    """Leaves a strict saddle along its most negative eigenvector, to the lowest loss on that line; never uphill.

    With `H v = lambda v`, lambda < 0 beyond its bound, `C(x + s v) = C + s g'v + s^2 lambda / 2 + ...` falls for
    a small s of at least one sign. Both signs are tried at steps `max_step`, `max_step / 2`, ..., and the lowest loss
    is taken.

    Args:
      loss_fn, params, data, batch_size: as for `classify`.
      eigenvalue_tolerance: as for `classify`, here relative to the length of `H` on a random vector and lambda itself.
      max_step: the longest step; None is twice the norm of the parameters, or 2 where that is less than 1.
      num_trials: how many halvings.
      key: of the random start of the eigenvector; None is a fixed one.

    Returns:
      The `Escape`. Where no eigenvalue is negative beyond its bound, or no trial lowers the loss by more than
      round-off, the parameters are those given and `text` says why.

    Raises:
      TypeError, ValueError: as `classify`.

    Example:
      >>> import jax.numpy as jnp
      >>> out = escape(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, jnp.zeros(2))
      >>> out.escaped, round(out.loss, 3), abs(float(out.params[1])) > 0.4
      (True, -0.188, True)
    """
    operator = hessian_operator(loss_fn, params, data, batch_size=batch_size)
    _checks.check_integer("escape", "num_trials", num_trials)
    eps = float(jnp.finfo(operator.dtype).eps)
    tolerance = _checks.check_tolerance(
        "escape", "eigenvalue_tolerance", eigenvalue_tolerance, eps**0.5, operator.dtype
    )
    if max_step is not None:
        _checks.check_number("escape", "max_step", max_step, low=0, exclusive=True)
    loss, gradient = finite_value_and_gradient("escape", loss_fn, params, data, batch_size)
    x, back = flatten(params)
    pair = smallest_eigenpairs(operator, 1, key=key)
    vector, value, bound = np.asarray(pair.vectors[0], np.float64), float(pair.values[0]), float(pair.bounds[0])
    norm, direction = float(np.linalg.norm(gradient)), back(jnp.asarray(vector, operator.dtype))

    def stays(text: str) -> Escape:
        return Escape(params, False, loss, 0.0, direction, 0, 0.0, value, bound, norm, text)

    # The threshold is relative to the largest curvature, of which a random vector sees a fair share.
    probe = np.random.default_rng(0).standard_normal(operator.size)
    scale = max(abs(value), float(np.linalg.norm(operator.matvec(probe)) / np.linalg.norm(probe)))
    if not value + bound < -tolerance * scale:
        return stays(
            f"No way out by second order: the smallest eigenvalue {value:.3g} ± {bound:.1g} is not below "
            f"{-tolerance * scale:.1g}; the parameters are unchanged."
        )
    length = float(np.linalg.norm(np.asarray(x, np.float64)))
    longest = float(max_step) if max_step is not None else 2 * max(length, 1.0)
    best = (loss, 0, 0.0)
    for step in longest * 0.5 ** np.arange(int(num_trials)):
        for sign in (1, -1):
            moved = back(x + jnp.asarray(sign * step * vector, operator.dtype))
            best = min(best, (_loss(loss_fn, moved, data, batch_size), sign, float(step)), key=lambda t: t[0])
    lowest, sign, step = best
    if not loss - lowest > 4 * eps * abs(loss):
        return stays(
            f"The smallest eigenvalue {value:.3g} ± {bound:.1g} is negative, but none of {int(num_trials)} steps of "
            f"either sign up to {longest:.2g} lowers the loss {loss:.4g} by more than "
            f"round-off; the parameters are unchanged."
        )
    moved = back(x + jnp.asarray(sign * step * vector, operator.dtype))
    after, gradient = finite_value_and_gradient("escape", loss_fn, moved, data, batch_size)
    text = (
        f"Escaped: a step of {sign * step:.3g} along the eigenvector of {value:.3g} ± {bound:.1g} lowers the loss from "
        f"{loss:.4g} to {after:.4g}."
    )
    norm = float(np.linalg.norm(gradient))
    return Escape(moved, True, after, loss - after, direction, sign, step, value, bound, norm, text)


def _loss(loss_fn, params, data, batch_size) -> float:
    """The loss at a trial; infinite where it is not finite, so that it is never chosen."""
    try:
        return finite_value_and_gradient("escape", loss_fn, params, data, batch_size)[0]
    except ValueError:
        return float("inf")


def find_critical_point(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    batch_size: Integer | None = None,
    tolerance: Scalar | None = None,
    max_iterations: Integer = 200,
) -> CriticalPoint:
    """The critical point, of any index, that minimizing `||grad C||^2` reaches from the parameters.

    Newton's method on `grad C = 0` as nonlinear least squares in a trust region (scipy), with Hessian products alone;
    up to 400 parameters with the dense Hessian.

    Args:
      loss_fn, params, data, batch_size: as for `classify`.
      tolerance: of the gradient norm, relative to that at the start; None is the square root of the dtype's resolution.
      max_iterations: of the trust region.

    Returns:
      The `CriticalPoint`; `classify` says of which kind it is.

    Raises:
      TypeError, ValueError: as `classify`.

    Example:
      >>> import jax.numpy as jnp
      >>> found = find_critical_point(lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, jnp.array([0.2, 0.3]))
      >>> found.converged, bool(jnp.max(jnp.abs(found.params)) < 1e-3)          # the saddle at 0, not a minimum
      (True, True)
    """
    operator = hessian_operator(loss_fn, params, data, batch_size=batch_size)
    _checks.check_integer("find_critical_point", "max_iterations", max_iterations)
    eps = float(jnp.finfo(operator.dtype).eps)
    tolerance = _checks.check_tolerance("find_critical_point", "tolerance", tolerance, eps**0.5, operator.dtype)
    start, back = flatten(params)
    _, first = finite_value_and_gradient("find_critical_point", loss_fn, params, data, batch_size)
    initial, evaluations = float(np.linalg.norm(first)), 0

    def at(x: np.ndarray) -> PyTree:
        return back(jnp.asarray(x, operator.dtype))

    def gradient(x: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        return finite_value_and_gradient("find_critical_point", loss_fn, at(x), data, batch_size)[1] / initial

    def jacobian(x: np.ndarray) -> Any:
        from scipy.sparse.linalg import LinearOperator

        here = hessian_operator(loss_fn, at(x), data, batch_size=batch_size)
        if here.size <= MAX_DENSE:
            return np.asarray(here.dense(), np.float64) / initial
        product = lambda v: np.asarray(here.matvec(np.ravel(v)), np.float64) / initial  # noqa: E731
        return LinearOperator((here.size, here.size), matvec=product, rmatvec=product, dtype=np.float64)

    x = np.asarray(start, np.float64)
    if initial > 0:
        from scipy.optimize import least_squares

        solver = "exact" if operator.size <= MAX_DENSE else "lsmr"
        # Only the gradient decides: tests of the cost's decrease would stop on a plateau of it.
        x = least_squares(
            gradient,
            x,
            jacobian,
            tr_solver=solver,
            ftol=None,
            xtol=eps,
            gtol=None,
            max_nfev=int(max_iterations),
        ).x
    found = at(x) if initial > 0 else params
    loss, last = finite_value_and_gradient("find_critical_point", loss_fn, found, data, batch_size)
    norm = float(np.linalg.norm(last))
    converged = norm <= tolerance * initial
    text = (
        f"The gradient norm fell from {initial:.3g} to {norm:.3g}, "
        + ("within" if converged else "which is not within")
        + f" the tolerance {tolerance * initial:.1g}, in {evaluations} evaluations."
    )
    return CriticalPoint(found, loss, norm, initial, converged, evaluations, text)
