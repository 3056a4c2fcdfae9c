"""What a modified equation costs, in gradients: shown to be right first, then timed side by side.

In float64, on a perceptron 784-512-512-10 with tanh; the unit is one gradient of the loss. `exact` is
`modified_vector_field`, `interpolated` is `interpolated_vector_field`, `empirical` is `empirical_vector_field` by
central differences along a stored run, for each of its points. Two other ways to the same exact field, nested products
and Taylor mode, are typed in `exact_fields`.

The three must agree, and the target of `exact` is the cheaper of the two as timed in the same rounds, or as studied
before, whichever is less. Errors are relative to the field whose flow the iterates of gradient descent sample exactly,
at several `h lambda` with lambda the largest eigenvalue of the Hessian; the order between the two finest of them is
asserted for every field.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import exact_fields
import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from measure import IncorrectError, Row

import implicit_reg as ir

UNIT = "gradient"
STEPS = (0.1, 0.03, 0.02)  # h lambda
EXACT, INTERPOLATED, HALF_WIDTHS = (1, 2, 3, 4), tuple(range(1, 9)), (1, 2, 3)
STUDIED = {2: 3.0, 3: 6.3, 4: 15.5}  # gradients, the cheaper of the two other ways on prototypes
# Smaller steps would show lower orders better, but round-off hides the highest there. A wrong last term costs nearly
# one whole order.
ORDER_TOLERANCE, AGREEMENT = 0.3, 1e-10
STENCIL = 8  # steps to either side for the reference, whose error is of order 16
BACKWARD_ITERATIONS = 24  # each gains a factor of h lambda
RECORDS = 16  # of the run that empirical fields are timed on
COMPILED = (3, 8)  # orders whose compile times are compared; at 2 the loop runs once, and XLA removes it


def largest_eigenvalue(gradient: Callable, x: jax.Array, iterations: int = 40) -> float:
    """Power iteration on the Hessian; its second digit is not needed here."""

    @jax.jit
    def run(x, v):
        def body(_, v):
            product = jax.jvp(gradient, (x,), (v,))[1]
            return product / jnp.linalg.norm(product)

        v = jax.lax.fori_loop(0, iterations, body, v)
        return v @ jax.jvp(gradient, (x,), (v,))[1]

    return float(jnp.abs(run(x, gradient(x))))


def iterates(gradient: Callable, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`STENCIL` steps ahead of x and behind it; a step back solves `y = x + h grad L(y)` by iteration."""

    def ahead(x, _):
        x = x - h * gradient(x)
        return x, x

    def behind(x, _):
        x = jax.lax.fori_loop(0, BACKWARD_ITERATIONS, lambda _, y: x + h * gradient(y), x)
        return x, x

    return tuple(jax.lax.scan(step, x, length=STENCIL)[1] for step in (ahead, behind))


def central(ahead: np.ndarray, behind: np.ndarray, h: float, m: int) -> np.ndarray:
    """The field that iterates of a method sample, from them alone, with an error of order 2 m:

    f(x_0) = (1/h) sum_{k=1..m} c_k (x_k - x_-k),   c_k = (-1)^(k+1) (m!)^2 / (k (m-k)! (m+k)!).
    """
    total = np.zeros_like(ahead[0])
    for k in range(1, m + 1):
        c = (-1) ** (k + 1) * math.factorial(m) ** 2 / (k * math.factorial(m - k) * math.factorial(m + k))
        total += c * (ahead[k - 1] - behind[k - 1])
    return total / h


def routes(exact: Callable, interpolated: Callable, tiny: bool) -> dict[str, tuple[Callable, Sequence[int]]]:
    """What is compared: `(loss, order, x, h) -> field` and its orders, by name."""

    def of_map(make):
        return lambda loss, order, x, h: make(ir.update_map(optax.sgd, loss), order)(0.0, x, h)

    def of_gradient(way):
        return lambda loss, order, x, h: way(jax.grad(loss), order, x, h)

    others = (2, 3, 4)
    return {
        "exact": (of_map(exact), (2, 3) if tiny else EXACT),
        "nested products": (of_gradient(exact_fields.nested), (3,) if tiny else others),
        "Taylor mode": (of_gradient(exact_fields.taylor), (2,) if tiny else others),
        "interpolated": (of_map(interpolated), (5,) if tiny else INTERPOLATED),
    }


