"""How cost grows: with parameters, order, step sizes, runs, minibatches, devices, processes.

    python benchmarks scaling-kernels scaling-runs scaling-machines

Each dimension is measured where this machine can, and read from a fitted model beyond: time is `a + b n` by least
squares of relative errors; memory is what the compiler reserves, at 10^8 parameters too, where nothing is run for it.
What each program computes is compared with another way to the same numbers first. Times are CPU seconds of interleaved
programs, but for devices and processes, where the wall clock counts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
import scaling_machines
import scaling_runs
from scaling_model import (
    Dimension,
    Series,
    as_data,
    count,
    dimension_table,
    geometric,
    linear,
    ratio,
    timed,
    total_bytes,
)

import implicit_reg as ir
from implicit_reg.descent import optimizer_step
from implicit_reg.transforms import add_gradient_penalty

BATCH, OUTPUTS, H, PENALTY = 32, 10, 0.01, 0.1
DECADES = (1e3, 1e4, 1e5, 1e6, 3e6, 1e7, 3e7)
OUT_OF_CACHE = 1e6  # what is smaller says nothing of what is much larger
LARGEST = 1e8
ROUNDS = 3  # at most; a round takes seconds
EXACT, INTERPOLATED, TINY_ORDERS = (1, 2, 3, 4), tuple(range(1, 9)), (1, 2, 8)
AGREEMENT = 1e-3  # in float32, of displacements and corrections
HELD_OUT = "gradient step"
TINY = (HELD_OUT, "exact field, order 2")


def perceptron(num_params: float) -> tuple[dict[str, jax.ShapeDtypeStruct], Callable]:
    """Shapes and loss of a perceptron of two equal layers and a head, `w^2 + w^2 + ...` parameters."""
    width = round((-(2 + OUTPUTS) + math.sqrt((2 + OUTPUTS) ** 2 + 8 * (num_params - OUTPUTS))) / 4)
    sizes = (width, width, width, OUTPUTS)
    shapes = {}
    for k in range(3):
        shapes[f"w{k}"] = jax.ShapeDtypeStruct(sizes[k : k + 2], jnp.float32)
        shapes[f"b{k}"] = jax.ShapeDtypeStruct(sizes[k + 1 : k + 2], jnp.float32)
    return shapes, models.mlp((2, 2), batch=1).loss


def arrays(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    """Parameters and a batch."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    params = {
        name: jnp.asarray(normal(*shape.shape) / np.float32(math.sqrt(shape.shape[0])))
        for name, shape in shapes.items()
    }
    batch = normal(BATCH, shapes["w0"].shape[0]), rng.integers(OUTPUTS, size=BATCH).astype(np.int32)
    return params, jax.tree.map(jnp.asarray, batch)


def kernels(loss: Callable) -> dict[str, Callable[[Any, jax.Array, Any], Any]]:
    """What grows with parameters, as functions of parameters, step size and batch."""

    def step(make, params, h, batch):
        transformation = make(h)
        return optimizer_step(transformation, loss, params, transformation.init(params), (batch,))[0]

    def field(make, order, params, h, batch):
        return make(ir.update_map(optax.sgd, lambda p: loss(p, batch)), order)(0.0, params, h)

    return {
        HELD_OUT: functools.partial(step, optax.sgd),
        "exact penalty step": functools.partial(
            step, lambda h: optax.chain(add_gradient_penalty(PENALTY), optax.sgd(h))
        ),
        "interpolated field, order 3": functools.partial(field, ir.interpolated_vector_field, 3),
        "exact field, order 2": functools.partial(field, ir.modified_vector_field, 2),
    }


def _distance(actual: Any, expected: Any) -> float:
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (actual, expected)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def check(name: str, actual: Any, expected: Any, tolerance: float = AGREEMENT) -> None:
    """Nothing is timed that is not right."""
    if not (error := _distance(actual, expected)) <= tolerance:
        raise measure.IncorrectError(f"{name} is {error:.1e} from its formula")


