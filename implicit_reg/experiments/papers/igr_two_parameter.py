"""The two-parameter model of implicit gradient regularization: larger steps end in flatter minima, up to a point."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from implicit_reg.descent import optimizer_step, update_map
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.flows.integration import integrate
from implicit_reg.flows.modified import modified_vector_field
from implicit_reg.problems.named import STIFF_START

TARGET = 0.6
FAR = (75.0, 74.925)
RECALLED = (1e-3, 2.5e-2, 0.18)  # remembered as the paper's small, medium and large step; not verified
MEDIUM = 2.5e-2
RESIDUAL = STIFF_START[0] * STIFF_START[1] - TARGET
RECORDS = 200
SHOWN = 2.0  # time in the picture
ORDER_TOLERANCE = 0.1
IDENTITY = 1e-12
CONSERVED = 1e-8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scale of the run.

    Attributes:
      step_sizes: increasing, from (2.8, 3.5): where the end is a smooth function of the step.
      beyond: first, last and number of larger ones from the same start, to see where that ends.
      orders: decreasing, for the orders of the two flows.
      strengths: increasing mu of the explicit penalty `mu ||g||^2`.
      euler: the step with which the penalized loss is descended.
      time: `n h` at the end; the loss falls at least as `exp(-2.4 t)`.
      far_step_sizes: increasing, from (75, 74.925).
      far_time: `n h` there.
    """

    step_sizes: tuple[float, ...] = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 7e-2, 9e-2)
    beyond: tuple[float, float, int] = (0.1, 0.22, 49)
    orders: tuple[float, ...] = (4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4)
    strengths: tuple[float, ...] = (5e-3, 5e-2, 0.5)
    euler: float = 5e-4
    time: float = 12.0
    far_step_sizes: tuple[float, ...] = (1e-5, 1e-4, 1.3e-4, 2e-4)
    far_time: float = 4.0


def loss(x: Array) -> Array:
    """`(0.6 - a b)^2/2`.

    Args:
      x: `(a, b)`.

    Returns:
      The loss.
    """
    return 0.5 * (TARGET - x[0] * x[1]) ** 2


def _invariant(x: Any) -> Any:
    return x[..., 0] ** 2 - x[..., 1] ** 2


def _descend(start: Array, h: Array, strength: Array, time: Array) -> dict[str, Array]:
    """Descent on `L + strength ||g||^2` up to `n h = time`, with what becomes of `a^2 - b^2` in every step."""
    method = optax.sgd(h)
    count = jnp.ceil(time / h - 1e-9).astype(jnp.int32)

    def objective(x):
        return loss(x) + strength * jnp.sum(jax.grad(loss)(x) ** 2)

    def step(n, carry):
        x, state, off, growth = carry
        after, state = optimizer_step(method, objective, x, state)
        expected = _invariant(x) * (1 - h**2 * (x[0] * x[1] - TARGET) ** 2)
        off = jnp.maximum(off, jnp.abs(_invariant(after) - expected) / jnp.maximum(jnp.sum(x**2), jnp.sum(after**2)))
        growth = jnp.maximum(growth, jnp.abs(_invariant(after)) - jnp.abs(_invariant(x)))
        return after, state, off, growth

    def record(carry, k):
        # k count / RECORDS, in floating point because the product overflows 32 bits.
        first, last = (jnp.round(count * (m / RECORDS)).astype(jnp.int32) for m in (k, k + 1))
        carry = jax.lax.fori_loop(first, last, step, carry)
        return carry, carry[0]

    carry = (start, method.init(start), jnp.zeros(()), jnp.full((), -jnp.inf))
    (x, _, off, growth), path = jax.lax.scan(record, carry, jnp.arange(RECORDS))
    return {"end": x, "path": jnp.concatenate([start[None], path]), "recursion": off, "growth": growth}


