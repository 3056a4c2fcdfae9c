"""The initial value problems of `integration`, and all who solve them: `integrate`, diffrax, scipy, torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree

import implicit_reg as ir


class Problem(NamedTuple):
    """A start as a vector, the field `f(x)` in JAX, the same in torch or None, and the time to integrate to."""

    title: str
    start: jax.Array
    field: Callable[[jax.Array], jax.Array]
    torch_field: Callable[[Any], Any] | None
    time: float


# Times at which the RK4 scan is off by 2e-5.
SIZES: Mapping[str, tuple[tuple[int, ...], int, float]] = {
    "small": ((8, 16, 16, 4), 32, 17.0),
    "MLP": ((64, 128, 128, 10), 128, 40.0),
}
TINY: Mapping[str, tuple[tuple[int, ...], int, float]] = {"tiny": ((4, 4, 3), 8, 10.0)}


def _torch_field(torch: Any, sizes: tuple[int, ...], batch: tuple) -> Callable[[Any], Any]:
    x, labels = torch.tensor(np.array(batch[0])), torch.tensor(np.array(batch[1]), dtype=torch.int64)
    names = sorted(f"{kind}{k}" for k in range(len(sizes) - 1) for kind in "bw")  # as JAX flattens a dictionary
    shapes = [sizes[int(n[1]) : int(n[1]) + 2] if n[0] == "w" else sizes[int(n[1]) + 1 : int(n[1]) + 2] for n in names]
    lengths = [int(np.prod(shape)) for shape in shapes]

    def field(flat):
        with torch.enable_grad():
            flat = flat.detach().requires_grad_(True)
            parts = zip(names, torch.split(flat, lengths), shapes, strict=True)
            p = {name: part.view(*shape) for name, part, shape in parts}
            y = x
            for k in range(len(sizes) - 2):
                y = torch.tanh(torch.addmm(p[f"b{k}"], y, p[f"w{k}"]))
            last = len(sizes) - 2
            loss = torch.nn.functional.cross_entropy(torch.addmm(p[f"b{last}"], y, p[f"w{last}"]), labels)
            return -torch.autograd.grad(loss, flat)[0]

    return field


def make_problem(title: str, sizes: tuple[int, ...], batch: int, time: float) -> Problem:
    """Gradient flow of a perceptron's cross entropy."""
    model = models.mlp(sizes, batch)
    widen = lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)  # noqa: E731
    params, data = jax.tree.map(widen, (dict(model.params), model.batch))
    start, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda x: model.loss(unravel(x), data))
    torch = measure.peer("torch")
    given = None if torch is None else _torch_field(torch, sizes, data)
    return Problem(f"{title}, {start.size} parameters", start, lambda x: -gradient(x), given, time)


def rk4(problem: Problem, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """The classical method as everybody writes it, in one scan."""
    dt, f = problem.time / num_steps, problem.field

    def step(x, _):
        k1 = f(x)
        k2 = f(x + dt / 2 * k1)
        k3 = f(x + dt / 2 * k2)
        k4 = f(x + dt * k3)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return lambda x: jax.lax.scan(step, x, length=num_steps)[0]


Solve = Callable[[float], Any]  # a tolerance to the end of the solution


def solvers(problem: Problem, ours: Callable = ir.integrate, *, bare_too: bool = False) -> dict[str, Solve]:
    """Every solver that is installed, as a function of its tolerance; diffrax without this library where `bare_too`."""
    field = lambda t, x, h: problem.field(x)  # noqa: E731

    def integrate(order):
        def run(tolerance):
            found = ours(field, problem.start, [problem.time], 1.0, rtol=tolerance, atol=tolerance, order=order)
            return jax.block_until_ready(found.params)[-1]

        return run

    def bare(method):
        @jax.jit
        def run(x, tolerance):
            return diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, x, _: problem.field(x)),
                method,
                0.0,
                problem.time,
                problem.time / 64,
                x,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                max_steps=16**4,
                throw=False,
            ).ys[-1]

        return lambda tolerance: jax.block_until_ready(run(problem.start, tolerance))

    jitted = jax.jit(problem.field)

    def scipy_solver(method):
        start, f = np.asarray(problem.start), lambda t, x: np.asarray(jitted(x))
        return lambda tolerance: scipy.integrate.solve_ivp(
            f, (0, problem.time), start, method, rtol=tolerance, atol=tolerance
        ).y[:, -1]

    found: dict[str, Solve] = {
        "integrate, order 5": integrate(5),
        "integrate, order 8": integrate(8),
        "scipy RK45": scipy_solver("RK45"),
        "scipy DOP853": scipy_solver("DOP853"),
    }
    if bare_too:
        found |= {f"diffrax {kind.__name__}": bare(kind()) for kind in (diffrax.Tsit5, diffrax.Dopri8)}
    torch, torchdiffeq = measure.peer("torch"), measure.peer("torchdiffeq")
    if torch is not None and torchdiffeq is not None:
        start, times = torch.tensor(np.array(problem.start)), torch.tensor([0.0, problem.time], dtype=torch.float64)

        def torch_solver(method):
            f = lambda t, x: problem.torch_field(x)  # noqa: E731
            return lambda tolerance: torchdiffeq.odeint(f, start, times, method=method, rtol=tolerance, atol=tolerance)[
                -1
            ].numpy()

        found |= {f"torchdiffeq {method}": torch_solver(method) for method in ("dopri5", "dopri8")}
    return found
