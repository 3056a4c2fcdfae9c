"""The lanes of a sweep on one device of the CPU, on two, and divided over two by `shard_map`.

Two blocks of 8 lanes: one after the other on one device, side by side on two, both already compiled; three sizes of
network. The bytes are compared first. One device already uses several cores where its arrays are large enough for XLA
to divide them, so that two devices gain what it leaves idle: the limit is twice the cores over those that one keeps
busy (processor time over wall time), times what dividing small arrays wasted. On a busy machine none of it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import measure
import numpy as np
import sweep_work
from jax.sharding import NamedSharding, PartitionSpec

from implicit_reg.experiments import sweep_mesh
from implicit_reg.experiments.axes import make_runs
from implicit_reg.experiments.lanes import Lanes

TARGET, WIDTH, TINY_WIDTH = 1.5, 8, 4
SIZES = {
    "8-16-1, batch 16": sweep_work.Work(),
    "16-64-1, batch 64": sweep_work.Work(16, 64, 256, 64, 50, 25),
    "64-256-1, batch 256": sweep_work.Work(64, 256, 512, 256, 10, 5),
}
AGREEMENT = 1e-2  # of a divided program, which has other bits


def partitioned(lanes: Lanes, blocks: Sequence[range]) -> Callable[[], dict[str, np.ndarray]]:
    """Two blocks by one program that `shard_map` divides over two devices: the road not taken."""
    made = [lanes._arguments(block) for block in blocks]
    mesh, whole, divided = sweep_mesh(2), PartitionSpec(), PartitionSpec("runs")
    program = jax.shard_map(
        jax.vmap(lanes._lane, in_axes=(None, 0, 0)), mesh=mesh, in_specs=(whole, divided, divided), out_specs=divided,
        check_vma=False,
    )  # fmt: skip
    seeds, operands = jax.tree.map(lambda *parts: np.concatenate(parts), *(block[1:] for block in made))
    placed = (
        jax.device_put(made[0][0], NamedSharding(mesh, whole)),
        *jax.device_put((seeds, operands), NamedSharding(mesh, divided)),
    )
    compiled = jax.jit(program).lower(*placed).compile()
    return lambda: {path: np.asarray(leaf) for path, leaf in compiled(*placed).items()}


def calls(work: sweep_work.Work, width: int) -> dict[str, Callable[[], Any]]:
    """Two blocks of lanes: one after the other on one device, on two, and divided; compiled and compared.

    Raises:
      measure.IncorrectError: two devices have other bytes than one.
    """
    fn, runs = sweep_work.training(work), make_runs(work.axes)
    blocks = [range(k * width, (k + 1) * width) for k in range(2)]
    two = Lanes(fn, runs, 0, sweep_work.KEY, width, sweep_mesh(2))
    two.prepare(blocks)

    def one():
        # The first device of the two, whose program is compiled already.
        parts = [two([block]) for block in blocks]
        return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}

    alone, beside, divided = one(), two(blocks), partitioned(two, blocks)
    for path, leaf in beside.items():
        if leaf.tobytes() != alone[path].tobytes():
            raise measure.IncorrectError(f"{path} has other bytes on two devices than on one")
    error = np.max(np.abs(divided()["loss"] - alone["loss"])) / np.max(np.abs(alone["loss"]))
    if not error <= AGREEMENT:
        raise measure.IncorrectError(f"the divided program is {error:.1e} from the whole one")
    return {"one": one, "two": lambda: two(blocks), "shard_map": divided}


def run(effort: measure.Effort) -> measure.Report:
    """How much faster two devices are than one, for each size of network."""
    if len(jax.devices()) < 2:
        note = "there is one device; on a CPU set JAX_NUM_CPU_DEVICES=2"
        return measure.Report((measure.Row("two devices", None, "speed of one", "wall", note=note),), note, {})
    rows, data = [], {}
    for name, work in {"toy": sweep_work.TINY}.items() if effort.tiny else SIZES.items():
        made = calls(work, TINY_WIDTH if effort.tiny else WIDTH)
        costs = measure.interleave(made, unit="one", rounds=effort.rounds) if effort.rounds else {}
        data[name] = {kind: cost._asdict() for kind, cost in costs.items()}
        busy = max(1.0, costs["one"].cpu_seconds / costs["one"].wall_seconds) if costs else None
        for kind, title in (("two", "two devices"), ("shard_map", "shard_map over two devices")):
            rows.append(
                measure.Row(
                    f"{title}, {name}",
                    1 / costs[kind].wall if costs else None,
                    "speed of one",
                    "wall",
                    limit=2 / (busy * costs[kind].cpu) if costs else None,
                    target=TARGET if kind == "two" and name in ("toy", next(iter(SIZES))) else None,
                    at_least=True,
                    spread=tuple(sorted(1 / q for q in costs[kind].wall_quartiles)) if costs else None,
                    note=f"one device keeps {busy:.1f} cores busy" if costs else "",
                )
            )
    header = ["network", "one, wall s", "two / one, wall", "shard_map / one, wall", "two / one, CPU"]
    table = [
        [
            name,
            measure.number(found["one"]["wall_seconds"], 4),
            *(measure.number(found[kind]["wall"]) for kind in ("two", "shard_map")),
            measure.number(found["two"]["cpu"]),
        ]
        for name, found in data.items()
        if found
    ]
    return measure.Report(tuple(rows), measure.markdown(header, table), data)
