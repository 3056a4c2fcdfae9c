"""Runge-Kutta of order 4 with fixed steps: a small program, where `flows.integrate` takes seconds to compile."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from implicit_reg._types import Integer, Scalar


def runge_kutta(
    field: Callable[[Array], Array], start: Array, time: Scalar, num_records: Integer, substeps: Integer
) -> Array:
    """The solution of `dx/dt = field(x)` at equidistant times.

    Args:
      field: real or complex; the solution has the dtype of its values.
      start: x at t = 0.
      time: of the last record.
      num_records: how many after the start.
      substeps: between two records.

    Returns:
      The start and the records, shape (num_records + 1, ...).

    Example:
      >>> found = runge_kutta(lambda x: -x, jnp.array(1.0), 1.0, 2, 8)
      >>> [f"{x:.3f}" for x in found]
      ['1.000', '0.607', '0.368']
    """
    dt = time / (num_records * substeps)
    # Each stage starts from the one before it alone, so that the field is traced once and not four times.
    stages = (jnp.array([0.0, 0.5, 0.5, 1.0]), jnp.array([1.0, 2.0, 2.0, 1.0]) / 6)

    def substep(x, _):
        def stage(carry, coefficients):
            k, total = carry
            place, weight = coefficients
            k = field(x + dt * place * k)
            return (k, total + weight * k), None

        (_, mean), _ = jax.lax.scan(stage, (jnp.zeros_like(x), jnp.zeros_like(x)), stages)
        return x + dt * mean, None

    def record(x, _):
        x = jax.lax.scan(substep, x, length=substeps)[0]
        return x, x

    _, path = jax.lax.scan(record, start, length=num_records)
    return jnp.concatenate([start[None], path])
