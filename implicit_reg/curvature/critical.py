"""The kind of a point: minimum, maximum, saddle, degenerate, or not critical, from eigenvalues with their bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from implicit_reg import _checks
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature.eigenpairs import largest_eigenpairs, smallest_eigenpairs
from implicit_reg.curvature.minibatches import mean_value_and_gradient
from implicit_reg.curvature.operators import Operator, flatten, hessian_operator

MAX_DENSE = 400  # parameters up to which the whole spectrum is cheap: d products, and an eigh of a second


class Classification(NamedTuple):
    """A verdict on a point, and the numbers that it rests on.

    Attributes:
      kind: "minimum", "maximum", "saddle", "degenerate" or "not critical".
      index: how many eigenvalues are negative beyond their bounds and the threshold; a lower limit where `complete` is
        False and all that were computed at the lower end are.
      flat: how many of the computed eigenvalues are neither positive nor negative by that measure.
      loss: at the point.
      gradient_norm: `||g||`.
      scaled_gradient: the estimated distance to the critical point relative to a length of the problem, see `classify`.
      eigenvalues: ascending; all, or those at both ends.
      bounds: a true eigenvalue lies within this distance of each.
      gradient_threshold: of `scaled_gradient`; above it the point is not critical.
      eigenvalue_threshold: absolute; an eigenvalue within it counts as zero.
      complete: whether all eigenvalues were computed.
      kinks: whether gradients nearby contradict the Hessian, as where a loss has no second derivative (ReLU).
      text: the verdict in words.
    """

    kind: str
    index: int
    flat: int
    loss: float
    gradient_norm: float
    scaled_gradient: float
    eigenvalues: Float[np.ndarray, " k"]
    bounds: Float[np.ndarray, " k"]
    gradient_threshold: float
    eigenvalue_threshold: float
    complete: bool
    kinks: bool
    text: str


def classify(
    loss_fn: Loss,
    params: Params,
    data: Data = (),
    *,
    batch_size: Integer | None = None,
    gradient_tolerance: Scalar | None = None,
    eigenvalue_tolerance: Scalar | None = None,
    max_dense: Integer = MAX_DENSE,
    num_extreme: Integer = 3,
    key: jax.Array | None = None,
) -> Classification:
    """Minimum, maximum, saddle (with its index), degenerate, or not critical.

    An eigenvalue is negative where `value + bound < -threshold`, positive where `value - bound > threshold`, and zero
    to all that can be said otherwise. The gradient is measured as a distance relative to a length,

        scaled = ||M^-1 g|| / L,   L = max(||x||, sqrt(2 |C| / |lambda|_max)),

    where M is `|H|` on the computed eigenvectors that are not flat and `|lambda|_max` on the rest: the Newton step.
    So `scaled` is below a tolerance r where the critical point is within `r ||x||` or, for M = |lambda|_max, where the
    loss that is left to win, `||g||^2 / (2 |lambda|_max)`, is below `r^2 |C|`. It does not change with the units of
    the loss or of all parameters, as `||g||` does. Along flat directions no finite distance can be told, and where
    only extreme eigenvalues are computed the number is a lower limit.

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`, the mean over the leading axes of the data.
      params: where, any pytree of floating leaves.
      data: the arguments of the loss after the parameters.
      batch_size: examples in memory at once; None takes all.
      gradient_tolerance: of `scaled`; None is 1e-4, or four times the square root of the dtype's resolution if larger.
      eigenvalue_tolerance: relative to the largest absolute eigenvalue; None is the square root of the resolution.
      max_dense: parameters up to which all eigenvalues are computed; above, `num_extreme` at either end.
      num_extreme: how many at either end.
      key: of random starts and of the directions in which kinks are looked for; None is a fixed one.

    Returns:
      The `Classification`.

    Raises:
      TypeError: an argument has the wrong type, integer leaves among the parameters included.
      ValueError: parameters without an entry, or parameters, a loss or a gradient that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> found = classify(lambda x: x[0] ** 2 - x[1] ** 2, jnp.zeros(2))
      >>> found.kind, found.index, found.eigenvalues.tolist()
      ('saddle', 1, [-2.0, 2.0])
    """
    return classified(
        loss_fn,
        params,
        data,
        batch_size=batch_size,
        gradient_tolerance=gradient_tolerance,
        eigenvalue_tolerance=eigenvalue_tolerance,
        max_dense=max_dense,
        num_extreme=num_extreme,
        key=key,
    )[0]


class Spectrum(NamedTuple):
    """Ascending eigenvalues, rows of vectors, bounds, whether each was reached: all of them, or both ends."""

    values: np.ndarray
    vectors: np.ndarray
    bounds: np.ndarray
    converged: np.ndarray


def classified(
    loss_fn,
    params,
    data,
    *,
    batch_size=None,
    gradient_tolerance=None,
    eigenvalue_tolerance=None,
    max_dense=MAX_DENSE,
    num_extreme=3,
    key=None,
) -> tuple[Classification, Spectrum]:
    """`classify`, and the eigenpairs that it rests on."""
    operator = hessian_operator(loss_fn, params, data, batch_size=batch_size)
    _checks.check_integer("classify", "max_dense", max_dense, low=0)
    _checks.check_integer("classify", "num_extreme", num_extreme)
    eps = float(jnp.finfo(operator.dtype).eps)
    gradient_tolerance = _checks.check_tolerance(
        "classify", "gradient_tolerance", gradient_tolerance, max(1e-4, 4 * eps**0.5), operator.dtype
    )
    eigenvalue_tolerance = _checks.check_tolerance(
        "classify", "eigenvalue_tolerance", eigenvalue_tolerance, eps**0.5, operator.dtype
    )
    loss, gradient = finite_value_and_gradient("classify", loss_fn, params, data, batch_size)
    x = np.asarray(flatten(params)[0], np.float64)
    complete = operator.size <= max(int(max_dense), 2 * int(num_extreme))
    spectrum = _spectrum(operator, complete, int(num_extreme), key)
    values, vectors, bounds, _ = spectrum
    top = float(np.max(np.abs(values)))
    threshold = eigenvalue_tolerance * top
    negative, positive = values + bounds < -threshold, values - bounds > threshold
    scaled = _scaled_gradient(gradient, values, vectors, negative | positive, top, loss, x)
    kinks = _kinks(loss_fn, params, data, batch_size, operator, vectors[[0, -1]], top, x, key)
    index, flat = int(np.sum(negative)), int(np.sum(~(negative | positive)))
    kind = _kind(scaled <= gradient_tolerance, negative, positive, complete)
    norm = float(np.linalg.norm(gradient))
    # Where not even the lowest of an end is reached with certainty, there may be more.
    at_least = not complete and index >= int(num_extreme)
    text = _text(kind, index, at_least, flat, norm, scaled, gradient_tolerance, values, bounds, threshold, complete)
    if kinks:
        text += " Kinks seen: gradients nearby contradict it, so what is computed is the Hessian of the smooth piece."
    verdict = Classification(
        kind, index, flat, loss, norm, scaled, values, bounds, gradient_tolerance, threshold, complete, kinks, text
    )
    return verdict, spectrum


def finite_value_and_gradient(
    function: str, loss_fn: Loss, params: Params, data: Data, batch_size: Integer | None
) -> tuple[float, np.ndarray]:
    """Loss and flat gradient in float64 on the host; an error where they are not finite."""
    value, gradient = mean_value_and_gradient(loss_fn, params, data, batch_size=batch_size)
    flat = np.asarray(flatten(gradient)[0], np.float64)
    for name, finite in (("loss", np.isfinite(float(value))), ("gradient", np.all(np.isfinite(flat)))):
        if not finite:
            raise ValueError(
                f"{function}: the {name} of `loss_fn` must be finite at `params`, got {float(value)} for the loss; "
                f"no curvature can be told where it overflowed"
            )
    return float(value), flat


def _spectrum(operator: Operator, complete: bool, k: int, key: Any) -> Spectrum:
    """All eigenpairs, or k at both ends."""
    if complete:
        matrix = np.asarray(operator.dense(), np.float64)
        if not np.all(np.isfinite(matrix)):
            raise ValueError("classify: the Hessian must be finite at `params`; a second derivative overflows there")
        values, vectors = np.linalg.eigh(matrix)
        # The products rounded in the operator's precision: by Weyl, no eigenvalue moves by more than their error.
        scale = float(np.max(np.abs(values)))
        rounding = float(jnp.finfo(operator.dtype).eps) * operator.size * scale
        return Spectrum(values, vectors.T, np.full(operator.size, rounding), np.ones(operator.size, bool))
    low, high = smallest_eigenpairs(operator, k, key=key), largest_eigenpairs(operator, k, key=key)
    values, vectors, bounds = (
        np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)[::-1]])
        for a, b in ((low.values, high.values), (low.vectors, high.vectors), (low.bounds, high.bounds))
    )
    return Spectrum(values, vectors, bounds, np.concatenate([low.converged, high.converged[::-1]]))


def _scaled_gradient(gradient, values, vectors, certain, top, loss, x) -> float:
    """The Newton distance relative to the length of the problem; infinite where nothing bends."""
    if not np.any(gradient):
        return 0.0
    if top == 0:
        return float("inf")
    along = vectors @ gradient
    rest = gradient - vectors[certain].T @ along[certain]
    distance = np.sqrt(np.sum((along[certain] / values[certain]) ** 2) + np.sum((rest / top) ** 2))
    length = max(float(np.linalg.norm(x)), (2 * abs(loss) / top) ** 0.5)
    return float(distance / length) if length else float("inf")


def _kind(critical, negative, positive, complete) -> str:
    if not critical:
        return "not critical"
    if np.any(negative) and np.any(positive):
        return "saddle"
    # Of an incomplete spectrum the ends decide: between them nothing is smaller, or larger.
    if np.all(positive) if complete else positive[0]:
        return "minimum"
    if np.all(negative) if complete else negative[-1]:
        return "maximum"
    return "degenerate"


def _text(kind, index, at_least, flat, norm, scaled, tolerance, values, bounds, threshold, complete) -> str:
    low, high = (f"{values[i]:.3g} ± {bounds[i]:.1g}" for i in (0, -1))
    more, plural = "at least " * at_least, "s" * (index != 1)
    says = {
        "minimum": f"A minimum: the smallest eigenvalue {low} is above {threshold:.1g}",
        "maximum": f"A maximum: the largest eigenvalue {high} is below {-threshold:.1g}",
        "saddle": f"A saddle of index {more}{index}: eigenvalues from {low} to {high}"
        + (f", {flat} flat within {threshold:.1g}" if flat and complete else ""),
        "degenerate": f"Degenerate: {index} negative and {flat} flat among the {len(values)} computed eigenvalues "
        f"(within {threshold:.1g}), so second derivatives do not decide between "
        + ("maximum and saddle" if index else "minimum, plateau and saddle"),
        "not critical": f"Not critical: the gradient norm {norm:.3g} puts the critical point {scaled:.2g} "
        f"lengths away (tolerance {tolerance:.1g}); {more}{index} negative eigenvalue{plural}, from {low} to {high}",
    }[kind]
    if kind != "not critical":
        says += f", and the gradient norm {norm:.2g} is {scaled:.1g} lengths (tolerance {tolerance:.1g})"
    ends = f", by {len(values)} extreme eigenvalues alone (the others were not computed)"
    return says + (ends if not complete else "") + "."


def _kinks(loss_fn, params, data, batch_size, operator, ends, top, x, key) -> bool:
    """Whether central differences of the gradient fail to approach the Hessian product as their step is halved.

    For a loss with three derivatives the error falls by 4 with each halving, down to round-off; a jump J of the
    gradient within the step adds J / (2 t), which doubles.
    """
    eps = float(jnp.finfo(operator.dtype).eps)
    size = float(np.linalg.norm(x)) or 1.0
    random = np.asarray(jax.random.normal(jax.random.key(1) if key is None else key, (3, operator.size), jnp.float32))
    back = flatten(params)[1]

    def gradient(point):
        moved = back(jnp.asarray(point, operator.dtype))
        return np.asarray(flatten(mean_value_and_gradient(loss_fn, moved, data, batch_size=batch_size)[1])[0], float)

    for direction in (*ends, *random):
        direction = direction / np.linalg.norm(direction)
        wanted, before = np.asarray(operator.matvec(direction), float), None
        for t in size * 0.05 * 0.5 ** np.arange(5):
            forward, backward = gradient(x + t * direction), gradient(x - t * direction)
            slope = (forward - backward) / (2 * t)
            error = float(np.linalg.norm(slope - wanted))
            scale = float(max(np.linalg.norm(slope), top))
            rounding = 32 * eps * (np.linalg.norm(forward) + np.linalg.norm(backward) + scale * size) / t
            if before is not None and error > 0.6 * before and error > max(1e-3 * scale, rounding):
                return True
            before = error
    return False
