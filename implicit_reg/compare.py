"""Evidence: two trajectories at equal times, two fields along a run, and the order at which a distance vanishes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import VectorField
from implicit_reg.flows.empirical import EmpiricalField
from implicit_reg.trajectory import Trajectory

if TYPE_CHECKING:
    Judged: TypeAlias = Trajectory
    Measured: TypeAlias = EmpiricalField
else:
    Judged: TypeAlias = object  # see `_types`
    Measured: TypeAlias = object


class Discrepancy(NamedTuple):
    """How far two trajectories are apart.

    Attributes:
      t: the K common times.
      error: at each time, the absolute Euclidean norm over all leaves of `a - b`; float64 NumPy unless traced.
    """

    t: Float[np.ndarray, " K"] | Float[Array, " K"]
    error: Float[np.ndarray, " K"] | Float[Array, " K"]


def discrepancy(a: Judged, b: Judged) -> Discrepancy:
    """`||a(t_k) - b(t_k)||`, the Euclidean norm over all leaves, at the common times.

    Args:
      a, b: trajectories with the same times (within 1e-9 h, or within the resolution of their dtype where that is
        coarser) and the same parameters.

    Returns:
      Times and errors; an error is not finite where either trajectory is not.

    Raises:
      ValueError: the times, the structures or the shapes differ. Traced times are compared by number alone.

    Example:
      >>> import jax.numpy as jnp, optax, implicit_reg as ir
      >>> loss = lambda x: 0.5 * x**2
      >>> steps = ir.descend(optax.sgd, loss, jnp.array(1.0), 0.1, 10, every=10)
      >>> flow = ir.integrate(ir.gradient_field(loss), jnp.array(1.0), steps.t, 0.1)
      >>> discrepancy(steps, flow).error.round(3)          # 0.9^10 against exp(-1)
      array([0.   , 0.019])
    """
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Trajectory):
            raise TypeError(f"discrepancy: `{name}` must be a Trajectory, got {type(value).__name__}")
        if np.ndim(value.t) != 1:
            raise ValueError(
                f"discrepancy: `{name}` must be one trajectory, got times of shape {np.shape(value.t)}; for several at "
                f"once use jax.vmap(discrepancy)"
            )
    _check_equal_times(a, b)
    _checks.check_floating("discrepancy", "a.params", a.params, allow_complex=True)
    _checks.check_same_tree("discrepancy", "a.params", a.params, "b.params", b.params)
    leaves = list(zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True))
    if any(isinstance(leaf, jax.core.Tracer) for pair in leaves for leaf in pair):
        difference = [jnp.asarray(x) - jnp.asarray(y) for x, y in leaves]
        return Discrepancy(a.t, jnp.sqrt(jax.vmap(_tree.squared_norm)(difference)))
    # On the host in float64: an error far below the working precision of the norm's sum must not be lost there.
    total = np.zeros(len(a.t))
    for x, y in leaves:
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(_wide(x) - _wide(y)).reshape(len(a.t), -1)
            total = np.hypot(total, np.sqrt(np.sum(gap**2, axis=1)))
    return Discrepancy(a.t, total)


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _check_equal_times(a: Trajectory, b: Trajectory) -> None:
    if np.shape(a.t) != np.shape(b.t):
        raise ValueError(
            f"discrepancy: the trajectories must have the same times, got {np.shape(a.t)} and {np.shape(b.t)} of them; "
            f"integrate at `ts=run.t`"
        )
    if any(isinstance(x, jax.core.Tracer) for x in (a.t, b.t, a.h, b.h)):
        return
    ta, tb = np.asarray(a.t, np.float64), np.asarray(b.t, np.float64)
    steps = [float(h) for h in (a.h, b.h) if h is not None] or [float(np.min(np.diff(ta), initial=1.0))]
    resolution = max(float(jnp.finfo(np.asarray(x.t).dtype).eps) for x in (a, b))
    for h in (a.h, b.h):
        if isinstance(h, jax.Array | np.floating):
            resolution = max(resolution, float(jnp.finfo(jnp.result_type(h, jnp.float16)).eps))
    bound = 1e-9 * min(steps) + 4 * resolution * np.abs(ta)
    if not np.all(np.abs(ta - tb) <= bound):
        k = int(np.argmax(np.abs(ta - tb) - bound))
        raise ValueError(
            f"discrepancy: the trajectories must have the same times, got t[{k}]={float(ta[k])!r} and "
            f"{float(tb[k])!r}; integrate at `ts=run.t`, or record both at common multiples of the step sizes"
        )


class FieldDistance(NamedTuple):
    """How far the field that a run follows is from predicted ones.

    Attributes:
      t: the K times.
      relative: (number of predictions, K), `||empirical - predicted|| / ||empirical||` over all leaves; not finite
        where the run is not.
      floor: (K,), what the rounding of the stored run alone can make of it; a distance near it says nothing.
    """

    t: Float[np.ndarray, " K"] | Float[Array, " K"]
    relative: Float[np.ndarray, "P K"]
    floor: Float[np.ndarray, " K"]


def compare_fields(empirical: Measured, predicted: VectorField, *more: VectorField) -> FieldDistance:
    """Predicted fields against the one that a run follows, at the points of the run.

    Before the end of a transient, and where the run jumps or oscillates, no smooth prediction is near. After it, the
    distance to a field with p terms is `O(h^p)` as long as that exceeds the empirical field's own error
    `O(spacing^order)` and its `floor`.

    Args:
      empirical: made by `empirical_vector_field`.
      predicted, more: fields `field(t, params, h)`, called with the step size of the run (the spacing of its records,
        where the run has none).

    Returns:
      One row of distances for each prediction.

    Raises:
      TypeError, ValueError: an argument is not as above, or a field returns another tree than the parameters'.

    Example:
      >>> import jax.numpy as jnp, optax, implicit_reg as ir
      >>> loss = lambda x: 0.5 * x**2
      >>> run = ir.descend(optax.sgd, loss, jnp.array(1.0), 0.1, 8)
      >>> from implicit_reg.flows.empirical import empirical_vector_field
      >>> modified = ir.modified_vector_field(ir.update_map(optax.sgd, loss), 2)
      >>> found = compare_fields(empirical_vector_field(run, 4), ir.gradient_field(loss), modified)
      >>> found.relative[:, 0].round(3)                    # 1 and 1.05 against -log(0.9)/0.1 = 1.0536
      array([0.051, 0.003])
    """
    if not isinstance(empirical, EmpiricalField):
        raise TypeError(
            f"compare_fields: `empirical` must be an EmpiricalField, got {type(empirical).__name__}; make it with "
            f"empirical_vector_field(trajectory, order)"
        )
    working = _tree.widest_dtype(empirical.points)
    h = jnp.asarray(empirical.spacing if empirical.h is None else empirical.h, working)
    t, one = jnp.asarray(empirical.t, working), jax.tree.map(lambda leaf: leaf[0], empirical.points)
    rows = []
    for k, field in enumerate((predicted, *more)):
        _checks.check_callable("compare_fields", f"predicted[{k}]", field, "field(t, params, h) -> tree like params")
        field = _callables.hashable(field)
        found = jax.eval_shape(field, t[0], one, h)
        _checks.check_same_tree("compare_fields", f"predicted[{k}](t, params, h)", found, "params", one)
        rows.append(_norms(jax.tree.map(jnp.subtract, empirical.values, _along(field, t, empirical.points, h))))
    size = _norms(empirical.values)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(np.asarray(empirical.finite), np.stack(rows) / size, np.nan)
        return FieldDistance(empirical.t, relative, np.asarray(empirical.floor, np.float64) / size)


@functools.partial(jax.jit, static_argnums=0)
def _along(field: VectorField, t: Array, points: Any, h: Array) -> Any:
    return jax.lax.map(lambda place: _tree.like(field(place[0], place[1], h), place[1]), (t, points))


def _norms(tree: Any) -> np.ndarray:
    """The Euclidean norm over all leaves at each record, in float64 on the host."""
    with np.errstate(invalid="ignore", over="ignore"):
        leaves = [np.linalg.norm(_wide(leaf).reshape(len(leaf), -1), axis=1) for leaf in jax.tree.leaves(tree)]
        return functools.reduce(np.hypot, leaves)


def observed_order(h: Any, error: Any) -> np.ndarray:
    """Slopes of the error between successive step sizes,

        log(error_i / error_{i+1}) / log(h_i / h_{i+1});

    the last is that of the finest pair, which is the order of accuracy. A fit over a range is for the eye.

    Args:
      h: n >= 2 step sizes, strictly decreasing and positive.
      error: n errors, or an array (n, ...) of them.

    Returns:
      The n - 1 slopes, float64 NumPy of shape (n - 1, ...). A zero or non-finite error gives nan, which a verdict reads
      as "could not measure".

    Raises:
      ValueError: fewer than two step sizes, out of order, not positive and finite, another number of errors, or a
        negative error.

    Example:
      >>> observed_order([0.4, 0.2, 0.1], [1.7, 0.41, 0.1]).round(2)
      array([2.05, 2.04])
    """
    h, error = (
        _checks.check_vector("observed_order", "h", h),
        _checks.check_real_array("observed_order", "error", error),
    )
    if h.size < 2:
        raise ValueError(f"observed_order: `h` must hold at least two step sizes, got {h.size}")
    if not (np.all(np.isfinite(h)) and np.all(h > 0) and np.all(np.diff(h) < 0)):
        raise ValueError(f"observed_order: `h` must be positive and strictly decreasing, got {h}")
    if error.shape[:1] != h.shape:
        raise ValueError(
            f"observed_order: `error` must hold one entry for each of {h.size} step sizes, got {error.shape}"
        )
    if np.any(error < 0):
        raise ValueError("observed_order: `error` must not be negative; it is a norm")
    usable = np.where(np.isfinite(error) & (error > 0), error, np.nan)
    ratio = np.log(h[:-1] / h[1:]).reshape((-1,) + (1,) * (error.ndim - 1))
    return np.log(usable[:-1] / usable[1:]) / ratio