def _check_kernels(programs: Mapping[str, measure.Program], loss: Callable) -> None:
    params, h, batch = programs[HELD_OUT].arguments

    @jax.jit
    def derivatives(params, batch):
        gradient = jax.grad(loss)(params, batch)
        return gradient, jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (gradient,))[1]

    gradient, product = derivatives(params, batch)
    corrected = jax.tree.map(lambda g, p: -g - h / 2 * p, gradient, product)
    formulas = {
        HELD_OUT: (jax.tree.map(lambda g: -h * g, gradient), AGREEMENT),
        "exact penalty step": (jax.tree.map(lambda g, p: -h * (g + 2 * PENALTY * p), gradient, product), AGREEMENT),
        "interpolated field, order 3": (corrected, 50 * float(h) ** 2),  # the next term
        "exact field, order 2": (corrected, AGREEMENT),
    }
    for name, program in programs.items():
        found = program()
        moved = jax.tree.map(jnp.subtract, found, params) if name.endswith("step") else found
        check(name, moved, *formulas[name])


def parameters(effort: measure.Effort) -> Dimension:
    """A gradient step, an exact penalty, two fields: seconds, and what the compiler reserves."""
    sizes, largest = (DECADES[:1], 1e4) if effort.tiny else (DECADES, LARGEST)
    programs: dict[Any, measure.Program] = {}
    memory: dict[str, dict[float, float]] = {}
    for n in (*sizes, largest):
        shapes, loss = perceptron(n)
        real = n == sizes[0] or (n < largest and effort.rounds > 0)
        params, batch = arrays(shapes) if real else _abstract(shapes)
        h = jnp.float32(H) if real else jax.ShapeDtypeStruct((), jnp.float32)
        for name, fn in kernels(loss).items():
            if effort.tiny and name not in TINY:
                continue
            program = measure.build(fn, params, h, batch)
            memory.setdefault(name, {})[n] = total_bytes(program.compiled)
            if real:
                programs[name, n] = program
        if n == sizes[0]:
            _check_kernels({name: program for (name, _), program in programs.items()}, loss)
    rounds = min(effort.rounds, ROUNDS)
    costs = measure.interleave(programs, unit=(HELD_OUT, sizes[-1]), rounds=rounds) if rounds else {}
    series, rows = [], []
    base = OUT_OF_CACHE if OUT_OF_CACHE in sizes else sizes[0]
    for name, found in memory.items():
        curve = timed(name, sizes, costs, since=OUT_OF_CACHE, beyond=(largest,))
        if curve is not None:
            series.append(curve)
        per_parameter = curve and (curve.at(largest) / largest) / (curve.at(base) / base)
        rows.append(
            ratio(
                f"{name}: per parameter, {count(largest)} over {count(base)}",
                per_parameter,
                f"at {count(base)}",
                "cpu",
                1.0,
                "read from the model",
            )
        )
        x, y = tuple(found), tuple(found.values())
        series.append(Series(f"{name}, memory", "bytes", x, y, linear(x, y, root=True)))
        copies = [v / (4 * k) for k, v in found.items()]
        note = f"compiled at {count(largest)} and not run; {copies[-2]:.2f} at {count(sizes[-1])}"
        rows.append(ratio(f"{name}: memory, everything", copies[-1], "copies of the parameters", "bytes", None, note))
    if rounds:
        del programs
        modelled = next(s for s in series if s.name == HELD_OUT)
        rows.append(_held_out(modelled, largest))
    return Dimension(
        f"Parameters (a perceptron of width w, w, w, {OUTPUTS} on {BATCH} examples)",
        "parameters",
        tuple(series),
        tuple(rows),
    )


def _abstract(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Any, Any]:
    width = shapes["w0"].shape[0]
    return dict(shapes), (
        jax.ShapeDtypeStruct((BATCH, width), jnp.float32),
        jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    )


def _held_out(series: Series, n: float) -> measure.Row:
    """What the model says of a size that it has not seen, over what is measured there."""
    shapes, loss = perceptron(n)
    params, batch = arrays(shapes)
    program = measure.build(kernels(loss)[HELD_OUT], params, jnp.float32(H), batch)
    costs = measure.interleave({HELD_OUT: program}, unit=HELD_OUT, rounds=3)
    return ratio(
        f"{HELD_OUT}: measured at {count(n)} over the model",
        costs[HELD_OUT].cpu_seconds / series.model(n),
        "model",
        "cpu",
        1.0,
        "that size was not in the fit",
    )


