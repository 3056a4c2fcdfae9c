"""Full-batch flooding at its level: it slides along {L = b} by projected descent of ||g||^2, and at which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from implicit_reg.derivatives import hessian_vector_product
from implicit_reg.descent import optimizer_step
from implicit_reg.experiments.papers._fixed_steps import runge_kutta
from implicit_reg.experiments.reproduction import Criterion, Findings, Lab, Reproduction, Table
from implicit_reg.flows.flood import level_set_terms, project_to_levels
from implicit_reg.problems.networks import tanh_network
from implicit_reg.transforms.flood import flooding

TARGET, LEVEL = 0.6, 0.5
PRODUCT = TARGET + math.sqrt(2 * LEVEL)  # a b on the branch of {L = LEVEL} above the minima
VALLEY_START = (0.8, PRODUCT / 0.8)
ABOVE = (1.4, 2.24)  # where the run in the picture starts
RECORDS = 8
FINE, SUBSTEPS = 10, 2  # points of a flow between two records, and steps of the integrator between two points
MUTATION = 1.1  # of the field, with which the check must fail
ORDER_TOLERANCE = 0.1
KINDS = {"projected": (1.0, True), "projected, times 1.1": (MUTATION, True), "free": (1.0, False)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Scale of the run.

    Attributes:
      valley_steps: e on the two-parameter loss, decreasing; the last two decide the order.
      network_steps: e on the network, whose sharpness is a quarter.
      phases: how many starts between the level and one step above it: the iterates cross the level in each step, and
        the mean over where they do is what has an order.
      valley_time: `n e^2` on the two-parameter loss.
      network_time: `n e^2` on the network.
      picture: e in the picture.
    """

    valley_steps: tuple[float, ...] = (0.05, 0.025, 0.0125, 0.00625, 0.003125)
    network_steps: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    phases: int = 16
    valley_time: float = 1.6
    network_time: float = 0.8
    picture: float = 0.06


def valley(x: Array) -> Array:
    """`(0.6 - a b)^2/2`: on `{L = b}`, `||g||^2` is `2 b (a^2 + b^2)`, which is least where a = b.

    Args:
      x: `(a, b)`.

    Returns:
      The loss.
    """
    return 0.5 * (TARGET - x[0] * x[1]) ** 2


def _network() -> tuple[Callable[[Array], Array], Array]:
    problem = tanh_network(dtype="float64")
    start, unravel = ravel_pytree(problem.params)
    return (lambda x: problem.loss_fn(unravel(x))), start


def _slide(loss: Callable, level: Array, start: Array, time: float, e: Array, phase: Array) -> dict[str, Array]:
    """Flooding from one phase: at each record the mean of the last pair, both brought to the level."""
    method = optax.chain(flooding(level), optax.sgd(e))
    count = jnp.round(time / e**2 / RECORDS).astype(jnp.int32)
    x = start + phase * e * jax.grad(loss)(start)

    def on_level(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: project_to_levels(lambda z: loss(z)[None], y, level, 1), x)

    def step(_, carry):
        x, _, state, ascents, slope, farthest = carry
        after, state = optimizer_step(method, loss, x, state)
        value, g = jax.value_and_grad(loss)(x)
        farthest = jnp.maximum(farthest, jnp.abs(value - level) / (e * slope))
        return after, x, state, ascents + jnp.where(value < level, 1, 0), jnp.sum(g**2), farthest

    def record(carry, _):
        carry = jax.lax.fori_loop(0, count, step, carry)
        return carry, jnp.mean(jax.vmap(on_level)(jnp.stack(carry[:2])), axis=0)

    carry = (x, x, method.init(x), jnp.zeros((), jnp.int32), jnp.sum(jax.grad(loss)(x) ** 2), jnp.zeros(()))
    (*_, ascents, _, farthest), path = jax.lax.scan(record, carry, length=RECORDS)
    return {"path": path, "ascents": ascents / (RECORDS * count), "farthest": farthest}


