"""The record that both worlds make, discrete and continuous: parameters on a common time axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree


class Trajectory(NamedTuple):
    """Parameters and observables at the times `t`.

    Attributes:
      t: K times in units of h times steps, float64 NumPy unless `h` was traced; step n is at `t = n h`.
      params: the parameters; every leaf has a leading axis K.
      observed: what `observe` made of the parameters at each record, leading axis K, or None.
      finite: K flags, whether every parameter of the record is finite. Divergence is recorded here, never thrown.
      h: the step size, or None where the trajectory was made without one.
    """

    t: Float[np.ndarray, " K"] | Float[Array, " K"]
    params: PyTree[Array]
    observed: PyTree[Array] | None
    finite: Bool[Array, " K"]
    h: Any = None


def record_times(indices: np.ndarray, h: Any) -> Float[np.ndarray, " K"] | Float[Array, " K"]:
    """`indices * h`, in float64 on the host for a concrete `h`, so that no working precision blurs the times."""
    if isinstance(h, jax.core.Tracer):
        return jnp.asarray(indices, h.dtype) * h
    return np.asarray(indices, np.float64) * np.float64(h)