def order(effort: measure.Effort) -> Dimension:
    """Exact and interpolated fields: gradients, compile time, size of the program."""
    shapes, loss = perceptron(1e3 if effort.tiny else 2e5)
    params, batch = arrays(shapes)
    routes = {
        "exact": (ir.modified_vector_field, EXACT[:2] if effort.tiny else EXACT),
        "interpolated": (ir.interpolated_vector_field, TINY_ORDERS if effort.tiny else INTERPOLATED),
    }

    def field(make, p):
        return lambda params, h, batch: make(ir.update_map(optax.sgd, lambda x: loss(x, batch)), p)(0.0, params, h)

    h = jnp.float32(1e-2)
    programs = {("gradient", 1): measure.build(jax.grad(loss), params, batch)}
    sizes: dict[Any, int] = {}
    for name, (make, orders) in routes.items():
        for p in orders:
            programs[name, p] = measure.build(field(make, p), params, h, batch)
            sizes[name, p] = _equations(jax.make_jaxpr(field(make, p))(params, h, batch).jaxpr)
        check(f"{name}, 1", programs[name, 1](), jax.tree.map(jnp.negative, programs["gradient", 1]()))
        first, last = programs[name, orders[0]](), programs[name, orders[-1]]()
        check(f"{name}, {orders[-1]}", last, first, 0.5)  # a correction, and no more
    rounds = min(effort.rounds, ROUNDS)
    costs = measure.interleave(programs, unit=("gradient", 1), rounds=rounds) if rounds else {}
    series, rows = [], []
    for name, (_, orders) in routes.items():
        compiled = tuple(programs[name, p].compile_seconds for p in orders)
        x = tuple(map(float, orders))
        if costs:
            y = tuple(costs[name, p].cpu for p in orders)
            fitted = linear(x, y) if name == "interpolated" else geometric(x[1:], y[1:])
            series.append(Series(name, "gradients", x, y, fitted, limit=x if name == "interpolated" else ()))
        series.append(Series(f"{name}, compilation", "wall s", x, compiled))
        series.append(Series(f"{name}, program", "equations", x, tuple(float(sizes[name, p]) for p in orders)))
        if name == "interpolated":
            growth = costs and series[-3].model.b
            rows.append(ratio("interpolated: gradients for one order more", growth or None, "gradient", "cpu", 1.0))
            low, high = (sizes[name, p] for p in (2, orders[-1]))
            rows.append(
                ratio(
                    f"interpolated: program at order {orders[-1]} over order 2",
                    high / low,
                    "equations",
                    "count",
                    1.0,
                )
            )
        else:
            growth = costs and series[-3].model and series[-3].model.b
            rows.append(ratio("exact: cost of one order more, from order 2 on", growth or None, "times", "cpu"))
    return Dimension("Order of the modified equation", "order", tuple(series), tuple(rows))


def _equations(jaxpr: Any) -> int:
    """Of a program and all that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [
            x for value in equation.params.values() for x in (value if isinstance(value, tuple | list) else [value])
        ]
        total += 1 + sum(_equations(getattr(x, "jaxpr", x)) for x in inner if hasattr(getattr(x, "jaxpr", x), "eqns"))
    return total


DIMENSIONS: Mapping[str, Callable[[measure.Effort], Dimension]] = {
    "parameters": parameters,
    "order": order,
    "step-sizes": scaling_runs.step_sizes,
    "runs": scaling_runs.runs,
    "minibatches": scaling_runs.minibatches,
    "devices": scaling_machines.devices,
    "processes": scaling_machines.processes,
}


def run(effort: measure.Effort, *names: str) -> measure.Report:
    """Some dimensions, or all.

    Args:
      effort: how much to do.
      names: of `DIMENSIONS`.

    Returns:
      Their rows; `data` has one entry for each, which `scaling_figure.draw_scaling` draws.
    """
    found = {name: DIMENSIONS[name](effort) for name in names or DIMENSIONS}
    data = {name: as_data(dimension) for name, dimension in found.items()}
    rows = tuple(row._replace(work=f"{name}: {row.work}") for name, d in found.items() for row in d.rows)
    return measure.Report(rows, render(data), data)


def render(data: Mapping[str, Any]) -> str:
    """The tables of all dimensions in Markdown: what `docs/scale.md` has between its marks."""
    return "\n\n".join(dimension_table(dimension) for dimension in data.values())