def _runs(settings: Settings) -> list[dict[str, float]]:
    a, b = STIFF_START
    near = [
        *((h, 0.0) for h in dict.fromkeys((*settings.step_sizes, *_beyond(settings), *settings.orders))),
        *((settings.euler, mu) for mu in settings.strengths),
    ]
    far = dict.fromkeys((*settings.far_step_sizes, *RECALLED))
    return [
        *({"a": a, "b": b, "h": h, "strength": mu, "time": settings.time} for h, mu in near),
        *({"a": FAR[0], "b": FAR[1], "h": h, "strength": 0.0, "time": settings.far_time} for h in far),
    ]


def _beyond(settings: Settings) -> list[float]:
    first, last, number = settings.beyond
    return [float(h) for h in np.round(np.linspace(first, last, number), 6)]


def _flow(h: Array, time: float) -> Array:
    """The modified flow to second order from (2.8, 3.5); at h = 0 it is gradient flow."""
    field = modified_vector_field(update_map(optax.sgd, loss), 2)
    return integrate(field, jnp.array(STIFF_START), np.linspace(0.0, time, RECORDS + 1), h).params


def _order(steps: tuple[float, ...], errors: list[float]) -> float:
    """On the finest pair."""
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-2] / steps[-1])


def _falls(values: list[float]) -> float:
    """The smallest decrease from one to the next, positive where all fall."""
    return float(np.min(-np.diff(values)))


