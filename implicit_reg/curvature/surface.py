"""The loss along one direction or on a plane, and where the points of a run lie on it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._types import Data, Integer, Loss, Params
from implicit_reg.curvature.minibatches import mean_value_and_gradient
from implicit_reg.curvature.operators import flatten


class LossSurface(NamedTuple):
    """The loss on a grid around a point.

    Attributes:
      coordinates: one grid for each direction, in units of that direction's length.
      losses: at `center + sum_i coordinate_i direction_i`, one axis for each direction; not finite where the loss is.
      center: flat.
      directions: flat rows.
    """

    coordinates: tuple[Float[Array, " n"], ...]
    losses: Float[Array, "*grid"]
    center: Float[Array, " d"]
    directions: Float[Array, "r d"]


def project(surface: LossSurface, points: Params) -> Float[Array, "records r"]:
    """Coordinates of the nearest points of the line or plane, by least squares.

    Args:
      surface: from `loss_along`.
      points: as the parameters, every leaf with a leading axis, such as `Trajectory.params`.

    Returns:
      One row for each point. Directions need not be orthogonal.

    Example:
      >>> surface = loss_along(lambda x: jnp.sum(x**2), jnp.zeros(2), (jnp.array([2.0, 0.0]),), num_points=3)
      >>> project(surface, jnp.array([[4.0, 5.0]])).tolist()
      [[2.0]]
    """
    rows = jax.vmap(lambda p: flatten(p)[0])(points)
    with jax.default_matmul_precision("highest"):
        gram = surface.directions @ surface.directions.T
        return jnp.linalg.solve(gram, surface.directions @ (rows - surface.center).T).T


def filter_normalized(direction: Params, params: Params) -> PyTree[Array]:
    """The direction with the norm of every filter of the parameters: `d_f ||x_f|| / ||d_f||` [li2018, sec. 4].

    A filter is what feeds one output: a slice along the last axis of a leaf of two or more axes; a leaf of fewer axes
    is one filter. A filter of zeros gets zeros.

    Args:
      direction: structured as `params`.
      params: floating leaves.

    Returns:
      The scaled direction, in the dtypes of `params`.

    Raises:
      TypeError, ValueError: leaves that are not floating, or another structure.

    Example:
      >>> filter_normalized(jnp.ones((2, 2)), jnp.array([[3.0, 0.0], [3.0, 0.0]])).round(5).tolist()
      [[3.0, 0.0], [3.0, 0.0]]
    """
    _checks.check_floating("filter_normalized", "params", params)
    _checks.check_same_tree("filter_normalized", "direction", direction, "params", params)

    def leaf(d, x):
        x = jnp.asarray(x)
        axes = tuple(range(x.ndim - 1)) if x.ndim >= 2 else None
        norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a.astype(_tree.wide(a.dtype))), axis=axes, keepdims=True))  # noqa: E731
        d = jnp.asarray(d).astype(x.dtype)
        length = norm(d)
        return (
            jnp.where(length > 0, d * (norm(x) / jnp.where(length > 0, length, 1)), 0).astype(x.dtype).reshape(x.shape)
        )

    return jax.tree.map(leaf, direction, params)


def random_direction(params: Params, key: jax.Array) -> PyTree[Array]:
    """A filter-normalized Gaussian direction [li2018, sec. 4].

    Args:
      params: floating leaves.
      key: of the draw.

    Returns:
      A direction structured as `params`.

    Raises:
      TypeError, ValueError: leaves that are not floating.

    Example:
      >>> round(float(jnp.linalg.norm(random_direction(jnp.array([3.0, 4.0]), jax.random.key(0)))), 4)
      5.0
    """
    _checks.check_floating("random_direction", "params", params)
    return filter_normalized(gaussian_like(params, key), params)


def gaussian_like(params: Params, key: jax.Array) -> PyTree[Array]:
    """Independent standard normals, in the structure and dtypes of `params`."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, jnp.shape(x), jnp.result_type(x)) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)


