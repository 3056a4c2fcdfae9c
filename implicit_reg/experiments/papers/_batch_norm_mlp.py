"""The network of the flooding paper's code: linear layers, batch normalization and ReLU, as pure functions.

torch keeps running averages of the batch statistics for evaluation. Here evaluation uses the exact statistics of the
training set under the present parameters instead: they are the limit of those averages once parameters stand still,
and there is no state that a sweep would have to carry.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicit_reg._types import Integer

Layers = list[dict[str, Array]]

_EPS = 1e-5


def initial_layers(key: Array, sizes: tuple[Integer, ...], *, normalize: bool = True) -> Layers:
    """Weights and biases uniform within `1/sqrt(fan_in)`, as torch draws them; normalization begins as the identity.

    Args:
      key: of the draw.
      sizes: widths from input to output.
      normalize: batch normalization on the hidden layers, which have no bias then.

    Returns:
      One dictionary for each layer.

    Example:
      >>> [sorted(layer) for layer in initial_layers(jax.random.key(0), (2, 5, 2))]
      [['scale', 'shift', 'w'], ['b', 'w']]
    """
    pairs = list(itertools.pairwise(int(size) for size in sizes))
    plain = [not normalize or k == len(pairs) - 1 for k in range(len(pairs))]
    # One draw for all layers: compiling a generator for each took ten times as long as the rest of the program.
    counts = [n * m + m * bias for (n, m), bias in zip(pairs, plain, strict=True)]
    drawn = jax.random.uniform(key, (sum(counts),), jnp.float32, minval=-1, maxval=1)
    layers, start = [], 0
    for (fan_in, fan_out), bias, count in zip(pairs, plain, counts, strict=True):
        numbers = drawn[start : start + count] / math.sqrt(fan_in)
        layer = {"w": numbers[: fan_in * fan_out].reshape(fan_in, fan_out)}
        if bias:
            layer |= {"b": numbers[fan_in * fan_out :]}
        else:
            layer |= {"scale": jnp.ones_like(numbers[:fan_out]), "shift": jnp.zeros_like(numbers[:fan_out])}
        layers.append(layer)
        start += count
    return layers


def logits(params: Layers, x: Float[Array, "n features"], *others: Float[Array, "_ features"]) -> tuple[Array, ...]:
    """The outputs for `x`, and for other examples with the batch statistics of `x`.

    Args:
      params: from `initial_layers`.
      x: the minibatch in training, the whole training set in evaluation: its means and variances normalize.
      *others: examples that are only evaluated.

    Returns:
      The logits of `x` and of each of the others.

    Example:
      >>> params = initial_layers(jax.random.key(0), (2, 5, 3))
      >>> [z.shape for z in logits(params, jnp.eye(2), jnp.ones((7, 2)))]
      [(2, 3), (7, 3)]
    """
    parts = (x, *others)
    for layer in params[:-1]:
        parts = tuple(part @ layer["w"] for part in parts)
        if "scale" in layer:
            mean = jnp.mean(parts[0], axis=0)
            factor = layer["scale"] * jax.lax.rsqrt(jnp.var(parts[0], axis=0) + _EPS)
            offset = layer["shift"] - mean * factor
            parts = tuple(jax.nn.relu(part * factor + offset) for part in parts)
        else:
            parts = tuple(jax.nn.relu(part + layer["b"]) for part in parts)
    return tuple(part @ params[-1]["w"] + params[-1]["b"] for part in parts)


def cross_entropies(z: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """The cross-entropy of each example, in nats.

    Args:
      z: logits.
      labels: classes.

    Returns:
      A vector.

    Example:
      >>> print(cross_entropies(jnp.zeros((1, 2)), jnp.array([1])).round(3))
      [0.693]
    """
    return -jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], axis=1)[:, 0]


def accuracy(z: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """The share of examples whose largest logit is that of their label.

    Args:
      z: logits.
      labels: classes.

    Returns:
      A number in [0, 1].

    Example:
      >>> print(accuracy(jnp.eye(2), jnp.array([0, 0])))
      0.5
    """
    return jnp.mean((jnp.argmax(z, axis=1) == labels).astype(z.dtype))
