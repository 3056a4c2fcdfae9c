"""Steps of a convolution network inside a loop: as JAX compiles them on a CPU, and as the library does.

XLA's CPU back end brings the convolutions of a gradient into its fast layout only outside of loops and branches;
`canonical_convolutions` writes that layout into the program. One step in each loop is compared with the same step in a
program of its own, whose layout XLA sees to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax

import implicit_reg as ir

H = 0.01
NUM_STEPS = 4
NUM_LANES = 2
TARGET = 1.1
AGREEMENT = 1e-4  # of float32 parameters that other kernels have summed in another order
UNIT = "step alone"
BARE = "a step in a bare scan"
LANES = "a step in a bare scan, canonical_convolutions, 2 lanes of vmap"


def _loss(model: models.Model, data: Any) -> Callable[[Any], jax.Array]:
    return lambda params: model.loss(params, data)


def loops(model: models.Model, wrap: Callable[[Any], Any]) -> Mapping[str, tuple[Callable[[Any, Any], Any], int]]:
    """Functions of parameters and data that take `NUM_STEPS` steps, and how many runs of them at once."""
    optimizer = optax.sgd(H)

    def step(params, data):
        gradient = jax.grad(_loss(model, data))(params)
        return optax.apply_updates(params, optimizer.update(gradient, optimizer.init(params), params)[0])

    def scan(params, data):
        return jax.lax.scan(lambda p, _: (step(p, data), None), params, length=NUM_STEPS)[0]

    def descend(params, data):
        run = ir.descend(optax.sgd, _loss(model, data), params, H, NUM_STEPS, every=NUM_STEPS)
        return jax.tree.map(lambda x: x[-1], run.params)

    return {
        UNIT: (step, 1),
        BARE: (scan, 1),
        "a step in a bare scan, canonical_convolutions": (wrap(scan), 1),
        "a step in descend": (descend, 1),
        LANES: (jax.vmap(wrap(scan), in_axes=(0, None)), NUM_LANES),
    }


def reached(model: models.Model, programs: Mapping[str, measure.Program]) -> None:
    """Every loop ends where single steps do.

    Raises:
      measure.IncorrectError: where one does not.
    """
    params = model.params
    for _ in range(NUM_STEPS):
        params = programs[UNIT].compiled(params, model.batch)
    for name, program in programs.items():
        if name == UNIT:
            continue
        for found, wanted in zip(jax.tree.leaves(program()), jax.tree.leaves(params), strict=True):
            ends = np.broadcast_to(wanted, found.shape)
            if not np.allclose(found, ends, rtol=0, atol=AGREEMENT * np.abs(ends).max()):
                raise measure.IncorrectError(f"{name}: ends at other parameters than single steps")


def run(effort: measure.Effort, *, wrap: Callable[[Any], Any] = ir.canonical_convolutions) -> measure.Report:
    """The report of one convolution network.

    Raises:
      measure.IncorrectError: where a loop does not end where single steps do.
    """
    model = (models.TINY if effort.tiny else models.MODELS)["conv"]()
    many = jax.tree.map(lambda x: jnp.stack([x] * NUM_LANES), dict(model.params))
    ways = loops(model, wrap)
    programs = {
        name: measure.build(fn, many if lanes > 1 else dict(model.params), model.batch)
        for name, (fn, lanes) in ways.items()
    }
    reached(model, programs)
    costs = measure.interleave(programs, unit=UNIT, rounds=effort.rounds) if effort.rounds else {}
    rows = []
    for name, (_, lanes) in list(ways.items())[1:]:
        cost, steps = costs.get(name), NUM_STEPS * lanes
        rows.append(
            measure.Row(
                name,
                cost and cost.cpu / steps,
                UNIT,
                "cpu",
                limit=1.0,
                target=None if name in (BARE, LANES) else TARGET,
                spread=cost and (cost.cpu_quartiles[0] / steps, cost.cpu_quartiles[1] / steps),
                note="" if effort.rounds else "not timed",
            )
        )
    lines = [[row.work, measure.number(row.value, 3), f"{row.unit} ({row.clock})"] for row in rows]
    data = {"title": model.title, "costs": {name: cost._asdict() for name, cost in costs.items()}}
    return measure.Report(tuple(rows), measure.markdown(["work", "measured", "unit"], lines), data)
