"""What one training step costs, in gradients: correct first, then timed side by side.

    python benchmarks/step_cost.py [--model mlp conv transformer] [--rounds N] [--json]

The unit is one step of plain gradient descent on the same model: a gradient and the update.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from implicit_reg import losses
from implicit_reg.methods import METHODS, Method

LEARNING_RATE = 0.05
UNIT, TWIN, GRADIENT = "gd", "gd, compiled again", "gradient alone"
# In float64 a step and its formula differ by round-off. The program that is timed is in float32 (on GPUs perhaps with
# less precise products), and is only to be recognized as the one that was checked.
FLOAT64_TOLERANCE, TIMED_TOLERANCE = 1e-9, 1e-2


class IncorrectStepError(RuntimeError):
    """A step is not what its formula says; nothing is timed."""


class Step(NamedTuple):
    """`init(params) -> state`; `run(loss, params, state, batch) -> (params, state, value)`."""

    init: Callable[[Any], Any]
    run: Callable[..., tuple[Any, Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One program to check and time.

    Attributes:
      name, layer: as in the table.
      hyperparameters: those that are timed.
      make: `(**hyperparameters) -> Step`.
      formula: `(loss, x, h, **hyperparameters) -> x'` on a flat vector, without code of `make`.
      num_steps: how many steps the formula covers.
    """

    name: str
    layer: str
    hyperparameters: Mapping[str, Any]
    make: Callable[..., Step]
    formula: Callable[..., jax.Array]
    num_steps: int = 1


def from_transformation(transformation: optax.GradientTransformation) -> Step:
    """A step with every extra argument that a transformation may ask for."""
    transformation = optax.with_extra_args_support(transformation)

    def run(loss, params, state, batch):
        def value_fn(p):
            return loss(p, batch)

        value, gradient = jax.value_and_grad(value_fn)(params)
        updates, state = transformation.update(gradient, state, params, value=value, grad=gradient, value_fn=value_fn)
        return optax.apply_updates(params, updates), state, value

    return Step(transformation.init, run)


def from_wrapper(wrap: Callable[[Callable], Callable]) -> Step:
    """Gradient descent on a loss made from the loss."""
    optimizer = optax.sgd(LEARNING_RATE)

    def run(loss, params, state, batch):
        value, gradient = jax.value_and_grad(wrap(loss))(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return Step(optimizer.init, run)


def _along(params, scale, direction):
    return jax.tree.map(lambda p, d: p + scale * d, params, direction)


def _penalized_by(product: Callable) -> Callable[..., Step]:
    """Gradient descent with `g + 2 strength product(gradient function, loss, params, g)`."""

    def make(strength: float) -> Step:
        def run(loss, params, state, batch):
            def value_fn(p):
                return loss(p, batch)

            value, gradient = jax.value_and_grad(value_fn)(params)
            total = _along(gradient, 2 * strength, product(value_fn, params, gradient))
            return _along(params, -LEARNING_RATE, total), state, value

        return Step(lambda params: optax.EmptyState(), run)

    return make


def _forward_over_reverse(value_fn, params, gradient):
    return jax.jvp(jax.grad(value_fn), (params,), (gradient,))[1]


def _reverse_over_forward(value_fn, params, gradient):
    return jax.grad(lambda p: jax.jvp(value_fn, (p,), (gradient,))[1])(params)


def _central_difference(value_fn, params, gradient, displacement=0.01):
    ahead, behind = (jax.grad(value_fn)(_along(params, s * displacement, gradient)) for s in (1, -1))
    return jax.tree.map(lambda a, b: (a - b) / (2 * displacement), ahead, behind)


def _reverse_over_reverse(loss, strength):
    """The penalized loss as one writes it first."""

    def penalized(params, *batch):
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        return value + strength * sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))

    return penalized


def _penalty_formula(loss, x, h, strength):
    return x - h * jax.grad(_reverse_over_reverse(loss, strength))(x)


def _forward_formula(loss, x, h, strength):
    gradient = jax.grad(loss)(x)
    return x - h * (gradient + 2 * strength * jax.jvp(jax.grad(loss), (x,), (gradient,))[1])


def _central_formula(loss, x, h, strength):
    g = jax.grad(loss)
    return x - h * (g(x) + strength * (g(x + 0.01 * g(x)) - g(x - 0.01 * g(x))) / 0.01)


# The published formula of this row has a dense Hessian, which no model of this size can hold.
AFFORDABLE = {"gradient-penalty": _penalty_formula}


