"""256 small runs in one program, against what else one would write.

A tanh network 8-16-1 under momentum on shuffled minibatches, 200 steps, for 8 step sizes, 8 momenta and 4 seeds. The
unit is a loop over the runs of one jitted scan. A Python loop over jitted steps is timed on a few runs and scaled; in
torch all runs go side by side through `torch.func.vmap`, in a Python loop over its steps. Losses are compared before
anything is timed. What a whole `sweep` costs beside its calls, compiling included, is in seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
from sweep_work import KEY, TINY, WIDTHS, Work, parts_of, training

from implicit_reg.descent import optimizer_step
from implicit_reg.experiments import sweep
from implicit_reg.experiments.axes import Runs, make_runs
from implicit_reg.experiments.lanes import Lanes

SCANS_TARGET, LOOP_TARGET = 0.70, 0.17
SAMPLED, AGREEMENT = 4, 2e-4
ROUNDS = 9  # at most; a round takes seconds
UNIT, LOOP = "jitted scans", "Python loop"


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
    """One program against one run after the other; `fn_of` makes what is swept.

    Raises:
      measure.IncorrectError: a way to run all does not end with the losses of the sequential scans.
    """
    work = TINY if effort.tiny else Work()
    fn, runs = fn_of(work), make_runs(work.axes)
    num = len(runs)
    widths, middle = [width for width in WIDTHS if width <= num], min(32, num)
    sample = list(range(0, num, max(1, num // SAMPLED)))[:SAMPLED]
    lanes, compile_seconds = _compiled(fn, runs, widths)
    programs = _others(effort.tiny, work, runs, sample)
    swept = lambda **place: sweep(fn, work.axes, key=KEY, width=middle, **place)  # noqa: E731
    wanted = programs[UNIT]()
    for name, program in (lanes | programs).items():
        _agree(name, program(), wanted[sample] if name == LOOP else wanted)
    _agree("sweep", swept()["loss"][:, -1], wanted)

    costs, overhead = measure.Costs(), {}
    if effort.rounds:
        costs = measure.interleave(lanes | programs, unit=UNIT, rounds=min(effort.rounds, ROUNDS))
        overhead = _overhead(swept, lanes[f"width {middle}"], rounds=3)

    def row(work, name, note="", **more):
        cost = costs.get(name)
        spread = cost and cost.cpu_quartiles
        return measure.Row(work, cost and cost.cpu, f"sequential {UNIT}", "cpu", spread=spread, note=note, **more)

    made = [
        row(f"{num} runs, width {width}", f"width {width}", target=SCANS_TARGET if width == 32 else None)
        for width in widths
    ]
    share = len(sample) / num
    value, spread = costs.over(f"width {middle}", LOOP) if costs else (None, None)
    made.append(
        measure.Row(
            f"{num} runs, width {middle}, over a loop of jitted steps",
            value and share * value,
            "Python loop of jitted steps",
            "cpu",
            target=LOOP_TARGET,
            spread=spread and (share * spread[0], share * spread[1]),
            note=f"the loop: {len(sample)} runs, scaled",
        )
    )
    made.append(row("lax.map, batches of 32", "lax.map", "not in the fast form" if effort.tiny else ""))
    made.append(row("torch, vmap over all runs", "torch", "" if "torch" in programs else "torch is not installed"))
    made += [
        measure.Row(f"a sweep beside its calls, {where}", seconds, "s", "cpu") for where, seconds in overhead.items()
    ]
    data = {"costs": {k: v._asdict() for k, v in costs.items()}, "compile_seconds": compile_seconds}
    table = [
        [str(w), measure.number(compile_seconds[w], 1),
         measure.number(costs[f"width {w}"].wall_seconds if costs else None, 3)]
        for w in widths
    ]  # fmt: skip
    details = measure.markdown(["width", "compile s", "wall s"], table)
    return measure.Report(tuple(made), details, data | {"overhead_seconds": overhead})


def _compiled(
    fn: Callable[..., Any], runs: Runs, widths: Sequence[int]
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[int, float]]:
    """The last losses of all runs in lanes, by width, and the seconds of each compilation."""
    num, calls, seconds = len(runs), {}, {}
    for width in widths:
        began = time.perf_counter()
        program = Lanes(fn, runs, 0, KEY, width, None)
        program.prepare([range(width)])
        seconds[width] = time.perf_counter() - began

        def call(width=width, program=program):
            blocks = [program([range(at, min(at + width, num))]) for at in range(0, num, width)]
            return np.concatenate([block["loss"][:, -1] for block in blocks])

        calls[f"width {width}"] = call
    return calls, seconds


def _others(tiny: bool, work: Work, runs: Runs, sample: Sequence[int]) -> dict[str, Callable[[], np.ndarray]]:
    """What else one would write; the last losses of all runs, of the loop those of a sample."""
    num = len(runs)
    rows = [runs.settings[row] for row in range(num)]
    columns = tuple(
        np.array([row[name] for row in rows], kind)
        for name, kind in (("seed", np.uint32), ("h", np.float32), ("momentum", np.float32))
    )

    def one(seed, h, momentum):
        return training(work)(jax.random.fold_in(KEY, seed), h=h, momentum=momentum)["loss"][-1]

    scan = jax.jit(one).lower(*(column[0] for column in columns)).compile()
    loop = python_loop(work)
    found: dict[str, Callable[[], np.ndarray]] = {
        UNIT: lambda: np.array([scan(*(column[k] for column in columns)) for k in range(num)]),
        LOOP: lambda: np.array([loop(*(column[k] for column in columns)) for k in sample]),
    }
    if not tiny:
        found["lax.map"] = measure.build(lambda *c: jax.lax.map(lambda run: one(*run), c, batch_size=32), *columns)
    if (torch := measure.peer("torch")) is not None:
        found["torch"] = torch_loop(work, torch, runs)
    return found


def _overhead(swept: Callable[..., Any], calls: Callable[[], Any], rounds: int) -> dict[str, float]:
    """CPU seconds of a whole sweep, tracing and compiling included, over those of its calls alone."""
    found: dict[str, list[float]] = {}
    for k in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            kinds = {"compiling": swept, "compiling, folder": lambda folder=folder: swept(folder=f"{folder}/runs")}
            alone = _cpu_seconds(calls)
            # The second finds caches as the first left them: each is second in its turn.
            for where in list(kinds)[:: 1 if k % 2 else -1]:
                found.setdefault(where, []).append(_cpu_seconds(kinds[where]) - alone)
    return {where: float(np.median(values)) for where, values in sorted(found.items())}


def _cpu_seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began
