"""What one training step costs, in steps of plain gradient descent: correct first, then timed side by side.

The unit is one step of `optax.sgd` on the same model, a gradient and the update. Every row of the methods table, both
loss wrappers and the other routes to the gradient penalty make their steps in float64 and must meet the published
formula, typed again; the compiled float32 program that is timed must then make the step that was checked. Backstitch
with interval n is timed over n steps in a row, of which one is a backstitch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
from jax.flatten_util import ravel_pytree
from steps_variants import EXACT, GRAM, INTERVALS, LEARNING_RATE, Variant, every, variants

UNIT, TWIN, GRADIENT = "gd", "gd, compiled again", "gradient alone"
# In float64 a step and its formula differ by round-off. The program that is timed is in float32 (on GPUs perhaps with
# less precise products), and is only to be recognized as the one that was checked.
FLOAT64_TOLERANCE, TIMED_TOLERANCE = 1e-9, 1e-2
TWO = ("backstitch", "sam", "sam-unnormalized", "finite-difference-penalty")
PENALTY = {"mlp": (2.5, 2.75), "conv": (2.9, 2.7), "transformer": (3.0, 3.3)}  # FLOPs; target
# Few rows beside wide layers, so that Gram matrices pay, and enough that a pass over the parameters is little.
TINY = {**models.TINY, "mlp": functools.partial(models.mlp, (96, 96, 96, 4), batch=24)}
NOTES = {
    "conv": "FLOPs are no limit here: XLA's convolutions of the gradient are slower than those of the product",
}


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
      measure.IncorrectError: naming every variant that is wrong, and by how much.
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
        raise measure.IncorrectError(f"on {model.title}: " + "; ".join(wrong))
    return displacements


def build(model: models.Model, chosen: Sequence[Variant], displacements: Mapping[str, np.ndarray]) -> dict:
    """Compiles every variant in the dtypes of the model, runs each once, and recognizes the checked displacement.

    Raises:
      measure.IncorrectError: where the program to be timed does something else than the one that was checked.
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
            raise measure.IncorrectError(f"on {model.title}: the timed program of {variant.name} is off by {error:.1e}")
        programs[variant.name] = program
        if variant.name == UNIT:
            programs[TWIN] = measure.build(run, model.params, step.init(model.params), model.batch)
            programs[GRADIENT] = measure.build(jax.value_and_grad(model.loss), model.params, model.batch)
    return programs


def _cycle(program: measure.Program, num_steps: int) -> Callable[[], Any]:
    """Several steps in a row, one call each."""

    def call():
        params, state, batch = program.arguments
        for _ in range(num_steps):
            params, state, value = program.compiled(params, state, batch)
        return jax.block_until_ready((params, state, value))

    return call


def costs(model: models.Model, *, rounds: int, chosen: Sequence[Variant] | None = None) -> dict[str, dict[str, Any]]:
    """Checks, compiles and times; `rounds=0` leaves the timing out. The row of `gd` is the unit.

    Returns:
      For each program `flops` and `temporary_memory` over the unit's, `compile_seconds` and, where timed, `cpu`,
      `wall`, their quartiles and `wall_seconds` (see `measure.Cost`), all of one step.
    """
    chosen = variants() if chosen is None else chosen
    programs = build(model, chosen, check(model, chosen))
    unit = programs[UNIT]
    steps = {variant.name: variant.num_steps for variant in chosen}
    calls = {
        name: _cycle(program, steps[name]) if steps.get(name, 1) > 1 else program for name, program in programs.items()
    }
    timed = measure.interleave(calls, unit=UNIT, rounds=rounds) if rounds else {}

    def over_unit(quantity, whole):
        return quantity / whole if quantity is not None and whole else None

    layers = {variant.name: variant.layer for variant in chosen}
    return {
        name: {
            "layer": layers.get(name, "comparator"),
            "flops": over_unit(program.flops, unit.flops),
            "temporary_memory": over_unit(program.temporary_bytes, unit.temporary_bytes),
            "compile_seconds": program.compile_seconds,
            **(_per_step(timed[name], steps.get(name, 1)) if timed else {}),
        }
        for name, program in programs.items()
    }


def _per_step(cost: measure.Cost, num_steps: int) -> dict[str, Any]:
    return {key: (np.asarray(value) / num_steps).tolist() for key, value in cost._asdict().items()}


def details(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Everything that was measured on one model."""
    header = ["one step", "layer", "CPU", "quartiles", "wall", "ms", "FLOPs", "memory", "compile s"]
    lines = []
    for name, row in table.items():
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


def rows(name: str, table: Mapping[str, Mapping[str, Any]]) -> tuple[measure.Row, ...]:
    """The table against its limits and targets."""
    clock = "cpu" if jax.default_backend() == "cpu" else "wall"

    def row(work, limit=None, target=None, note=""):
        found = table[work]
        value, spread = found.get(clock), found.get(f"{clock}_quartiles")
        note = note if value is not None else "not timed"
        return measure.Row(work, value, "gd step", clock, limit, target, spread=spread and tuple(spread), note=note)

    flops, target = PENALTY[name]
    exact = [row(work, flops, target, NOTES.get(name, "")) for work in EXACT[:2]]
    others = [row(work, flops) for work in EXACT[2:]]
    gram = [row(GRAM, 1.78, 1.9)] if GRAM in table else []
    every_note = "mean of n steps"
    return (
        row(TWIN, 1.0),
        row(GRADIENT),
        *(row(work, 1.0, 1.02) for work in ("flooding", "losses.flooded")),
        *(row(work, 2.0, 2.05) for work in TWO),
        *(row(f"backstitch, interval {n}", 1 + 1 / n, 1.05 * (1 + 1 / n), every_note) for n in INTERVALS),
        *exact,
        *gram,
        *others,
        *_memory(table, [GRAM] if gram else []),
    )


def _memory(table: Mapping[str, Mapping[str, Any]], more: Sequence[str]) -> list[measure.Row]:
    """Temporary memory of our routes over the least among all that fit any model, and of Gram matrices among all."""
    found = {work: table[work]["temporary_memory"] for work in (*EXACT, *more)}
    if None in found.values():
        return []

    def row(work, rivals):
        best = min(rivals, key=found.__getitem__)
        note = f"the best is {best}"
        over = round(found[work] / found[best], 3)  # a strength more or less is some bytes
        return measure.Row(f"memory, {work}", over, "best route", "bytes", 1.0, 1.0, note=note)

    return [*(row(work, EXACT) for work in EXACT[:2]), *(row(work, list(found)) for work in more)]


def run(effort: measure.Effort, name: str) -> measure.Report:
    """The report of one model: "mlp", "conv" or "transformer"."""
    model = (TINY if effort.tiny else models.MODELS)[name]()
    chosen = (*variants(gram=name == "mlp"), *map(every, INTERVALS))
    # What a GPU rounds in its default products would not be recognized as the step that was checked.
    with jax.default_matmul_precision("highest"):
        table = costs(model, rounds=effort.rounds, chosen=chosen)
    title = f"{model.title}: all {len(chosen)} steps are what their formulas say."
    return measure.Report(rows(name, table), f"{title}\n\n{details(table)}", {"model": model.title, "costs": table})
