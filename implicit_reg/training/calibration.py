"""How far probabilities can be trusted, and which examples carry a loss."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicit_reg import _checks
from implicit_reg._types import Integer, Scalar


def expected_calibration_error(outputs: Float[Array, "n classes"], targets: Any, *, bins: Integer = 15) -> float:
    """The mean gap between confidence and accuracy over equal bins of confidence.

    `ECE = sum_b (n_b / n) |accuracy(b) - confidence(b)|`, with confidence the largest softmax probability
    [guo2017, eq. 3].

    Args:
      outputs: logits.
      targets: integer labels, shape (n,).
      bins: of equal width between 0 and 1.

    Returns:
      A number in [0, 1]; biased upwards where there are few examples in a bin.

    Raises:
      TypeError, ValueError: `bins` is not an integer of at least 1.

    Example:
      >>> logits = jnp.log(jnp.array([[0.75, 0.25]] * 4))
      >>> expected_calibration_error(logits, jnp.array([0, 0, 0, 1])) < 1e-6      # sure to 3/4, right in 3 of 4
      True
      >>> round(expected_calibration_error(logits, jnp.array([0, 0, 1, 1])), 4)
      0.25
    """
    _checks.check_integer("expected_calibration_error", "bins", bins)
    probabilities = np.asarray(jax.nn.softmax(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))))
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == np.asarray(targets)) - confidence
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(gap))


def worst_share(losses: Float[Any, " n"], *, fraction: Scalar = 0.01) -> float:
    """The share of a mean loss that its largest terms carry.

    Args:
      losses: one per example, none negative.
      fraction: of the examples, rounded up to whole ones.

    Returns:
      A number in [fraction, 1], or 0 where every loss is 0.

    Raises:
      TypeError, ValueError: `fraction` is not in (0, 1].

    Example:
      >>> worst_share(jnp.array([3.0, 1.0, 0.0, 0.0]), fraction=0.25)
      0.75
    """
    _checks.check_number("worst_share", "fraction", fraction, low=0.0, exclusive=True)
    if fraction > 1:
        raise ValueError(f"worst_share: `fraction` must be at most 1, got {fraction}")
    ordered = np.sort(np.asarray(losses, np.float64))[::-1]
    count = math.ceil(fraction * len(ordered) - 1e-9)
    total = ordered.sum()
    return float(ordered[:count].sum() / total) if total > 0 else 0.0


def noise_entropy(rate: Scalar, num_classes: Integer) -> float:
    """The cross-entropy that remains of a perfect model where labels are flipped to a random other class.

    `H = -(1 - p) log(1 - p) - p log(p / (k - 1))`

    Args:
      rate: p, the fraction of flipped labels, in [0, 1].
      num_classes: k, at least 2.

    Returns:
      The entropy in nats.

    Raises:
      TypeError, ValueError: outside of these ranges.

    Example:
      >>> round(noise_entropy(0.1, 2), 3), noise_entropy(0.0, 10)
      (0.325, 0.0)
    """
    _checks.check_number("noise_entropy", "rate", rate, low=0.0)
    _checks.check_integer("noise_entropy", "num_classes", num_classes, low=2)
    if rate > 1:
        raise ValueError(f"noise_entropy: `rate` must be at most 1, got {rate}")
    terms = ((1.0 - rate, 1.0), (float(rate), num_classes - 1.0))
    return float(sum(-p * math.log(p / ways) for p, ways in terms if p > 0))
