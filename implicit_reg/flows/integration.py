"""Continuous dynamics: vector fields integrated to trajectories by diffrax."""

from __future__ import annotations

import functools
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from implicit_reg import _callables, _checks, _tree
from implicit_reg._convolutions import canonical_convolutions
from implicit_reg._types import Integer, Observe, Params, Scalar, VectorField
from implicit_reg.flows import _stages
from implicit_reg.trajectory import SolverReport, Trajectory

SOLVERS = {5: _stages.Tsit5, 8: _stages.Dopri8}
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
    order: Integer = 8,
) -> Trajectory:
    """Integrates `x' = field(t, x, h)` from `params` at t = 0 and records it at the times `ts`.

    Adaptive steps of Dopri8 (or Tsit5), in the widest dtype among the parameters. The default tolerances, those of the
    narrowest (1e-12 in float64, 1e-6 in float32), keep the solver's error far below what a modified equation is about.

    Args:
      field: `field(t, params, h)`, structured as `params`.
      params: the state at t = 0, any pytree of float32 or float64 leaves.
      ts: K times, strictly increasing from at least 0.
      h: the step size that the field is told, positive; all step sizes share one compilation.
      observe: `params -> pytree of arrays`, called at the records only.
      rtol, atol: the solver's relative and absolute tolerance; None for the defaults. All share one compilation.
      max_steps: the most steps the solver may take.
      order: of the solver: 8 (Dopri8), or 5 (Tsit5), which needs fewer evaluations of the field where an error above
        about 1e-6 will do.

    Returns:
      The trajectory at `ts`. Where the solution ceased to exist, or the solver gave up, `finite` is False and the
      parameters are not finite; `solver` says which of the two it was, and nothing is thrown. A flow that is stiff for
      the time asked for, or a field with kinks (ReLU) or with the noise of a narrower dtype inside, can exhaust the
      solver at the default tolerances: loosen `rtol` and `atol`, or raise `max_steps`.

    Like `jax.jit`, it traces `field` and `observe` once and knows them by identity: what they close over must not be
    changed afterwards.

    Raises:
      TypeError, ValueError: an argument is not as above, a tolerance below what the dtype holds included, or bfloat16
        or float16 parameters, in which a comparison of flows means nothing.

    Example:
      >>> import jax.numpy as jnp, implicit_reg as ir
      >>> run = integrate(ir.gradient_field(lambda x: 0.5 * x**2), jnp.array(1.0), [0.0, 1.0], 0.1)
      >>> [f"{x:.3f}" for x in run.params]                 # exp(-t)
      ['1.000', '0.368']
    """
    _checks.check_callable("integrate", "field", field, "field(t, params, h) -> tree structured as params")
    if observe is not None:
        _checks.check_callable("integrate", "observe", observe, "params -> pytree of arrays")
    _checks.check_floating("integrate", "params", params)
    _checks.check_number("integrate", "h", h, low=0, exclusive=True, why="a field that ignores h takes any")
    _checks.check_integer("integrate", "max_steps", max_steps)
    _checks.check_integer("integrate", "order", order)
    if order not in SOLVERS:
        raise ValueError(f"integrate: `order` must be 5 (Tsit5) or 8 (Dopri8), got {order}; 8 is the accurate one")
    ts = _checks.check_times("integrate", "ts", ts)
    params = _tree.strong(params)
    dtype = _tree.real_dtype(params)
    if dtype not in DEFAULT_TOLERANCE:
        raise ValueError(
            f"integrate: `params` must be float32 or float64, got {dtype}, in which a comparison of flows means nothing"
        )
    working = _tree.widest_dtype(params)
    tolerances = tuple(
        np.asarray(_checks.check_tolerance("integrate", name, value, DEFAULT_TOLERANCE[dtype], dtype), working)
        for name, value in (("rtol", rtol), ("atol", atol))
    )
    field, observe = _callables.hashable(field), _callables.hashable(observe)
    # NumPy numbers enter a compiled program without a program of their own.
    times, number = (x.astype(working) if isinstance(x, jax.Array) else np.asarray(x, working) for x in (ts, h))
    recorded, observed, finite, report = solve(
        field, observe, tolerances, int(max_steps), params, times, number, int(order)
    )
    return Trajectory(t=ts, params=recorded, observed=observed, finite=finite, h=h, solver=report)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 7))
def solve(
    field, observe, tolerances, max_steps, params, ts, h, order=8
) -> tuple[PyTree[Array], PyTree[Array] | None, Bool[Array, " K"], SolverReport]:
    """The solution at `ts` in the dtypes of `params`, what is observed, which records are finite, and the report.

    It works in the dtype of `ts`; `h` may be any pytree that the field understands.
    """
    run = canonical_convolutions(functools.partial(_solution, field, observe, max_steps, order))
    return run(tolerances, params, ts, h)


def _solution(field, observe, max_steps, order, tolerances, params, ts, h):
    rtol, atol = tolerances
    results = diffrax.RESULTS

    def derivative(t, x, h):
        found = field(t, _tree.like(x, params), h)
        _checks.check_same_tree("integrate", "field(t, params, h)", found, "params", params)
        return jax.tree.map(lambda d: jnp.asarray(d).astype(ts.dtype), found)

    # The last record is where the solver ends: interpolating it would read all stages of every step.
    recorded_at = [diffrax.SubSaveAt(ts=ts[:-1])] if len(ts) > 1 else []
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(derivative),
        SOLVERS[order](),
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=ts[-1] / 64,
        y0=jax.tree.map(lambda x: x.astype(ts.dtype), params),
        args=h,
        saveat=diffrax.SaveAt(subs=[*recorded_at, diffrax.SubSaveAt(t1=True)]),
        # Where the solution blows up the controller would halve its steps for ever; `dtmin` is where it stops.
        # A step that is rejected is all lost: `safety` below diffrax's 0.9 halves their number, and evaluates the field
        # no more often for one error (flows of perceptrons: 6 % less at both orders on a small one; 1 % more to 7 %
        # less at order 8 and as often at order 5 on a larger one).
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=atol, dtmin=16 * jnp.finfo(ts.dtype).eps * ts[-1], force_dtmin=False, safety=0.8
        ),
        max_steps=max_steps,
        throw=False,  # divergence is data; and the host callback behind `throw` would keep the program out of caches
    )
    *before, end = solution.ys
    end = jax.tree.map(lambda x: jnp.where(solution.result == results.successful, x, jnp.inf), end)
    ys = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *before, end)
    # Where the first step already fails diffrax leaves even the start unrecorded.
    started = lambda leaf, start: jnp.where(ts.reshape((-1,) + (1,) * start.ndim) == 0, start, leaf)  # noqa: E731
    recorded = jax.tree.map(started, _tree.like(ys, params), params)
    report = SolverReport(
        num_steps=solution.stats["num_steps"],
        out_of_steps=solution.result == results.max_steps_reached,
        step_vanished=solution.result == results.dt_min_reached,
    )
    observed = None if observe is None else jax.lax.map(observe, recorded)
    return recorded, observed, jax.vmap(_tree.all_finite)(recorded), report
