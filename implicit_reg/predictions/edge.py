"""Rows beyond small steps: the principal flow past `h lambda = 1`, and the central flow past the edge of stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from implicit_reg.flows import principal
from implicit_reg.predictions.objective import Objective
from implicit_reg.predictions.oscillation import oscillation_statements
from implicit_reg.predictions.prediction import Criterion, Effort, Finding, Orders, Prediction, flow_of, iterates

SERIES_TERMS = 1000
STEPS_BEYOND = 5
SUBSTEPS = 16
EXACT = 1e-4  # what Runge-Kutta 4 with SUBSTEPS a step leaves of an exact field; the second-order flow is off by 0.06
SETTLING = 30  # small steps before the start beyond h lambda = 1, for a gradient that is not mostly across
NEARLY_QUADRATIC = 0.2  # displacement along the sharpest direction, in units of lambda/||T(u, u)||
BEYOND = 0.1  # of the distance travelled


def _principal_orders(objective: Objective) -> Orders:
    def terms(h, n, x):
        # At real points with h lambda < 1 nothing is imaginary.
        return tuple(jnp.real(term) for term in principal.principal_terms(objective.value, x, h))

    return Orders("", iterates(optax.sgd, objective), flow_of(terms), expected=(2, 3))


def _flow_beyond(value: Any, x: Any, h: Any, safe: Any, exact: Any, num_steps: int) -> Any:
    """The principal flow by Runge-Kutta 4 in complex numbers, or with `exact` = 0 the flow to second order."""

    def field(y):
        first = principal.principal_terms(value, y, h, safe=safe)[0]
        gradient = jax.grad(value, holomorphic=True)
        g = gradient(y)
        second = -h * g - 0.5 * h**2 * jax.jvp(gradient, (y,), (g,))[1]
        return jnp.where(exact, first, second)

    def substep(y, _):
        dn = 1.0 / SUBSTEPS
        a = field(y)
        b = field(y + dn / 2 * a)
        c = field(y + dn / 2 * b)
        return y + dn / 6 * (a + 2 * b + 2 * c + field(y + dn * c)), None

    def step(y, _):
        y, _ = jax.lax.scan(substep, y, length=SUBSTEPS)
        return y, y

    return jax.lax.scan(step, x.astype(complex), length=num_steps)[1]


def _iterates_beyond(value: Any, x: Any, h: Any, num_steps: int) -> Any:
    def step(x, _):
        x = x - h * jax.grad(value)(x)
        return x, x

    return jax.lax.scan(step, x, length=num_steps)[1]


def _relative(flow: np.ndarray, steps: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The distance after each step over that of the iterates from the start, at its largest so far."""
    size = np.maximum.accumulate(np.linalg.norm(steps - start, axis=1))
    return np.linalg.norm(flow - steps, axis=1) / size


def _exact_on_quadratics(objective: Objective) -> Finding:
    spectrum = objective.spectrum
    values = jnp.array([spectrum.low, spectrum.high / 3, spectrum.high])
    rotation = jnp.asarray(np.linalg.qr(np.cos(np.arange(9.0).reshape(3, 3) ** 2))[0])
    hessian = rotation @ jnp.diag(values) @ rotation.T
    value = lambda x: 0.5 * x @ hessian @ x  # noqa: E731
    start = jnp.array([1.0, -0.5, 0.7])
    run = jax.jit(lambda h: _iterates_beyond(value, start, h, STEPS_BEYOND))
    flow = jax.jit(lambda h, exact: _flow_beyond(value, start, h, True, exact, STEPS_BEYOND))
    errors, mutants = {}, {}
    for z in (0.5, 0.9, 1.5, 2.1):
        h = z / spectrum.radius
        steps = np.asarray(run(h))
        errors[z], mutants[z] = (
            float(np.max(_relative(np.asarray(flow(h, exact)), steps, np.asarray(start)))) for exact in (True, False)
        )
    numbers = {
        f"{kind} at h max|lambda| = {z:g}": e
        for kind, found in (("principal", errors), ("second order", mutants))
        for z, e in found.items()
    }
    return Finding(max(errors.values()), EXACT, min(mutants.values()), numbers=numbers)


def _safe_branch(objective: Objective) -> Finding:
    @jax.jit
    def displaced(x, h):
        x = jax.lax.fori_loop(0, SETTLING, lambda _, x: x - h * objective.gradient(x), x)
        values, vectors = jnp.linalg.eigh(jax.hessian(objective.value)(x))
        u = vectors[:, -1]
        along = lambda y: jax.jvp(objective.gradient, (y,), (u,))[1]  # noqa: E731
        third = jax.jvp(along, (x,), (u,))[1]
        return x + NEARLY_QUADRATIC * values[-1] / jnp.linalg.norm(third) * u, 1.5 / values[-1]

    start, h = displaced(objective.start, 0.5 / objective.spectrum.radius)
    steps = np.asarray(jax.jit(lambda h: _iterates_beyond(objective.value, start, h, STEPS_BEYOND))(h))
    flow = jax.jit(lambda h, safe, exact: _flow_beyond(objective.value, start, h, safe, exact, STEPS_BEYOND))
    flows = {
        label: np.asarray(flow(h, safe, exact))
        for label, safe, exact in (("safe", True, True), ("unsafe", False, True), ("second order", True, False))
    }
    error = {label: _relative(found, steps, np.asarray(start)) for label, found in flows.items()}
    value = jax.jit(jax.vmap(lambda x: objective.value(x)))
    losses = {"gradient descent": value(steps)} | {f"flow, {label}": value(y.real) for label, y in flows.items()}
    return Finding(
        float(np.max(error["safe"])),
        BEYOND,
        float(np.max(error["unsafe"])),
        numbers={label: [float(e) for e in found] for label, found in error.items()} | {"h": float(h)},
        series={
            "x": list(range(1, STEPS_BEYOND + 1)),
            "xlabel": "step",
            "ylabel": "loss",
            "log": True,
            "curves": {label: [float(v) for v in found] for label, found in losses.items()},
        },
    )