def _method(row: Method) -> Variant:
    return Variant(
        row.name,
        "transformation",
        row.hyperparameters,
        lambda **hyperparameters: from_transformation(row.build(optax.sgd, LEARNING_RATE, **hyperparameters)),
        AFFORDABLE.get(row.name, row.formula),
        row.num_steps,
    )


def variants(methods: Mapping[str, Method] = METHODS) -> tuple[Variant, ...]:
    """Every method of the table, then the loss wrappers, then other routes to the gradient penalty."""
    penalty = {"strength": 0.01}

    def wrapper(name, wrap, hyperparameters, formula):
        return Variant(
            name, "loss wrapper", hyperparameters, lambda **kw: from_wrapper(lambda l: wrap(l, **kw)), formula
        )

    def comparator(name, make, formula):
        return Variant(f"penalty, {name}", "comparator", penalty, make, formula)

    return (
        *map(_method, methods.values()),
        wrapper("losses.flooded", losses.flooded, {"level": 0.1}, METHODS["flooding"].formula),
        wrapper("losses.gradient_penalized", losses.gradient_penalized, penalty, _penalty_formula),
        comparator(
            "reverse over reverse",
            lambda strength: from_wrapper(lambda loss: _reverse_over_reverse(loss, strength)),
            _forward_formula,
        ),
        comparator("forward over reverse", _penalized_by(_forward_over_reverse), _penalty_formula),
        comparator("reverse over forward", _penalized_by(_reverse_over_forward), _penalty_formula),
        comparator("central difference", _penalized_by(_central_difference), _central_formula),
    )


def _float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _distance(actual, expected) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _cases(variant: Variant, value: float) -> list[Mapping[str, Any]]:
    """The hyperparameters to check: those timed, and levels on both sides of the loss."""
    cases = [variant.hyperparameters]
    if "level" in variant.hyperparameters:
        cases += [{**variant.hyperparameters, "level": value + offset} for offset in (-1.0, 1.0)]
    return cases


def check(model: models.Model, chosen: Sequence[Variant]) -> dict[str, np.ndarray]:
    """Compares the displacement of every variant with its formula in float64.

    Returns:
      The displacements by the formulas, at the hyperparameters that are timed, as flat vectors.

    Raises:
      IncorrectStepError: naming every variant that is wrong, and by how much.
    """
    displacements, wrong = {}, []
    with jax.enable_x64(True):
        params, batch = jax.tree.map(jnp.asarray, (_float64(model.params), _float64(model.batch)))
        x, unravel = ravel_pytree(params)
        value = float(model.loss(params, batch))

        def flat_loss(x):
            return model.loss(unravel(x), batch)

        for variant in chosen:
            for k, hyperparameters in enumerate(_cases(variant, value)):
                step = variant.make(**hyperparameters)
                run = jax.jit(lambda params, state, batch: step.run(model.loss, params, state, batch))
                after, state = params, step.init(params)
                for _ in range(variant.num_steps):
                    after, state, _ = run(after, state, batch)

                # Not compiled: it runs once, and is further from the code that it judges.
                target = variant.formula(flat_loss, x, LEARNING_RATE, **hyperparameters)
                expected = np.asarray(target - x)
                error = _distance(np.asarray(ravel_pytree(after)[0] - x), expected)
                if not error <= FLOAT64_TOLERANCE:
                    wrong.append(f"{variant.name} {dict(hyperparameters)} is {error:.1e} from its formula")
                if k == 0:
                    displacements[variant.name] = expected
    if wrong:
        raise IncorrectStepError(f"on {model.title}: " + "; ".join(wrong))
    return displacements


def build(model: models.Model, chosen: Sequence[Variant], displacements: Mapping[str, np.ndarray]) -> dict:
    """Compiles every variant in the dtypes of the model, runs each once, and recognizes the checked displacement.

    Raises:
      IncorrectStepError: where the program to be timed does something else than the one that was checked.
    """
    programs = {}
    before = np.asarray(ravel_pytree(model.params)[0], np.float64)
    for variant in chosen:
        step = variant.make(**variant.hyperparameters)

        def run(params, state, batch):
            return step.run(model.loss, params, state, batch)

        program = measure.build(run, model.params, step.init(model.params), model.batch)
        params, state, _ = program()
        for _ in range(variant.num_steps - 1):
            params, state, _ = program.compiled(params, state, model.batch)
        moved = np.asarray(ravel_pytree(params)[0], np.float64) - before
        if not (error := _distance(moved, displacements[variant.name])) <= TIMED_TOLERANCE:
            raise IncorrectStepError(f"on {model.title}: the timed program of {variant.name} is off by {error:.1e}")
        programs[variant.name] = program
        if variant.name == UNIT:
            programs[TWIN] = measure.build(run, model.params, step.init(model.params), model.batch)
            programs[GRADIENT] = measure.build(jax.value_and_grad(model.loss), model.params, model.batch)
    return programs


