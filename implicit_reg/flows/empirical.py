"""Modified fields from a stored run: nothing is evaluated again, and nothing has to be known of what made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Integer
from implicit_reg.flows.interpolated import interpolation_weights
from implicit_reg.trajectory import Trajectory

if TYPE_CHECKING:
    Recorded: TypeAlias = Trajectory
else:
    Recorded: TypeAlias = object  # see `_types`


class EmpiricalField(NamedTuple):
    """The field that a run follows, at those of its points where enough neighbors are stored.

    Attributes:
      t: the K times, those of the run.
      points: the parameters there; every leaf has a leading axis K.
      values: `dx/dt` there, structured as `points`.
      floor: a bound on the norm of what the rounding of the stored parameters alone does to `values`:
        `eps ||x|| sum|c| / (2 spacing)`, c the coefficients of the parameters. It grows as the spacing shrinks.
      finite: whether every record behind a value is finite.
      spacing: the distance of two records in time; `k h` where every k-th step was recorded.
      h: the step size of the run, as the run has it.
      order: the error of `values` is `O(spacing^order)`.
    """

    t: Float[np.ndarray, " K"] | Float[Array, " K"]
    points: PyTree[Array]
    values: PyTree[Array]
    floor: Float[Array, " K"]
    finite: Bool[Array, " K"]
    spacing: Any
    h: Any
    order: int


def central_weights(half_width: int) -> tuple[Fraction, ...]:
    """`c_k = (-1)^(k+1) (m!)^2 / (k (m-k)! (m+k)!)` for k = 1..m: `x' = sum_k c_k (x_k - x_{-k}) + O(spacing^(2m))`.

    Example:
      >>> central_weights(2)
      (Fraction(2, 3), Fraction(-1, 12))

    References:
      [hairer2006], ch. IX, for the inverse problem; the weights are those of the symmetric interpolant.
    """
    m = half_width
    return tuple(
        Fraction((-1) ** (k + 1) * math.factorial(m) ** 2, k * math.factorial(m - k) * math.factorial(m + k))
        for k in range(1, m + 1)
    )


def _spacing(trajectory: Trajectory) -> Any:
    """The distance of two records; concrete times must be equidistant."""
    t = trajectory.t
    if isinstance(t, jax.core.Tracer):
        return t[1] - t[0]
    gaps = np.diff(np.asarray(t, np.float64))
    mean = float(np.mean(gaps))
    # Times are `n h` rounded once each; traced runs store them in the working precision.
    resolution = 4 * float(jnp.finfo(np.asarray(t).dtype).eps) * float(np.max(np.abs(t)))
    if not (mean > 0 and np.all(np.abs(gaps - mean) <= 1e-9 * mean + resolution)):
        raise ValueError(
            f"empirical_vector_field: `trajectory` must have equidistant, increasing times, got distances from "
            f"{gaps.min():g} to {gaps.max():g}; record it by descend(..., every=k), or cut it where the step changes"
        )
    return mean


def _combination(order: int, central: bool) -> tuple[int, Sequence[tuple[int, int, float]], float]:
    """Records needed before a point, `(later, earlier, weight)` of each difference, and the sum of |coefficients|."""
    if central:
        m = order // 2
        weights = central_weights(m)
        return m, [(k, -k, float(c)) for k, c in enumerate(weights, start=1)], 2 * float(sum(map(abs, weights)))
    weights = interpolation_weights(order)
    of_records = [a - b for a, b in zip((0, *weights), (*weights, 0), strict=True)]
    return 0, [(j + 1, j, float(w)) for j, w in enumerate(weights)], float(sum(map(abs, of_records)))


def empirical_vector_field(trajectory: Recorded, order: Integer, *, central: bool = False) -> EmpiricalField:
    """The modified field of whatever made a run, from its stored iterates alone:

        updates:  f(x_n) = (1/s) sum_{j=0..p-1} w_j (x_{n+j+1} - x_{n+j}),      order p,
        central:  f(x_n) = (1/s) sum_{k=1..m} c_k (x_{n+k} - x_{n-k}),        order p = 2 m,

    s the spacing of the records. Consecutive iterates are samples of one curve, the solution of the modified equation,
    so its derivative is the field. Any optimizer has it, with momentum, Adam, clipping or schedules, *after its
    transient*: before, the iterates lie on no smooth curve, and the values mean nothing. A run recorded at every k-th
    step samples the same curve at the spacing k h: allowed, with an error of order `(k h)^order`; it is the same
    field, that of the step size h.

    Differences are taken before anything is weighted: they are exact for near neighbors, so that what is lost is the
    rounding of the stored parameters, `eps ||x|| / s`, reported as `floor`. Where the method is at hand,
    `interpolated_vector_field` has no such floor.

    Args:
      trajectory: with equidistant times, as `descend` (or `integrate`) makes it.
      order: p; with `central` it must be even.
      central: differences around the point instead of ahead of it: much smaller errors at equal order, but no value at
        the first m and the last m records, where `order` records are missing at the end otherwise.

    Returns:
      Points and values at the K = (number of records) - `order` records that have enough neighbors.

    Raises:
      TypeError, ValueError: no trajectory, too few records for the order, times that are not equidistant, parameters
        that are not real floating, or an odd order for central differences. Records that diverged are no error: see
        `finite`.

    Example:
      >>> import jax.numpy as jnp, optax, implicit_reg as ir
      >>> run = ir.descend(optax.sgd, lambda x: 0.5 * x**2, jnp.array(1.0), 0.25, 2)
      >>> field = empirical_vector_field(run, 2)
      >>> field.t, field.values                            # (3/2) (-1) - (1/2) (-3/4); exactly, log(3/4)/0.25 = -1.151
      (array([0.]), Array([-1.125], dtype=float32))

    References:
      [hairer2006], ch. IX.
    """
    function = "empirical_vector_field"
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"{function}: `trajectory` must be a Trajectory, got {type(trajectory).__name__}")
    _checks.check_integer(function, "order", order)
    _checks.check_flag(function, "central", central)
    if central and order % 2:
        raise ValueError(f"{function}: `order` must be even for central differences, got {order}")
    if np.ndim(trajectory.t) != 1:
        raise ValueError(
            f"{function}: `trajectory` must be one trajectory, got times of shape {np.shape(trajectory.t)}; for "
            f"several at once use jax.vmap"
        )
    _checks.check_floating(function, "trajectory.params", trajectory.params)
    records, order = len(trajectory.t), int(order)
    if records < order + 1:
        raise ValueError(
            f"{function}: `trajectory` must hold at least order + 1 = {order + 1} records, got {records}; take more "
            f"steps, or a lower order"
        )
    spacing = _spacing(trajectory)
    before, differences, weight = _combination(order, central)
    kept = slice(before, records - order + before)
    params = jax.tree.map(jnp.asarray, trajectory.params)

    def value(leaf):
        shifted = lambda k: leaf[before + k : records - order + before + k]  # noqa: E731
        return sum(w * (shifted(late) - shifted(early)) for late, early, w in differences) / jnp.asarray(
            spacing, leaf.dtype
        )

    points = jax.tree.map(lambda leaf: leaf[kept], params)
    rounding = jax.tree.map(lambda leaf: (jnp.finfo(leaf.dtype).eps / 2).astype(leaf.dtype) * leaf, points)
    usable = jnp.asarray(trajectory.finite)
    return EmpiricalField(
        t=trajectory.t[kept],
        points=points,
        values=jax.tree.map(value, params),
        floor=weight * jnp.sqrt(jax.vmap(_tree.squared_norm)(rounding)) / spacing,
        finite=jnp.all(jnp.stack([usable[k : records - order + k] for k in range(order + 1)]), axis=0),
        spacing=spacing,
        h=trajectory.h,
        order=order,
    )