def _radii() -> Finding:
    cases = {
        "gradient descent": (1.0, principal.series_partial_sums, lambda y: np.log(abs(1 - y))),
        **{
            f"{name}, decay {beta:g}": (
                radius(beta),
                lambda y, k, beta=beta, nesterov=nesterov: principal.momentum_partial_sums(
                    y, beta, k, nesterov=nesterov
                ),
                lambda y, beta=beta, nesterov=nesterov: np.log(
                    abs(principal.momentum_root(y, beta, nesterov=nesterov))
                ),
            )
            for beta in (0.5, 0.9)
            for name, nesterov, radius in (
                ("heavy ball", False, principal.heavy_ball_radius),
                ("Nesterov", True, principal.nesterov_radius),
            )
        },
    }
    inside, outside, curves = {}, {}, {}
    for name, (radius, sums, exact) in cases.items():
        for x, errors in ((0.9, inside), (1.1, outside)):
            error = np.abs(sums(x * radius, SERIES_TERMS) - exact(x * radius))
            errors[name] = float(error[-1])
            curves[f"{name}, {x:g} of the radius"] = [float(e) for e in error[9::10]]
    return Finding(
        max(inside.values()),
        1e-10,
        min(outside.values()),
        numbers={
            f"{name}: error {where}": e
            for where, errors in (("inside", inside), ("outside", outside))
            for name, e in errors.items()
        }
        | {f"{name}: radius": float(case[0]) for name, case in cases.items()},
        series={
            "x": list(range(10, SERIES_TERMS + 1, 10)),
            "xlabel": "terms",
            "ylabel": "error of log z",
            "log": True,
            "curves": curves,
        },
    )


def _principal_statements(objective: Objective, effort: Effort) -> Sequence[Orders | Criterion]:
    statements: list[Orders | Criterion] = [_principal_orders(objective)]
    if effort >= Effort.STANDARD:
        statements += [
            Criterion(
                "exact on quadratics",
                f"within {EXACT:g} of gradient descent over {STEPS_BEYOND} steps at h max|lambda| = 0.5, 0.9, 1.5 and "
                "2.1, on a quadratic with the loss's own extreme curvatures; the second-order flow is not",
                lambda: _exact_on_quadratics(objective),
            ),
            Criterion(
                "safe branch beyond h lambda = 1",
                f"over {STEPS_BEYOND} steps at h lambda = 1.5 along the sharpest direction, near enough for the loss "
                f"to be nearly quadratic, within {BEYOND:g} of the distance travelled; on the principal branch not",
                lambda: _safe_branch(objective),
            ),
            Criterion(
                "radius of convergence",
                f"{SERIES_TERMS} terms of the series on a quadratic are exact at 0.9 of the radius and not at 1.1: "
                "gradient descent h lambda = 1, heavy ball (1 - sqrt b)^2, Nesterov ((1 - b)/(1 + b))^2",
                _radii,
            ),
        ]
    return tuple(statements)


ROWS = (
    Prediction(
        name="principal-flow",
        title="Principal flow",
        claim="Gradient descent follows the principal flow: exactly on quadratics, oscillation included, elsewhere at "
        "order 2, and at order 3 with its third-derivative term.",
        formula="dx/dn = -h phi(h H) g - (h^3/12) T(g, g),  phi(z) = -log(1 - z)/z, log(z - 1) + i pi beyond z = 1",
        source="rosca2023",
        time_scale="one step",
        validity="orders: h max|lambda| < 1; on quadratics and in the complex plane: any h",
        statements=_principal_statements,
        losses=("diabetes-tanh-2", "nonquadratic"),
    ),
    Prediction(
        name="central-flow",
        title="Central flow",
        claim="At the edge of stability the time average of an oscillating optimizer follows its central flow, which "
        "holds the sharpness at the edge and predicts the size of the oscillation.",
        formula="dx/dn = -rho P^-1 (g + 0.5 grad <Sigma, H>),  Sigma >= 0, kappa P - H >= 0, <Sigma, kappa P - H> = 0",
        source="cohen2025",
        time_scale="one step, averaged over the oscillation",
        validity="the sharpness reaches the edge and the oscillation persists",
        statements=oscillation_statements,
        losses=("diabetes-tanh", "edge-valley", "edge-valley-2"),
    ),
)
