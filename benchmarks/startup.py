"""What it costs to begin: imports beside JAX's own, `--help` beside bare Python, `verify` without and with its cache.

Each command runs in a process of its own, in turn with the others; the unit of its CPU seconds is that of another in
the same round. `verify` runs once with no compiled programs kept and once more with those that the first run left, and
must find the same both times; its seconds are those of a clock on the wall. With `Effort(0, ...)` only what is imported
is looked at, and nothing is timed.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import measure

from implicit_reg.cli import _workers

IMPORT_TARGET, COLD_TARGET, WARM_TARGET = 1.15, 180.0, 60.0
MAX_ROUNDS = 9  # of processes that take half a second each

JAX, PYTHON, HELP = "import jax", "bare Python", "implicit-reg --help"
ROOMS = "import implicit_reg; [getattr(implicit_reg, name) for name in implicit_reg.__all__]"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    PYTHON: ("-c", "pass"),
    JAX: ("-c", "import jax"),
    "import jax, implicit_reg": ("-c", "import jax, implicit_reg"),
    "import optax, flax": ("-c", "import optax, flax"),
    "the transformations": ("-c", "import implicit_reg; implicit_reg.transforms"),
    "every public name": ("-c", ROOMS),
    HELP: ("-m", "implicit_reg", "--help"),
}
# What stays as it was before JAX is imported: the promise of the lazy names.
WITHOUT_JAX: Mapping[str, tuple[str, ...]] = {
    "import implicit_reg": ("-c", "import implicit_reg"),
    HELP: COMMANDS[HELP],
    "implicit-reg verify --help": ("-m", "implicit_reg", "verify", "--help"),
}
Units = Sequence[tuple[str, str, float | None, str]]
UNITS: Units = (
    ("import jax, implicit_reg", JAX, IMPORT_TARGET, ""),
    ("the transformations", JAX, None, "optax with them"),
    ("every public name", JAX, None, "optax, flax, equinox, diffrax and scipy with them"),
    ("import optax, flax", JAX, None, "for comparison"),
    (HELP, PYTHON, None, "without JAX; tyro draws it"),
)


def surroundings(**changes: str) -> dict[str, str]:
    """The environment of a command: what others set for JAX and XLA is taken out."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))} | changes


def imported(arguments: Sequence[str], python: str = sys.executable) -> set[str]:
    """The names of all modules that a command imports.

    Raises:
      measure.IncorrectError: the command fails.
    """
    done = subprocess.run(
        [python, "-X", "importtime", *arguments], env=surroundings(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise measure.IncorrectError(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-300:]}")
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


def count_jax(commands: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many modules of JAX each command imports, which must be none.

    Raises:
      measure.IncorrectError: naming the command that imports any.
    """
    counts = {}
    for name, arguments in commands.items():
        found = sorted(module for module in imported(arguments) if module.split(".")[0] in ("jax", "jaxlib"))
        if found:
            raise measure.IncorrectError(f"{name} imports {', '.join(found[:3])} and {len(found) - 1} modules more")
        counts[name] = len(found)
    return counts


def cpu_seconds(arguments: Sequence[str]) -> float:
    """What a process takes from its start to its end, system calls included."""
    import resource

    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = children()
    subprocess.run([sys.executable, *arguments], env=surroundings(), stdout=subprocess.DEVNULL, check=True)
    return children() - before


def interleaved(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each command in each round, the order drawn anew every time."""
    order, shuffle = list(commands), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for arguments in commands.values():
        cpu_seconds(arguments)  # the first start reads files from disk, and compiles what is new
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(cpu_seconds(commands[name]))
    return seconds


def verify(folder: pathlib.Path) -> dict[str, float]:
    """Wall seconds of `verify` with nothing kept, and then with what that left.

    Raises:
      measure.IncorrectError: a run fails, or the second finds other numbers than the first.
    """
    seconds, findings = {}, []
    for name in ("cold", "warm"):
        out = folder / name
        command = ["-m", "implicit_reg", "verify", "--quiet", "--out", str(out), "--cache", str(folder / "cache")]
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *command], env=surroundings(), check=False).returncode
        seconds[name] = time.perf_counter() - start
        if code:
            raise measure.IncorrectError(f"verify, {name}: exit code {code}")
        checks = json.loads((out / "results.json").read_text(encoding="utf-8"))["checks"]
        findings.append([{k: v for k, v in check.items() if k != "wall_seconds"} for check in checks])
    if findings[0] != findings[1]:
        different = [a["name"] for a, b in zip(*findings, strict=True) if a != b]
        raise measure.IncorrectError(f"verify finds other numbers with its cache: {', '.join(different)}")
    return seconds


def _ratio_rows(seconds: Mapping[str, Sequence[float]]) -> list[measure.Row]:
    rows = []
    for work, unit, target, note in UNITS:
        ratios, spread = [], None
        if seconds:
            ratios = [a / b for a, b in zip(seconds[work], seconds[unit], strict=True)]
            if len(ratios) > 1:
                low, _, high = statistics.quantiles(ratios, n=4)
                spread = (low, high)
        value = statistics.median(ratios) if ratios else None
        limit = 1.0 if target is not None else None
        rows.append(measure.Row(work, value, unit, "cpu", limit=limit, target=target, spread=spread, note=note))
    return rows


def run(effort: measure.Effort) -> measure.Report:
    """Modules of JAX where there must be none; then, if timed, imports, `--help` and `verify`."""
    counts = count_jax(WITHOUT_JAX)
    rows = [
        measure.Row(f"modules of JAX in {name}", count, "modules", "count", limit=0, target=0)
        for name, count in counts.items()
    ]
    timed = effort.rounds > 0
    seconds = interleaved(COMMANDS, min(effort.rounds, MAX_ROUNDS)) if timed else {}
    rows += _ratio_rows(seconds)
    whole: dict[str, Any] = {}
    if timed and not effort.tiny:
        with tempfile.TemporaryDirectory() as folder:
            whole = verify(pathlib.Path(folder))
    for name, target in (("cold", COLD_TARGET), ("warm", WARM_TARGET)):
        note = "nothing is kept yet" if name == "cold" else "with the programs that the run before kept"
        note += f"; processes: {_workers.default_number()}"
        rows.append(measure.Row(f"verify, {name}", whole.get(name), "s", "wall", target=target, note=note))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    lines = [[name, measure.number(median)] for name, median in medians.items()]
    details = measure.markdown(["command", "CPU s"], lines) if lines else ""
    data = {"modules_of_jax": counts, "cpu_seconds": seconds, "verify_wall_seconds": whole}
    return measure.Report(tuple(rows), details, data)
