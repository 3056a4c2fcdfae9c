"""On a GPU: steps of a transformer block of real size, thousands of small runs, a flow, an eigenvalue, memory.

Every variant of `step_cost` runs in float32 and with float32 parameters and bfloat16 arithmetic, after it met its
formula in float32. A sweep is compared with the same runs one after the other, each one program. Times are wall time,
for the CPU waits; milliseconds are shown, too, since nothing else uses the device. Where there is no GPU only the toy
form runs, to see that it does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from steps_variants import LEARNING_RATE, Variant, variants

import implicit_reg as ir
from implicit_reg import curvature

# Of a displacement: products of float32 factors in full, and of factors with 8 bits.
TOLERANCES: Mapping[str, float] = {"float32": 1e-2, "bfloat16": 0.3}
UNIT = "gd"
WORKS = ("one training step", "a sweep of thousands", "a flow", "the largest eigenvalue", "peak memory")
IN_TINY = ("gd", "gradient-penalty")  # the others are checked by `step_cost`
NUM_PRODUCTS = 20
FLOW_TIME, FLOW_STEP = 1.0, 0.05


def block(tiny: bool) -> models.Model:
    """The transformer block; as a toy a perceptron, which compiles in a tenth of the time."""
    if tiny:
        return models.TINY["mlp"]()
    return models.transformer(width=1024, heads=16, length=1024, vocabulary=8192, batch=8)


def computed_in(dtype: str, loss: Callable) -> Callable:
    """The loss with parameters rounded to `dtype` first; gradients arrive in the parameters' own."""

    def rounded(params, batch):
        return loss(jax.tree.map(lambda x: x.astype(dtype), params), batch).astype(jnp.float32)

    return loss if dtype == "float32" else rounded


def displacements(model: models.Model, chosen: Sequence[Variant]) -> dict[str, jax.Array]:
    """What the formula of each variant adds to the parameters in float32."""
    found = {}
    x, unravel = ravel_pytree(dict(model.params))
    for variant in chosen:
        formula = functools.partial(variant.formula, h=LEARNING_RATE, **variant.hyperparameters)

        def displacement(x, batch):
            return formula(lambda y: model.loss(unravel(y), batch), x) - x

        found[variant.name] = jax.jit(displacement)(x, model.batch)
    return found


def steps(
    model: models.Model, dtype: str, chosen: Sequence[Variant], expected: Mapping[str, jax.Array]
) -> dict[str, measure.Program]:
    """Compiled steps by name, each after it moved the parameters as its formula does in float32.

    Raises:
      measure.IncorrectError: naming the step that does not.
    """
    programs, params = {}, dict(model.params)
    for variant in chosen:
        step = variant.make(**variant.hyperparameters)
        run = functools.partial(step.run, computed_in(dtype, model.loss))
        program = measure.build(run, params, step.init(params), model.batch)
        after, state = params, step.init(params)
        for _ in range(variant.num_steps):
            after, state, _ = program.compiled(after, state, model.batch)
        wanted = expected[variant.name]
        moved = ravel_pytree(after)[0] - ravel_pytree(params)[0]
        error = float(jnp.linalg.norm(moved - wanted) / jnp.linalg.norm(wanted))
        if not error <= TOLERANCES[dtype]:
            raise measure.IncorrectError(f"{variant.name} in {dtype} is {error:.1e} from its formula")
        programs[variant.name] = program
    return programs


def step_rows(effort: measure.Effort, data: dict[str, Any]) -> Iterator[measure.Row]:
    """All steps in both precisions: milliseconds of the plain one, ratios to it, temporary memory."""
    model = block(effort.tiny)
    chosen = [variant for variant in variants() if not effort.tiny or variant.name in IN_TINY]
    expected = displacements(model, chosen)
    for dtype in TOLERANCES:
        programs = steps(model, dtype, chosen, expected)
        costs = measure.interleave(programs, unit=UNIT, rounds=effort.rounds) if effort.rounds else {}
        data[dtype] = {
            name: {
                "temporary_bytes": program.temporary_bytes,
                "flops": program.flops,
                **(costs[name]._asdict() if costs else {}),
            }
            for name, program in programs.items()
        }
        for name, program in programs.items():
            cost = costs.get(name)
            if name == UNIT:
                value = cost and 1e3 * cost.wall_seconds
                yield measure.Row(f"{name}, {dtype}", value, "ms", "wall", note=model.title)
            else:
                value, spread = (cost.wall, cost.wall_quartiles) if cost else (None, None)
                yield measure.Row(f"{name}, {dtype}", value, "gd step", "wall", spread=spread)
            if program.temporary_bytes is not None:
                yield measure.Row(f"{name}, {dtype}, temporary", program.temporary_bytes / 2**20, "MiB", "bytes")


def small_run(key: jax.Array, h: Any, *, num_steps: int) -> jax.Array:
    """The loss after some steps of a small network on data of its own."""
    a, b, data = jax.random.split(key, 3)
    x = jax.random.normal(data, (64, 8))
    params = {"a": jax.random.normal(a, (8, 32)) / 3, "b": jax.random.normal(b, (32,)) / 6}

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - jnp.sin(x[:, 0])) ** 2)

    return loss(jax.tree.map(lambda leaf: leaf[-1], ir.descend(optax.sgd, loss, params, h, num_steps).params))