def measure(settings: Settings, lab: Lab) -> Findings:
    """Ends of descent over the step size, beside gradient flow, modified flow and explicit penalty.

    Args:
      settings: the scale.
      lab: where the sweeps run.

    Returns:
      The ends, the orders of the flows, the invariant, and paths for a few steps.
    """
    runs = lab.sweep(
        "descent",
        lambda key, a, b, h, strength, time: _descend(jnp.stack([a, b]), h, strength, time),
        _runs(settings),
        key=jax.random.key(0),
        width=64,
    )
    steps = sorted({*settings.step_sizes, *_beyond(settings), *settings.orders})
    flows = lab.sweep(
        "flows",
        lambda key, h: _flow(h, settings.time),
        {"h": [0.0, *steps]},
        key=jax.random.key(0),
        width=16,
        identity={"time": settings.time},
    )
    start, far = dict(zip("ab", STIFF_START, strict=True)), dict(zip("ab", FAR, strict=True))

    def run(name: str, h: float, strength: float = 0.0, where: dict[str, float] = start) -> Any:
        return runs.select(h=h, strength=strength, **where)[name][0]

    def sizes(steps: Sequence[float], **more: Any) -> list[float]:
        return [float(np.sum(run("end", h, **more) ** 2)) for h in steps]

    gradient = flows["value"][0]
    modified = dict(zip(steps, flows["value"][1:], strict=True))
    small, beyond = settings.step_sizes, _beyond(settings)
    flow_size = float(np.sum(gradient[-1] ** 2))
    ends = sizes(small)
    ends_beyond = sizes(beyond)
    penalized = [sizes([settings.euler], strength=mu)[0] for mu in settings.strengths]
    far_ends = sizes(settings.far_step_sizes, where=far)
    errors = {
        "gradient flow": [float(np.linalg.norm(run("end", h) - gradient[-1])) for h in settings.orders],
        "modified flow": [float(np.linalg.norm(run("end", h) - modified[h][-1])) for h in settings.orders],
    }
    off = [run("recursion", h) for h in small] + [run("recursion", h, where=far) for h in settings.far_step_sizes]
    drift = np.abs(_invariant(gradient) / _invariant(gradient[0]) - 1)
    finite = [(v, h) for h, v in zip(beyond, ends_beyond, strict=True) if np.isfinite(v)]
    flattest, sharpest = min(finite), max(finite)
    diverged = [h for h in RECALLED if not np.all(np.isfinite(run("end", h, where=far)))]
    numbers = {
        "gradient flow: largest relative change of a^2 - b^2": float(np.max(drift)),
        "descent: largest deviation of a^2 - b^2 from its recursion": float(np.max(off)),
        "descent: largest growth of |a^2 - b^2| in a step": float(max(run("growth", h) for h in small)),
        "|w|^2 at the end: gradient flow": flow_size,
        **{f"|w|^2 at the end: h = {h:g}": v for h, v in zip(small, ends, strict=True)},
        **{f"|w|^2 at the end: mu = {mu:g}": v for mu, v in zip(settings.strengths, penalized, strict=True)},
        "least fall of |w|^2 from one step size to the next": _falls([flow_size, *ends]),
        "least fall of |w|^2 from one penalty to the next": _falls([flow_size, *penalized]),
        "least fall of |w|^2 from one step size to the next, far start": _falls(far_ends),
        "order of the distance from gradient flow": _order(settings.orders, errors["gradient flow"]),
        "order of the distance from the modified flow": _order(settings.orders, errors["modified flow"]),
        "step sizes beyond: flattest at h": flattest[1],
        "step sizes beyond: sharpest at h": sharpest[1],
        "step sizes beyond: |w|^2 of the sharpest": sharpest[0],
        "recalled step sizes that diverge from the far start": len(diverged),
    }
    thinned = [(h, v) for h, v in zip(beyond, ends_beyond, strict=True)][:: max(1, len(beyond) // 12)]
    rows = [("gradient flow", None, flow_size, None)]
    rows += [
        ("descent", h, v if np.isfinite(v) else None, float(np.sum(modified[h][-1] ** 2)))
        for h, v in [*zip(small, ends, strict=True), *thinned]
    ]
    rows += [
        (f"penalty mu = {mu:g}", settings.euler, v, None) for mu, v in zip(settings.strengths, penalized, strict=True)
    ]
    tables = (
        Table("|w|^2 at the end from (2.8, 3.5); empty: diverged", ("run", "h", "|w|^2", "modified flow"), tuple(rows)),
        Table(
            "|w|^2 at the end from (75, 74.925); empty: diverged",
            ("h", "|w|^2"),
            (*zip(settings.far_step_sizes, far_ends, strict=True), *((h, None) for h in diverged)),
        ),
        Table(
            "distance of the ends from the flows' ends",
            ("h", *errors),
            tuple(zip(settings.orders, *errors.values(), strict=True)),
        ),
    )
    strongest, shown = settings.strengths[-1], (small[0], MEDIUM, small[-1])
    a, b = np.linspace(-0.55, 3.15, 75), np.linspace(-0.1, 3.75, 78)
    curves = {
        "grid": {"a": a, "b": b, "loss": 0.5 * (TARGET - np.outer(b, a)) ** 2},
        "gradient": gradient,
        "paths": [_trace(h) for h in shown],
        "minima": {"a": a[a > 0.1], "b": TARGET / a[a > 0.1]},
        "penalized": {"mu": strongest, "path": run("path", settings.euler, strongest)},
        "ends": {"h": [*small, *beyond], "size": [*ends, *ends_beyond]},
        "flow_ends": {"h": steps, "modified": [float(np.sum(x[-1] ** 2)) for x in modified.values()]},
        "gradient_size": flow_size,
        "flattest": [math.sqrt(TARGET)] * 2,
        "flattest_size": 2 * TARGET,
        "residual": RESIDUAL,
    }
    return Findings(numbers, tables, curves, _notes(numbers, diverged))


def _trace(h: float) -> dict[str, Any]:
    """The iterates up to the time `SHOWN`, for the picture: the records are too far apart where steps jump."""
    stride = max(1, round(0.01 / h))
    x = np.array(STIFF_START)
    path = [x]
    for n in range(1, math.ceil(SHOWN / h) + 1):
        x = x - h * (x[0] * x[1] - TARGET) * x[::-1]
        if n % stride == 0:
            path.append(x)
    path = np.array(path)
    time = h * stride * np.arange(len(path))
    return {"h": h, "stride": stride, "path": path, "time": time, "invariant": _invariant(path) / _invariant(path[0])}


def _notes(numbers: dict[str, float], diverged: list[float]) -> tuple[str, ...]:
    a, b = FAR
    sharpness = float(np.linalg.eigvalsh([[b * b, 2 * a * b - TARGET], [2 * a * b - TARGET, a * a]])[-1])
    flattest, sharpest = (numbers[f"step sizes beyond: {kind} at h"] for kind in ("flattest", "sharpest"))
    size, flow_size = numbers["step sizes beyond: |w|^2 of the sharpest"], numbers["|w|^2 at the end: gradient flow"]
    recalled = ", ".join(f"{h:g}" for h in RECALLED)
    return (
        f"The fall ends where the first step overshoots: it multiplies a^2 - b^2 by 1 - (h r)^2 with r = {RESIDUAL:g}, "
        f"which is 0 at h = {1 / RESIDUAL:.4f} and below -1 beyond {2**0.5 / RESIDUAL:.4f}. Of the larger steps that "
        f"were run h = {flattest:g} ends flattest and h = {sharpest:g} sharpest, with |w|^2 = {size:.3f} against "
        f"{flow_size:.3f} of gradient flow.",
        f"The step sizes remembered as the paper's, {recalled}, cannot belong to the start (75, 74.925), whose "
        f"sharpness is {sharpness:.0f}: {len(diverged)} of {len(RECALLED)} diverge from there.",
        "At h = 0.05 and above h times the sharpness of the start (20) is 1 and more: the second-order flow then has "
        "the direction and less and less of the size.",
    )


CRITERIA = (
    Criterion(
        f"gradient flow conserves a^2 - b^2 within {CONSERVED:g} of it, and each step of descent multiplies it by "
        f"1 - h^2 (a b - y)^2, within {IDENTITY:g} of |w|^2",
        lambda n: (
            n["gradient flow: largest relative change of a^2 - b^2"] < CONSERVED
            and n["descent: largest deviation of a^2 - b^2 from its recursion"] < IDENTITY
        ),
    ),
    Criterion(
        "for h up to 0.09, |a^2 - b^2| grows in no step by more than 1e-12, and |w|^2 at the end is below that of "
        "gradient flow and falls with every step size",
        lambda n: (
            n["descent: largest growth of |a^2 - b^2| in a step"] < 1e-12
            and n["least fall of |w|^2 from one step size to the next"] > 0
        ),
    ),
    Criterion(
        f"on the finest pair of step sizes the end is at distance of order 1 from that of gradient flow and of order 2 "
        f"from that of the flow of L + (h/4)||g||^2, within {ORDER_TOLERANCE:g}",
        lambda n: (
            abs(n["order of the distance from gradient flow"] - 1) < ORDER_TOLERANCE
            and abs(n["order of the distance from the modified flow"] - 2) < ORDER_TOLERANCE
        ),
    ),
    Criterion(
        "an explicit penalty mu ||g||^2 lowers |w|^2 at the end too, the more the larger mu",
        lambda n: n["least fall of |w|^2 from one penalty to the next"] > 0,
    ),
    Criterion(
        "from (75, 74.925) |w|^2 at the end falls with the step size too",
        lambda n: n["least fall of |w|^2 from one step size to the next, far start"] > 0,
    ),
)

REPRODUCTION = Reproduction(
    name="igr-two-parameter",
    claim="Larger steps, like an explicit gradient penalty, lead a two-parameter model to flatter minima than gradient "
    "flow, as long as the first step does not overshoot.",
    source="[barrett2021], the two-parameter model of the first figures",
    reported="Its figures show paths from (2.8, 3.5) and (75, 74.925); step sizes, penalties and numbers are not known "
    "here.",
    criteria=CRITERIA,
    scales={
        "test": Settings(
            step_sizes=(5e-3, 1e-2, 2.5e-2, 9e-2),
            beyond=(0.1, 0.2, 5),
            orders=(2e-3, 1e-3, 5e-4),
            strengths=(5e-3, 5e-2),
            far_step_sizes=(1e-4, 2e-4),
            far_time=3.0,
        ),
        "fast": Settings(),
        "full": Settings(
            orders=(4e-3, 2e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4),
            beyond=(0.1, 0.22, 481),
            far_step_sizes=(1e-6, 1e-5, 1e-4, 1.3e-4, 2e-4),
        ),
    },
    measure=measure,
    x64=True,
)
