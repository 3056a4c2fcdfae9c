"""Models in flax.nnx for the data sets of `data`: a multi-layer perceptron and a small convolution network.

Both take `rngs`, a key for the dropout masks, at each call instead of holding a stream of their own: the masks are
then an argument, and a second evaluation on the same minibatch can see the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar
from implicit_reg.problems.data import Dataset

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
}


def _key(rngs: Any, layer: int) -> Any:
    # A key per layer by `fold_in`: one key for all layers would give equal masks to layers of equal width.
    return None if rngs is None else jax.random.fold_in(rngs, layer)


class MLP(nnx.Module):
    """A multi-layer perceptron: dense, then batch normalization, activation and dropout on each hidden layer.

    Args:
      num_features: inputs per example.
      num_outputs: outputs per example.
      widths: of the hidden layers; none makes a linear model.
      activation: a key of `ACTIVATIONS`; the modified equations need a smooth one (not relu).
      dropout: probability of setting a hidden unit to zero, in [0, 1).
      batch_norm: whether to normalize each hidden layer over the minibatch.
      dtype: of parameters and computation.
      rngs: the keys of the parameters.

    Raises:
      ValueError: for an unknown activation, a width below 1, or a probability outside [0, 1).

    Example:
      >>> from flax import nnx
      >>> model = MLP(4, 3, widths=(8,), dropout=0.5, batch_norm=True, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 4)), rngs=jax.random.key(1)).shape
      (2, 3)
    """

    def __init__(
        self,
        num_features: Integer,
        num_outputs: Integer,
        *,
        widths: Sequence[Integer] = (64,),
        activation: str = "tanh",
        dropout: Scalar = 0.0,
        batch_norm: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options("MLP", widths, activation, dropout)
        self.activation = activation
        sizes = (num_features, *widths)
        self.hidden = nnx.List(nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(sizes))
        self.norms = nnx.List(nnx.BatchNorm(b, dtype=dtype, momentum=0.9, rngs=rngs) for b in widths if batch_norm)
        self.dropout = nnx.Dropout(float(dropout))
        self.output = nnx.Linear(sizes[-1], num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array | np.ndarray, "n features"], *, rngs: Any = None) -> Float[Array, "n outputs"]:
        """The outputs, one row per example; `rngs` is the key of the dropout masks."""
        for k, layer in enumerate(self.hidden):
            x = layer(x)
            if len(self.norms):
                x = self.norms[k](x)
            x = self.dropout(ACTIVATIONS[self.activation](x), rngs=_key(rngs, k))
        return self.output(x)


class ConvNet(nnx.Module):
    """A small convolution network: 3x3 convolutions, each followed by 2x2 mean pooling, then one dense layer.

    Args:
      image_shape: (height, width, channels) of one example; rows of features are reshaped to it.
      num_outputs: outputs per example.
      widths: channels of the convolutions, at least one; each halves height and width.
      activation, dropout, batch_norm, dtype, rngs: as for `MLP`.

    Raises:
      ValueError: as for `MLP`, and where the image is too small for so many poolings.

    Example:
      >>> from flax import nnx
      >>> model = ConvNet((8, 8, 1), 10, widths=(4, 8), rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 64))).shape
      (2, 10)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_outputs: Integer,
        *,
        widths: Sequence[Integer] = (16, 32),
        activation: str = "tanh",
        dropout: Scalar = 0.0,
        batch_norm: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options("ConvNet", widths, activation, dropout)
        height, width, channels = image_shape
        shrink = 2 ** len(widths)
        if not widths or min(height, width) < shrink:
            raise ValueError(
                f"ConvNet: `widths` must hold at least one number and at most as many as the image of {height}x{width} "
                f"can be halved; got {list(widths)}"
            )
        self.image_shape, self.activation = tuple(image_shape), activation
        sizes = (channels, *widths)
        self.hidden = nnx.List(nnx.Conv(a, b, (3, 3), dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(sizes))
        self.norms = nnx.List(nnx.BatchNorm(b, dtype=dtype, momentum=0.9, rngs=rngs) for b in widths if batch_norm)
        self.dropout = nnx.Dropout(float(dropout))
        for _ in widths:
            height, width = height // 2, width // 2
        self.output = nnx.Linear(height * width * sizes[-1], num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array | np.ndarray, "n features"], *, rngs: Any = None) -> Float[Array, "n outputs"]:
        """The outputs, one row per example; `rngs` is the key of the dropout masks."""
        x = x.reshape(x.shape[0], *self.image_shape)
        for k, layer in enumerate(self.hidden):
            x = layer(x)
            if len(self.norms):
                x = self.norms[k](x)
            x = nnx.avg_pool(ACTIVATIONS[self.activation](x), (2, 2), strides=(2, 2))
            x = self.dropout(x, rngs=_key(rngs, k))
        return self.output(x.reshape(x.shape[0], -1))


def _check_options(function: str, widths: Sequence[int], activation: str, dropout: float) -> None:
    for k, width in enumerate(widths):
        _checks.check_integer(function, f"widths[{k}]", width)
    if activation not in ACTIVATIONS:
        raise _checks.unknown_name(function, "activation", activation, ACTIVATIONS)
    _checks.check_number(function, "dropout", dropout, low=0.0)
    if dropout >= 1:
        raise ValueError(f"{function}: `dropout` must be below 1, got {dropout}")


MODELS = ("mlp", "conv")
DEFAULT_WIDTHS = {"mlp": (64,), "conv": (16, 32)}


def build_model(
    name: str,
    data: Dataset,
    *,
    widths: Sequence[Integer] | None = None,
    activation: str = "tanh",
    dropout: Scalar = 0.0,
    batch_norm: bool = False,
    dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The model with this name, fitted to the data's inputs and outputs. Parameters are drawn in float32 and cast.

    Args:
      name: one of `MODELS`; "conv" needs data with an image shape.
      data: gives the sizes of input and output.
      widths: of the hidden layers; `None` is the model's default, `DEFAULT_WIDTHS`.
      activation, dropout, batch_norm, dtype, rngs: see `MLP`.

    Returns:
      A flax.nnx module in training mode: `model(x, rngs=key) -> (n, outputs)`.

    Raises:
      ValueError: for an unknown name, bad options, or a convolution on data that are no images.

    Example:
      >>> from flax import nnx
      >>> from implicit_reg.problems import load_dataset
      >>> model = build_model("mlp", load_dataset("wine"), widths=[5], rngs=nnx.Rngs(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))   # 13*5 + 5 + 5*3 + 3
      88
    """
    if name not in MODELS:
        raise _checks.unknown_name("build_model", "model", name, MODELS)
    widths = DEFAULT_WIDTHS[name] if widths is None else tuple(widths)
    options = {
        "widths": widths,
        "activation": activation,
        "dropout": dropout,
        "batch_norm": batch_norm,
        "dtype": jnp.dtype(dtype),
        "rngs": rngs,
    }
    if name == "mlp":
        model = MLP(data.num_features, data.num_outputs, **options)
    elif data.image_shape is None:
        raise ValueError(f"build_model: model 'conv' needs images and {data.name!r} holds none; use 'mlp'")
    else:
        model = ConvNet(data.image_shape, data.num_outputs, **options)
    # Running averages are sums over many minibatches: in half precision they would stop moving, so they stay float32.
    params, rest = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(dtype, jnp.float32)), rest))
    return model