def sweep_rows(effort: measure.Effort, data: dict[str, Any]) -> Iterator[measure.Row]:
    """Seconds of one run in a sweep over those of a run alone, by the width of the sweep."""
    widths, num_steps, num_alone = ((4,), 5, 4) if effort.tiny else ((256, 1024, 4096), 500, 32)
    run = functools.partial(small_run, num_steps=num_steps)
    root, rates = jax.random.key(0), np.linspace(0.01, 0.1, 4)
    alone = jax.jit(lambda seed, h: run(jax.random.fold_in(root, seed), h))
    jax.block_until_ready(alone(0, rates[0]))
    start = time.perf_counter()
    expected = [float(alone(seed, rates[0])) for seed in range(num_alone)]
    one = (time.perf_counter() - start) / num_alone
    for width in widths:
        ends: list[tuple[int, float]] = []
        axes = {"h": rates, "seed": range(width)}
        found = ir.sweep(
            run, axes, key=root, width=width, chunk=width, report=lambda p, ends=ends: ends.append((p.done, p.elapsed))
        )
        if not np.allclose(found.grid("value")[0, :num_alone], expected, rtol=1e-3):
            raise measure.IncorrectError(f"runs in a sweep of width {width} are not those alone")
        # What lies between the ends of the first and the last chunk: nothing is compiled there.
        (done, first), (total, last) = next(end for end in ends if end[0]), ends[-1]
        each = (last - first) / (total - done)
        data[f"width {width}"] = {"seconds_per_run": each, "seconds_alone": one}
        yield measure.Row(f"sweep, width {width}", each / one if effort.rounds else None, "run alone", "wall")


def kernel_rows(effort: measure.Effort, data: dict[str, Any]) -> Iterator[measure.Row]:
    """The flow of the modified equation and the largest eigenvalue, in gradients, and milliseconds of these."""
    model = models.mlp((8, 4), batch=16) if effort.tiny else models.mlp()
    params = dict(model.params)

    def loss(p):
        return model.loss(p, model.batch)

    field = ir.modified_vector_field(ir.update_map(optax.sgd, loss), 2)
    flow = functools.partial(ir.integrate, field, params, jnp.asarray([0.0, FLOW_TIME]), FLOW_STEP)
    sharpness = jax.jit(functools.partial(curvature.sharpness, model.loss, num_steps=NUM_PRODUCTS))
    iterates = ir.descend(optax.sgd, loss, params, FLOW_STEP, round(FLOW_TIME / FLOW_STEP)).params
    far, near = (ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], run))[0] for run in (iterates, flow().params))
    moved = jnp.linalg.norm(far - ravel_pytree(params)[0])
    # Of order h^2, times the time: where the field were the gradient's, it would be of order h.
    if not float(jnp.linalg.norm(far - near) / moved) <= FLOW_STEP**2:
        raise measure.IncorrectError("the flow does not follow the iterates")
    operator = curvature.hessian_operator(model.loss, params, (model.batch,))
    largest = float(curvature.largest_eigenpairs(operator, 1).values[0])
    if not abs(float(sharpness(params, (model.batch,))) / largest - 1) <= 1e-2:
        raise measure.IncorrectError("Lanczos inside jit misses the largest eigenvalue")
    programs = {
        "gradient": measure.build(jax.grad(model.loss), params, model.batch),
        "flow of order 2": lambda: jax.block_until_ready(flow().params),
        f"eigenvalue, {NUM_PRODUCTS} products": lambda: jax.block_until_ready(sharpness(params, (model.batch,))),
    }
    costs = measure.interleave(programs, unit="gradient", rounds=effort.rounds) if effort.rounds else {}
    data["kernels"] = {name: cost._asdict() for name, cost in costs.items()}
    for name in programs:
        value = costs[name].wall if costs else None
        if name == "gradient":
            value = 1e3 * costs[name].wall_seconds if costs else None
        yield measure.Row(name, value, "ms" if name == "gradient" else "gradient", "wall", note=model.title)


def run(effort: measure.Effort) -> measure.Report:
    """Rows without values where there is no GPU, unless the form is the toy one."""
    on_gpu = jax.default_backend() == "gpu"
    if not (on_gpu or effort.tiny):
        return measure.Report(tuple(measure.Row(work, None, "", "wall", note="no GPU") for work in WORKS), "no GPU", {})
    data: dict[str, Any] = {}
    with jax.default_matmul_precision("highest"):
        rows = [row for part in (step_rows, sweep_rows, kernel_rows) for row in part(effort, data)]
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    rows.append(measure.Row("peak memory", peak and peak / 2**20, "MiB", "bytes", note="" if peak else "no GPU"))
    if not on_gpu:
        rows = [row._replace(note="no GPU: toy sizes on another device") for row in rows]
    return measure.Report(tuple(rows), _details(data), data)


def _details(data: Mapping[str, Any]) -> str:
    lines = []
    for dtype in TOLERANCES:
        for name, found in data[dtype].items():
            milliseconds = 1e3 * found["wall_seconds"] if "wall_seconds" in found else None
            memory = found["temporary_bytes"]
            lines.append(
                [
                    f"{name}, {dtype}",
                    measure.number(milliseconds),
                    measure.number(found.get("wall")),
                    measure.number(memory and memory / 2**20, 1),
                ]
            )
    return measure.markdown(["one step", "ms", "gd steps", "temporary MiB"], lines)
