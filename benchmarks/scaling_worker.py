"""One process of the processes that `scaling_machines.processes` starts: a sweep of two lengths, timed; prints JSON.

python benchmarks/scaling_worker.py ADDRESS NUM_PROCESSES PROCESS_ID SHORT LONG REPEATS
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

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


def timed_sweep(num_runs: int, num_devices: int | None = None) -> tuple[float, str]:
    """Seconds of the whole sweep, its compilation included, and a hash of its results."""
    start = time.perf_counter()
    runs = ir.sweep(
        some_run,
        {"seed": range(num_runs // 2), "h": [0.01, 0.05]},
        key=jax.random.key(0),
        width=WIDTH,
        mesh=sweep_mesh(num_devices),
    )
    return time.perf_counter() - start, hashlib.sha256(runs["value"].tobytes()).hexdigest()


def main(address: str, num_processes: str, process_id: str, short: str, long: str, repeats: str) -> None:
    """The command line."""
    if int(num_processes) > 1:
        jax.distributed.initialize(address, int(num_processes), int(process_id))
    found: dict[str, list[float]] = {short: [], long: []}
    hashes = {}
    for _ in range(int(repeats)):
        for n in (short, long):
            seconds, hashes[n] = timed_sweep(int(n))
            found[n].append(seconds)
    if int(process_id) == 0:
        print(json.dumps({"seconds": found, "hashes": hashes}), flush=True)
    if int(num_processes) > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
