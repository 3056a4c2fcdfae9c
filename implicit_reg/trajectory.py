"""The record that both worlds make, discrete and continuous: parameters on a common time axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree


class SolverReport(NamedTuple):
    """How an integration went, for the reader of a record that is not finite.

    Attributes:
      num_steps: steps that the solver took, rejected ones included.
      out_of_steps: it met `max_steps`: the times are long for so stiff a flow, or the field is not smooth to the
        tolerance. Loosen `rtol` and `atol`, or raise `max_steps`.
      step_vanished: its step shrank to nothing: the solution ceased to exist, or the field is not a number there.
    """

    num_steps: Int[Array, ""]
    out_of_steps: Bool[Array, ""]
    step_vanished: Bool[Array, ""]


class Trajectory(NamedTuple):
    """Parameters and observables at the times `t`.

    Attributes:
      t: K times in units of h times steps, float64 NumPy unless `h` was traced; step n is at `t = n h`.
      params: the parameters; every leaf has a leading axis K.
      observed: what `observe` made of the parameters at each record, leading axis K, or None.
      finite: K flags, whether every parameter of the record is finite. Divergence is recorded here, never thrown.
      h: the step size, or None where the trajectory was made without one.
      solver: of `integrate`, whether a record is missing because the solution blew up or because the solver gave up.
    """

    t: Float[np.ndarray, " K"] | Float[Array, " K"]
    params: PyTree[Array]
    observed: PyTree[Array] | None
    finite: Bool[Array, " K"]
    h: Any = None
    solver: SolverReport | None = None


def record_times(indices: np.ndarray, h: Any) -> Float[np.ndarray, " K"] | Float[Array, " K"]:
    """`indices * h`, in float64 on the host for a concrete `h`, so that no working precision blurs the times."""
    if isinstance(h, jax.core.Tracer):
        return jnp.asarray(indices, h.dtype) * h
    return np.asarray(indices, np.float64) * np.float64(h)
