"""One process of the processes that `scaling_machines.processes` starts: a sweep, timed; prints JSON.

python benchmarks/scaling_worker.py ADDRESS NUM_PROCESSES PROCESS_ID NUM_RUNS REPEATS
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import NamedTuple

import jax

import implicit_reg as ir
from implicit_reg.experiments import sweep_mesh

WIDTH, STEPS = 8, 4000


def some_run(key: jax.Array, h: float) -> jax.Array:
    """Gradient descent on a random quartic of 64 variables."""
    a, b = jax.random.split(key)
    matrix = jax.random.normal(a, (64, 64)) / 8

    def loss(x):
        y = matrix @ x
        return jax.numpy.sum(y**2) / 2 + jax.numpy.sum(x**4) / 40

    step = lambda _, x: x - h * jax.grad(loss)(x)  # noqa: E731
    return loss(jax.lax.fori_loop(0, STEPS, step, jax.random.normal(b, (64,))))


class Times(NamedTuple):
    """Of a sweep: wall seconds from call to result, wall and CPU seconds of a run once all is compiled; its results."""

    whole: float
    wall: float
    cpu: float
    digest: str


def timed_sweep(num_runs: int, num_devices: int | None = None) -> Times:
    """A sweep of several calls; a run's seconds are what lies between the end of the first call and the last."""
    ends: list[tuple[int, float, float]] = []
    start = time.perf_counter()
    runs = ir.sweep(
        some_run,
        {"seed": range(num_runs // 2), "h": [0.01, 0.05]},
        key=jax.random.key(0),
        width=WIDTH,
        mesh=sweep_mesh(num_devices),
        report=lambda progress: ends.append((progress.done, time.perf_counter(), time.process_time())),
    )
    whole = time.perf_counter() - start
    first, last = next(end for end in ends if end[0]), ends[-1]
    wall, cpu = ((b - a) / (last[0] - first[0]) for a, b in zip(first[1:], last[1:], strict=True))
    return Times(whole, wall, cpu, hashlib.sha256(runs["value"].tobytes()).hexdigest())


def main(address: str, num_processes: str, process_id: str, num_runs: str, repeats: str) -> None:
    """The command line."""
    if int(num_processes) > 1:
        jax.distributed.initialize(address, int(num_processes), int(process_id))
    found = [timed_sweep(int(num_runs))._asdict() for _ in range(int(repeats))]
    if int(process_id) == 0:
        print(json.dumps(found), flush=True)
    if int(num_processes) > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