def loss_along(
    loss_fn: Loss,
    params: Params,
    directions: Any,
    data: Data = (),
    *,
    extents: Any = 1.0,
    num_points: Integer = 25,
    batch_size: Integer | None = None,
    chunk: Integer | None = None,
) -> LossSurface:
    """The loss on a grid along one direction or two, `L(x + a d_1 + b d_2)`.

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`.
      params: the center, floating leaves.
      directions: one or two; each a flat vector (a row of `Eigenpairs.vectors`) or structured as `params`.
      data: the arguments of the loss after the parameters.
      extents: e for the interval [-e, e] in units of the directions; one number, or a tuple with one for each.
      num_points: of each axis; odd ones hold the center.
      batch_size: examples in memory at once; None takes all.
      chunk: points of the grid evaluated at once; None takes all.

    Returns:
      The `LossSurface`.

    Raises:
      TypeError, ValueError: an argument is not as above; a direction of length 0; parallel directions.

    Example:
      >>> surface = loss_along(lambda x: jnp.sum(x**2), jnp.zeros(2), (jnp.array([1.0, 0.0]),), num_points=3)
      >>> surface.losses.tolist()
      [1.0, 0.0, 1.0]
    """
    name = "loss_along"
    _checks.check_callable(name, "loss_fn", loss_fn, "loss_fn(params, *data) -> scalar")
    _checks.check_floating(name, "params", params)
    _checks.check_integer(name, "num_points", num_points, low=2)
    if chunk is not None:
        _checks.check_integer(name, "chunk", chunk)
    if not isinstance(data, tuple):
        raise TypeError(f"{name}: `data` must be a tuple of the loss's further arguments, got {type(data).__name__}")
    if not isinstance(directions, tuple | list) or len(directions) not in (1, 2):
        raise TypeError(
            f"{name}: `directions` must be a tuple or list of one or two directions, got {type(directions).__name__}"
        )
    params = jax.tree.map(jnp.asarray, params)
    center, _ = flatten(params)
    rows = jnp.stack([_flat(name, d, params, center) for d in directions])
    if not isinstance(rows, jax.core.Tracer):
        singular = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False)
        if not singular[-1] > 10 * float(jnp.finfo(center.dtype).eps) * singular[0]:
            raise ValueError(
                f"{name}: `directions` must be finite, not zero and not parallel, got singular values {singular}"
            )
    extents = extents if isinstance(extents, tuple) else (extents,) * len(directions)
    if len(extents) != len(directions):
        raise ValueError(f"{name}: `extents` must have one number for each direction, got {len(extents)}")
    for one in extents:
        _checks.check_number(name, "extents", one, low=0, exclusive=True)
    axes = tuple(
        jnp.linspace(-1, 1, int(num_points), dtype=center.dtype) * jnp.asarray(e, center.dtype) for e in extents
    )
    grid = jnp.stack([g.ravel() for g in jnp.meshgrid(*axes, indexing="ij")], axis=-1)
    chunk = grid.shape[0] if chunk is None else min(int(chunk), grid.shape[0])
    losses = _losses(_callables.hashable(loss_fn), batch_size, chunk, params, rows, grid, data)
    return LossSurface(axes, losses.reshape(tuple(len(a) for a in axes)), center, rows)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(loss_fn, batch_size, chunk, params, rows, grid, data):
    center, unravel = flatten(params)

    def at(coordinates):
        here = unravel(center + jnp.sum(coordinates[:, None] * rows, axis=0))
        # The gradient is not used, and XLA removes it.
        return mean_value_and_gradient(loss_fn, here, data, batch_size=batch_size)[0]

    return jax.lax.map(at, grid, batch_size=chunk)


def _flat(name: str, direction: Any, params: PyTree, center: Array) -> Array:
    """A direction as a flat vector."""
    if isinstance(direction, jax.Array | np.ndarray) and direction.shape == center.shape:
        return jnp.asarray(direction).astype(center.dtype)
    _checks.check_same_tree(name, "directions", direction, "params", params)
    _checks.check_floating(name, "directions", direction)
    return flatten(jax.tree.map(jnp.asarray, direction))[0].astype(center.dtype)
