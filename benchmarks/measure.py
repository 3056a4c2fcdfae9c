"""Compile apart from run; interleaved, blocked timings of several programs in one process."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A compiled program and what its compiler says of it, None where it is silent."""

    compiled: Callable[..., Any]
    arguments: tuple
    compile_seconds: float
    flops: float | None
    temporary_bytes: int | None

    def __call__(self) -> Any:
        return jax.block_until_ready(self.compiled(*self.arguments))


class Cost(NamedTuple):
    """Medians over rounds of one program's time over the unit's in the same round, and seconds per call."""

    cpu: float
    wall: float
    cpu_quartiles: tuple[float, float]
    wall_seconds: float


def build(fn: Callable[..., Any], *arguments: Any) -> Program:
    """Traces and compiles `fn`; every array that it reads is to be among its arguments."""
    start = time.perf_counter()
    # A function of its own each time: jit would hand back the first of two equal programs.
    compiled = jax.jit(lambda *xs: fn(*xs)).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return Program(
        compiled,
        arguments,
        seconds,
        analysis.get("flops") or None,
        None if memory is None else int(memory.temp_size_in_bytes),
    )


def interleave(
    programs: Mapping[str, Program], *, unit: str, rounds: int, seconds_per_sample: float = 0.02
) -> dict[str, Cost]:
    """Times each program once in every round, in an order drawn anew, and divides by the unit of the same round.

    A machine that others use too slows a whole round more than it slows one program in it, so the ratio is taken within
    rounds and its median across them. A sample is as many calls as fill `seconds_per_sample`.
    """
    calls = {}
    for name, program in programs.items():
        program()  # the first call allocates
        start = time.perf_counter()
        program()
        calls[name] = max(1, round(seconds_per_sample / (time.perf_counter() - start)))
    order, shuffle = list(programs), random.Random(0).shuffle
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    wall: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            program, n = programs[name], calls[name]
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(n):
                program()
            cpu[name].append((time.process_time() - cpu_start) / n)
            wall[name].append((time.perf_counter() - wall_start) / n)

    def ratios(samples: Mapping[str, Sequence[float]], name: str) -> list[float]:
        return [a / b for a, b in zip(samples[name], samples[unit], strict=True)]

    costs = {}
    for name in programs:
        in_units = ratios(cpu, name)
        quartiles = statistics.quantiles(in_units, n=4) if rounds > 1 else [in_units[0]] * 3
        costs[name] = Cost(
            cpu=statistics.median(in_units),
            wall=statistics.median(ratios(wall, name)),
            cpu_quartiles=(quartiles[0], quartiles[2]),
            wall_seconds=statistics.median(wall[name]),
        )
    return costs


def environment(matmul_precision: str) -> dict[str, Any]:
    """What the numbers depend on, without the name of any machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "machine": platform.machine(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "matmul_precision": matmul_precision,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("jax", "jaxlib", "optax", "implicit_reg")},
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)


def number(x: float | None, digits: int = 2) -> str:
    """A ratio, or a dash where there is none."""
    return "-" if x is None else f"{x:.{digits}f}"
