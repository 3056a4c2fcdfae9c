"""What every benchmark is made of: compiled programs, interleaved timings, rows of ratios with targets and verdicts."""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

import jax
from records import table

from implicit_reg.experiments.machine import machine

PEERS = ("torch", "torchdiffeq", "curvlinops-for-pytorch", "pyhessian", "matfree", "diffrax", "scipy")
FEWEST, BUDGET = 7, 25.0
"""Rounds at least, and seconds that they may take beyond. Quartiles do not draw closer with more of them; the error of
the median does, by the root of their number."""
absent: dict[str, str] = {}
"""Each library that `peer` did not find in this process, and why."""


class IncorrectError(RuntimeError):
    """Something is not what its formula says; nothing is timed."""


class Effort(NamedTuple):
    """How much to do: `rounds` timings of each program (0: correctness and counts alone), on toy sizes if `tiny`."""

    rounds: int
    tiny: bool


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      work: what was done; unique in its benchmark.
      value: the measured ratio or count; None where it was not measured, and `note` says why.
      unit: what 1 is: "gd step", "gradient", "scipy DOP853", "s", "MiB".
      clock: "cpu", "wall", "count", "flops" or "bytes".
      limit: what theory or hardware allows, in the same unit.
      target: what is asked for: at most this, or at least this where `at_least`; None where it is only reported.
      spread: quartiles over the rounds.
      note: why a target is missed, why nothing was measured, which case it is.
    """

    work: str
    value: float | None
    unit: str
    clock: str
    limit: float | None = None
    target: float | None = None
    at_least: bool = False
    spread: tuple[float, float] | None = None
    note: str = ""


class Report(NamedTuple):
    """The rows of a benchmark, its tables in Markdown, and everything that it measured, ready for JSON."""

    rows: tuple[Row, ...]
    details: str
    data: dict[str, Any]


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
    """Medians over `rounds` of one program's time over the unit's in the same round, and seconds per call."""

    cpu: float
    wall: float
    cpu_quartiles: tuple[float, float]
    wall_quartiles: tuple[float, float]
    cpu_seconds: float
    wall_seconds: float
    rounds: int


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


class Costs(dict):
    """The cost of each program, and the seconds of each round, by which any two of them can be compared."""

    def __init__(self, costs: Mapping[str, Cost] | None = None, samples: Mapping[str, Any] | None = None):
        super().__init__(costs or {})
        self.samples = samples or {}

    def over(self, name: Any, other: Any, clock: str = "cpu") -> tuple[float, tuple[float, float]]:
        """The median of one program's time over another's in the same round, and its quartiles."""
        seconds = self.samples[clock]
        ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
        return statistics.median(ratios), quartiles(ratios)


def interleave(
    programs: Mapping[str, Callable[[], Any]], *, unit: str, rounds: int, seconds_per_sample: float = 0.02
) -> Costs:
    """Times each program once in every round, in an order drawn anew, and divides by the unit of the same round.

    A machine that others use too slows a whole round more than it slows one program in it, so the ratio is taken within
    rounds and its median across them. A sample is as many calls as fill `seconds_per_sample`. A call is to return when
    its work is done. Rounds are fewer, but not fewer than `FEWEST`, where they would take longer than `BUDGET`: that is
    read from one call of each before any ratio is seen.
    """
    calls, one_round = {}, 0.0
    for name, program in programs.items():
        program()  # the first call allocates
        start = time.perf_counter()
        program()
        seconds = time.perf_counter() - start
        calls[name] = max(1, round(seconds_per_sample / seconds))
        one_round += calls[name] * seconds
    rounds = min(rounds, max(FEWEST, int(BUDGET / one_round)))
    order, shuffle = list(programs), random.Random(0).shuffle
    samples: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in programs} for clock in ("cpu", "wall")}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            program, n = programs[name], calls[name]
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(n):
                program()
            samples["cpu"][name].append((time.process_time() - cpu_start) / n)
            samples["wall"][name].append((time.perf_counter() - wall_start) / n)
    found = Costs(samples=samples)
    for name in programs:
        (cpu, cpu_quartiles), (wall, wall_quartiles) = (found.over(name, unit, clock) for clock in ("cpu", "wall"))
        medians = (statistics.median(samples[clock][name]) for clock in ("cpu", "wall"))
        found[name] = Cost(cpu, wall, cpu_quartiles, wall_quartiles, *medians, rounds)
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4)
    return first, third


def peer(name: str) -> ModuleType | None:
    """A library to compare with; None where it cannot be imported, which the table and `--check` then say."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        absent[name] = f"{name} is missing" if error.name == name else f"{name} cannot be imported: {error}"
        return None


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str:
    """Of what is measured: "-dirty" where the library or the benchmarks differ from it, "unknown" without a checkout.

    Pages and results do not count: each benchmark writes its own into a file that the commit may hold.
    """
    here = pathlib.Path(__file__).parent
    sources = ("implicit_reg", "benchmarks/*.py")

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=False
        )

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", *sources).returncode
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return "unknown" if head.returncode else head.stdout.strip() + "-dirty" * (changed == 1)


def environment() -> dict[str, Any]:
    """What the numbers depend on, without the name of any machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **machine(),
        "commit": commit(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        **{package: found for package in PEERS if (found := version(package))},
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    return table(rows, header)


def number(x: float | None, digits: int = 2) -> str:
    """A ratio, or a dash where there is none."""
    return "-" if x is None else f"{x:.{digits}f}"
