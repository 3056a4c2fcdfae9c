"""256 small runs in one program, against what else one would write, and the memory of a sweep against its formula.

A tanh network 8-16-1 under momentum on shuffled minibatches, 200 steps, for 8 step sizes, 8 momenta and 4 seeds. The
unit is a loop over the runs of one jitted scan. A Python loop over jitted steps is timed on a few runs and scaled; in
torch all runs go side by side through `torch.func.vmap`, in a Python loop over its steps. Losses are compared before
anything is timed. What a whole `sweep` costs beside its calls, compiling included, is in seconds.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from implicit_reg.descent import optimizer_step
from implicit_reg.experiments import estimate_memory, run_steps, shuffled_batches, sweep
from implicit_reg.experiments.axes import Runs, make_runs
from implicit_reg.experiments.lanes import Lanes

SCANS_TARGET, LOOP_TARGET = 0.70, 0.17
KEY = jax.random.key(0)
WIDTHS, SAMPLED, AGREEMENT = (8, 32, 64, 256), 4, 2e-4
RSS_FACTOR = 1.5  # of the estimate: the allocator keeps what it had


class Work(NamedTuple):
    """A network of one hidden layer on random data, how it is trained, and the grid of the runs."""

    features: int = 8
    hidden: int = 16
    examples: int = 64
    batch: int = 16
    steps: int = 200
    every: int = 50
    axes: dict[str, Any] = {  # noqa: RUF012 (never changed)
        "h": [0.01 * 1.4**k for k in range(8)],
        "momentum": [0.1 * k for k in range(8)],
        "seed": range(4),
    }


TINY = Work(steps=20, every=10, axes={"h": [0.01, 0.1], "momentum": [0.0, 0.9], "seed": range(2)})


class Parts(NamedTuple):
    """A run taken apart: what the Python loops need."""

    data: tuple[jax.Array, jax.Array]
    start: Callable[[jax.Array], tuple[dict[str, jax.Array], Callable[[Any], jax.Array]]]
    loss: Callable[..., jax.Array]


def parts_of(work: Work) -> Parts:
    """Data, start and loss."""
    x = jax.random.normal(jax.random.key(1), (work.examples, work.features), jnp.float32)
    y = jnp.sin(x.sum(1))

    def start(key):
        a, b, order = jax.random.split(key, 3)
        params = {
            "a": jax.random.normal(a, (work.features, work.hidden), jnp.float32) / work.features**0.5,
            "b": jax.random.normal(b, (work.hidden,), jnp.float32) / work.hidden**0.5,
            "c": jnp.zeros(work.hidden, jnp.float32),
        }
        return params, shuffled_batches(order, work.examples, work.batch)

    def loss(p, rows):
        return jnp.mean((jnp.tanh(x[rows] @ p["a"] + p["c"]) @ p["b"] - y[rows]) ** 2)

    return Parts((x, y), start, loss)


def training(work: Work, steps: Callable[..., Any] = run_steps) -> Callable[..., dict[str, jax.Array]]:
    """A run, as `sweep` wants it."""
    _, start, loss = parts_of(work)
    everything = jnp.arange(work.examples, dtype=jnp.int32)

    def fn(key, h, momentum):
        params, batch = start(key)
        run = steps(
            optax.sgd(h, momentum), loss, params, lambda n: (batch(n),), work.steps,
            every=work.every, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "first_bad_step": run.first_bad_step}

    return fn


def python_loop(work: Work) -> Callable[[int, float, float], float]:
    """The loss after the last step of one run, by a Python loop over a jitted step."""
    _, start, loss = parts_of(work)
    prepared = jax.jit(lambda seed: start(jax.random.fold_in(KEY, seed))[0])

    @jax.jit
    def step(params, state, n, seed, h, momentum):
        batch = start(jax.random.fold_in(KEY, seed))[1]
        return optimizer_step(optax.sgd(h, momentum), loss, params, state, (batch(n),))

    whole = jax.jit(lambda params: loss(params, jnp.arange(work.examples, dtype=jnp.int32)))

    def run(seed, h, momentum):
        params = prepared(np.uint32(seed))
        state = optax.sgd(h, momentum).init(params)
        # On the device once, so that a step of the loop transfers its number alone.
        given = jnp.asarray(seed, jnp.uint32), jnp.asarray(h, jnp.float32), jnp.asarray(momentum, jnp.float32)
        for n in range(work.steps):
            params, state = step(params, state, np.int32(n), *given)
        return float(whole(params))

    return run


def torch_loop(work: Work, torch: Any, runs: Runs) -> Callable[[], np.ndarray]:
    """The last losses of all runs, side by side by `torch.func.vmap`, a Python loop over its steps."""
    (x, y), start, _ = parts_of(work)
    x, y = torch.tensor(np.array(x)), torch.tensor(np.array(y))
    rows = range(len(runs))
    prepared = jax.jit(
        jax.vmap(
            lambda seed: (lambda p, batch: (p, jax.vmap(batch)(jnp.arange(work.steps))))(
                *start(jax.random.fold_in(KEY, seed))
            )
        )
    )
    params, batches = prepared(np.array([runs.seed(row) for row in rows], np.uint32))
    params = {name: torch.tensor(np.array(leaf)) for name, leaf in params.items()}
    batches = torch.tensor(np.array(batches), dtype=torch.int64)
    h, momentum = (torch.tensor([runs.settings[row][name] for row in rows]) for name in ("h", "momentum"))

    def loss(p, rows):
        return torch.mean((torch.tanh(x[rows] @ p["a"] + p["c"]) @ p["b"] - y[rows]) ** 2)

    def step(p, trace, rows, h, momentum):
        gradient = torch.func.grad(loss)(p, rows)
        trace = {name: gradient[name] + momentum * trace[name] for name in p}
        return {name: p[name] - h * trace[name] for name in p}, trace

    stepped = torch.func.vmap(step)

    def run():
        p, trace = params, {name: torch.zeros_like(leaf) for name, leaf in params.items()}
        for n in range(work.steps):
            p, trace = stepped(p, trace, batches[:, n], h, momentum)
        everything = torch.arange(work.examples)
        return torch.func.vmap(lambda p: loss(p, everything))(p).numpy()

    return run


def _agree(name: str, found: Any, wanted: np.ndarray) -> None:
    error = float(np.max(np.abs(np.asarray(found) - wanted)) / np.max(np.abs(wanted)))
    if not error <= AGREEMENT:
        raise measure.IncorrectError(f"{name} is {error:.1e} from the sequential scans")


def run(effort: measure.Effort, *, fn_of: Callable[[Work], Any] = training) -> measure.Report:
    """One program against one run after the other; `fn_of` makes what is swept."""
    work = TINY if effort.tiny else Work()
    fn, runs = fn_of(work), make_runs(work.axes)
    num = len(runs)
    rows = [runs.settings[row] for row in range(num)]
    columns = tuple(
        np.array([row[name] for row in rows], kind)
        for name, kind in (("seed", np.uint32), ("h", np.float32), ("momentum", np.float32))
    )

    def one(seed, h, momentum):
        return training(work)(jax.random.fold_in(KEY, seed), h=h, momentum=momentum)["loss"][-1]

    scan = jax.jit(one).lower(*(column[0] for column in columns)).compile()
    mapped = None
    if not effort.tiny:
        mapped = measure.build(lambda *c: jax.lax.map(lambda run: one(*run), c, batch_size=32), *columns)
    widths = [width for width in WIDTHS if width <= num]
    programs: dict[int, Lanes] = {}
    compile_seconds, memory = {}, {}
    for width in widths:
        began = time.perf_counter()
        programs[width] = Lanes(fn, runs, 0, KEY, width, None)
        programs[width].prepare([range(width)])
        compile_seconds[width] = time.perf_counter() - began
        memory[width] = programs[width].device_bytes()

    def scans():
        return np.array([scan(*(column[k] for column in columns)) for k in range(num)])

    def in_lanes(width):
        blocks = [programs[width]([range(at, min(at + width, num))]) for at in range(0, num, width)]
        return np.concatenate([block["loss"][:, -1] for block in blocks])

    sample = list(range(0, num, max(1, num // SAMPLED)))[:SAMPLED]
    loop = python_loop(work)

    def looped():
        return np.array([loop(*(column[k] for column in columns)) for k in sample])

    wanted = scans()
    torch = None if effort.tiny else measure.peer("torch")
    beside = None if torch is None else torch_loop(work, torch, runs)
    for width in widths:
        _agree(f"width {width}", in_lanes(width), wanted)
    middle = min(32, num)
    swept = lambda **place: sweep(fn, work.axes, key=KEY, width=middle, **place)  # noqa: E731
    _agree("sweep", swept()["loss"][:, -1], wanted)
    if mapped is not None:
        _agree("lax.map", mapped(), wanted)
    _agree("Python loop", looped(), wanted[sample])
    if beside is not None:
        _agree("torch", beside(), wanted)

    share = len(sample) / num
    costs: dict[str, measure.Cost] = {}
    overhead: dict[str, float] = {}
    if effort.rounds:
        calls = {f"width {width}": (lambda width=width: in_lanes(width)) for width in widths}
        calls |= {"scans": scans, "loop": looped}
        calls |= {name: call for name, call in (("lax.map", mapped), ("torch", beside)) if call is not None}
        costs = measure.interleave(calls, unit="scans", rounds=min(effort.rounds, 9))
        overhead = _overhead(swept, lambda: in_lanes(middle), rounds=3)

    def ratio(name, over=None):
        if name not in costs:
            return None
        scale = 1 / share if name == "loop" else 1
        return scale * costs[name].cpu if over is None else costs[name].cpu * share / costs[over].cpu

    made = [
        measure.Row(
            f"{num} runs, width {width}",
            ratio(f"width {width}"),
            "sequential jitted scans",
            "cpu",
            target=SCANS_TARGET if width == 32 else None,
            spread=costs[f"width {width}"].cpu_quartiles if costs else None,
        )
        for width in widths
    ]
    made.append(
        measure.Row(
            f"{num} runs, width {middle}, over a loop of jitted steps",
            ratio(f"width {middle}", "loop"),
            "Python loop of jitted steps",
            "cpu",
            target=LOOP_TARGET,
            note=f"the loop: {len(sample)} runs, scaled",
        )
    )
    made.append(measure.Row("lax.map, batches of 32", ratio("lax.map"), "sequential jitted scans", "cpu"))
    made.append(
        measure.Row(
            "torch, vmap over all runs",
            ratio("torch"),
            "sequential jitted scans",
            "cpu",
            note="" if beside else "not in the fast form" if effort.tiny else "torch is not installed",
        )
    )
    made.append(
        measure.Row(
            "memory of a call, width 32 over all",
            memory[middle] / memory[widths[-1]] if middle != num else None,
            f"width {widths[-1]}",
            "bytes",
            limit=middle / widths[-1],
        )
    )
    for where, seconds in overhead.items():
        made.append(measure.Row(f"a sweep beside its calls, {where}", seconds, "s", "cpu"))
    grown = None if effort.tiny else resident(64)
    if grown is not None:
        factor = grown["measured"] / grown["estimated"]
        if not 1 / RSS_FACTOR <= factor <= RSS_FACTOR:
            raise measure.IncorrectError(f"a sweep's memory is {factor:.2f} of the estimate ({grown})")
        made.append(measure.Row("peak memory of a process", factor, "estimate_memory", "bytes", limit=1.0))
    data = {"costs": {k: v._asdict() for k, v in costs.items()}, "compile_seconds": compile_seconds}
    data |= {"device_bytes": memory, "overhead_seconds": overhead, "resident": grown}
    table = [
        [str(w), measure.number(compile_seconds[w], 1), f"{memory[w] / 2**20:.2f}",
         measure.number(costs[f"width {w}"].wall_seconds if costs else None, 3)]
        for w in widths
    ]  # fmt: skip
    details = measure.markdown(["width", "compile s", "MiB a call", "wall s"], table)
    return measure.Report(tuple(made), details, data)


def _overhead(swept: Callable[..., Any], calls: Callable[[], Any], rounds: int) -> dict[str, float]:
    """CPU seconds of a whole sweep, tracing and compiling included, over those of its calls alone."""
    found: dict[str, list[float]] = {"compiling": [], "compiling, folder": []}
    for _ in range(rounds):
        used = []
        with tempfile.TemporaryDirectory() as folder:
            for call in (calls, swept, lambda folder=folder: swept(folder=f"{folder}/runs")):
                began = time.process_time()
                call()
                used.append(time.process_time() - began)
        found["compiling"].append(used[1] - used[0])
        found["compiling, folder"].append(used[2] - used[0])
    return {where: float(np.median(values)) for where, values in found.items()}


RESIDENT = """
import json, sys
sys.path[:0] = {path!r}
import sweeps
print(json.dumps(sweeps.grow({width})))
"""


def resident(width: int) -> dict[str, float] | None:
    """`grow` in a process of its own; None where the system does not say what a process holds."""
    if not pathlib.Path("/proc/self/clear_refs").exists():
        return None
    program = RESIDENT.format(path=sys.path[:], width=width)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise measure.IncorrectError(f"the process whose memory is measured failed: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def grow(width: int) -> dict[str, float]:
    """How far the peak of this process rises in a sweep of large arrays whose program it has compiled before."""

    def fn(key, h):
        x = jax.random.normal(key, (2**17,), jnp.float32)
        return {"end": jax.lax.fori_loop(0, 3, lambda n, x: x - h * jnp.flip(x) * jnp.mean(x**2), x)[: 2**15]}

    axes = {"h": [0.01 * k for k in range(1, 2 * width + 1)]}
    memory = estimate_memory(fn, axes, key=KEY, width=width)
    status = pathlib.Path("/proc/self/status")

    def held(line):
        return 1024 * int(next(row for row in status.read_text().splitlines() if row.startswith(line)).split()[1])

    before = {}

    def report(progress):
        if not progress.done:  # compiled, not yet run
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            before["bytes"] = held("VmRSS")

    sweep(fn, axes, key=KEY, width=width, report=report)
    return {"measured": held("VmHWM") - before["bytes"], "estimated": memory.device * memory.devices + memory.host}
