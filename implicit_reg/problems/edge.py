"""Losses that grow sharper as they are descended, until gradient descent oscillates: the edge of stability."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.problems.data import load_dataset
from implicit_reg.problems.networks import Layers, tanh_forward, tanh_layers
from implicit_reg.problems.problem import Problem, working_dtype


def sharpening_valley(num_modes: Integer = 1, *, drift: Scalar = 0.005, dtype: Any = None) -> Problem:
    """A valley along which the curvature across it grows slowly, in closed form.

        L = sum_i s_i (sqrt(1 + x_i^2) - 1) + sum_{i<j} w x_i x_j
            + (drift/2) ( sum_i (2 - y_i)^2 + (3/10 - w)^2 + (1 + v)^2 ),
        s_i = 8/5 + (i - 1)/20 + y_i + (3/10) sin v

    of x (across), y, v and w. At the bottom x = 0 the Hessian across has `s_i` on the diagonal and w off it. The drift
    of y makes it larger, that of v smaller and that of w couples the directions, until all its eigenvalues are held at
    the edge; there the time average slides along the surface of constant curvature. Across, the loss grows less than
    quadratically, which keeps oscillations bounded.

    Args:
      num_modes: how many directions across, all of them critical at once.
      drift: the smaller it is, the slower everything but the oscillation.
      dtype: of the parameters; `None` is JAX's default.

    Returns:
      A `Problem` with params of shape (2 num_modes + 2,): x, y, v, w, at 0. Facts: `start_sharpness`, the largest
      Hessian eigenvalue at the start.

    Raises:
      TypeError, ValueError: `num_modes` is not a positive integer, or `drift` not a positive number.

    Example:
      >>> problem = sharpening_valley()
      >>> f"{problem.loss_fn(problem.params):.3f}", problem.facts["start_sharpness"]
      ('0.013', 1.6)
    """
    _checks.check_integer("sharpening_valley", "num_modes", num_modes)
    _checks.check_number("sharpening_valley", "drift", drift, low=0, exclusive=True)
    dtype = working_dtype("sharpening_valley", dtype)
    k = int(num_modes)
    drift = float(drift)

    def loss_fn(params: Float[Array, " d"]) -> Float[Array, ""]:
        x, y, v, w = params[:k], params[k : 2 * k], params[2 * k], params[2 * k + 1]
        across = (1.6 + 0.05 * jnp.arange(k) + y + 0.3 * jnp.sin(v)) * (jnp.sqrt(1 + x**2) - 1)
        coupling = 0.5 * w * (jnp.sum(x) ** 2 - jnp.sum(x**2))
        pull = jnp.sum((2 - y) ** 2) + (0.3 - w) ** 2 + (1 + v) ** 2
        return jnp.sum(across) + coupling + 0.5 * drift * pull

    return Problem(
        "edge-valley" if k == 1 else f"edge-valley-{k}",
        loss_fn,
        jnp.zeros(2 * k + 2, dtype),
        {"start_sharpness": 1.6 + 0.05 * (k - 1)},
        "A valley whose curvature across grows along it.",
    )


def diabetes_tanh(seed: Integer = 0, *, num_examples: Integer = 60, width: Integer = 6, dtype: Any = None) -> Problem:
    """A 10-width-1 tanh network on scikit-learn's diabetes data, mean squared error halved.

    Few examples for its parameters, so that it fits them better and better and its sharpness grows with that: gradient
    descent with a step size a little below 2/sharpness of the start comes to the edge of stability.

    Args:
      seed: of the split and of the start.
      num_examples: how many training examples; at most 264.
      width: of the hidden layer.
      dtype: of data and parameters; `None` is JAX's default.

    Returns:
      A `Problem` (73 parameters at width 6); its loss takes an optional array of example numbers,
      `loss_fn(params, indices)`. Facts: `num_examples`.

    Raises:
      ValueError: where `num_examples` exceeds the training split.

    Example:
      >>> problem = diabetes_tanh()
      >>> problem.num_params, bool(problem.loss_fn(problem.params) > 0.5)
      (73, True)
    """
    for name, value in (("num_examples", num_examples), ("width", width)):
        _checks.check_integer("diabetes_tanh", name, value)
    dtype = working_dtype("diabetes_tanh", dtype)
    data = load_dataset("diabetes", seed=seed)
    if num_examples > len(data.x_train):
        raise ValueError(f"diabetes_tanh: `num_examples` must be at most {len(data.x_train)}, got {num_examples}")
    x, y = data.x_train[:num_examples].astype(dtype), data.y_train[:num_examples, None].astype(dtype)
    params = tanh_layers(np.random.default_rng(int(seed)), (10, int(width), 1), dtype)
    return _regression(
        "diabetes-tanh" if width == 6 else f"diabetes-tanh-{width}",
        x,
        y,
        params,
        f"A 10-{width}-1 tanh network on {num_examples} of the diabetes examples.",
    )


def chebyshev_tanh(seed: Integer = 0, *, width: Integer = 20, dtype: Any = None) -> Problem:
    """A 1-width-1 tanh network on the Chebyshev polynomial of degree 5 at 20 points, mean squared error halved.

    The small regression on which the edge of stability is usually shown: the sharpness doubles while the loss falls.

    Args:
      seed: of the start.
      width: of the hidden layer.
      dtype: of data and parameters; `None` is JAX's default.

    Returns:
      A `Problem` (61 parameters at width 20). Facts: `num_examples`.

    Example:
      >>> chebyshev_tanh().num_params
      61
    """
    _checks.check_seed("chebyshev_tanh", "seed", seed)
    _checks.check_integer("chebyshev_tanh", "width", width)
    dtype = working_dtype("chebyshev_tanh", dtype)
    angle = np.pi * (np.arange(20) + 0.5)[:, None] / 20
    x, y = np.cos(angle).astype(dtype), np.cos(5 * angle).astype(dtype)
    params = tanh_layers(np.random.default_rng(int(seed)), (1, int(width), 1), dtype)
    params = [{name: 1.5 * leaf for name, leaf in layer.items()} for layer in params]
    return _regression("chebyshev-tanh", x, y, params, f"A 1-{width}-1 tanh network on a Chebyshev polynomial.")


def _regression(name: str, x: np.ndarray, y: np.ndarray, params: Layers, description: str) -> Problem:
    def loss_fn(params: Layers, indices: Int[Array, " batch"] | None = None) -> Inexact[Array, ""]:
        rows, targets = jnp.asarray(x), jnp.asarray(y)
        if indices is not None:
            rows, targets = rows[indices], targets[indices]
        return 0.5 * jnp.mean((tanh_forward(params, rows) - targets) ** 2)

    return Problem(name, loss_fn, params, {"num_examples": len(x)}, description)