def costs(model: models.Model, *, rounds: int, chosen: Sequence[Variant] | None = None) -> dict[str, dict[str, Any]]:
    """Checks, compiles and times; `rounds=0` leaves the timing out. The row of `gd` is the unit.

    Returns:
      For each program `flops` and `temporary_memory` over the unit's, `compile_seconds` and, where timed, `cpu`,
      `wall`, `cpu_quartiles` and `wall_seconds` (see `measure.Cost`).
    """
    chosen = variants() if chosen is None else chosen
    programs = build(model, chosen, check(model, chosen))
    unit = programs[UNIT]
    timed = measure.interleave(programs, unit=UNIT, rounds=rounds) if rounds else {}

    def over_unit(quantity, whole):
        return quantity / whole if quantity is not None and whole else None

    layers = {variant.name: variant.layer for variant in chosen}
    return {
        name: {
            "layer": layers.get(name, "comparator"),
            "flops": over_unit(program.flops, unit.flops),
            "temporary_memory": over_unit(program.temporary_bytes, unit.temporary_bytes),
            "compile_seconds": program.compile_seconds,
            **(timed[name]._asdict() if timed else {}),
        }
        for name, program in programs.items()
    }


def details(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Everything that was measured on one model."""
    header = ["one step", "layer", "CPU", "quartiles", "wall", "ms", "FLOPs", "memory", "compile s"]
    lines = []
    for name, row in rows.items():
        low, high = row.get("cpu_quartiles", (None, None))
        lines.append(
            [
                name,
                row["layer"],
                measure.number(row.get("cpu")),
                f"{measure.number(low)}-{measure.number(high)}",
                measure.number(row.get("wall")),
                measure.number(1e3 * row["wall_seconds"], 1) if "wall_seconds" in row else "-",
                measure.number(row["flops"]),
                measure.number(row["temporary_memory"], 1),
                measure.number(row["compile_seconds"], 1),
            ]
        )
    return measure.markdown(header, lines)


def summary(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], time: str = "cpu") -> str:
    """One column for each model: measured time over FLOPs, both in steps of gradient descent."""
    names = list(next(iter(tables.values())))
    rows = [
        [name, *(f"{measure.number(t[name].get(time))} / {measure.number(t[name]['flops'])}" for t in tables.values())]
        for name in names
    ]
    return measure.markdown(["one step", *tables], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a step is not what its formula says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    parser.add_argument(
        "--rounds", type=int, default=25, help="timings of each program; 0: correctness and FLOPs alone"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument(
        "--matmul-precision",
        choices=("default", "high", "highest"),
        default="highest",
        help="of float32 products; GPUs and TPUs round the factors in `default` (default: highest)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args(arguments)
    if options.rounds < 0:
        parser.error(f"--rounds must be at least 0, got {options.rounds}")

    say = (lambda *words: None) if options.json else (lambda *words: print(*words, flush=True))
    tables, titles = {}, {}
    with jax.default_matmul_precision(options.matmul_precision):
        where = measure.environment(options.matmul_precision)
        say("  ".join(f"{key} {value}" for key, value in where.items()))
        for name in options.model:
            model = (models.TINY if options.tiny else models.MODELS)[name]()
            titles[name] = model.title
            try:
                tables[name] = costs(model, rounds=options.rounds)
            except IncorrectStepError as error:
                print(f"step_cost: {error}", file=sys.stderr)
                return 1
            say(f"\n{model.title}: all {len(variants())} steps are what their formulas say.")
            if options.rounds:
                twin = tables[name][TWIN]
                say(f"Noise, the same program twice: {twin['cpu']:.3f} by CPU, {twin['wall']:.3f} by wall clock.")
            say("\n" + details(tables[name]))
    if options.json:
        print(json.dumps({"environment": where, "rounds": options.rounds, "models": titles, "costs": tables}))
    elif len(tables) > 1:
        clock = "cpu" if jax.default_backend() == "cpu" else "wall"
        say(f"\nIn steps of gradient descent, {clock} time / FLOPs:\n\n" + summary(tables, clock))
    return 0


if __name__ == "__main__":
    sys.exit(main())
