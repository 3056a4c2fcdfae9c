"""What a modified equation costs, in gradients, and how near it is: order seen first, then timed side by side.

    python benchmarks/fields.py [--width N] [--rounds N] [--json]

In float64, on a perceptron 784-N-N-10 with tanh. The unit is one gradient of the loss. An error is relative to the
field whose flow the iterates of gradient descent sample exactly, at several `h lambda` with lambda the largest
eigenvalue of the Hessian; the order between the two finest of them is asserted.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import implicit_reg as ir

UNIT = "gradient"
STEPS = (0.1, 0.03, 0.02)  # h lambda
EXACT_ORDERS, INTERPOLATED_ORDERS = (1, 2, 3, 4), tuple(range(1, 9))
# Smaller steps would show lower orders better, but round-off hides the highest there. A wrong last term costs nearly
# one whole order.
ORDER_TOLERANCE, FORMULA_TOLERANCE = 0.3, 1e-10
STENCIL = 8  # steps to either side for the reference, whose error is of order 16
BACKWARD_ITERATIONS = 24  # each gains a factor of h lambda


class IncorrectFieldError(RuntimeError):
    """A field is not of the order it claims; nothing is timed."""


def largest_eigenvalue(loss: Callable, params: Any, batch: Any, iterations: int = 40) -> float:
    """Power iteration on the Hessian; its second digit is not needed here."""
    x, unravel = ravel_pytree(params)

    @jax.jit
    def run(x, v, batch):
        def body(_, v):
            gradient = jax.grad(lambda y: loss(unravel(y), batch))
            product = jax.jvp(gradient, (x,), (v,))[1]
            return product / jnp.linalg.norm(product)

        v = jax.lax.fori_loop(0, iterations, body, v)
        return v @ jax.jvp(jax.grad(lambda y: loss(unravel(y), batch)), (x,), (v,))[1]

    return float(jnp.abs(run(x, ravel_pytree(jax.grad(loss)(params, batch))[0], batch)))


def reference(loss: Callable, h: float, params: Any, batch: Any, reach: int = STENCIL) -> tuple[np.ndarray, float]:
    """The modified field of gradient descent at `params`, and an estimate of its relative error.

    Iterates are samples of the modified flow, so that central differences give the field from them alone,

        f(x_0) = (1/h) sum_{k=1..m} c_k (x_k - x_-k),   c_k = (-1)^(k+1) (m!)^2 / (k (m-k)! (m+k)!),

    with an error of order 2 m; a step back solves `y = x + h grad L(y)` by iteration. It shares no code with the fields
    that it judges. The estimate compares m with m - 1.
    """
    x, unravel = ravel_pytree(params)

    @jax.jit
    def iterates(x, batch):
        gradient = jax.grad(lambda y: loss(unravel(y), batch))

        def ahead(x, _):
            x = x - h * gradient(x)
            return x, x

        def behind(x, _):
            x = jax.lax.fori_loop(0, BACKWARD_ITERATIONS, lambda _, y: x + h * gradient(y), x)
            return x, x

        return tuple(jax.lax.scan(step, x, length=reach)[1] for step in (ahead, behind))

    ahead, behind = map(np.asarray, iterates(x, batch))

    def central(m):
        total = np.zeros_like(ahead[0])
        for k in range(1, m + 1):
            c = (-1) ** (k + 1) * math.factorial(m) ** 2 / (k * math.factorial(m - k) * math.factorial(m + k))
            total += c * (ahead[k - 1] - behind[k - 1])
        return total / h

    best, second = central(reach), central(reach - 1)
    return best, _distance(second, best)


def programs_of(loss: Callable, params: Any, batch: Any, h: float, routes: Mapping[str, Any]) -> dict:
    """Every field as a compiled function of parameters, step size and batch, and the gradient."""

    def field_program(make, order):
        def run(params, h, batch):
            phi = ir.update_map(optax.sgd, lambda p: loss(p, batch))
            return make(phi, order)(0.0, params, h)

        return measure.build(run, params, jnp.asarray(h, jnp.float64), batch)

    programs = {UNIT: measure.build(jax.grad(loss), params, batch)}
    for name, (make, orders) in routes.items():
        programs |= {f"{name}, {order}": field_program(make, order) for order in orders}
    return programs


def _flat(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _check_formulas(loss, params, batch, programs, h) -> None:
    """Gradient flow, and the published correction `-(h/2) H g`, typed again."""

    def corrected(params, batch):
        gradient = jax.grad(loss)
        g, product = jax.jvp(lambda p: gradient(p, batch), (params,), (gradient(params, batch),))
        return jax.tree.map(lambda g, hg: (-g, -g - h / 2 * hg), g, product)

    pairs = jax.jit(corrected)(params, batch)
    for order in (1, 2):
        expected = _flat(jax.tree.map(lambda pair: pair[order - 1], pairs, is_leaf=lambda x: isinstance(x, tuple)))
        name = f"exact, {order}"
        if name in programs:
            actual = _flat(programs[name].compiled(params, jnp.asarray(h, jnp.float64), batch))
            if not (error := _distance(actual, expected)) <= FORMULA_TOLERANCE:
                raise IncorrectFieldError(f"{name} is {error:.1e} from its formula")


def costs(
    model: models.Model,
    *,
    rounds: int,
    steps: Sequence[float] = STEPS,
    exact: Callable = ir.modified_vector_field,
    interpolated: Callable = ir.interpolated_vector_field,
    exact_orders: Sequence[int] = EXACT_ORDERS,
    interpolated_orders: Sequence[int] = INTERPOLATED_ORDERS,
) -> dict[str, Any]:
    """Errors at the step sizes, the order between them, then the costs; `rounds=0` leaves the timing out.

    Returns:
      `eigenvalue`, `reference_errors` and `rows`: for each field `errors`, `order`, `flops`, `compile_seconds` and,
      where timed, the fields of `measure.Cost`.

    Raises:
      IncorrectFieldError: naming the field whose order or formula is wrong.
    """
    routes = {"exact": (exact, exact_orders), "interpolated": (interpolated, interpolated_orders)}
    with jax.enable_x64(True):
        widen = lambda x: jnp.asarray(x, jnp.float64 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)  # noqa: E731
        params, batch = jax.tree.map(widen, (dict(model.params), model.batch))
        eigenvalue = largest_eigenvalue(model.loss, params, batch)
        sizes = [step / eigenvalue for step in steps]
        programs = programs_of(model.loss, params, batch, sizes[0], routes)
        _check_formulas(model.loss, params, batch, programs, sizes[0])
        errors: dict[str, list[float]] = {name: [] for name in programs if name != UNIT}
        doubts = []
        for h in sizes:
            expected, doubt = reference(model.loss, h, params, batch)
            doubts.append(doubt)
            for name, found in errors.items():
                actual = _flat(programs[name].compiled(params, jnp.asarray(h, jnp.float64), batch))
                found.append(_distance(actual, expected))
        orders, wrong = {}, []
        for name, found in errors.items():
            claimed = int(name.split(", ")[1])
            orders[name] = float(ir.observed_order(sizes, found)[-1])
            if not abs(orders[name] - claimed) <= ORDER_TOLERANCE:
                wrong.append(f"{name}: order {orders[name]:.2f} where {claimed} is claimed (errors {found})")
        if wrong:
            raise IncorrectFieldError("; ".join(wrong))
        timed = measure.interleave(programs, unit=UNIT, rounds=rounds) if rounds else {}
    whole = programs[UNIT].flops
    rows = {
        name: {
            "errors": errors.get(name),
            "order": orders.get(name),
            "flops": program.flops / whole if program.flops and whole else None,
            "compile_seconds": program.compile_seconds,
            **(timed[name]._asdict() if timed else {}),
        }
        for name, program in programs.items()
    }
    return {"eigenvalue": eigenvalue, "reference_errors": doubts, "rows": rows}


def table(rows: Mapping[str, Mapping[str, Any]], steps: Sequence[float] = STEPS) -> str:
    """One row for each field."""
    header = ["field, order", "CPU", "wall", "FLOPs", "compile s", *(f"error at {s:g}" for s in steps), "order"]
    lines = []
    for name, row in rows.items():
        errors = [f"{e:.1e}" for e in row["errors"]] if row["errors"] else ["-"] * len(steps)
        costs = [measure.number(row.get(clock)) for clock in ("cpu", "wall")]
        compiled = measure.number(row["compile_seconds"], 1)
        # A loop's body is counted once, however often it runs: interpolation reads as one gradient.
        flops = "-" if name.startswith("interpolated") else measure.number(row["flops"])
        lines.append([name, *costs, flops, compiled, *errors, measure.number(row["order"])])
    return measure.markdown(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a field has another order than it claims."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--width",
        type=int,
        default=512,
        help="of the hidden layers; narrow ones are not in the limit of small steps, and refused (default: 512)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timings of each program; 0: errors and orders alone")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.width < 1 or options.rounds < 0:
        parser.error("--width must be at least 1, and --rounds at least 0")
    model = models.mlp((784, options.width, options.width, 10))
    with jax.default_matmul_precision("highest"):
        where = measure.environment("highest")
        try:
            result = costs(model, rounds=options.rounds)
        except IncorrectFieldError as error:
            print(f"fields: {error}", file=sys.stderr)
            return 1
    if options.json:
        print(json.dumps({"environment": where, "rounds": options.rounds, "model": model.title, **result}))
        return 0
    print("  ".join(f"{key} {value}" for key, value in where.items()))
    doubts = " and ".join(f"{doubt:.0e}" for doubt in result["reference_errors"])
    print(f"\n{model.title}, float64, lambda = {result['eigenvalue']:.3g}; errors of the reference: {doubts}.\n")
    print(table(result["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
