"""Losses and scores of predictions: cross-entropy and accuracy, squared error and R^2."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from implicit_reg import _checks
from implicit_reg.problems import Dataset
from implicit_reg.problems.data import TASKS


def mean_loss(task: str, outputs: Float[Array, "n outputs"], targets: Any) -> Float[Array, ""]:
    """Softmax cross-entropy for a classification, mean squared error for a regression, in float32 or wider.

    Args:
      task: "classification" or "regression".
      outputs: logits, or one number per example.
      targets: integer labels or floats, shape (n,).

    Returns:
      The mean over the examples.

    Raises:
      ValueError: for an unknown task.

    Example:
      >>> mean_loss("regression", jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0]))
      Array(2.5, dtype=float32)
    """
    if task not in TASKS:
        raise _checks.unknown_name("mean_loss", "task", task, TASKS)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if task == "regression":
        return jnp.mean((outputs[:, 0] - targets.astype(outputs.dtype)) ** 2)
    log_probabilities = jax.nn.log_softmax(outputs)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, targets[:, None], axis=1))


def score(task: str, outputs: Float[Array, "n outputs"], targets: Any) -> Float[Array, ""]:
    """Accuracy for a classification; for a regression `R^2 = 1 - sum (y - p)^2 / sum (y - mean y)^2`.

    Args:
      task, outputs, targets: as for `mean_loss`.

    Returns:
      A number at most 1; nan where an output is not finite, for then there is no prediction.

    Raises:
      ValueError: for an unknown task.

    Example:
      >>> score("classification", jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
      Array(0.5, dtype=float32)
    """
    if task not in TASKS:
        raise _checks.unknown_name("score", "task", task, TASKS)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    if task == "regression":
        targets = targets.astype(outputs.dtype)
        residual = jnp.sum((targets - outputs[:, 0]) ** 2)
        return 1.0 - residual / jnp.sum((targets - jnp.mean(targets)) ** 2)
    hits = jnp.mean((jnp.argmax(outputs, axis=1) == targets).astype(outputs.dtype))
    return jnp.where(jnp.all(jnp.isfinite(outputs)), hits, jnp.nan)


def in_own_units(data: Dataset, loss: float, score: float) -> dict[str, float]:
    """The two numbers under their names in tables; a squared error comes in the data's own units.

    Args:
      data: whose task and target scale decide.
      loss: what `mean_loss` gave on standardized targets.
      score: what `score` gave.

    Returns:
      `{"accuracy", "cross_entropy"}` or `{"r2", "mean_squared_error"}`.

    Example:
      >>> from implicit_reg.problems import load_dataset
      >>> in_own_units(load_dataset("wine"), 0.25, 0.9)
      {'accuracy': 0.9, 'cross_entropy': 0.25}
    """
    if data.task == "classification":
        return {"accuracy": float(score), "cross_entropy": float(loss)}
    return {"r2": float(score), "mean_squared_error": float(loss) * data.target_scale**2}