def _flow(loss: Callable, start: Array, time: float, factor: Array, projected: Array) -> dict[str, Array]:
    """The slow flow in the time `n e^2`, and `||g||^2` at its ends."""

    def field(x):
        onto = level_set_terms(loss, x, 1.0)[0]
        free = -hessian_vector_product(loss, x, jax.grad(loss)(x))[1] / 2
        return factor * jnp.where(projected > 0, onto, free)

    path = runge_kutta(field, start, time, FINE * RECORDS, SUBSTEPS)
    return {"path": path, "slope": jax.vmap(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(path[jnp.array([0, -1])])}


def _picture(e: float, time: float) -> np.ndarray:
    """All iterates from above the level."""
    method = optax.chain(flooding(LEVEL), optax.sgd(e))
    start = jnp.array(ABOVE)

    def step(carry, _):
        return optimizer_step(method, valley, *carry), carry[0]

    return np.asarray(jax.lax.scan(step, (start, method.init(start)), length=round(time / e**2))[1])


def distances(
    lab: Lab, name: str, loss: Callable, start: Array, steps: tuple[float, ...], phases: int, time: float
) -> dict[str, Any]:
    """Distances of flooding from the three flows for each step size, and what else was seen of both.

    Args:
      lab: where the sweeps run.
      name: of the sweeps.
      loss: `x -> L(x)`.
      start: a point, whose loss is the level.
      steps: e, decreasing.
      phases: how many starts between the level and one step above it.
      time: `n e^2` at the end.

    Returns:
      Distances over the displacement and their orders on the finest pair, by flow; the mean paths; the flows.
    """
    level = loss(start)
    identity = {"time": time}
    slides = lab.sweep(
        f"{name}-flooding",
        lambda key, e, phase: _slide(loss, level, start, time, e, phase),
        {"e": list(steps), "phase": [(k + 0.5) / phases for k in range(phases)]},
        key=jax.random.key(0),
        width=phases * len(steps),
        identity=identity,
    )
    flows = lab.sweep(
        f"{name}-flows",
        lambda key, factor, projected: _flow(loss, start, time, factor, projected),
        [{"factor": factor, "projected": int(projected)} for factor, projected in KINDS.values()],
        key=jax.random.key(0),
        width=len(KINDS),
        identity=identity,
    )
    mean = slides.grid("path").mean(axis=1)
    errors = {}
    for k, kind in enumerate(KINDS):
        path = flows["path"][k][FINE::FINE]
        moved = np.linalg.norm(flows["path"][0][-1] - np.asarray(start))
        errors[kind] = [float(np.max(np.linalg.norm(found - path, axis=1)) / moved) for found in mean]
    return {
        "errors": errors,
        "orders": {kind: _order(steps, e) for kind, e in errors.items()},
        "mean": mean,
        "level": float(level),
        "farthest": slides.grid("farthest").max(axis=1),
        "e": list(steps),
        "ascents": slides.grid("ascents").mean(axis=1),
        "flow": flows["path"][0],
        "free": flows["path"][2],
        "slope": float(flows["slope"][0, 1] / flows["slope"][0, 0]),
    }


def _order(steps: tuple[float, ...], errors: list[float]) -> float:
    return math.log(errors[-2] / errors[-1]) / math.log(steps[-2] / steps[-1])


def measure(settings: Settings, lab: Lab) -> Findings:
    """Flooding against its slow flow, that flow times 1.1, and the free descent of `||g||^2`.

    Args:
      settings: the scale.
      lab: where the sweeps run.

    Returns:
      Orders on two losses, the decay of `a^2 - b^2` on the first, and the picture.
    """
    network, start = _network()
    found = {
        "two parameters": distances(
            lab, "valley", valley, jnp.array(VALLEY_START), settings.valley_steps, settings.phases, settings.valley_time
        ),
        "tanh network": distances(
            lab, "network", network, start, settings.network_steps, settings.phases, settings.network_time
        ),
    }
    flat = found["two parameters"]
    times = settings.valley_time * np.arange(1, RECORDS + 1) / RECORDS
    first = VALLEY_START[0] ** 2 - VALLEY_START[1] ** 2
    decayed = np.exp(-2 * LEVEL * times)
    differences = (flat["mean"][..., 0] ** 2 - flat["mean"][..., 1] ** 2) / first
    numbers: dict[str, float] = {}
    for name, one in found.items():
        numbers |= {
            **{f"{name}: order of the distance, {kind}": order for kind, order in one["orders"].items()},
            f"{name}: relative distance at the smallest e": one["errors"]["projected"][-1],
            f"{name}: least relative distance of the free descent": min(one["errors"]["free"]),
            f"{name}: largest |L - b| over e ||g||^2 of the step before, smallest e": float(one["farthest"][-1]),
            f"{name}: fraction of ascents at the smallest e": float(one["ascents"][-1]),
            f"{name}: ||g||^2 at the end over that at the start": one["slope"],
        }
    numbers["a^2 - b^2 against exp(-2 b n e^2): largest relative error at the smallest e"] = float(
        np.max(np.abs(differences[-1] / decayed - 1))
    )
    tables = tuple(
        Table(
            f"distance over displacement, {name}",
            ("e", *KINDS),
            tuple(zip(one["e"], *one["errors"].values(), strict=True)),
        )
        for name, one in found.items()
    )
    a = np.linspace(0.2, 2.2, 81)
    curves = {
        "grid": {"a": a, "b": np.linspace(0.6, 3.1, 101), "loss": _grid(a, np.linspace(0.6, 3.1, 101))},
        "level": {"value": LEVEL, "a": a, "b": PRODUCT / a, "balanced": math.sqrt(PRODUCT)},
        "minima": {"a": a, "b": TARGET / a},
        "iterates": _picture(settings.picture, settings.valley_time),
        "flow": flat["flow"],
        "free": flat["free"],
        "errors": {name: {"e": one["e"], **one["errors"]} for name, one in found.items()},
        "decay": {
            "time": np.linspace(0.0, settings.valley_time, 81),
            "exact": np.exp(-2 * LEVEL * np.linspace(0.0, settings.valley_time, 81)),
            "measured_time": times,
            "measured": differences,
        },
    }
    notes = (
        "One run from one phase has no order: its last iterate lies up to a step off the level. The order is that of "
        f"the mean over {settings.phases} phases of pairs brought to the level.",
        "Full batch and plain steps only: with minibatches and with momentum the flow is another (rows "
        "`flooding-level-set` and `flooding-minibatch-pair` of verify).",
    )
    return Findings(numbers, tables, curves, notes)


def _grid(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 0.5 * (TARGET - np.outer(b, a)) ** 2


NAMES = ("two parameters", "tanh network")

CRITERIA = (
    Criterion(
        "on both losses the distance of flooding from dx/dn = -(e^2/2) P H g at fixed n e^2 is of order 2 in e, "
        f"within {ORDER_TOLERANCE:g} on the finest pair",
        lambda n: all(abs(n[f"{name}: order of the distance, projected"] - 2) < ORDER_TOLERANCE for name in NAMES),
    ),
    Criterion(
        f"with {MUTATION:g} times the field the order is below 0.5",
        lambda n: all(n[f"{name}: order of the distance, projected, times 1.1"] < 0.5 for name in NAMES),
    ),
    Criterion(
        "the free descent of ||g||^2 is off by at least 10 % of the displacement at every e",
        lambda n: all(n[f"{name}: least relative distance of the free descent"] >= 0.1 for name in NAMES),
    ),
    Criterion(
        "at the smallest e the loss stays within 1.1 times what the last step changed it by, e ||g||^2, of the level, "
        "and between 45 % and 55 % of the steps ascend",
        lambda n: all(
            n[f"{name}: largest |L - b| over e ||g||^2 of the step before, smallest e"] < 1.1
            and abs(n[f"{name}: fraction of ascents at the smallest e"] - 0.5) < 0.05
            for name in NAMES
        ),
    ),
    Criterion(
        "on the two-parameter loss a^2 - b^2 decays as exp(-2 b n e^2), within 1 % at the smallest e",
        lambda n: n["a^2 - b^2 against exp(-2 b n e^2): largest relative error at the smallest e"] < 0.01,
    ),
)

REPRODUCTION = Reproduction(
    name="flooding-slow-flow",
    claim="At its level full-batch flooding slides along {L = b} by projected gradient descent of ||g||^2, not by its "
    "free descent.",
    source="[ishida2020] for the method; the flow was derived here (`flows.level_set_terms`)",
    reported="The paper reports no flow.",
    criteria=CRITERIA,
    scales={
        "test": Settings(valley_steps=(0.0125, 0.00625), network_steps=(0.05, 0.025)),
        "fast": Settings(),
        "full": Settings(
            valley_steps=(0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625),
            network_steps=(0.1, 0.05, 0.025, 0.0125, 0.00625),
            phases=64,
        ),
    },
    measure=measure,
    x64=True,
)
