"""Flows of predictions, integrated by scipy's DOP853 on a compiled right-hand side.

Two ways to integrate: (1) diffrax's Dopri8, as `implicit_reg.integrate` does, whose loop is one compiled program and
holds the right-hand side four times; (2) scipy's DOP853, which calls a right-hand side compiled once from the host. (1)
is faster where many solutions share a program; here a few short ones do, and compiling (1) costs three times as much as
all of (2). We do (2). It is also a solver that shares nothing with the library's own flows.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.prediction import Flow

TOLERANCE = 1e-12  # relative and absolute
MAX_EVALUATIONS = 50_000  # a flow that asks for more has kinks, or is stiff for so long a time
MAX_LOST = 200  # evaluations in a row that are not finite: shorter steps do not help, the solution has ceased to exist


def compiled(fn: Callable) -> Callable:
    """`jax.jit`, on CPUs with the emitter of fusions that goes straight to LLVM, and one module for each program.

    So a program is compiled with all of LLVM's optimizations, for scipy's many calls of it, in no more time than
    without them by way of MLIR.
    """
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    return jax.jit(fn, compiler_options=options if jax.default_backend() == "cpu" else None)


class _GaveUp(Exception):
    """The solution has ceased to exist, or costs too much."""


def flow(dynamics: Flow, objective: Objective) -> Callable[..., np.ndarray]:
    """`(w, h, counts) -> what is read after so many units each`; nan from where the solution ceased to exist."""
    unravel: Callable = _structure_unknown

    @compiled
    def begin(w, h, x):
        return dynamics.start(w, h, x)

    @compiled
    def derivative(n, flat, w, h):
        return ravel_pytree(dynamics.field(w, h, n, unravel(flat)))[0]

    @compiled
    def read(flat):
        return dynamics.read(unravel(flat))

    def call(w: np.ndarray, h: float, counts: np.ndarray) -> np.ndarray:
        nonlocal unravel
        w, h = jnp.asarray(w), jnp.asarray(float(h))
        start, unravel = ravel_pytree(begin(w, h, objective.start))
        states = _solve(
            # Of one type: the solver's first times are Python's floats, to which JAX gives a program of their own.
            lambda n, y: np.asarray(derivative(np.float64(n), y, w, h)),
            np.asarray(start),
            np.asarray(counts, float),
        )
        return np.stack([np.asarray(read(y)) for y in states])

    return call


def _structure_unknown(flat):
    raise AssertionError("the structure of the state is known from its start")


def _solve(derivative: Callable, y: np.ndarray, times: np.ndarray) -> list[np.ndarray]:
    """The solution of `dy/dn = derivative(n, y)` from n = 0 at these times, which do not decrease."""
    from scipy.integrate import solve_ivp

    evaluations = lost = 0

    def watched(n, y):
        nonlocal evaluations, lost
        value = derivative(n, y)
        evaluations, lost = evaluations + 1, 0 if np.all(np.isfinite(value)) else lost + 1
        if evaluations > MAX_EVALUATIONS or lost > MAX_LOST:
            raise _GaveUp
        return value

    n, step, states = 0.0, None, []
    # From record to record: what lies between two steps of the solver is known to seventh order only.
    for time in times:
        if time > n and np.all(np.isfinite(y)):
            first = None if step is None else min(step, time - n)
            try:
                with np.errstate(all="ignore"):
                    found = solve_ivp(
                        watched, (n, time), y, method="DOP853", rtol=TOLERANCE, atol=TOLERANCE, first_step=first
                    )
                y, step = found.y[:, -1], float(np.max(np.diff(found.t), initial=0.0)) or None
                if found.status != 0:
                    y = np.full_like(y, np.nan)
            except _GaveUp:
                y = np.full_like(y, np.nan)
        states.append(y)
        n = time
    return states
