"""Tanh networks on scikit-learn's digits as pure functions of a key: what the reproductions on real data share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicit_reg import _tree
from implicit_reg._types import Data, Integer, Loss, Params, Scalar
from implicit_reg.curvature import filter_normalized, flatten
from implicit_reg.experiments.statistics import interval
from implicit_reg.problems.networks import Layers, tanh_forward

NUM_FEATURES, NUM_CLASSES = 64, 10


class Split(NamedTuple):
    """Examples to train on and to test on.

    Attributes:
      x_train, x_test: pixels in [0, 1], one example per row.
      y_train, y_test: labels.
    """

    x_train: Float[Array, "n features"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "k features"]
    y_test: Int[Array, " k"]


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int32)


def digits_split(key: jax.Array, num_train: Integer, num_test: Integer) -> Split:
    """A random training and test set of digits: another one for each key, so that intervals cover the split too.

    Args:
      key: of the split.
      num_train, num_test: how many examples; at most 1797 together.

    Returns:
      The `Split`, in float32.

    Raises:
      ValueError: where there are not so many examples.

    Example:
      >>> digits_split(jax.random.key(0), 300, 1000).x_test.shape
      (1000, 64)
    """
    x, y = _digits()
    if num_train + num_test > len(x):
        raise ValueError(
            f"digits_split: `num_train` + `num_test` must be at most {len(x)}, got {num_train} + {num_test}; take fewer"
        )
    order = jax.random.permutation(key, len(x))
    train, test = order[:num_train], order[num_train : num_train + num_test]
    x, y = jnp.asarray(x), jnp.asarray(y)
    return Split(x[train], y[train], x[test], y[test])


def glorot_layers(key: jax.Array, widths: Sequence[Integer]) -> Layers:
    """A tanh network between digits and their classes: Glorot-uniform weights, biases zero, float32.

    Args:
      key: of the weights.
      widths: of the hidden layers.

    Returns:
      Parameters for `problems.networks.tanh_forward`: one more layer than there are widths.

    Example:
      >>> [layer["w"].shape for layer in glorot_layers(jax.random.key(0), (5, 5))]
      [(64, 5), (5, 5), (5, 10)]
    """
    shapes = list(itertools.pairwise((NUM_FEATURES, *widths, NUM_CLASSES)))
    # One draw for all layers: what takes a second to compile is each call of the generator, not what it draws.
    numbers = jax.random.uniform(key, (sum(a * b for a, b in shapes),), jnp.float32, minval=-1, maxval=1)
    layers, used = [], 0
    for fan_in, fan_out in shapes:
        draw = numbers[used : used + fan_in * fan_out].reshape(fan_in, fan_out)
        used += fan_in * fan_out
        layers.append({"w": math.sqrt(6 / (fan_in + fan_out)) * draw, "b": jnp.zeros(fan_out, jnp.float32)})
    return layers


def cross_entropy(params: Layers, x: Float[Array, "n features"], y: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean softmax cross-entropy of a tanh network.

    Args:
      params: from `glorot_layers`.
      x, y: examples and their labels.

    Returns:
      The mean, a scalar.

    Example:
      >>> params = jax.tree.map(jnp.zeros_like, glorot_layers(jax.random.key(0), (5,)))
      >>> round(float(cross_entropy(params, jnp.ones((2, 64)), jnp.array([0, 1]))), 4)           # log 10
      2.3026
    """
    log_probabilities = jax.nn.log_softmax(tanh_forward(params, x))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, y[:, None], axis=1))


def accuracy(params: Layers, x: Float[Array, "n features"], y: Int[Array, " n"]) -> Float[Array, ""]:
    """The share of examples whose largest output is that of their label.

    Args:
      params: from `glorot_layers`.
      x, y: examples and their labels.

    Returns:
      A scalar in [0, 1].

    Example:
      >>> params = glorot_layers(jax.random.key(0), (5,))
      >>> data = digits_split(jax.random.key(1), 100, 10)
      >>> bool(0 <= accuracy(params, data.x_train, data.y_train) <= 1)
      True
    """
    return jnp.mean(jnp.argmax(tanh_forward(params, x), axis=1) == y)


def noise_rises(
    loss_fn: Loss, params: Params, data: Data, scale: Scalar, key: jax.Array, num_samples: Integer
) -> Float[Array, ""]:
    """The mean of `L(x + scale xi) - L(x)` over filter-normalized Gaussian xi, as `curvature.noise_robustness`.

    That one draws each leaf by itself; this draws them together, which compiles several times faster, and a family of
    shapes is a compilation for each.

    Args:
      loss_fn: `loss_fn(params, *data) -> scalar`; needs no gradient.
      params: where.
      data: the arguments of the loss after the parameters.
      scale: of the noise, as a fraction of each filter's norm.
      key: of the noise.
      num_samples: how many draws.

    Returns:
      The mean rise.

    Example:
      >>> noise = dict(scale=0.5, key=jax.random.key(0), num_samples=4)
      >>> float(noise_rises(lambda x: jnp.sum(x["w"]), {"w": jnp.zeros((2, 2))}, (), **noise))
      0.0
    """
    flat, back = flatten(params)

    def moved(number):
        draw = jax.random.normal(jax.random.fold_in(key, number), flat.shape, flat.dtype)
        return loss_fn(_tree.axpy(scale, filter_normalized(back(draw), params), params), *data)

    return jnp.mean(jax.lax.map(moved, jnp.arange(int(num_samples)))) - loss_fn(params, *data)


def spearman(x: Sequence[float | int] | np.ndarray, y: Sequence[float | int] | np.ndarray) -> float:
    """Spearman's rank correlation of two vectors.

    Args:
      x, y: of equal length.

    Returns:
      A number in [-1, 1]; 0 where all entries of x or of y are equal: there is no order then.

    Example:
      >>> spearman([1, 2, 3], [0.1, 0.5, 9.0]), spearman([1, 2, 3], [2, 2, 2])
      (1.0, 0.0)
    """
    from scipy.stats import spearmanr

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def bands(values: np.ndarray) -> dict[str, np.ndarray]:
    """Means over the seeds and their 95 % intervals, for a figure to draw.

    Args:
      values: the seeds on the last axis; those that are not finite are left out.

    Returns:
      "mean", "low" and "high", without that axis; NaN where fewer than two seeds are left.

    Example:
      >>> {name: x.round(2).tolist() for name, x in bands(np.array([[1.0, 2.0, 3.0], [np.nan, np.nan, 1.0]])).items()}
      {'mean': [2.0, nan], 'low': [-0.48, nan], 'high': [4.48, nan]}
    """
    rows = [row[np.isfinite(row)] for row in np.reshape(values, (-1, values.shape[-1]))]
    found = np.array([interval(row)[:3] if row.size >= 2 else (np.nan,) * 3 for row in rows])
    return {name: found[:, k].reshape(values.shape[:-1]) for k, name in enumerate(("mean", "low", "high"))}
