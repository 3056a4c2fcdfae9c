"""How a sweep gains from devices and processes, and how sharded parameters shrink on each device."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys

import jax
import measure
import models
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scaling_model import Dimension, Series, ratio, total_bytes
from scaling_worker import WIDTH, Times, timed_sweep

from implicit_reg.descent import optimizer_step
from implicit_reg.transforms import add_gradient_penalty

DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2)
RUNS, ROUNDS = 1024, 3


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices(effort: measure.Effort) -> Dimension:
    """One sweep on 1, 2, 4, 8 devices made of one processor; a penalty step with its parameters divided among them."""
    counts = tuple(d for d in (DEVICES[:2] if effort.tiny else DEVICES) if d <= len(jax.devices()))
    num_runs = 4 * WIDTH if effort.tiny else RUNS
    times: dict[int, list[Times]] = {d: [] for d in counts}
    for _ in range(1 if effort.tiny else max(1, min(effort.rounds, ROUNDS))):
        for d in counts:
            times[d].append(timed_sweep(num_runs, d))
    hashes = {d: {t.digest for t in found} for d, found in times.items()}
    if len(set().union(*hashes.values())) > 1:
        raise measure.IncorrectError(f"devices: the runs depend on how many there are: {hashes}")
    per_device = {d: _bytes_per_device(d, effort.tiny) for d in counts}
    series = [
        Series(
            "penalty step, divided parameters",
            "bytes",
            counts,
            tuple(per_device.values()),
            limit=tuple(per_device[1] / d for d in counts),
        ),
    ]
    rows = [
        ratio(
            f"penalty step: bytes on each of {counts[-1]} devices",
            per_device[counts[-1]] / per_device[1],
            "bytes on one",
            "bytes",
            1 / counts[-1],
            "parameters, results and temporaries",
        ),
    ]
    wall = {d: statistics.median(t.wall for t in found) for d, found in times.items()}
    cpu = {d: statistics.median(t.cpu for t in found) for d, found in times.items()}
    # All that a run computes, on all cores: one device divides its arrays among them, too, and may waste time on it.
    limit = {d: cpu[d] / _cores() for d in counts}
    if effort.rounds:
        series.append(Series("sweep, one run", "wall s", counts, tuple(wall.values()), limit=tuple(limit.values())))
    for d in counts[1:]:
        gain, least = (wall[d] / wall[1], limit[d] / wall[1]) if effort.rounds else (None, None)
        note = f"{_cores()} cores; {cpu[d] / cpu[1]:.2f} of the CPU time of a run on one device"
        rows.append(ratio(f"sweep: a run on {d} devices", gain, "one device", "wall", least, note))
    return Dimension("Devices made of one processor", "devices", tuple(series), tuple(rows))


def _bytes_per_device(num_devices: int, tiny: bool) -> float:
    """Arguments, results and temporaries of a penalty step whose weights are divided by rows; it is not run."""
    width = 64 if tiny else 1024
    model = models.mlp((width, width, width, 8), batch=8)
    mesh = jax.make_mesh((num_devices,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])
    placed = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec("rows")))
        for name, x in model.params.items()
    }
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), model.batch)

    def step(params, batch):
        transformation = optax.chain(add_gradient_penalty(0.1), optax.sgd(0.1))
        return optimizer_step(transformation, model.loss, params, transformation.init(params), (batch,))[0]

    lowered = jax.jit(step, out_shardings={name: x.sharding for name, x in placed.items()}).lower(placed, batch)
    return total_bytes(lowered.compile())


def processes(effort: measure.Effort) -> Dimension:
    """One sweep by 1 and 2 processes of `jax.distributed` on the loopback device, of one device each."""
    num_runs = 4 * WIDTH if effort.tiny or not effort.rounds else RUNS
    found = {p: _start(p, num_runs, 1 if effort.tiny else ROUNDS) for p in PROCESSES}
    hashes = {p: {t.digest for t in times} for p, times in found.items()}
    if len(set().union(*hashes.values())) > 1:
        raise measure.IncorrectError(f"processes: the runs depend on how many there are: {hashes}")
    if not effort.rounds:
        return Dimension(
            "Processes", "processes", (), (ratio("sweep: a run by 2 processes", None, "one process", "wall"),)
        )
    per_run, whole = ({p: statistics.median(getattr(t, kind) for t in times) for p, times in found.items()}
                      for kind in ("wall", "whole"))  # fmt: skip
    limit = tuple(per_run[1] / min(p, _cores()) for p in PROCESSES)
    series = (
        Series("sweep, one run", "wall s", PROCESSES, tuple(per_run.values()), limit=limit),
        Series(f"sweep of {num_runs}, with compilation", "wall s", PROCESSES, tuple(whole.values())),
    )
    rows = (
        ratio(
            "sweep: a run by 2 processes",
            per_run[2] / per_run[1],
            "one process",
            "wall",
            1 / min(2, _cores()),
            f"{_cores()} cores; each process may use only one device",
        ),
    )
    return Dimension("Processes of `jax.distributed` on one machine", "processes", series, rows)


def _start(num_processes: int, num_runs: int, repeats: int) -> list[Times]:
    """What process 0 prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    worker = str(pathlib.Path(__file__).with_name("scaling_worker.py"))
    start = functools.partial(
        subprocess.Popen,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    arguments = (num_runs, repeats)
    started = [
        start([sys.executable, worker, address, *map(str, (num_processes, k, *arguments))])
        for k in range(num_processes)
    ]
    told = [process.communicate(timeout=300) for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"scaling: a process ended: {[errors[-2000:] for _, errors in told]}")
    return [Times(**found) for found in json.loads(told[0][0].splitlines()[-1])]
