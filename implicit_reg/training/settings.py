"""What a training run is: one frozen record, the same for Python, the command line and `config.json`. No JAX here."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a training run."""

    data: str = "digits"
    """Data set: digits, breast-cancer, wine, diabetes, or module:attribute (a Dataset, or a function returning one)."""
    scaling: str = "standard"
    """Feature scaling: standard, min-max, mean-normalization, unit-length, robust, max-abs, none."""
    label_noise: float = 0.0
    """Fraction of the training and validation labels that get a wrong class; test labels stay clean."""

    model: str = "mlp"
    """Model: mlp, or conv (images only)."""
    widths: tuple[int, ...] | None = None
    """Hidden units (mlp) or channels (conv) per layer; default 64 for mlp, 16 32 for conv."""
    activation: str = "tanh"
    """tanh, gelu, softplus, sigmoid, silu, relu, elu."""
    dropout: float = 0.0
    """Probability that a hidden unit is set to zero in training."""
    batch_norm: bool = False
    """Normalize hidden layers over the minibatch; running averages at test time."""

    method: str = "gd"
    """Row of the methods table (gd, gradient-penalty, backstitch, sam, flooding, ...), or module:attribute."""
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of the method, as name=value: --hyper alpha=0.3 interval=2."""

    optimizer: str = "sgd"
    """Base optimizer: any of Optax's with a learning rate (sgd, adam, adamw, rmsprop, ...), or module:attribute.
    The evaluations of its own line search are not among the gradients that are counted."""
    optimizer_args: tuple[str, ...] = ()
    """Keywords of the base optimizer, as name=value: --optimizer-args momentum=0.9 nesterov=true."""
    learning_rate: float = 0.1
    """Peak learning rate."""
    schedule: str = "constant"
    """After the warm-up: constant, cosine (to zero), or linear (to zero)."""
    warmup: float = 0.0
    """Epochs of linear warm-up from zero; fractions allowed."""
    weight_decay: float | None = None
    """Decoupled weight decay of the matrices; biases and normalization scales are spared. Default: the optimizer's."""
    clip: float | None = None
    """Largest global norm of a gradient, clipped before the base optimizer."""
    noise: float = 0.0
    """Gradient noise of standard deviation noise/(1+t)^noise-decay at step t."""
    noise_decay: float = 0.275
    """Exponent of the decay of the gradient noise."""

    batch_size: int = 32
    """Examples per step; 0 is the full batch. A last incomplete minibatch of an epoch is left out."""
    shuffle: bool = True
    """Draw the minibatches anew each epoch; off, they stay the same, in the same order."""
    epochs: int = 30
    """Passes over the training data."""
    seed: int = 0
    """Seed of split, parameters, batch order, dropout and noise, in [0, 2**32)."""
    split_seed: int | None = None
    """Seed of the data's split and label noise alone; default: the seed."""
    select: str = "loss"
    """What makes an epoch the best one, on validation data: loss, or score (accuracy or R^2; ties by loss)."""
    dtype: str = "float32"
    """Of parameters and data: float32, float64 (in Python under jax.enable_x64(True)), bfloat16 or float16."""

    def __post_init__(self) -> None:
        for name in ("hyper", "optimizer_args"):
            object.__setattr__(self, name, as_pairs(getattr(self, name)))
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """The settings that JSON holds, where a tuple is a list."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def as_pairs(values: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """`name=value` words, from a mapping or as they are.

    Args:
      values: a mapping of names to numbers, booleans or `None`, or words.

    Returns:
      The words.

    Example:
      >>> as_pairs({"alpha": 0.3, "interval": 2})
      ('alpha=0.3', 'interval=2')
    """
    if isinstance(values, Mapping):
        return tuple(f"{name}={value}" for name, value in values.items())
    if isinstance(values, str):
        raise TypeError(f"Settings: name=value words must come in a list or a mapping, got the word {values!r}")
    return tuple(values)


def parse_value(function: str, argument: str, text: str) -> float | int | bool | None:
    """A number, a boolean or none, read strictly: plain ASCII digits and nothing that is not finite.

    Args:
      function: who asks, for the message.
      argument: the name before the equals sign.
      text: what stands behind it.

    Returns:
      An int where the text is one, else a float, a bool or `None`.

    Raises:
      ValueError: for anything else (`nan`, `inf`, `1_000`, an empty text).

    Example:
      >>> [parse_value("f", "x", text) for text in ("3", "0.5", "true", "none")]
      [3, 0.5, True, None]
    """
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return int(text) if re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII) else float(text)
    raise ValueError(f"{function}: `{argument}` must be a finite decimal number, true, false or none; got {text!r}")


def parse_pairs(function: str, words: Sequence[str]) -> dict[str, float | int | bool | None]:
    """A dictionary from `name=value` words.

    Args:
      function: who asks, for the message.
      words: each `name=value`, with names that are not repeated.

    Returns:
      Names to values; dashes in names become underscores.

    Raises:
      ValueError: for a word of another form, a value that is no number, or a repeated name.

    Example:
      >>> parse_pairs("train", ["momentum=0.9", "nesterov=true"])
      {'momentum': 0.9, 'nesterov': True}
    """
    pairs: dict[str, float | int | bool | None] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise ValueError(f"{function}: wanted name=value, for example alpha=0.3; got {word!r}")
        if name in pairs:
            raise ValueError(f"{function}: `{name}` is given twice; give it once")
        pairs[name] = parse_value(function, name, text.strip())
    return pairs
