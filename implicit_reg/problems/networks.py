"""Small tanh networks: smooth losses with the shape of real ones, cheap to differentiate again and again."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int

from implicit_reg import _checks
from implicit_reg._types import Integer
from implicit_reg.problems.data import load_dataset
from implicit_reg.problems.problem import Problem, working_dtype

Layers = list[dict[str, Array]]


def tanh_layers(rng: np.random.Generator, sizes: tuple[int, ...], dtype: np.dtype) -> Layers:
    """Weights `N(0, 1/fan_in)` and small biases `N(0, 0.01)`, drawn in float32 and cast.

    Args:
      rng: where the numbers come from.
      sizes: widths from input to output, two or more.
      dtype: of the parameters.

    Returns:
      One `{"w": (fan_in, fan_out), "b": (fan_out,)}` per layer.

    Example:
      >>> [layer["w"].shape for layer in tanh_layers(np.random.default_rng(0), (2, 4, 1), np.dtype("float32"))]
      [(2, 4), (4, 1)]
    """
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        w = rng.standard_normal((fan_in, fan_out), dtype=np.float32) / np.float32(np.sqrt(fan_in))
        b = np.float32(0.1) * rng.standard_normal(fan_out, dtype=np.float32)
        layers.append({"w": jnp.asarray(w, dtype), "b": jnp.asarray(b, dtype)})
    return layers


def tanh_forward(params: Layers, x: Float[Array, "n inputs"]) -> Inexact[Array, "n outputs"]:
    """The network `x -> tanh(x W_1 + b_1) -> ... -> h W_k + b_k`.

    Args:
      params: what `tanh_layers` gives.
      x: one example per row.

    Returns:
      The outputs of the last layer, which has no tanh.

    Example:
      >>> params = [{"w": jnp.eye(2), "b": jnp.zeros(2)}, {"w": jnp.ones((2, 1)), "b": jnp.ones(1)}]
      >>> tanh_forward(params, jnp.zeros((3, 2))).ravel()
      Array([1., 1., 1.], dtype=float32)
    """
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def tanh_network(seed: Integer = 0, *, dtype: Any = None) -> Problem:
    """A 2-4-1 tanh network (17 parameters) on eight random points, mean squared error halved.

    Small enough for dense Hessians and third derivatives, and not a polynomial.

    Args:
      seed: of the data and of the start.
      dtype: of data and parameters; `None` is JAX's default.

    Returns:
      A `Problem`; its loss takes an optional array of example numbers, `loss_fn(params, indices)`. Facts:
      `num_examples` (8).

    Example:
      >>> problem = tanh_network()
      >>> problem.num_params
      17
      >>> bool(problem.loss_fn(problem.params, jnp.arange(8)) == problem.loss_fn(problem.params))
      True
    """
    _checks.check_seed("tanh_network", "seed", seed)
    dtype = working_dtype("tanh_network", dtype)
    rng = np.random.default_rng(int(seed))
    x = rng.standard_normal((8, 2), dtype=np.float32).astype(dtype)
    y = rng.standard_normal((8, 1), dtype=np.float32).astype(dtype)

    def loss_fn(params: Layers, indices: Int[Array, " batch"] | None = None) -> Float[Array, ""]:
        rows, targets = jnp.asarray(x), jnp.asarray(y)
        if indices is not None:
            rows, targets = rows[indices], targets[indices]
        return 0.5 * jnp.mean((tanh_forward(params, rows) - targets) ** 2)

    return Problem(
        "tanh-network",
        loss_fn,
        tanh_layers(rng, (2, 4, 1), dtype),
        {"num_examples": 8},
        "A 2-4-1 tanh network on eight random points.",
    )


def digits_tanh(seed: Integer = 0, *, num_examples: Integer = 100, width: Integer = 8, dtype: Any = None) -> Problem:
    """A 64-width-10 tanh network on scikit-learn's digits, mean softmax cross-entropy: the default of `verify`.

    The examples are the first ones of the shuffled training split, with pixels in [0, 1].

    Args:
      seed: of the split and of the start.
      num_examples: how many training examples; at most 1000.
      width: of the hidden layer.
      dtype: of data and parameters; `None` is JAX's default. Starts agree to float32 in every precision.

    Returns:
      A `Problem` (610 parameters at width 8); its loss takes an optional array of example numbers,
      `loss_fn(params, indices)`. Facts: `num_examples`, `num_classes`.

    Raises:
      ValueError: where `num_examples` exceeds the training split.

    Example:
      >>> problem = digits_tanh()
      >>> problem.num_params, bool(problem.loss_fn(problem.params) > 1.0)
      (610, True)
    """
    for name, value in (("num_examples", num_examples), ("width", width)):
        _checks.check_integer("digits_tanh", name, value)
    dtype = working_dtype("digits_tanh", dtype)
    data = load_dataset("digits", seed=seed, scaling="none")
    if num_examples > len(data.x_train):
        raise ValueError(f"digits_tanh: `num_examples` must be at most {len(data.x_train)}, got {num_examples}")
    x = (data.x_train[:num_examples] / np.float32(16)).astype(dtype)
    y = data.y_train[:num_examples]
    rng = np.random.default_rng(int(seed))

    def loss_fn(params: Layers, indices: Int[Array, " batch"] | None = None) -> Float[Array, ""]:
        rows, labels = jnp.asarray(x), jnp.asarray(y)
        if indices is not None:
            rows, labels = rows[indices], labels[indices]
        log_probabilities = jax.nn.log_softmax(tanh_forward(params, rows))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))

    return Problem(
        "digits-tanh",
        loss_fn,
        tanh_layers(rng, (64, int(width), 10), dtype),
        {"num_examples": int(num_examples), "num_classes": 10},
        f"A 64-{width}-10 tanh network on {num_examples} of scikit-learn's digits, cross-entropy.",
    )