def _flat(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _check_agreement(programs: Mapping[str, Callable], arguments: tuple) -> None:
    """The exact field by all routes."""
    for name in [name for name in programs if name.endswith(("nested products", "Taylor mode"))]:
        order = name.partition(",")[0]
        found, other = (_flat(programs[key](*arguments)) for key in (f"{order}, exact", name))
        if not (error := _distance(found, other)) <= AGREEMENT:
            raise IncorrectError(f"{order}, exact is {error:.1e} from {name}")


def _orders(programs, gradient, x, eigenvalue, empirical, half_widths) -> tuple[dict[str, Any], list[float]]:
    """For each field its `errors` at `STEPS` and the `order` between the finest two; the errors of the reference."""
    sizes = [step / eigenvalue for step in STEPS]
    flat, unravel = ravel_pytree(x)
    along = lambda y: ravel_pytree(gradient(unravel(y)))[0]  # noqa: E731
    errors: dict[str, list[float]] = {name: [] for name in programs}
    errors |= {f"order {2 * m}, empirical": [] for m in half_widths}
    both_ways = jax.jit(lambda h: iterates(along, h, flat))
    finite = np.ones(2 * STENCIL + 1, bool)

    @functools.partial(jax.jit, static_argnums=3)
    def seen(ts, stored, h, m):
        run = ir.Trajectory(ts, stored, None, finite[: len(ts)], h)
        return empirical(run, 2 * m, central=True).values[0]

    doubts = []
    for h in sizes:
        ahead, behind = map(np.asarray, both_ways(h))
        expected = central(ahead, behind, h, STENCIL)
        doubts.append(_distance(central(ahead, behind, h, STENCIL - 1), expected))
        for name, program in programs.items():
            errors[name].append(_distance(_flat(program(x, jnp.asarray(h))), expected))
        for m in half_widths:
            stored = np.concatenate([behind[m - 1 :: -1], np.asarray(flat)[None], ahead[:m]])
            value = seen(h * np.arange(2 * m + 1), stored, h, m)
            errors[f"order {2 * m}, empirical"].append(_distance(np.asarray(value), expected))
    found, wrong = {}, []
    for name, of_name in errors.items():
        claimed = int(name.partition(",")[0].split()[1])
        order = float(ir.observed_order(sizes, of_name)[-1])
        found[name] = {"errors": of_name, "order": order}
        if not abs(order - claimed) <= ORDER_TOLERANCE:
            wrong.append(f"{name}: order {order:.2f} where {claimed} is claimed (errors {of_name})")
    if wrong:
        raise IncorrectError("; ".join(wrong))
    return found, doubts


def counted(loss: Callable, x: Any, h: float, empirical: Callable = ir.empirical_vector_field) -> dict[str, int]:
    """How often a loss is evaluated: by an interpolated field of order 8, and by an empirical one."""
    calls: list[None] = []

    def watched(p):
        jax.debug.callback(lambda: calls.append(None))
        return loss(p)

    def evaluations(fn):
        calls.clear()
        jax.block_until_ready(fn())
        jax.effects_barrier()
        return len(calls)

    run = ir.descend(optax.sgd, watched, x, h, 4)
    jax.effects_barrier()
    field = ir.interpolated_vector_field(ir.update_map(optax.sgd, watched), 8)
    return {
        "order 8, interpolated": evaluations(lambda: field(0.0, x, h)),
        "order 4, empirical": evaluations(jax.jit(lambda: empirical(run, 4, central=True).values)),
    }


def _lowered(loss, order, x, h):
    """A fresh trace each time."""
    field = ir.interpolated_vector_field(ir.update_map(optax.sgd, lambda p: loss(p)), order)
    return jax.jit(lambda x, h: field(0.0, x, h)).lower(x, h)


def run(
    effort: measure.Effort,
    *,
    exact: Callable = ir.modified_vector_field,
    interpolated: Callable = ir.interpolated_vector_field,
    empirical: Callable = ir.empirical_vector_field,
) -> measure.Report:
    """Orders, counts, then costs.

    Raises:
      measure.IncorrectError: naming the field whose order is wrong, or that is not what it is by another route.
    """
    model = (models.TINY["mlp"] if effort.tiny else models.mlp)()
    half_widths = HALF_WIDTHS[1:2] if effort.tiny else HALF_WIDTHS
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        widen = lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)  # noqa: E731
        x, batch = jax.tree.map(widen, (dict(model.params), model.batch))
        bound = jax.jit(lambda p, batch: jax.grad(model.loss)(p, batch))
        gradient = functools.partial(lambda batch, p: bound(p, batch), batch)
        flat, unravel = ravel_pytree(x)
        eigenvalue = largest_eigenvalue(lambda y: ravel_pytree(gradient(unravel(y)))[0], flat)
        h = jnp.asarray(STEPS[0] / eigenvalue)
        built = {UNIT: measure.build(jax.grad(model.loss), x, batch)}
        for name, (way, orders) in routes(exact, interpolated, effort.tiny).items():
            for order in orders:
                fn = lambda x, h, batch, way=way, order=order: way(lambda p: model.loss(p, batch), order, x, h)  # noqa: E731
                built[f"order {order}, {name}"] = measure.build(fn, x, h, batch)
        programs = {
            name: lambda x, h, program=program: program.compiled(x, h, batch)
            for name, program in built.items()
            if name != UNIT
        }
        _check_agreement(programs, (x, h))
        loss = lambda p: model.loss(p, batch)  # noqa: E731
        found, doubts = _orders(programs, gradient, x, eigenvalue, empirical, half_widths)
        counts = counted(loss, x, float(h), empirical)
        sizes = [len(_lowered(loss, p, x, h).as_text().splitlines()) for p in COMPILED]
        stored = jax.tree.map(lambda leaf: jnp.stack([leaf] * RECORDS), x)
        ts, finite = np.arange(RECORDS) * float(h), np.ones(RECORDS, bool)

        def along(stored):
            return empirical(ir.Trajectory(ts, stored, None, finite, float(h)), 4, central=True).values

        built["order 4, empirical"] = measure.build(along, stored)
        timed: dict[str, measure.Cost] = {}
        compiled: dict[str, measure.Cost] = {}
        if effort.rounds:
            timed = measure.interleave(built, unit=UNIT, rounds=effort.rounds)
            compiles = {str(p): lambda p=p: _lowered(loss, p, x, h).compile() for p in COMPILED}
            compiled = measure.interleave(compiles, unit=str(COMPILED[0]), rounds=min(effort.rounds, 7))
    whole = built[UNIT].flops
    data = {
        name: {
            **found.get(name, {"errors": None, "order": None}),
            "flops": program.flops / whole if program.flops and whole else None,
            "compile_seconds": program.compile_seconds,
            **(timed[name]._asdict() if timed else {}),
        }
        for name, program in built.items()
    }
    rows = _rows(data, counts, sizes, compiled.get(str(COMPILED[1])))
    title = f"{model.title}, float64, lambda = {eigenvalue:.3g}"
    notes = f"{title}; errors of the reference: {' and '.join(f'{doubt:.0e}' for doubt in doubts)}."
    details = {"eigenvalue": eigenvalue, "reference_errors": doubts, "counts": counts, "program_lines": sizes}
    return measure.Report(rows, f"{notes}\n\n{table(data)}", {**details, "rows": data})


