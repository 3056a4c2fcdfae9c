"""The memory of a sweep: what a call of each width reserves, and how far a process rises above what was estimated.

The runs are those of `sweeps`; what a call reserves is what the compiler says, and nothing is run for it. A sweep of
larger arrays runs in a process of its own, whose peak must be within a factor of 1.5 of `estimate_memory`.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import measure
from sweep_work import KEY, TINY, WIDTHS, Work, training

from implicit_reg.experiments import estimate_memory, sweep
from implicit_reg.experiments.axes import make_runs
from implicit_reg.experiments.lanes import Lanes

RSS_FACTOR = 1.5  # of the estimate: the allocator keeps what it had


def device_bytes(work: Work) -> dict[int, int]:
    """Arguments, results and temporaries of a call, by its width: those that the grid fills."""
    fn, runs = training(work), make_runs(work.axes)
    found = {}
    for width in [width for width in WIDTHS if width <= len(runs)]:
        lanes = Lanes(fn, runs, 0, KEY, width, None)
        lanes.prepare([range(width)])
        found[width] = lanes.device_bytes()
    return found


def run(effort: measure.Effort) -> measure.Report:
    """Memory by width, and of a process; the fast form has no process.

    Raises:
      measure.IncorrectError: the peak of the process is beyond `RSS_FACTOR` of the estimate.
    """
    work = TINY if effort.tiny else Work()
    num = len(make_runs(work.axes))
    memory = device_bytes(work)
    narrow, wide = min(32, num), max(memory)
    rows = [
        measure.Row(
            f"memory of a call, width {narrow} over all",
            memory[narrow] / memory[wide] if narrow != num else None,
            f"width {wide}",
            "bytes",
            limit=narrow / wide,
            note="" if narrow != num else "one width in the fast form",
        )
    ]
    grown = None if effort.tiny else resident(64)
    if grown is not None:
        factor = grown["measured"] / grown["estimated"]
        if not 1 / RSS_FACTOR <= factor <= RSS_FACTOR:
            raise measure.IncorrectError(f"a sweep's memory is {factor:.2f} of the estimate ({grown})")
        rows.append(measure.Row("peak memory of a process", factor, "estimate_memory", "bytes", limit=1.0))
    table = [[str(w), f"{held / 2**20:.2f}", f"{held / w / 2**10:.2f}"] for w, held in memory.items()]
    details = measure.markdown(["width", "MiB a call", "KiB a lane"], table)
    return measure.Report(tuple(rows), details, {"device_bytes": memory, "resident": grown})


RESIDENT = """
import json, sys
sys.path[:0] = {path!r}
import sweep_memory
print(json.dumps(sweep_memory.grow({width})))
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
