"""Which bits of a sweep stay, in programs larger than those of `implicit-reg doctor`, and what two devices gain.

    python benchmarks/sweep_bits.py [--program NAME ...] [--x64] [--threads N] [--json]

Three programs on a grid of 24 runs, steps beyond the edge of stability among them: a tanh network under momentum with
shuffled minibatches, a ReLU network under Adam, and an adaptive ODE solver. Each is run in other chunks, in another
order, on 2 and 4 devices, and in part, and must end with the same bytes (exit code 1 where it does not). Another width
may end elsewhere, and so may one program that `shard_map` divides: the largest differences are shown. The time on two
devices is over that on one, compiled beforehand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from typing import Any

WIDTH, OTHER_WIDTH, DEVICES, ROUNDS = 8, 16, (2, 4), 5
AXES = {"h": [0.01, 0.1, 1.0], "momentum": [0.0, 0.9], "seed": range(4)}


def programs() -> dict[str, Any]:
    """The functions that are swept; draws are float32, so that both precisions start at the same point."""
    import diffrax
    import jax
    import jax.numpy as jnp
    import optax

    from implicit_reg.experiments import run_steps, shuffled_batches

    def normal(key, *shape):
        return jax.random.normal(key, shape, jnp.float32).astype(float)

    x = normal(jax.random.key(1), 200, 16)
    y = jnp.sin(x.sum(1))
    everything = jnp.arange(200)

    def tanh_network(key, h, momentum):
        a, b, order = jax.random.split(key, 3)
        params = {"a": normal(a, 16, 32) / 4, "b": normal(b, 32) / 6}
        batch = shuffled_batches(order, 200, 20)

        def loss(p, rows):
            return jnp.mean((jnp.tanh(x[rows] @ p["a"]) @ p["b"] - y[rows]) ** 2)

        run = run_steps(
            optax.sgd(h, momentum), loss, params, lambda n: (batch(n),), 200,
            every=100, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "params": run.params, "first_bad_step": run.first_bad_step}

    def relu_network(key, h, momentum):
        a, b, _, c = jax.random.split(key, 4)
        params = {"a": normal(a, 16, 64) / 4, "b": normal(b, 64, 2) / 8, "c": normal(c, 64, 64) / 8}

        def loss(p, rows):
            logits = jax.nn.relu(jax.nn.relu(x[rows] @ p["a"]) @ p["c"]) @ p["b"]
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(rows.size), (y[rows] > 0).astype(jnp.int32)])

        run = run_steps(
            optax.adam(h, momentum), loss, params, lambda n: (everything,), 40,
            every=20, observe=lambda p, state: loss(p, everything),
        )  # fmt: skip
        return {"loss": run.observed, "params": run.params}

    def adaptive_flow(key, h, momentum):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, v, _: -(v**3) - momentum * jnp.roll(v, 1)),
            diffrax.Dopri8(), 0.0, 20 * h, None, normal(key, 8),
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5), throw=False,
        )  # fmt: skip
        return solution.ys[0]

    return {"tanh": tanh_network, "relu": relu_network, "flow": adaptive_flow}


def digest(runs: Any, rows: Any = slice(None)) -> str:
    """SHA-256 of all outputs of some runs."""
    import numpy as np

    found = hashlib.sha256()
    for leaf in runs.leaves.values():
        found.update(np.ascontiguousarray(leaf[rows]).tobytes())
    return found.hexdigest()


def difference(a: Any, b: Any) -> float:
    """The largest one of a floating output, over the largest entry of it; `a` and `b` map paths to arrays."""
    import numpy as np

    floats = [path for path, leaf in a.items() if leaf.dtype.kind == "f"]
    return max(float(np.nanmax(np.abs(a[path] - b[path])) / np.nanmax(np.abs(a[path]))) for path in floats)


def partitioned(fn: Any, key: Any) -> dict[str, Any]:
    """The first two blocks by one program that `shard_map` divides over two devices: the road not taken."""
    import jax
    import numpy as np
    from jax.sharding import PartitionSpec

    from implicit_reg.experiments import sweep_mesh
    from implicit_reg.experiments.axes import make_runs
    from implicit_reg.experiments.lanes import Lanes

    lanes = Lanes(fn, make_runs(AXES), 0, key, WIDTH, None)
    blocks = [lanes._arguments(range(k * WIDTH, (k + 1) * WIDTH)) for k in range(2)]
    seeds, operands = jax.tree.map(lambda *parts: np.concatenate(parts), *(block[1:] for block in blocks))
    whole, runs = PartitionSpec(), PartitionSpec("runs")
    program = jax.shard_map(
        jax.vmap(lanes._lane, in_axes=(None, 0, 0)), mesh=sweep_mesh(2), in_specs=(whole, runs, runs), out_specs=runs,
        check_vma=False,
    )  # fmt: skip
    return {path: np.asarray(leaf) for path, leaf in jax.jit(program)(blocks[0][0], seeds, operands).items()}


def examine(fn: Any) -> dict[str, Any]:
    """Every layout of one program: whether its bytes are the same, and the ratio of times on two devices and one."""
    import jax
    import numpy as np

    from implicit_reg.experiments import sweep, sweep_mesh
    from implicit_reg.experiments.axes import make_runs
    from implicit_reg.experiments.lanes import Lanes

    key = jax.random.key(0)
    whole = sweep(fn, AXES, key=key, width=WIDTH)
    wanted = digest(whole)
    rows = [dict(row) for row in make_runs(AXES).settings]
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = sweep(fn, [rows[k] for k in order], key=key, width=WIDTH)
    part = list(range(0, len(rows), 7))
    same = {
        f"chunk {4 * WIDTH}": digest(sweep(fn, AXES, key=key, width=WIDTH, chunk=4 * WIDTH)) == wanted,
        "another order": digest(mixed, np.argsort(order)) == wanted,
        "a part, padded": digest(sweep(fn, [rows[k] for k in part], key=key, width=WIDTH)) == digest(whole, part),
    }
    for num in DEVICES:
        same[f"{num} devices"] = digest(sweep(fn, AXES, key=key, width=WIDTH, mesh=sweep_mesh(num))) == wanted
    other = sweep(fn, AXES, key=key, width=OTHER_WIDTH)
    divided = {path: leaf[: 2 * WIDTH] for path, leaf in whole.leaves.items()}

    blocks = [range(k * WIDTH, (k + 1) * WIDTH) for k in range(2)]
    one, two = (Lanes(fn, make_runs(AXES), 0, key, WIDTH, sweep_mesh(num)) for num in (1, 2))
    ratios = []
    for round_ in range(ROUNDS + 1):
        times = []
        for calls in (lambda: [one([block]) for block in blocks], lambda: [two(blocks)]):
            start = time.perf_counter()
            calls()
            times.append(time.perf_counter() - start)
        if round_:  # the first one compiles
            ratios.append(times[1] / times[0])
    return {
        "diverged": int((whole.status == "diverged").sum()),
        "sha256": wanted,
        "same": same,
        f"width {OTHER_WIDTH}, largest difference": difference(whole.leaves, other.leaves),
        "shard_map over two devices, largest difference": difference(divided, partitioned(fn, key)),
        "time on two devices over one": statistics.median(ratios),
    }


def main() -> int:
    """Measures and prints; 1 where bytes differ that must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--program", nargs="+", choices=("tanh", "relu", "flow"), default=["tanh", "relu", "flow"])
    parser.add_argument("--x64", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(max(DEVICES)))
    os.environ["JAX_ENABLE_X64"] = str(int(options.x64))
    if options.threads:
        os.environ.update(NPROC=str(options.threads), PJRT_NPROC=str(options.threads))
    found = {name: examine(fn) for name, fn in programs().items() if name in options.program}
    if options.json:
        print(json.dumps(found))
    else:
        for name, each in found.items():
            bad = [what for what, same in each["same"].items() if not same]
            print(
                f"{name}: {'the same bytes' if not bad else 'DIFFERENT: ' + ', '.join(bad)} ({', '.join(each['same'])})"
            )
            for what in each:
                if what != "same":
                    print(
                        f"    {what}: {each[what] if isinstance(each[what], int | str) else format(each[what], '.2g')}"
                    )
    return 0 if all(all(each["same"].values()) for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