def _rows(data, counts, sizes, compiled) -> tuple[Row, ...]:
    rows = []
    for name, row in data.items():
        cost, spread, target, limit, note = row.get("cpu"), row.get("cpu_quartiles"), None, None, ""
        if name == UNIT:
            continue
        order = int(name.partition(",")[0].split()[1])
        if name.endswith("interpolated"):
            limit, target = float(order), 1.05 * order
        if name.endswith("exact"):
            limit, note = row["flops"], "limit: the FLOPs of this program"
            others = [data.get(f"order {order}, {way}", {}).get("cpu") for way in ("nested products", "Taylor mode")]
            target = min([STUDIED[order], *(c for c in others if c is not None)]) if order in STUDIED else None
        if name.endswith("empirical"):
            points = RECORDS - 4
            cost, limit = None if cost is None else cost / points, 0.0
            spread, note = (
                spread and (spread[0] / points, spread[1] / points),
                "no gradient: memory traffic, each point",
            )
        rows.append(Row(name, cost, UNIT, "cpu", limit, target, spread=spread, note=note))
    for name, count in counts.items():
        limit = 0.0 if name.endswith("empirical") else 8.0
        rows.append(Row(f"{name}: gradients evaluated", float(count), "gradients", "count", limit, limit))
    for name in [name for name in data if name.endswith("empirical")]:
        rows.append(Row(f"{name}: order seen", data[name]["order"], "order", "count", 4.0, 4.0 - ORDER_TOLERANCE, True))
    first, last = COMPILED
    work = f"interpolated, order {last} over order {first}"
    rows.append(Row(f"{work}: size of the program", sizes[1] / sizes[0], f"order {first}", "count", 1.0, 1.0))
    seconds = (None, None) if compiled is None else (compiled.cpu, compiled.cpu_quartiles)
    rows.append(Row(f"{work}: compile time", seconds[0], f"order {first}", "cpu", 1.0, 1.2, spread=seconds[1]))
    return tuple(rows)


def table(data: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each field."""
    header = ["field", "CPU", "wall", "FLOPs", "compile s", *(f"error at {s:g}" for s in STEPS), "order"]
    lines = []
    for name, row in data.items():
        errors = [f"{e:.1e}" for e in row["errors"]] if row["errors"] else ["-"] * len(STEPS)
        costs = [measure.number(row.get(clock)) for clock in ("cpu", "wall")]
        compiled = measure.number(row["compile_seconds"], 1)
        # A loop's body is counted once, however often it runs.
        flops = "-" if name.endswith("interpolated") else measure.number(row["flops"])
        lines.append([name, *costs, flops, compiled, *errors, measure.number(row["order"])])
    return measure.markdown(header, lines)
