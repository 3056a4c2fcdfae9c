"""How cost grows with step sizes, runs of a sweep, and minibatches of an epoch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
import optax
from scaling_model import Dimension, Series, ratio, timed, total_bytes

import implicit_reg as ir
from implicit_reg.experiments import run_steps
from implicit_reg.orderings import all_orders, epoch_orders

STEPS, WIDTH, LANES = 50, 32, 32
STEP_SIZES = (1, 4, 16, 64)
MANY = 4  # from here on a program has an axis of step sizes
RUNS, FAR_RUNS = (32, 512, 4096), 1e6  # compilation takes as long as some thousand runs
TINY_RUNS = (32, 128)
EXACT, SAMPLED, SAMPLES = (2, 3, 4, 5, 6), (8, 16, 32, 64), 64
ROUNDS, SWEEP_ROUNDS = 5, 2  # at most; each sweep compiles its program
AGREEMENT = 1e-4


def small() -> models.Model:
    """Small enough for many of it."""
    return models.mlp((16, 32, 4), batch=32)


def _close(what: str, actual: Any, expected: Any, tolerance: float = AGREEMENT) -> None:
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if not np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(y)):
            raise measure.IncorrectError(f"{what}: the two ways end {np.max(np.abs(x - y)):.1e} apart")


def step_sizes(effort: measure.Effort) -> Dimension:
    """K descents of 50 steps, and K fields, in one program, over one compiled program that is called K times."""
    model, ks = small(), STEP_SIZES[1:2] if effort.tiny else STEP_SIZES
    params, batch = dict(model.params), model.batch

    def descent(h, params, batch):
        return ir.descend(optax.sgd, lambda p: model.loss(p, batch), params, h, STEPS, every=STEPS).params

    def field(h, params, batch):
        phi = ir.update_map(optax.sgd, lambda p: model.loss(p, batch))
        return ir.interpolated_vector_field(phi, 3)(0.0, params, h)

    programs: dict[Any, Callable[[], Any]] = {}
    sizes, compiled = {}, {}
    for name, fn in {"descend": descent, "field": field}.items():
        single = measure.build(fn, jnp.float32(0.1), params, batch)
        for k in ks:
            hs = jnp.asarray(np.linspace(0.01, 0.2, k), jnp.float32)
            whole = measure.build(jax.vmap(fn, (0, None, None)), hs, params, batch)
            sizes[name, k] = len(whole.compiled.as_text().splitlines())
            compiled[name, k] = whole.compile_seconds
            alone = functools.partial(_one_by_one, single, list(hs), params, batch)
            _close(f"{name}, {k} step sizes", whole(), jax.tree.map(lambda *x: np.stack(x), *alone()))
            programs |= {(f"{name}, together", k): whole, (f"{name}, one by one", k): alone}
    traces = _traces(model)
    costs = (
        measure.interleave(programs, unit=("descend, together", MANY), rounds=effort.rounds) if effort.rounds else {}
    )
    far = (1024.0,)
    series = [
        curve
        for name in ("descend, together", "descend, one by one", "field, together", "field, one by one")
        if (curve := timed(name, ks, costs, beyond=far)) is not None
    ]
    rows = []
    for name in ("descend", "field"):
        series.append(Series(f"{name}, compilation", "wall s", ks, tuple(compiled[name, k] for k in ks)))
        last = ks[-1]
        gain = costs and costs[f"{name}, together", last].cpu / costs[f"{name}, one by one", last].cpu
        rows.append(ratio(f"{name}: {last} step sizes in one program", gain or None, "one by one", "cpu"))
        rows.append(
            ratio(
                f"{name}: program for {last} step sizes over one for {MANY}",
                sizes[name, last] / sizes[name, MANY],
                "lines of HLO",
                "count",
                1.0,
            )
        )
    rows.append(measure.Row("descend: traces for 8 step sizes, one after the other", traces, "traces", "count", 1, 1))
    title = f"Step sizes ({STEPS} steps of `descend`, and a field of order 3; {model.title})"
    return Dimension(title, "step sizes", tuple(series), tuple(rows))


def _one_by_one(program: measure.Program, hs: list, params: Any, batch: Any) -> list:
    return jax.block_until_ready([program.compiled(h, params, batch) for h in hs])


def _traces(model: models.Model) -> int:
    """How often `descend` reads a loss, over how often it does for one step size."""
    seen = []

    def loss(params):
        seen.append(None)
        return model.loss(params, model.batch)

    ends = [ir.descend(optax.sgd, loss, dict(model.params), 0.1, 2) for _ in range(2)]
    one = len(seen)
    for h in np.linspace(0.01, 0.2, 7):
        ends.append(ir.descend(optax.sgd, loss, dict(model.params), float(h), 2))
    return 1 + math.ceil((len(seen) - one) / one)


def runs(effort: measure.Effort) -> Dimension:
    """`sweep` from the call to the result, its compilation included."""
    model = small()
    numbers = TINY_RUNS if effort.tiny else RUNS

    def fn(key, h):
        params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), dict(model.params))
        steps = run_steps(
            optax.sgd(h),
            model.loss,
            params,
            lambda n: (model.batch,),
            STEPS,
            every=STEPS,
            observe=lambda p, state: model.loss(p, model.batch),
        )
        return {"loss": steps.observed, "first_bad_step": steps.first_bad_step}

    def call(n):
        return ir.sweep(fn, {"seed": range(n // 4), "h": [0.05, 0.1, 0.2, 0.3]}, key=jax.random.key(0), width=WIDTH)

    few, many = call(numbers[0]), call(numbers[1])
    if few["loss"].tobytes() != many["loss"][: numbers[0]].tobytes():
        raise measure.IncorrectError("runs: a run depends on how many there are beside it")
    programs = {("sweep", n): functools.partial(call, n) for n in numbers}
    rounds = min(effort.rounds, SWEEP_ROUNDS)
    costs = measure.interleave(programs, unit=("sweep", numbers[0]), rounds=rounds) if rounds else {}
    curve = timed("sweep", numbers, costs, beyond=(1e4, FAR_RUNS))
    result = float(sum(many[path].nbytes for path in many.leaves) / numbers[1])
    series, rows = [] if curve is None else [curve], []
    last = numbers[-1]
    per_run = curve and (curve.model(FAR_RUNS) / FAR_RUNS) / (curve.at(last) / last)
    note = "read from the model; compilation is shared by more"
    rows.append(ratio(f"per run, 10^6 over {last}", per_run, f"run of {last}", "cpu", 1.0, note))
    rows.append(ratio("memory of the results", result, "bytes a run", "bytes"))
    if not effort.tiny:
        keys, h = jax.random.split(jax.random.key(0), WIDTH), jnp.full(WIDTH, 0.1, jnp.float32)
        lanes = total_bytes(measure.build(jax.vmap(fn), keys, h).compiled)
        x = (*map(float, numbers), FAR_RUNS)
        series.append(Series("program and results", "bytes", x, tuple(lanes + result * n for n in x)))
        rows.append(
            ratio("memory of the program", lanes / 2**20, "MiB", "bytes", None, f"{WIDTH} lanes, however many runs")
        )
    title = f"Runs of a sweep ({STEPS} steps each, {WIDTH} lanes; {model.title})"
    return Dimension(title, "runs", tuple(series), tuple(rows))


def minibatches(effort: measure.Effort) -> Dimension:
    """The mean over all orders of an epoch, over all orders one by one, and a sample of 64 with its error bar."""
    exact, sampled = (EXACT[1:2], SAMPLED[:1]) if effort.tiny else (EXACT, SAMPLED)
    most = max(sampled)
    rng = np.random.default_rng(0)
    model = small()
    x = jnp.asarray(rng.standard_normal((most, 8, 16)), jnp.float32)
    labels = jnp.asarray(rng.integers(4, size=(most, 8)), jnp.int32)
    params, h, key = dict(model.params), 0.1, jax.random.key(0)

    def loss(p, k):
        return model.loss(p, (x[k], labels[k]))

    mean = functools.partial(ir.mean_epoch, optax.sgd, loss, h=h, lanes=LANES)
    shared, alone, drawn = "all orders, shared beginnings", "all orders, one by one", f"{SAMPLES} orders"
    programs: dict[Any, measure.Program] = {}
    for m in exact:
        programs[shared, m] = measure.build(lambda p: mean(m, p).displacement, params)
        programs[alone, m] = measure.build(
            functools.partial(_enumerated, loss, h), params, jnp.asarray(epoch_orders(m))
        )
        _close(f"{m} minibatches", programs[shared, m](), programs[alone, m]())
    for m in sampled:
        programs[drawn, m] = measure.build(lambda p: mean(m, p, num_samples=SAMPLES, key=key)[1:3], params)
    last = exact[-1]
    few = mean(last, params, num_samples=SAMPLES, key=key)
    z = _worst_z(few, programs[shared, last](), last)
    rounds = min(effort.rounds, ROUNDS)
    costs = measure.interleave(programs, unit=(shared, last), rounds=rounds) if rounds else {}
    steps = {
        shared: {m: float(all_orders(m, LANES).batches.size) for m in exact},
        alone: {m: float(m * math.factorial(m)) for m in exact},
        drawn: {m: float(m * SAMPLES) for m in sampled},
    }
    least = {m: float(sum(math.perm(m, k) for k in range(1, m + 1))) for m in exact}
    series, rows = [], []
    for name, counted in steps.items():
        limit = tuple(least.values()) if name == shared else ()
        series.append(Series(f"{name}, steps", "steps", tuple(counted), tuple(counted.values()), limit=limit))
        if costs:
            y = tuple(costs[name, m].cpu_seconds for m in counted)
            series.append(Series(name, "cpu s", tuple(counted), y))
            first, *_, end = counted
            growth = (y[-1] / counted[end]) / (y[0] / counted[first])
            rows.append(ratio(f"{name}: one step, m = {end} over m = {first}", growth, f"m = {first}", "cpu", 1.0))
    errors = tuple(_relative_error(*programs[drawn, m]()) for m in sampled)
    series.append(Series(f"{drawn}, standard error over the displacement", "of 1", sampled, errors))
    single = steps[alone][last]
    rows += [
        ratio(
            f"{shared}, m = {last}: steps", steps[shared][last], "steps", "count", least[last],
            f"the limit shares every beginning; one by one it is {single:g}",
        ),
        ratio(
            f"{shared}, m = {last}", costs[shared, last].cpu / costs[alone, last].cpu if costs else None,
            "one by one", "cpu", steps[shared][last] / single,
        ),
        ratio(f"{drawn}: worst entry, m = {last}", z, "standard errors", "count", None, "off the exact mean"),
    ]  # fmt: skip
    if not effort.tiny:
        many = _relative_error(*mean(last, params, num_samples=16 * SAMPLES, key=key)[1:3])
        pairs = _relative_error(*few[1:3])
        bar = _single_error(loss, params, h, last)
        rows += [
            ratio("error bar of 16 times as many orders", many / pairs, "error bar", "count", 0.25),
            ratio("error bar of reverse pairs", pairs / bar, "single orders", "count", None, f"equally many, h = {h}"),
        ]
    title = f"Minibatches of an epoch ({model.title.partition(',')[0]}, 8 examples each)"
    return Dimension(title, "minibatches", tuple(series), tuple(rows))


def _ends(loss: Callable, h: float, params: Any, orders: jax.Array) -> Any:
    def end(order):
        def step(p, k):
            return jax.tree.map(lambda x, g: x - h * g, p, jax.grad(loss)(p, k)), None

        return jax.tree.map(jnp.subtract, jax.lax.scan(step, params, order)[0], params)

    return jax.lax.map(end, orders, batch_size=LANES)


def _enumerated(loss: Callable, h: float, params: Any, orders: jax.Array) -> Any:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), _ends(loss, h, params, orders))


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def _relative_error(displacement: Any, error: Any) -> float:
    return float(np.linalg.norm(_flat(error)) / np.linalg.norm(_flat(displacement)))


def _single_error(loss: Callable, params: Any, h: float, m: int) -> float:
    """The error bar of `SAMPLES` independent orders."""
    ends = jax.jit(functools.partial(_ends, loss, h))(params, jnp.asarray(epoch_orders(m)))
    spread = np.sqrt(sum(np.sum(np.var(np.asarray(x, np.float64), axis=0)) for x in jax.tree.leaves(ends)))
    return float(spread / math.sqrt(SAMPLES) / np.linalg.norm(_flat(jax.tree.map(lambda x: x.mean(axis=0), ends))))


def _worst_z(drawn: Any, exact: Any, m: int) -> float:
    """How far a sample is off the exact mean, in its own standard errors, at the worst entry."""
    off, error = _flat(drawn.displacement) - _flat(exact), _flat(drawn.standard_error)
    seen = error > 1e-6 * np.max(np.abs(_flat(exact)))  # below, round-off is as large
    worst = float(np.max(np.abs(off[seen]) / error[seen]))
    if not worst <= 8:  # a t distribution of 31 degrees, 700 entries: beyond it one sample in a million
        raise measure.IncorrectError(f"{m} minibatches: a sample is {worst:.1f} standard errors off the exact mean")
    return worst
