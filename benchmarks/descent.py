"""Many steps of gradient descent in one program: `descend` and a scan that is written by hand, on three problems.

A step of `descend` is compared with the same step in a bare scan that keeps the same records, in runs so long that the
call itself does not count; what a call costs beyond its steps is measured alone, in dispatches of a jitted function.
Beside them stand the loops that people write in Python. Trajectories are compared before anything is timed, and the
evaluations of an observer are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax

import implicit_reg as ir

TARGET = 1.03
AGREEMENT = 1e-4  # of float32 trajectories whose roundings may be another's
UNIT = "bare scan"
OUTSIDE = "a call makes an axis of times in float64 on the host, and gets its records in pages that are new to it"


class Case(NamedTuple):
    """A loss with its data inside, a start, a step size, and how many steps: recorded rarely, always, and in Python."""

    title: str
    loss: Callable[[Any], jax.Array]
    params: Any
    h: float
    rare: tuple[int, int]  # steps, and the distance of two records
    always: int
    python: int


def _tiny() -> Case:
    matrix = np.array([[1.0, 0.2], [0.2, 2.0]], np.float32)
    loss = lambda x: 0.5 * x @ matrix @ x + 0.1 * jnp.sum(x**4)  # noqa: E731
    return Case("2 parameters", loss, jnp.array([1.0, 0.5]), 0.01, (4_000_000, 10_000), 1_000_000, 200)


def _network(title: str, sizes: tuple[int, ...], batch: int, **lengths: Any) -> Case:
    model = models.mlp(sizes, batch)
    data = jax.tree.map(np.asarray, model.batch)
    return Case(title, lambda params: model.loss(params, data), dict(model.params), 0.01, **lengths)


CASES: Mapping[str, Callable[[], Case]] = {
    "tiny": _tiny,
    "small": lambda: _network("MLP 2-16-16-2", (2, 16, 16, 2), 32, rare=(4000, 400), always=2000, python=50),
    "mlp": lambda: _network("MLP 784-512-512-10", (784, 512, 512, 10), 128, rare=(20, 10), always=10, python=5),
}
TOY: Mapping[str, Callable[[], Case]] = {
    "tiny": lambda: _tiny()._replace(rare=(20, 5), always=8, python=2),
    "small": lambda: _network("MLP 2-4-2", (2, 4, 2), 8, rare=(20, 5), always=8, python=2),
}


def one_step(case: Case) -> Callable[[Any], tuple[Any, jax.Array]]:
    """Parameters after a step, and the loss before it."""
    optimizer = optax.sgd(case.h)
    state = optimizer.init(case.params)

    def step(params):
        value, gradient = jax.value_and_grad(case.loss)(params)
        updates, _ = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), value

    return step


def bare_scan(case: Case, num_steps: int, every: int) -> Callable[[Any], Any]:
    """What one writes for one problem: records without the start, no flags, no observer, all lengths static."""
    step = one_step(case)

    def record(params, _):
        if every == 1:
            params = step(params)[0]
        else:
            params = jax.lax.fori_loop(0, every, lambda _, params: step(params)[0], params)
        return params, params

    return lambda params: jax.lax.scan(record, params, length=num_steps // every)[1]


def python_loop(case: Case, *, look: bool) -> Callable[[], Any]:
    """A jitted step in a loop of Python; with `look` every loss is read as a number."""
    step = jax.jit(one_step(case))

    def run():
        params, losses = case.params, []
        for _ in range(case.python):
            params, value = step(params)
            losses.append(float(value) if look else value)
        return jax.block_until_ready((params, losses))

    return run


def check(name: str, found: Any, expected: Any, start: Any) -> None:
    """The records of `descend` are the start and those of the bare scan.

    Raises:
      measure.IncorrectError: where they are not.
    """
    for ours, theirs, first in zip(*map(jax.tree.leaves, (found, expected, start)), strict=True):
        wanted = np.concatenate([np.asarray(first)[None], np.asarray(theirs)])
        if not (np.shape(ours) == wanted.shape and np.allclose(ours, wanted, rtol=AGREEMENT, atol=AGREEMENT)):
            raise measure.IncorrectError(f"{name}: descend and the bare scan visit other parameters")


def observations(case: Case, descend: Callable) -> tuple[int, int]:
    """How often an observer was asked, and how many records there are."""
    calls: list[Any] = []

    def observe(params):
        jax.debug.callback(calls.append, jax.tree.leaves(params)[0].ravel()[0])
        return case.loss(params)

    num_steps, every = 20, 5
    run = descend(optax.sgd, case.loss, case.params, case.h, num_steps, every=every, observe=observe)
    jax.block_until_ready(run.observed)
    jax.effects_barrier()
    return len(calls), num_steps // every + 1


def temporary_growth(case: Case, descend: Callable) -> float | None:
    """Temporary memory of 40 steps over that of 4, where only the ends are kept; None where the compiler is silent."""

    def program(num_steps):
        return measure.build(
            lambda params: descend(optax.sgd, case.loss, params, case.h, num_steps, every=num_steps).params, case.params
        ).temporary_bytes

    few, many = program(4), program(40)
    return many / few if few and many is not None else None


def study(name: str, case: Case, rounds: int, descend: Callable) -> tuple[list[measure.Row], dict[str, Any]]:
    """Rows of one problem, and all its costs."""
    rows: list[measure.Row] = []
    data: dict[str, Any] = {"title": case.title}
    ways = {"recorded at every step": (case.always, 1), "recorded rarely": case.rare}
    for way, (num_steps, every) in ways.items():
        bare = measure.build(bare_scan(case, num_steps, every), case.params)

        def ours(num_steps=num_steps, every=every):
            return jax.block_until_ready(descend(optax.sgd, case.loss, case.params, case.h, num_steps, every=every))

        check(f"{name}, {way}", ours().params, bare(), case.params)
        inside = measure.build(lambda params, h, n=num_steps, k=every: _records(descend, case, params, h, n, k),
                               case.params, jnp.float32(case.h))  # fmt: skip
        programs = {UNIT: bare, "inside descend": inside, "descend, call and all": ours}
        if every > 1:
            programs["Python loop"] = python_loop(case, look=False)
            programs["Python loop, each loss read"] = python_loop(case, look=True)
        costs = measure.interleave(programs, unit=UNIT, rounds=rounds) if rounds else {}
        data[way] = {"steps": num_steps, "every": every, "costs": {k: c._asdict() for k, c in costs.items()}}
        for program in list(programs)[1:]:
            scale = num_steps / case.python if program.startswith("Python") else 1.0
            cost = costs.get(program)
            aimed = program == "inside descend" or (program.startswith("descend") and every > 1)
            rows.append(
                measure.Row(
                    f"{name}, {way}: a step, {program}",
                    cost and scale * cost.cpu,
                    "step of a bare scan",
                    "cpu",
                    limit=1.0,
                    target=TARGET if aimed else None,
                    spread=cost and (scale * cost.cpu_quartiles[0], scale * cost.cpu_quartiles[1]),
                    note=("" if aimed or every > 1 else OUTSIDE) if rounds else "not timed",
                )
            )
    asked, records = observations(case, descend)
    rows.append(measure.Row(f"{name}: observer, calls", asked / records, "records", "count", limit=1.0, target=1.0))
    rows.append(
        measure.Row(
            f"{name}: temporary memory, ten times the steps", temporary_growth(case, descend), "once", "bytes", 1.0, 1.0
        )
    )
    if asked != records:
        raise measure.IncorrectError(f"{name}: the observer was asked {asked} times for {records} records")
    return rows, data


def _records(descend: Callable, case: Case, params: Any, h: jax.Array, num_steps: int, every: int) -> tuple[Any, Any]:
    run = descend(optax.sgd, case.loss, params, h, num_steps, every=every)
    return run.params, run.finite


def call(case: Case, rounds: int, descend: Callable) -> tuple[measure.Row, dict[str, Any]]:
    """What a second call of one step costs, beside one dispatch of a jitted function."""
    nothing = jax.jit(lambda x: x + 1)
    x = jnp.zeros(2)
    programs = {
        "dispatch": lambda: jax.block_until_ready(nothing(x)),
        "descend": lambda: jax.block_until_ready(descend(optax.sgd, case.loss, case.params, case.h, 1)),
    }
    costs = measure.interleave(programs, unit="dispatch", rounds=rounds) if rounds else {}
    cost = costs.get("descend")
    row = measure.Row(
        "a call of one step", cost and cost.cpu, "dispatch", "cpu", spread=cost and cost.cpu_quartiles,
        note="" if rounds else "not timed",
    )  # fmt: skip
    return row, {name: c._asdict() for name, c in costs.items()}


def run(effort: measure.Effort, *names: str, descend: Callable = ir.descend) -> measure.Report:
    """All problems, or those named.

    Raises:
      measure.IncorrectError: where `descend` is not the scan, or asks an observer more often than it records.
    """
    rows: list[measure.Row] = []
    data: dict[str, Any] = {}
    cases = TOY if effort.tiny else CASES
    for name, make in cases.items():
        if names and name not in names:
            continue
        found, data[name] = study(name, make(), effort.rounds, descend)
        rows += found
    row, data["call"] = call(cases["tiny"](), effort.rounds, descend)
    rows.append(row)
    lines = [[r.work, measure.number(r.value, 3), f"{r.unit} ({r.clock})"] for r in rows]
    return measure.Report(tuple(rows), measure.markdown(["work", "measured", "unit"], lines), data)
