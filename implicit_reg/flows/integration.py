"""Continuous dynamics: vector fields integrated to trajectories by diffrax."""

from __future__ import annotations

import functools
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicit_reg import _checks, _tree
from implicit_reg._types import Integer, Observe, Params, Scalar, VectorField
from implicit_reg.trajectory import Trajectory

DEFAULT_TOLERANCE = {jnp.dtype("float64"): 1e-12, jnp.dtype("float32"): 1e-6}


def integrate(
    field: VectorField,
    params: Params,
    ts: Any,
    h: Scalar,
    *,
    observe: Observe = None,
    rtol: Scalar | None = None,
    atol: Scalar | None = None,
    max_steps: Integer = 16**4,
) -> Trajectory:
    """Integrates `x' = field(t, x, h)` from `params` at t = 0 and records it at the times `ts`.

    Dopri8 with adaptive steps, in the dtype of the parameters. The default tolerances (1e-12 in float64, 1e-6 in
    float32) keep the solver's error far below the differences that a modified equation is about.

    Args:
      field: `field(t, params, h)`, structured as `params`.
      params: the state at t = 0, any pytree of float32 or float64 leaves.
      ts: K times, strictly increasing from at least 0.
      h: the step size that the field is told, positive; all step sizes share one compilation.
      observe: `params -> pytree of arrays`, called at the records only.
      rtol, atol: the solver's relative and absolute tolerance; None for the defaults.
      max_steps: the most steps the solver may take.

    Returns:
      The trajectory at `ts`. Where the solution ceased to exist, or the solver ran out of steps, `finite` is False and
      the parameters are not finite; nothing is thrown.

    Raises:
      TypeError, ValueError: an argument is not as above, a tolerance below what the dtype holds included, or bfloat16
        or float16 parameters, in which a comparison of flows means nothing.

    Example:
      >>> import jax.numpy as jnp, implicit_reg as ir
      >>> run = integrate(ir.gradient_field(lambda x: 0.5 * x**2), jnp.array(1.0), [0.0, 1.0], 0.1)
      >>> run.params.round(4)                              # exp(-t)
      Array([1.    , 0.3679], dtype=float32)
    """
    _checks.check_callable("integrate", "field", field, "field(t, params, h) -> tree structured as params")
    if observe is not None:
        _checks.check_callable("integrate", "observe", observe, "params -> pytree of arrays")
    _checks.check_floating("integrate", "params", params)
    _checks.check_number("integrate", "h", h, low=0, exclusive=True, why="a field that ignores h takes any")
    _checks.check_integer("integrate", "max_steps", max_steps)
    ts = _checks.check_times("integrate", "ts", ts)
    params = jax.tree.map(lambda x: jax.lax.convert_element_type(jnp.asarray(x), jnp.result_type(x)), params)
    dtype = _tree.real_dtype(params)
    if dtype not in DEFAULT_TOLERANCE:
        raise ValueError(
            f"integrate: `params` must be float32 or float64, got {dtype}, in which a comparison of flows means nothing"
        )
    tolerances = tuple(
        _checks.check_tolerance("integrate", name, value, DEFAULT_TOLERANCE[dtype], dtype)
        for name, value in (("rtol", rtol), ("atol", atol))
    )
    derivative = jax.eval_shape(field, jax.ShapeDtypeStruct((), dtype), params, jnp.asarray(h, dtype))
    _checks.check_same_tree("integrate", "field(t, params, h)", derivative, "params", params)
    recorded, observed = solve(
        field, observe, tolerances, int(max_steps), params, jnp.asarray(ts, dtype), jnp.asarray(h, dtype)
    )
    finite = jax.vmap(_tree.all_finite)(recorded)
    return Trajectory(t=ts, params=recorded, observed=observed, finite=finite, h=h)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def solve(field, observe, tolerances, max_steps, params, ts, h) -> tuple[PyTree[Array], PyTree[Array] | None]:
    """The solution at `ts`; `h` may be any pytree that the field understands."""
    rtol, atol = tolerances
    # Where the solution blows up the controller would halve its steps for ever; this is where it stops.
    smallest = 16 * jnp.finfo(ts.dtype).eps * ts[-1]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, h: field(t, x, h)),
        diffrax.Dopri8(),
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=ts[-1] / 64,
        y0=params,
        args=h,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=smallest, force_dtmin=False),
        max_steps=max_steps,
        throw=False,  # divergence is data; and the host callback behind `throw` would keep the program out of caches
    )
    # Where the first step already fails diffrax leaves even the start unrecorded.
    at_start = lambda leaf, start: jnp.where(ts.reshape((-1,) + (1,) * start.ndim) == 0, start, leaf)  # noqa: E731
    recorded = jax.tree.map(at_start, solution.ys, params)
    return recorded, None if observe is None else jax.lax.map(observe, recorded)
