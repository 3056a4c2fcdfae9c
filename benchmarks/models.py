"""Three small models in plain `jax.numpy`: a perceptron, a convolution network, a transformer block.

Parameters are a dictionary of float32 arrays, and `loss(params, batch)` gets its data as an argument, so that no
compiler folds it into the program. The data is random: a step costs the same on any.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """Parameters, a loss `loss(params, batch) -> scalar`, and one batch."""

    title: str
    params: Mapping[str, jax.Array]
    loss: Callable[[Any, Any], jax.Array]
    batch: tuple[jax.Array, jax.Array]


def _normal(rng: np.random.Generator, *shape: int, fan_in: int = 1) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape) / np.sqrt(fan_in), jnp.float32)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))


def _mlp_loss(params, batch):
    x, labels = batch
    *hidden, last = range(len(params) // 2)
    for k in hidden:
        x = jnp.tanh(x @ params[f"w{k}"] + params[f"b{k}"])
    return cross_entropy(x @ params[f"w{last}"] + params[f"b{last}"], labels)


def mlp(sizes: tuple[int, ...] = (784, 512, 512, 10), batch: int = 128) -> Model:
    """A perceptron with tanh, by default 784-512-512-10 on a batch of 128."""
    rng = np.random.default_rng(0)
    params = {}
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        params[f"w{k}"] = _normal(rng, fan_in, fan_out, fan_in=fan_in)
        params[f"b{k}"] = jnp.zeros(fan_out, jnp.float32)
    data = _normal(rng, batch, sizes[0]), jnp.asarray(rng.integers(sizes[-1], size=batch), jnp.int32)
    return Model(f"MLP {'-'.join(map(str, sizes))}, batch {batch}", params, _mlp_loss, data)


def convolve(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve_patches(x, w):
    """The same for an odd square window, as one product with the patches of the image."""
    n, height, width, channels = x.shape
    size = w.shape[0]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    shifts = itertools.product(range(size), repeat=2)
    patches = jnp.concatenate([padded[:, i : i + height, j : j + width] for i, j in shifts], axis=-1)
    return (patches.reshape(-1, size**2 * channels) @ w.reshape(size**2 * channels, -1)).reshape(n, height, width, -1)


def pooled(x):
    x = jax.nn.relu(x)
    n, height, width, channels = x.shape
    return jnp.mean(x.reshape(n, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def _conv_loss(by_patches, params, batch):
    x, labels = batch
    for k in range(len(params) // 2 - 1):
        layer = convolve_patches if k < by_patches else convolve
        x = pooled(layer(x, params[f"w{k}"]) + params[f"b{k}"])
    return cross_entropy(x.reshape(x.shape[0], -1) @ params["w"] + params["b"], labels)


def conv(
    side: int = 28, widths: tuple[int, ...] = (16, 32), classes: int = 10, batch: int = 64, by_patches: int = 0
) -> Model:
    """3x3 convolutions with ReLU, each followed by 2x2 mean pooling, then one dense layer.

    The first `by_patches` convolutions are written as products with patches: the same function.
    """
    rng = np.random.default_rng(0)
    params = {}
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise((1, *widths))):
        params[f"w{k}"] = _normal(rng, 3, 3, fan_in, fan_out, fan_in=9 * fan_in)
        params[f"b{k}"] = jnp.zeros(fan_out, jnp.float32)
    features = (side // 2 ** len(widths)) ** 2 * widths[-1]
    params |= {"w": _normal(rng, features, classes, fan_in=features), "b": jnp.zeros(classes, jnp.float32)}
    data = _normal(rng, batch, side, side, 1), jnp.asarray(rng.integers(classes, size=batch), jnp.int32)
    title = f"convolutions 3x3 {'-'.join(map(str, widths))} on {side}x{side}, batch {batch}"
    if by_patches:
        title += f", {by_patches} by patches"
    return Model(title, params, functools.partial(_conv_loss, by_patches), data)


def normalize(x, gain):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return gain * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def scores(length, heads, q, k):
    q, k = (x.reshape(-1, length, heads, x.shape[-1] // heads) for x in (q, k))
    return jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(q.shape[-1]).item()


def causal_softmax(x):
    length = x.shape[-1]
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((length, length), bool)), x, -1e9))


def attend(weights, v):
    n, heads, length, _ = weights.shape
    return jnp.einsum("nhqk,nkhd->nqhd", weights, v.reshape(n, length, heads, -1)).reshape(v.shape)


def _transformer_loss(heads, params, batch):
    tokens, following = batch
    length = tokens.shape[-1]
    # One row per token: where a product contracts two axes, as the gradient of a weight then would, XLA copies factors
    # into the transposed layout on a CPU, and a whole step takes a third longer.
    x = (params["embedding"][tokens] + params["position"]).reshape(tokens.size, -1)
    before = normalize(x, params["gain0"])
    q, k, v = (before @ params[name] for name in "qkv")
    x = x + attend(causal_softmax(scores(length, heads, q, k)), v) @ params["o"]
    x = x + jax.nn.gelu(normalize(x, params["gain1"]) @ params["up"]) @ params["down"]
    return cross_entropy(normalize(x, params["gain2"]) @ params["head"], following.reshape(-1))


def transformer(width: int = 128, heads: int = 4, length: int = 32, vocabulary: int = 256, batch: int = 16) -> Model:
    """One causal transformer block between an embedding and a head, predicting the next token."""
    rng = np.random.default_rng(0)
    params = {name: _normal(rng, width, width, fan_in=width) for name in "qkvo"}
    params |= {
        "embedding": _normal(rng, vocabulary, width),
        "position": _normal(rng, length, width),
        "up": _normal(rng, width, 4 * width, fan_in=width),
        "down": _normal(rng, 4 * width, width, fan_in=4 * width),
        "head": _normal(rng, width, vocabulary, fan_in=width),
    }
    params |= {f"gain{k}": jnp.ones(width, jnp.float32) for k in range(3)}
    text = jnp.asarray(rng.integers(vocabulary, size=(batch, length + 1)), jnp.int32)
    return Model(
        f"transformer block, width {width}, {heads} heads, {batch} x {length} tokens",
        params,
        functools.partial(_transformer_loss, heads),
        (text[:, :-1], text[:, 1:]),
    )


MODELS: Mapping[str, Callable[[], Model]] = {"mlp": mlp, "conv": conv, "transformer": transformer}
TINY: Mapping[str, Callable[[], Model]] = {
    "mlp": functools.partial(mlp, sizes=(16, 16, 16, 4), batch=64),
    "conv": functools.partial(conv, side=8, widths=(4, 8), classes=4, batch=16),
    "transformer": functools.partial(transformer, width=16, heads=2, length=8, vocabulary=16, batch=8),
}
